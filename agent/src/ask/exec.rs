//! A program in a container that says by its exit code how the container is.
//!
//! Owns the program's whole life. Where the kernel has cgroup version 2 it runs in a cgroup of its own below the
//! container's, which is killed with all that is in it when the program or its time ends; elsewhere its process group
//! is killed.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group, pidfd_send_signal};
use skeg_runtime::{Cgroup, ExecRequest, Exit, Reaper, Started, Stdio, oci};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::{Asked, SHOWN, shown};
use crate::apply::{chain, give_streams};
use crate::{async_fd, cgroups, streams};

/// How the cgroups of programs that ask are called, below their container's.
const PREFIX: &str = "ask-";
/// Memory of the thread that starts a program.
const STACK: usize = 256 * 1024;

/// What the starting thread needs.
struct Order {
    target: OwnedFd,
    spec: Arc<oci::Spec>,
    command: Vec<String>,
    cgroup: String,
    root: Option<u32>,
    patience: Option<Duration>,
}

/// A program that was started.
struct Running {
    started: Started,
    output: OwnedFd,
    /// A cgroup of its own.
    own: Option<Cgroup>,
}

impl Running {
    /// Kills all of it. Nothing is waited for.
    fn kill(&self) {
        let ended = match &self.own {
            Some(own) => own.kill().map_err(|error| chain(&error)),
            // It leads its session and thereby its group.
            None => match Pid::from_raw(self.started.pid).map(|pid| kill_process_group(pid, Signal::KILL)) {
                Some(Err(error)) if error != rustix::io::Errno::SRCH => Err(error.to_string()),
                _ => Ok(()),
            },
        };
        // A program that has not come to its own code yet is where it was born.
        pidfd_send_signal(&self.started.pidfd, Signal::KILL).ok();
        if let Err(error) = ended {
            log::error!("ending a probe's processes: {error}");
        }
    }

    /// Kills all of it and takes it back; blocks until it is gone.
    fn clear(self) -> Result<Exit, String> {
        self.kill();
        let exit = skeg_runtime::wait(&self.started).map_err(|error| format!("waiting for the process: {error}"));
        if let Some(own) = &self.own
            && let Err(error) = own.remove()
        {
            log::error!("removing a probe's cgroup: {}", chain(&error));
        }
        exit
    }
}

/// Runs a program in the container; well where it exits with 0 within `limit`.
pub(super) async fn run(asked: &Asked, command: &[String], limit: Duration) -> Result<(), String> {
    let deadline = Instant::now().checked_add(limit);
    let order = order(asked, command, Some(limit).filter(|limit| *limit != Duration::MAX))?;
    let (sender, receiver) = oneshot::channel();
    // A thread of its own: what runs in the container can hold the start up, and no other pod's must wait for it.
    let thread = std::thread::Builder::new().name("ask".into()).stack_size(STACK);
    let spawned = thread.spawn(move || {
        // Nobody waits any more: the start took longer than the whole question may.
        if let Err(Ok(late)) = sender.send(start(order)) {
            late.clear().ok();
        }
    });
    spawned.map_err(|error| format!("starting a thread: {error}"))?;
    let late = || format!("no answer within {} s", limit.as_secs_f32());
    let running = match until(deadline, receiver).await {
        Some(started) => started.map_err(|error| error.to_string())??,
        // The thread ends by its own patience; what it started then ends by being dropped there.
        None => return Err(late()),
    };
    let pidfd = running.started.pidfd.try_clone().and_then(|pidfd| async_fd::watch(pidfd, Interest::READABLE));
    let pidfd = pidfd.map_err(|error| format!("watching the process: {error}"))?;
    let mut said = Vec::new();
    let finished = until(deadline, wait(&pidfd, &running.output, &mut said)).await;
    // Everything that it left behind ends here, too.
    running.kill();
    let exit = reap(pidfd, running).await?;
    match (finished, exit) {
        (None, _) => Err(late()),
        (Some(()), Exit::Code(0)) => Ok(()),
        (Some(()), Exit::Code(code)) => Err(format!("it exited with code {code}: {}", shown(&said))),
        (Some(()), Exit::Signal(signal)) => Err(format!("signal {signal} ended it: {}", shown(&said))),
    }
}

async fn until<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) => timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}

