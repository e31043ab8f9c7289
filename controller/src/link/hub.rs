//! Which node is connected, and how to reach its session. The newest connection of a node is the one that counts.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skeg_protocol::message::StreamRequest;
use tokio::sync::{Notify, oneshot};

use super::pipe::Pipe;

/// What others ask of a session.
#[derive(Debug)]
pub(crate) enum Command {
    /// The node's manifest, its pull secrets, or a pod that waits to be gone, deserves a look.
    Manifest,
    /// Opens a stream.
    Open(StreamRequest, oneshot::Sender<Result<Opened, String>>),
    /// So many bytes of a stream were dealt with.
    Consumed(u32, usize),
    /// Bytes towards a stream's process; none end its standard input. Answered when they are on their way, and dropped
    /// when the stream is over: whoever waits for that sends no more than the device takes.
    Input(u32, Vec<u8>, oneshot::Sender<()>),
    /// A new size of a stream's terminal, in columns and rows.
    Resize(u32, u16, u16),
    /// Nobody wants a stream any more.
    Cancel(u32),
    /// Gives the device this controller's manifest although it holds one that this controller does not know.
    Overwrite(oneshot::Sender<Result<(), String>>),
    /// Ends the session.
    Close(&'static str),
}

/// A stream that a session has opened.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The session, for [`Hub::send_to`]: another one of the same node counts its streams anew.
    pub(crate) session: u64,
    /// The stream's id in that session.
    pub(crate) stream: u32,
    /// What its bytes come out of.
    pub(crate) pipe: Arc<Pipe>,
}

/// How many devices may come back in a second.
const RETURNS_A_SECOND: usize = 1000;

/// Commands on their way to a session. A channel would keep room for many, and most sessions are asked nothing most of the
/// time.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    commands: Mutex<VecDeque<Command>>,
    changed: Notify,
}

impl Mailbox {
    fn commands(&self) -> MutexGuard<'_, VecDeque<Command>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, command: Command) {
        self.commands().push_back(command);
        self.changed.notify_one();
    }

    fn try_take(&self) -> Option<Command> {
        let mut commands = self.commands();
        let command = commands.pop_front();
        if commands.is_empty() {
            *commands = VecDeque::new();
        }
        command
    }

    /// Waits for the next command. One session only.
    pub(super) async fn take(&self) -> Command {
        loop {
            if let Some(command) = self.try_take() {
                return command;
            }
            self.changed.notified().await;
        }
    }
}

#[derive(Debug)]
struct Entry {
    id: u64,
    mailbox: Arc<Mailbox>,
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
    pub(super) fn join(&self, node: &str) -> (u64, Arc<Mailbox>) {
        let mailbox = Arc::<Mailbox>::default();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(old) = self.sessions().insert(node.to_owned(), Entry { id, mailbox: mailbox.clone() }) {
            old.mailbox.put(Command::Close("a newer connection of the same device took its place"));
        }
        (id, mailbox)
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

    /// Within how many seconds devices come back after a loss: the more there are, the longer.
    pub(super) fn retry_seconds(&self) -> u16 {
        let seconds = self.sessions().len() / RETURNS_A_SECOND;
        u16::try_from(seconds).unwrap_or(u16::MAX).max(1)
    }

    /// Whether a session is still the node's.
    pub(super) fn is_current(&self, node: &str, id: u64) -> bool {
        self.sessions().get(node).is_some_and(|entry| entry.id == id)
    }

    /// Sends a command to the session with this id; does nothing when it is no longer the node's.
    pub(crate) fn send_to(&self, node: &str, id: u64, command: Command) {
        if let Some(entry) = self.sessions().get(node).filter(|entry| entry.id == id) {
            // A session that ends meanwhile takes its streams with it.
            entry.mailbox.put(command);
        }
    }

    /// Sends a command to a node's session; false when the node is not connected.
    pub(crate) fn send(&self, node: &str, command: Command) -> bool {
        self.sessions().get(node).map(|entry| entry.mailbox.put(command)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_a_stream_of_an_old_session_does_not_reach_the_new_one() {
        let hub = Hub::default();
        let (old, _) = hub.join("kiln-7");
        let (new, commands) = hub.join("kiln-7");
        hub.send_to("kiln-7", old, Command::Cancel(1));
        hub.send_to("kiln-7", new, Command::Cancel(2));
        assert!(matches!(commands.try_take(), Some(Command::Cancel(2))));
        assert!(commands.try_take().is_none());
    }
}
