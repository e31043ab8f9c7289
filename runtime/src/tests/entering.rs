//! Entering a running container, and whose child a process becomes.

use super::support::{Ground, cannot_run, change_process, shell, with_arguments};
use crate::{
    ExecRequest, Exit, Limits, Reaper, StartError, Started, Stdio, capabilities, exec, oci, receive_terminal,
    resize_terminal, terminal_pair, wait,
};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

pub(super) fn enter(
    ground: &Ground,
    target: &Started,
    spec: &oci::Spec,
    process: &oci::Process,
) -> Result<(Exit, String), StartError> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdio =
        Stdio { stdin: File::open("/dev/null").unwrap().into(), stdout: write.try_clone().unwrap(), stderr: write };
    let cgroup = ground.cgroup.as_ref();
    let started = exec(ExecRequest {
        target: target.pidfd.as_fd(),
        process,
        spec,
        state: None,
        cgroup,
        stdio,
        reaper: Reaper::Caller,
        console: None,
        preserve_fds: 0,
        keyring: None,
        patience: None,
    })?;
    let mut output = String::new();
    File::from(read).read_to_string(&mut output).unwrap();
    Ok((wait(&started).unwrap(), output))
}

fn sleeper(ground: &Ground) -> (oci::Spec, Started) {
    let mut spec = with_arguments(&["/bin/busybox", "sleep", "1000"]);
    spec.set_hostname(Some("kiln".into()));
    let (started, _) = ground.start(&spec).unwrap();
    (spec, started)
}

#[test]
fn a_second_process_enters_all_of_the_container() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let (spec, target) = sleeper(&ground);
    let line = "busybox hostname; busybox ls /proc | busybox grep -c '^[0-9]'; busybox cat /proc/1/comm; \
                busybox grep -E '^(CapEff|CapInh|NoNewPrivs|Seccomp:)' /proc/self/status; busybox ls /proc/self/fd; \
                busybox readlink /proc/self/ns/pid; busybox readlink /proc/1/ns/pid; exit 3";
    let (exit, output) = enter(&ground, &target, &spec, shell(line).process().as_ref().unwrap()).unwrap();
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(exit, Exit::Code(3));
    assert_eq!(lines[..1], ["kiln"], "{output}");
    assert_eq!(lines[2], "busybox");
    let held = capabilities::bits(Some(&capabilities::DEFAULT.into_iter().collect()));
    let effective = format!("CapEff:\t{held:016x}");
    assert_eq!(lines[3..7], ["CapInh:\t0000000000000000", &effective, "NoNewPrivs:\t1", "Seccomp:\t2"], "{output}");
    assert_eq!(lines[7..11], ["0", "1", "2", "3"], "{output}");
    assert_eq!(lines[11], lines[12], "{output}");
}

#[test]
fn an_exec_runs_on_its_cpus() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let (spec, target) = sleeper(&ground);
    let on = |affinity: serde_json::Value| {
        let process = change_process(shell("busybox grep Cpus_allowed_list /proc/self/status"), |process| {
            process.set_exec_cpu_affinity(Some(serde_json::from_value(affinity).unwrap()));
        });
        enter(&ground, &target, &spec, process.process().as_ref().unwrap()).map(|(_, output)| output)
    };
    assert_eq!(on(serde_json::json!({"final": "0"})).unwrap(), "Cpus_allowed_list:\t0\n");
    assert_eq!(on(serde_json::json!({"initial": "0"})).unwrap(), "Cpus_allowed_list:\t0\n");
    let error = on(serde_json::json!({"final": "8191"})).unwrap_err().to_string();
    assert!(error.contains("run on CPUs"), "{error}");
}

#[test]
fn cve_2022_29162_an_exec_inherits_no_capabilities() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let (spec, target) = sleeper(&ground);
    let line = "busybox grep -E '^Cap(Inh|Amb)' /proc/self/status";
    let process = change_process(shell(line), |process| {
        process.set_capabilities(Some(oci::LinuxCapabilities::default()));
    });
    let (_, output) = enter(&ground, &target, &spec, process.process().as_ref().unwrap()).unwrap();
    assert_eq!(output, "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n");
}

