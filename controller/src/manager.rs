//! The loop that brings objects and manifests together: it binds pods to nodes, resolves their images, compiles
//! each node's manifest, and tells the sessions. What to do is decided by the pure parts (schedule, compile);
//! this is their shell.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use serde_json::{Value, json};
use skeg_kube::{image_references, pull_secret_names};
use skeg_protocol::manifest::{Image, ImageSource};
use skeg_protocol::sync::body;
use skeg_protocol::{Manifest, Pod, Uid};
use tokio::sync::{Semaphore, mpsc};

use crate::app::App;
use crate::compile::assemble;
use crate::images::{self, Answers, Standing, shared_asker};
use crate::link::Command;
use crate::pods::{conditions, convert, failed_images, unschedulable};
use crate::pull_secrets;
use crate::schedule::{Load, choose};
use crate::store::{Action, Change, Expired, Key, Store, StoreError, Watch, update};
use crate::time;

/// Registries asked at the same time.
const ASKING: usize = 4;

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

/// Runs until the controller stops.
pub(crate) async fn run(app: Arc<App>, mut nudges: mpsc::UnboundedReceiver<Nudge>) {
    let Ok(mut watch) = app.store.watch(None) else { return };
    let asking = Arc::new(Semaphore::new(ASKING));
    let mut manager = Manager { app, answers: Answers::default(), asking, secrets_changed: false };
    if let Err(error) = manager.remember() {
        log::error!("cannot read what the nodes' images are: {error}");
    }
    loop {
        let looked = manager.look();
        manager.secrets_changed = false;
        if let Err(error) = looked {
            // The next change tries again; a failing disk is for the operator to mend.
            log::error!("cannot bring the nodes' manifests up to date: {error}");
        }
        if manager.wait(&mut watch, &mut nudges).await.is_none() {
            return;
        }
        manager.catch_up(&mut watch, &mut nudges);
    }
}

struct Manager {
    app: Arc<App>,
    answers: Answers,
    asking: Arc<Semaphore>,
    /// Whether a Secret may have changed since the last look.
    secrets_changed: bool,
}

/// Whether a change may lead to another manifest or binding.
fn matters(change: &Change) -> bool {
    match change.key.kind.as_str() {
        "Pod" => change.beyond_status || change.action != Action::Modified,
        "Node" | pull_secrets::KIND => true,
        _ => false,
    }
}

fn pod_key(pod: &Value) -> Key {
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    Key::new("Pod", text("namespace"), text("name"))
}

fn is_over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

impl Manager {
    /// Takes up from the nodes' manifests what references mean, so that a new controller goes on with it.
    fn remember(&mut self) -> Result<(), StoreError> {
        for node in self.app.store.list("Node", None)?.items {
            let manifest = self.app.store.newest_manifest(node["metadata"]["name"].as_str().unwrap_or_default())?;
            for pod in manifest.pods {
                let asker = shared_asker(&pod.namespace, pod.image_pull_secrets.iter().map(|name| name.as_str()));
                for container in pod.containers {
                    let reference = container.image.reference.clone();
                    self.answers.answered(&asker, &reference, Ok(container.image), Instant::now());
                }
            }
        }
        Ok(())
    }

