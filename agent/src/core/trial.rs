//! A revision on trial: whether its new pods became ready in time. Pure, like all of the core.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use skeg_protocol::{Phase as PodPhase, Uid};

use super::pod::PodState;
use super::{Now, Wanted};

/// What a revision must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// Monotonic time by which its new pods must be ready.
    pub until: Duration,
    /// Its new pods.
    pub pods: BTreeSet<Uid>,
}

/// How a trial ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Of which revision.
    pub revision: u64,
    /// What was wrong, in words, where it is bad.
    pub result: Result<(), String>,
}

/// A trial under way.
#[derive(Debug)]
pub(super) struct Judged {
    trial: Trial,
    revision: u64,
}

impl Judged {
    pub(super) fn new(trial: Trial, revision: u64) -> Judged {
        Judged { trial, revision }
    }

    pub(super) fn deadline(&self) -> Duration {
        self.trial.until
    }

    /// The verdict, once there is one.
    pub(super) fn judge(&self, wanted: &Wanted, pods: &BTreeMap<Uid, PodState>, now: Now) -> Option<Verdict> {
        let well = |uid: &&Uid| {
            let state = pods.get(uid).filter(|state| wanted.get(uid) == Some(&state.pod));
            state.is_some_and(|state| state.is_ready() || state.phase() == PodPhase::Succeeded)
        };
        let missing: Vec<&Uid> = self.trial.pods.iter().filter(|uid| !well(uid)).collect();
        let result = if missing.is_empty() {
            Ok(())
        } else if now.monotonic >= self.trial.until {
            let name = |uid: &&Uid| wanted.get(uid).map(|pod| format!("{}/{}", pod.namespace, pod.name));
            let names: Vec<String> = missing.iter().filter_map(name).collect();
            Err(format!("not ready in time: {}", names.join(", ")))
        } else {
            return None;
        };
        Some(Verdict { revision: self.revision, result })
    }
}
