//! Whole pods: the order of starts and stops, phases and conditions, dependencies, trials.

use std::collections::{BTreeMap, BTreeSet};

use skeg_protocol::manifest::{Condition, Dependency, RestartPolicy};
use skeg_protocol::status::ConditionKind;
use skeg_protocol::{ContainerState, Phase as PodPhase};

use super::tests::{at, exit, pod};
use super::*;

/// A node and what it asked for; everything that it asks for can be answered by name.
struct Bench {
    node: Node,
    now: u64,
    /// Images that are asked for, for `pod/container`.
    pulls: BTreeSet<String>,
    /// Attempts that run.
    running: BTreeMap<String, u32>,
    /// Containers in the order in which they got their signal.
    signals: Vec<String>,
    removing: Vec<Uid>,
    fetches: Vec<(Arc<Pod>, Label)>,
    verdicts: Vec<Verdict>,
    told: Vec<Happening>,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            node: Node::new(Uid::default()),
            now: 0,
            pulls: BTreeSet::new(),
            running: BTreeMap::new(),
            signals: Vec::new(),
            removing: Vec::new(),
            fetches: Vec::new(),
            verdicts: Vec::new(),
            told: Vec::new(),
        }
    }

    fn give(&mut self, event: Event) {
        let orders = self.node.step(event, at(self.now));
        let name = |node: &Node, uid: Uid, label: &Label| format!("{}/{label}", node.pod(uid).unwrap().name);
        let mut started = Vec::new();
        for order in orders {
            match order {
                Order::Pod(uid, Action::Container(label, step)) => {
                    let key = name(&self.node, uid, &label);
                    match step {
                        Step::Pull => {
                            self.pulls.insert(key);
                        }
                        Step::Start(attempt) => started.push((uid, label, key, attempt)),
                        Step::Signal(_) => self.signals.push(key),
                        _ => {}
                    }
                }
                Order::Pod(uid, Action::Remove { .. }) => self.removing.push(uid),
                Order::Pod(..) => {}
                Order::Fetch(pod, label) => self.fetches.push((pod, label)),
                Order::Tell(happening) => self.told.push(happening),
                Order::Judge(verdict) => self.verdicts.push(verdict),
            }
        }
        for (pod, container, key, attempt) in started {
            self.running.insert(key, attempt);
            self.give(Event::Container { pod, container, event: ContainerEvent::Started { attempt } });
        }
    }

    fn want(&mut self, revision: u64, pods: &[&Pod]) {
        self.want_on_trial(revision, pods, None);
    }

    fn want_on_trial(&mut self, revision: u64, pods: &[&Pod], trial: Option<Trial>) {
        let pods = pods.iter().map(|pod| (*pod).clone()).collect();
        let manifest = Arc::new(Manifest { revision, pods, ..Manifest::default() });
        self.give(Event::Manifest { manifest, trial });
    }

    fn tell(&mut self, key: &str, event: impl FnOnce(u32) -> ContainerEvent) {
        let (pod, container) = key.split_once('/').unwrap();
        let uid = self.node.pods().find(|(one, _)| one.name == pod).unwrap().0.uid;
        let attempt = self.node.container(uid, container).unwrap().restarts;
        self.give(Event::Container { pod: uid, container: container.try_into().unwrap(), event: event(attempt) });
    }

    /// Every image that was asked for is here; what can start, starts.
    fn pulled(&mut self) {
        for key in std::mem::take(&mut self.pulls) {
            self.tell(&key, |_| ContainerEvent::ImageReady { check: None });
        }
    }

    fn exits(&mut self, key: &str, code: i32) {
        assert!(self.running.remove(key).is_some(), "{key} does not run");
        self.tell(key, |attempt| ContainerEvent::Exited { attempt, outcome: exit(code) });
    }

    fn running(&self) -> Vec<&str> {
        self.running.keys().map(String::as_str).collect()
    }

    fn status(&self, name: &str) -> PodStatus {
        self.node.pods().find(|(pod, _)| pod.name == name).unwrap().1
    }

    fn removed(&mut self) {
        for uid in std::mem::take(&mut self.removing) {
            self.give(Event::PodRemoved(uid));
        }
    }
}

/// A pod with two init containers, a sidecar between them, and one main container.
fn whole(policy: RestartPolicy) -> Pod {
    let mut one = pod(1, "web", &["main"]);
    let inits = pod(1, "web", &["first", "proxy", "second"]).containers;
    one.init_containers = inits;
    one.init_containers[1].restart_policy = Some(RestartPolicy::Always);
    one.restart_policy = policy;
    one
}

