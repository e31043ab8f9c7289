//! Which node is connected, and how to reach its session. The newest connection of a node is the one that counts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skeg_protocol::message::StreamRequest;
use tokio::sync::{mpsc, oneshot};

use super::pipe::Pipe;

/// What others ask of a session.
#[derive(Debug)]
pub(crate) enum Command {
    /// The node's manifest, or a pod that waits to be gone, deserves a look.
    Manifest,
    /// Opens a stream; the answer is its id and the pipe that its bytes come out of.
    Open(StreamRequest, oneshot::Sender<Result<(u32, Arc<Pipe>), String>>),
    /// So many bytes of a stream were dealt with.
    Consumed(u32, usize),
    /// Nobody wants a stream any more.
    Cancel(u32),
    /// Ends the session.
    Close(&'static str),
}

#[derive(Debug)]
struct Entry {
    id: u64,
    commands: mpsc::UnboundedSender<Command>,
}

/// The sessions by node.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    sessions: Mutex<HashMap<String, Entry>>,
    next: AtomicU64,
}

impl Hub {
    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a new session the node's; an older one is told to end.
    pub(super) fn join(&self, node: &str) -> (u64, mpsc::UnboundedReceiver<Command>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(old) = self.sessions().insert(node.to_owned(), Entry { id, commands }) {
            let _ = old.commands.send(Command::Close("a newer connection of the same device took its place"));
        }
        (id, receiver)
    }

    /// Ends a session's place; says whether it was still the node's.
    pub(super) fn leave(&self, node: &str, id: u64) -> bool {
        let mut sessions = self.sessions();
        let ours = sessions.get(node).is_some_and(|entry| entry.id == id);
        if ours {
            sessions.remove(node);
        }
        ours
    }

    /// Whether a session is still the node's.
    pub(super) fn is_current(&self, node: &str, id: u64) -> bool {
        self.sessions().get(node).is_some_and(|entry| entry.id == id)
    }

    /// Sends a command to a node's session; false when the node is not connected.
    pub(crate) fn send(&self, node: &str, command: Command) -> bool {
        self.sessions().get(node).is_some_and(|entry| entry.commands.send(command).is_ok())
    }
}
