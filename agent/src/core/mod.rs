//! The agent's pure core: events in, orders out. It holds the wanted and the actual state of the node and no
//! clock, no descriptor and no path; everything that touches the kernel is `apply`'s.

mod coming;
mod health;
#[cfg(test)]
mod model;
mod order;
mod pod;
#[cfg(test)]
mod pod_tests;
mod reconcile;
mod supervise;
#[cfg(test)]
pub(crate) mod tests;
mod trial;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use skeg_protocol::status::{reason, text};
use skeg_protocol::{Label, Manifest, Name, Pod, PodStatus, Uid};

use coming::Coming;
use pod::{Leaving, PodState};
use trial::Judged;

pub use health::{Known, ProbeKind};
pub use pod::Failure;
pub use reconcile::{Change, Observed, Wanted, reconcile};
pub use supervise::{
    Container, ContainerEvent, ContainerRecord, Found, HookKind, ImageFailure, NotStarted, Outcome, Phase,
    RecordedPhase, Step,
};
#[cfg(test)]
pub use supervise::{Rules, Why};
pub use trial::{Trial, Verdict};

/// A moment: one clock to decide by, one for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Time since boot; never goes back, counts while suspended (`CLOCK_BOOTTIME`).
    pub monotonic: Duration,
    /// Milliseconds since 1970 as the device believes; may be wrong by years.
    pub wall: i64,
}

/// Everything that can happen.
#[derive(Debug, Clone)]
pub enum Event {
    /// The wanted state was made durable.
    Manifest {
        /// What is wanted from now on.
        manifest: Arc<Manifest>,
        /// It is on trial.
        trial: Option<Trial>,
    },
    /// Something happened to a container.
    Container {
        /// Its pod.
        pod: Uid,
        /// Its name.
        container: Label,
        /// What.
        event: ContainerEvent,
    },
    /// An image that [`Order::Fetch`] asked for is here, or is not.
    Fetched {
        /// The pod that is to come.
        pod: Arc<Pod>,
        /// Its container.
        container: Label,
        /// What went wrong, where something did.
        result: Result<(), ImageFailure>,
    },
    /// The device runs short, or a pod holds more than it may: the pod must go.
    Evict {
        /// Which.
        pod: Uid,
        /// Why, for people.
        message: String,
    },
    /// Nothing of a pod is left on the device.
    PodRemoved(Uid),
    /// An image came to the device by another way than a pull for a pod, or secrets for pulls came.
    NewImages,
    /// Time went on.
    Timer,
    /// The agent is to end: every pod is stopped, nothing is started, records stay.
    Halt {
        /// Longest wait before the kill, whatever the pods allow themselves.
        grace: Duration,
    },
}

/// What is to be done.
#[derive(Debug, Clone)]
#[allow(clippy::large_enum_variant, reason = "an order lives for one step; boxes would cost more")]
pub enum Order {
    /// Something for one pod, in the order in which it comes.
    Pod(Uid, Action),
    /// Make the image of a pod's container ready, though the pod is not here yet.
    Fetch(Arc<Pod>, Label),
    /// Write down what happened, for people.
    Tell(Happening),
    /// A revision's trial is over; where it is bad, the one before it is to be applied again.
    Judge(Verdict),
}

/// What is to be done for a pod.
#[derive(Debug, Clone)]
pub enum Action {
    /// A pod begins its life here.
    Admit(Arc<Pod>),
    /// Make this durable before anything that follows.
    Record(Box<PodRecord>),
    /// Do this for one container.
    Container(Label, Step),
    /// Remove everything of the pod; where `keep`, its record, volumes and logs stay.
    Remove {
        /// The pod will be started again.
        keep: bool,
    },
}

/// Something that people may want to know later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// The pod that it is about, with its names; nothing where it is about the device.
    pub pod: Option<(Uid, Label, Name)>,
    /// Its container.
    pub container: Option<Label>,
    /// One of Kubernetes' words where it has one: `Started`, `Killing`, `Unhealthy`, `BackOff` …
    pub reason: &'static str,
    /// In words.
    pub message: String,
}

impl Happening {
    fn of(pod: &Pod, container: Option<&Label>, reason: &'static str, message: impl Into<String>) -> Happening {
        let names = (pod.uid, pod.namespace.clone(), pod.name.clone());
        Happening { pod: Some(names), container: container.cloned(), reason, message: text(message) }
    }
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((_, namespace, name)) = &self.pod {
            write!(f, "{namespace}/{name}")?;
        }
        if let Some(container) = &self.container {
            write!(f, "/{container}")?;
        }
        write!(f, ": {}: {}", self.reason, self.message)
    }
}

