//! How fast one container may log: a bucket of bytes that fills with time. Pure: time is handed in.
//!
//! Whoever has spent all waits, and with it the container when its pipe is full; nothing is lost.

use std::time::Duration;

/// Shortest wait: waking for every few bytes would be as busy as having no limit.
const REST: Duration = Duration::from_millis(250);

/// A container's bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    rate: u64,
    most: u64,
    left: u64,
    debt: u64,
    at: Duration,
}

impl Bucket {
    /// A full bucket for so many bytes a second; `now` is any clock that never goes back.
    pub(super) fn new(rate: u64, burst: u64, now: Duration) -> Bucket {
        Bucket { rate: rate.max(1), most: burst, left: burst, debt: 0, at: now }
    }

    /// Takes what was logged.
    pub(super) fn spend(&mut self, bytes: u64, now: Duration) {
        self.fill(now);
        let covered = bytes.min(self.left);
        self.left -= covered;
        self.debt = self.debt.saturating_add(bytes - covered);
    }

    /// How long to wait before more is logged.
    pub(super) fn wait(&mut self, now: Duration) -> Duration {
        self.fill(now);
        if self.debt == 0 {
            return Duration::ZERO;
        }
        Duration::from_millis(self.debt.saturating_mul(1000) / self.rate).max(REST)
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at).as_millis();
        let bytes = u64::try_from(passed * u128::from(self.rate) / 1000).unwrap_or(u64::MAX);
        // A moment too short for a byte is not forgotten.
        if bytes > 0 {
            self.at = now;
            let paid = bytes.min(self.debt);
            self.debt -= paid;
            self.left = self.left.saturating_add(bytes - paid).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_held_to_the_rate_after_a_burst() {
        let mut now = Duration::ZERO;
        let mut bucket = Bucket::new(1000, 5000, now);
        let mut logged = 0;
        while now < Duration::from_secs(100) {
            let wait = bucket.wait(now);
            if wait.is_zero() {
                bucket.spend(700, now);
                logged += 700;
            }
            now += wait.max(Duration::from_millis(1));
        }
        assert!((104_000..107_000).contains(&logged), "{logged} bytes in 100 s");
    }

    #[test]
    fn a_quiet_container_never_waits_and_a_long_silence_gives_one_burst() {
        let mut bucket = Bucket::new(1000, 5000, Duration::ZERO);
        for second in 0..100 {
            let now = Duration::from_secs(second);
            assert_eq!(bucket.wait(now), Duration::ZERO);
            bucket.spend(900, now);
        }
        let later = Duration::from_secs(1_000_000);
        bucket.spend(5000, later);
        assert_eq!(bucket.wait(later), Duration::ZERO);
        bucket.spend(100, later);
        assert_eq!(bucket.wait(later), REST);
        bucket.spend(1900, later);
        assert_eq!(bucket.wait(later), Duration::from_secs(2));
    }
}
