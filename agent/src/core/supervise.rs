//! One container's life as a total state × event table. It holds no clock and does nothing itself: time comes in
//! with the event, what is to be done goes out as [`Step`]s.
//!
//! ```text
//!  Held
//!   │ go      ┌──────────────── timer ────────────────┐
//!   ▼         ▼                                       │
//!  Image ─ image ready ─▶ Creating ─▶ Running ─ exit ─▶ Backoff │ Ended │ Creating (the first time: at once)
//!   │  ▲ timer                 │ not started ───────────▶ Backoff │ Ended
//!   ▼  │                       │ stop, ill
//! ImageBackoff               Stopping ─ exit ─▶ Gone │ Ended │ Backoff     (stop leads to Gone from anywhere else)
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};
use skeg_protocol::manifest::{Lifecycle, Probe, Probes, RestartPolicy};
use skeg_protocol::status::{Reason, Termination, reason, text};
use skeg_protocol::{ContainerState, Label};

use super::Now;
use super::health::{Health, Known, ProbeKind, Questions, Verdict};

/// First wait of a back-off.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// Longest wait of a back-off.
pub const BACKOFF_MOST: Duration = Duration::from_secs(300);
/// A container that ran this long was healthy: its next failure counts as the first.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(600);
/// Between two kills of a container that does not end: only a kernel that is stuck needs the second.
const KILL_AGAIN: Duration = Duration::from_secs(10);
/// What a stop hook leaves of the grace period to the program, if the period is long enough to share.
const AFTER_HOOK: Duration = Duration::from_secs(2);

/// Reasons of a wait that a config map or secret may end.
const WAITS_FOR_DATA: [&str; 2] = ["CreateContainerConfigError", "FailedMount"];

/// What the supervisor must know of the pod's specification.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// What happens when a container ends.
    pub policy: RestartPolicy,
    /// Starts after failures before it stays ended.
    pub max_restarts: Option<u32>,
    /// Time between the stop signal and the kill.
    pub grace: Duration,
    /// How it is asked how it is.
    pub probes: &'a Probes,
    /// What is done around its life.
    pub lifecycle: &'a Lifecycle,
}

impl<'a> Rules<'a> {
    fn questions(&self, image: Option<&'a Probe>) -> Questions<'a> {
        Questions { probes: self.probes, lifecycle: self.lifecycle, image }
    }

    /// Whether a container is started again after an end with this code.
    fn again(&self, code: i32, restarts: u32) -> bool {
        restarts_after(self.policy, code) && self.max_restarts.is_none_or(|most| restarts < most)
    }
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Its turn in the pod has not come.
    Held,
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
        /// How it is.
        health: Health,
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
        /// Monotonic time of its start.
        since: Duration,
        /// Wall clock of its start.
        started_at: i64,
        /// What for.
        why: Why,
        /// How far that is.
        stage: Stage,
        /// Monotonic time of the kill, or of the next one.
        deadline: Duration,
    },
    /// It ended and stays so.
    Ended(Termination),
    /// Nothing of it is left to wait for; holds its final end where the policy allows no further start.
    Gone(Option<Termination>),
}

/// Why a container is told to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// It is ill: what happens then is the restart policy's. In words.
    Ill(String),
    /// Its pod is over, and its containers stay as they ended. In words.
    Over(String),
    /// Its pod leaves the device, or everything stops. In words.
    Removed(String),
}

impl Why {
    fn words(&self) -> &str {
        match self {
            Why::Ill(words) | Why::Over(words) | Why::Removed(words) => words,
        }
    }

    fn weight(&self) -> u8 {
        match self {
            Why::Ill(_) => 0,
            Why::Over(_) => 1,
            Why::Removed(_) => 2,
        }
    }
}

/// How far a stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its start is still under way; there is nothing to signal yet.
    Starting,
    /// Its stop hook runs, at most until then (monotonic time).
    Hook(Duration),
    /// It has the stop signal.
    Signalled,
    /// It was killed.
    Killed,
}