#[test]
fn init_containers_run_one_after_the_other_and_sidecars_among_them_run_on() {
    let mut bench = Bench::new();
    bench.want(1, &[&whole(RestartPolicy::Always)]);
    bench.pulled();
    assert_eq!(bench.running(), ["web/first"]);
    let status = bench.status("web");
    assert_eq!(status.phase, PodPhase::Pending);
    let ContainerState::Waiting { reason, .. } = &status.containers[0].state else { panic!("{status:?}") };
    assert_eq!(reason, "PodInitializing");
    assert!(!status.is(ConditionKind::Initialized));
    bench.exits("web/first", 0);
    bench.pulled();
    assert_eq!(bench.running(), ["web/proxy"]);
    bench.pulled();
    assert_eq!(bench.running(), ["web/proxy", "web/second"]);
    bench.exits("web/second", 0);
    assert!(bench.status("web").is(ConditionKind::Initialized));
    bench.pulled();
    assert_eq!(bench.running(), ["web/main", "web/proxy"]);
    let status = bench.status("web");
    assert!(status.phase == PodPhase::Running && status.is(ConditionKind::Ready), "{status:?}");
    assert!(status.init_containers.iter().all(|one| one.ready));
    let ContainerState::Terminated(end) = &status.init_containers[0].state else { panic!("{status:?}") };
    assert_eq!(end.reason, "Completed");
}

#[test]
fn an_init_container_that_fails_is_run_again_unless_the_policy_is_never() {
    for (policy, phase) in [(RestartPolicy::Always, PodPhase::Pending), (RestartPolicy::Never, PodPhase::Failed)] {
        let mut bench = Bench::new();
        bench.want(1, &[&whole(policy)]);
        bench.pulled();
        bench.exits("web/first", 1);
        bench.pulled();
        assert_eq!(bench.status("web").phase, phase);
        let again = policy == RestartPolicy::Always;
        assert_eq!(bench.running(), if again { vec!["web/first"] } else { vec![] }, "{policy:?}");
        assert!(!bench.running.contains_key("web/main"));
    }
}

fn start_whole(policy: RestartPolicy) -> Bench {
    let mut bench = Bench::new();
    bench.want(1, &[&whole(policy)]);
    for init in ["web/first", "web/second"] {
        bench.pulled();
        bench.pulled();
        bench.exits(init, 0);
    }
    bench.pulled();
    assert_eq!(bench.running(), ["web/main", "web/proxy"]);
    bench
}

#[test]
fn sidecars_stop_after_the_main_containers() {
    let mut bench = start_whole(RestartPolicy::Always);
    bench.want(2, &[]);
    assert_eq!(bench.signals, ["web/main"]);
    assert!(!bench.status("web").is(ConditionKind::Ready), "a pod that leaves is not ready");
    bench.now = 10;
    bench.exits("web/main", 143);
    assert_eq!(bench.signals, ["web/main", "web/proxy"]);
    // One grace period for all: 30 s from the first stop.
    assert_eq!(bench.node.deadline(), Some(Duration::from_secs(30)));
    assert!(bench.removing.is_empty());
    bench.exits("web/proxy", 143);
    assert_eq!(bench.removing, [Uid([1; 16])]);
}

#[test]
fn a_pod_whose_work_is_done_ends_its_sidecars_and_has_succeeded() {
    let mut bench = start_whole(RestartPolicy::OnFailure);
    bench.exits("web/main", 0);
    assert_eq!(bench.signals, ["web/proxy"]);
    bench.exits("web/proxy", 137);
    let status = bench.status("web");
    assert_eq!(status.phase, PodPhase::Succeeded, "how a sidecar ends does not count");
    let ready = status.conditions.iter().find(|one| one.kind == ConditionKind::Ready).unwrap();
    assert_eq!((ready.holds, ready.reason.as_str()), (false, "PodCompleted"));
    assert_eq!(bench.node.deadline(), None);
}

#[test]
fn a_sidecar_that_dies_is_started_again_without_the_others() {
    let mut bench = start_whole(RestartPolicy::Never);
    bench.exits("web/proxy", 1);
    assert_eq!(bench.running(), ["web/main", "web/proxy"]);
    assert_eq!(bench.status("web").init_containers[1].restarts, 1);
    assert_eq!(bench.status("web").containers[0].restarts, 0);
}

#[test]
fn after_a_reboot_init_containers_run_once_more_and_before_the_others() {
    let bench = start_whole(RestartPolicy::Always);
    let record = bench.node.pods.values().next().unwrap().record(Uid([8; 16]));
    let mut again = Bench::new();
    again.node.adopt(record.clone(), |_, _| panic!("another boot"), at(0));
    again.want(1, &[&whole(RestartPolicy::Always)]);
    again.pulled();
    assert_eq!(again.running(), ["web/first"]);
    let main = &again.status("web").containers[0];
    assert_eq!(main.last.as_ref().map(|end| end.reason.as_str()), Some("NodeReboot"));
    // In the same boot nothing of it runs again.
    let mut same = Bench::new();
    let known = Known { started: true, ready: true };
    let held = Found::Held { since: Duration::ZERO, started_at: 0, known, check: None };
    same.node.adopt(PodRecord { boot: Uid::default(), ..record }, |_, _| held.clone(), at(1));
    same.want(1, &[&whole(RestartPolicy::Always)]);
    assert!(same.pulls.is_empty() && same.status("web").is(ConditionKind::Ready));
}

