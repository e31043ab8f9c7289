//! The core against a small model of the world: a device that does what it is told, in every order that can
//! happen, and notes whether any promise is broken.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use skeg_protocol::manifest::{Image, ImageSource, RestartPolicy};
use skeg_protocol::{Container as WantedContainer, Digest};

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

fn at(seconds: u64) -> Now {
    Now { monotonic: Duration::from_secs(seconds), wall: 1_000 * i64::try_from(seconds).unwrap() }
}

fn exit(code: i32) -> Outcome {
    Outcome { code, signal: 0, out_of_memory: false, message: String::new() }
}

const RULES: Rules = Rules { policy: RestartPolicy::Always, grace: Duration::from_secs(30) };

/// Takes a container from wherever it waits to Running.
fn run(container: &mut Container, rules: Rules, now: Now) {
    assert_eq!(container.supervise(ContainerEvent::Timer, rules, now), [Step::Pull]);
    let steps = container.supervise(ContainerEvent::ImageReady, rules, now);
    let attempt = container.restarts;
    assert_eq!(steps, [Step::Record, Step::Start(attempt)]);
    assert!(container.supervise(ContainerEvent::Started { attempt }, rules, now).is_empty());
}

fn exited(container: &Container, code: i32) -> ContainerEvent {
    ContainerEvent::Exited { attempt: container.restarts, outcome: exit(code) }
}

