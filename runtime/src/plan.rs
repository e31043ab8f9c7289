//! The plan and its start.
//!
//! Owns the handshake between the caller and the child. Must not read specifications, nor know what a step does.

use crate::step::Step;
use crate::sys::{self, CloneRequest};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A message of the child: the step's index and the errno, both 32 bits in the machine's order.
const REPORT_LENGTH: usize = 8;

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
    pub(crate) report: Report,
}

/// The pipe on which a child tells why it failed.
#[derive(Debug)]
pub(crate) struct Report {
    read: OwnedFd,
    pub(crate) write: OwnedFd,
}

impl Report {
    pub(crate) fn new() -> Result<Report, StartError> {
        let failed = |source: rustix::io::Errno| StartError::Caller { call: "pipe2", source: source.into() };
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(failed)?;
        Ok(Report { read: above_standard(read)?, write: above_standard(write)? })
    }
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
        let born = if self.clone.cgroup.is_some() { ", born in its cgroup" } else { "" };
        let parent = if self.clone.sibling { ", child of the caller's parent" } else { "" };
        writeln!(formatter, "clone with namespaces {}{born}{parent}", Namespaces(self.clone.namespaces))?;
        self.steps.iter().enumerate().try_for_each(|(index, step)| writeln!(formatter, "{index:3} {step}"))
    }
}

/// Namespace flags for people.
struct Namespaces(u64);

impl fmt::Display for Namespaces {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (libc::CLONE_NEWNS, "mount"),
            (libc::CLONE_NEWPID, "pid"),
            (libc::CLONE_NEWUTS, "uts"),
            (libc::CLONE_NEWIPC, "ipc"),
            (libc::CLONE_NEWNET, "network"),
        ];
        let names: Vec<_> =
            names.iter().filter(|(flag, _)| self.0 & *flag as u64 != 0).map(|(_, name)| *name).collect();
        formatter.write_str(&if names.is_empty() { "none".into() } else { names.join(" ") })
    }
}

impl Plan {
    /// Starts the process. Blocks until it runs its program or has failed, about a millisecond.
    ///
    /// # Errors
    /// [`StartError`] names the step, its path and the kernel's reason.
    pub fn start(self) -> Result<Started, StartError> {
        let Plan { steps, clone, held, report } = self;
        let report_fd = report.write.as_raw_fd();
        let child = || run(&steps, report_fd);
        let (pid, pidfd) = sys::clone_child(clone, child).map_err(|errno| StartError::Clone(errno.into()))?;
        let started = Started { pid, pidfd };
        drop(report.write);
        drop(held);
        let mut message = Vec::with_capacity(REPORT_LENGTH);
        let read = File::from(report.read).take(REPORT_LENGTH as u64).read_to_end(&mut message);
        let error = match read {
            Ok(0) => return Ok(started),
            Ok(_) => explain(&steps, &message),
            Err(source) => StartError::Caller { call: "read", source },
        };
        if !clone.sibling {
            // The child is exiting: reaping it is all that is left, and the first error is the one to tell.
            let _ = wait(&started);
        }
        Err(error)
    }
}

/// Walks the steps. Runs in the child; returns only on failure.
fn run(steps: &[Step], report: i32) {
    for (index, step) in steps.iter().enumerate() {
        if let Err(errno) = step.run() {
            let mut message = [0_u8; REPORT_LENGTH];
            message[..4].copy_from_slice(&(index as u32).to_ne_bytes());
            message[4..].copy_from_slice(&errno.0.to_ne_bytes());
            // If even this fails the caller sees an early end of the child.
            let _ = sys::write(report, &message);
            return;
        }
    }
}

/// Turns a child's message into an error.
fn explain(steps: &[Step], message: &[u8]) -> StartError {
    let word = |range: std::ops::Range<usize>| message.get(range).and_then(|bytes| bytes.try_into().ok());
    let (Some(index), Some(errno)) = (word(0..4).map(u32::from_ne_bytes), word(4..8).map(i32::from_ne_bytes)) else {
        return StartError::Report;
    };
    let source = io::Error::from_raw_os_error(errno);
    match steps.get(index as usize) {
        None => StartError::Report,
        Some(Step::Execute { command }) => {
            let search = &command.search;
            let search = if search.is_empty() { String::new() } else { format!(" (looked in {search})") };
            StartError::Command { command: command.name.clone(), search, source }
        }
        Some(step) => StartError::Step { index: index as usize, step: step.to_string(), source },
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
