//! The plan and its start.
//!
//! Owns the caller's side of a start. Must not read specifications, nor know what a step does.

use crate::cgroup::Cgroup;
use crate::handshake::{self, Channel, Message};
use crate::hooks::{CreateHooks, HookState, Waiting, start_hooks};
use crate::oci;
use crate::seccomp::Agent;
use crate::step::{FilesystemStep, Step};
use crate::sys::{self, CloneRequest};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// The standard streams that a process gets.
#[derive(Debug)]
pub struct Stdio {
    /// Descriptor 0.
    pub stdin: OwnedFd,
    /// Descriptor 1.
    pub stdout: OwnedFd,
    /// Descriptor 2.
    pub stderr: OwnedFd,
}

/// Whose child a process becomes, and so who must reap it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaper {
    /// The calling process.
    Caller,
    /// The caller's parent (`CLONE_PARENT`), which lives on when the caller dies.
    CallersParent,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// A running process.
#[derive(Debug)]
pub struct Started {
    /// Its number in the caller's pid namespace.
    pub pid: i32,
    /// A handle that always means this very process; see pidfd_open(2).
    pub pidfd: OwnedFd,
}

/// Why a process was not started. Nothing is left of it but the cgroup that the caller made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// One step of the plan failed in the child.
    #[error("step {index} failed: {step}{}", command_advice(source))]
    Step {
        /// The position in the plan.
        index: usize,
        /// The step as the plan prints it.
        step: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The program to run could not be run.
    #[error("cannot run command {command:?}{search}")]
    Command {
        /// The command as the specification names it.
        command: String,
        /// Where it was looked for; empty if the command is a path.
        search: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The child could not be made.
    #[error("clone3 failed")]
    Clone(#[source] io::Error),
    /// The plan could not be made.
    #[error(transparent)]
    Plan(#[from] crate::PlanError),
    /// A system call of the caller failed.
    #[error("{call} failed")]
    Caller {
        /// The system call.
        call: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A hook failed.
    #[error(transparent)]
    Hook(#[from] crate::HookError),
    /// The seccomp agent did not take the filter's listener.
    #[error("linux.seccomp.listenerPath: {} does not take the listener", path.display())]
    Listener {
        /// The agent's socket.
        path: std::path::PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The container to enter has no process any more.
    #[error("the container has ended: there is nothing to enter")]
    Gone,
    /// The process did not come to its program in time, and was killed.
    #[error("the process did not come to its program within {patience:?}: the container stops or blocks it")]
    Silent {
        /// How long it was waited for.
        patience: Duration,
    },
    /// The container does not wait for its start: it runs, or is gone.
    #[error("no container waits at {}", path.display())]
    NotWaiting {
        /// Its start socket.
        path: std::path::PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The child's report is not one of this plan's.
    #[error("the child ended without a word that this plan knows")]
    Report,
}

/// Some reasons of the kernel need a word more.
fn command_advice(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EXDEV) => " (it leads out of the container's root)",
        _ => "",
    }
}

/// Everything that a start needs, computed and allocated. It prints as text, one line a step.
#[derive(Debug)]
pub struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) clone: CloneRequest,
    /// Descriptors that steps refer to by number; they live as long as the plan.
    pub(crate) held: Vec<OwnedFd>,
    pub(crate) channel: Channel,
    pub(crate) hooks: Option<CreateHooks>,
    pub(crate) agent: Option<Agent>,
    /// How long the child may be silent; for ever if `None`.
    pub(crate) patience: Option<Duration>,
}

/// Moves a descriptor out of the way of the standard streams, which a child will give new meanings.
pub(crate) fn above_standard(fd: OwnedFd) -> Result<OwnedFd, StartError> {
    if fd.as_raw_fd() > 2 {
        return Ok(fd);
    }
    rustix::io::fcntl_dupfd_cloexec(&fd, 3)
        .map_err(|source| StartError::Caller { call: "fcntl(F_DUPFD_CLOEXEC)", source: source.into() })
}

impl fmt::Display for Plan {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parent = if self.clone.sibling { ", child of the caller's parent" } else { "" };
        writeln!(formatter, "{}{parent}", self.clone)?;
        self.steps.iter().enumerate().try_for_each(|(index, step)| writeln!(formatter, "{index:3} {step}"))
    }
}

impl fmt::Display for CloneRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = [libc::CLONE_NEWNS, libc::CLONE_NEWPID, libc::CLONE_NEWUTS, libc::CLONE_NEWIPC, libc::CLONE_NEWNET];
        let made = order.into_iter().filter(|flag| self.namespaces & *flag as u64 != 0);
        let names: Vec<_> = made.map(crate::compile::name_of).collect();
        let names = if names.is_empty() { "none".into() } else { names.join(" ") };
        let born = if self.cgroup.is_some() { ", born in its cgroup" } else { "" };
        write!(formatter, "clone with namespaces {names}{born}")
    }
}