#[test]
fn a_crash_loop_waits_0_10_20_40_80_160_300_300_seconds() {
    let mut container = Container::new("main".try_into().unwrap());
    let mut now = 0;
    for (round, delay) in [0, 10, 20, 40, 80, 160, 300, 300].into_iter().enumerate() {
        run(&mut container, RULES, at(now));
        assert_eq!(container.restarts as usize, round);
        let event = exited(&container, 1);
        assert_eq!(container.supervise(event, RULES, at(now)), [Step::Record, Step::Finish(round as u32)]);
        assert_eq!(container.deadline(), Some(Duration::from_secs(now + delay)), "round {round}");
        if delay > 0 {
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
    assert_eq!((container.failures, container.deadline()), (1, Some(Duration::from_secs(1600))));
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
        assert_eq!(matches!(container.phase, Phase::Backoff { .. }), again, "{policy:?} {code}");
        assert_eq!(container.deadline().is_some(), again);
    }
}

#[test]
fn a_program_that_is_not_there_says_run_container_error_and_127() {
    let mut container = Container::new("main".try_into().unwrap());
    container.supervise(ContainerEvent::Timer, RULES, at(0));
    container.supervise(ContainerEvent::ImageReady, RULES, at(0));
    let failure = NotStarted::CannotRun { code: 127, message: "no such program: /bin/nope".to_owned() };
    container.supervise(ContainerEvent::NotStarted { attempt: 0, failure }, RULES, at(0));
    let ContainerState::Waiting { reason, message } = container.state() else { panic!("{container:?}") };
    assert_eq!(reason, "RunContainerError");
    assert!(message.contains("/bin/nope"), "{message}");
    assert_eq!(container.last.as_ref().map(|end| end.exit_code), Some(127));
}

#[test]
fn what_could_not_be_created_does_not_count_as_a_restart() {
    let mut container = Container::new("main".try_into().unwrap());
    for delay in [10, 20, 40] {
        container.supervise(ContainerEvent::Timer, RULES, at(1_000));
        container.supervise(ContainerEvent::ImageReady, RULES, at(1_000));
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
        let now = container.deadline().unwrap();
        let now = Now { monotonic: now, wall: 0 };
        assert_eq!(container.supervise(ContainerEvent::Timer, RULES, now), [Step::Pull]);
        container.supervise(ContainerEvent::ImageFailed(ImageFailure::Pull("no such image".to_owned())), RULES, now);
        assert_eq!(container.deadline(), Some(now.monotonic + Duration::from_secs(delay)));
        let ContainerState::Waiting { reason, message } = container.state() else { panic!() };
        assert!(reason == word && message.contains("no such image"), "{reason} {message}");
    }
}

#[test]
fn an_image_that_may_not_be_pulled_is_looked_for_again_when_one_comes() {
    let mut container = Container::new("main".try_into().unwrap());
    for _ in 0..3 {
        let now = Now { monotonic: container.deadline().unwrap(), wall: 0 };
        assert_eq!(container.supervise(ContainerEvent::Timer, RULES, now), [Step::Pull]);
        container.supervise(ContainerEvent::ImageFailed(ImageFailure::Never("not here".to_owned())), RULES, now);
        let ContainerState::Waiting { reason, message } = container.state() else { panic!() };
        assert_eq!((reason.as_str(), message.as_str()), ("ErrImageNeverPull", "not here"));
    }
    assert_eq!(container.supervise(ContainerEvent::NewImages, RULES, at(0)), [Step::Pull]);
    assert_eq!(container.supervise(ContainerEvent::NewImages, RULES, at(0)), []);
}

#[test]
fn a_container_that_waits_for_a_config_map_starts_when_it_comes() {
    let mut container = Container::new("main".try_into().unwrap());
    container.supervise(ContainerEvent::Timer, RULES, at(0));
    container.supervise(ContainerEvent::ImageReady, RULES, at(0));
    let missing = |reason| NotStarted::NotCreated { reason, message: "configmap \"app\" not found".to_owned() };
    for reason in ["CreateContainerConfigError", "FailedMount"] {
        let failed = ContainerEvent::NotStarted { attempt: 0, failure: missing(reason) };
        container.supervise(failed, RULES, at(0));
        assert_eq!(container.supervise(ContainerEvent::NewData, RULES, at(0)), [Step::Pull], "{reason}");
        assert_eq!(container.supervise(ContainerEvent::NewData, RULES, at(0)), [], "{reason}");
        container.supervise(ContainerEvent::ImageReady, RULES, at(0));
    }
    let failed = ContainerEvent::NotStarted { attempt: 0, failure: missing("CreateContainerError") };
    container.supervise(failed, RULES, at(0));
    assert_eq!(container.supervise(ContainerEvent::NewData, RULES, at(0)), [], "waits for something else");
}

#[test]
fn a_stop_while_starting_signals_as_soon_as_it_can_and_kills_in_time() {
    let mut container = Container::new("main".try_into().unwrap());
    container.supervise(ContainerEvent::Timer, RULES, at(0));
    container.supervise(ContainerEvent::ImageReady, RULES, at(0));
    let grace = Duration::from_secs(30);
    assert!(container.supervise(ContainerEvent::Stop { grace }, RULES, at(0)).is_empty());
    assert_eq!(container.deadline(), None, "there is nothing to kill yet");
    assert_eq!(container.supervise(ContainerEvent::Started { attempt: 0 }, RULES, at(10)), [Step::Signal(0)]);
    assert_eq!(container.deadline(), Some(Duration::from_secs(30)));
    assert_eq!(container.supervise(ContainerEvent::Timer, RULES, at(30)), [Step::Kill(0)]);
    assert!(container.supervise(ContainerEvent::Timer, RULES, at(31)).is_empty());
    let event = exited(&container, 137);
    assert_eq!(container.supervise(event, RULES, at(31)), [Step::Record, Step::Finish(0)]);
    assert_eq!(container.phase, Phase::Gone(None));
}

#[test]
fn a_record_leads_a_new_agent_to_the_same_place() {
    let name: Label = "main".try_into().unwrap();
    let mut container = Container::new(name);
    run(&mut container, RULES, at(5));
    let found = Found::Held { since: Duration::from_secs(5), started_at: 5_000 };
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
        if container.deadline() == Some(Duration::from_secs(20)) {
            run(&mut container, RULES, at(20));
        }
    }
    assert_eq!(container.deadline(), Some(Duration::from_secs(30)));
    assert_eq!(Container::restore(container.record(), Found::Nothing, RULES, at(21)), container);
    let again = Container::restore(container.record(), Found::Rebooted, RULES, at(1));
    assert_eq!(again.deadline(), Some(Duration::ZERO));
}

#[test]
fn a_changed_pod_and_a_taken_name_wait_until_the_old_one_is_gone() {
    let (old, mut changed) = (pod(1, "web", &["main"]), pod(1, "web", &["main"]));
    changed.containers[0].args = vec!["-v".to_owned()];
    let heir = pod(2, "web", &["main"]);
    let there = |leaving| [Observed { pod: &old, leaving }];
    for wanted in [&changed, &heir] {
        let desired = Manifest { revision: 1, pods: vec![wanted.clone()], ..Manifest::default() };
        assert_eq!(reconcile(&desired, there(false).into_iter()), [Change::Stop(old.uid)]);
        assert_eq!(reconcile(&desired, there(true).into_iter()), []);
        assert_eq!(reconcile(&desired, std::iter::empty()), [Change::Admit(Box::new(wanted.clone()))]);
    }
    let same = Manifest { revision: 2, pods: vec![old.clone()], ..Manifest::default() };
    assert_eq!(reconcile(&same, there(false).into_iter()), []);
}

