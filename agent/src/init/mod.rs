//! `skegd init`: the first process of a board, or a subreaper below another init.
//!
//! Owns reaping, the agent's life, what is held for the agent (see [`crate::hold`]) and the way down. It knows no
//! pods, no network and no images, uses no async runtime, and its memory does not grow after the start: it must be
//! the one process that never fails.
//!
//! | signal          | on a board             | below another init                     |
//! |-----------------|------------------------|----------------------------------------|
//! | `TERM`, `INT`   | stop all, then restart | stop agent and containers, then leave  |
//! | `USR1`          | stop all, then halt    | –                                      |
//! | `USR2`, `PWR`   | stop all, then off     | –                                      |
//! | `HUP`           | end and start the agent again, say after an upgrade; containers go on        ||
//!
//! Stopping is asking the agent first (`TERM`; it stops its pods in good order and leaves), then `TERM` to what is
//! still held, then `KILL` to every child. Another signal while stopping skips what is waited for.

mod agent;
mod stop;
mod watchdog;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, getpid, waitid};

use crate::appliance;
use crate::config::{Appliance, Config};
use crate::hold::Exit;
use crate::hold::session::{Host, Session, Turn};
use crate::hold::table::Table;

use agent::Agent;
use stop::{Ending, Stop};
use watchdog::Watchdog;

/// Runs until it is told to stop. On a board it does not return: the machine restarts or goes off.
pub fn run(config_path: &Path) -> anyhow::Result<()> {
    run_with(config_path, agent::own_program())
}

/// Lets signals through again in a process that init has started. Call before it has threads or children.
pub fn take_signals_back() -> anyhow::Result<()> {
    SigSet::all().thread_unblock().context("signals can't be unblocked")
}

fn run_with(config_path: &Path, program: PathBuf) -> anyhow::Result<()> {
    let first = getpid().is_init();
    // Blocked before anything is started, so that no exit and no order is missed. The agent inherits the mask and
    // clears it itself: init may not, not even for the moment of the start, as a signal then would end it.
    let signals = signals(first);
    signals.thread_block().context("signals can't be blocked")?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("signals can't be received (signalfd)")?;
    let config = match Config::load(config_path) {
        Ok(config) => config,
        Err(error) if first => {
            // A board that does not start can't be mended from afar: it starts with the defaults and says why.
            appliance::console();
            log::error!("{error:#}; the board starts with the defaults");
            Config { appliance: Some(Appliance::default()), ..Config::default() }
        }
        Err(error) => return Err(error.into()),
    };
    let board = first.then_some(config.appliance.as_ref()).flatten();
    if let Some(board) = board {
        appliance::boot(&config, board);
    } else if !first {
        rustix::process::set_child_subreaper(Some(getpid())).context("orphans can't be adopted (prctl)")?;
    }
    raise_descriptor_limit();
    let watchdog = board.and_then(|board| board.watchdog.as_deref()).and_then(Watchdog::open);
    let mut init = Init {
        table: Table::new(),
        session: None,
        agent: Agent::new(program, config_path),
        stop: None,
        watchdog,
        board: board.is_some(),
        signals,
    };
    let ending = init.serve();
    match board {
        Some(_) => appliance::end(&config, ending.reboot_command()),
        None => Ok(()),
    }
}

fn signals(first: bool) -> SigSet {
    let everywhere = [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];
    let board = [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPWR];
    everywhere.into_iter().chain(board.into_iter().filter(|_| first)).collect()
}

/// Every container needs a handful of descriptors here.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::warn!("init: the limit of open files can't be raised to {:?}: {error}", limit.maximum);
    }
}

struct Init {
    table: Table,
    session: Option<Session>,
    agent: Agent,
    stop: Option<Stop>,
    watchdog: Option<Watchdog>,
    board: bool,
    signals: SignalFd,
}

struct Kernel;

