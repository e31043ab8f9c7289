//! Serves what is asked over streams, logs and exec, the same for the controller and for local commands.
//!
//! Owns the life of processes started by exec: they end with their stream. Changes nothing of a pod.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use rustix::pipe::{PipeFlags, pipe_with};
use skeg_protocol::message::{Channel, StreamEnd, StreamRequest};
use skeg_protocol::{Label, Pod, Uid};
use skeg_runtime::{ExecRequest, Exit, Reaper, Started, Stdio, oci};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;

use crate::agent::Agent;
use crate::alone;
use crate::apply::{Host, Key, Live, chain, give_streams};
use crate::async_fd;
use crate::convert;
use crate::forward;
use crate::image;
use crate::logs;
use crate::peer::{Sender, Stream, StreamEvent};
use crate::volumes::facts::Facts;
use crate::volumes::{self, Place};

/// How long new output is waited for after the process has ended: somebody else may hold its pipes. What was read
/// already is sent however long that takes.
const LAST_OUTPUT: std::time::Duration = std::time::Duration::from_millis(500);

/// How long a process of exec may take to come to its program. A container can stop it there, and each would keep a thread.
const EXEC_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Serves one stream to its end.
pub async fn serve(agent: Rc<Agent>, mut stream: Stream, request: StreamRequest) {
    let end = match request {
        StreamRequest::Logs { pod, container, follow, tail, since_seconds, previous, timestamps } => {
            let since = since_seconds.and_then(|seconds| SystemTime::now().checked_sub(Duration::from_secs(seconds)));
            let options = logs::Options { tail, since, timestamps, follow: None };
            send_log(&agent, &stream.sender(), (pod, container), previous, follow, options).await
        }
        StreamRequest::Exec { pod, container, command, tty, stdin } => {
            match begin(&agent, (pod, container), command, tty, stdin).await {
                Ok(running) => Ok(running.carry(&mut stream).await),
                Err(message) => Err(message),
            }
        }
        StreamRequest::Volume(request) => volumes::serve(&agent, &stream.sender(), request).await,
        StreamRequest::Image(request) => image::serve(&agent, &stream.sender(), request).await,
        StreamRequest::Project(request) => alone::serve(&agent, &mut stream, request).await,
        StreamRequest::PortForward { pod, port } => forward::serve(&agent, &mut stream, pod, port).await,
    };
    stream.close(end.unwrap_or_else(|message| StreamEnd::Failed(skeg_protocol::status::text(message))));
}

/// Finds the pod and the container that are meant.
fn find(agent: &Agent, (uid, container): (Uid, Label)) -> Result<(std::sync::Arc<Pod>, Label), String> {
    let node = agent.node.borrow();
    let pod = node.pod(uid).ok_or_else(|| format!("pod {uid} is not on this device"))?;
    let names = || pod.all_containers().map(|container| container.name.as_str()).collect::<Vec<_>>().join(", ");
    let found = match pod.containers.as_slice() {
        [only] if container.is_empty() => Some(only),
        _ => pod.container(&container),
    };
    match found {
        Some(found) => Ok((pod.clone(), found.name.clone())),
        None if container.is_empty() => {
            Err(format!("pod {} has several containers, name one of: {}", pod.name, names()))
        }
        None => Err(format!("pod {} has no container {container:?}, but: {}", pod.name, names())),
    }
}

/// The attempt that last ran, where one did.
fn latest(agent: &Agent, pod: &Pod, name: &Label) -> Option<u32> {
    let node = agent.node.borrow();
    let container = node.container(pod.uid, name)?;
    if container.spent { Some(container.restarts) } else { container.restarts.checked_sub(1) }
}

