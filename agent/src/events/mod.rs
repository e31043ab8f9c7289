//! The journal of what happened on this device and why, for people: it survives reboots and power cuts, is bounded,
//! and is written only when something happens.
//!
//! Owns its task and the marks of boots, shutdowns and clocks that were set. [`ring`] owns the files. Decides nothing.

mod ring;
mod show;

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use skeg_protocol::{Label, Name, Uid};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking, spawn_local};

use crate::core::{Happening, Now};
use ring::Ring;

pub use show::show;

/// Folder below `state_dir`.
pub const FOLDER: &str = "events";
/// What happens within this time is written at once: flash is worn by writes, not by bytes.
const PAUSE: Duration = Duration::from_secs(1);
/// Most events that wait to be written; of those beyond only the number is told.
const MOST_WAITING: usize = 512;
/// A wall clock that moved this much against the other was set, in milliseconds.
const JUMP: i64 = 5_000;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Grows by one with each event of this device, for ever.
    pub sequence: u64,
    /// The boot in which it happened.
    pub boot: Uid,
    /// Milliseconds since that boot: right even where the clock is not.
    pub since_boot: u64,
    /// Milliseconds since 1970 as the device believed.
    pub wall: i64,
    /// The pod that it is about, with its names; nothing where it is about the device.
    pub pod: Option<(Uid, Label, Name)>,
    /// Its container.
    pub container: Option<Label>,
    /// One CamelCase word.
    pub reason: String,
    /// In words.
    pub message: String,
}

/// The agent's access to its journal of events.
pub struct Events {
    writing: RefCell<Option<Writing>>,
}

/// The way to the task that writes, and the task.
type Writing = (mpsc::Sender<(Happening, Now)>, JoinHandle<()>);

/// What the device itself has to tell.
pub fn of_device(reason: &'static str, message: impl Into<String>) -> Happening {
    Happening { pod: None, container: None, reason, message: message.into() }
}

impl Events {
    /// Opens the journal below a state folder and notes how this agent came to be. Where that fails the device goes on
    /// without. Runs inside a `LocalSet`.
    pub fn open(state_dir: &Path, boot: Uid, now: Now) -> Events {
        let ring = match Ring::open(&state_dir.join(FOLDER)) {
            Ok(ring) => ring,
            Err(error) => {
                log::error!("opening the journal of events: {error}; nothing is written down");
                return Events { writing: RefCell::new(None) };
            }
        };
        let mut writer = Writer { ring, boot, offset: offset(now), lost: 0 };
        let begin = match writer.ring.last() {
            None => of_device("Started", "the agent has started for the first time"),
            Some(last) if last.boot == boot => of_device("AgentStarted", "a new agent has taken over"),
            Some(last) if last.reason == "Shutdown" => of_device("Booted", "the device was started after a shutdown"),
            Some(_) => of_device("PowerCut", "the device was started again without having been shut down"),
        };
        writer.write(vec![(begin, now)]);
        let (sender, receiver) = mpsc::channel(MOST_WAITING);
        Events { writing: RefCell::new(Some((sender, spawn_local(writer.run(receiver))))) }
    }

    /// Writes something down, within a second. Where too much happens at once it is only logged.
    pub fn tell(&self, happening: Happening, now: Now) {
        log::info!("{happening}");
        if let Some((sender, _)) = self.writing.borrow().as_ref()
            && sender.try_send((happening, now)).is_err()
        {
            log::warn!("too much happens at once: this is left out of the journal of events");
        }
    }

    /// Writes what waits. Nothing is written after it.
    pub async fn finish(&self) {
        let Some((sender, task)) = self.writing.take() else { return };
        drop(sender);
        if let Err(error) = task.await {
            log::error!("the journal of events: {error}");
        }
    }
}

/// The wall clock against the one that is never set.
fn offset(now: Now) -> i64 {
    now.wall.saturating_sub(i64::try_from(now.monotonic.as_millis()).unwrap_or(i64::MAX))
}

struct Writer {
    ring: Ring,
    boot: Uid,
    offset: i64,
    lost: u64,
}

impl Writer {
    async fn run(mut self, mut receiver: mpsc::Receiver<(Happening, Now)>) {
        while let Some(first) = receiver.recv().await {
            let mut happenings = vec![first];
            let deadline = tokio::time::Instant::now() + PAUSE;
            // A sender that is gone means that the agent ends: no time is left to wait for more.
            while let Ok(Some(more)) = tokio::time::timeout_at(deadline, receiver.recv()).await {
                happenings.push(more);
                if happenings.len() >= MOST_WAITING {
                    break;
                }
            }
            let written = spawn_blocking(move || {
                self.write(happenings);
                self
            });
            match written.await {
                Ok(back) => self = back,
                Err(error) => return log::error!("the journal of events: {error}"),
            }
        }
    }

    fn write(&mut self, happenings: Vec<(Happening, Now)>) {
        let mut events = Vec::with_capacity(happenings.len());
        for (happening, now) in happenings {
            let moved = offset(now).saturating_sub(self.offset);
            if moved.saturating_abs() > JUMP {
                self.offset = offset(now);
                let message = format!("the clock was set by {} s", moved / 1000);
                self.push(of_device("ClockSet", message), now, &mut events);
            }
            self.push(happening, now, &mut events);
        }
        if let Err(error) = self.ring.append(&events) {
            self.lost += events.len() as u64;
            log::error!("the journal of events: {error}; {} events were not written", self.lost);
        }
    }

    fn push(&mut self, happening: Happening, now: Now, events: &mut Vec<Event>) {
        let Happening { pod, container, reason, message } = happening;
        events.push(Event {
            sequence: self.ring.take_number(),
            boot: self.boot,
            since_boot: u64::try_from(now.monotonic.as_millis()).unwrap_or(u64::MAX),
            wall: now.wall,
            pod,
            container,
            reason: reason.to_owned(),
            message,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, wall: i64) -> Now {
        Now { monotonic: Duration::from_secs(seconds), wall }
    }

    fn run(work: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, work);
    }

    fn reasons(folder: &Path) -> Vec<String> {
        ring::read(&folder.join(FOLDER)).unwrap().into_iter().map(|event| event.reason).collect()
    }

    #[test]
    fn boots_shutdowns_and_power_cuts_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        run(async {
            for (boot, shutdown) in [(1, true), (2, false), (2, false), (3, false)] {
                let events = Events::open(folder.path(), Uid([boot; 16]), at(0, 0));
                if shutdown {
                    events.tell(of_device("Shutdown", ""), at(1, 1_000));
                }
                events.finish().await;
            }
        });
        assert_eq!(reasons(folder.path()), ["Started", "Shutdown", "Booted", "AgentStarted", "PowerCut"]);
    }

    #[test]
    fn a_clock_that_is_set_is_told_once_with_the_next_event() {
        let folder = tempfile::tempdir().unwrap();
        run(async {
            let events = Events::open(folder.path(), Uid([1; 16]), at(0, 0));
            let year = 365 * 86_400_000;
            for (seconds, wall) in [(1, 1_000), (2, 10 * year), (3, 10 * year + 1_000), (4, 4_000)] {
                events.tell(of_device("Tick", ""), at(seconds, wall));
            }
            events.finish().await;
        });
        assert_eq!(reasons(folder.path()), ["Started", "Tick", "ClockSet", "Tick", "Tick", "ClockSet", "Tick"]);
    }
}
