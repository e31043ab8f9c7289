//! One container's table, case by case; whole pods are in `pod_tests`, random worlds in `model`.

use skeg_protocol::manifest::{Handler, Image, ImageSource, Lifecycle, Probe, Probes, RestartPolicy};
use skeg_protocol::{Container as WantedContainer, ContainerState, Digest};

use super::*;

/// A pod with containers of these names.
pub(crate) fn pod(number: u8, name: &str, containers: &[&str]) -> Pod {
    Pod {
        uid: Uid([number; 16]),
        namespace: "default".try_into().unwrap(),
        name: name.try_into().unwrap(),
        containers: containers
            .iter()
            .map(|name| WantedContainer {
                name: (*name).try_into().unwrap(),
                image: Image { reference: "demo:1".to_owned(), digest: Digest([7; 32]), source: ImageSource::Registry },
                ..WantedContainer::default()
            })
            .collect(),
        ..Pod::default()
    }
}

pub(super) fn at(seconds: u64) -> Now {
    Now { monotonic: Duration::from_secs(seconds), wall: 1_000 * i64::try_from(seconds).unwrap() }
}

pub(super) fn exit(code: i32) -> Outcome {
    Outcome { code, signal: 0, out_of_memory: false, message: String::new() }
}

const NO_PROBES: Probes = Probes { startup: None, liveness: None, readiness: None, ignore_image: false };
const NO_HOOKS: Lifecycle = Lifecycle { post_start: None, pre_stop: None, stop_signal: None };
const RULES: Rules<'_> = Rules {
    policy: RestartPolicy::Always,
    max_restarts: None,
    grace: Duration::from_secs(30),
    probes: &NO_PROBES,
    lifecycle: &NO_HOOKS,
};

/// What is to be done, without what is only told to people.
fn quiet(steps: Vec<Step>) -> Vec<Step> {
    steps.into_iter().filter(|step| !matches!(step, Step::Tell(..))).collect()
}

/// Takes a container from wherever it waits to Running.
fn run(container: &mut Container, rules: Rules<'_>, now: Now) {
    if container.phase == Phase::Held {
        assert_eq!(container.supervise(ContainerEvent::Go, rules, now), [Step::Pull]);
    } else if container.phase != Phase::Creating {
        assert_eq!(container.supervise(ContainerEvent::Timer, rules, now), [Step::Pull]);
    }
    let attempt = container.restarts;
    if container.phase == Phase::Image {
        let steps = container.supervise(ContainerEvent::ImageReady { check: None }, rules, now);
        let attempt = container.restarts;
        assert_eq!(steps, [Step::Record, Step::Start(attempt)]);
    }
    let attempt = attempt.max(container.restarts);
    assert!(quiet(container.supervise(ContainerEvent::Started { attempt }, rules, now)).is_empty());
}

fn exited(container: &Container, code: i32) -> ContainerEvent {
    ContainerEvent::Exited { attempt: container.restarts, outcome: exit(code) }
}

#[test]
fn a_crash_loop_waits_0_10_20_40_80_160_300_300_seconds() {
    let mut container = Container::new("main".try_into().unwrap());
    let mut now = 0;
    for (round, delay) in (0..).zip([0, 10, 20, 40, 80, 160, 300, 300]) {
        run(&mut container, RULES, at(now));
        assert_eq!(container.restarts, round);
        let event = exited(&container, 1);
        let steps = quiet(container.supervise(event, RULES, at(now)));
        if delay == 0 {
            // At once: the next attempt is begun before the old one's files are removed.
            assert_eq!(steps, [Step::Record, Step::Start(round + 1), Step::Finish(round)]);
        } else {
            assert_eq!(steps, [Step::Record, Step::Finish(round)]);
            assert_eq!(container.deadline(), Some(Duration::from_secs(now + delay)), "round {round}");
            assert!(container.supervise(ContainerEvent::Timer, RULES, at(now + delay - 1)).is_empty());
        }
        now += delay;
    }
}

#[test]
fn ten_minutes_of_health_end_a_crash_loop() {
    let mut container = Container::new("main".try_into().unwrap());
    container.failures = 6;
    run(&mut container, RULES, at(0));
    let event = exited(&container, 1);
    container.supervise(event, RULES, at(599));
    assert_eq!(container.failures, 7);
    run(&mut container, RULES, at(1000));
    let event = exited(&container, 1);
    container.supervise(event, RULES, at(1600));
    assert_eq!((container.failures, &container.phase), (1, &Phase::Creating));
}

