//! What goes wrong is told by name, and leaves nothing behind.

use super::entering::in_a_process_of_its_own;
use super::support::{
    Ground, cannot_map_ids, cannot_run, change_linux, change_process, mount, shell, with_arguments, with_mounts,
};
use crate::step::Step;
use crate::{
    Exit, Extras, HookState, Limits, Plan, PlanError, StartError, StartRequest, bind_start_socket, is_waiting, oci,
    receive_terminal, start_waiting, terminal_pair, wait,
};
use serde_json::json;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

#[test]
fn a_missing_command_is_named() {
    if cannot_run() {
        return;
    }
    let message = |arguments: &[&str]| {
        let Err(error) = Ground::new().run_spec(&with_arguments(arguments)) else { panic!("it runs") };
        (error.to_string(), std::error::Error::source(&error).unwrap().to_string())
    };
    let (told, reason) = message(&["nosuchthing"]);
    assert!(told.starts_with("cannot run command \"nosuchthing\" (looked in /usr/local/sbin:"), "{told}");
    assert!(reason.contains("No such file"), "{reason}");
    assert_eq!(message(&["/bin/nosuchthing"]).0, "cannot run command \"/bin/nosuchthing\"");
    // A folder may not be run, which is another thing than not being there.
    assert!(message(&["/etc"]).1.contains("Permission denied"));
}

#[test]
fn a_file_without_the_right_to_run_is_told_apart() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    fs::write(ground.path("root/bin/plain"), "text").unwrap();
    fs::set_permissions(ground.path("root/bin/plain"), fs::Permissions::from_mode(0o644)).unwrap();
    let Err(StartError::Command { command, source, .. }) = ground.run_spec(&with_arguments(&["plain"])) else {
        panic!("it runs")
    };
    assert_eq!((command.as_str(), source.raw_os_error()), ("plain", Some(libc::EACCES)));
}

#[test]
fn a_working_folder_that_is_none_is_named() {
    if cannot_run() {
        return;
    }
    let spec = change_process(shell("true"), |process| {
        process.set_cwd("/bin/busybox".into());
    });
    let Err(error) = Ground::new().run_spec(&spec) else { panic!("it runs") };
    assert!(error.to_string().ends_with("enter working folder /bin/busybox"), "{error}");
}

/// CVE-2024-21626: a working folder that leads through a descriptor of the caller's out of the root.
#[test]
fn a_working_folder_outside_the_root_is_refused() {
    if cannot_run() {
        return;
    }
    let host = fs::File::open("/").unwrap();
    rustix::io::fcntl_setfd(&host, rustix::io::FdFlags::empty()).unwrap();
    for number in 3..40 {
        let spec = change_process(shell("busybox ls /proc/1/cwd"), |process| {
            process.set_cwd(format!("/proc/self/fd/{number}").into());
        });
        assert!(Ground::new().run_spec(&spec).is_err(), "{number}");
    }
}

#[test]
fn a_symlinked_dev_or_proc_is_refused() {
    if cannot_run() {
        return;
    }
    for name in ["dev", "proc", "sys"] {
        let ground = Ground::new();
        symlink("/etc", ground.path("root").join(name)).unwrap();
        let Err(StartError::Step { step, source, .. }) = ground.run_spec(&shell("true")) else { panic!("it runs") };
        assert_eq!(source.raw_os_error(), Some(libc::ELOOP), "{step}");
        assert!(step.ends_with(&format!("on /{name}")), "{step}");
    }
}

#[test]
fn nothing_is_mounted_inside_proc() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    symlink("/proc/sys", ground.path("root/innocent")).unwrap();
    for destination in ["/proc/self/attr", "/innocent/kernel"] {
        let spec = with_mounts(shell("true"), vec![mount(destination, "tmpfs", "tmpfs", "rw")]);
        let Err(StartError::Step { source, .. }) = ground.run_spec(&spec) else { panic!("it runs") };
        assert!(matches!(source.raw_os_error(), Some(libc::EPERM | libc::ELOOP)), "{source}");
    }
}

