//! The loop that brings about what objects ask for: controllers make and delete objects, the scheduler binds pods to
//! nodes, and each node's manifest is compiled. What to do is decided by the pure parts (`controllers`, `schedule`,
//! `compile`); this is their shell.

mod controllers;
mod deeds;
mod events;
mod nodes;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use serde_json::Value;
use skeg_protocol::manifest::Image;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::app::App;
use crate::pull_secrets;
use crate::selector;
use crate::store::{Action, Change, Expired, Key, Store, StoreError, Watch};
use crate::time;

use nodes::Nodes;
use world::{World, controller_of, key_of};

pub(crate) use nodes::unresolved;

/// First wait after a deed that failed; it doubles up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(2);
const LONGEST: Duration = Duration::from_secs(300);
/// How often what is only for a while is swept: events, tokens.
const SWEEP: Duration = Duration::from_secs(600);

/// What wakes the manager beside changes of objects.
#[derive(Debug)]
pub(crate) enum Nudge {
    /// Look at everything again.
    Look,
    /// The own registry has something new.
    Pushed,
    /// A registry answered for a pod's reference.
    Answer {
        /// Pod.
        uid: String,
        /// Reference.
        reference: String,
        /// What it means, or why that is not known.
        answer: Result<Image, String>,
    },
}

/// A deed that failed: how often in a row, why, and when it is tried again.
#[derive(Debug)]
struct Failure {
    count: u32,
    message: String,
}

struct Manager {
    app: Arc<App>,
    world: World,
    nodes: Nodes,
    /// Objects whose controllers have to look.
    due: BTreeSet<Key>,
    /// Objects whose controllers want to look again at a time.
    later: BTreeSet<(Timestamp, Key)>,
    failures: BTreeMap<Key, Failure>,
    swept: Instant,
}

/// Runs until the controller stops.
pub(crate) async fn run(app: Arc<App>, mut nudges: mpsc::UnboundedReceiver<Nudge>) {
    // Before the objects are read, so that no change is missed between.
    let Ok(mut watch) = app.store.watch(None) else { return };
    let mut manager = Manager {
        nodes: Nodes::new(app.clone()),
        app,
        world: World::default(),
        due: BTreeSet::new(),
        later: BTreeSet::new(),
        failures: BTreeMap::new(),
        swept: Instant::now(),
    };
    manager.start_over();
    loop {
        manager.work(&mut watch, &mut nudges);
        if manager.wait(&mut watch, &mut nudges).await.is_none() {
            return;
        }
    }
}

impl Manager {
    /// Reads all objects anew; every controller looks at its own.
    fn start_over(&mut self) {
        match World::load(self.app.store.as_ref()) {
            Ok(world) => self.world = world,
            // The next change tries again; a failing disk is for the operator to mend.
            Err(error) => return log::error!("cannot read the objects: {error}"),
        }
        for kind in crate::api::kinds::KINDS.iter().filter(|kind| controllers::acts(kind.kind)) {
            self.due.extend(self.world.all(kind.kind).map(key_of));
        }
        self.due.extend(self.world.orphans());
        self.nodes.look_at_all(&self.world);
    }

    /// Does everything that is due, until nothing is.
    fn work(&mut self, watch: &mut Watch, nudges: &mut mpsc::UnboundedReceiver<Nudge>) {
        loop {
            self.catch_up(watch, nudges);
            let now = time::now();
            while self.later.first().is_some_and(|(at, _)| *at <= now) {
                self.due.extend(self.later.pop_first().map(|(_, key)| key));
            }
            let due = std::mem::take(&mut self.due);
            if due.is_empty() && !self.nodes.is_due() {
                break;
            }
            for key in due {
                self.attend(&key, now);
            }
            self.catch_up(watch, nudges);
            if let Err(error) = self.nodes.work(&self.world) {
                // The next change tries again; a failing disk is for the operator to mend.
                log::error!("cannot bring the nodes' manifests up to date: {error}");
                break;
            }
        }
        if self.swept.elapsed() > SWEEP {
            self.swept = Instant::now();
            self.sweep();
        }
    }

    /// Lets an object's controller look and does what it wants.
    fn attend(&mut self, key: &Key, now: Timestamp) {
        let Some(object) = self.world.get(key) else {
            self.failures.remove(key);
            return;
        };
        let failure = self.failures.get(key).map(|failure| failure.message.as_str());
        let plan = controllers::plan(&self.world, object, failure, now);
        if let Some(again) = plan.again {
            self.later.insert((again.max(now), key.clone()));
        }
        if plan.deeds.is_empty() {
            return;
        }
        let object = object.clone();
        match deeds::carry_out(&self.app, &object, plan.deeds) {
            Ok(()) => drop(self.failures.remove(key)),
            Err(message) => {
                let count = self.failures.get(key).map_or(1, |failure| failure.count + 1);
                let wait = (FIRST * 2u32.saturating_pow(count.min(8) - 1)).min(LONGEST);
                log::debug!("{key}: {message}; tried again in {} s", wait.as_secs());
                self.failures.insert(key.clone(), Failure { count, message });
                let again = now.checked_add(wait).unwrap_or(Timestamp::MAX);
                self.later.insert((again, key.clone()));
                // Its status tells of the failure at once.
                if count == 1 {
                    self.due.insert(key.clone());
                }
            }
        }
    }

