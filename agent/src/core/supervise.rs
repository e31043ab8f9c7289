//! One container's life as a total state × event table. It holds no clock and does nothing itself: time comes in
//! with the event, what is to be done goes out as [`Step`]s.
//!
//! ```text
//!            ┌──────────────── timer ────────────────┐
//!            ▼                                       │
//! Backoff ─▶ Image ─ image ready ─▶ Creating ─▶ Running ─ exit ─▶ Backoff │ Ended
//!            │  ▲ timer                 │ not started ───────────▶ Backoff │ Ended
//!            ▼  │                       │ stop
//!         ImageBackoff               Stopping ─ exit ─▶ Gone     (stop leads to Gone from anywhere else)
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use skeg_protocol::manifest::RestartPolicy;
use skeg_protocol::status::{Reason, Termination, reason, text};
use skeg_protocol::{ContainerState, Label};

use super::Now;

/// First wait of a back-off.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// Longest wait of a back-off.
pub const BACKOFF_MOST: Duration = Duration::from_secs(300);
/// A container that ran this long was healthy: its next failure counts as the first.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(600);

/// Reasons of a wait that a config map or secret may end.
const WAITS_FOR_DATA: [&str; 2] = ["CreateContainerConfigError", "FailedMount"];

/// What the supervisor must know of the pod's specification.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// What happens when a container ends.
    pub policy: RestartPolicy,
    /// Time between the stop signal and the kill.
    pub grace: Duration,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Its image is being made ready.
    Image,
    /// Its image could not be had; tried again at `until`.
    ImageBackoff {
        /// Monotonic time.
        until: Duration,
        /// What went wrong.
        failure: ImageFailure,
    },
    /// It is being started.
    Creating,
    /// It runs.
    Running {
        /// Monotonic time of its start.
        since: Duration,
        /// The same on the wall clock, for people.
        started_at: i64,
    },
    /// Waits until `until` before it is (again) started.
    Backoff {
        /// Monotonic time.
        until: Duration,
        /// What people are told.
        reason: Reason,
        /// The same in words.
        message: String,
    },
    /// It was told to end.
    Stopping {
        /// Wall clock of its start; `None` while the start is still under way.
        started_at: Option<i64>,
        /// Monotonic time of the kill; `None` once that was asked for.
        deadline: Option<Duration>,
    },
    /// It ended and stays so.
    Ended(Termination),
    /// Nothing of it is left to wait for; holds its final end where the policy allows no further start.
    Gone(Option<Termination>),
}

/// How a process ended, as the kernel told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit code; 128 + N for signal N.
    pub code: i32,
    /// The signal that killed it, else 0.
    pub signal: u8,
    /// The kernel killed something of it for want of memory.
    pub out_of_memory: bool,
    /// What led to it, for people; may be empty.
    pub message: String,
}

/// Why a container was not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotStarted {
    /// What it needs could not be made: it never existed and the attempt does not count.
    NotCreated {
        /// A Kubernetes reason such as `CreateContainerError`.
        reason: &'static str,
        /// What, where, why.
        message: String,
    },
    /// Everything was there, its program could not be run: counts as an end with this code.
    CannotRun {
        /// 127 where there is no such program, 126 where it can't be executed, else 128.
        code: i32,
        /// What, where, why.
        message: String,
    },
}

/// Why an image could not be had: what, where, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageFailure {
    /// The pull failed.
    Pull(String),
    /// It is not there, and the container's pull policy is `Never`.
    Never(String),
}