/// What the model does next.
#[derive(Debug, Clone)]
enum Move {
    /// Wants these pods, each in one of three versions (0: not wanted).
    Want([u8; 3]),
    /// Lets time pass, in seconds.
    Wait(u16),
    /// The n-th thing under way ends well or badly.
    Finish(u8, bool),
    /// The n-th running container exits with this code.
    Exit(u8, i32),
    /// The agent dies and a new one takes over.
    Kill,
}

fn a_move() -> impl Strategy<Value = Move> {
    prop_oneof![
        2 => [0u8..3, 0u8..3, 0u8..3].prop_map(Move::Want),
        4 => (0u16..700).prop_map(Move::Wait),
        8 => (any::<u8>(), prop::bool::weighted(0.8)).prop_map(|(which, well)| Move::Finish(which, well)),
        4 => (any::<u8>(), 0..3i32).prop_map(|(which, code)| Move::Exit(which, code)),
        1 => Just(Move::Kill),
    ]
}

type Key = (Uid, Label);

/// The world: what the device's kernel, init and disk hold.
#[derive(Default)]
struct World {
    now: u64,
    running: BTreeMap<Key, u32>,
    starting: BTreeMap<Key, u32>,
    pulling: BTreeSet<Key>,
    exits: BTreeMap<Key, (u32, i32)>,
    finished: BTreeMap<Key, u32>,
    ended_at: BTreeMap<Key, (u64, u32)>,
    signalled: BTreeMap<Key, u64>,
    removing: BTreeSet<Uid>,
    records: BTreeMap<Uid, PodRecord>,
}

impl World {
    fn obey(&mut self, actions: Vec<(Uid, Action)>) {
        for (uid, action) in actions {
            match action {
                Action::Admit(_) => assert!(!self.records.contains_key(&uid), "admitted over an old one"),
                Action::Record(record) => {
                    self.records.insert(uid, *record);
                }
                Action::Remove { .. } => {
                    assert!(self.running.keys().all(|key| key.0 != uid), "removed while it runs");
                    self.removing.insert(uid);
                }
                Action::Container(name, step) => self.obey_step((uid, name), step),
            }
        }
    }

    fn obey_step(&mut self, key: Key, step: Step) {
        match step {
            Step::Record => unreachable!("the node turns it into an action of the pod"),
            Step::Pull => {
                self.pulling.insert(key);
            }
            Step::Start(attempt) => {
                assert!(!self.running.contains_key(&key), "started twice");
                let record = &self.records[&key.0];
                let mine = record.containers.iter().find(|one| one.name == key.1).unwrap();
                assert!(mine.restarts == attempt && mine.spent, "started before it was recorded");
                if let Some((ended, failures)) = self.ended_at.remove(&key) {
                    let wait = supervise::restart_delay(failures).as_secs();
                    assert!(self.now >= ended + wait, "back-off cut short");
                }
                assert!(self.starting.insert(key, attempt).is_none(), "started twice");
            }
            Step::Signal(attempt) => {
                if self.running.get(&key) == Some(&attempt) {
                    self.signalled.insert(key, self.now);
                }
            }
            Step::Kill(attempt) => {
                if self.running.get(&key) == Some(&attempt) {
                    self.running.remove(&key);
                    self.signalled.remove(&key);
                    self.exits.insert(key, (attempt, 137));
                }
            }
            Step::Finish(attempt) => {
                self.finished.insert(key.clone(), attempt);
                self.exits.remove(&key);
            }
        }
    }

    fn moment(&self) -> Now {
        at(self.now)
    }

    fn give(&mut self, node: &mut Node, key: &Key, event: ContainerEvent) {
        let actions = node.step(Event::Container { pod: key.0, container: key.1.clone(), event }, self.moment());
        self.obey(actions);
    }