#[test]
fn the_restart_policy_decides_who_stays_ended() {
    for (policy, code, again) in [
        (RestartPolicy::Always, 0, true),
        (RestartPolicy::Always, 1, true),
        (RestartPolicy::OnFailure, 0, false),
        (RestartPolicy::OnFailure, 3, true),
        (RestartPolicy::Never, 0, false),
        (RestartPolicy::Never, 1, false),
    ] {
        let rules = Rules { policy, ..RULES };
        let mut container = Container::new("main".try_into().unwrap());
        run(&mut container, rules, at(0));
        let event = exited(&container, code);
        container.supervise(event, rules, at(1));
        assert_eq!(container.phase == Phase::Creating, again, "{policy:?} {code}");
        assert_eq!(matches!(container.phase, Phase::Ended(_)), !again, "{policy:?} {code}");
    }
}

#[test]
fn on_failure_with_a_number_stays_ended_after_so_many_restarts() {
    let rules = Rules { policy: RestartPolicy::OnFailure, max_restarts: Some(2), ..RULES };
    let mut container = Container::new("main".try_into().unwrap());
    for now in [0, 0, 10] {
        run(&mut container, rules, at(now));
        let event = exited(&container, 1);
        container.supervise(event, rules, at(now));
    }
    assert!(matches!(&container.phase, Phase::Ended(end) if end.exit_code == 1), "{container:?}");
    assert_eq!(container.restarts, 2);
}

#[test]
fn a_program_that_is_not_there_says_run_container_error_and_127() {
    let mut container = Container::new("main".try_into().unwrap());
    container.supervise(ContainerEvent::Go, RULES, at(0));
    container.supervise(ContainerEvent::ImageReady { check: None }, RULES, at(0));
    let failure = NotStarted::CannotRun { code: 127, message: "no such program: /bin/nope".to_owned() };
    container.supervise(ContainerEvent::NotStarted { attempt: 0, failure }, RULES, at(0));
    let ContainerState::Waiting { reason, message } = container.state("") else { panic!("{container:?}") };
    assert_eq!(reason, "RunContainerError");
    assert!(message.contains("/bin/nope"), "{message}");
    assert_eq!(container.last.as_ref().map(|end| end.exit_code), Some(127));
}

#[test]
fn what_could_not_be_created_does_not_count_as_a_restart() {
    let mut container = Container::new("main".try_into().unwrap());
    for delay in [10, 20, 40] {
        container.supervise(ContainerEvent::Go, RULES, at(1_000));
        container.supervise(ContainerEvent::Timer, RULES, at(1_000));
        container.supervise(ContainerEvent::ImageReady { check: None }, RULES, at(1_000));
        let failure = NotStarted::NotCreated { reason: "HostPortTaken", message: "port 80".to_owned() };
        container.supervise(ContainerEvent::NotStarted { attempt: 0, failure }, RULES, at(1_000));
        assert_eq!((container.restarts, container.spent), (0, false));
        assert_eq!(container.deadline(), Some(Duration::from_secs(1_000 + delay)));
        let Phase::Backoff { until, .. } = &mut container.phase else { panic!() };
        *until = Duration::ZERO;
    }
}

#[test]
fn a_pull_backs_off_and_says_so() {
    let mut container = Container::new("main".try_into().unwrap());
    for (delay, word) in [(10, "ErrImagePull"), (20, "ImagePullBackOff"), (40, "ImagePullBackOff")] {
        let now = Now { monotonic: container.deadline().unwrap_or_default(), wall: 0 };
        let event = if container.phase == Phase::Held { ContainerEvent::Go } else { ContainerEvent::Timer };
        assert_eq!(container.supervise(event, RULES, now), [Step::Pull]);
        container.supervise(ContainerEvent::ImageFailed(ImageFailure::Pull("no such image".to_owned())), RULES, now);
        assert_eq!(container.deadline(), Some(now.monotonic + Duration::from_secs(delay)));
        let ContainerState::Waiting { reason, message } = container.state("") else { panic!() };
        assert!(reason == word && message.contains("no such image"), "{reason} {message}");
    }
}

#[test]
fn an_image_that_may_not_be_pulled_is_looked_for_again_when_one_comes() {
    let mut container = Container::new("main".try_into().unwrap());
    for _ in 0..3 {
        let now = Now { monotonic: container.deadline().unwrap_or_default(), wall: 0 };
        let event = if container.phase == Phase::Held { ContainerEvent::Go } else { ContainerEvent::Timer };
        assert_eq!(container.supervise(event, RULES, now), [Step::Pull]);
        container.supervise(ContainerEvent::ImageFailed(ImageFailure::Never("not here".to_owned())), RULES, now);
        let ContainerState::Waiting { reason, message } = container.state("") else { panic!() };
        assert_eq!((reason.as_str(), message.as_str()), ("ErrImageNeverPull", "not here"));
    }
    assert_eq!(container.supervise(ContainerEvent::NewImages, RULES, at(0)), [Step::Pull]);
    assert_eq!(container.supervise(ContainerEvent::NewImages, RULES, at(0)), []);
}