/// What can happen to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEvent {
    /// Its image is there.
    ImageReady,
    /// Its image could not be had.
    ImageFailed(ImageFailure),
    /// An image came to the device; it may be the one that is missing.
    NewImages,
    /// Config maps or secrets changed; one of them may be what is missing.
    NewData,
    /// The start of an attempt is done.
    Started {
        /// Which attempt.
        attempt: u32,
    },
    /// The start of an attempt failed.
    NotStarted {
        /// Which attempt.
        attempt: u32,
        /// Why.
        failure: NotStarted,
    },
    /// The process of an attempt ended.
    Exited {
        /// Which attempt.
        attempt: u32,
        /// How.
        outcome: Outcome,
    },
    /// Time went on.
    Timer,
    /// It is to end.
    Stop {
        /// At most this long after now it is killed.
        grace: Duration,
    },
}

/// What is to be done for a container, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make its record durable, before anything that follows.
    Record,
    /// Make its image ready.
    Pull,
    /// Start this attempt.
    Start(u32),
    /// Send the stop signal.
    Signal(u32),
    /// Kill every process of it.
    Kill(u32),
    /// Take its last output, let init forget it, and remove what it left behind.
    Finish(u32),
}

/// A container's supervisor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its name in the pod.
    pub name: Label,
    /// Where it is.
    pub phase: Phase,
    /// Number of the present or latest attempt; the first is 0. This is what people see as restarts.
    pub restarts: u32,
    /// The attempt of that number was used: the next start takes the next number.
    pub spent: bool,
    /// Ends and failed starts in a row, without health in between.
    pub failures: u32,
    /// Failed pulls in a row.
    pub pull_failures: u32,
    /// The latest end before the present state.
    pub last: Option<Termination>,
}

/// Where a container is, as far as it must outlive the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordedPhase {
    /// Nothing of it runs; it is to be started at this monotonic time of the boot that the record names.
    Waiting(Duration),
    /// An attempt was begun.
    Begun,
    /// It ended for good.
    Ended(Termination),
}

/// A container's durable record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its name in the pod.
    pub name: Label,
    /// See [`Container::restarts`].
    pub restarts: u32,
    /// See [`Container::spent`].
    pub spent: bool,
    /// See [`Container::failures`].
    pub failures: u32,
    /// See [`Container::last`].
    pub last: Option<Termination>,
    /// Where it was.
    pub phase: RecordedPhase,
}

/// What a new agent finds of an attempt that its predecessor had begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Init holds it: it runs, or its exit will be told.
    Held {
        /// Monotonic time of its start.
        since: Duration,
        /// Wall clock of its start.
        started_at: i64,
    },
    /// The agent died before it started anything.
    Nothing,
    /// Something was started that init does not know; it has been killed.
    Lost,
    /// The device was started anew since.
    Rebooted,
}

/// How long to wait before the start that follows the `failures`-th failure in a row: the first is at once,
/// then 10 s, doubling to 5 min (Kubernetes' pod lifecycle).
pub fn restart_delay(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::ZERO,
        more => doubling(more - 1),
    }
}

/// 10 s for the first time, doubling to 5 min.
pub fn doubling(times: u32) -> Duration {
    let factor = 2u32.saturating_pow(times.saturating_sub(1).min(16));
    BACKOFF_FIRST.saturating_mul(factor).min(BACKOFF_MOST)
}

fn restarts(policy: RestartPolicy, code: i32) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => code != 0,
        RestartPolicy::Never => false,
    }
}

/// Puts an end into Kubernetes' words.
fn termination(outcome: &Outcome, started_at: i64, now: Now) -> Termination {
    let word = match outcome {
        Outcome { out_of_memory: true, .. } => "OOMKilled",
        Outcome { code: 0, .. } => "Completed",
        _ => "Error",
    };
    Termination {
        exit_code: outcome.code,
        signal: outcome.signal,
        reason: reason(word),
        message: text(outcome.message.clone()),
        started_at,
        finished_at: now.wall,
    }
}

/// An end without a process that could tell of it.
fn untold(word: &str, message: &str, code: i32, now: Now) -> Termination {
    Termination {
        exit_code: code,
        signal: 0,
        reason: reason(word),
        message: text(message),
        started_at: now.wall,
        finished_at: now.wall,
    }
}

