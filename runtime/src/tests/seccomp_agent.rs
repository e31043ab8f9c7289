//! A seccomp agent: gets the listener of a container's filter, and answers for the kernel.

use super::support::{Ground, cannot_run, change_linux, change_process, shell, with_arguments};
use crate::{
    ExecRequest, Extras, HookState, Reaper, StartError, StartRequest, Stdio, bind_start_socket, exec, oci, wait,
};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use std::fs::File;
use std::io::{IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

/// A container that makes a folder, which its agent is asked about.
fn asking(path: &Path) -> oci::Spec {
    asked(shell(ASKING), path)
}

const ASKING: &str = "busybox mkdir /asked; echo $?";
const ANSWERED: &str = "mkdir: can't create directory '/asked': Function not implemented\n1\n";

fn asked(spec: oci::Spec, path: &Path) -> oci::Spec {
    let profile = serde_json::json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": path,
        "listenerMetadata": "for the agent",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    });
    change_linux(spec, |linux| {
        linux.set_seccomp(Some(serde_json::from_value(profile).unwrap()));
    })
}

fn state() -> HookState {
    HookState { version: "1.2.0".into(), id: "asker".into(), bundle: "/bundle".into(), ..HookState::default() }
}

fn extras(state: &HookState) -> Extras<'_> {
    Extras { hooks: Some(state), ..Extras::default() }
}

/// Takes one connection: the descriptor, and all of the text.
fn receive(listener: &UnixListener) -> (OwnedFd, serde_json::Value) {
    let (mut connection, _) = listener.accept().unwrap();
    let mut text = vec![0_u8; 16];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut attached = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut text)];
    let read = recvmsg(&connection, parts, &mut attached, RecvFlags::CMSG_CLOEXEC).unwrap().bytes;
    text.truncate(read);
    connection.read_to_end(&mut text).unwrap();
    let mut descriptors = Vec::new();
    for message in attached.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    assert_eq!(descriptors.len(), 1);
    (descriptors.remove(0), serde_json::from_slice(&text).unwrap())
}

#[test]
fn an_agent_gets_the_listener_and_answers() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    let path = ground.path("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let agent = std::thread::spawn(move || {
        let (filter, told) = receive(&listener);
        // Closing the listener answers every question with ENOSYS (seccomp_unotify(2)).
        let name = std::fs::read_link(format!("/proc/self/fd/{}", filter.as_raw_fd())).unwrap();
        (told, name)
    });
    let state = state();
    let (plan, mut output) = ground.plan_with(&asking(&path), extras(&state)).unwrap();
    let started = plan.start().unwrap();
    let mut text = String::new();
    output.read_to_string(&mut text).unwrap();
    assert_eq!(text, ANSWERED);
    wait(&started).unwrap();
    let (told, name) = agent.join().unwrap();
    assert_eq!(name, Path::new("anon_inode:seccomp notify"));
    let expected = serde_json::json!({
        "ociVersion": "1.2.0", "fds": ["seccompFd"], "pid": started.pid, "metadata": "for the agent",
        "state": {"ociVersion": "1.2.0", "id": "asker", "status": "creating", "pid": started.pid, "bundle": "/bundle",
            "annotations": {}},
    });
    assert_eq!(told, expected);
}

/// Whoever creates a container has its agent at hand; whoever starts it may not.
#[test]
fn an_agent_gets_the_listener_when_the_container_is_created() {
    if cannot_run() {
        return;
    }
    for no_new_privileges in [true, false] {
        let ground = Ground::new();
        let (path, socket) = (ground.path("agent.sock"), ground.path("start.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        let spec = change_process(asking(&path), |process| {
            process.set_no_new_privileges(Some(no_new_privileges));
        });
        let state = state();
        let start_socket = Some(bind_start_socket(&socket).unwrap());
        let (plan, mut output) = ground.plan_with(&spec, Extras { start_socket, ..extras(&state) }).unwrap();
        let created = plan.start().unwrap();
        let (filter, told) = receive(&listener);
        assert_eq!(told["state"]["status"], "creating");
        drop(filter);
        let (pid, target) = (created.pid, created.pidfd.as_fd());
        crate::start_waiting(StartRequest { socket: &socket, pid, target, spec: &spec, cgroup: None, hooks: &state })
            .unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, ANSWERED, "{no_new_privileges}");
        wait(&created).unwrap();
    }
}

#[test]
fn an_agent_gets_the_listener_of_a_process_that_enters() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    let path = ground.path("agent.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let state = state();
    let spec = asked(with_arguments(&["/bin/busybox", "sleep", "1000"]), &path);
    let (plan, _output) = ground.plan_with(&spec, extras(&state)).unwrap();
    let container = plan.start().unwrap();
    drop(receive(&listener));
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let stdin = File::open("/dev/null").unwrap().into();
    let wanted = shell(ASKING);
    let request = |state, stdio| ExecRequest {
        target: container.pidfd.as_fd(),
        process: wanted.process().as_ref().unwrap(),
        spec: &spec,
        state,
        cgroup: None,
        stdio,
        reaper: Reaper::Caller,
        console: None,
        preserve_fds: 0,
        keyring: None,
        patience: None,
    };
    let entered =
        exec(request(Some(&state), Stdio { stdin, stdout: write.try_clone().unwrap(), stderr: write })).unwrap();
    let (filter, told) = receive(&listener);
    drop(filter);
    let mut text = String::new();
    File::from(read).read_to_string(&mut text).unwrap();
    assert_eq!(text, ANSWERED);
    wait(&entered).unwrap();
    assert_eq!((&told["pid"], &told["state"]["pid"]), (&entered.pid.into(), &container.pid.into()));
    assert_eq!(told["state"]["status"], "running");
    let null = || File::open("/dev/null").unwrap().into();
    let error = exec(request(None, Stdio { stdin: null(), stdout: null(), stderr: null() })).unwrap_err().to_string();
    assert!(error.ends_with("is told the container's state, which this caller has none of"), "{error}");
    rustix::process::pidfd_send_signal(&container.pidfd, rustix::process::Signal::KILL).unwrap();
    wait(&container).unwrap();
}

#[test]
fn without_its_agent_a_container_does_not_start() {
    if cannot_run() {
        return;
    }
    let ground = Ground::new();
    let path = ground.path("nobody.sock");
    let state = state();
    let (plan, _output) = ground.plan_with(&asking(&path), extras(&state)).unwrap();
    match plan.start() {
        Err(StartError::Listener { path: told, source }) => {
            assert_eq!((told, source.raw_os_error()), (path.clone(), Some(libc::ENOENT)));
        }
        other => panic!("{other:?}"),
    }
    let error = ground.plan(&asking(&path)).map(drop).unwrap_err().to_string();
    assert!(error.ends_with("is told the container's state, which this caller has none of"), "{error}");
}
