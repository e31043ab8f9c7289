//! Frames of streams that wait to be written, a queue for each stream. They go out in turn, so that no stream holds up
//! another, and always after what is not of a stream.

use std::collections::VecDeque;

/// The queues; the one whose turn it is comes first.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    queues: VecDeque<(u32, VecDeque<Vec<u8>>)>,
}

impl Bulk {
    /// Adds a frame to its stream's queue.
    pub(crate) fn push(&mut self, stream: u32, frame: Vec<u8>) {
        match self.queues.iter_mut().find(|(id, _)| *id == stream) {
            Some((_, queue)) => queue.push_back(frame),
            None => self.queues.push_back((stream, VecDeque::from([frame]))),
        }
    }

    /// Forgets what waits of a stream.
    pub(crate) fn forget(&mut self, stream: u32) {
        self.queues.retain(|(id, _)| *id != stream);
    }

    /// The next frame.
    pub(crate) fn pop(&mut self) -> Option<Vec<u8>> {
        let (stream, mut queue) = self.queues.pop_front()?;
        let frame = queue.pop_front();
        if !queue.is_empty() {
            self.queues.push_back((stream, queue));
        }
        frame
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_take_turns_and_keep_their_own_order() {
        let mut bulk = Bulk::default();
        for (stream, byte) in [(1, 10), (1, 11), (1, 12), (2, 20), (3, 30), (2, 21)] {
            bulk.push(stream, vec![byte]);
        }
        bulk.forget(3);
        let order: Vec<u8> = std::iter::from_fn(|| bulk.pop()).flatten().collect();
        assert_eq!(order, [10, 20, 11, 21, 12]);
        assert!(bulk.is_empty());
    }
}
