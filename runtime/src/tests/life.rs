//! Creation and start as two acts, and the hooks around them.

use super::support::{Ground, cannot_run, shell, with_arguments};
use crate::{
    Exit, Extras, HookError, HookState, Limits, StartError, StartRequest, Started, bind_start_socket, is_waiting, oci,
    run_hooks, start_waiting, wait,
};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

fn state() -> HookState {
    HookState { version: "1.2.0".into(), id: "kiln".into(), bundle: "/tmp".into(), ..HookState::default() }
}

/// A container that waits for its start.
struct Created {
    started: Started,
    output: File,
    socket: PathBuf,
}

fn create(ground: &Ground, spec: &oci::Spec) -> Result<Created, StartError> {
    // Longer than the address of a socket may be.
    let folder = ground.path(&"long-".repeat(40));
    fs::create_dir_all(&folder).unwrap();
    let socket = folder.join("start");
    let state = state();
    let extras =
        Extras { start_socket: Some(bind_start_socket(&socket).unwrap()), hooks: Some(&state), ..Extras::default() };
    let (plan, output) = ground.plan_with(spec, extras)?;
    Ok(Created { started: plan.start()?, output, socket })
}

fn start(ground: &Ground, spec: &oci::Spec, created: &Created) -> Result<(), StartError> {
    start_waiting(StartRequest {
        socket: &created.socket,
        pid: created.started.pid,
        target: created.started.pidfd.as_fd(),
        spec,
        cgroup: ground.cgroup.as_ref(),
        hooks: &state(),
    })
}

fn hook(line: &str) -> oci::Hook {
    let arguments = ["sh".to_string(), "-c".into(), line.into()];
    oci::HookBuilder::default().path("/bin/busybox").args(arguments).env(["MARK=made".to_string()]).build().unwrap()
}

fn with_hooks(mut spec: oci::Spec, change: impl FnOnce(&mut oci::Hooks)) -> oci::Spec {
    let mut hooks = oci::Hooks::default();
    change(&mut hooks);
    spec.set_hooks(Some(hooks));
    spec
}

#[test]
fn a_created_container_waits_until_it_is_started_once() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let spec = shell("echo started; exit 5");
    let mut created = create(&ground, &spec).unwrap();
    // Looking does not start it, however often.
    for _ in 0..40 {
        assert!(is_waiting(&created.socket).unwrap());
    }
    start(&ground, &spec, &created).unwrap();
    assert!(!is_waiting(&created.socket).unwrap());
    let mut text = String::new();
    created.output.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), wait(&created.started).unwrap()), ("started\n", Exit::Code(5)));
    assert!(matches!(start(&ground, &spec, &created), Err(StartError::NotWaiting { .. })));
    fs::remove_file(&created.socket).unwrap();
    assert!(!is_waiting(&created.socket).unwrap());
}

#[test]
fn a_created_container_that_is_killed_waits_no_more() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let spec = shell("true");
    let created = create(&ground, &spec).unwrap();
    ground.cgroup.as_ref().unwrap().kill().unwrap();
    assert_eq!(wait(&created.started).unwrap(), Exit::Signal(libc::SIGKILL));
    // Children that other tests have just cloned hold copies of the socket for an instant.
    while is_waiting(&created.socket).unwrap() {}
    assert!(matches!(start(&ground, &spec, &created), Err(StartError::NotWaiting { .. })));
}

#[test]
fn a_missing_program_is_told_at_creation() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    let Err(StartError::Command { command, source, .. }) = create(&ground, &with_arguments(&["nosuchthing"])) else {
        panic!("it waits")
    };
    assert_eq!((command.as_str(), source.raw_os_error()), ("nosuchthing", Some(libc::ENOENT)));
}

