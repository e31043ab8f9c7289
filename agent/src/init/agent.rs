//! The agent's life as init sees it: start, end, and the pause between two starts.
//!
//! Owns the process number and the pauses. Does not know what an agent does.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, kill_process};

use crate::hold::session::Session;
use crate::hold::{Exit, SOCKET_VARIABLE};

/// The program of this process, even after its file was replaced or removed.
const SELF: &str = "/proc/self/exe";
/// First pause; the very first restart comes without one.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
/// Short, because containers that log wait once their pipes are full; an agent's start costs a few ten milliseconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// An agent that lived so long starts without a pause again.
const LONG_LIFE: Duration = Duration::from_secs(10);

/// The agent.
pub(super) struct Agent {
    program: PathBuf,
    config: PathBuf,
    state: State,
    pause: Duration,
}

enum State {
    Running {
        pid: i32,
        since: Instant,
    },
    /// None: at once.
    Waiting {
        until: Option<Instant>,
    },
}

impl Agent {
    pub(super) fn new(program: PathBuf, config: &Path) -> Agent {
        let state = State::Waiting { until: None };
        Agent { program, config: config.into(), state, pause: Duration::ZERO }
    }

    /// The running agent's process.
    pub(super) fn pid(&self) -> Option<i32> {
        match self.state {
            State::Running { pid, .. } => Some(pid),
            State::Waiting { .. } => None,
        }
    }

    /// When the next start is due, if one is.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Running { .. } => None,
            State::Waiting { until } => until,
        }
    }

    /// Starts the agent if its pause is over.
    pub(super) fn start_if_due(&mut self, now: Instant) -> Option<Session> {
        match self.state {
            State::Running { .. } => return None,
            State::Waiting { until: Some(until) } if until > now => return None,
            State::Waiting { .. } => {}
        }
        match self.start() {
            Ok((pid, socket)) => {
                self.state = State::Running { pid, since: now };
                Some(Session::new(socket))
            }
            Err(error) => {
                log::error!("init: the agent can't be started from {}: {error}", self.program.display());
                self.wait(now);
                None
            }
        }
    }

    fn start(&self) -> io::Result<(i32, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let start = |program: &Path, socket: OwnedFd| {
            Command::new(program)
                .arg("agent")
                .arg("--config")
                .arg(&self.config)
                .env(SOCKET_VARIABLE, "0")
                .stdin(Stdio::from(socket))
                // A Ctrl-C at a terminal is for init, which then stops the agent in good order.
                .process_group(0)
                .spawn()
        };
        // By path, so that a program replaced on disk takes over; by itself, so that a missing one does no harm.
        let child = match start(&self.program, theirs.try_clone()?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => start(Path::new(SELF), theirs)?,
            other => other?,
        };
        Ok((i32::try_from(child.id()).map_err(io::Error::other)?, ours))
    }

    /// Notes an end. False: it was not the agent's.
    pub(super) fn ended(&mut self, pid: i32, exit: Exit, now: Instant) -> bool {
        let State::Running { pid: running, since } = self.state else { return false };
        if running != pid {
            return false;
        }
        if now.duration_since(since) >= LONG_LIFE {
            self.pause = Duration::ZERO;
        }
        log::warn!("init: the agent ended ({exit:?}); next start in {:?}", self.pause);
        self.wait(now);
        true
    }

    fn wait(&mut self, now: Instant) {
        self.state = State::Waiting { until: Some(now + self.pause) };
        self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
    }

    /// Ends the agent at once. It is made for that: nothing is lost.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Asks the agent to stop its pods and leave.
    pub(super) fn ask_to_stop(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        // Not reaped yet, so the number is still its own.
        if let Some(pid) = self.pid().and_then(Pid::from_raw)
            && let Err(error) = kill_process(pid, signal)
        {
            log::error!("init: the agent can't be signalled: {error}");
        }
    }
}

/// Where this program's file lies, or lay when it was started. A board's first process has no /proc yet to tell;
/// the kernel has started it by its path.
pub(super) fn own_program() -> PathBuf {
    let Ok(path) = std::fs::read_link(SELF) else {
        let path = std::env::args_os().next().map(PathBuf::from).filter(|path| path.is_absolute());
        return path.unwrap_or_else(|| SELF.into());
    };
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(path) => OsString::from_vec(path.to_vec()).into(),
        None => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_begin_anew_after_a_long_life() {
        let mut agent = Agent::new("/init".into(), Path::new("/etc/skeg/skegd.toml"));
        let start = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            agent.state = State::Running { pid: 7, since: start };
            assert!(!agent.ended(8, Exit::Code(0), start));
            assert!(agent.ended(7, Exit::Code(1), start));
            pauses.push((agent.deadline().unwrap() - start).as_millis());
        }
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1000, 1000, 1000, 1000]);
        agent.state = State::Running { pid: 7, since: start };
        let end = start + LONG_LIFE;
        assert!(agent.ended(7, Exit::Signal(9), end));
        assert_eq!(agent.deadline(), Some(end));
    }
}