async fn send_log(
    agent: &Agent,
    sender: &Sender,
    which: (Uid, Label),
    previous: bool,
    follow: bool,
    mut options: logs::Options,
) -> Result<StreamEnd, String> {
    let (pod, name) = find(agent, which)?;
    let never = || format!("container {name} of pod {} was not started yet", pod.name);
    let mut attempt = latest(agent, &pod, &name).ok_or_else(never)?;
    if previous {
        let none = || format!("container {name} of pod {} has no previous instance", pod.name);
        attempt = attempt.checked_sub(1).ok_or_else(none)?;
    }
    if follow {
        let key = Key { pod: pod.uid, container: name.clone(), attempt };
        let live = agent.host.live.borrow().get(&key).cloned();
        options.follow = live.and_then(|live| live.log.borrow().as_ref().map(logs::Log::progress));
    }
    let path = agent.host.folders.log(&pod, &name, attempt);
    let mut reader = match logs::read(&path, options).await {
        Ok(reader) => reader,
        // A container that could not be started has an end and a reason, but no output.
        Err(_) if !path.exists() => return Err(never()),
        Err(error) => return Err(chain(&error)),
    };
    loop {
        tokio::select! {
            piece = reader.next() => match piece.map_err(|error| chain(&error))? {
                Some(piece) => {
                    if sender.send(Channel::Stdout, &piece).await.is_err() {
                        return Ok(StreamEnd::Cancelled);
                    }
                }
                None => return Ok(StreamEnd::Done),
            },
            () = sender.closed() => return Ok(StreamEnd::Cancelled),
        }
    }
}

/// A process that exec has started, with this side's ends of its streams.
struct Running {
    started: Started,
    /// Where its input goes; `None` where it has none or it was ended.
    input: Option<Rc<AsyncFd<OwnedFd>>>,
    output: Rc<AsyncFd<OwnedFd>>,
    /// `None` with a terminal, where it goes the way of the output.
    errors: Option<AsyncFd<OwnedFd>>,
    tty: bool,
}

/// This side's ends of a new process's streams.
struct Ends {
    input: Option<OwnedFd>,
    output: OwnedFd,
    errors: Option<OwnedFd>,
}

async fn begin(
    agent: &Agent,
    which: (Uid, Label),
    command: Vec<String>,
    tty: bool,
    stdin: bool,
) -> Result<Running, String> {
    let (pod, name) = find(agent, which)?;
    let attempt = latest(agent, &pod, &name);
    let key = attempt.map(|attempt| Key { pod: pod.uid, container: name.clone(), attempt });
    let live = key.and_then(|key| agent.host.live.borrow().get(&key).cloned());
    let live: Rc<Live> = live.ok_or_else(|| format!("container {name} of pod {} is not running", pod.name))?;
    let spec = spec(&agent.host, &pod, &name, live.own_users)?;
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(command));
    process.set_terminal(Some(tty));
    if tty {
        let mut env = process.env().clone().unwrap_or_default();
        env.push("TERM=xterm".to_owned());
        process.set_env(Some(env));
    }
    let target = live.pidfd.try_clone().map_err(|error| error.to_string())?;
    let cgroup = agent.host.cgroup(pod.uid, &name);
    let ranges = agent.host.ranges.clone().filter(|_| live.own_users);
    let started = spawn_blocking(move || {
        let root = ranges.map(|ranges| ranges.root_of(pod.uid)).transpose()?;
        start(&target, &process, &spec, &cgroup, Streams { stdin, root })
    });
    let (started, ends) = started.await.map_err(|error| error.to_string())??;
    let watch = |fd: OwnedFd| {
        rustix::io::ioctl_fionbio(&fd, true)?;
        async_fd::watch(fd, Interest::READABLE | Interest::WRITABLE)
    };
    let watch_read = |fd: OwnedFd| {
        rustix::io::ioctl_fionbio(&fd, true)?;
        async_fd::watch(fd, Interest::READABLE)
    };
    let watch_write = |fd: OwnedFd| {
        rustix::io::ioctl_fionbio(&fd, true)?;
        async_fd::watch(fd, Interest::WRITABLE)
    };
    let running = || -> io::Result<Running> {
        let (input, output) = if tty {
            let master = Rc::new(watch(ends.output)?);
            (stdin.then(|| Rc::clone(&master)), master)
        } else {
            (ends.input.map(watch_write).transpose()?.map(Rc::new), Rc::new(watch_read(ends.output)?))
        };
        Ok(Running { started, input, output, errors: ends.errors.map(watch_read).transpose()?, tty })
    };
    running().map_err(|error| format!("watching the process: {error}"))
}