impl Plan {
    /// A plan without steps, for a child of the caller.
    pub(crate) fn empty() -> Result<Plan, StartError> {
        let clone = CloneRequest { namespaces: 0, sibling: false, cgroup: None };
        let channel = Channel::new()?;
        Ok(Plan { steps: Vec::new(), clone, held: Vec::new(), channel, hooks: None, agent: None, patience: None })
    }

    /// Starts the process. Blocks until it runs its program, waits at its start socket, or has failed: about a
    /// millisecond, and as long as hooks take.
    ///
    /// # Errors
    /// [`StartError`] names the step, its path and the kernel's reason. No process is left.
    pub fn start(self) -> Result<Started, StartError> {
        let Plan { steps, clone, held, channel: Channel { caller, child }, hooks, agent, patience } = self;
        let walk = || handshake::walk(&steps, caller.as_raw_fd(), child.as_raw_fd());
        let (pid, pidfd) = sys::clone_child(clone, walk).map_err(|errno| StartError::Clone(errno.into()))?;
        let mut started = Started { pid, pidfd };
        drop(child);
        let helpers = (hooks.as_ref(), agent.as_ref());
        let result = attend(&steps, &caller, patience, helpers, &mut started, clone.sibling);
        drop(held);
        // A child that still waits for a word gives up.
        drop(caller);
        match result {
            Ok(()) => Ok(started),
            Err(error) => {
                end(&started, clone.sibling);
                Err(error)
            }
        }
    }
}

/// Does the caller's part until the child runs its program or waits for its start.
fn attend(
    steps: &[Step],
    channel: &OwnedFd,
    patience: Option<Duration>,
    (hooks, agent): (Option<&CreateHooks>, Option<&Agent>),
    started: &mut Started,
    sibling: bool,
) -> Result<(), StartError> {
    let waits = steps.iter().any(|step| matches!(step, Step::AwaitStart { .. }));
    loop {
        if let Some(patience) = patience {
            await_word(channel, patience)?;
        }
        match handshake::receive(channel)? {
            // One that is to wait says so before it goes.
            Message::End if waits => return Err(StartError::Report),
            Message::End => return Ok(()),
            Message::Born { pid, pidfd } => {
                // What was started was the entrance, which is ending; see `compile::namespaces`.
                let entrance = std::mem::replace(started, Started { pid, pidfd });
                if !sibling {
                    wait(&entrance).map_err(|source| StartError::Caller { call: "waitid", source })?;
                }
                handshake::let_go(channel)?;
            }
            Message::Listens(listener) => {
                let agent = agent.ok_or(StartError::Report)?;
                agent.hand_over(&listener, started.pid)?;
            }
            Message::Failed { index, errno, .. } => return Err(explain(steps, index, errno)),
            Message::Reached(index) => match steps.get(index) {
                Some(Step::AwaitStart { .. }) => return Ok(()),
                Some(Step::AwaitCaller) => {
                    hooks.map_or(Ok(()), |hooks| hooks.run(started))?;
                    handshake::let_go(channel)?;
                }
                Some(Step::Filesystem(FilesystemStep::BindMount { bind, .. })) => {
                    handshake::hand_over(channel, &bind.clone_source()?)?;
                }
                _ => return Err(StartError::Report),
            },
        }
    }
}

