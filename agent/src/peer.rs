//! Drives one [`Connection`] over a socket: the link to the controller, and both ends of the local socket.
//!
//! Owns reading, writing and timing of the bytes, and hands pieces of streams to whoever serves them. What a
//! message means is the caller's. Runs on one thread: tasks share a peer by `Rc`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use skeg_protocol::limits::{MAX_FRAME, MAX_STREAM_DATA};
use skeg_protocol::message::{Channel, StreamEnd, StreamRequest};
use skeg_protocol::{Connection, LinkError, Message};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// Why a connection ended.
#[derive(Debug, Error)]
pub enum PeerError {
    /// The protocol ends it.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The socket does.
    #[error("{step}: {source}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// What the kernel or TLS says.
        #[source]
        source: io::Error,
    },
    /// The peer closed it.
    #[error("the peer closed the connection")]
    Closed,
}

/// What comes in on a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// Bytes; none on stdin mean its end.
    Data(Channel, Vec<u8>),
    /// The terminal's new size.
    Resize {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// The stream is closed.
    Closed(StreamEnd),
}

struct Slot {
    events: mpsc::UnboundedSender<StreamEvent>,
    credit: Rc<Notify>,
}

struct Inner {
    connection: Connection,
    streams: BTreeMap<u32, Slot>,
    ended: bool,
}

/// One connection that tasks of this thread share.
pub struct Peer {
    inner: RefCell<Inner>,
    wake: Notify,
    began: Instant,
}

/// One open stream. Dropped without a word, it is cancelled.
pub struct Stream {
    sender: Sender,
    events: mpsc::UnboundedReceiver<StreamEvent>,
}

/// The sending half of a stream. Clones are the same stream.
#[derive(Clone)]
pub struct Sender {
    peer: Rc<Peer>,
    id: u32,
    credit: Rc<Notify>,
}

