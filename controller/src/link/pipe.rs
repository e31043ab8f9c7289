//! Bytes of one stream on their way from a session to whoever reads them. It holds no more than the stream's
//! credit; the reader's end gives the credit back.

use std::sync::{Mutex, MutexGuard, PoisonError};

use skeg_protocol::message::StreamEnd;
use tokio::sync::Notify;

#[derive(Debug, Default)]
struct Inner {
    bytes: Vec<u8>,
    end: Option<StreamEnd>,
}

/// A stream's bytes that nobody has read yet.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    inner: Mutex<Inner>,
    changed: Notify,
}

/// What a [`Pipe`] gives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes, never none.
    Bytes(Vec<u8>),
    /// The stream is over.
    End(StreamEnd),
}

impl Pipe {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes. The stream's credit bounds how many there can be.
    pub(super) fn push(&self, bytes: &[u8]) {
        self.inner().bytes.extend_from_slice(bytes);
        self.changed.notify_one();
    }

    /// Ends the stream; the first end counts.
    pub(super) fn end(&self, end: StreamEnd) {
        self.inner().end.get_or_insert(end);
        self.changed.notify_one();
    }

    /// Waits for bytes or the end. One reader only.
    pub(crate) async fn next(&self) -> Piece {
        loop {
            {
                let mut inner = self.inner();
                if !inner.bytes.is_empty() {
                    return Piece::Bytes(std::mem::take(&mut inner.bytes));
                }
                if let Some(end) = &inner.end {
                    return Piece::End(end.clone());
                }
            }
            self.changed.notified().await;
        }
    }
}