/// Waits for the program's end, taking its output meanwhile so that it never waits for a reader.
async fn wait(pidfd: &AsyncFd<OwnedFd>, output: &OwnedFd, said: &mut Vec<u8>) {
    let take = |said: &mut Vec<u8>| {
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(output, &mut buffer) {
                Ok(count) if count > 0 => {
                    let room = SHOWN.saturating_sub(said.len());
                    said.extend_from_slice(&buffer[..count.min(room)]);
                }
                Ok(_) => return false,
                Err(rustix::io::Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
    };
    let copy = output.try_clone().and_then(|fd| async_fd::watch(fd, Interest::READABLE));
    let Ok(readable) = copy else {
        pidfd.readable().await.map(drop).ok();
        return;
    };
    let mut open = true;
    loop {
        tokio::select! {
            _ = pidfd.readable() => {
                take(said);
                return;
            }
            ready = readable.readable(), if open => {
                open = take(said);
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
            }
        }
    }
}

/// Takes the exit of a program that was killed or has ended. One that does not die of it is waited for elsewhere.
async fn reap(pidfd: AsyncFd<OwnedFd>, running: Running) -> Result<Exit, String> {
    let (sender, receiver) = oneshot::channel();
    tokio::task::spawn_local(async move {
        pidfd.readable().await.map(drop).ok();
        // It has ended: what is left takes no longer than its cgroup's removal.
        if let Ok(exit) = tokio::task::spawn_blocking(move || running.clear()).await {
            sender.send(exit).ok();
        }
    });
    match tokio::time::timeout(Duration::from_secs(1), receiver).await {
        Ok(Ok(exit)) => exit,
        _ => Err("the program does not end though it was killed".to_owned()),
    }
}

fn order(asked: &Asked, command: &[String], patience: Option<Duration>) -> Result<Order, String> {
    let Asked { host, key, live, .. } = asked;
    let spec = live.spec(|| streams::spec(host, &asked.pod, &key.container, live.own_users))?;
    let ranges = host.ranges.clone().filter(|_| live.own_users);
    Ok(Order {
        target: live.pidfd.try_clone().map_err(|error| error.to_string())?,
        spec,
        command: command.to_vec(),
        cgroup: host.cgroup(key.pod, &key.container),
        root: ranges.map(|ranges| ranges.root_of(key.pod)).transpose()?,
        patience,
    })
}

fn start(order: Order) -> Result<Running, String> {
    let io = |error: &dyn std::error::Error| chain(error);
    let mut process = order.spec.process().clone().unwrap_or_default();
    process.set_args(Some(order.command));
    process.set_terminal(Some(false));
    let container = cgroups::open(&order.cgroup).map_err(|error| io(&error))?;
    let own = own_cgroup(&container, &order.cgroup)?;
    let (output, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(|error| io(&error))?;
    // The program must wait for its reader, not fail.
    rustix::io::ioctl_fionbio(&writer, false).map_err(|error| io(&error))?;
    let null = File::open("/dev/null").map_err(|error| io(&error))?;
    let stderr = writer.try_clone().map_err(|error| io(&error))?;
    let stdio = Stdio { stdin: null.into(), stdout: writer, stderr };
    if let Some(root) = order.root {
        give_streams(&stdio, root).map_err(|error| io(&error))?;
    }
    let started = skeg_runtime::exec(ExecRequest {
        target: order.target.as_fd(),
        process: &process,
        spec: &order.spec,
        cgroup: Some(own.as_ref().unwrap_or(&container)),
        stdio,
        reaper: Reaper::Caller,
        console: None,
        preserve_fds: 0,
        keyring: None,
        state: None,
        patience: order.patience,
    });
    match started {
        Ok(started) => Ok(Running { started, output, own }),
        Err(error) => {
            if let Some(own) = own {
                own.kill().and_then(|()| own.remove()).ok();
            }
            Err(io(&error))
        }
    }
}

/// A cgroup of the program's own, where there is only version 2: it needs no controller, only to be killed as a whole.
fn own_cgroup(container: &Cgroup, name: &str) -> Result<Option<Cgroup>, String> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let folders = container.folders();
    let (Some(folder), 1) = (folders.get(""), folders.len()) else { return Ok(None) };
    let own = format!("{PREFIX}{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    match std::fs::create_dir(folder.join(&own)) {
        Ok(()) => {}
        // Left by an earlier agent, whose program it is: it goes with the next take-over.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(None),
        Err(error) => return Err(format!("making cgroup {name}/{own}: {error}")),
    }
    cgroups::open(&format!("{name}/{own}")).map(Some).map_err(|error| chain(&error))
}

/// Ends what the programs of an earlier agent left in a container's cgroup.
pub fn clear_left_over(name: &str) {
    let Ok(container) = cgroups::open(name) else { return };
    let folders = container.folders();
    let entries = folders.get("").map(std::fs::read_dir).into_iter().flatten().flatten().flatten();
    for entry in entries {
        let Ok(own) = entry.file_name().into_string() else { continue };
        if own.starts_with(PREFIX)
            && let Ok(cgroup) = cgroups::open(&format!("{name}/{own}"))
            && let Err(error) = cgroup.kill().and_then(|()| cgroup.remove())
        {
            log::error!("removing cgroup {name}/{own}: {}", chain(&error));
        }
    }
}
