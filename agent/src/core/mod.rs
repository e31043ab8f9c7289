//! The agent's pure core: events in, actions out. It holds the wanted and the actual state of the node and no
//! clock, no descriptor and no path; everything that touches the kernel is `apply`'s.

mod reconcile;
mod supervise;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use skeg_protocol::{ContainerState, ContainerStatus, Label, Manifest, Phase as PodPhase, Pod, PodStatus, Uid};

pub use reconcile::{Change, Observed, reconcile};
pub use supervise::RecordedPhase;
pub use supervise::{
    Container, ContainerEvent, ContainerRecord, Found, ImageFailure, NotStarted, Outcome, Phase, Rules, Step,
};

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
    Manifest(Manifest),
    /// Something happened to a container.
    Container {
        /// Its pod.
        pod: Uid,
        /// Its name.
        container: Label,
        /// What.
        event: ContainerEvent,
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

/// What is to be done for a pod, in order.
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

/// A pod's durable record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// The specification that it was started with.
    pub pod: Pod,
    /// When the agent took it on, milliseconds since 1970.
    pub started_at: i64,
    /// The boot whose monotonic clock the containers' times are of.
    pub boot: Uid,
    /// Its containers.
    pub containers: Vec<ContainerRecord>,
}

#[derive(Debug)]
struct PodState {
    pod: Arc<Pod>,
    started_at: i64,
    leaving: bool,
    removing: bool,
    containers: Vec<Container>,
}

/// The node: what is wanted and what is there.
#[derive(Debug)]
pub struct Node {
    boot: Uid,
    desired: Manifest,
    pods: BTreeMap<Uid, PodState>,
    halting: bool,
}

fn rules(pod: &Pod) -> Rules {
    let grace = Duration::from_secs(pod.termination_grace_seconds.into());
    Rules { policy: pod.restart_policy, grace }
}

impl Node {
    /// A node on which nothing is wanted and nothing is there.
    pub fn new(boot: Uid) -> Self {
        Node { boot, desired: Manifest::default(), pods: BTreeMap::new(), halting: false }
    }

    /// Takes up a pod of an earlier agent. `found` says what there is of an attempt that was begun in this boot.
    pub fn adopt(&mut self, record: PodRecord, mut found: impl FnMut(&Label, u32) -> Found, now: Now) {
        let rules = rules(&record.pod);
        let same_boot = record.boot == self.boot;
        let containers = record.containers.into_iter().map(|container| {
            let what = if same_boot { found(&container.name, container.restarts) } else { Found::Rebooted };
            Container::restore(container, what, rules, now)
        });
        let state = PodState {
            started_at: record.started_at,
            leaving: false,
            removing: false,
            containers: containers.collect(),
            pod: Arc::new(record.pod),
        };
        self.pods.insert(state.pod.uid, state);
    }

    /// Takes an event and says what is to be done, pod by pod, in order.
    pub fn step(&mut self, event: Event, now: Now) -> Vec<(Uid, Action)> {
        let mut actions = Vec::new();
        match event {
            Event::Manifest(manifest) => {
                let new_data = manifest.data != self.desired.data;
                self.desired = manifest;
                if new_data {
                    self.tell_all(&ContainerEvent::NewData, now, &mut actions);
                }
            }
            Event::Container { pod, container, event } => {
                if let Some(state) = self.pods.get_mut(&pod) {
                    state.supervise(&container, event, self.boot, now, &mut actions);
                }
            }
            Event::PodRemoved(uid) => {
                self.pods.remove(&uid);
            }
            Event::NewImages => self.tell_all(&ContainerEvent::NewImages, now, &mut actions),
            Event::Timer => {}
            Event::Halt { grace } => {
                self.halting = true;
                for state in self.pods.values_mut() {
                    state.stop(grace, self.boot, now, &mut actions);
                }
            }
        }
        if !self.halting {
            self.reconcile(now, &mut actions);
        }
        self.run_timers(now, &mut actions);
        for (uid, state) in &mut self.pods {
            let gone = |container: &Container| matches!(container.phase, Phase::Gone(_));
            if state.leaving && !state.removing && state.containers.iter().all(gone) {
                state.removing = true;
                actions.push((*uid, Action::Remove { keep: self.halting }));
            }
        }
        actions
    }

    fn tell_all(&mut self, event: &ContainerEvent, now: Now, actions: &mut Vec<(Uid, Action)>) {
        for state in self.pods.values_mut() {
            let names: Vec<Label> = state.containers.iter().map(|one| one.name.clone()).collect();
            for name in names {
                state.supervise(&name, event.clone(), self.boot, now, actions);
            }
        }
    }

