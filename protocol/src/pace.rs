//! When the device tries again: soon after a loss, later and later in vain, spread out as the controller wishes. Pure:
//! chance comes in as a number.

use std::time::Duration;

/// First pause between two tries.
const FIRST: Duration = Duration::from_secs(1);
/// Longest pause, unless the controller asks for more.
const MOST: Duration = Duration::from_secs(60);

/// How a connection ended, as far as the next try depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It never stood.
    Failed,
    /// The controller had let the device in, and it was lost.
    Lost,
    /// The controller said when to come back, in seconds: on leaving, or within a refusal.
    Told(u16),
}

/// The pauses between tries.
#[derive(Debug)]
pub struct Pace {
    pause: Duration,
    /// Within what time a fleet that lost its controller comes back.
    spread: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { pause: FIRST, spread: FIRST }
    }
}

impl Pace {
    /// Takes the controller's wish of a Welcome, in seconds.
    pub fn spread(&mut self, seconds: u16) {
        self.spread = FIRST.max(Duration::from_secs(seconds.into()));
    }

    /// How long to wait now; `chance` is anything from 0 to 1, each alike.
    pub fn next(&mut self, ended: Ended, chance: f64) -> Duration {
        match ended {
            Ended::Lost => {
                self.pause = FIRST;
                self.spread.mul_f64(chance)
            }
            Ended::Told(seconds) => {
                self.pause = FIRST;
                let asked = FIRST.max(Duration::from_secs(seconds.into()));
                asked / 2 + (asked / 2).mul_f64(chance)
            }
            Ended::Failed => {
                let pause = self.pause;
                self.pause = (pause * 2).min(MOST.max(self.spread));
                pause / 2 + (pause / 2).mul_f64(chance)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn tries_in_vain_become_rare_and_a_loss_begins_anew() {
        let mut pace = Pace::default();
        let waits: Vec<f64> = (0..8).map(|_| pace.next(Ended::Failed, 1.0).as_secs_f64()).collect();
        assert_eq!(waits, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
        assert_eq!(pace.next(Ended::Lost, 0.5), seconds(0.5));
        assert_eq!(pace.next(Ended::Failed, 0.0), seconds(0.5));
    }

    #[test]
    fn a_fleet_comes_back_spread_out_as_its_controller_wishes() {
        let mut pace = Pace::default();
        pace.spread(300);
        assert_eq!(pace.next(Ended::Lost, 0.0), seconds(0.0));
        assert_eq!(pace.next(Ended::Lost, 0.9), seconds(270.0));
        assert_eq!(pace.next(Ended::Told(600), 0.0), seconds(300.0));
        assert_eq!(pace.next(Ended::Told(0), 1.0), seconds(1.0));
        for _ in 0..12 {
            pace.next(Ended::Failed, 1.0);
        }
        assert_eq!(pace.next(Ended::Failed, 1.0), seconds(300.0));
    }
}
