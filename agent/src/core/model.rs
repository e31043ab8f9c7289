//! The core against a small model of the world: a device that does what it is told, in every order that can
//! happen, and notes whether any promise is broken.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use skeg_protocol::manifest::{Condition, Dependency, Handler, Probe, RestartPolicy};

use super::supervise::restart_delay;
use super::tests::{at, exit, pod};
use super::*;

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
        12 => (any::<u8>(), prop::bool::weighted(0.8)).prop_map(|(which, well)| Move::Finish(which, well)),
        4 => (any::<u8>(), 0..3i32).prop_map(|(which, code)| Move::Exit(which, code)),
        1 => Just(Move::Kill),
    ]
}

type Key = (Uid, Label);

/// Something that the device is doing and will tell of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Work {
    Pull(Key),
    Start(Key, u32),
    Exit(Key, u32, i32),
    Probe(Key, u32, ProbeKind),
    Hook(Key, u32, bool),
    Remove(Uid),
    Fetch(Uid, Label),
}

/// The world: what the device's kernel, init and disk hold.
#[derive(Default)]
struct World {
    now: u64,
    work: BTreeSet<Work>,
    running: BTreeMap<Key, u32>,
    exits: BTreeMap<Key, (u32, i32)>,
    ended_at: BTreeMap<Key, (u64, u32)>,
    /// When a container was told to end, and until when it may live.
    told: BTreeMap<Key, u64>,
    records: BTreeMap<Uid, PodRecord>,
    fetching: BTreeMap<Uid, Arc<Pod>>,
    known: BTreeMap<Key, (u32, Known)>,
}

impl World {
    fn moment(&self) -> Now {
        at(self.now)
    }

    fn step(&mut self, node: &mut Node, event: Event) {
        let orders = node.step(event, self.moment());
        self.obey(node, orders);
    }

