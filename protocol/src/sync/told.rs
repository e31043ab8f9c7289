//! What a device has told of its pods, and what is to be told next.

use std::collections::BTreeMap;

use crate::id::Uid;
use crate::limits::MAX_FRAME;
use crate::message::StatusUpdate;
use crate::status::PodStatus;

/// What the controller was told.
#[derive(Debug, Default)]
pub struct Told {
    pods: Option<BTreeMap<Uid, PodStatus>>,
}

impl Told {
    /// The updates that bring the controller to `pods`, each small enough for a frame; none where nothing
    /// changed. The first ever is full.
    pub fn updates(&mut self, pods: impl Iterator<Item = PodStatus>) -> Vec<StatusUpdate> {
        let now: BTreeMap<Uid, PodStatus> = pods.map(|pod| (pod.uid, pod)).collect();
        let full = self.pods.is_none();
        let before = self.pods.take().unwrap_or_default();
        let removed: Vec<Uid> = before.keys().filter(|uid| !now.contains_key(uid)).copied().collect();
        let changed = now.iter().filter(|(uid, pod)| before.get(uid) != Some(pod)).map(|(_, pod)| pod.clone());
        let mut update = StatusUpdate { full, pods: Vec::new(), removed };
        let (mut updates, mut size) = (Vec::new(), 0);
        for pod in changed {
            let length = postcard::to_allocvec(&pod).map_or(MAX_FRAME, |bytes| bytes.len());
            if size + length > MAX_FRAME / 2 && !update.pods.is_empty() {
                let rest = StatusUpdate { full: false, pods: Vec::new(), removed: Vec::new() };
                updates.push(std::mem::replace(&mut update, rest));
                size = 0;
            }
            size += length;
            update.pods.push(pod);
        }
        if update.full || !update.pods.is_empty() || !update.removed.is_empty() {
            updates.push(update);
        }
        self.pods = Some(now);
        updates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Phase, reason, text};

    fn status(number: u8, message: &str) -> PodStatus {
        PodStatus {
            ips: Vec::new(),
            uid: Uid([number; 16]),
            phase: Phase::Pending,
            reason: reason(""),
            message: message.to_owned(),
            started_at: 0,
            conditions: Vec::new(),
            init_containers: Vec::new(),
            containers: Vec::new(),
        }
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut told = Told::default();
        let first = told.updates([].into_iter());
        assert!(first.len() == 1 && first[0].full);
        assert!(told.updates([].into_iter()).is_empty());
        let next = told.updates([status(1, ""), status(2, "")].into_iter());
        assert!(next.len() == 1 && !next[0].full && next[0].pods.len() == 2);
        let next = told.updates([status(2, "x")].into_iter());
        assert_eq!(next, [StatusUpdate { full: false, pods: vec![status(2, "x")], removed: vec![Uid([1; 16])] }]);
    }

    #[test]
    fn many_pods_are_told_in_frames_that_fit() {
        let mut told = Told::default();
        let many = (0..=255).map(|number| status(number, &text("y".repeat(9_000))));
        let fat = many.map(|pod| PodStatus { message: "y".repeat(3_000), ..pod });
        let updates = told.updates(fat);
        assert!(updates.len() > 1 && updates[0].full && !updates[1].full);
        assert_eq!(updates.iter().map(|update| update.pods.len()).sum::<usize>(), 256);
        for update in updates {
            assert!(postcard::to_allocvec(&update).unwrap().len() <= MAX_FRAME);
        }
    }
}