impl Peer {
    /// Wraps a connection that `make` builds for the moment zero of this peer's clock.
    ///
    /// # Errors
    /// What `make` says.
    pub fn new(make: impl FnOnce(Duration) -> Result<Connection, LinkError>) -> Result<Rc<Self>, LinkError> {
        let inner = Inner { connection: make(Duration::ZERO)?, streams: BTreeMap::new(), ended: false };
        Ok(Rc::new(Peer { inner: RefCell::new(inner), wake: Notify::new(), began: Instant::now() }))
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Sends a message that belongs to no stream.
    ///
    /// # Errors
    /// It exceeds a frame.
    pub fn send(&self, message: impl Into<Message>) -> Result<(), LinkError> {
        self.inner.borrow_mut().connection.send(message)?;
        self.wake.notify_one();
        Ok(())
    }

    /// Opens a stream towards the peer.
    ///
    /// # Errors
    /// As [`Connection::open_stream`].
    pub fn open(self: &Rc<Self>, request: StreamRequest) -> Result<Stream, LinkError> {
        let id = self.inner.borrow_mut().connection.open_stream(request)?;
        self.wake.notify_one();
        Ok(self.stream(id))
    }

    /// Takes up a stream that the peer has opened with a `StreamOpen` of this id.
    pub fn stream(self: &Rc<Self>, id: u32) -> Stream {
        let (sender, events) = mpsc::unbounded_channel();
        let credit = Rc::new(Notify::new());
        self.inner.borrow_mut().streams.insert(id, Slot { events: sender, credit: Rc::clone(&credit) });
        Stream { sender: Sender { peer: Rc::clone(self), id, credit }, events }
    }

    /// Moves bytes until the connection ends; gives every message that is not of an open stream to `handle`.
    ///
    /// # Errors
    /// Always ends with the reason.
    pub async fn run<Io>(self: &Rc<Self>, io: Io, handle: impl FnMut(Message)) -> PeerError
    where
        Io: AsyncRead + AsyncWrite,
    {
        let error = self.pump(io, handle).await;
        let mut inner = self.inner.borrow_mut();
        inner.ended = true;
        for slot in std::mem::take(&mut inner.streams).into_values() {
            slot.credit.notify_waiters();
        }
        error
    }

    async fn pump<Io>(self: &Rc<Self>, io: Io, mut handle: impl FnMut(Message)) -> PeerError
    where
        Io: AsyncRead + AsyncWrite,
    {
        let (mut reader, mut writer) = tokio::io::split(io);
        let mut buffer = vec![0; MAX_STREAM_DATA];
        let (mut pending, mut written, mut flushed) = (Vec::new(), 0, true);
        loop {
            if written == pending.len() {
                pending = self.inner.borrow_mut().connection.output(self.now());
                written = 0;
                flushed &= pending.is_empty();
            }
            let (hungry, deadline) = {
                let connection = &self.inner.borrow().connection;
                (connection.backlog() < MAX_FRAME, connection.deadline())
            };
            // A connection without deadlines must not wake the device.
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(self.began + at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                read = reader.read(&mut buffer), if hungry => match read {
                    Ok(0) => return PeerError::Closed,
                    Ok(length) => {
                        if let Err(error) = self.take(&buffer[..length], &mut handle) {
                            return error.into();
                        }
                    }
                    Err(source) => return PeerError::Io { step: "reading", source },
                },
                pushed = push(&mut writer, &pending[written..]), if !flushed => match pushed {
                    Ok(None) => flushed = true,
                    Ok(Some(0)) => return PeerError::Closed,
                    Ok(Some(length)) => written += length,
                    Err(source) => return PeerError::Io { step: "writing", source },
                },
                () = self.wake.notified() => {}
                () = timer => {
                    if let Err(error) = self.inner.borrow_mut().connection.tick(self.now()) {
                        return error.into();
                    }
                }
            }
        }
    }

    fn take(&self, bytes: &[u8], handle: &mut impl FnMut(Message)) -> Result<(), LinkError> {
        self.inner.borrow_mut().connection.receive(bytes, self.now());
        loop {
            // The borrow ends before the handler runs: it may send.
            let Some(message) = self.inner.borrow_mut().connection.next()? else { return Ok(()) };
            if let Some(message) = self.dispatch(message) {
                handle(message);
            }
        }
    }

    /// Gives a stream's message to its stream, any other back.
    fn dispatch(&self, message: Message) -> Option<Message> {
        let mut inner = self.inner.borrow_mut();
        let (id, event) = match message {
            Message::StreamData(data) => (data.id, StreamEvent::Data(data.channel, data.bytes)),
            Message::StreamResize(size) => (size.id, StreamEvent::Resize { columns: size.columns, rows: size.rows }),
            Message::StreamClose(close) => {
                if let Some(slot) = inner.streams.remove(&close.id) {
                    slot.events.send(StreamEvent::Closed(close.end)).ok();
                    slot.credit.notify_waiters();
                }
                return None;
            }
            Message::StreamCredit(credit) => {
                if let Some(slot) = inner.streams.get(&credit.id) {
                    slot.credit.notify_waiters();
                }
                return None;
            }
            other => return Some(other),
        };
        if let Some(slot) = inner.streams.get(&id) {
            slot.events.send(event).ok();
        }
        None
    }
}

/// Writes some of `bytes` and says how many, or flushes where there are none.
async fn push(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<Option<usize>> {
    if bytes.is_empty() { writer.flush().await.map(|()| None) } else { writer.write(bytes).await.map(Some) }
}

/// The stream is closed: nobody wants more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the stream was closed")]
pub struct StreamClosed;

impl Sender {
    /// Sends bytes, waiting for credit where there is none.
    ///
    /// # Errors
    /// The stream or its connection ended.
    pub async fn send(&self, channel: Channel, mut bytes: &[u8]) -> Result<(), StreamClosed> {
        loop {
            {
                let mut inner = self.peer.inner.borrow_mut();
                if inner.ended {
                    return Err(StreamClosed);
                }
                let sent = inner.connection.send_stream(self.id, channel, bytes).map_err(|_| StreamClosed)?;
                bytes = &bytes[sent..];
            }
            self.peer.wake.notify_one();
            if bytes.is_empty() {
                return Ok(());
            }
            self.credit.notified().await;
        }
    }

    /// Waits until the stream or its connection has ended.
    pub async fn closed(&self) {
        loop {
            {
                let inner = self.peer.inner.borrow();
                if inner.ended || inner.connection.stream_credit(self.id).is_none() {
                    return;
                }
            }
            self.credit.notified().await;
        }
    }

    /// Says that standard input ends here.
    pub fn end_stdin(&self) {
        // It never exceeds a frame, and a closed stream has no reader that could wait for it.
        if self.peer.inner.borrow_mut().connection.end_stdin(self.id).is_ok() {
            self.peer.wake.notify_one();
        }
    }

    /// Says the terminal's size.
    pub fn resize(&self, columns: u16, rows: u16) {
        // It never exceeds a frame.
        self.peer.send(skeg_protocol::message::StreamResize { id: self.id, columns, rows }).ok();
    }
}

impl Stream {
    /// The sending half.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// The next thing that comes in; `None` when the connection ended.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        let event = self.events.recv().await;
        if let Some(StreamEvent::Data(_, bytes)) = &event {
            let Sender { peer, id, .. } = &self.sender;
            // Taken out of the queue: whoever called is about to deal with it, and asks for no more before.
            peer.inner.borrow_mut().connection.consumed(*id, bytes.len()).ok();
            peer.wake.notify_one();
        }
        event
    }

    /// Ends the stream.
    pub fn close(self, end: StreamEnd) {
        self.end(end);
    }

    fn end(&self, end: StreamEnd) {
        let Sender { peer, id, .. } = &self.sender;
        let mut inner = peer.inner.borrow_mut();
        inner.streams.remove(id);
        inner.connection.close_stream(*id, end).ok();
        peer.wake.notify_one();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end(StreamEnd::Cancelled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skeg_protocol::Uid;
    use skeg_protocol::limits::STREAM_WINDOW;

    #[test]
    fn a_stream_carries_more_than_its_window_and_ends() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let (near, far) = tokio::io::duplex(4096);
            let client = Peer::new(|now| Ok(Connection::local(now))).unwrap();
            let server = Peer::new(|now| Ok(Connection::local(now))).unwrap();
            let total = STREAM_WINDOW as usize * 5 + 123;
            let serving = Rc::clone(&server);
            tokio::task::spawn_local(async move {
                let handler = Rc::clone(&serving);
                serving
                    .run(far, |message| {
                        let Message::StreamOpen(open) = message else { panic!("{message:?}") };
                        let stream = handler.stream(open.id);
                        tokio::task::spawn_local(async move {
                            stream.sender().send(Channel::Stdout, &vec![7; total]).await.unwrap();
                            stream.close(StreamEnd::Exited(3));
                        });
                    })
                    .await
            });
            let running = Rc::clone(&client);
            tokio::task::spawn_local(async move { running.run(near, |message| panic!("{message:?}")).await });
            let request = StreamRequest::Exec {
                pod: Uid::default(),
                container: "main".try_into().unwrap(),
                command: vec!["true".to_owned()],
                tty: false,
                stdin: false,
            };
            let mut stream = client.open(request).unwrap();
            let mut got = 0;
            let end = loop {
                match stream.next().await.unwrap() {
                    StreamEvent::Data(Channel::Stdout, bytes) => got += bytes.len(),
                    StreamEvent::Closed(end) => break end,
                    other => panic!("{other:?}"),
                }
            };
            assert_eq!((got, end), (total, StreamEnd::Exited(3)));
        });
    }
}
