//! Limits and the end of whole groups.

use super::support::{Ground, cannot_run, shell};
use crate::{Cgroup, CgroupError, CgroupPath, Exit, Limits, host_cgroups, wait};
use std::io::{BufRead, BufReader};

/// Finds the cgroup of a ground again.
fn open(ground: &Ground) -> Result<Cgroup, CgroupError> {
    Cgroup::open(&host_cgroups().unwrap(), &CgroupPath::below_root(&ground.name).unwrap())
}

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
    let stats = cgroup.stats().unwrap();
    assert_eq!((stats.memory.usage.limit, stats.pids.limit), (64 << 20, 33));
    // The kernel's refusal names limit, file and value, and keeps its reason.
    let error = cgroup.update(&Limits { pids: Some(1 << 40), ..Limits::default() }.resources()).unwrap_err();
    assert!(error.to_string().contains("linux.resources.pids.limit: \"1099511627776\" into /"), "{error}");
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
        assert!(matches!(open(&ground), Err(CgroupError::Missing { .. })));
    }
}

#[test]
fn a_cgroup_in_use_is_not_taken_over() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let path = CgroupPath::below_root(&ground.name).unwrap();
    let again = || Cgroup::create(&host_cgroups().unwrap(), &path, &Limits::default().resources());
    again().unwrap();
    let (started, _output) = ground.start(&shell("exec busybox sleep 1000")).unwrap();
    match again() {
        Err(CgroupError::Busy { processes, .. }) => assert_eq!(processes, [started.pid]),
        other => panic!("{other:?}"),
    }
    assert_eq!(open(&ground).unwrap().processes().unwrap(), [started.pid]);
    open(&ground).unwrap().kill().unwrap();
    wait(&started).unwrap();
}
