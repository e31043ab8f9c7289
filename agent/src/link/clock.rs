//! The board's clock: set from the controller's authenticated time where it is clearly wrong, and never before a moment
//! that is known to have passed. A board without a battery starts in 1970 or at its image's date.
//!
//! Only a board's clock is touched; under another init the machine's own time service decides. Nothing here is needed
//! for trust: keys are pinned, nothing expires.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::journal::replace_file;

/// A clock that differs by so much is clearly wrong.
const WRONG: Duration = Duration::from_secs(300);
/// The floor is written anew when it has moved by so much: rarely, for the sake of the board's storage.
const STEP: Duration = Duration::from_secs(24 * 3600);

/// A moment that is known to have passed, kept on disk. Milliseconds since 1970.
#[derive(Debug)]
pub struct Floor {
    path: PathBuf,
    floor: i64,
}

/// What is to be done with the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Right,
    Set(i64),
}

/// Judges a clock by the floor alone.
fn by_floor(now: i64, floor: i64) -> Verdict {
    if now < floor { Verdict::Set(floor) } else { Verdict::Right }
}

/// Judges a clock by the controller's time, which counts only from the floor on.
fn by_controller(now: i64, told: i64, floor: i64) -> Verdict {
    let told = told.max(floor);
    if now.abs_diff(told) > WRONG.as_millis() as u64 { Verdict::Set(told) } else { Verdict::Right }
}

impl Floor {
    /// Reads the floor below a state folder.
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join("state/clock");
        // Without one, or with a broken one, any time may be right.
        let floor = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Floor { path, floor }
    }

    /// Sets a clock that is before the floor.
    pub fn hold(&self) {
        obey(by_floor(crate::agent::now().wall, self.floor), "it was before a moment that has passed");
    }

    /// Takes the controller's time.
    pub fn told(&mut self, told: i64) {
        obey(by_controller(crate::agent::now().wall, told, self.floor), "the controller says so");
        if told.saturating_sub(self.floor) < STEP.as_millis() as i64 {
            return;
        }
        match replace_file(&self.path, format!("{told}\n").as_bytes()) {
            Ok(()) => self.floor = told,
            Err(error) => log::error!("keeping the clock's floor: {error}"),
        }
    }
}

fn obey(verdict: Verdict, why: &str) {
    let Verdict::Set(millis) = verdict else { return };
    let time = rustix::time::Timespec { tv_sec: millis.div_euclid(1000), tv_nsec: millis.rem_euclid(1000) * 1_000_000 };
    match rustix::time::clock_settime(rustix::time::ClockId::Realtime, time) {
        Ok(()) => log::warn!("the clock was set: {why}"),
        Err(error) => log::error!("setting the clock, because {why}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600 * 1000;

    #[test]
    fn a_clock_that_is_clearly_wrong_is_set_and_another_is_left() {
        let now = 20_000 * DAY;
        assert_eq!(by_controller(now, now + 200_000, 0), Verdict::Right);
        assert_eq!(by_controller(0, now, 0), Verdict::Set(now));
        assert_eq!(by_controller(now + DAY, now, 0), Verdict::Set(now));
        // A controller in the past does not take the board there.
        assert_eq!(by_controller(now, 0, now - 1000), Verdict::Right);
        assert_eq!(by_controller(0, 0, now), Verdict::Set(now));
        assert_eq!(by_floor(0, now), Verdict::Set(now));
        assert_eq!(by_floor(now + 1, now), Verdict::Right);
    }

    #[test]
    fn a_broken_floor_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Floor::open(folder.path()).floor, 0);
        std::fs::create_dir(folder.path().join("state")).unwrap();
        std::fs::write(folder.path().join("state/clock"), "1700000000000\n").unwrap();
        assert_eq!(Floor::open(folder.path()).floor, 1_700_000_000_000);
        std::fs::write(folder.path().join("state/clock"), "x").unwrap();
        assert_eq!(Floor::open(folder.path()).floor, 0);
    }
}
