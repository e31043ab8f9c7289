//! A process in the foreground: its signals, its terminal and its end.
//!
//! Owns what `run` and `exec` do while they wait. Must not know containers.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Context as _;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::tcgetwinsize;
use skeg_runtime::{Exit, Started, resize_terminal, send_signal, wait};

use super::notify::Notify;
use crate::commands::RawTerminal;

/// Bytes that are carried at a time.
const BUFFER: usize = 8192;
const SIGCHLD: i32 = nix::sys::signal::Signal::SIGCHLD as i32;
const SIGWINCH: i32 = nix::sys::signal::Signal::SIGWINCH as i32;

/// All signals of this process, caught from now on, so that none is lost between the start and the wait.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Catches them. The signals of a child are reset by the runtime.
    pub(crate) fn catch() -> anyhow::Result<Signals> {
        let all = SigSet::all();
        all.thread_block().context("cannot block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Signals(SignalFd::with_flags(&all, flags).context("cannot catch signals")?))
    }

    fn next(&self) -> anyhow::Result<Option<i32>> {
        let signal = self.0.read_signal().context("cannot read signals")?;
        Ok(signal.map(|signal| signal.ssi_signo as i32))
    }
}

/// Waits for the end of a process, forwards every signal to it and carries its terminal's bytes. Says the exit code: a
/// death by signal N is 128+N.
pub(crate) fn attend(
    started: &Started,
    signals: &Signals,
    master: Option<OwnedFd>,
    notify: Option<&Notify>,
) -> anyhow::Result<i32> {
    let mut carrier = master.map(Carrier::new).transpose()?;
    loop {
        let (ended, signalled) = {
            let mut descriptors = vec![
                PollFd::new(&started.pidfd, PollFlags::IN),
                PollFd::from_borrowed_fd(signals.0.as_fd(), PollFlags::IN),
            ];
            if let Some(notify) = notify {
                descriptors.push(PollFd::new(notify, PollFlags::IN));
            }
            if let Some(carrier) = &carrier {
                carrier.wanted(&mut descriptors);
            }
            match poll(&mut descriptors, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for the process"),
            }
            (!descriptors[0].revents().is_empty(), !descriptors[1].revents().is_empty())
        };
        if signalled {
            while let Some(signal) = signals.next()? {
                handle(signal, started, carrier.as_ref())?;
            }
        }
        if let Some(notify) = notify {
            notify.forward(started.pid)?;
        }
        if let Some(carrier) = &mut carrier {
            carrier.carry()?;
        }
        if ended {
            if let Some(carrier) = &mut carrier {
                carrier.drain()?;
            }
            return Ok(match wait(started).context("cannot learn how the process ended")? {
                Exit::Code(code) => code,
                Exit::Signal(signal) => 128 + signal,
            });
        }
    }
}

fn handle(signal: i32, started: &Started, carrier: Option<&Carrier>) -> anyhow::Result<()> {
    match signal {
        SIGCHLD => reap(started.pid),
        SIGWINCH if carrier.is_some() => carrier.map_or(Ok(()), Carrier::resize),
        signal => match send_signal(started.pidfd.as_fd(), signal) {
            // It has just ended, which the next round finds.
            Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(()),
            result => result.with_context(|| format!("cannot forward signal {signal}")),
        },
    }
}

/// Reaps orphans of the container, which fall to this process; its first process is left to [`wait`].
fn reap(first: i32) -> anyhow::Result<()> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        let ended = match waitid(Id::All, look) {
            Ok(status) => status.pid(),
            Err(nix::errno::Errno::ECHILD) => None,
            Err(error) => return Err(error).context("cannot look for orphans"),
        };
        let Some(pid) = ended.filter(|pid| pid.as_raw() != first) else { return Ok(()) };
        waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG).context("cannot reap an orphan")?;
    }
}

/// Carries bytes between this process's terminal and a container's.
struct Carrier {
    master: OwnedFd,
    /// Dropped, it makes the caller's terminal as it was.
    _raw: Option<RawTerminal>,
    typed: Vec<u8>,
    input_open: bool,
    output_open: bool,
}

impl Carrier {
    fn new(master: OwnedFd) -> anyhow::Result<Carrier> {
        rustix::io::ioctl_fionbio(&master, true).context("cannot use the terminal")?;
        let raw = if io::stdin().is_terminal() { Some(RawTerminal::enter()?) } else { None };
        let carrier = Carrier { master, _raw: raw, typed: Vec::new(), input_open: true, output_open: true };
        carrier.resize()?;
        Ok(carrier)
    }

    /// Gives the container's terminal the size of this one.
    fn resize(&self) -> anyhow::Result<()> {
        match tcgetwinsize(io::stdin()) {
            Ok(size) => {
                resize_terminal(self.master.as_fd(), size.ws_row, size.ws_col).context("cannot resize the terminal")
            }
            // Standard input is no terminal: there is no size to give.
            Err(_) => Ok(()),
        }
    }

    fn wanted<'a>(&'a self, descriptors: &mut Vec<PollFd<'a>>) {
        if self.input_open && self.typed.is_empty() {
            descriptors.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
        }
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::OUT, !self.typed.is_empty());
        flags.set(PollFlags::IN, self.output_open);
        if !flags.is_empty() {
            descriptors.push(PollFd::new(&self.master, flags));
        }
    }

    /// Carries what can be carried now.
    fn carry(&mut self) -> anyhow::Result<()> {
        if self.input_open && self.typed.is_empty() && readable(rustix::stdio::stdin())? {
            let mut buffer = [0; BUFFER];
            let length = rustix::io::read(rustix::stdio::stdin(), &mut buffer).unwrap_or(0);
            self.input_open = length > 0;
            self.typed.extend_from_slice(&buffer[..length]);
        }
        if !self.typed.is_empty() {
            match rustix::io::write(&self.master, &self.typed) {
                Ok(length) => drop(self.typed.drain(..length)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Nobody has the other end open: what was typed has no reader.
                Err(_) => self.typed.clear(),
            }
        }
        self.show().map(drop)
    }

    /// Shows what the container has written; says whether there was something.
    fn show(&mut self) -> anyhow::Result<bool> {
        if !self.output_open {
            return Ok(false);
        }
        let mut buffer = [0; BUFFER];
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(length) if length > 0 => super::show::print(&buffer[..length]).map(|()| true),
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            // EIO: the last process with the terminal open has closed it.
            Ok(_) | Err(_) => {
                self.output_open = false;
                Ok(false)
            }
        }
    }

    /// Shows what is left when the process has ended.
    fn drain(&mut self) -> anyhow::Result<()> {
        while self.show()? {}
        Ok(())
    }
}

fn readable(fd: BorrowedFd<'_>) -> anyhow::Result<bool> {
    let mut descriptors = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut descriptors, Some(&now)).context("cannot poll standard input")? > 0)
}