    /// Waits for something that matters; `None` when the controller stops.
    async fn wait(&mut self, watch: &mut Watch, nudges: &mut mpsc::UnboundedReceiver<Nudge>) -> Option<()> {
        loop {
            let retry = self.answers.next_retry();
            let retry = async {
                match retry {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = watch.next() => match change {
                    Ok(None) => return None,
                    change => if self.note_change(&change) { return Some(()) },
                },
                nudge = nudges.recv() => {
                    self.note(nudge?);
                    return Some(());
                }
                () = retry => return Some(()),
                () = self.app.stopped() => return None,
            }
        }
    }

    /// Notes a change, or that changes were missed; says whether it matters.
    fn note_change(&mut self, change: &Result<Option<Arc<Change>>, Expired>) -> bool {
        let (matters, secret) = match change {
            Ok(Some(change)) => (matters(change), change.key.kind == pull_secrets::KIND),
            Ok(None) => (false, false),
            Err(Expired) => (true, true),
        };
        if secret {
            self.secrets_changed = true;
            self.answers.forget_failures();
        }
        matters
    }

    fn note(&mut self, nudge: Nudge) {
        match nudge {
            Nudge::Look => {}
            Nudge::Pushed => self.answers.forget_failures(),
            Nudge::Answer { uid, reference, answer } => {
                self.answers.answered(&uid, &reference, answer, Instant::now());
            }
        }
    }

    /// Takes everything that has happened by now, so that one look covers it: a fleet that comes back at once must
    /// not cost a look at everything for each of its devices.
    fn catch_up(&mut self, watch: &mut Watch, nudges: &mut mpsc::UnboundedReceiver<Nudge>) {
        while let Some(change @ (Ok(Some(_)) | Err(Expired))) = watch.next().now_or_never() {
            self.note_change(&change);
        }
        while let Ok(nudge) = nudges.try_recv() {
            self.note(nudge);
        }
    }

    /// Looks at all objects once and does what is due.
    fn look(&mut self) -> Result<(), StoreError> {
        let nodes = self.app.store.list("Node", None)?.items;
        self.schedule(&nodes)?;
        let pods = self.app.store.list("Pod", None)?.items;
        let uids = pods.iter().filter_map(|pod| pod["metadata"]["uid"].as_str().map(str::to_owned));
        let references = pods.iter().flat_map(image_references);
        self.answers.retain(&uids.collect::<HashSet<_>>(), &references.collect::<HashSet<_>>());
        let mut of_node: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for pod in &pods {
            of_node.entry(pod["spec"]["nodeName"].as_str().unwrap_or_default()).or_default().push(pod);
        }
        let (mut manifests, mut tell) = (Vec::new(), HashSet::new());
        for name in nodes.iter().filter_map(|node| node["metadata"]["name"].as_str()) {
            match self.compile(name, of_node.get(name).map(Vec::as_slice).unwrap_or_default()) {
                Ok((body, told)) => {
                    manifests.push((name.to_owned(), body));
                    tell.extend(told.then(|| name.to_owned()));
                }
                // What is wrong with one node's records must not hold up the others.
                Err(error) => log::error!("cannot bring the manifest of node {name} up to date: {error}"),
            }
        }
        // One wait for the disk, however many nodes there are.
        tell.extend(self.app.store.advance_manifests(&manifests)?);
        for node in tell {
            self.app.hub.send(&node, Command::Manifest);
        }
        Ok(())
    }

    /// Binds pods that have no node yet, and says why where that is not possible.
    fn schedule(&self, nodes: &[Value]) -> Result<(), StoreError> {
        let store = self.app.store.as_ref();
        let pods = store.list("Pod", None)?.items;
        let mut loads: BTreeMap<String, Load> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| !is_over(pod)) {
            if let Some(node) = pod["spec"]["nodeName"].as_str() {
                loads.entry(node.to_owned()).or_default().add(pod);
            }
        }
        for pod in &pods {
            let deleted = !pod["metadata"]["deletionTimestamp"].is_null();
            let node = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty());
            let exists = |name: &str| nodes.iter().any(|node| node["metadata"]["name"] == name);
            let choice = match node {
                Some(node) if exists(node) => continue,
                _ if deleted => {
                    store.remove(&pod_key(pod)).map(drop).or_else(ignore_missing)?;
                    continue;
                }
                Some(node) => Err(format!("the node {node} that spec.nodeName names does not exist")),
                None => choose(pod, nodes, &loads),
            };
            let now = time::now();
            update(store, &pod_key(pod), |pod| match &choice {
                Ok(node) => {
                    pod["spec"]["nodeName"] = json!(node);
                    pod["status"]["conditions"] = json!(conditions(pod, now, &[("PodScheduled", true, "", "")]));
                }
                Err(message) => pod["status"] = unschedulable(pod, message, now),
            })?;
            if let Ok(node) = choice {
                loads.entry(node).or_default().add(pod);
            }
        }
        Ok(())
    }

    /// Gives the body of one node's manifest, and whether its session is to look at it even where it is as it was.
    fn compile(&mut self, node: &str, pods: &[&Value]) -> Result<(Vec<u8>, bool), StoreError> {
        let newest = self.app.store.newest_manifest(node)?;
        let mut wanted = Vec::new();
        let mut leaving = false;
        for pod in pods {
            let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
            let prior = uid.parse().ok().and_then(|uid| newest.pod(uid));
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                leaving = true;
                if prior.is_none() && !self.app.store.was_sent(node, uid)? {
                    self.app.store.remove(&pod_key(pod)).map(drop).or_else(ignore_missing)?;
                }
                continue;
            }
            // A pod whose new image is not known yet goes on as it was.
            wanted.extend(self.compile_pod(pod, uid, prior)?.or_else(|| prior.cloned()));
        }
        // What runs already keeps its claims against what is new.
        wanted.sort_by_key(|pod| newest.pod(pod.uid).is_none());
        let (wanted, refused) = assemble(wanted);
        self.refuse(pods, &refused)?;
        let manifest = Manifest { pods: wanted, ..Manifest::default() };
        let body = body::encode(&manifest).map_err(|error| StoreError::Large(error.to_string()))?;
        let named = pods.iter().any(|pod| pull_secret_names(pod).next().is_some());
        Ok((body, leaving || (self.secrets_changed && named)))
    }

    /// Says in their status why pods cannot be in their node's manifest.
    fn refuse(&self, pods: &[&Value], refused: &[(Uid, String)]) -> Result<(), StoreError> {
        for (uid, message) in refused {
            let uid = uid.to_string();
            let Some(pod) = pods.iter().find(|pod| pod["metadata"]["uid"] == uid) else { continue };
            let now = time::now();
            update(self.app.store.as_ref(), &pod_key(pod), |pod| pod["status"] = unschedulable(pod, message, now))?;
        }
        Ok(())
    }

    /// Compiles one pod, or notes what it waits for.
    fn compile_pod(&mut self, pod: &Value, uid: &str, prior: Option<&Pod>) -> Result<Option<Pod>, StoreError> {
        let mut images = Vec::new();
        let mut failures = Vec::new();
        for (index, reference) in image_references(pod).iter().enumerate() {
            let before = prior.and_then(|pod| pod.all_containers().nth(index)).map(|container| &container.image);
            match before.filter(|image| image.reference == *reference) {
                Some(image) => images.push(image.clone()),
                None => match self.resolve(pod, &asker(pod, index, uid), reference)? {
                    Ok(Some(image)) => images.push(image),
                    Ok(None) => {}
                    Err((reason, message)) => {
                        let name = container_at(pod, index)["name"].as_str().unwrap_or_default();
                        failures.push((name.to_owned(), reason, message));
                    }
                },
            }
        }
        if !failures.is_empty() && prior.is_none() {
            let now = time::now();
            update(self.app.store.as_ref(), &pod_key(pod), |pod| pod["status"] = failed_images(pod, &failures, now))?;
        }
        if images.len() != image_references(pod).len() {
            return Ok(None);
        }
        let image = |index: usize, reference: &str| images.get(index).cloned().unwrap_or_else(|| unresolved(reference));
        match convert(pod, image) {
            Ok(pod) => Ok(Some(pod)),
            Err(fault) => {
                log::error!("pod {} cannot be compiled: {fault}", pod_key(pod));
                Ok(None)
            }
        }
    }

    /// What a reference means: known, being asked for (`None`), or failed with reason and message.
    #[allow(clippy::type_complexity, reason = "three outcomes, used in one place")]
    fn resolve(
        &mut self,
        pod: &Value,
        uid: &str,
        reference: &str,
    ) -> Result<Result<Option<Image>, (&'static str, String)>, StoreError> {
        match self.answers.standing(uid, reference, Instant::now()) {
            Some(Standing::Known(image)) => return Ok(Ok(Some(image.clone()))),
            Some(Standing::Asking) => return Ok(Ok(None)),
            Some(Standing::Failed { message, attempts, .. }) => {
                let reason = if *attempts == 1 { "ErrImagePull" } else { "ImagePullBackOff" };
                return Ok(Err((reason, message.clone())));
            }
            None => {}
        }
        if let Some(image) = images::own(&self.app.store, reference)? {
            self.answers.answered(uid, reference, Ok(image.clone()), Instant::now());
            return Ok(Ok(Some(image)));
        }
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        let (logins, missing) = pull_secrets::logins(&self.app.store, namespace, pull_secret_names(pod))?;
        self.answers.asking(uid, reference);
        let (app, asking) = (self.app.clone(), self.asking.clone());
        let (uid, reference) = (uid.to_owned(), reference.to_owned());
        tokio::spawn(async move {
            // The semaphore is never closed.
            let _permit = asking.acquire().await;
            let answer = images::remote(&reference, &app.upstream, logins).await;
            // As on Kubernetes' nodes it is tried without; whoever has to mend it reads why that was not enough.
            let told = |message| [vec![message], missing].concat().join("; ");
            let answer = answer.map_err(told);
            app.nudge(Nudge::Answer { uid, reference, answer });
        });
        Ok(Ok(None))
    }
}

/// For whom a container's reference is asked for: for its pod alone where it is always asked for, else for all with
/// the same pull secrets.
fn asker(pod: &Value, container: usize, uid: &str) -> String {
    if container_at(pod, container)["imagePullPolicy"] == "Always" {
        return uid.to_owned();
    }
    shared_asker(pod["metadata"]["namespace"].as_str().unwrap_or_default(), pull_secret_names(pod))
}

/// A container as it is written; init containers come first.
fn container_at(pod: &Value, index: usize) -> &Value {
    skeg_kube::containers(pod).nth(index).unwrap_or(&Value::Null)
}

/// An image as a stand-in where only a pod's form is checked.
pub(crate) fn unresolved(reference: &str) -> Image {
    Image { reference: reference.to_owned(), digest: skeg_protocol::Digest([0; 32]), source: ImageSource::Registry }
}

fn ignore_missing(error: StoreError) -> Result<(), StoreError> {
    match error {
        StoreError::NotFound(_) => Ok(()),
        error => Err(error),
    }
}