#[test]
fn a_pod_that_is_active_for_too_long_has_failed() {
    let mut bench = Bench::new();
    let mut one = pod(1, "web", &["a", "b"]);
    one.active_deadline_seconds = Some(60);
    bench.want(1, &[&one]);
    bench.pulled();
    assert_eq!(bench.node.deadline(), Some(Duration::from_secs(60)));
    bench.now = 60;
    bench.give(Event::Timer);
    assert_eq!(bench.signals, ["web/a", "web/b"]);
    bench.exits("web/a", 143);
    bench.exits("web/b", 0);
    let status = bench.status("web");
    assert_eq!((status.phase, status.reason.as_str()), (PodPhase::Failed, "DeadlineExceeded"));
    assert_eq!(bench.running(), Vec::<&str>::new(), "whatever the restart policy says");
    // It stays failed under the next agent.
    let record = bench.node.pods.values().next().unwrap().record(Uid::default());
    let mut again = Bench::new();
    again.node.adopt(record, |_, _| Found::Nothing, at(61));
    again.want(1, &[&one]);
    assert!(again.pulls.is_empty());
    assert_eq!(again.status("web").reason, "DeadlineExceeded");
}

fn depends(number: u8, name: &str, on: &str, condition: Condition) -> Pod {
    let mut one = pod(number, name, &["main"]);
    one.depends_on = vec![Dependency { pod: on.try_into().unwrap(), condition, optional: false }];
    one
}

#[test]
fn depends_on_waits_for_started_healthy_and_completed() {
    let mut bench = Bench::new();
    let mut migrate = pod(1, "migrate", &["main"]);
    migrate.restart_policy = RestartPolicy::Never;
    let db = depends(2, "db", "migrate", Condition::Completed);
    let app = depends(3, "app", "db", Condition::Started);
    let page = depends(4, "page", "app", Condition::Healthy);
    bench.want(1, &[&migrate, &db, &app, &page]);
    bench.pulled();
    assert_eq!(bench.running(), ["migrate/main"]);
    let ContainerState::Waiting { message, .. } = &bench.status("app").containers[0].state.clone() else { panic!() };
    assert!(message.contains("depends on"), "{message}");
    bench.exits("migrate/main", 0);
    bench.pulled();
    bench.pulled();
    bench.pulled();
    assert_eq!(bench.running(), ["app/main", "db/main", "page/main"]);
}

#[test]
fn a_missing_dependency_is_waited_for_unless_it_is_optional() {
    let mut bench = Bench::new();
    let mut app = depends(3, "app", "db", Condition::Started);
    bench.want(1, &[&app]);
    assert!(bench.pulls.is_empty());
    app.depends_on[0].optional = true;
    bench.want(2, &[&app]);
    for (pod, container) in std::mem::take(&mut bench.fetches) {
        bench.give(Event::Fetched { pod, container, result: Ok(()) });
    }
    bench.removed();
    assert!(bench.pulls.contains("app/main"), "{:?}", bench.node);
}

#[test]
fn at_a_shutdown_dependents_stop_first_and_share_the_budget() {
    let mut bench = Bench::new();
    let (db, app) = (pod(1, "db", &["main"]), depends(2, "app", "db", Condition::Started));
    bench.want(1, &[&db, &app]);
    bench.pulled();
    bench.pulled();
    assert_eq!(bench.running(), ["app/main", "db/main"]);
    bench.give(Event::Halt { grace: Duration::from_secs(30) });
    assert_eq!(bench.signals, ["app/main"]);
    assert_eq!(bench.node.deadline(), Some(Duration::from_secs(15)), "half of the budget is the database's");
    bench.now = 15;
    bench.exits("app/main", 137);
    bench.removed();
    assert_eq!(bench.signals, ["app/main", "db/main"]);
    assert_eq!(bench.node.deadline(), Some(Duration::from_secs(30)));
    bench.exits("db/main", 0);
    bench.removed();
    assert!(bench.node.halted());
}

#[test]
fn pods_that_depend_on_each_other_in_a_circle_stop_all_the_same() {
    let mut bench = Bench::new();
    let mut one = depends(1, "one", "two", Condition::Started);
    one.depends_on[0].optional = true;
    let two = depends(2, "two", "one", Condition::Started);
    bench.want(1, &[&one]);
    bench.pulled();
    bench.want(2, &[&one, &two]);
    bench.pulled();
    assert_eq!(bench.running(), ["one/main", "two/main"]);
    bench.want(3, &[]);
    assert_eq!(bench.signals, ["one/main", "two/main"]);
}