impl Host for Kernel {
    fn is_child(&self, pid: i32) -> bool {
        let pid = Some(pid).filter(|pid| *pid > 0).and_then(Pid::from_raw);
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        pid.is_some_and(|pid| waitid(WaitId::Pid(pid), peek).is_ok())
    }

    fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Init {
    /// The loop: one turn for each thing that happens, no turn when nothing does.
    fn serve(&mut self) -> Ending {
        loop {
            let now = Instant::now();
            self.read_signals();
            // Also without a signal: one that was merged into another must not cost an exit.
            let children_left = self.reap(now);
            if let Some(ending) = self.stop_further(now, children_left) {
                return ending;
            }
            if self.stop.is_none()
                && let Some(session) = self.agent.start_if_due(now)
            {
                self.session = Some(session);
            }
            self.talk();
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.turn(now, self.session.as_mut());
                self.talk();
            }
            self.wait(Instant::now());
        }
    }

    fn wait(&mut self, now: Instant) {
        let deadlines = [
            self.agent.deadline().filter(|_| self.stop.is_none()),
            self.stop.as_ref().and_then(Stop::deadline),
            self.watchdog.as_ref().map(Watchdog::deadline),
        ];
        let left = deadlines.into_iter().flatten().min().map(|deadline| deadline.saturating_duration_since(now));
        // Rounded up: waking a moment too early would only mean to wait again.
        let left = left.and_then(|left| Timespec::try_from(left + Duration::from_millis(1)).ok());
        let mut fds = heapless::Vec::<PollFd<'_>, 2>::new();
        let signals = PollFd::new(&self.signals, PollFlags::IN);
        let session = self.session.as_ref().map(|session| {
            let socket = session.socket();
            let interest = if session.is_stalled() { PollFlags::OUT } else { PollFlags::IN };
            PollFd::from_borrowed_fd(socket, interest)
        });
        fds.extend(std::iter::once(signals).chain(session));
        // An interrupted or failed wait is as good as an event: the loop looks at everything anyway.
        if let Err(error) = poll(&mut fds, left.as_ref())
            && error != rustix::io::Errno::INTR
        {
            log::error!("init: waiting fails (poll): {error}");
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok());
            match signal {
                Some(Signal::SIGHUP) => self.agent.kill(),
                Some(Signal::SIGUSR1) => self.order(Ending::Halt),
                Some(Signal::SIGUSR2 | Signal::SIGPWR) => self.order(Ending::PowerOff),
                Some(Signal::SIGTERM | Signal::SIGINT) if self.board => self.order(Ending::Restart),
                Some(Signal::SIGTERM | Signal::SIGINT) => self.order(Ending::Leave),
                _ => {}
            }
        }
    }

    fn order(&mut self, ending: Ending) {
        match &mut self.stop {
            Some(stop) => stop.hurry(),
            None => {
                log::info!("init: stopping ({ending:?})");
                self.stop = Some(Stop::new(ending));
            }
        }
    }

    /// Takes every process that has ended. False: there are no children at all.
    fn reap(&mut self, now: Instant) -> bool {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get();
                    let exit = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => Exit::Code(code),
                        (None, Some(signal)) => Exit::Signal(signal),
                        // Stopped or continued, which is not asked for.
                        (None, None) => continue,
                    };
                    if self.agent.ended(pid, exit, now) {
                        self.session = None;
                    } else {
                        self.table.ended(pid, crate::hold::Ended { exit, at_ms: Kernel.now_ms() });
                    }
                }
                Ok(None) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn talk(&mut self) {
        if let Some(session) = &mut self.session
            && session.turn(&mut self.table, &Kernel) == Turn::Gone
        {
            self.session = None;
            // An agent without its init would run blind.
            self.agent.kill();
        }
    }

    fn stop_further(&mut self, now: Instant, children_left: bool) -> Option<Ending> {
        let stop = self.stop.as_mut()?;
        stop.turn(now, &self.agent, &self.table, self.board, children_left)
    }
}

#[cfg(test)]
mod tests;
