//! Bytes of one stream on their way from a session to whoever reads them. It holds no more than the stream's
//! credit; the reader's end gives the credit back.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use skeg_protocol::message::{Channel, StreamEnd};
use tokio::sync::Notify;

#[derive(Debug, Default)]
struct Inner {
    pieces: VecDeque<(Channel, Vec<u8>)>,
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
    /// Bytes of one channel, never none.
    Bytes(Channel, Vec<u8>),
    /// The stream is over.
    End(StreamEnd),
}

impl Pipe {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes. The stream's credit bounds how many there can be.
    pub(super) fn push(&self, channel: Channel, bytes: &[u8]) {
        let mut inner = self.inner();
        match inner.pieces.back_mut() {
            Some((last, piece)) if *last == channel => piece.extend_from_slice(bytes),
            _ if bytes.is_empty() => {}
            _ => inner.pieces.push_back((channel, bytes.to_vec())),
        }
        drop(inner);
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
                if let Some((channel, bytes)) = inner.pieces.pop_front() {
                    return Piece::Bytes(channel, bytes);
                }
                if let Some(end) = &inner.end {
                    return Piece::End(end.clone());
                }
            }
            self.changed.notified().await;
        }
    }
}