#[test]
fn invalid_specifications_are_told_with_place_and_value() {
    let ground = Ground::new();
    let told = |spec| match ground.plan(&spec) {
        Err(StartError::Plan(error @ (PlanError::Invalid { .. } | PlanError::Path { .. } | PlanError::Rule(_)))) => {
            error.to_string()
        }
        other => panic!("{other:?}"),
    };
    let with_one = |destination, kind, source, options| {
        told(with_mounts(shell("true"), vec![mount(destination, kind, source, options)]))
    };
    assert_eq!(with_one("/", "tmpfs", "x", "ro"), "mounts[7].destination: \"/\" must not be the root itself");
    assert_eq!(with_one("/x/..", "tmpfs", "x", "ro"), "mounts[7].destination: \"/x/..\" must not be the root itself");
    assert_eq!(with_one("/x", "bind", "/no/such", "bind"), "mounts[7].source: cannot use /no/such");
    assert_eq!(with_one("/x", "bind", "", "bind"), "mounts[7].source: \"\" must name what is bound");
    let message = with_one("/proc", "tmpfs", "x", "ro");
    assert_eq!(message, "mounts[7].type: \"tmpfs\" must be proc: others trust what /proc says");
    let message = with_one("/x/../proc", "bind", "/etc", "bind");
    assert_eq!(message, "mounts[7].source: \"/etc\" must be a procfs: others trust what /proc says");
    let section = "(runtime-spec, config.md, Process)";
    let empty = format!("process.args: \"\" must begin with the program to run {section}");
    assert_eq!(told(with_arguments(&[])), empty);
    assert_eq!(told(with_arguments(&["a\0b"])), "process.args[0]: \"a\\0b\" must not contain a NUL byte");
    let relative = change_process(shell("true"), |process| {
        process.set_cwd("x".into());
    });
    assert_eq!(told(relative), format!("process.cwd: \"x\" must be an absolute path {section}"));
    let sysctl = change_linux(shell("true"), |linux| {
        linux.set_sysctl(Some([("kernel.panic".to_string(), "1".to_string())].into()));
    });
    assert_eq!(told(sysctl), "linux.sysctl.kernel.panic: \"1\" does not belong to a namespace of this container");
}

/// Puts a failing step at each place of a plan, and looks for what it leaves.
fn fail_everywhere(ground: &Ground, plan: impl Fn() -> Plan) {
    let cgroup = ground.cgroup.as_ref().unwrap();
    for at in 0..plan().steps.len() {
        let mut plan = plan();
        plan.steps.insert(at, Step::Fail);
        match plan.start() {
            Err(StartError::Step { index, step, source }) => {
                assert_eq!((index, step.as_str(), source.raw_os_error()), (at, "fail", Some(libc::EDOTDOT)));
            }
            other => panic!("step {at}: {other:?}"),
        }
        assert_eq!(cgroup.processes().unwrap(), Vec::<i32>::new());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(ground.folder.path().to_str().unwrap()), "{mounts}");
}

#[test]
fn a_failure_at_any_step_leaves_nothing_behind() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let spec = shell("true");
    fail_everywhere(&ground, || ground.plan(&spec).unwrap().0);
    // The ground is still good.
    assert_eq!(ground.run("echo fine").output, "fine\n");
}

#[test]
fn a_failure_at_any_step_of_an_entrance_leaves_nothing_behind() {
    if cannot_map_ids() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    super::namespaces::open(&ground);
    let spec = super::namespaces::in_user_namespace("echo fine");
    fail_everywhere(&ground, || ground.plan(&spec).unwrap().0);
    assert_eq!(ground.run_spec(&spec).unwrap().output, "fine\n");
}