    fn obey(&mut self, node: &Node, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Pod(uid, Action::Admit(_)) => {
                    assert!(!self.records.contains_key(&uid), "admitted over an old one");
                }
                Order::Pod(uid, Action::Record(record)) => {
                    self.records.insert(uid, *record);
                }
                Order::Pod(uid, Action::Remove { .. }) => {
                    assert!(self.running.keys().all(|key| key.0 != uid), "removed while it runs");
                    self.work.insert(Work::Remove(uid));
                }
                Order::Pod(uid, Action::Container(name, step)) => self.obey_step(node, (uid, name), step),
                Order::Fetch(pod, name) => {
                    self.work.insert(Work::Fetch(pod.uid, name));
                    self.fetching.insert(pod.uid, pod);
                }
                Order::Tell(_) | Order::Judge(_) => {}
            }
        }
    }

    fn obey_step(&mut self, node: &Node, key: Key, step: Step) {
        match step {
            Step::Record | Step::Tell(..) => unreachable!("the node turns it into an order"),
            Step::Pull => {
                self.work.insert(Work::Pull(key));
            }
            Step::Start(attempt) => self.may_start(node, key, attempt),
            Step::Probe(attempt, kind) => {
                let once = self.work.insert(Work::Probe(key, attempt, kind));
                assert!(once, "asked twice at a time");
            }
            Step::Hook(attempt, hook, _) => {
                self.work.insert(Work::Hook(key.clone(), attempt, hook == HookKind::PreStop));
                if hook == HookKind::PreStop && self.running.get(&key) == Some(&attempt) {
                    self.told.insert(key, self.now);
                }
            }
            Step::Note(attempt, known) => {
                self.known.insert(key, (attempt, known));
            }
            Step::Signal(attempt) => {
                if self.running.get(&key) == Some(&attempt) {
                    self.in_order(&key);
                    self.told.entry(key).or_insert(self.now);
                }
            }
            Step::Kill(attempt) => {
                if self.running.get(&key) == Some(&attempt) {
                    self.ends(key, 137);
                }
            }
            Step::Finish(attempt) => {
                if self.exits.get(&key).is_some_and(|end| end.0 == attempt) {
                    self.exits.remove(&key);
                }
                // Nobody is told what was asked of a container that is no more.
                self.work.retain(|work| match work {
                    Work::Probe(other, of, _) | Work::Hook(other, of, _) => *other != key || *of != attempt,
                    _ => true,
                });
            }
        }
    }

    fn may_start(&mut self, node: &Node, key: Key, attempt: u32) {
        assert!(!self.running.contains_key(&key), "started twice");
        let record = &self.records[&key.0];
        let mine = record.containers.iter().find(|one| one.name == key.1).unwrap();
        assert!(mine.restarts == attempt && mine.spent, "started before it was recorded");
        if let Some((ended, failures)) = self.ended_at.remove(&key) {
            assert!(self.now >= ended + restart_delay(failures).as_secs(), "back-off cut short");
        }
        let pod = node.pod(key.0).unwrap();
        if pod.init_containers.iter().all(|one| one.name != key.1) {
            let through = |one: &skeg_protocol::Container| {
                let container = node.container(key.0, &one.name).unwrap();
                let sidecar = one.restart_policy == Some(RestartPolicy::Always);
                let done = matches!(&container.phase, Phase::Ended(end) if end.exit_code == 0);
                done || sidecar && (container.started() || container.last.is_some())
            };
            assert!(pod.init_containers.iter().all(through), "started before the init containers were through");
        }
        let starts = self.work.iter().filter(|work| matches!(work, Work::Start(other, _) if *other == key)).count();
        assert_eq!(starts, 0, "started twice");
        self.work.insert(Work::Start(key, attempt));
    }

    /// A sidecar is signalled only when no main container of its pod runs.
    fn in_order(&self, key: &Key) {
        let pod = &self.records[&key.0].pod;
        let sidecar = pod.init_containers.iter().any(|one| one.name == key.1 && one.restart_policy.is_some());
        let main = |other: &&Key| other.0 == key.0 && pod.containers.iter().any(|one| one.name == other.1);
        let ill = pod.container(&key.1).is_some_and(|one| one.probes.liveness.is_some());
        assert!(!sidecar || ill || !self.running.keys().any(|other| main(&other)), "a sidecar stops before the others");
    }

    fn ends(&mut self, key: Key, code: i32) {
        let Some(attempt) = self.running.remove(&key) else { return };
        self.told.remove(&key);
        self.exits.insert(key.clone(), (attempt, code));
        self.work.insert(Work::Exit(key, attempt, code));
    }

    fn tell(&mut self, node: &mut Node, key: &Key, event: ContainerEvent) {
        self.step(node, Event::Container { pod: key.0, container: key.1.clone(), event });
    }

    /// Ends one thing that is under way.
    fn finish(&mut self, node: &mut Node, which: u8, well: bool) {
        let index = usize::from(which) % self.work.len().max(1);
        let Some(work) = self.work.iter().nth(index).cloned() else { return };
        self.work.remove(&work);
        let answer = || if well { Ok(()) } else { Err("no".to_owned()) };
        match work {
            Work::Pull(key) => {
                let bad = ContainerEvent::ImageFailed(ImageFailure::Pull("no".to_owned()));
                let event = if well { ContainerEvent::ImageReady { check: None } } else { bad };
                self.tell(node, &key, event);
            }
            Work::Start(key, attempt) if well => {
                self.running.insert(key.clone(), attempt);
                self.tell(node, &key, ContainerEvent::Started { attempt });
            }
            Work::Start(key, attempt) => {
                let failure = NotStarted::NotCreated { reason: "CreateContainerError", message: "no".to_owned() };
                self.tell(node, &key, ContainerEvent::NotStarted { attempt, failure });
            }
            Work::Exit(key, attempt, code) => {
                let before = node.container(key.0, &key.1).cloned();
                self.tell(node, &key, ContainerEvent::Exited { attempt, outcome: exit(code) });
                let after = node.container(key.0, &key.1);
                if let (Some(before), Some(after)) = (before, after)
                    && matches!(before.phase, Phase::Running { .. })
                {
                    let end = match &after.phase {
                        Phase::Ended(end) => Some(end),
                        _ => after.last.as_ref(),
                    };
                    assert_eq!(end.map(|end| end.exit_code), Some(code), "an exit was lost");
                    if matches!(after.phase, Phase::Backoff { .. }) {
                        self.ended_at.insert(key, (self.now, after.failures));
                    }
                }
            }
            Work::Probe(key, attempt, kind) => {
                self.tell(node, &key, ContainerEvent::Probed { attempt, kind, answer: answer() });
            }
            Work::Hook(key, attempt, pre_stop) => {
                let hook = if pre_stop { HookKind::PreStop } else { HookKind::PostStart };
                self.tell(node, &key, ContainerEvent::HookDone { attempt, hook, result: answer() });
            }
            Work::Remove(uid) => {
                self.records.remove(&uid);
                // What is admitted next is another pod, even by the same name: an update never waits for a back-off.
                self.ended_at.retain(|key, _| key.0 != uid);
                self.step(node, Event::PodRemoved(uid));
            }
            Work::Fetch(uid, container) => {
                let pod = Arc::clone(&self.fetching[&uid]);
                let result = if well { Ok(()) } else { Err(ImageFailure::Pull("no".to_owned())) };
                self.step(node, Event::Fetched { pod, container, result });
            }
        }
    }

    /// A new agent from what is durable and what init holds.
    fn kill_agent(&mut self, desired: &Arc<Manifest>) -> Node {
        let mut node = Node::new(Uid::default());
        self.work.clear();
        for record in self.records.values() {
            let uid = record.pod.uid;
            let (running, exits, known) = (&self.running, &self.exits, &self.known);
            let found = |name: &Label, attempt: u32| {
                let key = (uid, name.clone());
                let held = running.get(&key) == Some(&attempt) || exits.get(&key).is_some_and(|end| end.0 == attempt);
                let known = known.get(&key).filter(|one| one.0 == attempt).map(|one| one.1).unwrap_or_default();
                let held = held.then_some(Found::Held { since: Duration::ZERO, started_at: 0, known, check: None });
                held.unwrap_or(Found::Nothing)
            };
            node.adopt(record.clone(), found, self.moment());
        }
        for (key, (attempt, code)) in &self.exits {
            self.work.insert(Work::Exit(key.clone(), *attempt, *code));
        }
        self.step(&mut node, Event::Manifest { manifest: Arc::clone(desired), trial: None });
        node
    }

    /// Lets time pass; the clock stops at every deadline on the way, as the agent's timer does.
    fn pass(&mut self, node: &mut Node, seconds: u64) {
        let goal = self.now + seconds;
        let mut turns = 0;
        while let Some(next) = node.deadline().map(|at| at.as_secs() + u64::from(at.subsec_nanos() > 0)) {
            if next > goal {
                break;
            }
            turns += 1;
            assert!(turns < 5_000, "it never rests");
            self.now = self.now.max(next);
            self.step(node, Event::Timer);
        }
        self.now = goal;
    }
}