    /// Waits for something that matters; `None` when the controller stops.
    async fn wait(&mut self, watch: &mut Watch, nudges: &mut mpsc::UnboundedReceiver<Nudge>) -> Option<()> {
        let retry = self.nodes.next_retry().map(Instant::from_std);
        let later = self.later.first().map(|(at, _)| {
            let wait = Duration::try_from(at.duration_since(time::now())).unwrap_or_default();
            Instant::now() + wait.min(SWEEP)
        });
        let wake = [retry, later].into_iter().flatten().min();
        let alarm = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at).await,
                None => tokio::time::sleep(SWEEP).await,
            }
        };
        tokio::select! {
            change = watch.next() => match change {
                Ok(None) => return None,
                change => self.note_change(&change),
            },
            nudge = nudges.recv() => self.nodes.note(nudge?, &self.world),
            () = alarm => self.nodes.alarm(&self.world),
            () = self.app.stopped() => return None,
        }
        Some(())
    }

    /// Takes everything that has happened by now, so that one look covers it: a fleet that comes back at once must
    /// not cost a look at everything for each of its devices.
    fn catch_up(&mut self, watch: &mut Watch, nudges: &mut mpsc::UnboundedReceiver<Nudge>) {
        while let Some(change @ (Ok(Some(_)) | Err(Expired))) = watch.next().now_or_never() {
            self.note_change(&change);
        }
        while let Ok(nudge) = nudges.try_recv() {
            self.nodes.note(nudge, &self.world);
        }
    }

    fn note_change(&mut self, change: &Result<Option<Arc<Change>>, Expired>) {
        match change {
            Ok(Some(change)) => {
                let before = self.world.follow(change);
                self.nodes.note_change(change, before.as_deref());
                self.mark(change, before.as_deref());
            }
            Ok(None) => {}
            Err(Expired) => {
                self.nodes.data_changed();
                self.start_over();
            }
        }
    }

    /// Marks the objects whose controllers a change concerns.
    fn mark(&mut self, change: &Change, before: Option<&Value>) {
        let (key, object) = (&change.key, change.object.as_ref());
        if key.kind == "Event" {
            return;
        }
        let garbage =
            !object["metadata"]["ownerReferences"].is_null() || !object["metadata"]["deletionTimestamp"].is_null();
        if change.action != Action::Deleted && (controllers::acts(&key.kind) || garbage) {
            self.due.insert(key.clone());
        }
        for object in [Some(object), before].into_iter().flatten() {
            if let Some(owner) = controller_of(object) {
                let text = |field: &str| owner[field].as_str().unwrap_or_default();
                self.due.insert(Key::new(text("kind"), &key.namespace, text("name")));
            }
        }
        if change.action == Action::Deleted {
            let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
            self.due.extend(self.world.owned_by(uid).map(|(key, _)| key.clone()));
            // A foreground deletion waits for its last dependent, a namespace for its last object.
            let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
            self.due.extend(owners.map(|owner| {
                let text = |field: &str| owner[field].as_str().unwrap_or_default();
                Key::new(text("kind"), &key.namespace, text("name"))
            }));
            if !key.namespace.is_empty() {
                self.due.insert(Key::new("Namespace", "", &key.namespace));
            }
        }
        match key.kind.as_str() {
            "Pod" => self.mark_for_pod(key, object, before),
            "Node" => self.due.extend(self.world.all("DaemonSet").map(key_of)),
            _ => {}
        }
    }

    /// Services and budgets that select a pod, and its node.
    fn mark_for_pod(&mut self, key: &Key, pod: &Value, before: Option<&Value>) {
        let states = || [Some(pod), before].into_iter().flatten();
        let labels = |state: &Value| state["metadata"]["labels"].clone();
        for service in self.world.within("Service", &key.namespace) {
            if states().any(|state| selector::has_all(&service["spec"]["selector"], &labels(state))) {
                self.due.insert(key_of(service));
            }
        }
        for budget in self.world.within("PodDisruptionBudget", &key.namespace) {
            if states().any(|state| selector::matches(&budget["spec"]["selector"], &labels(state))) {
                self.due.insert(key_of(budget));
            }
        }
        if let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
            self.due.insert(Key::new("Node", "", node));
        }
    }

    fn sweep(&self) {
        let now = time::now();
        let swept =
            events::sweep(self.app.store.as_ref(), now).and_then(|()| self.app.store.sweep_users(now.as_second()));
        if let Err(error) = swept {
            log::error!("cannot sweep old events and tokens: {error}");
        }
    }
}

/// Whether what changed may be something that pods read.
fn is_data(change: &Change) -> bool {
    matches!(change.key.kind.as_str(), pull_secrets::KIND | "ConfigMap")
}

fn ignore_missing(error: StoreError) -> Result<(), StoreError> {
    match error {
        StoreError::NotFound(_) => Ok(()),
        error => Err(error),
    }
}