/// Enters as a user without rights, with every set asked for, and tells the rights of a program of these file capabilities.
fn rights_of_a_user(file_capabilities: Option<[u32; 5]>) -> String {
    let ground = Ground::with_cgroup(&Limits::default());
    let tool = ground.path("root/bin/busybox-with-rights");
    std::fs::copy("/bin/busybox", &tool).unwrap();
    if let Some(words) = file_capabilities {
        let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        rustix::fs::setxattr(&tool, c"security.capability", &value, rustix::fs::XattrFlags::empty()).unwrap();
    }
    let (spec, target) = sleeper(&ground);
    let line = "exec /bin/busybox-with-rights grep -E '^Cap(Prm|Eff)' /proc/self/status";
    let process = change_process(shell(line), |process| {
        let mut capabilities = oci::LinuxCapabilities::default();
        let all = Some(capabilities::DEFAULT.into_iter().collect());
        capabilities.set_inheritable(all.clone()).set_ambient(all.clone()).set_permitted(all.clone()).set_bounding(all);
        process.set_capabilities(Some(capabilities)).set_no_new_privileges(Some(false));
        process.set_user(oci::UserBuilder::default().uid(7_u32).gid(8_u32).build().unwrap());
    });
    let (exit, output) = enter(&ground, &target, &spec, process.process().as_ref().unwrap()).unwrap();
    assert_eq!(exit, Exit::Code(0), "{output}");
    output
}

const NO_RIGHTS: &str = "CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n";

/// What is inheritable on exec becomes permitted in any program whose file says so; capabilities(7).
#[test]
fn cve_2022_27650_a_file_gives_an_exec_no_capabilities() {
    if cannot_run() {
        return;
    }
    // VFS_CAP_REVISION_2 with the effective bit, nothing permitted, and all inheritable; linux/capability.h.
    assert_eq!(rights_of_a_user(Some([0x0200_0001, 0, u32::MAX, 0, 0])), NO_RIGHTS);
}

#[test]
fn cve_2025_27612_an_exec_of_a_user_has_no_ambient_capabilities() {
    if cannot_run() {
        return;
    }
    assert_eq!(rights_of_a_user(None), NO_RIGHTS);
}

/// A folder reached through a descriptor of the host's.
#[test]
fn cve_2024_21626_no_descriptor_leads_out_of_the_container() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let (spec, target) = sleeper(&ground);
    let leak = File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    for folder in [format!("/proc/self/fd/{}", leak.as_raw_fd()), "/proc/self/fd/3".into(), "/proc/1/cwd/..".into()] {
        let process = change_process(shell("busybox ls /proc/self/fd; busybox ls bin"), |process| {
            process.set_cwd(folder.clone().into());
        });
        match enter(&ground, &target, &spec, process.process().as_ref().unwrap()) {
            Err(StartError::Step { step, .. }) => assert!(step.contains("enter working folder"), "{step}"),
            Ok((_, output)) => assert!(output.starts_with("0\n1\n2\n3\nbusybox\n"), "{folder}: {output}"),
            Err(other) => panic!("{folder}: {other}"),
        }
    }
}

#[test]
fn a_missing_command_or_folder_is_named() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let (spec, target) = sleeper(&ground);
    let missing = with_arguments(&["nosuchthing", "-x"]);
    let error = enter(&ground, &target, &spec, missing.process().as_ref().unwrap()).unwrap_err();
    assert!(error.to_string().starts_with("cannot run command \"nosuchthing\" (looked in /usr/local/sbin:"), "{error}");
    let lost = change_process(shell("true"), |process| {
        process.set_cwd("/no/such/folder".into());
    });
    let error = enter(&ground, &target, &spec, lost.process().as_ref().unwrap()).unwrap_err();
    assert!(error.to_string().ends_with("enter working folder /no/such/folder"), "{error}");
}

/// Root in a container sees whoever enters it, and can stop it before it runs its program.
#[test]
fn an_exec_that_the_container_stops_is_given_up() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let (spec, target) = sleeper(&ground);
    let null = || File::open("/dev/null").unwrap().into();
    let patience = std::time::Duration::from_millis(100);
    let wanted = shell("true");
    let request = ExecRequest {
        target: target.pidfd.as_fd(),
        process: wanted.process().as_ref().unwrap(),
        spec: &spec,
        state: None,
        cgroup: ground.cgroup.as_ref(),
        stdio: Stdio { stdin: null(), stdout: null(), stderr: null() },
        reaper: Reaper::Caller,
        console: None,
        preserve_fds: 0,
        keyring: None,
        patience: Some(patience),
    };
    let held = crate::exec::duplicate(target.pidfd.as_fd()).unwrap();
    let mut plan = crate::exec::compile(request, &held).unwrap();
    plan.steps.insert(plan.steps.len() - 1, crate::step::Step::Stop);
    let error = crate::exec::start_inside(plan, &held, None).unwrap_err();
    assert!(matches!(error, StartError::Silent { patience: told } if told == patience), "{error}");
    assert_eq!(ground.cgroup.as_ref().unwrap().processes().unwrap(), [target.pid]);
}