#[test]
fn a_container_that_waits_for_a_config_map_starts_when_it_comes() {
    let mut container = Container::new("main".try_into().unwrap());
    container.supervise(ContainerEvent::Go, RULES, at(0));
    container.supervise(ContainerEvent::ImageReady { check: None }, RULES, at(0));
    let missing = |reason| NotStarted::NotCreated { reason, message: "configmap \"app\" not found".to_owned() };
    for reason in ["CreateContainerConfigError", "FailedMount"] {
        container.supervise(ContainerEvent::NotStarted { attempt: 0, failure: missing(reason) }, RULES, at(0));
        assert_eq!(quiet(container.supervise(ContainerEvent::NewData, RULES, at(0))), [Step::Pull], "{reason}");
        assert_eq!(container.supervise(ContainerEvent::NewData, RULES, at(0)), [], "{reason}");
        container.supervise(ContainerEvent::ImageReady { check: None }, RULES, at(0));
    }
    let failed = ContainerEvent::NotStarted { attempt: 0, failure: missing("CreateContainerError") };
    container.supervise(failed, RULES, at(0));
    assert_eq!(container.supervise(ContainerEvent::NewData, RULES, at(0)), [], "waits for something else");
}

fn removed(seconds: u64) -> ContainerEvent {
    ContainerEvent::Stop { grace: Duration::from_secs(seconds), why: Why::Removed("it is no longer wanted".to_owned()) }
}

#[test]
fn a_stop_while_starting_signals_as_soon_as_it_can_and_kills_in_time() {
    let mut container = Container::new("main".try_into().unwrap());
    container.supervise(ContainerEvent::Go, RULES, at(0));
    container.supervise(ContainerEvent::ImageReady { check: None }, RULES, at(0));
    assert!(container.supervise(removed(30), RULES, at(0)).is_empty());
    assert_eq!(container.deadline(), None, "there is nothing to kill yet");
    assert_eq!(container.supervise(ContainerEvent::Started { attempt: 0 }, RULES, at(10)), [Step::Signal(0)]);
    assert_eq!(container.deadline(), Some(Duration::from_secs(30)));
    assert_eq!(container.supervise(ContainerEvent::Timer, RULES, at(30)), [Step::Kill(0)]);
    assert!(container.supervise(ContainerEvent::Timer, RULES, at(31)).is_empty());
    assert_eq!(container.supervise(ContainerEvent::Timer, RULES, at(40)), [Step::Kill(0)], "once more");
    let event = exited(&container, 137);
    assert_eq!(container.supervise(event, RULES, at(41)), [Step::Record, Step::Finish(0)]);
    assert_eq!(container.phase, Phase::Gone(None));
}

#[test]
fn a_stop_hook_runs_before_the_signal_and_inside_the_grace_period() {
    let lifecycle = Lifecycle { pre_stop: Some(Handler::Sleep { seconds: 9 }), ..NO_HOOKS };
    let rules = Rules { lifecycle: &lifecycle, ..RULES };
    let hook = Step::Hook(0, HookKind::PreStop, Duration::from_secs(28));
    let mut container = Container::new("main".try_into().unwrap());
    run(&mut container, rules, at(0));
    assert_eq!(quiet(container.supervise(removed(30), rules, at(100))), std::slice::from_ref(&hook));
    let done = ContainerEvent::HookDone { attempt: 0, hook: HookKind::PreStop, result: Ok(()) };
    assert_eq!(container.supervise(done, rules, at(109)), [Step::Signal(0)]);
    assert_eq!(container.deadline(), Some(Duration::from_secs(130)), "the hook's time is the grace period's");
    // One that hangs is left alone in time for the signal.
    let mut container = Container::new("main".try_into().unwrap());
    run(&mut container, rules, at(0));
    assert_eq!(quiet(container.supervise(removed(30), rules, at(100))), [hook]);
    assert_eq!(container.deadline(), Some(Duration::from_secs(128)));
    assert_eq!(quiet(container.supervise(ContainerEvent::Timer, rules, at(128))), [Step::Signal(0)]);
    assert_eq!(container.supervise(ContainerEvent::Timer, rules, at(130)), [Step::Kill(0)]);
}

