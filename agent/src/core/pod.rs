//! One pod: whose turn it is to start and to stop, and what the pod is as a whole. Pure, like all of the core.
//!
//! ```text
//! start: (what it depends on) ─▶ init containers, one after the other, sidecars among them ─▶ all others at once
//! stop:  all others at once ─▶ sidecars, the last first
//! ```

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use skeg_protocol::manifest::RestartPolicy;
use skeg_protocol::status::{ConditionKind, PodCondition, Reason, reason, text};
use skeg_protocol::{ContainerState, ContainerStatus, Label, Phase as PodPhase, Pod, PodStatus, Uid};

use super::supervise::{Container, ContainerEvent, Found, Phase, Rules, Step, Why};
use super::{Action, Happening, Now, Order, PodRecord};

/// Why a pod as a whole has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// `DeadlineExceeded`, `Evicted` …
    pub reason: Reason,
    /// The same for people.
    pub message: String,
}

/// Whether and how a pod is on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Leaving {
    /// It stays.
    No,
    /// It is to leave, once what depends on it has left.
    Asked(String),
    /// Its containers are told to end; at this monotonic time what is left is killed.
    Until(Duration, String),
    /// Nothing of it runs; it is being removed.
    Removing,
}

#[derive(Debug)]
pub(super) struct PodState {
    pub(super) pod: Arc<Pod>,
    pub(super) started_at: i64,
    /// Monotonic time since which its deadline counts.
    since: Duration,
    pub(super) leaving: Leaving,
    /// What it depends on has happened.
    pub(super) cleared: bool,
    pub(super) failed: Option<Failure>,
    /// The init containers first, as in [`Pod::all_containers`].
    pub(super) containers: Vec<Container>,
    conditions: [(bool, i64); 4],
}

/// Whether an init container is a sidecar: it is started in its turn and runs on.
pub(super) fn is_sidecar(pod: &Pod, index: usize) -> bool {
    pod.init_containers.get(index).is_some_and(|one| one.restart_policy == Some(RestartPolicy::Always))
}

/// The rules of the container with this number.
pub(super) fn rules(pod: &Pod, index: usize) -> Option<Rules<'_>> {
    let container = pod.all_containers().nth(index)?;
    let of_pod = match pod.restart_policy {
        // An init container that has done its work is not started again.
        RestartPolicy::Always if index < pod.init_containers.len() => RestartPolicy::OnFailure,
        policy => policy,
    };
    Some(Rules {
        policy: container.restart_policy.unwrap_or(of_pod),
        max_restarts: container.max_restarts,
        grace: Duration::from_secs(pod.termination_grace_seconds.into()),
        probes: &container.probes,
        lifecycle: &container.lifecycle,
    })
}

impl PodState {
    pub(super) fn new(pod: Arc<Pod>, now: Now) -> PodState {
        PodState {
            started_at: now.wall,
            since: now.monotonic,
            leaving: Leaving::No,
            cleared: pod.depends_on.is_empty(),
            failed: None,
            containers: pod.all_containers().map(|container| Container::new(container.name.clone())).collect(),
            conditions: [(false, now.wall); 4],
            pod,
        }
    }

    /// Takes up a pod of an earlier agent.
    pub(super) fn adopt(
        record: PodRecord,
        same_boot: bool,
        mut found: impl FnMut(&Label, u32) -> Found,
        now: Now,
    ) -> PodState {
        let PodRecord { pod, started_at, since, failed, containers, .. } = record;
        let restore = |(index, container): (usize, super::ContainerRecord)| {
            let what = if same_boot { found(&container.name, container.restarts) } else { Found::Rebooted };
            Some(Container::restore(container, what, rules(&pod, index)?, now))
        };
        let containers: Vec<Container> = containers.into_iter().enumerate().filter_map(restore).collect();
        let mut state = PodState {
            containers,
            started_at,
            // No clock outlives a reboot for sure, so the deadline counts anew.
            since: if same_boot { since } else { now.monotonic },
            failed,
            ..PodState::new(Arc::new(pod), now)
        };
        // What has begun needs no leave; after a reboot the order is kept once more.
        state.cleared |= same_boot && state.containers.iter().any(|one| one.phase != Phase::Held);
        if !same_boot && state.failed.is_none() && !state.is_complete() {
            let inits = state.pod.init_containers.len();
            state.containers[..inits].iter_mut().for_each(Container::run_again);
        }
        state
    }

