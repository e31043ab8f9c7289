//! One direction of a connection: bytes in order, late, in other pieces than they were sent in; or never.

use std::collections::VecDeque;
use std::time::Duration;

use super::random::Random;

/// Bytes that may be under way before a sender waits, as in a socket's buffer.
pub(super) const BUFFER: usize = 16 * 1024;

/// What arrives.
#[derive(Debug)]
pub(super) enum Arrival {
    /// Bytes.
    Bytes(Vec<u8>),
    /// The other end has closed.
    End,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Wire {
    arrivals: VecDeque<(Duration, Arrival)>,
    /// Bytes a second.
    bandwidth: u64,
    latency: Duration,
    /// When the last byte that was sent arrives.
    busy: Duration,
    under_way: usize,
    /// Nothing arrives any more, and nobody is told.
    pub(super) severed: bool,
}

impl Wire {
    pub(super) fn new(random: &mut Random) -> Self {
        let bandwidth = [1_000, 10_000, 1_000_000][random.below(3) as usize];
        let latency = random.millis(900);
        Wire { arrivals: VecDeque::new(), bandwidth, latency, busy: Duration::ZERO, under_way: 0, severed: false }
    }

    /// Whether a sender may send more.
    pub(super) fn has_room(&self) -> bool {
        self.under_way < BUFFER
    }

    /// Sends bytes.
    pub(super) fn send(&mut self, bytes: &[u8], now: Duration, random: &mut Random) {
        self.under_way += bytes.len();
        let mut rest = bytes;
        while !rest.is_empty() {
            let length = 1 + random.below(rest.len() as u64) as usize;
            let (piece, more) = rest.split_at(length);
            let takes = Duration::from_micros(piece.len() as u64 * 1_000_000 / self.bandwidth);
            self.busy = self.busy.max(now + self.latency) + takes;
            self.arrivals.push_back((self.busy, Arrival::Bytes(piece.to_vec())));
            rest = more;
        }
    }

    /// Says that the sender has closed.
    pub(super) fn end(&mut self, now: Duration) {
        self.busy = self.busy.max(now + self.latency);
        self.arrivals.push_back((self.busy, Arrival::End));
    }

    /// When the next thing arrives.
    pub(super) fn next_at(&self) -> Option<Duration> {
        self.arrivals.front().filter(|_| !self.severed).map(|(at, _)| *at)
    }

    /// What has arrived by now.
    pub(super) fn take(&mut self, now: Duration) -> Option<Arrival> {
        self.next_at().filter(|at| *at <= now)?;
        let (_, arrival) = self.arrivals.pop_front()?;
        if let Arrival::Bytes(bytes) = &arrival {
            self.under_way -= bytes.len();
        }
        Some(arrival)
    }
}