/// A pod's durable record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// The specification that it was started with.
    pub pod: Pod,
    /// When the agent took it on, milliseconds since 1970.
    pub started_at: i64,
    /// The same in monotonic time of `boot`.
    pub since: Duration,
    /// The boot whose monotonic clock the times are of.
    pub boot: Uid,
    /// Why it has failed as a whole, where it has.
    pub failed: Option<Failure>,
    /// Its containers, the init containers first.
    pub containers: Vec<ContainerRecord>,
}

/// The node: what is wanted and what is there.
#[derive(Debug)]
pub struct Node {
    boot: Uid,
    manifest: Arc<Manifest>,
    /// The pods of the manifest.
    wanted: Wanted,
    pods: BTreeMap<Uid, PodState>,
    coming: BTreeMap<Uid, Coming>,
    trial: Option<Judged>,
    /// The node is halting; until this monotonic time.
    halting: Option<Duration>,
    /// What is wanted and what is there may differ.
    unsettled: bool,
    version: u64,
}

impl Node {
    /// A node on which nothing is wanted and nothing is there.
    pub fn new(boot: Uid) -> Self {
        Node {
            boot,
            manifest: Arc::default(),
            wanted: Wanted::new(),
            pods: BTreeMap::new(),
            coming: BTreeMap::new(),
            trial: None,
            halting: None,
            unsettled: false,
            version: 0,
        }
    }

    /// Takes up a pod of an earlier agent. `found` says what there is of an attempt that was begun in this boot.
    pub fn adopt(&mut self, record: PodRecord, found: impl FnMut(&Label, u32) -> Found, now: Now) {
        let same_boot = record.boot == self.boot;
        let mut state = PodState::adopt(record, same_boot, found, now);
        state.note_conditions(now);
        self.pods.insert(state.pod.uid, state);
        self.unsettled = true;
    }

