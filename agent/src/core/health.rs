//! How a running container is: its start hook and its probes. Pure: it says which question is due and weighs the
//! answers; who asks, and how, is not known here.
//!
//! ```text
//! started ─▶ start hook ─▶ startup probe ─▶ liveness and readiness probe, side by side
//! ```
//! Without a hook or a startup probe the next stage begins at once. Thresholds and times are Kubernetes'.

use std::time::Duration;

use skeg_protocol::manifest::{Lifecycle, Probe, Probes};

/// Which question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Until it succeeds the other two wait; its failure ends the container.
    Startup,
    /// Its failure ends the container.
    Liveness,
    /// While it fails the container is not ready.
    Readiness,
}

impl ProbeKind {
    const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

    /// As people read it.
    pub fn word(self) -> &'static str {
        match self {
            ProbeKind::Startup => "startup",
            ProbeKind::Liveness => "liveness",
            ProbeKind::Readiness => "readiness",
        }
    }
}

/// What a container is asked, from the manifest and from its image.
#[derive(Debug, Clone, Copy)]
pub struct Questions<'a> {
    /// As the manifest says.
    pub probes: &'a Probes,
    /// As the manifest says.
    pub lifecycle: &'a Lifecycle,
    /// The health check of its image, where it has one.
    pub image: Option<&'a Probe>,
}

impl<'a> Questions<'a> {
    /// The probe of a kind. The image's is a readiness probe where the manifest has none at all and does not refuse it.
    pub fn probe(&self, kind: ProbeKind) -> Option<&'a Probe> {
        let probes = self.probes;
        match kind {
            ProbeKind::Startup => probes.startup.as_ref(),
            ProbeKind::Liveness => probes.liveness.as_ref(),
            ProbeKind::Readiness => {
                let own = probes.startup.is_some() || probes.liveness.is_some() || probes.readiness.is_some();
                probes.readiness.as_ref().or(self.image.filter(|_| !own && !probes.ignore_image))
            }
        }
    }
}

/// One question's past and next time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Asked {
    /// When it is due; `None` while an answer is waited for, and where it is never asked.
    next: Option<Duration>,
    /// When it was asked last.
    at: Duration,
    /// Answers in a row of the same kind.
    row: u32,
    /// Of which kind.
    well: bool,
}

/// What must survive the agent, in memory only: a new agent of the same boot begins from here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Known {
    /// Its start hook and startup probe are through.
    pub started: bool,
    /// It is ready.
    pub ready: bool,
}

/// How a running container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    since: Duration,
    /// The start hook is under way.
    hook: bool,
    known: Known,
    asked: [Asked; 3],
}

/// What follows from an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing that anybody sees.
    Same,
    /// `started` or `ready` is another.
    Changed,
    /// The container must end: so many failures in a row.
    Ill,
}

impl Health {
    /// Of a container that was started just now.
    pub fn new(questions: Questions<'_>, now: Duration) -> Health {
        let hook = questions.lifecycle.post_start.is_some();
        let mut health = Health { since: now, hook, known: Known::default(), asked: Default::default() };
        if !hook {
            health.hook_done(questions, now);
        }
        health
    }

    /// Of a container that an earlier agent started at `since` and knew this much of.
    pub fn resume(questions: Questions<'_>, since: Duration, known: Known, now: Duration) -> Health {
        // A hook that was under way is not known to have ended, and must not run twice: it counts as through.
        let mut health = Health { since, hook: false, known, asked: Default::default() };
        if known.started {
            health.begin(questions, now);
        } else {
            health.hook_done(questions, now);
        }
        health
    }

    /// Whether the start hook and the startup probe are through.
    pub fn started(&self) -> bool {
        self.known.started
    }

    /// Whether it can serve.
    pub fn ready(&self) -> bool {
        self.known.ready
    }

    /// What a later agent must know.
    pub fn known(&self) -> Known {
        self.known
    }

