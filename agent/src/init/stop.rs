//! The way down: ask the agent, ask what is held, kill what is left.
//!
//! Owns the order and its deadlines. Unmounts nothing: that is [`crate::appliance`]'s.

use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::system::RebootCommand;

use crate::hold::table::Table;

use super::agent::Agent;

/// How long the agent may take to stop its pods.
const AGENT_PATIENCE: Duration = Duration::from_secs(60);
/// How long what the agent left behind may take.
const CONTAINER_PATIENCE: Duration = Duration::from_secs(10);
/// How long killed processes may take to be gone; only a stuck driver exceeds it.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// What comes after everything has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    Leave,
    Restart,
    PowerOff,
    Halt,
}

impl Ending {
    pub(super) fn reboot_command(self) -> RebootCommand {
        match self {
            Ending::Leave | Ending::Restart => RebootCommand::Restart,
            Ending::PowerOff => RebootCommand::PowerOff,
            Ending::Halt => RebootCommand::Halt,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Ordered,
    Agent(Instant),
    Containers(Instant),
    Everything(Instant),
}

/// A stop under way.
pub(super) struct Stop {
    ending: Ending,
    phase: Phase,
    hurry: bool,
}

impl Stop {
    pub(super) fn new(ending: Ending) -> Stop {
        Stop { ending, phase: Phase::Ordered, hurry: false }
    }

    /// Skips what is waited for.
    pub(super) fn hurry(&mut self) {
        self.hurry = true;
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Ordered => None,
            Phase::Agent(until) | Phase::Containers(until) | Phase::Everything(until) => Some(until),
        }
    }

    /// Goes as far as it can. Some: all has stopped, or will never.
    pub(super) fn turn(
        &mut self,
        now: Instant,
        agent: &Agent,
        table: &Table,
        board: bool,
        children_left: bool,
    ) -> Option<Ending> {
        loop {
            let over = |until| now >= until;
            match self.phase {
                Phase::Ordered => {
                    agent.ask_to_stop();
                    self.phase = Phase::Agent(now + AGENT_PATIENCE);
                }
                Phase::Agent(until) if agent.pid().is_none() || over(until) || self.hurry => {
                    self.hurry = false;
                    agent.kill();
                    table.running().for_each(|pid| signal(pid, Signal::TERM));
                    self.phase = Phase::Containers(now + CONTAINER_PATIENCE);
                }
                Phase::Containers(until) if table.running().next().is_none() || over(until) || self.hurry => {
                    self.hurry = false;
                    self.phase = Phase::Everything(now + KILL_PATIENCE);
                }
                Phase::Everything(until) => {
                    if !children_left || over(until) {
                        return Some(self.ending);
                    }
                    // Each turn again: when a process dies, its children become init's.
                    kill_everything(table, board);
                    return None;
                }
                Phase::Agent(_) | Phase::Containers(_) => return None,
            }
        }
    }
}

fn kill_everything(table: &Table, board: bool) {
    table.running().for_each(|pid| signal(pid, Signal::KILL));
    if board {
        // Everybody but init itself (kill(2)).
        let everybody = nix::unistd::Pid::from_raw(-1);
        if let Err(error) = nix::sys::signal::kill(everybody, nix::sys::signal::SIGKILL)
            && error != nix::errno::Errno::ESRCH
        {
            log::error!("init: the last processes can't be killed: {error}");
        }
        return;
    }
    // proc(5): every thread has a list of its own children.
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for thread in threads {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).for_each(|pid| signal(pid, Signal::KILL));
    }
}

/// Signals a child of init. It is not reaped yet, so the number is still its own.
fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Some(pid).filter(|pid| *pid > 1).and_then(Pid::from_raw)
        && let Err(error) = kill_process(pid, signal)
        && error != rustix::io::Errno::SRCH
    {
        log::error!("init: process {} can't be signalled: {error}", pid.as_raw_nonzero());
    }
}
