//! The agent's end of the socket to init.
//!
//! Owns the requests under way and the exits not yet taken. Must run inside a tokio runtime.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::async_fd;

use super::SOCKET_VARIABLE;
use super::wire::{self, Ended, Exited, MAX_DATAGRAM, MAX_FDS, MAX_ITEMS, Refusal, Reply, Request};

/// How long a new agent waits for init's next word while it fetches the list.
const LIST_PATIENCE: Duration = Duration::from_secs(10);

/// An item that init held when this agent started.
#[derive(Debug)]
pub struct Held {
    /// The agent's name for it.
    pub key: String,
    /// The process whose end init notes.
    pub pid: Option<i32>,
    /// Descriptors, in the order in which they were given.
    pub fds: Vec<OwnedFd>,
    /// The agent's own bytes.
    pub data: Vec<u8>,
    /// Set when the process has ended.
    pub exited: Option<Exited>,
}

/// Why init does not hold or forget something.
#[derive(Debug, thiserror::Error)]
pub enum HoldError {
    /// The agent was started by hand.
    #[error("{SOCKET_VARIABLE} is not 0 or standard input is not init's socket: start the agent by `skegd init`")]
    NoInit,
    /// The socket to init can't be set up.
    #[error("the socket to init can't be set up")]
    Setup(#[source] io::Error),
    /// Init has closed the socket or does not answer.
    #[error("init does not answer")]
    Gone(#[source] io::Error),
    /// Init sent something that is no reply.
    #[error("init sent {0} bytes that are no reply: init and agent are of different versions, restart init")]
    Garbled(usize),
    /// An argument exceeds its bound.
    #[error("item {key:?} is too large: {what}")]
    TooLarge {
        /// The item's key.
        key: String,
        /// Which bound.
        what: &'static str,
    },
    /// Init refused.
    #[error("init does not hold {key:?}")]
    Refused {
        /// The item's key.
        key: String,
        /// Why.
        #[source]
        source: Refusal,
    },
}

/// The agent's access to init. Clones share one socket.
#[derive(Clone)]
pub struct Holder {
    shared: Arc<Shared>,
}

type Waiting = Arc<Mutex<HashMap<u32, oneshot::Sender<Result<(), Refusal>>>>>;

struct Shared {
    socket: Arc<AsyncFd<OwnedFd>>,
    sequence: AtomicU32,
    waiting: Waiting,
    news: tokio::sync::Mutex<mpsc::UnboundedReceiver<News>>,
    reader: tokio::task::JoinHandle<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

enum News {
    Exited(Exited),
    Ping,
}

impl Holder {
    /// Takes over the socket that init gave as standard input, which becomes `/dev/null`, and asks what init holds.
    /// Call once, inside a tokio runtime; it blocks for the few microseconds that the list takes.
    pub fn from_env() -> Result<(Holder, Vec<Held>), HoldError> {
        if std::env::var_os(SOCKET_VARIABLE).is_none_or(|value| value != "0") {
            return Err(HoldError::NoInit);
        }
        let socket = io::stdin().as_fd().try_clone_to_owned().map_err(HoldError::Setup)?;
        match rustix::net::sockopt::socket_type(&socket) {
            Ok(rustix::net::SocketType::SEQPACKET) => {}
            _ => return Err(HoldError::NoInit),
        }
        // Otherwise a child of the agent would inherit the socket and could forge its words.
        let null = std::fs::File::open("/dev/null").map_err(HoldError::Setup)?;
        rustix::stdio::dup2_stdin(null).map_err(|error| HoldError::Setup(error.into()))?;
        Holder::from_socket(socket)
    }

    /// Speaks over a given `SOCK_SEQPACKET` socket.
    pub fn from_socket(socket: OwnedFd) -> Result<(Holder, Vec<Held>), HoldError> {
        let held = list(&socket)?;
        rustix::io::ioctl_fionbio(&socket, true).map_err(|error| HoldError::Setup(error.into()))?;
        let socket =
            Arc::new(async_fd::watch(socket, Interest::READABLE | Interest::WRITABLE).map_err(HoldError::Setup)?);
        let waiting = Waiting::default();
        // Unbounded, yet never more than one exit an item and one ping: init waits for the answer to a ping.
        let (sender, news) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read_replies(socket.clone(), waiting.clone(), sender));
        let news = tokio::sync::Mutex::new(news);
        let shared = Arc::new(Shared { socket, sequence: AtomicU32::new(0), waiting, news, reader });
        Ok((Holder { shared }, held))
    }

    /// Gives init an item to keep, in place of one with the same key. When it returns, init has the descriptors.
    /// If the process has already ended, [`Holder::next_exit`] tells so.
    ///
    /// At most [`MAX_FDS`] descriptors, [`MAX_DATA`](super::MAX_DATA) bytes, [`MAX_KEY`](super::MAX_KEY) bytes of key
    /// and [`MAX_ITEMS`] items.
    pub async fn hold(
        &self,
        key: &str,
        pid: Option<i32>,
        fds: &[BorrowedFd<'_>],
        data: &[u8],
    ) -> Result<(), HoldError> {
        let too_large = |what| HoldError::TooLarge { key: key.into(), what };
        if fds.len() > MAX_FDS {
            return Err(too_large("more than 8 descriptors"));
        }
        let data = data.try_into().map_err(|_| too_large("more than 512 bytes of data"))?;
        let name = key.try_into().map_err(|_| too_large("more than 200 bytes of key"))?;
        self.ask(key, fds, |sequence| Request::Hold { sequence, key: name, pid, data }).await
    }

    /// Has init drop an item, its descriptors and its exit. A key that is not held is fine.
    pub async fn forget(&self, key: &str) -> Result<(), HoldError> {
        let name =
            key.try_into().map_err(|_| HoldError::TooLarge { key: key.into(), what: "more than 200 bytes of key" })?;
        self.ask(key, &[], |sequence| Request::Forget { sequence, key: name }).await
    }

    /// Waits for the end of a held process. Cancel-safe; an exit is told once here, and again to a later agent (in
    /// [`Held::exited`]) until it is forgotten.
    ///
    /// The agent's main loop must be the one that waits here: init's question for a sign of life is answered on
    /// the way, so that a stuck loop stops the watchdog. The only error is [`HoldError::Gone`].
    pub async fn next_exit(&self) -> Result<Exited, HoldError> {
        let mut news = self.shared.news.lock().await;
        loop {
            match news.recv().await {
                Some(News::Exited(exited)) => return Ok(exited),
                // Init only asks again later if this is lost to a full socket, and that is the truth then.
                Some(News::Ping) => drop(wire::send(self.shared.socket.get_ref(), &Request::Alive, &[])),
                None => return Err(gone()),
            }
        }
    }

    async fn ask(
        &self,
        key: &str,
        fds: &[BorrowedFd<'_>],
        request: impl FnOnce(u32) -> Request,
    ) -> Result<(), HoldError> {
        let sequence = self.shared.sequence.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        lock(&self.shared.waiting).insert(sequence, sender);
        let request = request(sequence);
        let sent = self.shared.socket.async_io(Interest::WRITABLE, |socket| wire::send(socket, &request, fds)).await;
        if let Err(error) = sent {
            lock(&self.shared.waiting).remove(&sequence);
            return Err(HoldError::Gone(error));
        }
        match answer.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => Err(HoldError::Refused { key: key.into(), source }),
            Err(_) => Err(gone()),
        }
    }
}

fn gone() -> HoldError {
    HoldError::Gone(io::ErrorKind::ConnectionReset.into())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fetches the list. It blocks, as nothing else can be done before it is known.
fn list(socket: &OwnedFd) -> Result<Vec<Held>, HoldError> {
    wire::send(socket, &Request::List, &[]).map_err(HoldError::Gone)?;
    let mut held = Vec::new();
    let mut buffer = [0; MAX_DATAGRAM];
    while held.len() <= MAX_ITEMS {
        let received = match wire::receive(socket, &mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                wait_readable(socket, Instant::now() + LIST_PATIENCE)?;
                continue;
            }
            other => other.map_err(HoldError::Gone)?,
        };
        if received.length == 0 {
            return Err(gone());
        }
        match postcard::from_bytes(&buffer[..received.length]) {
            Ok(Reply::ListEnd) => return Ok(held),
            Ok(Reply::Item { key, pid, data, ended }) => held.push(Held {
                key: key.as_str().into(),
                pid,
                fds: received.fds.into_iter().collect(),
                data: data.to_vec(),
                exited: pid.zip(ended).map(|(pid, ended)| exited(&key, pid, ended)),
            }),
            Ok(_) => {}
            Err(_) => return Err(HoldError::Garbled(received.length)),
        }
    }
    Err(HoldError::Garbled(0))
}

fn wait_readable(socket: &OwnedFd, until: Instant) -> Result<(), HoldError> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("ten seconds fit into a time value");
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left)) {
            Ok(0) => return Err(HoldError::Gone(io::ErrorKind::TimedOut.into())),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(HoldError::Gone(error.into())),
        }
    }
}