    /// The start hook has ended well.
    pub fn hook_done(&mut self, questions: Questions<'_>, now: Duration) {
        self.hook = false;
        match questions.probe(ProbeKind::Startup) {
            Some(probe) => self.plan(ProbeKind::Startup, probe, now),
            None => self.begin(questions, now),
        }
    }

    /// It is started: now it is asked for good.
    fn begin(&mut self, questions: Questions<'_>, now: Duration) {
        self.known.started = true;
        for kind in [ProbeKind::Liveness, ProbeKind::Readiness] {
            match questions.probe(kind) {
                Some(probe) => self.plan(kind, probe, now),
                None if kind == ProbeKind::Readiness => self.known.ready = true,
                None => {}
            }
        }
    }

    /// Plans the first try.
    fn plan(&mut self, kind: ProbeKind, probe: &Probe, now: Duration) {
        let first = self.since + Duration::from_millis(probe.initial_delay_ms.into());
        self.asked[kind as usize] = Asked { next: Some(first.max(now)), ..Asked::default() };
    }

    /// When the next question is due.
    pub fn deadline(&self) -> Option<Duration> {
        self.asked.iter().filter_map(|asked| asked.next).min()
    }

    /// Takes the questions that are due; each is then waited for.
    pub fn due(&mut self, now: Duration) -> impl Iterator<Item = ProbeKind> {
        ProbeKind::ALL.into_iter().filter(move |kind| {
            let asked = &mut self.asked[*kind as usize];
            let due = asked.next.is_some_and(|at| at <= now);
            if due {
                (asked.next, asked.at) = (None, now);
            }
            due
        })
    }

    /// Weighs an answer.
    pub fn told(&mut self, kind: ProbeKind, well: bool, questions: Questions<'_>, now: Duration) -> Verdict {
        let asked = &mut self.asked[kind as usize];
        let (Some(probe), None) = (questions.probe(kind), asked.next) else { return Verdict::Same };
        asked.row = if asked.well == well { asked.row.saturating_add(1) } else { 1 };
        asked.well = well;
        // As a clock that ticks: what took longer than a period does not move the ticks after it together.
        asked.next = Some((asked.at + Duration::from_millis(probe.period_ms.into())).max(now));
        let enough = asked.row >= if well { probe.success_threshold } else { probe.failure_threshold };
        let before = self.known;
        match (kind, well) {
            (ProbeKind::Startup, true) if enough => {
                self.asked[kind as usize].next = None;
                self.begin(questions, now);
            }
            (ProbeKind::Readiness, _) if enough => self.known.ready = well,
            (ProbeKind::Startup | ProbeKind::Liveness, false) if enough => return Verdict::Ill,
            _ => {}
        }
        if self.known == before { Verdict::Same } else { Verdict::Changed }
    }

