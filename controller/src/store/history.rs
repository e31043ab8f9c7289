//! The recent past of the store: a bounded ring of changes and a broadcast of new ones. It never blocks a
//! writer; a watcher that falls behind is told to start again.

use std::collections::VecDeque;
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::broadcast;

use super::Change;

/// Changes kept for watchers that come late, and the most that a watcher may lag behind.
const KEPT: usize = 1024;

/// The revision that a watcher asked for is no longer known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("too old resource version: list again and watch from there")]
pub(crate) struct Expired;

#[derive(Debug)]
pub(super) struct History {
    ring: VecDeque<Arc<Change>>,
    /// Every change after this revision is in the ring.
    floor: u64,
    sender: broadcast::Sender<Arc<Change>>,
}

impl History {
    pub(super) fn new(revision: u64) -> Self {
        History { ring: VecDeque::new(), floor: revision, sender: broadcast::channel(KEPT).0 }
    }

    pub(super) fn publish(&mut self, change: Change) {
        let change = Arc::new(change);
        if self.ring.len() == KEPT
            && let Some(oldest) = self.ring.pop_front()
        {
            self.floor = oldest.revision;
        }
        self.ring.push_back(change.clone());
        // Nobody may be listening.
        let _ = self.sender.send(change);
    }

    pub(super) fn watch(&self, since: Option<u64>) -> Result<Watch, Expired> {
        let past = match since {
            Some(since) if since < self.floor => return Err(Expired),
            Some(since) => self.ring.iter().filter(|change| change.revision > since).cloned().collect(),
            None => VecDeque::new(),
        };
        Ok(Watch { past, receiver: self.sender.subscribe() })
    }
}

/// Changes as they are committed.
#[derive(Debug)]
pub(crate) struct Watch {
    past: VecDeque<Arc<Change>>,
    receiver: broadcast::Receiver<Arc<Change>>,
}

impl Watch {
    /// Waits for the next change; `Ok(None)` when the store is gone.
    ///
    /// # Errors
    /// The watcher fell behind and has missed changes; it may go on, but must look at everything anew.
    pub(crate) async fn next(&mut self) -> Result<Option<Arc<Change>>, Expired> {
        if let Some(change) = self.past.pop_front() {
            return Ok(Some(change));
        }
        match self.receiver.recv().await {
            Ok(change) => Ok(Some(change)),
            Err(broadcast::error::RecvError::Closed) => Ok(None),
            Err(broadcast::error::RecvError::Lagged(_)) => Err(Expired),
        }
    }
}