fn exited(key: &str, pid: i32, ended: Ended) -> Exited {
    Exited { key: key.into(), pid, exit: ended.exit, at_ms: ended.at_ms }
}

async fn read_replies(socket: Arc<AsyncFd<OwnedFd>>, waiting: Waiting, news: mpsc::UnboundedSender<News>) {
    loop {
        let mut buffer = [0; MAX_DATAGRAM];
        let received = socket.async_io(Interest::READABLE, |socket| wire::receive(socket, &mut buffer)).await;
        let length = match received {
            Ok(received) if received.length > 0 => received.length,
            Ok(_) => break,
            Err(error) => {
                log::error!("the socket to init fails: {error}");
                break;
            }
        };
        let answer = |sequence, result| {
            if let Some(sender) = lock(&waiting).remove(&sequence) {
                // Whoever asked may have stopped waiting.
                let _ = sender.send(result);
            }
        };
        let news_sent = match postcard::from_bytes(&buffer[..length]) {
            Ok(Reply::Done { sequence }) => {
                answer(sequence, Ok(()));
                Ok(())
            }
            Ok(Reply::Refused { sequence, refusal }) => {
                answer(sequence, Err(refusal));
                Ok(())
            }
            Ok(Reply::Exited { key, pid, ended }) => news.send(News::Exited(exited(&key, pid, ended))),
            Ok(Reply::Ping) => news.send(News::Ping),
            Ok(Reply::Item { .. } | Reply::ListEnd) => Ok(()),
            Err(_) => {
                log::error!("init sent {length} bytes that are no reply");
                Ok(())
            }
        };
        if news_sent.is_err() {
            break;
        }
    }
    // Wakes everybody who still waits: their senders are dropped.
    lock(&waiting).clear();
}