/// Which hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    /// After the start.
    PostStart,
    /// Before the stop signal.
    PreStop,
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
    /// Its turn in the pod has come.
    Go,
    /// Its image is there.
    ImageReady {
        /// The image's health check, where it has one.
        check: Option<Box<Probe>>,
    },
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
    /// A probe has its answer.
    Probed {
        /// Of which attempt.
        attempt: u32,
        /// Which probe.
        kind: ProbeKind,
        /// What is wrong, in words, where something is.
        answer: Result<(), String>,
    },
    /// A hook has ended.
    HookDone {
        /// Of which attempt.
        attempt: u32,
        /// Which hook.
        hook: HookKind,
        /// What went wrong, in words, where something did.
        result: Result<(), String>,
    },
    /// Time went on.
    Timer,
    /// It is to end.
    Stop {
        /// At most this long after now it is killed.
        grace: Duration,
        /// What for.
        why: Why,
    },
}

impl ContainerEvent {
    /// The attempt that it is about.
    fn attempt(&self) -> Option<u32> {
        use ContainerEvent as E;
        match self {
            E::Started { attempt } | E::NotStarted { attempt, .. } | E::Exited { attempt, .. } => Some(*attempt),
            E::Probed { attempt, .. } | E::HookDone { attempt, .. } => Some(*attempt),
            E::Go | E::ImageReady { .. } | E::ImageFailed(_) | E::Timer | E::Stop { .. } => None,
            E::NewImages | E::NewData => None,
        }
    }
}