impl Container {
    /// A container that has never run; its first timer event begins its life.
    pub fn new(name: Label) -> Self {
        Container {
            name,
            phase: waiting(Duration::ZERO),
            restarts: 0,
            spent: false,
            failures: 0,
            pull_failures: 0,
            last: None,
        }
    }

    /// Takes up a container where its record and what was found leave it.
    pub fn restore(record: ContainerRecord, found: Found, rules: Rules, now: Now) -> Self {
        let ContainerRecord { name, restarts, spent, failures, last, phase } = record;
        let mut this = Container { name, restarts, spent, failures, last, ..Container::new(Label::new()) };
        let lost = |word, message| untold(word, message, 255, now);
        this.phase = match (phase, found) {
            (RecordedPhase::Ended(end), _) => Phase::Ended(end),
            (RecordedPhase::Waiting(_), Found::Rebooted) => waiting(Duration::ZERO),
            (RecordedPhase::Waiting(until), _) => this.crash_loop(until),
            (RecordedPhase::Begun, Found::Held { since, started_at }) => Phase::Running { since, started_at },
            (RecordedPhase::Begun, Found::Nothing) => {
                this.spent = false;
                waiting(Duration::ZERO)
            }
            (RecordedPhase::Begun, Found::Lost) => {
                this.after(lost("ContainerLost", "it was started, but init did not know of it; it was killed"), rules)
            }
            (RecordedPhase::Begun, Found::Rebooted) => {
                this.after(lost("NodeReboot", "the device was started anew while it ran"), rules)
            }
        };
        this
    }

    /// The phase after an end that is nobody's failure: at once again, where the policy allows it.
    fn after(&mut self, end: Termination, rules: Rules) -> Phase {
        if !restarts(rules.policy, end.exit_code) {
            return Phase::Ended(end);
        }
        self.last = Some(end);
        waiting(Duration::ZERO)
    }

    /// What must outlive the agent.
    pub fn record(&self) -> ContainerRecord {
        let phase = match &self.phase {
            Phase::Ended(end) | Phase::Gone(Some(end)) => RecordedPhase::Ended(end.clone()),
            Phase::Backoff { until, .. } => RecordedPhase::Waiting(*until),
            Phase::Image | Phase::ImageBackoff { .. } | Phase::Gone(None) => RecordedPhase::Waiting(Duration::ZERO),
            Phase::Creating | Phase::Running { .. } | Phase::Stopping { .. } => RecordedPhase::Begun,
        };
        ContainerRecord {
            name: self.name.clone(),
            restarts: self.restarts,
            spent: self.spent,
            failures: self.failures,
            last: self.last.clone(),
            phase,
        }
    }

    /// When it wants [`ContainerEvent::Timer`] next, in monotonic time.
    pub fn deadline(&self) -> Option<Duration> {
        match &self.phase {
            Phase::Backoff { until, .. } | Phase::ImageBackoff { until, .. } => Some(*until),
            Phase::Stopping { started_at: Some(_), deadline } => *deadline,
            _ => None,
        }
    }