    fn inits(&self) -> &[Container] {
        &self.containers[..self.pod.init_containers.len()]
    }

    fn mains(&self) -> &[Container] {
        &self.containers[self.pod.init_containers.len()..]
    }

    /// Every container that is no init container has ended for good.
    pub(super) fn is_complete(&self) -> bool {
        self.mains().iter().all(|one| matches!(one.phase, Phase::Ended(_) | Phase::Gone(Some(_))))
    }

    /// Every main container was started.
    pub(super) fn has_started(&self) -> bool {
        self.mains().iter().all(|one| one.started() || matches!(one.phase, Phase::Ended(_)))
    }

    /// It can serve.
    pub(super) fn is_ready(&self) -> bool {
        self.conditions[ConditionKind::Ready as usize].0
    }

    pub(super) fn phase(&self) -> PodPhase {
        if self.failed.is_some() {
            return PodPhase::Failed;
        }
        let end = |one: &Container| match &one.phase {
            Phase::Ended(end) | Phase::Gone(Some(end)) => Some(end.exit_code),
            _ => None,
        };
        if self.is_complete() {
            let well = self.mains().iter().filter_map(end).all(|code| code == 0);
            return if well { PodPhase::Succeeded } else { PodPhase::Failed };
        }
        let init =
            |(index, one): (usize, &Container)| !is_sidecar(&self.pod, index) && end(one).is_some_and(|c| c != 0);
        if self.inits().iter().enumerate().any(init) {
            return PodPhase::Failed;
        }
        let ran = |one: &Container| match &one.phase {
            Phase::Running { .. } | Phase::Stopping { .. } | Phase::Ended(_) | Phase::Gone(Some(_)) => true,
            _ => one.last.is_some() || one.restarts > 0,
        };
        if self.mains().iter().all(ran) { PodPhase::Running } else { PodPhase::Pending }
    }

    /// Gives one container an event. True: somebody may see a difference.
    pub(super) fn supervise(
        &mut self,
        index: usize,
        event: ContainerEvent,
        boot: Uid,
        now: Now,
        orders: &mut Vec<Order>,
    ) -> bool {
        let pod = Arc::clone(&self.pod);
        let (Some(rules), Some(container)) = (rules(&pod, index), self.containers.get_mut(index)) else { return false };
        let seen = |one: &Container| (std::mem::discriminant(&one.phase), one.started(), one.ready());
        let (before, label) = (seen(container), container.name.clone());
        let quiet = matches!(event, ContainerEvent::Timer | ContainerEvent::Probed { .. });
        let steps = container.supervise(event, rules, now);
        let changed = !quiet || seen(container) != before;
        for step in steps {
            orders.push(match step {
                Step::Record => Order::Pod(pod.uid, Action::Record(Box::new(self.record(boot)))),
                Step::Tell(reason, message) => Order::Tell(Happening::of(&pod, Some(&label), reason, message)),
                step => Order::Pod(pod.uid, Action::Container(label.clone(), step)),
            });
        }
        if changed {
            self.note_conditions(now);
        }
        changed
    }

    pub(super) fn index(&self, name: &str) -> Option<usize> {
        self.containers.iter().position(|container| container.name == name)
    }

    /// Makes the pod as a whole fail: everything ends and stays so.
    pub(super) fn fail(&mut self, failure: Failure, boot: Uid, now: Now, orders: &mut Vec<Order>) {
        if self.failed.is_some() || self.is_complete() {
            return;
        }
        orders.push(Order::Tell(Happening::of(
            &self.pod,
            None,
            "Failed",
            format!("{}: {}", failure.reason, failure.message),
        )));
        self.failed = Some(failure);
        orders.push(Order::Pod(self.pod.uid, Action::Record(Box::new(self.record(boot)))));
        self.note_conditions(now);
    }

