//! What a device reports: the state of its pods, in Kubernetes' words. Times are the device's own clock in
//! milliseconds since 1970; they may be wrong by years and are for people, never for decisions.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::{Digest, Label, Uid};
use crate::limits::MAX_TEXT;

/// A short CamelCase word for a state, such as `CrashLoopBackOff`.
pub type Reason = heapless::String<48>;

/// State of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Which pod.
    pub uid: Uid,
    /// Summary.
    pub phase: Phase,
    /// Why the pod as a whole is where it is, where that is not plain from its containers.
    pub reason: Reason,
    /// The same for people.
    pub message: String,
    /// When the agent took the pod on.
    pub started_at: i64,
    /// Each kind once, in the order of [`ConditionKind`].
    pub conditions: Vec<PodCondition>,
    /// In the order of the manifest.
    pub init_containers: Vec<ContainerStatus>,
    /// In the order of the manifest.
    pub containers: Vec<ContainerStatus>,
    /// Its addresses, the one that names it first; none on the device's own network.
    pub ips: Vec<IpAddr>,
}

impl PodStatus {
    /// Whether a condition holds.
    pub fn is(&self, kind: ConditionKind) -> bool {
        self.conditions.iter().any(|condition| condition.kind == kind && condition.holds)
    }
}

/// Something that is true of a pod, or is not (Kubernetes `v1.PodCondition`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCondition {
    /// What.
    pub kind: ConditionKind,
    /// Whether it is true.
    pub holds: bool,
    /// Since when it is so.
    pub since: i64,
    /// Why it is not true: `ContainersNotReady`, `ContainersNotInitialized`, `PodCompleted` …
    pub reason: Reason,
    /// The same for people.
    pub message: String,
}

/// What can be true of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ConditionKind {
    /// It has a node. A pod that a device reports always has.
    PodScheduled,
    /// Its init containers have done their work and its sidecars are started.
    Initialized,
    /// Each of its containers is ready.
    ContainersReady,
    /// It can serve.
    Ready,
}

/// Summary of a pod (Kubernetes `status.phase`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Not every container has been started yet.
    Pending,
    /// Every container was started and at least one runs or will run again.
    Running,
    /// Every container exited with 0 and stays ended.
    Succeeded,
    /// Every container ended, at least one with an error.
    Failed,
}

/// State of one container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its name in the pod.
    pub name: Label,
    /// Now.
    pub state: ContainerState,
    /// How it ended the last time before now.
    pub last: Option<Termination>,
    /// How often it was started again.
    pub restarts: u32,
    /// Digest of the image that it runs, once that is known.
    pub image: Option<Digest>,
    /// It runs, and its start hook and startup probe are through.
    pub started: bool,
    /// It is started and its readiness probe says that it can serve. An init container: it has done its work.
    pub ready: bool,
}

/// What a container is doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Not running, but will be.
    Waiting {
        /// `ContainerCreating`, `CrashLoopBackOff`, `ErrImagePull`, `ImagePullBackOff`, `RunContainerError` …
        reason: Reason,
        /// What is waited for, for people.
        message: String,
    },
    /// Running.
    Running {
        /// Since when.
        started_at: i64,
    },
    /// Ended, and stays so.
    Terminated(Termination),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termination {
    /// Exit code; 128 + N for a death by signal N.
    pub exit_code: i32,
    /// The signal that killed it, else 0.
    pub signal: u8,
    /// `Completed`, `Error`, `OOMKilled`, `ContainerCannotRun` …
    pub reason: Reason,
    /// The same for people, with what led to it.
    pub message: String,
    /// When it was started.
    pub started_at: i64,
    /// When it ended.
    pub finished_at: i64,
}

/// Makes a reason of a word. Words longer than a reason are cut.
pub fn reason(word: &str) -> Reason {
    let mut out = Reason::new();
    word.chars().take_while(|c| out.push(*c).is_ok()).for_each(drop);
    out
}

/// Cuts text to [`MAX_TEXT`] bytes at a character's border, so that a peer accepts it.
pub fn text(text: impl Into<String>) -> String {
    let mut text = text.into();
    if text.len() > MAX_TEXT {
        let end = (0..=MAX_TEXT).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_reasons_and_texts_are_cut_at_a_character() {
        assert_eq!(reason("OOMKilled"), "OOMKilled");
        assert_eq!(reason(&"x".repeat(99)).len(), 48);
        let cut = text("é".repeat(MAX_TEXT));
        assert!(cut.len() <= MAX_TEXT && cut.ends_with('é'));
    }
}