    /// Takes an event and says what is to be done. Events of attempts other than the present one, and events
    /// that mean nothing in the present phase, change nothing.
    pub fn supervise(&mut self, event: ContainerEvent, rules: Rules, now: Now) -> Vec<Step> {
        use ContainerEvent as E;
        if let E::Started { attempt } | E::NotStarted { attempt, .. } | E::Exited { attempt, .. } = &event
            && (*attempt != self.restarts || !self.spent)
        {
            return Vec::new();
        }
        let attempt = self.restarts;
        match (&self.phase, event) {
            (Phase::Backoff { until, .. } | Phase::ImageBackoff { until, .. }, E::Timer) if now.monotonic >= *until => {
                self.phase = Phase::Image;
                vec![Step::Pull]
            }
            (Phase::Image, E::ImageReady) => self.begin(),
            (Phase::Image, E::ImageFailed(failure)) => self.image_failed(failure, now),
            (Phase::ImageBackoff { .. }, E::NewImages) => {
                self.phase = Phase::Image;
                vec![Step::Pull]
            }
            (Phase::Backoff { reason, .. }, E::NewData) if WAITS_FOR_DATA.contains(&reason.as_str()) => {
                self.phase = Phase::Image;
                vec![Step::Pull]
            }
            (Phase::Creating, E::Started { .. }) => {
                self.phase = Phase::Running { since: now.monotonic, started_at: now.wall };
                Vec::new()
            }
            (Phase::Creating, E::NotStarted { failure, .. }) => self.not_started(failure, rules, now),
            // An exit may overtake the word that the start was done.
            (Phase::Creating, E::Exited { outcome, .. }) => {
                self.ended(termination(&outcome, now.wall, now), Duration::ZERO, rules, now)
            }
            (Phase::Running { since, started_at }, E::Exited { outcome, .. }) => {
                let ran = now.monotonic.saturating_sub(*since);
                self.ended(termination(&outcome, *started_at, now), ran, rules, now)
            }
            (_, E::Stop { grace }) => self.stop(now.monotonic.saturating_add(grace.min(rules.grace))),
            (Phase::Stopping { started_at: None, deadline }, E::Started { .. }) => {
                self.phase = Phase::Stopping { started_at: Some(now.wall), deadline: *deadline };
                vec![Step::Signal(attempt)]
            }
            (Phase::Stopping { started_at: None, .. }, E::NotStarted { .. }) => {
                self.spent = false;
                self.phase = Phase::Gone(None);
                vec![Step::Record, Step::Finish(attempt)]
            }
            (Phase::Stopping { started_at, .. }, E::Exited { outcome, .. }) => {
                let end = termination(&outcome, started_at.unwrap_or(now.wall), now);
                let again = restarts(rules.policy, end.exit_code);
                self.last = if again { Some(end.clone()) } else { self.last.take() };
                self.phase = Phase::Gone((!again).then_some(end));
                vec![Step::Record, Step::Finish(attempt)]
            }
            (Phase::Stopping { started_at: Some(started), deadline: Some(deadline) }, E::Timer)
                if now.monotonic >= *deadline =>
            {
                self.phase = Phase::Stopping { started_at: Some(*started), deadline: None };
                vec![Step::Kill(attempt)]
            }
            (Phase::Image | Phase::ImageBackoff { .. } | Phase::Backoff { .. }, _)
            | (Phase::Creating | Phase::Running { .. } | Phase::Stopping { .. }, _)
            | (Phase::Ended(_) | Phase::Gone(_), _) => Vec::new(),
        }
    }

