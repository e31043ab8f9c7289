//! One connection as a state machine without I/O: bytes and time in, bytes and messages out.
//!
//! It owns what both ends must agree on: the order of the handshake, heartbeats and silence, and the credit of
//! streams. What messages mean is the caller's. Time is a [`Duration`] since any fixed instant of a clock that
//! never goes back.
//!
//! ```text
//! device                              controller
//!   Hello ──────────────────────────────▶  welcome() or reject()
//!   ◀───────────────────────────── Welcome
//!   Heartbeat after each silent interval ▶  answered by Heartbeat
//!   any message ◀───────────────────────▶  any message
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;

use crate::codec::{self, CodecError, Decoder};
use crate::limits::{MAX_STREAM_DATA, MAX_STREAMS, STREAM_WINDOW};
use crate::message::{
    Channel, Heartbeat, Hello, Message, Reject, StreamClose, StreamCredit, StreamData, StreamEnd, StreamOpen,
    StreamRequest, VERSIONS, Welcome,
};

/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// How many heartbeat intervals without a word mean a dead link.
const SILENT_INTERVALS: u32 = 3;

/// Which end of a connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Sends Hello, then heartbeats.
    Device,
    /// Answers both.
    Controller,
    /// Either end of the local socket: no handshake, no heartbeat.
    Local,
}

/// Why a connection must end.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LinkError {
    /// The bytes are no messages.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A message came that has no place here.
    #[error("a message of kind {kind} came {place}")]
    OutOfPlace {
        /// Kind number.
        kind: u8,
        /// Where the protocol does not allow it.
        place: &'static str,
    },
    /// The controller did not let the device in.
    #[error("the controller refused this device ({:?}): {}", .0.code, .0.message)]
    Rejected(Reject),
    /// The peer speaks no version that this end speaks.
    #[error("the peer chose protocol version {0}, which this version does not speak")]
    Version(u16),
    /// The peer sent more on a stream than it was allowed to, or opened too many.
    #[error("stream {id}: {problem}")]
    Stream {
        /// Stream id.
        id: u32,
        /// What it did.
        problem: &'static str,
    },
    /// Nothing was heard for too long.
    #[error("nothing was heard from the peer for {} s", .0.as_secs())]
    Silent(Duration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AwaitHello,
    AwaitAnswer,
    AwaitWelcome,
    Open,
}

/// Credit of one stream.
#[derive(Debug)]
struct Flow {
    /// Bytes that this end may still send.
    send: u32,
    /// Bytes that the peer may still send.
    receive: u32,
    /// Bytes that the caller has dealt with and the peer has not been told of.
    consumed: u32,
}

impl Default for Flow {
    fn default() -> Self {
        Flow { send: STREAM_WINDOW, receive: STREAM_WINDOW, consumed: 0 }
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    state: State,
    decoder: Decoder,
    output: Vec<u8>,
    heartbeat: Duration,
    began: Duration,
    sent: Duration,
    heard: Duration,
    /// When the last heartbeat was queued.
    asked: Duration,
    streams: BTreeMap<u32, Flow>,
    next_stream: u32,
}

impl Connection {
    fn new(role: Role, state: State, now: Duration) -> Self {
        Connection {
            role,
            state,
            decoder: Decoder::default(),
            output: Vec::new(),
            heartbeat: HANDSHAKE_TIMEOUT,
            began: now,
            sent: now,
            heard: now,
            asked: now,
            streams: BTreeMap::new(),
            next_stream: 1,
        }
    }

    /// The device's end; its Hello is ready to be written.
    ///
    /// # Errors
    /// The Hello exceeds a frame.
    pub fn device(hello: Hello, now: Duration) -> Result<Self, LinkError> {
        let mut this = Self::new(Role::Device, State::AwaitWelcome, now);
        codec::encode(&hello.into(), &mut this.output)?;
        Ok(this)
    }

    /// The controller's end; it waits for a Hello.
    pub fn controller(now: Duration) -> Self {
        Self::new(Role::Controller, State::AwaitHello, now)
    }

    /// Either end of the local socket.
    pub fn local(now: Duration) -> Self {
        Self::new(Role::Local, State::Open, now)
    }

    /// Takes bytes from the peer. [`Connection::next`] must be drained after each call.
    pub fn receive(&mut self, bytes: &[u8], now: Duration) {
        self.heard = now;
        self.decoder.push(bytes);
    }

