//! The hardware watchdog: it restarts the board unless it is petted.
//!
//! Owns the device (Linux `watchdog-api.rst`). It is petted only while the agent answers, so that a board whose
//! agent hangs comes back by itself.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::hold::session::Session;

/// Between two pets. Hardware gives up after 10 to 60 s.
const PERIOD: Duration = Duration::from_secs(5);
/// How long the agent may be silent. Long enough for a restart of the agent with all its pauses.
const PATIENCE: Duration = Duration::from_secs(60);

/// An open watchdog.
pub(super) struct Watchdog {
    device: File,
    next: Instant,
    alive: Instant,
}

impl Watchdog {
    /// Opens, and thereby starts, the watchdog. A board without its watchdog is better than no board.
    pub(super) fn open(path: &Path) -> Option<Watchdog> {
        match OpenOptions::new().write(true).open(path) {
            Ok(device) => Some(Watchdog { device, next: Instant::now(), alive: Instant::now() }),
            Err(error) => {
                log::error!("init: watchdog {} can't be opened, the board runs without: {error}", path.display());
                None
            }
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.next
    }

    /// Notes an answer of the agent; pets and asks again when it is time.
    pub(super) fn turn(&mut self, now: Instant, session: Option<&mut Session>) {
        let mut session = session;
        if session.as_mut().is_some_and(|session| session.take_alive()) {
            self.alive = now;
        }
        if now < self.next {
            return;
        }
        self.next = now + PERIOD;
        if let Some(session) = session {
            session.ping();
        }
        if now.duration_since(self.alive) > PATIENCE {
            log::error!("init: the agent has not answered for {PATIENCE:?}; the watchdog will restart the board");
        } else if let Err(error) = self.device.write_all(b"\0") {
            log::error!("init: the watchdog can't be petted: {error}");
        }
    }
}

impl Drop for Watchdog {
    /// Tells the driver that this end is wanted ("magic close").
    fn drop(&mut self) {
        if let Err(error) = self.device.write_all(b"V") {
            log::error!("init: the watchdog can't be stopped: {error}");
        }
    }
}