/// What a further process of a container is made from.
///
/// # Errors
/// The container's image is gone or does not fit its specification.
pub fn spec(host: &Host, pod: &Pod, name: &Label, own_users: bool) -> Result<oci::Spec, String> {
    let container = pod.container(name);
    let container = container.ok_or_else(|| format!("the pod has no container {name:?}"))?;
    let image = host.images.here(&container.image)?;
    // Nothing is mounted for a further process.
    let nowhere = Place { path: std::path::PathBuf::new(), ids: crate::volumes::Ids::Own, read_only: false };
    let volumes = pod.volumes.iter().map(|volume| (volume.name.clone(), nowhere.clone())).collect();
    let converted = convert::spec(&convert::Inputs {
        pod,
        container,
        image: &image.config,
        layers: &image.layers,
        hostname: host.folders.hostname(pod),
        etc: &host.folders.etc(pod.uid),
        volumes: &volumes,
        own_users,
        // It runs already: what was there at its start may be gone.
        facts: &Facts { forgiving: true, ..host.facts(pod) },
        devices: std::path::Path::new(""),
        init: std::path::Path::new(""),
    });
    converted.map(|converted| converted.spec).map_err(|error| error.to_string())
}

/// What a new process's streams shall be.
struct Streams {
    /// Whether it has an input.
    stdin: bool,
    /// The host's id of the root of a pod with users of its own.
    root: Option<u32>,
}

/// The blocking part: terminal or pipes, then the process.
fn start(
    target: &OwnedFd,
    process: &oci::Process,
    spec: &oci::Spec,
    cgroup: &str,
    streams: Streams,
) -> Result<(Started, Ends), String> {
    let io = |error: &dyn std::error::Error| chain(error);
    let cgroup = crate::cgroups::open(cgroup).map_err(|error| io(&error))?;
    let run = |stdio, console| {
        skeg_runtime::exec(ExecRequest {
            target: target.as_fd(),
            process,
            spec,
            state: None,
            cgroup: Some(&cgroup),
            stdio,
            reaper: Reaper::Caller,
            console,
            preserve_fds: 0,
            keyring: None,
            patience: Some(EXEC_PATIENCE),
        })
        .map_err(|error| io(&error))
    };
    let null = || std::fs::File::open("/dev/null").map(OwnedFd::from).map_err(|error| io(&error));
    if process.terminal() == Some(true) {
        let (console, receiver) = skeg_runtime::terminal_pair().map_err(|error| io(&error))?;
        let started = run(Stdio { stdin: null()?, stdout: null()?, stderr: null()? }, Some(console))?;
        let output = skeg_runtime::receive_terminal(&receiver).map_err(|error| io(&error))?;
        Ok((started, Ends { input: None, output, errors: None }))
    } else {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(|error| io(&error));
        let ((output, stdout), (errors, stderr)) = (pipe()?, pipe()?);
        let (source, input) = if streams.stdin {
            let (source, input) = pipe()?;
            (source, Some(input))
        } else {
            (null()?, None)
        };
        let stdio = Stdio { stdin: source, stdout, stderr };
        if let Some(root) = streams.root {
            give_streams(&stdio, root).map_err(|error| io(&error))?;
        }
        let started = run(stdio, None)?;
        Ok((started, Ends { input, output, errors: Some(errors) }))
    }
}