    fn begin(&mut self) -> Vec<Step> {
        if self.spent {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.spent = true;
        self.pull_failures = 0;
        self.phase = Phase::Creating;
        vec![Step::Record, Step::Start(self.restarts)]
    }

    fn image_failed(&mut self, failure: ImageFailure, now: Now) -> Vec<Step> {
        self.pull_failures = self.pull_failures.saturating_add(1);
        self.phase = Phase::ImageBackoff { until: now.monotonic + doubling(self.pull_failures), failure };
        Vec::new()
    }

    fn not_started(&mut self, failure: NotStarted, rules: Rules, now: Now) -> Vec<Step> {
        match failure {
            NotStarted::CannotRun { code, message } => {
                self.ended(untold("StartError", &message, code, now), Duration::ZERO, rules, now)
            }
            NotStarted::NotCreated { reason: word, message } => {
                let attempt = self.restarts;
                self.spent = false;
                self.failures = self.failures.saturating_add(1);
                let until = now.monotonic + doubling(self.failures);
                self.phase = Phase::Backoff { until, reason: reason(word), message: text(message) };
                vec![Step::Record, Step::Finish(attempt)]
            }
        }
    }

    fn ended(&mut self, end: Termination, ran: Duration, rules: Rules, now: Now) -> Vec<Step> {
        let attempt = self.restarts;
        self.failures = if ran >= HEALTHY_AFTER { 1 } else { self.failures.saturating_add(1) };
        if restarts(rules.policy, end.exit_code) {
            self.last = Some(end);
            self.phase = self.crash_loop(now.monotonic + restart_delay(self.failures));
        } else {
            self.phase = Phase::Ended(end);
        }
        vec![Step::Record, Step::Finish(attempt)]
    }

    /// The wait before a further start, with words that say why.
    fn crash_loop(&self, until: Duration) -> Phase {
        let Some(last) = &self.last else { return waiting(until) };
        let word = if last.reason == "StartError" { "RunContainerError" } else { "CrashLoopBackOff" };
        let delay = restart_delay(self.failures).as_secs();
        let message = match last.message.as_str() {
            "" => format!("back-off of {delay} s before it is started again; it exited with {}", last.exit_code),
            message => format!("back-off of {delay} s before it is started again: {message}"),
        };
        Phase::Backoff { until, reason: reason(word), message: text(message) }
    }

    fn stop(&mut self, deadline: Duration) -> Vec<Step> {
        let attempt = self.restarts;
        match &mut self.phase {
            Phase::Creating => {
                self.phase = Phase::Stopping { started_at: None, deadline: Some(deadline) };
                Vec::new()
            }
            Phase::Running { started_at, .. } => {
                self.phase = Phase::Stopping { started_at: Some(*started_at), deadline: Some(deadline) };
                vec![Step::Signal(attempt)]
            }
            Phase::Stopping { deadline: Some(earlier), .. } => {
                *earlier = deadline.min(*earlier);
                Vec::new()
            }
            Phase::Ended(end) => {
                self.phase = Phase::Gone(Some(end.clone()));
                Vec::new()
            }
            Phase::Image | Phase::ImageBackoff { .. } | Phase::Backoff { .. } => {
                self.phase = Phase::Gone(None);
                Vec::new()
            }
            Phase::Stopping { deadline: None, .. } | Phase::Gone(_) => Vec::new(),
        }
    }

    /// What people see.
    pub fn state(&self) -> ContainerState {
        let wait = |word: &str, message: String| ContainerState::Waiting { reason: reason(word), message };
        match &self.phase {
            Phase::Image => wait("ContainerCreating", "the image is being made ready".to_owned()),
            Phase::ImageBackoff { failure: ImageFailure::Never(message), .. } => {
                wait("ErrImageNeverPull", text(message.clone()))
            }
            Phase::ImageBackoff { failure: ImageFailure::Pull(message), .. } if self.pull_failures <= 1 => {
                wait("ErrImagePull", text(message.clone()))
            }
            Phase::ImageBackoff { failure: ImageFailure::Pull(message), .. } => {
                let delay = doubling(self.pull_failures).as_secs();
                wait("ImagePullBackOff", text(format!("back-off of {delay} s before the next pull: {message}")))
            }
            Phase::Creating => wait("ContainerCreating", String::new()),
            Phase::Running { started_at, .. } | Phase::Stopping { started_at: Some(started_at), .. } => {
                ContainerState::Running { started_at: *started_at }
            }
            Phase::Stopping { started_at: None, .. } => wait("ContainerCreating", "it is to end".to_owned()),
            Phase::Backoff { reason, message, .. } => {
                ContainerState::Waiting { reason: reason.clone(), message: message.clone() }
            }
            Phase::Ended(end) | Phase::Gone(Some(end)) => ContainerState::Terminated(end.clone()),
            Phase::Gone(None) => match &self.last {
                Some(end) => ContainerState::Terminated(end.clone()),
                None => wait("Terminating", "it was never started".to_owned()),
            },
        }
    }
}

fn waiting(until: Duration) -> Phase {
    Phase::Backoff { until, reason: reason("ContainerCreating"), message: String::new() }
}