#[test]
fn a_terminal_is_one_of_the_container_s() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    let (spec, target) = sleeper(&ground);
    let process = change_process(
        shell("busybox tty; busybox stty size; read x; echo got $x; busybox stat -c %u $(busybox tty)"),
        |process| {
            process
                .set_terminal(Some(true))
                .set_console_size(Some(oci::BoxBuilder::default().height(33_u64).width(99_u64).build().unwrap()));
            process.set_user(oci::UserBuilder::default().uid(7_u32).gid(8_u32).build().unwrap());
        },
    );
    let (console, receiver) = terminal_pair().unwrap();
    let null = || File::open("/dev/null").unwrap().into();
    let request = ExecRequest {
        target: target.pidfd.as_fd(),
        process: process.process().as_ref().unwrap(),
        spec: &spec,
        state: None,
        cgroup: ground.cgroup.as_ref(),
        stdio: Stdio { stdin: null(), stdout: null(), stderr: null() },
        reaper: Reaper::Caller,
        console: Some(console),
        preserve_fds: 0,
        keyring: None,
        patience: None,
    };
    let started = exec(request).unwrap();
    let master = receive_terminal(&receiver).unwrap();
    let mut keyboard = File::from(master.try_clone().unwrap());
    let mut screen = BufReader::new(File::from(master));
    let mut line = || {
        let mut line = String::new();
        screen.read_line(&mut line).unwrap();
        line.trim_end().to_string()
    };
    assert_eq!(line(), "/dev/pts/0");
    assert_eq!(line(), "33 99");
    resize_terminal(keyboard.as_fd(), 44, 111).unwrap();
    let size = rustix::termios::tcgetwinsize(&keyboard).unwrap();
    assert_eq!((size.ws_row, size.ws_col), (44, 111));
    keyboard.write_all(b"tea\n").unwrap();
    assert_eq!(line(), "tea");
    assert_eq!(line(), "got tea");
    assert_eq!(line(), "7");
    assert_eq!(wait(&started).unwrap(), Exit::Code(0));
}

/// Runs the calling test, named in full, once more in a process of its own, and returns what that printed. `None` in that
/// process: it is to do its part.
pub(super) fn in_a_process_of_its_own(test: &str) -> Option<String> {
    const MARK: &str = "SKEG_TEST_IN_A_PROCESS_OF_ITS_OWN";
    if std::env::var_os(MARK).is_some() {
        return None;
    }
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program).args(["--exact", test, "--nocapture"]).env(MARK, "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_process_can_become_the_child_of_the_caller_s_parent() {
    if cannot_run() {
        return;
    }
    let name = "tests::entering::a_process_can_become_the_child_of_the_caller_s_parent";
    let Some(text) = in_a_process_of_its_own(name) else {
        let mut ground = Ground::new();
        ground.reaper = Reaper::CallersParent;
        let (started, mut output) = ground.start(&shell("exit 9")).unwrap();
        output.read_to_end(&mut Vec::new()).unwrap();
        println!("sibling is {} ", started.pid);
        return;
    };
    let pid = text.split_once("sibling is ").unwrap().1.split_whitespace().next().unwrap();
    let pid = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    let (_, status) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(9));
}

#[test]
fn a_protected_program_runs_from_a_read_only_mount() {
    if cannot_run() {
        return;
    }
    let Some(text) = in_a_process_of_its_own("tests::entering::a_protected_program_runs_from_a_read_only_mount") else {
        crate::protect_executable().unwrap();
        let file = File::open("/proc/self/exe").unwrap();
        let flags = rustix::fs::fstatvfs(file).unwrap().f_flag;
        println!("protected {} ", flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        return;
    };
    assert!(text.contains("protected true"), "{text}");
}