    /// Ends one thing that is under way: a pull, a start, a removal, or the telling of an exit.
    fn finish(&mut self, node: &mut Node, which: u8, well: bool) {
        let total = self.pulling.len() + self.starting.len() + self.removing.len() + self.exits.len();
        if total == 0 {
            return;
        }
        let mut index = usize::from(which) % total;
        if let Some(key) = self.pulling.iter().nth(index).cloned() {
            self.pulling.remove(&key);
            let event = if well {
                ContainerEvent::ImageReady
            } else {
                ContainerEvent::ImageFailed(ImageFailure::Pull("no".to_owned()))
            };
            return self.give(node, &key, event);
        }
        index -= self.pulling.len();
        if let Some((key, attempt)) = self.starting.iter().nth(index).map(|(key, attempt)| (key.clone(), *attempt)) {
            self.starting.remove(&key);
            let event = if well {
                self.running.insert(key.clone(), attempt);
                ContainerEvent::Started { attempt }
            } else {
                let failure = NotStarted::NotCreated { reason: "CreateContainerError", message: "no".to_owned() };
                ContainerEvent::NotStarted { attempt, failure }
            };
            return self.give(node, &key, event);
        }
        index -= self.starting.len();
        if let Some(uid) = self.removing.iter().nth(index).copied() {
            self.removing.remove(&uid);
            self.records.remove(&uid);
            let actions = node.step(Event::PodRemoved(uid), self.moment());
            return self.obey(actions);
        }
        index -= self.removing.len();
        if let Some((key, (attempt, code))) = self.exits.iter().nth(index).map(|(key, end)| (key.clone(), *end)) {
            self.exits.remove(&key);
            let before = node.container(key.0, &key.1).cloned();
            self.give(node, &key, ContainerEvent::Exited { attempt, outcome: exit(code) });
            let after = node.container(key.0, &key.1);
            if let (Some(before), Some(after)) = (before, after)
                && matches!(before.phase, Phase::Running { .. })
            {
                assert_eq!(after.last.as_ref().map(|end| end.exit_code), Some(code), "an exit was lost");
                self.ended_at.insert(key, (self.now, after.failures));
            }
        }
    }

    /// A new agent from what is durable and what init holds.
    fn kill_agent(&mut self, desired: &Manifest) -> Node {
        let mut node = Node::new(Uid::default());
        self.pulling.clear();
        self.starting.clear();
        self.removing.clear();
        for record in self.records.values() {
            let uid = record.pod.uid;
            let (running, exits) = (&self.running, &self.exits);
            let found = |name: &Label, attempt: u32| {
                let key = (uid, name.clone());
                let held = running.get(&key) == Some(&attempt) || exits.get(&key).is_some_and(|end| end.0 == attempt);
                if held { Found::Held { since: Duration::ZERO, started_at: 0 } } else { Found::Nothing }
            };
            node.adopt(record.clone(), found, self.moment());
        }
        let actions = node.step(Event::Manifest(desired.clone()), self.moment());
        self.obey(actions);
        node
    }
}

fn wanted(versions: [u8; 3], revision: u64) -> Manifest {
    let pods = versions.iter().enumerate().filter(|(_, version)| **version > 0).map(|(index, version)| {
        let number = u8::try_from(index).unwrap() + 1;
        let mut pod = pod(number, &format!("pod{number}"), &["a", "b"]);
        pod.containers[0].args = vec![version.to_string()];
        pod
    });
    Manifest { revision, pods: pods.collect(), ..Manifest::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_started_twice_lost_or_hurried(moves in prop::collection::vec(a_move(), 1..120)) {
        let mut world = World::default();
        let mut node = Node::new(Uid::default());
        let mut desired = Manifest::default();
        for one in moves {
            match one {
                Move::Want(versions) => {
                    desired = wanted(versions, desired.revision + 1);
                    let actions = node.step(Event::Manifest(desired.clone()), world.moment());
                    world.obey(actions);
                }
                Move::Wait(seconds) => {
                    // The clock stops at every deadline on the way, as the agent's timer does.
                    let goal = world.now + u64::from(seconds);
                    while let Some(next) = node.deadline().map(|at| at.as_secs()).filter(|at| *at <= goal) {
                        world.now = world.now.max(next);
                        let actions = node.step(Event::Timer, world.moment());
                        world.obey(actions);
                    }
                    world.now = goal;
                }
                Move::Finish(which, well) => world.finish(&mut node, which, well),
                Move::Exit(which, code) => {
                    let index = usize::from(which) % world.running.len().max(1);
                    if let Some(key) = world.running.keys().nth(index).cloned() {
                        let attempt = world.running.remove(&key).unwrap();
                        world.signalled.remove(&key);
                        world.exits.insert(key, (attempt, code));
                    }
                }
                Move::Kill => {
                    world.ended_at.clear();
                    world.signalled.clear();
                    node = world.kill_agent(&desired);
                }
            }
            for (key, since) in &world.signalled {
                prop_assert!(world.now <= since + 30, "{key:?} outlived its grace");
            }
        }
        // Left alone with everything going well, the node comes to what is wanted.
        for round in 0..400 {
            world.now += 301;
            let actions = node.step(Event::Timer, world.moment());
            world.obey(actions);
            for _ in 0..20 {
                world.finish(&mut node, round as u8, true);
            }
        }
        let goal: BTreeSet<Key> = desired.pods.iter()
            .flat_map(|pod| pod.containers.iter().map(|container| (pod.uid, container.name.clone())))
            .collect();
        prop_assert_eq!(world.running.keys().cloned().collect::<BTreeSet<_>>(), goal);
    }
}
