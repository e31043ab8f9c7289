//! Revisions on trial: what is known of the revision that this device holds, on disk, and which one is followed.
//!
//! Owns the standing of the held revision. Whether its pods became ready is the core's to judge.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use skeg_protocol::{Manifest, Uid};

use crate::core::{Now, Trial, Verdict};
use crate::journal::{Journal, JournalError};

/// A device that was started this often while a revision was on trial is taken to be brought down by it.
const MOST_STARTS: u32 = 3;

/// What is known of a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Which.
    pub revision: u64,
    /// How it stands.
    pub state: State,
    /// Why it was rolled back, in words.
    pub reason: String,
    /// End of its trial in monotonic time of `boot`.
    until: Duration,
    boot: Uid,
    starts: u32,
}

/// How a revision stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Its new pods have time to become ready.
    OnTrial,
    /// It is followed.
    Good,
    /// The one before it is followed.
    RolledBack,
}

impl State {
    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            State::OnTrial => "on trial",
            State::Good => "good",
            State::RolledBack => "rolled back",
        }
    }
}

impl Standing {
    /// Of a revision that is followed for good.
    pub fn good(revision: u64) -> Standing {
        let (state, reason, until) = (State::Good, String::new(), Duration::ZERO);
        Standing { revision, state, reason, until, boot: Uid::default(), starts: 0 }
    }

    /// The standing of the revision that was made durable; a trial begins or goes on. Blocks.
    ///
    /// # Errors
    /// It can't be made durable.
    pub fn of(journal: &Journal, held: &Manifest, boot: Uid, now: Now) -> Result<Standing, JournalError> {
        let known = journal.standing().filter(|known| known.revision == held.revision);
        let mut standing = match known {
            Some(known) if known.state != State::OnTrial || known.boot == boot => return Ok(known),
            Some(known) => known,
            None if held.trial_seconds == 0 || journal.previous_manifest().revision == 0 => {
                return Ok(Standing::good(held.revision));
            }
            None => Standing { state: State::OnTrial, ..Standing::good(held.revision) },
        };
        // No clock outlives a reboot for sure, so the time counts anew; what brings the device down is caught all the same.
        standing.starts += 1;
        standing.boot = boot;
        standing.until = now.monotonic.saturating_add(Duration::from_secs(held.trial_seconds.into()));
        if standing.starts > MOST_STARTS {
            standing.state = State::RolledBack;
            standing.reason = format!("the device was started {MOST_STARTS} more times before its pods were ready");
        }
        journal.store_standing(&standing)?;
        Ok(standing)
    }

    /// What a verdict makes of it.
    pub fn judged(&self, verdict: &Verdict) -> Standing {
        let (state, reason) = match &verdict.result {
            Ok(()) => (State::Good, String::new()),
            Err(reason) => (State::RolledBack, reason.clone()),
        };
        Standing { state, reason, ..self.clone() }
    }

    /// What is to be followed: the held revision, or the one before it. Blocks.
    pub fn followed(&self, journal: &Journal, held: &Manifest) -> (Manifest, Option<Trial>) {
        match self.state {
            State::Good => (held.clone(), None),
            State::RolledBack => (journal.previous_manifest(), None),
            State::OnTrial => {
                let previous = journal.previous_manifest();
                let new = held.pods.iter().filter(|pod| previous.pod(pod.uid) != Some(pod));
                let trial = Trial { until: self.until, pods: new.map(|pod| pod.uid).collect() };
                (held.clone(), Some(trial))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::pod;

    fn revision(number: u64, name: &str) -> Manifest {
        let pods = vec![pod(1, "kept", &["main"]), pod(2, name, &["main"])];
        Manifest { revision: number, pods, trial_seconds: 60, ..Manifest::default() }
    }

    fn at(seconds: u64) -> Now {
        Now { monotonic: Duration::from_secs(seconds), wall: 0 }
    }

    const BOOT: Uid = Uid([1; 16]);

    #[test]
    fn the_first_revision_has_nothing_to_go_back_to_and_is_good() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        journal.store_manifest(&revision(1, "a")).unwrap();
        assert_eq!(Standing::of(&journal, &revision(1, "a"), BOOT, at(0)).unwrap().state, State::Good);
    }

    #[test]
    fn a_trial_is_for_new_pods_and_goes_on_under_the_next_agent() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let (old, new) = (revision(1, "a"), revision(2, "b"));
        journal.store_manifest(&old).unwrap();
        journal.store_manifest(&new).unwrap();
        let standing = Standing::of(&journal, &new, BOOT, at(5)).unwrap();
        let trial = Trial { until: Duration::from_secs(65), pods: [Uid([2; 16])].into() };
        assert_eq!(standing.followed(&journal, &new), (new.clone(), Some(trial)));
        assert_eq!(Standing::of(&journal, &new, BOOT, at(50)).unwrap(), standing, "its time is not begun anew");
    }

    #[test]
    fn a_bad_revision_is_not_what_the_next_one_goes_back_to() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        for (number, name) in [(1, "a"), (2, "b")] {
            journal.store_manifest(&revision(number, name)).unwrap();
        }
        let new = revision(2, "b");
        let standing = Standing::of(&journal, &new, BOOT, at(0)).unwrap();
        let bad = standing.judged(&Verdict { revision: 2, result: Err("not ready".to_owned()) });
        journal.store_standing(&bad).unwrap();
        assert_eq!(bad.followed(&journal, &new), (revision(1, "a"), None));
        // The same after any restart.
        assert_eq!(Standing::of(&journal, &new, Uid([2; 16]), at(0)).unwrap(), bad);
        journal.store_manifest(&revision(3, "c")).unwrap();
        assert_eq!(journal.previous_manifest(), revision(1, "a"));
        assert_eq!(Standing::of(&journal, &revision(3, "c"), BOOT, at(0)).unwrap().state, State::OnTrial);
    }

    #[test]
    fn a_revision_that_brings_the_device_down_again_and_again_is_rolled_back() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        for (number, name) in [(1, "a"), (2, "b")] {
            journal.store_manifest(&revision(number, name)).unwrap();
        }
        let states: Vec<State> = (1..=4)
            .map(|boot| Standing::of(&journal, &revision(2, "b"), Uid([boot; 16]), at(0)).unwrap().state)
            .collect();
        assert_eq!(states, [State::OnTrial, State::OnTrial, State::OnTrial, State::RolledBack]);
    }
}