    /// When its own deadline is, if it has one to come.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let over = self.failed.is_some() || self.leaving != Leaving::No || self.is_complete();
        let seconds = self.pod.active_deadline_seconds.filter(|_| !over)?;
        Some(self.since.saturating_add(Duration::from_secs(seconds.into())))
    }

    /// Does what is due now: starts whose turn has come, and ends the containers of a pod that is over.
    pub(super) fn advance(&mut self, boot: Uid, now: Now, orders: &mut Vec<Order>) -> bool {
        match &self.leaving {
            Leaving::Until(until, words) => {
                let (until, why) = (*until, Why::Removed(words.clone()));
                return self.wind_down(until, &why, boot, now, orders);
            }
            Leaving::Asked(_) | Leaving::Removing => return false,
            Leaving::No => {}
        }
        if self.deadline().is_some_and(|at| at <= now.monotonic) {
            let seconds = self.pod.active_deadline_seconds.unwrap_or_default();
            let message = format!("it was active for longer than {seconds} s");
            self.fail(Failure { reason: reason("DeadlineExceeded"), message }, boot, now, orders);
        }
        let over = match (&self.failed, self.phase()) {
            (Some(failure), _) => Some(failure.message.clone()),
            (None, PodPhase::Succeeded | PodPhase::Failed) => {
                Some("every other container of the pod has ended".to_owned())
            }
            _ => None,
        };
        if let Some(words) = over {
            let grace = Duration::from_secs(self.pod.termination_grace_seconds.into());
            let until = now.monotonic.saturating_add(grace);
            return self.wind_down(until, &Why::Over(words), boot, now, orders);
        }
        if !self.cleared {
            return false;
        }
        self.start_next(boot, now, orders)
    }

    fn start_next(&mut self, boot: Uid, now: Now, orders: &mut Vec<Order>) -> bool {
        let inits = self.pod.init_containers.len();
        let mut changed = false;
        for index in 0..inits {
            if self.containers[index].phase == Phase::Held {
                changed |= self.supervise(index, ContainerEvent::Go, boot, now, orders);
            }
            let one = &self.containers[index];
            let through = match &one.phase {
                Phase::Ended(end) => end.exit_code == 0,
                // A sidecar that has run holds nobody up when it is started again.
                _ if is_sidecar(&self.pod, index) => one.started() || one.last.is_some(),
                _ => false,
            };
            if !through {
                return changed;
            }
        }
        for index in inits..self.containers.len() {
            if self.containers[index].phase == Phase::Held {
                changed |= self.supervise(index, ContainerEvent::Go, boot, now, orders);
            }
        }
        changed
    }

    /// Ends everything in order, by `until` at the latest.
    fn wind_down(&mut self, until: Duration, why: &Why, boot: Uid, now: Now, orders: &mut Vec<Order>) -> bool {
        let inits = self.pod.init_containers.len();
        let removed = matches!(why, Why::Removed(_));
        let grace = until.saturating_sub(now.monotonic);
        let mut changed = false;
        let mut stop = |this: &mut PodState, index: usize| {
            let done = match &this.containers[index].phase {
                Phase::Gone(_) => true,
                Phase::Ended(_) | Phase::Held => !removed,
                // It was told already; only a removal that overtakes another end tells it again.
                Phase::Stopping { why: before, .. } => {
                    matches!(before, Why::Removed(_)) || !removed && !matches!(before, Why::Ill(_))
                }
                _ => false,
            };
            if !done {
                let event = ContainerEvent::Stop { grace, why: why.clone() };
                changed |= this.supervise(index, event, boot, now, orders);
            }
        };
        for index in (0..self.containers.len()).filter(|index| !is_sidecar(&self.pod, *index)).collect::<Vec<_>>() {
            stop(self, index);
        }
        for index in (0..inits).rev() {
            if self.containers[index + 1..].iter().any(Container::is_alive) {
                break;
            }
            stop(self, index);
        }
        changed
    }

    pub(super) fn record(&self, boot: Uid) -> PodRecord {
        PodRecord {
            pod: Pod::clone(&self.pod),
            started_at: self.started_at,
            since: self.since,
            boot,
            failed: self.failed.clone(),
            containers: self.containers.iter().map(Container::record).collect(),
        }
    }

    /// What holds, in the order of [`ConditionKind`], and why not where it does not.
    fn holds(&self) -> [(bool, &'static str, String); 4] {
        let phase = self.phase();
        let names = |wanted: &dyn Fn(usize, &Container) -> bool| {
            let found = self.containers.iter().enumerate().filter(|(index, one)| wanted(*index, one));
            found.map(|(_, one)| one.name.as_str()).collect::<Vec<_>>().join(" ")
        };
        let inits = self.pod.init_containers.len();
        let incomplete = |index: usize, one: &Container| {
            index < inits
                && match &one.phase {
                    Phase::Ended(end) | Phase::Gone(Some(end)) => end.exit_code != 0 && !is_sidecar(&self.pod, index),
                    _ => !is_sidecar(&self.pod, index) || !(one.started() || one.last.is_some()),
                }
        };
        let begun = self.mains().iter().any(|one| one.phase != Phase::Held || one.last.is_some());
        let incomplete = if begun { String::new() } else { names(&incomplete) };
        let unready = names(&|index, one| (index >= inits || is_sidecar(&self.pod, index)) && !one.ready());
        let leaving = self.leaving != Leaving::No;
        let ready = unready.is_empty() && !leaving && phase == PodPhase::Running;
        let (why, words) = match phase {
            PodPhase::Succeeded => ("PodCompleted", String::new()),
            PodPhase::Failed => ("PodFailed", String::new()),
            _ => ("ContainersNotReady", format!("containers with unready status: [{unready}]")),
        };
        let not_initialized = format!("containers with incomplete status: [{incomplete}]");
        [
            (true, "", String::new()),
            (incomplete.is_empty(), "ContainersNotInitialized", not_initialized),
            (ready, why, words.clone()),
            (ready, why, words),
        ]
    }

    pub(super) fn note_conditions(&mut self, now: Now) {
        let holds = self.holds().map(|(holds, ..)| holds);
        for (condition, holds) in self.conditions.iter_mut().zip(holds) {
            if condition.0 != holds {
                *condition = (holds, now.wall);
            }
        }
    }

    pub(super) fn status(&self) -> PodStatus {
        use ConditionKind as Kind;
        let kinds = [Kind::PodScheduled, Kind::Initialized, Kind::ContainersReady, Kind::Ready];
        let told = kinds.into_iter().zip(self.holds()).zip(&self.conditions);
        let conditions = told.map(|((kind, (holds, why, words)), (_, since))| PodCondition {
            kind,
            holds,
            since: *since,
            reason: reason(if holds { "" } else { why }),
            message: if holds { String::new() } else { text(words) },
        });
        let (word, message) = match (&self.leaving, &self.failed) {
            (Leaving::No, Some(failure)) => (failure.reason.as_str(), failure.message.as_str()),
            (Leaving::No, None) => ("", ""),
            (_, _) => ("Terminating", ""),
        };
        let inits = self.pod.init_containers.len();
        let statuses: Vec<ContainerStatus> =
            (0..self.containers.len()).filter_map(|index| self.container_status(index)).collect();
        PodStatus {
            uid: self.pod.uid,
            phase: self.phase(),
            reason: reason(word),
            message: message.to_owned(),
            started_at: self.started_at,
            conditions: conditions.collect(),
            containers: statuses[inits..].to_vec(),
            init_containers: statuses[..inits].to_vec(),
            // The core knows no network.
            ips: Vec::new(),
        }
    }

    fn container_status(&self, index: usize) -> Option<ContainerStatus> {
        let (one, wanted) = (self.containers.get(index)?, self.pod.all_containers().nth(index)?);
        let inits = self.pod.init_containers.len();
        let is_init = index < inits;
        let held = match self.phase() {
            PodPhase::Succeeded | PodPhase::Failed => "",
            _ if is_init || inits > 0 => "PodInitializing",
            _ => "ContainerCreating",
        };
        let mut state = one.state(held);
        if !self.cleared
            && let ContainerState::Waiting { message, .. } = &mut state
        {
            "it waits for what it depends on".clone_into(message);
        }
        let done = matches!(&one.phase, Phase::Ended(end) if end.exit_code == 0);
        Some(ContainerStatus {
            name: one.name.clone(),
            state,
            last: one.last.clone(),
            restarts: one.restarts,
            image: one.spent.then_some(wanted.image.digest),
            started: one.started(),
            ready: one.ready() || (is_init && !is_sidecar(&self.pod, index) && done),
        })
    }
}