    /// Gives the next message for the caller. Heartbeats and credit are dealt with inside.
    ///
    /// # Errors
    /// The connection must end; what [`Connection::output`] holds may still be written.
    #[allow(clippy::should_implement_trait, reason = "an iterator ends, a connection waits")]
    pub fn next(&mut self) -> Result<Option<Message>, LinkError> {
        while let Some(message) = self.decoder.next()? {
            if self.admit(&message)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Checks that a message has its place now; says whether the caller is to see it.
    fn admit(&mut self, message: &Message) -> Result<bool, LinkError> {
        let misplaced = |place| Err(LinkError::OutOfPlace { kind: message.kind(), place });
        match (self.state, message) {
            (State::AwaitHello, Message::Hello(_)) => self.state = State::AwaitAnswer,
            (State::AwaitWelcome, Message::Reject(reject)) => return Err(LinkError::Rejected(reject.clone())),
            (State::AwaitWelcome, Message::Welcome(welcome)) => self.opened(welcome)?,
            (State::AwaitHello | State::AwaitAnswer | State::AwaitWelcome, _) => {
                return misplaced("before the handshake was done");
            }
            (State::Open, Message::Hello(_) | Message::Welcome(_) | Message::Reject(_)) => {
                return misplaced("after the handshake was done");
            }
            (State::Open, Message::Heartbeat(_)) => {
                if self.role == Role::Controller {
                    codec::encode(&Heartbeat.into(), &mut self.output)?;
                }
                return Ok(false);
            }
            (State::Open, _) => return self.admit_stream(message),
        }
        Ok(true)
    }

    fn opened(&mut self, welcome: &Welcome) -> Result<(), LinkError> {
        if !(VERSIONS.oldest..=VERSIONS.newest).contains(&welcome.version) {
            return Err(LinkError::Version(welcome.version));
        }
        self.heartbeat = Duration::from_secs(welcome.heartbeat_seconds.max(1).into());
        self.state = State::Open;
        Ok(())
    }

    fn admit_stream(&mut self, message: &Message) -> Result<bool, LinkError> {
        match message {
            Message::StreamOpen(StreamOpen { id, .. }) => {
                let fault = |problem| Err(LinkError::Stream { id: *id, problem });
                if self.role == Role::Controller {
                    return fault("opened by a device");
                }
                if self.streams.len() >= MAX_STREAMS {
                    return fault("one too many");
                }
                if self.streams.insert(*id, Flow::default()).is_some() {
                    return fault("opened twice");
                }
            }
            Message::StreamData(StreamData { id, bytes, .. }) => {
                // A stream that this end has closed may still have data under way: dropped without a word.
                let Some(flow) = self.streams.get_mut(id) else { return Ok(false) };
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                flow.receive = flow
                    .receive
                    .checked_sub(length)
                    .ok_or(LinkError::Stream { id: *id, problem: "sent more than its credit" })?;
            }
            Message::StreamCredit(StreamCredit { id, bytes }) => {
                if let Some(flow) = self.streams.get_mut(id) {
                    flow.send = flow
                        .send
                        .checked_add(*bytes)
                        .filter(|total| *total <= STREAM_WINDOW)
                        .ok_or(LinkError::Stream { id: *id, problem: "granted more than the window" })?;
                }
                // The caller sees it: a stream that waited for credit may go on.
                return Ok(self.streams.contains_key(id));
            }
            Message::StreamClose(StreamClose { id, .. }) => return Ok(self.streams.remove(id).is_some()),
            Message::StreamResize(resize) => return Ok(self.streams.contains_key(&resize.id)),
            _ => {}
        }
        Ok(true)
    }

    /// Accepts the device that said Hello.
    ///
    /// # Errors
    /// No Hello is waiting for an answer.
    pub fn welcome(&mut self, welcome: Welcome) -> Result<(), LinkError> {
        if self.state != State::AwaitAnswer {
            return Err(LinkError::OutOfPlace { kind: 2, place: "without a Hello to answer" });
        }
        self.opened(&welcome)?;
        codec::encode(&welcome.into(), &mut self.output)?;
        Ok(())
    }

    /// Refuses the device that said Hello; the caller writes the output and closes.
    ///
    /// # Errors
    /// The reason exceeds a frame.
    pub fn reject(&mut self, reject: Reject) -> Result<(), LinkError> {
        Ok(codec::encode(&reject.into(), &mut self.output)?)
    }

    /// Sends a message. Streams have their own calls.
    ///
    /// # Errors
    /// The message exceeds a frame; nothing was sent, the connection can go on.
    pub fn send(&mut self, message: impl Into<Message>) -> Result<(), LinkError> {
        Ok(codec::encode(&message.into(), &mut self.output)?)
    }

    /// Opens a stream and gives its id.
    ///
    /// # Errors
    /// Too many are open, or the request exceeds a frame.
    pub fn open_stream(&mut self, request: StreamRequest) -> Result<u32, LinkError> {
        let id = self.next_stream;
        if self.streams.len() >= MAX_STREAMS {
            return Err(LinkError::Stream { id, problem: "one too many" });
        }
        codec::encode(&StreamOpen { id, request }.into(), &mut self.output)?;
        self.streams.insert(id, Flow::default());
        self.next_stream = self.next_stream.wrapping_add(1);
        Ok(id)
    }

    /// Bytes that may be sent on a stream now; `None` when it is closed.
    pub fn stream_credit(&self, id: u32) -> Option<usize> {
        self.streams.get(&id).map(|flow| flow.send as usize)
    }

    /// Sends as much of `bytes` as credit allows and says how much that was.
    ///
    /// # Errors
    /// The stream is closed.
    pub fn send_stream(&mut self, id: u32, channel: Channel, bytes: &[u8]) -> Result<usize, LinkError> {
        let flow = self.streams.get_mut(&id).ok_or(LinkError::Stream { id, problem: "is closed" })?;
        let length = bytes.len().min(flow.send as usize);
        flow.send -= length as u32;
        for piece in bytes[..length].chunks(MAX_STREAM_DATA) {
            codec::encode(&StreamData { id, channel, bytes: piece.to_vec() }.into(), &mut self.output)?;
        }
        Ok(length)
    }

    /// Ends a stream's standard input.
    ///
    /// # Errors
    /// The message exceeds a frame (it never does).
    pub fn end_stdin(&mut self, id: u32) -> Result<(), LinkError> {
        self.send(StreamData { id, channel: Channel::Stdin, bytes: Vec::new() })
    }

    /// Says that the caller has dealt with received bytes, so that the peer may send more.
    ///
    /// # Errors
    /// The message exceeds a frame (it never does).
    pub fn consumed(&mut self, id: u32, bytes: usize) -> Result<(), LinkError> {
        let Some(flow) = self.streams.get_mut(&id) else { return Ok(()) };
        flow.consumed += bytes as u32;
        if flow.consumed >= STREAM_WINDOW / 2 {
            let bytes = std::mem::take(&mut flow.consumed);
            flow.receive += bytes;
            codec::encode(&StreamCredit { id, bytes }.into(), &mut self.output)?;
        }
        Ok(())
    }

    /// Ends a stream; does nothing when it is closed already.
    ///
    /// # Errors
    /// The reason exceeds a frame.
    pub fn close_stream(&mut self, id: u32, end: StreamEnd) -> Result<(), LinkError> {
        if self.streams.remove(&id).is_some() {
            codec::encode(&StreamClose { id, end }.into(), &mut self.output)?;
        }
        Ok(())
    }

    /// Takes the bytes that are to be written, and notes that they go out now.
    pub fn output(&mut self, now: Duration) -> Vec<u8> {
        if !self.output.is_empty() {
            self.sent = now;
        }
        std::mem::take(&mut self.output)
    }

    /// Bytes that wait to be written; a caller that reads more only below a bound of its own stays bounded.
    pub fn backlog(&self) -> usize {
        self.output.len()
    }

    /// Whether the handshake is done.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// When [`Connection::tick`] wants to be called next.
    pub fn deadline(&self) -> Option<Duration> {
        match (self.role, self.state) {
            (Role::Local, _) => None,
            (Role::Device, State::Open) => Some(self.silence_ends().min(self.heartbeat_due())),
            (_, State::Open) => Some(self.silence_ends()),
            _ => Some(self.began + HANDSHAKE_TIMEOUT),
        }
    }

    /// A heartbeat asks as much as it tells: it is due when either direction was quiet for an interval, so that
    /// a device which talks without pause still hears that the controller lives.
    fn heartbeat_due(&self) -> Duration {
        self.asked.max(self.sent.min(self.heard)) + self.heartbeat
    }

    fn silence_ends(&self) -> Duration {
        self.heard + self.heartbeat * SILENT_INTERVALS
    }

    /// Sends a heartbeat when one is due.
    ///
    /// # Errors
    /// [`LinkError::Silent`] when the peer is gone.
    pub fn tick(&mut self, now: Duration) -> Result<(), LinkError> {
        let limit = match (self.role, self.state) {
            (Role::Local, _) => return Ok(()),
            (_, State::Open) => self.silence_ends(),
            _ => self.began + HANDSHAKE_TIMEOUT,
        };
        if now >= limit {
            return Err(LinkError::Silent(now - self.heard));
        }
        if self.role == Role::Device && self.state == State::Open && now >= self.heartbeat_due() {
            codec::encode(&Heartbeat.into(), &mut self.output)?;
            self.asked = now;
        }
        Ok(())
    }
}