    /// Takes an event and says what is to be done; what is for one pod is in order.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<Order> {
        let mut orders = Vec::new();
        let mut changed = true;
        match event {
            Event::Manifest { manifest, trial } => self.want(manifest, trial, now, &mut orders),
            Event::Container { pod, container, event } => {
                changed = false;
                if let Some(state) = self.pods.get_mut(&pod)
                    && let Some(index) = state.index(&container)
                {
                    changed = state.supervise(index, event, self.boot, now, &mut orders);
                }
            }
            Event::Fetched { pod, container, result } => {
                let coming = self.coming.get_mut(&pod.uid).filter(|coming| Arc::ptr_eq(&coming.pod, &pod));
                if let Some(coming) = coming {
                    coming.fetched(&container, result, now);
                    self.unsettled |= coming.is_whole();
                }
            }
            Event::Evict { pod, message } => {
                if let Some(state) = self.pods.get_mut(&pod) {
                    let failure = Failure { reason: reason("Evicted"), message: text(message) };
                    state.fail(failure, self.boot, now, &mut orders);
                }
            }
            Event::PodRemoved(uid) => {
                self.pods.remove(&uid);
                self.unsettled = true;
            }
            Event::NewImages => {
                self.tell_all(&ContainerEvent::NewImages, now, &mut orders);
                self.coming.values_mut().for_each(|coming| coming.retry(true, now, &mut orders));
            }
            Event::Timer => changed = false,
            Event::Halt { grace } => self.halt(grace, now),
        }
        changed |= self.settle(now, &mut orders);
        self.version = self.version.wrapping_add(u64::from(changed));
        orders
    }

    fn want(&mut self, manifest: Arc<Manifest>, trial: Option<Trial>, now: Now, orders: &mut Vec<Order>) {
        let share = |pod: &Pod| {
            // One allocation for what is wanted and what is there: they are compared often.
            let there = self.pods.get(&pod.uid).map(|state| &state.pod);
            let there = there.or_else(|| self.wanted.get(&pod.uid)).filter(|there| there.as_ref() == pod);
            (pod.uid, there.map_or_else(|| Arc::new(pod.clone()), Arc::clone))
        };
        self.wanted = manifest.pods.iter().map(share).collect();
        let wanted = &self.wanted;
        self.coming.retain(|uid, coming| wanted.get(uid) == Some(&coming.pod));
        self.trial = trial.map(|trial| Judged::new(trial, manifest.revision));
        self.unsettled = true;
        if manifest.data != self.manifest.data {
            self.tell_all(&ContainerEvent::NewData, now, orders);
        }
        self.manifest = manifest;
    }

    fn tell_all(&mut self, event: &ContainerEvent, now: Now, orders: &mut Vec<Order>) {
        for state in self.pods.values_mut() {
            for index in 0..state.containers.len() {
                state.supervise(index, event.clone(), self.boot, now, orders);
            }
        }
    }

    fn halt(&mut self, grace: Duration, now: Now) {
        self.halting = Some(now.monotonic.saturating_add(grace));
        self.coming.clear();
        self.trial = None;
        for state in self.pods.values_mut().filter(|state| state.leaving == Leaving::No) {
            state.leaving = Leaving::Asked("the device stops".to_owned());
        }
    }

    /// Does everything that can be done now. True: somebody may see a difference.
    fn settle(&mut self, now: Now, orders: &mut Vec<Order>) -> bool {
        let mut changed = self.unsettled;
        if std::mem::take(&mut self.unsettled) && self.halting.is_none() {
            self.reconcile(now, orders);
        }
        changed |= self.run_timers(now, orders);
        self.clear();
        changed |= self.begin_stops(now);
        for (uid, state) in &mut self.pods {
            changed |= state.advance(self.boot, now, orders);
            let gone = |container: &Container| matches!(container.phase, Phase::Gone(_));
            if matches!(state.leaving, Leaving::Until(..)) && state.containers.iter().all(gone) {
                state.leaving = Leaving::Removing;
                orders.push(Order::Pod(*uid, Action::Remove { keep: self.halting.is_some() }));
            }
        }
        if let Some(verdict) = self.trial.as_ref().and_then(|trial| trial.judge(&self.wanted, &self.pods, now)) {
            self.trial = None;
            orders.push(Order::Judge(verdict));
        }
        changed
    }

    fn reconcile(&mut self, now: Now, orders: &mut Vec<Order>) {
        let observed =
            self.pods.values().map(|state| Observed { pod: &state.pod, leaving: state.leaving != Leaving::No });
        let whole = |pod: &Pod| self.coming.get(&pod.uid).is_some_and(Coming::is_whole);
        for change in reconcile(&self.wanted, observed, whole) {
            match change {
                Change::Admit(pod) => {
                    self.coming.remove(&pod.uid);
                    orders.push(Order::Pod(pod.uid, Action::Admit(Arc::clone(&pod))));
                    self.pods.insert(pod.uid, PodState::new(pod, now));
                }
                Change::Fetch(pod) => {
                    self.coming.entry(pod.uid).or_insert_with(|| Coming::new(pod, now, orders));
                }
                Change::Stop(uid, why) => {
                    if let Some(state) = self.pods.get_mut(&uid) {
                        state.leaving = Leaving::Asked(why.to_owned());
                    }
                }
            }
        }
    }

    /// Lets every container act whose time has come.
    fn run_timers(&mut self, now: Now, orders: &mut Vec<Order>) -> bool {
        let mut changed = false;
        for state in self.pods.values_mut() {
            for index in 0..state.containers.len() {
                if state.containers[index].deadline().is_some_and(|at| at <= now.monotonic) {
                    changed |= state.supervise(index, ContainerEvent::Timer, self.boot, now, orders);
                }
            }
        }
        self.coming.values_mut().for_each(|coming| coming.retry(false, now, orders));
        changed
    }

    /// When [`Event::Timer`] is wanted next, in monotonic time.
    pub fn deadline(&self) -> Option<Duration> {
        let containers = self.pods.values().flat_map(|state| &state.containers).filter_map(Container::deadline);
        let pods = self.pods.values().filter_map(PodState::deadline);
        let coming = self.coming.values().filter_map(Coming::deadline);
        containers.chain(pods).chain(coming).chain(self.trial.as_ref().map(Judged::deadline)).min()
    }

    /// Another number whenever something that people see may have changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Whether the node was told to halt and nothing is left.
    pub fn halted(&self) -> bool {
        self.halting.is_some() && self.pods.is_empty()
    }

    /// The pods that are there or are to come, with the state that people see.
    pub fn pods(&self) -> impl Iterator<Item = (&Arc<Pod>, PodStatus)> {
        let coming = self.coming.values().filter(|coming| !self.pods.contains_key(&coming.pod.uid));
        let there = self.pods.values().map(|state| (&state.pod, state.status()));
        there.chain(coming.map(|coming| (&coming.pod, coming.status())))
    }

    /// The pods whose images are needed though they are not here yet.
    pub fn coming(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.coming.values().map(|coming| &coming.pod)
    }

    /// A pod that is there.
    pub fn pod(&self, uid: Uid) -> Option<&Arc<Pod>> {
        self.pods.get(&uid).map(|state| &state.pod)
    }

    /// A container of a pod that is there.
    pub fn container(&self, uid: Uid, name: &str) -> Option<&Container> {
        self.pods.get(&uid)?.containers.iter().find(|container| container.name == name)
    }
}