#[test]
fn a_container_is_started_when_its_start_hook_has_ended_and_ends_where_that_fails() {
    let lifecycle = Lifecycle { post_start: Some(Handler::Sleep { seconds: 1 }), ..NO_HOOKS };
    let rules = Rules { lifecycle: &lifecycle, ..RULES };
    let mut container = Container::new("main".try_into().unwrap());
    container.supervise(ContainerEvent::Go, rules, at(0));
    container.supervise(ContainerEvent::ImageReady { check: None }, rules, at(0));
    let steps = quiet(container.supervise(ContainerEvent::Started { attempt: 0 }, rules, at(0)));
    assert_eq!(steps[0], Step::Hook(0, HookKind::PostStart, Duration::MAX));
    assert!(!container.started() && !container.ready());
    let done = |result| ContainerEvent::HookDone { attempt: 0, hook: HookKind::PostStart, result };
    let mut well = container.clone();
    well.supervise(done(Ok(())), rules, at(1));
    assert!(well.started() && well.ready());
    let steps = quiet(container.supervise(done(Err("no".to_owned())), rules, at(1)));
    assert_eq!(steps, [Step::Signal(0)]);
    let event = exited(&container, 143);
    container.supervise(event, rules, at(2));
    assert_eq!(container.phase, Phase::Creating, "the restart policy decides");
    let last = container.last.unwrap();
    assert!(last.message.contains("postStart hook failed: no"), "{last:?}");
}

#[test]
fn a_liveness_failure_kills_by_its_own_grace_and_the_restart_policy_decides() {
    let probe = Probe {
        action: Handler::TcpSocket { host: None, port: 80 },
        initial_delay_ms: 0,
        period_ms: 10_000,
        timeout_ms: 1_000,
        success_threshold: 1,
        failure_threshold: 2,
        termination_grace_seconds: Some(3),
    };
    let probes = Probes { liveness: Some(probe), ..NO_PROBES };
    for policy in [RestartPolicy::Always, RestartPolicy::Never] {
        let rules = Rules { probes: &probes, policy, ..RULES };
        let mut container = Container::new("main".try_into().unwrap());
        container.supervise(ContainerEvent::Go, rules, at(0));
        container.supervise(ContainerEvent::ImageReady { check: None }, rules, at(0));
        container.supervise(ContainerEvent::Started { attempt: 0 }, rules, at(0));
        let bad = || ContainerEvent::Probed {
            attempt: 0,
            kind: ProbeKind::Liveness,
            answer: Err("connection refused".to_owned()),
        };
        let ask = Step::Probe(0, ProbeKind::Liveness);
        assert_eq!(container.supervise(ContainerEvent::Timer, rules, at(0)), std::slice::from_ref(&ask));
        assert!(quiet(container.supervise(bad(), rules, at(0))).is_empty());
        assert_eq!(container.supervise(ContainerEvent::Timer, rules, at(10)), [ask]);
        assert_eq!(quiet(container.supervise(bad(), rules, at(10))), [Step::Signal(0)]);
        assert_eq!(container.deadline(), Some(Duration::from_secs(13)));
        let event = exited(&container, 143);
        container.supervise(event, rules, at(11));
        let end = match &container.phase {
            Phase::Ended(end) => end.clone(),
            _ => container.last.clone().unwrap(),
        };
        assert_eq!(matches!(container.phase, Phase::Ended(_)), policy == RestartPolicy::Never);
        assert!(end.message.contains("its liveness probe failed 2 times: connection refused"), "{end:?}");
    }
}

#[test]
fn a_record_leads_a_new_agent_to_the_same_place() {
    let name: Label = "main".try_into().unwrap();
    let mut container = Container::new(name);
    run(&mut container, RULES, at(5));
    let known = Known { started: true, ready: true };
    let found = Found::Held { since: Duration::from_secs(5), started_at: 5_000, known, check: None };
    assert_eq!(Container::restore(container.record(), found, RULES, at(9)), container);
    // A reboot counts as a restart with a reason, but not as a failure.
    let mut again = Container::restore(container.record(), Found::Rebooted, RULES, at(1));
    assert_eq!((again.failures, again.last.as_ref().map(|end| end.reason.as_str())), (0, Some("NodeReboot")));
    run(&mut again, RULES, at(1));
    assert_eq!(again.restarts, 1);
    // An agent that died before it started anything uses the same number again.
    let mut again = Container::restore(container.record(), Found::Nothing, RULES, at(1));
    run(&mut again, RULES, at(1));
    assert_eq!((again.restarts, &again.last), (0, &None));
    // A wait goes on where it was, but not across a reboot.
    for _ in 0..2 {
        let event = exited(&container, 1);
        container.supervise(event, RULES, at(20));
        if container.phase == Phase::Creating {
            run(&mut container, RULES, at(20));
        }
    }
    assert_eq!(container.deadline(), Some(Duration::from_secs(30)));
    assert_eq!(Container::restore(container.record(), Found::Nothing, RULES, at(21)), container);
    let again = Container::restore(container.record(), Found::Rebooted, RULES, at(1));
    assert_eq!(again.phase, Phase::Held);
}