#[test]
fn nothing_old_is_stopped_before_the_images_of_the_new_are_here() {
    let mut bench = Bench::new();
    let old = pod(1, "web", &["main"]);
    bench.want(1, &[&old]);
    bench.pulled();
    let heir = pod(2, "web", &["main"]);
    bench.want(2, &[&heir]);
    assert!(bench.signals.is_empty());
    let (pod, container) = bench.fetches.pop().unwrap();
    let failure = ImageFailure::Pull("no route to host".to_owned());
    bench.give(Event::Fetched { pod: Arc::clone(&pod), container: container.clone(), result: Err(failure) });
    assert_eq!(bench.running(), ["web/main"]);
    let told = bench.node.pods().find(|(one, _)| one.uid == heir.uid).unwrap().1;
    let ContainerState::Waiting { reason, .. } = &told.containers[0].state else { panic!("{told:?}") };
    assert_eq!(reason, "ErrImagePull");
    bench.now = 10;
    bench.give(Event::Timer);
    assert_eq!(bench.fetches.len(), 1, "tried again");
    bench.give(Event::Fetched { pod, container, result: Ok(()) });
    assert_eq!(bench.signals, ["web/main"]);
    bench.exits("web/main", 0);
    bench.removed();
    assert_eq!(bench.node.pods().map(|(pod, _)| pod.uid).collect::<Vec<_>>(), [heir.uid]);
}

#[test]
fn an_update_pre_empts_a_crash_loop() {
    let mut bench = Bench::new();
    let mut web = pod(1, "web", &["main"]);
    bench.want(1, &[&web]);
    bench.pulled();
    bench.exits("web/main", 1);
    bench.exits("web/main", 1);
    assert!(bench.node.deadline().is_some() && bench.running().is_empty(), "it backs off");
    web.containers[0].args = vec!["--mended".to_owned()];
    bench.want(2, &[&web]);
    for (pod, container) in std::mem::take(&mut bench.fetches) {
        bench.give(Event::Fetched { pod, container, result: Ok(()) });
    }
    bench.removed();
    bench.pulled();
    assert_eq!((bench.now, bench.running()), (0, vec!["web/main"]), "without waiting for the back-off");
    assert_eq!(bench.status("web").containers[0].restarts, 0);
}

#[test]
fn a_revision_is_good_once_its_new_pods_are_ready_and_bad_at_its_deadline() {
    let (one, two) = (pod(1, "one", &["main"]), pod(2, "two", &["main"]));
    let trial = || Some(Trial { until: Duration::from_secs(60), pods: [two.uid].into() });
    let mut bench = Bench::new();
    bench.want_on_trial(5, &[&one, &two], trial());
    assert_eq!(bench.node.deadline(), Some(Duration::from_secs(60)));
    bench.pulled();
    assert_eq!(bench.verdicts, [Verdict { revision: 5, result: Ok(()) }]);
    let mut bench = Bench::new();
    bench.want_on_trial(6, &[&one, &two], trial());
    bench.now = 60;
    bench.give(Event::Timer);
    let result = Err("not ready in time: default/two".to_owned());
    assert_eq!(bench.verdicts, [Verdict { revision: 6, result }]);
    bench.now = 61;
    bench.give(Event::Timer);
    assert_eq!(bench.verdicts.len(), 1, "a trial ends once");
}

#[test]
fn a_changed_pod_and_a_taken_name_wait_until_the_old_one_is_gone() {
    let old = Arc::new(pod(1, "web", &["main"]));
    let mut changed = pod(1, "web", &["main"]);
    changed.containers[0].args = vec!["-v".to_owned()];
    let heir = pod(2, "web", &["main"]);
    let there = |leaving| [Observed { pod: &old, leaving }].into_iter();
    for wanted in [changed, heir] {
        let wanted = Arc::new(wanted);
        let desired: Wanted = [(wanted.uid, Arc::clone(&wanted))].into();
        let changes = |there, here| reconcile(&desired, there, |_| here);
        assert_eq!(changes(there(false), false), [Change::Fetch(Arc::clone(&wanted))]);
        assert!(matches!(changes(there(false), true)[..], [Change::Stop(uid, _)] if uid == old.uid));
        assert_eq!(changes(there(true), true), []);
        let none: [Observed<'_>; 0] = [];
        assert_eq!(reconcile(&desired, none.into_iter(), |_| false), [Change::Admit(Arc::clone(&wanted))]);
    }
    let same: Wanted = [(old.uid, Arc::new(Pod::clone(&old)))].into();
    assert_eq!(reconcile(&same, there(false), |_| false), []);
}
