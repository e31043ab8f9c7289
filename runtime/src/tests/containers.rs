//! Whole containers: what a process inside sees, and how it ends.

use super::support::{Ground, cannot_run, shell};
use crate::{Exit, Limits};

#[test]
fn a_command_runs_and_its_exit_code_is_told() {
    if cannot_run() {
        return;
    }
    let outcome = Ground::new().run("echo hello; exit 7");
    assert_eq!((outcome.exit, outcome.output.as_str()), (Exit::Code(7), "hello\n"));
}

#[test]
fn a_death_by_signal_is_told() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let (started, _output) = ground.start(&shell("exec busybox sleep 1000")).unwrap();
    ground.cgroup.as_ref().unwrap().kill().unwrap();
    assert_eq!(crate::wait(&started).unwrap(), Exit::Signal(libc::SIGKILL));
}