/// Everything at once: an entrance, hooks, attributes, a terminal, a keyring, a start of its own, and then the hooks or the
/// seccomp agent that belong to it. In a process of its own, which then has no child and no descriptor more.
#[test]
fn a_failure_at_any_step_of_a_creation_or_a_start_leaves_nothing_behind() {
    if cannot_map_ids() {
        return;
    }
    let name = "tests::failures::a_failure_at_any_step_of_a_creation_or_a_start_leaves_nothing_behind";
    if in_a_process_of_its_own(name).is_some() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    super::namespaces::open(&ground);
    let mut spec = change_process(super::namespaces::in_user_namespace("true"), |process| {
        process
            .set_terminal(Some(true))
            .set_oom_score_adj(Some(7))
            .set_scheduler(Some(serde_json::from_value(json!({"policy": "SCHED_BATCH"})).unwrap()))
            .set_io_priority(Some(serde_json::from_value(json!({"class": "IOPRIO_CLASS_BE", "priority": 6})).unwrap()));
    });
    spec = change_linux(spec, |linux| {
        linux.set_personality(Some(serde_json::from_value(json!({"domain": "LINUX"})).unwrap()));
        linux.set_sysctl(Some([("net.ipv4.ip_forward".to_string(), "1".to_string())].into()));
    });
    let hook = json!([{"path": "/bin/busybox", "args": ["true"]}]);
    let hooks = json!({"createRuntime": hook, "createContainer": hook, "startContainer": hook});
    spec.set_hooks(Some(serde_json::from_value(hooks).unwrap()));
    fail_at_creation_and_start(&ground, &spec, || ());

    let hooks = json!({"createRuntime": hook, "createContainer": hook});
    spec.set_hooks(Some(serde_json::from_value(hooks).unwrap()));
    let agent = UnixListener::bind(ground.path("agent")).unwrap();
    let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": ground.path("agent"),
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    let spec = change_linux(spec, |linux| {
        linux.set_seccomp(Some(serde_json::from_value(profile).unwrap()));
    });
    // It takes what comes: connections wait in its queue, until it is full.
    agent.set_nonblocking(true).unwrap();
    fail_at_creation_and_start(&ground, &spec, || while agent.accept().is_ok() {});
}

/// What this process holds: its descriptors, and whether it has a child, alive or not.
fn holdings() -> (usize, bool) {
    let children = rustix::process::waitpid(None, rustix::process::WaitOptions::NOHANG);
    (fs::read_dir("/proc/self/fd").unwrap().count(), !matches!(children, Err(rustix::io::Errno::CHILD)))
}

/// Puts a failing step at each place of a plan that waits for its start.
fn fail_at_creation_and_start(ground: &Ground, spec: &oci::Spec, between: impl Fn()) {
    let state = HookState { bundle: "/".into(), ..HookState::default() };
    let socket = ground.path("start");
    let (console, receiver) = terminal_pair().unwrap();
    let create = || {
        let _ = fs::remove_file(&socket);
        let extras = Extras {
            start_socket: Some(bind_start_socket(&socket).unwrap()),
            hooks: Some(&state),
            console: Some(console.try_clone().unwrap()),
            keyring: Some("_ses.kiln".into()),
            ..Extras::default()
        };
        ground.plan_with(spec, extras).unwrap().0
    };
    let cgroup = ground.cgroup.as_ref();
    let plan = create();
    let waits = plan.steps.iter().position(|step| matches!(step, Step::AwaitStart { .. })).unwrap();
    let sends = plan.steps.iter().position(|step| matches!(step, Step::SendTerminal { .. })).unwrap();
    let count = plan.steps.len();
    drop(plan);
    let before = holdings();
    assert!(!before.1);
    for at in 0..count {
        let mut plan = create();
        plan.steps.insert(at, Step::Fail);
        let result = plan.start();
        if at <= waits {
            assert!(matches!(result, Err(StartError::Step { index, .. }) if index == at), "step {at}: {result:?}");
        } else {
            let started = result.unwrap();
            let (pid, target) = (started.pid, started.pidfd.as_fd());
            let error = start_waiting(StartRequest { socket: &socket, pid, target, spec, cgroup, hooks: &state });
            assert!(matches!(error, Err(StartError::Step { index, .. }) if index == at), "step {at}: {error:?}");
            assert_eq!(wait(&started).unwrap(), Exit::Code(127));
            assert!(!is_waiting(&socket).unwrap());
        }
        if at > sends {
            drop(receive_terminal(&receiver).unwrap());
        }
        between();
        assert_eq!(cgroup.unwrap().processes().unwrap(), Vec::<i32>::new());
        assert_eq!(holdings(), before, "step {at}");
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(ground.folder.path().to_str().unwrap()), "{mounts}");
}

#[test]
fn what_would_be_ignored_is_refused() {
    let ground = Ground::new();
    let spec = change_linux(shell("true"), |linux| {
        linux.set_intel_rdt(Some(crate::oci::LinuxIntelRdt::default()));
    });
    let error = ground.plan(&spec).unwrap_err().to_string();
    assert_eq!(error, "linux.intelRdt: \"a value\" is not supported; leave it out");
}
