//! What a command line asks for beyond the specification: consoles, kept descriptors, keyrings, roots without a pivot.

use super::entering::in_a_process_of_its_own;
use super::support::{Ground, cannot_run, change_process, mount, shell, with_mounts};
use crate::{Exit, Extras, Limits, StartError, oci, receive_terminal, terminal_pair, wait};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsRawFd;

fn with_terminal(line: &str) -> oci::Spec {
    change_process(shell(line), |process| {
        process.set_terminal(Some(true));
        let size = oci::BoxBuilder::default().height(20_u64).width(70_u64).build().unwrap();
        process.set_console_size(Some(size));
        process.set_user(oci::UserBuilder::default().uid(9_u32).gid(9_u32).build().unwrap());
    })
}

/// Runs with a terminal and returns what is on it.
fn on_terminal(ground: &Ground, spec: &oci::Spec) -> Vec<String> {
    let (console, receiver) = terminal_pair().unwrap();
    let (plan, _) = ground.plan_with(spec, Extras { console: Some(console), ..Extras::default() }).unwrap();
    let started = plan.start().unwrap();
    let screen = BufReader::new(File::from(receive_terminal(&receiver).unwrap()));
    // A master tells the end of the last process by EIO.
    let lines = screen.lines().map_while(Result::ok).map(|line| line.trim_end().to_string()).collect();
    assert_eq!(wait(&started).unwrap(), Exit::Code(0));
    lines
}

#[test]
fn a_terminal_is_made_inside_and_is_the_console() {
    if cannot_run() {
        return;
    }
    let line = "busybox tty; busybox stty size; busybox stat -c %u $(busybox tty); echo there > /dev/console; \
                busybox grep -c ' /dev/console ' /proc/self/mountinfo; busybox ls /proc/self/fd | busybox tr '\\n' ' '; echo";
    let lines = on_terminal(&Ground::with_cgroup(&Limits::default()), &with_terminal(line));
    assert_eq!(lines, ["/dev/pts/0", "20 70", "9", "there", "1", "0 1 2 3"]);
}

#[test]
fn a_terminal_works_in_a_user_namespace() {
    if cannot_run() {
        return;
    }
    let ground = Ground::with_cgroup(&Limits::default());
    super::namespaces::open(&ground);
    let spec = super::namespaces::in_user_namespace("busybox tty; echo there > /dev/console");
    let spec = change_process(spec, |process| {
        process.set_terminal(Some(true));
    });
    assert_eq!(on_terminal(&ground, &spec), ["/dev/pts/0", "there"]);
}

/// The multiplexer that is opened must be a devpts's: an image that covers `/dev/pts` gets no console at all.
#[test]
fn cve_2025_52565_a_false_multiplexer_gets_no_console() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    fs::create_dir(ground.path("false")).unwrap();
    fs::write(ground.path("false/ptmx"), "").unwrap();
    let covering = mount("/dev/pts", "bind", ground.path("false").to_str().unwrap(), "bind");
    let (console, receiver) = terminal_pair().unwrap();
    let spec = with_mounts(with_terminal("true"), vec![covering]);
    let (plan, _) = ground.plan_with(&spec, Extras { console: Some(console), ..Extras::default() }).unwrap();
    let Err(StartError::Step { step, source, .. }) = plan.start() else { panic!("it runs") };
    assert_eq!(
        (step.as_str(), source.raw_os_error()),
        ("open a terminal of 20 rows and 70 columns", Some(libc::ENODEV))
    );
    assert!(receive_terminal(&receiver).is_err());
}

#[test]
fn a_session_keyring_is_the_container_s_own() {
    if cannot_run() || !std::path::Path::new("/proc/keys").exists() {
        return;
    }
    // A keyring outlives its last user for a moment: the name is this run's.
    let name = format!("_ses.kiln-{}", std::process::id());
    let spec = super::support::change_linux(shell(&format!("busybox grep -c {name} /proc/keys")), |linux| {
        linux.set_masked_paths(None);
    });
    let extras = Extras { keyring: Some(name), ..Extras::default() };
    let ground = Ground::new();
    let (plan, mut output) = ground.plan_with(&spec, extras).unwrap();
    let started = plan.start().unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), wait(&started).unwrap()), ("1\n", Exit::Code(0)));
}

#[test]
fn a_root_can_be_moved_instead_of_pivoted() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    let line = "busybox ls /; busybox grep -c . /proc/mounts; busybox mkdir /etc/x; busybox ls -d /etc/../../../etc/x";
    let extras = || Extras { no_pivot: true, ..Extras::default() };
    let (plan, mut output) = ground.plan_with(&shell(line), extras()).unwrap();
    let started = plan.start().unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(wait(&started).unwrap(), Exit::Code(0), "{text}");
    assert!(text.starts_with("bin\ndev\netc\nproc\nsys\n") && text.ends_with("/etc/../../../etc/x\n"), "{text}");
    assert!(ground.path("upper/etc/x").exists());
}

/// Descriptors belong to a whole process, so this one has a process of its own.
#[test]
fn descriptors_are_kept_from_three_on() {
    if cannot_run() {
        return;
    }
    let Some(text) = in_a_process_of_its_own("tests::extras::descriptors_are_kept_from_three_on") else {
        return keep_descriptors();
    };
    assert!(text.contains("kept 0 1 2 3 4 5 three four "), "{text}");
    assert!(text.contains("refused preserve_fds: \"60\" are not all open from 3 on"), "{text}");
}

fn keep_descriptors() {
    let ground = Ground::new();
    for (onto, word) in [(3, "three"), (4, "four")] {
        fs::write(ground.path(word), word).unwrap();
        let file = File::open(ground.path(word)).unwrap();
        // What an engine does before it runs us.
        if file.as_raw_fd() != onto {
            crate::sys::duplicate_onto(file.as_raw_fd(), onto, false).unwrap();
        } else {
            rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
            std::mem::forget(file);
        }
    }
    let line = "echo kept $(busybox ls /proc/self/fd) $(busybox cat <&3) $(busybox cat <&4) ''";
    let (plan, mut output) = ground.plan_with(&shell(line), Extras { preserve_fds: 2, ..Extras::default() }).unwrap();
    let started = plan.start().unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    wait(&started).unwrap();
    println!("{text}");
    let refused = ground.plan_with(&shell("true"), Extras { preserve_fds: 60, ..Extras::default() }).unwrap_err();
    println!("refused {refused}");
}