/// What is to be done for a container, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make its record durable, before anything that follows.
    Record,
    /// Make its image ready.
    Pull,
    /// Start this attempt.
    Start(u32),
    /// Ask this attempt how it is.
    Probe(u32, ProbeKind),
    /// Run a hook of this attempt, for so long at most.
    Hook(u32, HookKind, Duration),
    /// Keep what is known of this attempt's health for a later agent.
    Note(u32, Known),
    /// Send the stop signal.
    Signal(u32),
    /// Kill every process of it.
    Kill(u32),
    /// Take its last output, let init forget it, and remove what it left behind.
    Finish(u32),
    /// Write down what happened, for people.
    Tell(&'static str, String),
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
    /// The health check of its image.
    pub check: Option<Box<Probe>>,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Init holds it: it runs, or its exit will be told.
    Held {
        /// Monotonic time of its start.
        since: Duration,
        /// Wall clock of its start.
        started_at: i64,
        /// What was known of its health.
        known: Known,
        /// The health check of its image.
        check: Option<Box<Probe>>,
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

fn restarts_after(policy: RestartPolicy, code: i32) -> bool {
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
    /// A container that has never run and waits for its turn.
    pub fn new(name: Label) -> Self {
        Container {
            name,
            phase: Phase::Held,
            restarts: 0,
            spent: false,
            failures: 0,
            pull_failures: 0,
            last: None,
            check: None,
        }
    }

    /// Takes up a container where its record and what was found leave it.
    pub fn restore(record: ContainerRecord, found: Found, rules: Rules<'_>, now: Now) -> Self {
        let ContainerRecord { name, restarts, spent, failures, last, phase } = record;
        let mut this = Container { name, restarts, spent, failures, last, ..Container::new(Label::new()) };
        let lost = |word, message| untold(word, message, 255, now);
        this.phase = match (phase, found) {
            (RecordedPhase::Ended(end), _) => Phase::Ended(end),
            (RecordedPhase::Waiting(until), Found::Held { .. } | Found::Nothing | Found::Lost) if !until.is_zero() => {
                this.crash_loop(until)
            }
            (RecordedPhase::Waiting(_), _) => Phase::Held,
            (RecordedPhase::Begun, Found::Held { since, started_at, known, check }) => {
                let health = Health::resume(rules.questions(check.as_deref()), since, known, now.monotonic);
                this.check = check;
                Phase::Running { since, started_at, health }
            }
            (RecordedPhase::Begun, Found::Nothing) => {
                this.spent = false;
                Phase::Held
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
    fn after(&mut self, end: Termination, rules: Rules<'_>) -> Phase {
        if !restarts_after(rules.policy, end.exit_code) {
            return Phase::Ended(end);
        }
        self.last = Some(end);
        Phase::Held
    }

    /// Has a container that has ended run once more in its turn: an init container after a reboot.
    pub fn run_again(&mut self) {
        if let Phase::Ended(end) = &self.phase {
            self.last = Some(end.clone());
            self.phase = Phase::Held;
        }
    }

    /// What must outlive the agent.
    pub fn record(&self) -> ContainerRecord {
        let phase = match &self.phase {
            Phase::Ended(end) | Phase::Gone(Some(end)) => RecordedPhase::Ended(end.clone()),
            Phase::Backoff { until, .. } => RecordedPhase::Waiting(*until),
            Phase::Held | Phase::Image | Phase::ImageBackoff { .. } | Phase::Gone(None) => {
                RecordedPhase::Waiting(Duration::ZERO)
            }
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
            Phase::Running { health, .. } => health.deadline(),
            Phase::Stopping { stage: Stage::Starting, .. } => None,
            Phase::Stopping { stage: Stage::Hook(cut), deadline, .. } => Some(*cut.min(deadline)),
            Phase::Stopping { deadline, .. } => Some(*deadline),
            Phase::Held | Phase::Image | Phase::Creating | Phase::Ended(_) | Phase::Gone(_) => None,
        }
    }

    /// Whether a program of it may be running.
    pub fn is_alive(&self) -> bool {
        matches!(self.phase, Phase::Creating | Phase::Running { .. } | Phase::Stopping { .. })
    }

    /// Whether it runs and its start hook and startup probe are through.
    pub fn started(&self) -> bool {
        matches!(&self.phase, Phase::Running { health, .. } if health.started())
    }

    /// Whether it can serve.
    pub fn ready(&self) -> bool {
        matches!(&self.phase, Phase::Running { health, .. } if health.ready())
    }

    /// Takes an event and says what is to be done. Events of attempts other than the present one, and events
    /// that mean nothing in the present phase, change nothing.
    pub fn supervise(&mut self, event: ContainerEvent, rules: Rules<'_>, now: Now) -> Vec<Step> {
        use ContainerEvent as E;
        if event.attempt().is_some_and(|attempt| attempt != self.restarts || !self.spent) {
            return Vec::new();
        }
        match (&mut self.phase, event) {
            (Phase::Held, E::Go) => self.pull(),
            (Phase::Backoff { until, .. } | Phase::ImageBackoff { until, .. }, E::Timer) if now.monotonic >= *until => {
                self.pull()
            }
            (Phase::ImageBackoff { .. }, E::NewImages) => self.pull(),
            (Phase::Backoff { reason, .. }, E::NewData) if WAITS_FOR_DATA.contains(&reason.as_str()) => self.pull(),
            (Phase::Image, E::ImageReady { check }) => {
                self.check = check;
                self.begin()
            }
            (Phase::Image, E::ImageFailed(failure)) => self.image_failed(failure, now),
            (Phase::Creating, E::Started { .. }) => self.started_now(rules, now),
            (Phase::Creating, E::NotStarted { failure, .. }) => self.not_started(failure, rules, now),
            // An exit may overtake the word that the start was done.
            (Phase::Creating, E::Exited { outcome, .. }) => {
                self.ended(termination(&outcome, now.wall, now), Duration::ZERO, rules, now)
            }
            (Phase::Running { since, started_at, .. }, E::Exited { outcome, .. }) => {
                let ran = now.monotonic.saturating_sub(*since);
                let end = termination(&outcome, *started_at, now);
                self.ended(end, ran, rules, now)
            }
            (Phase::Running { health, .. }, E::Timer) => {
                let attempt = self.restarts;
                health.due(now.monotonic).map(|kind| Step::Probe(attempt, kind)).collect()
            }
            (Phase::Running { .. }, E::Probed { kind, answer, .. }) => self.probed(kind, answer, rules, now),
            (Phase::Running { .. }, E::HookDone { hook: HookKind::PostStart, result, .. }) => {
                self.hook_done(result, rules, now)
            }
            (_, E::Stop { grace, why }) => self.stop(now.monotonic.saturating_add(grace), why, rules, now),
            (Phase::Stopping { .. }, event) => self.stop_further(event, rules, now),
            (Phase::Held | Phase::Image | Phase::ImageBackoff { .. } | Phase::Backoff { .. }, _)
            | (Phase::Creating | Phase::Running { .. } | Phase::Ended(_) | Phase::Gone(_), _) => Vec::new(),
        }
    }

    fn pull(&mut self) -> Vec<Step> {
        self.phase = Phase::Image;
        vec![Step::Pull]
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
        let (ImageFailure::Pull(message) | ImageFailure::Never(message)) = &failure;
        // The first failure of a row says it all; a device that is offline for a year must not fill its journal.
        let tell = (self.pull_failures == 1).then(|| Step::Tell("Failed", text(message.clone())));
        self.phase = Phase::ImageBackoff { until: now.monotonic + doubling(self.pull_failures), failure };
        tell.into_iter().collect()
    }

    fn started_now(&mut self, rules: Rules<'_>, now: Now) -> Vec<Step> {
        let health = Health::new(rules.questions(self.check.as_deref()), now.monotonic);
        let known = health.known();
        self.phase = Phase::Running { since: now.monotonic, started_at: now.wall, health };
        let mut steps = vec![Step::Tell("Started", format!("attempt {}", self.restarts))];
        if rules.lifecycle.post_start.is_some() {
            // Kubernetes sets a start hook no limit; a container whose hook hangs is not started until it is stopped.
            steps.push(Step::Hook(self.restarts, HookKind::PostStart, Duration::MAX));
        }
        self.note(known, rules, &mut steps);
        steps
    }

    /// Keeps what a container without questions always is out of init's memory.
    fn note(&self, known: Known, rules: Rules<'_>, steps: &mut Vec<Step>) {
        let questions = rules.questions(self.check.as_deref());
        let asked = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];
        if rules.lifecycle.post_start.is_some() || asked.iter().any(|kind| questions.probe(*kind).is_some()) {
            steps.push(Step::Note(self.restarts, known));
        }
    }

    fn probed(&mut self, kind: ProbeKind, answer: Result<(), String>, rules: Rules<'_>, now: Now) -> Vec<Step> {
        let Phase::Running { health, .. } = &mut self.phase else { return Vec::new() };
        let questions = rules.questions(self.check.as_deref());
        let well = answer.is_ok();
        let verdict = health.told(kind, well, questions, now.monotonic);
        let (row, known) = (health.row(kind), health.known());
        let mut steps = Vec::new();
        let problem = answer.err().unwrap_or_default();
        // The first of a row and the one that counts; those between say nothing new.
        if !well && (row == 1 || verdict != Verdict::Same) {
            steps.push(Step::Tell("Unhealthy", text(format!("{} probe failed: {problem}", kind.word()))));
        }
        match verdict {
            Verdict::Same => {}
            Verdict::Changed => self.note(known, rules, &mut steps),
            Verdict::Ill => {
                let own = questions.probe(kind).and_then(|probe| probe.termination_grace_seconds);
                let grace = own.map_or(rules.grace, |seconds| Duration::from_secs(seconds.into()));
                let why = Why::Ill(text(format!("its {} probe failed {row} times: {problem}", kind.word())));
                let rules = Rules { grace, ..rules };
                steps.extend(self.stop(now.monotonic.saturating_add(grace), why, rules, now));
            }
        }
        steps
    }

    fn hook_done(&mut self, result: Result<(), String>, rules: Rules<'_>, now: Now) -> Vec<Step> {
        let questions = rules.questions(self.check.as_deref());
        let Phase::Running { health, .. } = &mut self.phase else { return Vec::new() };
        match result {
            Ok(()) => {
                health.hook_done(questions, now.monotonic);
                let known = health.known();
                let mut steps = Vec::new();
                self.note(known, rules, &mut steps);
                steps
            }
            Err(problem) => {
                let why = Why::Ill(text(format!("its postStart hook failed: {problem}")));
                let mut steps = vec![Step::Tell("FailedPostStartHook", text(problem))];
                steps.extend(self.stop(now.monotonic.saturating_add(rules.grace), why, rules, now));
                steps
            }
        }
    }

    fn not_started(&mut self, failure: NotStarted, rules: Rules<'_>, now: Now) -> Vec<Step> {
        match failure {
            NotStarted::CannotRun { code, message } => {
                self.ended(untold("StartError", &message, code, now), Duration::ZERO, rules, now)
            }
            NotStarted::NotCreated { reason: word, message } => {
                let attempt = self.restarts;
                self.spent = false;
                self.failures = self.failures.saturating_add(1);
                let until = now.monotonic + doubling(self.failures);
                let tell = (self.failures == 1).then(|| Step::Tell("Failed", text(format!("{word}: {message}"))));
                self.phase = Phase::Backoff { until, reason: reason(word), message: text(message) };
                [Step::Record, Step::Finish(attempt)].into_iter().chain(tell).collect()
            }
        }
    }

    fn ended(&mut self, end: Termination, ran: Duration, rules: Rules<'_>, now: Now) -> Vec<Step> {
        let attempt = self.restarts;
        self.failures = if ran >= HEALTHY_AFTER { 1 } else { self.failures.saturating_add(1) };
        let told = Step::Tell("Exited", text(format!("{} ({}): {}", end.reason, end.exit_code, end.message)));
        let mut steps = Vec::with_capacity(4);
        if !rules.again(end.exit_code, self.restarts) {
            self.phase = Phase::Ended(end);
            steps.extend([Step::Record, Step::Finish(attempt)]);
        } else {
            let unrunnable = end.reason == "StartError";
            self.last = Some(end);
            let delay = restart_delay(self.failures);
            if delay.is_zero() && !unrunnable {
                // Its image is here, it ran from it. What is left of the old attempt is removed after the start.
                steps.extend(self.begin());
                steps.push(Step::Finish(attempt));
            } else {
                self.phase = self.crash_loop(now.monotonic + delay);
                steps.extend([Step::Record, Step::Finish(attempt)]);
            }
        }
        steps.push(told);
        steps
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

    fn stop(&mut self, deadline: Duration, why: Why, rules: Rules<'_>, now: Now) -> Vec<Step> {
        let attempt = self.restarts;
        let removed = matches!(why, Why::Removed(_));
        match &mut self.phase {
            Phase::Creating => {
                let stage = Stage::Starting;
                self.phase = Phase::Stopping { since: now.monotonic, started_at: now.wall, why, stage, deadline };
                Vec::new()
            }
            Phase::Running { since, started_at, .. } => {
                let mut steps = vec![Step::Tell("Killing", text(why.words()))];
                let left = deadline.saturating_sub(now.monotonic);
                let stage = match rules.lifecycle.pre_stop {
                    Some(_) if !left.is_zero() => {
                        let time = left - AFTER_HOOK.min(left / 2);
                        steps.push(Step::Hook(attempt, HookKind::PreStop, time));
                        Stage::Hook(now.monotonic + time)
                    }
                    _ => {
                        steps.push(Step::Signal(attempt));
                        Stage::Signalled
                    }
                };
                let (since, started_at) = (*since, *started_at);
                self.phase = Phase::Stopping { since, started_at, why, stage, deadline };
                steps
            }
            Phase::Stopping { why: before, stage, deadline: earlier, .. } => {
                if why.weight() > before.weight() {
                    *before = why;
                }
                if *stage != Stage::Killed {
                    *earlier = deadline.min(*earlier);
                }
                Vec::new()
            }
            Phase::Ended(end) if removed => {
                self.phase = Phase::Gone(Some(end.clone()));
                Vec::new()
            }
            Phase::Held | Phase::Image | Phase::ImageBackoff { .. } | Phase::Backoff { .. } => {
                self.phase = if removed { Phase::Gone(None) } else { Phase::Held };
                Vec::new()
            }
            Phase::Ended(_) | Phase::Gone(_) => Vec::new(),
        }
    }

    fn stop_further(&mut self, event: ContainerEvent, rules: Rules<'_>, now: Now) -> Vec<Step> {
        use ContainerEvent as E;
        let attempt = self.restarts;
        let Phase::Stopping { since, started_at, why, stage, deadline } = &mut self.phase else { return Vec::new() };
        match (*stage, event) {
            (Stage::Starting, E::Started { .. }) => {
                (*started_at, *stage) = (now.wall, Stage::Signalled);
                vec![Step::Signal(attempt)]
            }
            (Stage::Starting, E::NotStarted { .. }) => {
                self.spent = false;
                self.phase = if matches!(why, Why::Removed(_)) { Phase::Gone(None) } else { Phase::Held };
                vec![Step::Record, Step::Finish(attempt)]
            }
            (_, E::Exited { outcome, .. }) => {
                let end = termination(&outcome, *started_at, now);
                let ran = now.monotonic.saturating_sub(*since);
                let why = why.clone();
                self.stopped(end, ran, why, rules, now)
            }
            (Stage::Hook(_), E::HookDone { hook: HookKind::PreStop, result, .. }) => {
                *stage = Stage::Signalled;
                let tell = result.err().map(|problem| Step::Tell("FailedPreStopHook", text(problem)));
                tell.into_iter().chain([Step::Signal(attempt)]).collect()
            }
            (Stage::Hook(cut), E::Timer) if now.monotonic >= cut && now.monotonic < *deadline => {
                *stage = Stage::Signalled;
                let problem = "it did not end in time; the stop signal comes all the same";
                vec![Step::Tell("FailedPreStopHook", problem.to_owned()), Step::Signal(attempt)]
            }
            (Stage::Hook(_) | Stage::Signalled | Stage::Killed, E::Timer) if now.monotonic >= *deadline => {
                *stage = Stage::Killed;
                *deadline = now.monotonic + KILL_AGAIN;
                vec![Step::Kill(attempt)]
            }
            _ => Vec::new(),
        }
    }

    /// What comes after the end that was asked for.
    fn stopped(&mut self, mut end: Termination, ran: Duration, why: Why, rules: Rules<'_>, now: Now) -> Vec<Step> {
        let attempt = self.restarts;
        match why {
            Why::Ill(words) => {
                end.message = text(format!("{words}; {}", end.message));
                self.ended(end, ran, rules, now)
            }
            Why::Over(words) => {
                end.message = text(format!("{words}; {}", end.message));
                self.phase = Phase::Ended(end);
                vec![Step::Record, Step::Finish(attempt)]
            }
            Why::Removed(_) => {
                let again = restarts_after(rules.policy, end.exit_code);
                self.last = if again { Some(end.clone()) } else { self.last.take() };
                self.phase = Phase::Gone((!again).then_some(end));
                vec![Step::Record, Step::Finish(attempt)]
            }
        }
    }

    /// What people see; `held` says what a container whose turn has not come waits for.
    pub fn state(&self, held: &str) -> ContainerState {
        let wait = |word: &str, message: String| ContainerState::Waiting { reason: reason(word), message };
        match &self.phase {
            Phase::Held => match &self.last {
                // Its pod is over: what it was the last time is what it is.
                Some(end) if held.is_empty() => ContainerState::Terminated(end.clone()),
                _ => wait(if held.is_empty() { "ContainerCreating" } else { held }, String::new()),
            },
            Phase::Image => wait("ContainerCreating", "the image is being made ready".to_owned()),
            Phase::ImageBackoff { failure, .. } => image_state(failure, self.pull_failures),
            Phase::Creating => wait("ContainerCreating", String::new()),
            Phase::Stopping { stage: Stage::Starting, .. } => wait("ContainerCreating", "it is to end".to_owned()),
            Phase::Running { started_at, .. } | Phase::Stopping { started_at, .. } => {
                ContainerState::Running { started_at: *started_at }
            }
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

/// What people see of an image that could not be had so many times.
pub fn image_state(failure: &ImageFailure, failures: u32) -> ContainerState {
    let (word, message) = match failure {
        ImageFailure::Never(message) => ("ErrImageNeverPull", message.clone()),
        ImageFailure::Pull(message) if failures <= 1 => ("ErrImagePull", message.clone()),
        ImageFailure::Pull(message) => {
            let delay = doubling(failures).as_secs();
            ("ImagePullBackOff", format!("back-off of {delay} s before the next pull: {message}"))
        }
    };
    ContainerState::Waiting { reason: reason(word), message: text(message) }
}

fn waiting(until: Duration) -> Phase {
    Phase::Backoff { until, reason: reason("ContainerCreating"), message: String::new() }
}
