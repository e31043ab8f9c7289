//! Limits and the end of whole groups.

use super::support::{Ground, cannot_run, shell};
use crate::{Cgroup, CgroupError, Exit, Limits, wait};
use std::io::{BufRead, BufReader};

#[test]
fn death_by_memory_is_told_from_any_other() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits { memory_bytes: Some(24 << 20), ..Limits::default() });
    let cgroup = ground.cgroup.as_ref().unwrap();
    assert_eq!(ground.run("true").exit, Exit::Code(0));
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    // tail remembers its last line, and this one never ends.
    let outcome = ground.run("exec busybox tail /dev/zero");
    assert_eq!(outcome.exit, Exit::Signal(libc::SIGKILL));
    // Version 2 of Linux 6.1 counts one such death twice.
    assert!(cgroup.oom_kills().unwrap() >= 1);
    assert!(cgroup.memory_usage().unwrap().is_some());
}

#[test]
fn the_number_of_processes_is_bounded() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits { pids: Some(4), ..Limits::default() });
    let outcome = ground.run("for i in 1 2 3 4 5 6; do busybox sleep 1000 & done 2>&1; kill -9 -1");
    assert!(outcome.output.contains("can't fork"), "{}", outcome.output);
}

#[test]
fn limits_are_what_the_kernel_says_they_are() {
    if cannot_run() {
        return;
    }
    let limits = Limits { memory_bytes: Some(64 << 20), cpu_millis: Some(250), pids: Some(33) };
    let ground = Ground::with_cgroup(&limits);
    let cgroup = ground.cgroup.as_ref().unwrap();
    let told = cgroup.read_limits_for_test();
    assert_eq!(told, (Some("67108864".into()), Some("25000 100000".into()), Some("33".into())));
    // The kernel's refusal names limit, file and value, and keeps its reason.
    let error = cgroup.set_limits(&Limits { pids: Some(u64::MAX), ..Limits::default() }).unwrap_err();
    assert!(error.to_string().contains("limit pids = 18446744073709551615 in /"), "{error}");
    let CgroupError::Limit { source, .. } = error else { panic!("{error}") };
    assert_eq!(source.raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn killing_takes_every_process() {
    if cannot_run() {
        return;
    }
    for at_once in [true, false] {
        let ground = Ground::with_cgroup(&Limits { pids: Some(64), ..Limits::default() });
        let cgroup = ground.cgroup.as_ref().unwrap();
        // Each process that ends starts two: a bomb, bounded by the limit.
        let bomb = "f() { f & f & busybox sleep 1000; }; f 2> /dev/null & echo ready; wait; busybox sleep 1000";
        let (started, output) = ground.start(&shell(bomb)).unwrap();
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        if at_once {
            cgroup.kill().unwrap();
        } else {
            cgroup.kill_one_by_one().unwrap();
        }
        assert_eq!(wait(&started).unwrap(), Exit::Signal(libc::SIGKILL));
        cgroup.remove().unwrap();
        assert_eq!(cgroup.processes().unwrap(), Vec::<i32>::new());
        assert!(matches!(Cgroup::open(cgroup.name()), Err(CgroupError::Missing { .. })));
    }
}

#[test]
fn a_cgroup_in_use_is_not_taken_over() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let name = ground.cgroup.as_ref().unwrap().name();
    Cgroup::create(name, &Limits::default()).unwrap();
    let (started, _output) = ground.start(&shell("exec busybox sleep 1000")).unwrap();
    match Cgroup::create(name, &Limits::default()) {
        Err(CgroupError::Busy { processes, .. }) => assert_eq!(processes, [started.pid]),
        other => panic!("{other:?}"),
    }
    assert_eq!(Cgroup::open(name).unwrap().processes().unwrap(), [started.pid]);
    Cgroup::open(name).unwrap().kill().unwrap();
    wait(&started).unwrap();
}