/// Waits until the child says something, or is gone.
fn await_word(channel: &OwnedFd, patience: Duration) -> Result<(), StartError> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let failed = |source: io::Error| StartError::Caller { call: "poll", source };
    let timeout = Timespec::try_from(patience).map_err(|error| failed(io::Error::other(error)))?;
    loop {
        match poll(&mut [PollFd::new(channel, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
            Ok(0) => return Err(StartError::Silent { patience }),
            Ok(_) => return Ok(()),
        }
    }
}

/// Ends a child that failed or must not live on, and waits until it is gone.
fn end(started: &Started, sibling: bool) {
    // It may be gone already, and the first error is the one to tell.
    let _ = rustix::process::pidfd_send_signal(&started.pidfd, rustix::process::Signal::KILL);
    if sibling {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut exit = [PollFd::new(&started.pidfd, PollFlags::IN)];
        while poll(&mut exit, None) == Err(rustix::io::Errno::INTR) {}
    } else {
        let _ = wait(started);
    }
}

/// Turns a child's message into an error.
fn explain(steps: &[Step], index: usize, errno: i32) -> StartError {
    let source = io::Error::from_raw_os_error(errno);
    match steps.get(index) {
        None => StartError::Report,
        Some(Step::Execute { command } | Step::FindCommand { command }) => {
            let search = &command.search;
            let search = if search.is_empty() { String::new() } else { format!(" (looked in {search})") };
            StartError::Command { command: command.name.clone(), search, source }
        }
        Some(step) => StartError::Step { index, step: step.to_string(), source },
    }
}

/// What [`start_waiting`] is asked for.
#[derive(Debug)]
pub struct StartRequest<'a> {
    /// The path of the container's start socket.
    pub socket: &'a Path,
    /// The container's first process, as the caller sees it.
    pub pid: i32,
    /// Its pidfd.
    pub target: BorrowedFd<'a>,
    /// The container's specification, for its `startContainer` hooks.
    pub spec: &'a oci::Spec,
    /// The container's cgroup, for the same.
    pub cgroup: Option<&'a Cgroup>,
    /// What the hooks are told.
    pub hooks: &'a HookState,
}

/// Lets a created container run its program. Blocks until it does; hooks run before, inside the container.
///
/// # Errors
/// [`StartError::NotWaiting`] if it was started before or is gone, and [`StartError::Plan`] if it has no process: then
/// it waits on. After any other error it is gone.
pub fn start_waiting(request: StartRequest<'_>) -> Result<(), StartError> {
    let StartRequest { socket, pid, target, spec, cgroup, hooks } = request;
    if spec.process().is_none() {
        return Err(StartError::Plan(crate::process::missing()));
    }
    let channel = handshake::connect_to_waiting(socket)
        .map_err(|source| StartError::NotWaiting { path: socket.to_path_buf(), source })?;
    handshake::let_go(&channel)?;
    loop {
        match handshake::receive(&channel)? {
            Message::End => return Ok(()),
            Message::Failed { index, errno, text } => {
                return Err(StartError::Step { index, step: text, source: io::Error::from_raw_os_error(errno) });
            }
            Message::Born { .. } | Message::Listens(_) => return Err(StartError::Report),
            // If this fails the channel closes, and the child gives up.
            Message::Reached(_) => {
                start_hooks(Waiting { pid, pidfd: target, spec, cgroup }, hooks)?;
                handshake::let_go(&channel)?;
            }
        }
    }
}

/// Waits for the end of a process that the caller must reap ([`Reaper::Caller`]), and reaps it.
///
/// # Errors
/// waitid(2)'s, such as `ECHILD` for somebody else's child.
pub fn wait(started: &Started) -> io::Result<Exit> {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    loop {
        match waitid(WaitId::PidFd(started.pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(None) => return Err(io::Error::other("waitid returned without a child")),
            Ok(Some(status)) => {
                let signal = status.terminating_signal().map(Exit::Signal);
                return Ok(signal.unwrap_or(Exit::Code(status.exit_status().unwrap_or(0))));
            }
        }
    }
}
