//! The order among pods: what depends on another starts after it and stops before it (Compose `depends_on`).

use std::collections::BTreeSet;
use std::time::Duration;

use skeg_protocol::manifest::Condition;
use skeg_protocol::{Phase as PodPhase, Pod, Uid};

use super::pod::{Leaving, PodState};
use super::{Node, Now};

/// Longest chain of pods that share a budget fairly; what is behind it gets what is left.
const LONGEST_CHAIN: u32 = 16;

impl Node {
    /// Lets those pods begin for which everything has happened that they wait for.
    pub(super) fn clear(&mut self) {
        let waiting: Vec<Uid> = self.pods.iter().filter(|(_, state)| !state.cleared).map(|(uid, _)| *uid).collect();
        for uid in waiting {
            let Some(state) = self.pods.get(&uid) else { continue };
            let met = state.pod.depends_on.iter().all(|one| {
                let named = |pod: &Pod| pod.namespace == state.pod.namespace && pod.name == one.pod;
                match self.pods.values().find(|other| named(&other.pod)) {
                    Some(other) => happened(other, one.condition),
                    None => one.optional && !self.wanted.values().any(|pod| named(pod)),
                }
            });
            if met && let Some(state) = self.pods.get_mut(&uid) {
                state.cleared = true;
            }
        }
    }

    /// Begins the stop of every pod that is asked to leave and on which nothing depends any more.
    pub(super) fn begin_stops(&mut self, now: Now) -> bool {
        let asked: BTreeSet<Uid> = self.pods.values().filter(|one| is_asked(one)).map(|one| one.pod.uid).collect();
        if asked.is_empty() {
            return false;
        }
        let mut free: Vec<Uid> = asked.iter().filter(|uid| !self.is_needed(**uid)).copied().collect();
        let stopping = |one: &PodState| matches!(one.leaving, Leaving::Until(..) | Leaving::Removing);
        if free.is_empty() && !self.pods.values().any(stopping) {
            // They depend on each other in a circle.
            free = asked.into_iter().collect();
        }
        for uid in &free {
            let Some(state) = self.pods.get(uid) else { continue };
            let own = Duration::from_secs(state.pod.termination_grace_seconds.into());
            let grace = match self.halting {
                // What is left of the budget is for this pod and for those that wait for its end.
                Some(until) => own.min(until.saturating_sub(now.monotonic) / self.chain_below(*uid, LONGEST_CHAIN)),
                None => own,
            };
            if let Some(state) = self.pods.get_mut(uid)
                && let Leaving::Asked(why) = &state.leaving
            {
                state.leaving = Leaving::Until(now.monotonic.saturating_add(grace), why.clone());
                state.note_conditions(now);
            }
        }
        !free.is_empty()
    }

    /// Whether a pod that leaves, too, depends on this one.
    fn is_needed(&self, uid: Uid) -> bool {
        let Some(state) = self.pods.get(&uid) else { return false };
        self.pods.values().any(|other| other.leaving != Leaving::No && depends(&other.pod, &state.pod))
    }

    /// Length of the longest chain of pods to stop that begins with this one.
    fn chain_below(&self, uid: Uid, most: u32) -> u32 {
        let Some(state) = self.pods.get(&uid).filter(|_| most > 1) else { return 1 };
        let below = self.pods.values().filter(|other| is_asked(other) && depends(&state.pod, &other.pod));
        1 + below.map(|other| self.chain_below(other.pod.uid, most - 1)).max().unwrap_or(0)
    }
}

fn is_asked(state: &PodState) -> bool {
    matches!(state.leaving, Leaving::Asked(_))
}

fn depends(pod: &Pod, on: &Pod) -> bool {
    pod.uid != on.uid && pod.namespace == on.namespace && pod.depends_on.iter().any(|one| one.pod == on.name)
}

fn happened(pod: &PodState, condition: Condition) -> bool {
    match condition {
        Condition::Started => pod.has_started(),
        Condition::Healthy => pod.is_ready(),
        Condition::Completed => pod.phase() == PodPhase::Succeeded,
    }
}