#[test]
fn a_program_that_breaks_between_creation_and_start_is_told_at_the_start() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    fs::write(ground.path("root/bin/odd"), "#!/no/such/interpreter").unwrap();
    fs::set_permissions(ground.path("root/bin/odd"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let spec = with_arguments(&["odd"]);
    let created = create(&ground, &spec).unwrap();
    let Err(StartError::Step { step, source, .. }) = start(&ground, &spec, &created) else { panic!("it runs") };
    assert!(step.starts_with("execute \"odd\" from /usr/local/sbin:"), "{step}");
    assert_eq!(source.raw_os_error(), Some(libc::ENOENT));
    assert_eq!(wait(&created.started).unwrap(), Exit::Code(127));
}

/// The order, the namespaces and the state of each hook, by what it writes.
#[test]
fn hooks_run_in_order_and_where_they_belong() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let notes = ground.path("notes");
    let note = |name: &str| {
        let namespaces = "$(busybox readlink /proc/self/ns/uts) $(busybox readlink /proc/self/ns/mnt)";
        hook(&format!(
            "PATH=/bin; echo {name} $MARK {namespaces} >> {0}; busybox cat > {0}.{name}; test -e /only-inside; \
             echo $? >> {0}.{name}",
            notes.display()
        ))
    };
    fs::write(ground.path("root/only-inside"), "").unwrap();
    #[allow(deprecated)]
    let spec = with_hooks(shell("busybox readlink /proc/self/ns/uts; busybox cat /hooked"), |hooks| {
        hooks.set_prestart(Some(vec![note("prestart")]));
        hooks.set_create_runtime(Some(vec![note("createRuntime"), note("second")]));
        hooks.set_create_container(Some(vec![note("createContainer")]));
        let inside = "echo startContainer $MARK $(busybox id -u) $(busybox cat) > /hooked; busybox grep -E 'Seccomp:|CapEff' /proc/self/status >> /hooked";
        hooks.set_start_container(Some(vec![hook(inside)]));
    });
    let mut created = create(&ground, &spec).unwrap();
    let told = fs::read_to_string(&notes).unwrap();
    let lines: Vec<Vec<&str>> = told.lines().map(|line| line.split(' ').collect()).collect();
    let names: Vec<_> = lines.iter().map(|line| line[0]).collect();
    assert_eq!(names, ["prestart", "createRuntime", "second", "createContainer"]);
    let own = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string();
    for line in &lines[..3] {
        assert_eq!(line[1..], ["made", &own("uts"), &own("mnt")]);
    }
    assert!(lines[3][2] != own("uts") && lines[3][3] != own("mnt"), "{told}");
    let outside = format!(
        "{{\"ociVersion\":\"1.2.0\",\"id\":\"kiln\",\"status\":\"created\",\"pid\":{},\"bundle\":\"/tmp\",\"annotations\":{{}}}}1\n",
        created.started.pid
    );
    assert_eq!(fs::read_to_string(ground.path("notes.createRuntime")).unwrap(), outside);
    let inside = outside.replace(&format!("\"pid\":{}", created.started.pid), "\"pid\":1");
    assert_eq!(fs::read_to_string(ground.path("notes.createContainer")).unwrap(), inside);
    start(&ground, &spec, &created).unwrap();
    let mut text = String::new();
    created.output.read_to_string(&mut text).unwrap();
    assert_eq!(wait(&created.started).unwrap(), Exit::Code(0));
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], told.lines().last().unwrap().split(' ').nth(2).unwrap());
    assert_eq!(lines[1], format!("startContainer made 0 {}", inside.trim_end_matches("1\n")));
    assert_eq!(lines[3], "Seccomp:\t2", "{text}");
}

#[test]
fn a_failing_hook_stops_the_container() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let cgroup = ground.cgroup.as_ref().unwrap();
    let fails = || Some(vec![hook("exit 0"), hook("echo the reason >&2; exit 3")]);
    for name in ["prestart", "createRuntime", "createContainer"] {
        let hooks = serde_json::json!({ name: fails().unwrap() });
        let mut spec = shell("true");
        spec.set_hooks(Some(serde_json::from_value(hooks).unwrap()));
        let Err(error) = create(&ground, &spec) else { panic!("{name} is ignored") };
        let expected = format!("hook hooks.{name}[1]: /bin/busybox ended with Code(3): the reason");
        assert_eq!(error.to_string(), expected);
        assert_eq!(cgroup.processes().unwrap(), Vec::<i32>::new());
        fs::remove_file(ground.path(&"long-".repeat(40)).join("start")).unwrap();
    }
    let spec = with_hooks(shell("true"), |hooks| {
        hooks.set_start_container(fails());
    });
    let created = create(&ground, &spec).unwrap();
    let error = start(&ground, &spec, &created).unwrap_err();
    assert!(error.to_string().starts_with("hook hooks.startContainer[1]: "), "{error}");
    assert_eq!(wait(&created.started).unwrap(), Exit::Code(127));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(ground.folder.path().to_str().unwrap()), "{mounts}");
}

#[test]
fn a_hook_beyond_its_timeout_is_killed() {
    if cannot_run() {
        return;
    }
    let mut slow = hook("exec busybox sleep 1000");
    slow.set_timeout(Some(1));
    let Err(HookError::Timeout { at, seconds, .. }) = run_hooks("poststop", &[slow], b"{}") else { panic!("it ran") };
    assert_eq!((at.as_str(), seconds), ("hooks.poststop[0]", 1));
}

/// Its output once went to a file in memory without an end.
#[test]
fn a_hook_that_prints_for_ever_fills_no_memory_and_has_its_timeout() {
    if cannot_run() {
        return;
    }
    let mut chatty = hook("exec busybox yes");
    chatty.set_timeout(Some(1));
    let error = run_hooks("poststop", &[chatty], b"{}").unwrap_err();
    assert!(matches!(error, HookError::Timeout { seconds: 1, .. }), "{error}");
    let verbose = hook("busybox yes | busybox head -c 1000000; echo; echo the end; exit 3");
    let HookError::Failed { output, .. } = run_hooks("poststop", &[verbose], b"{}").unwrap_err() else {
        panic!("it ran")
    };
    assert!(output.len() <= 2050 && output.ends_with("y\n\nthe end"), "{output}");
}

#[test]
fn a_hook_that_is_not_there_is_named() {
    let missing = oci::HookBuilder::default().path(Path::new("/no/such/hook")).build().unwrap();
    let error = run_hooks("poststart", &[missing], b"{}").unwrap_err();
    assert_eq!(error.to_string(), "hook hooks.poststart[0]: cannot run /no/such/hook");
}