    fn reconcile(&mut self, now: Now, actions: &mut Vec<(Uid, Action)>) {
        let observed = self.pods.values().map(|state| Observed { pod: &state.pod, leaving: state.leaving });
        for change in reconcile(&self.desired, observed) {
            match change {
                Change::Admit(pod) => {
                    let containers = pod.containers.iter().map(|container| Container::new(container.name.clone()));
                    let state = PodState {
                        started_at: now.wall,
                        leaving: false,
                        removing: false,
                        containers: containers.collect(),
                        pod: Arc::new(*pod),
                    };
                    actions.push((state.pod.uid, Action::Admit(Arc::clone(&state.pod))));
                    self.pods.insert(state.pod.uid, state);
                }
                Change::Stop(uid) => {
                    if let Some(state) = self.pods.get_mut(&uid) {
                        let grace = rules(&state.pod).grace;
                        state.stop(grace, self.boot, now, actions);
                    }
                }
            }
        }
    }

    /// Lets every container act whose time has come.
    fn run_timers(&mut self, now: Now, actions: &mut Vec<(Uid, Action)>) {
        let due = |container: &&Container| container.deadline().is_some_and(|at| at <= now.monotonic);
        for state in self.pods.values_mut() {
            let names: Vec<Label> = state.containers.iter().filter(due).map(|one| one.name.clone()).collect();
            for name in names {
                state.supervise(&name, ContainerEvent::Timer, self.boot, now, actions);
            }
        }
    }

    /// When [`Event::Timer`] is wanted next, in monotonic time.
    pub fn deadline(&self) -> Option<Duration> {
        self.pods.values().flat_map(|state| &state.containers).filter_map(Container::deadline).min()
    }

    /// Whether the node was told to halt and nothing is left.
    pub fn halted(&self) -> bool {
        self.halting && self.pods.is_empty()
    }

    /// The pods that are there, with the state that people see.
    pub fn pods(&self) -> impl Iterator<Item = (&Arc<Pod>, PodStatus)> {
        self.pods.values().map(|state| (&state.pod, state.status()))
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

impl PodState {
    fn supervise(&mut self, name: &str, event: ContainerEvent, boot: Uid, now: Now, actions: &mut Vec<(Uid, Action)>) {
        let rules = rules(&self.pod);
        let Some(container) = self.containers.iter_mut().find(|container| container.name == name) else { return };
        let label = container.name.clone();
        for step in container.supervise(event, rules, now) {
            let action = match step {
                Step::Record => Action::Record(Box::new(self.record(boot))),
                step => Action::Container(label.clone(), step),
            };
            actions.push((self.pod.uid, action));
        }
    }

    fn stop(&mut self, grace: Duration, boot: Uid, now: Now, actions: &mut Vec<(Uid, Action)>) {
        self.leaving = true;
        let names: Vec<Label> = self.containers.iter().map(|container| container.name.clone()).collect();
        for name in names {
            self.supervise(&name, ContainerEvent::Stop { grace }, boot, now, actions);
        }
    }

    fn record(&self, boot: Uid) -> PodRecord {
        PodRecord {
            pod: Pod::clone(&self.pod),
            started_at: self.started_at,
            boot,
            containers: self.containers.iter().map(Container::record).collect(),
        }
    }

    fn status(&self) -> PodStatus {
        let containers: Vec<ContainerStatus> = self
            .containers
            .iter()
            .zip(&self.pod.containers)
            .map(|(container, wanted)| ContainerStatus {
                name: container.name.clone(),
                state: container.state(),
                last: container.last.clone(),
                restarts: container.restarts,
                image: container.spent.then_some(wanted.image.digest),
            })
            .collect();
        let word = if self.leaving { "Terminating" } else { "" };
        PodStatus {
            uid: self.pod.uid,
            phase: self.phase(&containers),
            reason: skeg_protocol::status::reason(word),
            message: String::new(),
            started_at: self.started_at,
            containers,
        }
    }

    fn phase(&self, containers: &[ContainerStatus]) -> PodPhase {
        let ends = || {
            containers.iter().filter_map(|container| match &container.state {
                ContainerState::Terminated(end) => Some(end.exit_code),
                _ => None,
            })
        };
        if ends().count() == containers.len() {
            return if ends().all(|code| code == 0) { PodPhase::Succeeded } else { PodPhase::Failed };
        }
        let ran = |container: &Container| match &container.phase {
            Phase::Running { .. } | Phase::Ended(_) | Phase::Gone(Some(_)) => true,
            Phase::Stopping { started_at: Some(_), .. } => true,
            _ => container.last.is_some() || container.restarts > 0,
        };
        if self.containers.iter().all(ran) { PodPhase::Running } else { PodPhase::Pending }
    }
}