    /// So many answers of the latest kind came in a row.
    pub fn row(&self, kind: ProbeKind) -> u32 {
        self.asked[kind as usize].row
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skeg_protocol::manifest::Handler;

    fn probe(initial: u32, period: u32, success: u32, failure: u32) -> Probe {
        Probe {
            action: Handler::TcpSocket { host: None, port: 80 },
            initial_delay_ms: initial * 1000,
            period_ms: period * 1000,
            timeout_ms: 1000,
            success_threshold: success,
            failure_threshold: failure,
            termination_grace_seconds: None,
        }
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn without_probes_a_container_is_ready_as_soon_as_it_runs() {
        let (probes, lifecycle) = (Probes::default(), Lifecycle::default());
        let health = Health::new(Questions { probes: &probes, lifecycle: &lifecycle, image: None }, s(5));
        assert!(health.started() && health.ready());
        assert_eq!(health.deadline(), None);
    }

    #[test]
    fn the_startup_probe_holds_the_other_two_back() {
        let probes = Probes {
            startup: Some(probe(2, 1, 1, 3)),
            liveness: Some(probe(0, 10, 1, 3)),
            readiness: Some(probe(20, 10, 1, 3)),
            ..Probes::default()
        };
        let lifecycle = Lifecycle::default();
        let questions = Questions { probes: &probes, lifecycle: &lifecycle, image: None };
        let mut health = Health::new(questions, s(0));
        assert_eq!(health.deadline(), Some(s(2)));
        assert_eq!(health.due(s(2)).collect::<Vec<_>>(), [ProbeKind::Startup]);
        assert_eq!(health.deadline(), None, "an answer is waited for");
        assert_eq!(health.told(ProbeKind::Startup, false, questions, s(3)), Verdict::Same);
        assert_eq!(health.due(s(3)).collect::<Vec<_>>(), [ProbeKind::Startup]);
        assert_eq!(health.told(ProbeKind::Startup, true, questions, s(4)), Verdict::Changed);
        assert!(health.started() && !health.ready());
        assert_eq!(health.due(s(4)).collect::<Vec<_>>(), [ProbeKind::Liveness]);
        assert_eq!(health.deadline(), Some(s(20)), "the readiness probe's delay counts from the start");
    }

    #[test]
    fn readiness_follows_its_thresholds_and_liveness_ends_the_container() {
        let probes =
            Probes { liveness: Some(probe(0, 10, 1, 2)), readiness: Some(probe(0, 10, 2, 3)), ..Probes::default() };
        let lifecycle = Lifecycle::default();
        let questions = Questions { probes: &probes, lifecycle: &lifecycle, image: None };
        let mut health = Health::new(questions, s(0));
        let mut now = 0;
        let mut ask = |health: &mut Health, kind, well| {
            now += 10;
            assert!(health.due(s(now)).any(|due| due == kind));
            health.told(kind, well, questions, s(now))
        };
        assert_eq!(ask(&mut health, ProbeKind::Readiness, true), Verdict::Same);
        assert_eq!(ask(&mut health, ProbeKind::Readiness, true), Verdict::Changed);
        assert_eq!(ask(&mut health, ProbeKind::Readiness, false), Verdict::Same);
        assert_eq!(ask(&mut health, ProbeKind::Readiness, false), Verdict::Same);
        assert_eq!(ask(&mut health, ProbeKind::Readiness, false), Verdict::Changed);
        assert!(!health.ready() && health.started());
        // The liveness question was taken at the first round; its two answers come now.
        assert_eq!(health.told(ProbeKind::Liveness, false, questions, s(60)), Verdict::Same);
        assert_eq!(health.due(s(60)).collect::<Vec<_>>(), [ProbeKind::Liveness, ProbeKind::Readiness]);
        assert_eq!(health.told(ProbeKind::Liveness, false, questions, s(61)), Verdict::Ill);
    }

    #[test]
    fn an_answer_that_nobody_waits_for_changes_nothing() {
        let probes = Probes { readiness: Some(probe(5, 10, 1, 1)), ..Probes::default() };
        let lifecycle = Lifecycle::default();
        let questions = Questions { probes: &probes, lifecycle: &lifecycle, image: None };
        let mut health = Health::new(questions, s(0));
        assert_eq!(health.told(ProbeKind::Readiness, true, questions, s(1)), Verdict::Same);
        assert_eq!(health.told(ProbeKind::Liveness, false, questions, s(1)), Verdict::Same);
        assert!(!health.ready());
    }

    #[test]
    fn the_image_s_health_check_is_a_readiness_probe_unless_there_is_another() {
        let (image, lifecycle) = (probe(0, 30, 1, 3), Lifecycle::default());
        let with = |probes: &Probes| {
            Questions { probes, lifecycle: &lifecycle, image: Some(&image) }.probe(ProbeKind::Readiness).cloned()
        };
        assert_eq!(with(&Probes::default()), Some(image.clone()));
        assert_eq!(with(&Probes { ignore_image: true, ..Probes::default() }), None);
        assert_eq!(with(&Probes { liveness: Some(probe(0, 1, 1, 1)), ..Probes::default() }), None);
    }
}
