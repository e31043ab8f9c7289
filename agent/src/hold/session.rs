//! Init's end of the socket to one agent.
//!
//! Owns the order of what is said and never waits. A request is read only when the answer to the one before has
//! left, so that an agent that does not read cannot make init's memory grow.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::table::{Item, Table};
use super::wire::{self, MAX_DATAGRAM, MAX_FDS, Reply, Request};

/// Most datagrams of one turn, so that a chatty agent can't keep init from reaping.
const TURN: usize = 64;

/// One agent's connection.
pub(crate) struct Session {
    socket: OwnedFd,
    answer: Option<Reply>,
    /// The next item of a list under way.
    listing: Option<usize>,
    /// The agent has asked for the list; before that it is told nothing.
    listed: bool,
    ping: bool,
    alive: bool,
    stalled: bool,
}

/// What a turn ended with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing more to do until the socket is ready.
    Idle,
    /// The agent closed its end.
    Gone,
}

/// What init does for a session beyond the table.
pub(crate) trait Host {
    /// Tells whether a process is init's child and not yet reaped.
    fn is_child(&self, pid: i32) -> bool;
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

impl Session {
    pub(crate) fn new(socket: OwnedFd) -> Session {
        Session { socket, answer: None, listing: None, listed: false, ping: false, alive: false, stalled: false }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Tells whether the last turn ended with more to do: the next is due when the socket takes bytes again.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Asks the agent for a sign of life.
    pub(crate) fn ping(&mut self) {
        self.ping = true;
    }

    /// Tells, once, whether the agent gave a sign of life.
    pub(crate) fn take_alive(&mut self) -> bool {
        std::mem::take(&mut self.alive)
    }

    /// Does all that can be done without waiting, up to a bound.
    pub(crate) fn turn(&mut self, table: &mut Table, host: &impl Host) -> Turn {
        self.stalled = false;
        for _ in 0..TURN {
            let result = match self.say(table) {
                Ok(true) => continue,
                Ok(false) => self.hear(table, host),
                Err(error) => Err(error),
            };
            match result {
                Ok(true) => {}
                Ok(false) => return Turn::Gone,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Turn::Idle,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Turn::Gone,
            }
        }
        // There may be more to say, and nothing will come that would wake init for it.
        self.stalled = true;
        Turn::Idle
    }

    /// Says the next thing that is due. False: nothing is due.
    fn say(&mut self, table: &mut Table) -> io::Result<bool> {
        if let Some(answer) = &self.answer {
            let answer = answer.clone();
            self.send(&answer, &[])?;
            self.answer = None;
        } else if let Some(next) = self.listing {
            self.say_item(table, next)?;
        } else if !self.listed {
            return Ok(false);
        } else if let Some((pid, ended, item)) = next_news(table) {
            self.send(&Reply::Exited { key: item.key.clone(), pid, ended }, &[])?;
            item.announced = true;
        } else if self.ping {
            self.send(&Reply::Ping, &[])?;
            self.ping = false;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn say_item(&mut self, table: &mut Table, next: usize) -> io::Result<()> {
        let Some(item) = table.items_mut().get_mut(next) else {
            self.send(&Reply::ListEnd, &[])?;
            (self.listing, self.listed) = (None, true);
            return Ok(());
        };
        let reply = Reply::Item { key: item.key.clone(), pid: item.pid, data: item.data.clone(), ended: item.ended };
        let fds: heapless::Vec<BorrowedFd<'_>, MAX_FDS> = item.fds.iter().map(AsFd::as_fd).collect();
        self.send(&reply, &fds)?;
        item.announced = item.ended.is_some();
        self.listing = Some(next + 1);
        Ok(())
    }

    fn send(&mut self, reply: &Reply, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let result = wire::send(&self.socket, reply, fds);
        self.stalled = matches!(&result, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        result
    }

    /// Hears one request. False: the agent is gone.
    fn hear(&mut self, table: &mut Table, host: &impl Host) -> io::Result<bool> {
        let mut buffer = [0; MAX_DATAGRAM];
        let received = wire::receive(&self.socket, &mut buffer)?;
        if received.length == 0 {
            return Ok(false);
        }
        // What is not a request has no sequence number to answer to; its descriptors close here.
        let request = if received.cut { None } else { postcard::from_bytes(&buffer[..received.length]).ok() };
        match request {
            None => log::warn!("init: a datagram of the agent is not a request ({} bytes)", received.length),
            Some(Request::List) => (self.listing, self.listed) = (Some(0), false),
            Some(Request::Alive) => self.alive = true,
            Some(Request::Forget { sequence, key }) => {
                table.forget(&key);
                self.answer = Some(Reply::Done { sequence });
            }
            Some(Request::Hold { sequence, key, pid, data }) => {
                let item = Item { key, pid, data, fds: received.fds, ended: None, announced: false };
                let held = if received.fds_cut {
                    Err(wire::Refusal::Descriptors)
                } else {
                    table.hold(item, |pid| host.is_child(pid), host.now_ms())
                };
                self.answer = Some(match held {
                    Ok(()) => Reply::Done { sequence },
                    Err(refusal) => Reply::Refused { sequence, refusal },
                });
            }
        }
        Ok(true)
    }
}

fn next_news(table: &mut Table) -> Option<(i32, wire::Ended, &mut Item)> {
    table.items_mut().iter_mut().find_map(|item| match (item.pid, item.ended, item.announced) {
        (Some(pid), Some(ended), false) => Some((pid, ended, item)),
        _ => None,
    })
}