fn probe(period: u32) -> Probe {
    Probe {
        action: Handler::TcpSocket { host: None, port: 80 },
        initial_delay_ms: 3_000,
        period_ms: period * 1_000,
        timeout_ms: 1_000,
        success_threshold: 1,
        failure_threshold: 2,
        termination_grace_seconds: None,
    }
}

/// Three pods of different kinds, each in its version: with an init container and a sidecar, with probes and hooks,
/// and one that depends on the first.
fn wanted(versions: [u8; 3], revision: u64) -> Arc<Manifest> {
    let pods = (1u8..).zip(versions).filter(|(_, version)| *version > 0).map(|(number, version)| {
        let mut one = pod(number, &format!("pod{number}"), &["a", "b"]);
        one.containers[0].args = vec![version.to_string()];
        match number {
            1 => {
                one.init_containers = pod(number, "", &["init", "side"]).containers;
                one.init_containers[1].restart_policy = Some(RestartPolicy::Always);
            }
            2 => {
                one.containers[0].probes.liveness = Some(probe(10));
                one.containers[0].lifecycle.pre_stop = Some(Handler::Sleep { seconds: 1 });
                one.containers[1].probes.readiness = Some(probe(7));
                one.containers[1].lifecycle.post_start = Some(Handler::Sleep { seconds: 1 });
            }
            _ => {
                let dependency =
                    Dependency { pod: "pod1".try_into().unwrap(), condition: Condition::Started, optional: true };
                one.depends_on = vec![dependency];
            }
        }
        one
    });
    Arc::new(Manifest { revision, pods: pods.collect(), ..Manifest::default() })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_started_twice_lost_or_hurried(moves in prop::collection::vec(a_move(), 1..120)) {
        let mut world = World::default();
        let mut node = Node::new(Uid::default());
        let mut desired = Arc::new(Manifest::default());
        for one in moves {
            match one {
                Move::Want(versions) => {
                    desired = wanted(versions, desired.revision + 1);
                    world.step(&mut node, Event::Manifest { manifest: Arc::clone(&desired), trial: None });
                }
                Move::Wait(seconds) => world.pass(&mut node, seconds.into()),
                Move::Finish(which, well) => world.finish(&mut node, which, well),
                Move::Exit(which, code) => {
                    let index = usize::from(which) % world.running.len().max(1);
                    if let Some(key) = world.running.keys().nth(index).cloned() {
                        world.ends(key, code);
                    }
                }
                Move::Kill => {
                    world.ended_at.clear();
                    world.told.clear();
                    node = world.kill_agent(&desired);
                }
            }
            for (key, since) in &world.told {
                prop_assert!(world.now <= since + 30, "{key:?} outlived its grace");
            }
        }
        // Left alone with everything going well, the node comes to what is wanted. An init container does its work.
        for _ in 0..60 {
            world.pass(&mut node, 301);
            for _ in 0..40 {
                world.finish(&mut node, 0, true);
                if let Some(init) = world.running.keys().find(|key| key.1 == "init").cloned() {
                    world.ends(init, 0);
                }
            }
        }
        let goal: BTreeSet<Key> = desired.pods.iter()
            .flat_map(|pod| pod.all_containers().map(|container| (pod.uid, container.name.clone())))
            .filter(|key| key.1 != "init")
            .collect();
        prop_assert_eq!(world.running.keys().cloned().collect::<BTreeSet<_>>(), goal);
    }
}