impl Running {
    /// Carries bytes until the process or the stream ends; kills the process in the latter case.
    async fn carry(mut self, stream: &mut Stream) -> StreamEnd {
        let sender = stream.sender();
        let watched = self.started.pidfd.try_clone().and_then(|pidfd| async_fd::watch(pidfd, Interest::READABLE));
        let exited = async {
            // Readable once it has ended; without a watch the wait below blocks, which is still right.
            if let Ok(watched) = &watched {
                watched.readable().await.map(drop).ok();
            }
        };
        let (input, output, tty) = (self.input.take(), Rc::clone(&self.output), self.tty);
        let errors = self.errors.take();
        let sending = Cell::new(0);
        let outputs = async {
            let errors = async {
                if let Some(errors) = &errors {
                    copy(errors, &sender, Channel::Stderr, &sending).await;
                }
            };
            tokio::join!(copy(&output, &sender, Channel::Stdout, &sending), errors);
        };
        let finished = async {
            tokio::pin!(outputs, exited);
            tokio::select! {
                () = &mut outputs => exited.await,
                () = &mut exited => {
                    while tokio::time::timeout(LAST_OUTPUT, &mut outputs).await.is_err() && sending.get() > 0 {}
                }
            }
        };
        let cancelled = tokio::select! {
            () = finished => false,
            () = feed(stream, input, &output, tty) => true,
            () = sender.closed() => true,
        };
        if cancelled {
            // It may have ended just now.
            rustix::process::pidfd_send_signal(&self.started.pidfd, rustix::process::Signal::KILL).ok();
        }
        match spawn_blocking(move || skeg_runtime::wait(&self.started)).await {
            Ok(Ok(_)) if cancelled => StreamEnd::Cancelled,
            Ok(Ok(Exit::Code(code))) => StreamEnd::Exited(code),
            Ok(Ok(Exit::Signal(signal))) => StreamEnd::Exited(128 + signal),
            Ok(Err(error)) => StreamEnd::Failed(format!("waiting for the process: {error}")),
            Err(error) => StreamEnd::Failed(format!("waiting for the process: {error}")),
        }
    }
}

/// Gives the process what comes in, until the stream ends.
async fn feed(stream: &mut Stream, mut input: Option<Rc<AsyncFd<OwnedFd>>>, terminal: &AsyncFd<OwnedFd>, tty: bool) {
    loop {
        match stream.next().await {
            Some(StreamEvent::Data(_, bytes)) if bytes.is_empty() => {
                if tty && let Some(input) = &input {
                    // The end of input of a terminal is a character (EOT).
                    write_all(input, &[4]).await.ok();
                }
                input = None;
            }
            Some(StreamEvent::Data(_, bytes)) => {
                if let Some(open) = &input
                    && write_all(open, &bytes).await.is_err()
                {
                    // The process has closed its input; what more comes is dropped.
                    input = None;
                }
            }
            Some(StreamEvent::Resize { columns, rows }) if tty => {
                if let Err(error) = skeg_runtime::resize_terminal(terminal.get_ref().as_fd(), rows, columns) {
                    log::debug!("resizing a terminal: {}", chain(&error));
                }
            }
            Some(StreamEvent::Resize { .. }) => {}
            Some(StreamEvent::Closed(_)) | None => return,
        }
    }
}

/// Copies to the stream until the end of the process's output. `sending` counts those that have read something
/// which is not sent yet.
async fn copy(from: &AsyncFd<OwnedFd>, sender: &Sender, channel: Channel, sending: &Cell<usize>) {
    let mut buffer = vec![0; skeg_protocol::limits::MAX_STREAM_DATA];
    loop {
        let read = from.async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut buffer)?)).await;
        match read {
            Ok(length) if length > 0 => {
                sending.set(sending.get() + 1);
                let sent = sender.send(channel, &buffer[..length]).await;
                sending.set(sending.get() - 1);
                if sent.is_err() {
                    return;
                }
            }
            // A terminal without a process left says EIO instead of an end.
            Ok(_) | Err(_) => return,
        }
    }
}

async fn write_all(to: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = to.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
        bytes = &bytes[written..];
    }
    Ok(())
}
