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
//!   Heartbeat after each silent interval ▶  answered where it asks for that
//!   any message ◀───────────────────────▶  any message
//!   ◀───────────────────────────── Goodbye
//! ```
//! TCP acknowledges a heartbeat already, so that the device asks for an answer only after several intervals in which it
//! heard nothing. What belongs to a stream goes out after everything else, a piece at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;

use crate::bulk::Bulk;
use crate::codec::{self, CodecError, Decoder};
use crate::limits::{MAX_STREAM_DATA, MAX_STREAMS, STREAM_WINDOW};
use crate::message::{
    Channel, Heartbeat, Hello, Message, Reject, StreamClose, StreamCredit, StreamData, StreamEnd, StreamOpen,
    StreamRequest, VERSIONS, Welcome,
};
use crate::traffic::{Purpose, Traffic};

/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(20);
/// How many heartbeat intervals without a word that was due mean a dead link.
pub const SILENT_INTERVALS: u32 = 3;
/// After how many intervals in which it heard nothing a device asks for an answer.
const ANSWER_INTERVALS: u32 = 8;
/// Bytes after which [`Connection::output`] adds nothing of streams: what is urgent waits for no more than this.
const TURN: usize = 16 * 1024;

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
    /// What is to be written first.
    urgent: Vec<u8>,
    /// What is to be written afterwards.
    bulk: Bulk,
    traffic: Traffic,
    heartbeat: Duration,
    /// As [`ANSWER_INTERVALS`], of this connection.
    answer_after: u32,
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
            urgent: Vec::new(),
            bulk: Bulk::default(),
            traffic: Traffic::default(),
            heartbeat: HANDSHAKE_TIMEOUT,
            answer_after: ANSWER_INTERVALS,
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
        this.send(hello)?;
        Ok(this)
    }

    /// Has every heartbeat of a device ask for an answer: through a proxy, TCP's acknowledgement says nothing about the
    /// controller.
    pub fn always_ask(&mut self) {
        self.answer_after = 0;
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
        while let Some((message, length)) = self.decoder.next_with_length()? {
            self.traffic.count_received(Purpose::of(&message), length);
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
            (State::Open, Message::Heartbeat(heartbeat)) => {
                if self.role == Role::Controller && heartbeat.answer {
                    self.send(Heartbeat::default())?;
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
            Message::StreamClose(StreamClose { id, .. }) => {
                self.bulk.forget(*id);
                return Ok(self.streams.remove(id).is_some());
            }
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
        self.send(welcome)
    }

    /// Refuses the device that said Hello; the caller writes the output and closes.
    ///
    /// # Errors
    /// The reason exceeds a frame.
    pub fn reject(&mut self, reject: Reject) -> Result<(), LinkError> {
        self.send(reject)
    }

    /// Sends a message. Streams have their own calls.
    ///
    /// # Errors
    /// The message exceeds a frame; nothing was sent, the connection can go on.
    pub fn send(&mut self, message: impl Into<Message>) -> Result<(), LinkError> {
        let (message, before) = (message.into(), self.urgent.len());
        codec::encode(&message, &mut self.urgent)?;
        self.traffic.count_sent(Purpose::of(&message), self.urgent.len() - before);
        Ok(())
    }

    /// Queues a frame behind what its stream has sent before.
    fn send_in_turn(&mut self, id: u32, message: impl Into<Message>) -> Result<(), LinkError> {
        let (message, mut frame) = (message.into(), Vec::new());
        codec::encode(&message, &mut frame)?;
        self.traffic.count_sent(Purpose::of(&message), frame.len());
        self.bulk.push(id, frame);
        Ok(())
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
        self.send(StreamOpen { id, request })?;
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
            self.send_in_turn(id, StreamData { id, channel, bytes: piece.to_vec() })?;
        }
        Ok(length)
    }

    /// Ends a stream's standard input.
    ///
    /// # Errors
    /// The message exceeds a frame (it never does).
    pub fn end_stdin(&mut self, id: u32) -> Result<(), LinkError> {
        self.send_in_turn(id, StreamData { id, channel: Channel::Stdin, bytes: Vec::new() })
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
            self.send(StreamCredit { id, bytes })?;
        }
        Ok(())
    }

    /// Ends a stream, after what was sent on it; a cancelled one at once. Does nothing when it is closed already.
    ///
    /// # Errors
    /// The reason exceeds a frame.
    pub fn close_stream(&mut self, id: u32, end: StreamEnd) -> Result<(), LinkError> {
        if self.streams.remove(&id).is_none() {
            return Ok(());
        }
        if end == StreamEnd::Cancelled {
            self.bulk.forget(id);
        }
        self.send_in_turn(id, StreamClose { id, end })
    }

    /// Takes the bytes that are to be written next, and notes that they go out now. Streams get a bounded turn after
    /// everything else; the caller comes back for more once these are written.
    pub fn output(&mut self, now: Duration) -> Vec<u8> {
        let mut output = std::mem::take(&mut self.urgent);
        while output.len() < TURN
            && let Some(frame) = self.bulk.pop()
        {
            output.extend_from_slice(&frame);
        }
        if !output.is_empty() {
            self.sent = now;
        }
        output
    }

    /// Whether [`Connection::output`] has something.
    pub fn has_output(&self) -> bool {
        !self.urgent.is_empty() || !self.bulk.is_empty()
    }

    /// Bytes outside streams that wait to be written; a caller that reads more only below a bound of its own stays
    /// bounded. Those of streams are bounded by their credit.
    pub fn backlog(&self) -> usize {
        self.urgent.len()
    }

    /// The bytes of this connection so far.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Seconds between heartbeats, once the handshake is done.
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat
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

    /// A heartbeat is due when the device was silent for an interval, and when it is time to ask for an answer: a device
    /// that talks without pause must hear now and then that the controller lives.
    fn heartbeat_due(&self) -> Duration {
        let tell = self.sent.max(self.asked) + self.heartbeat;
        let ask = self.answer_due().max(self.asked + self.heartbeat);
        tell.min(ask)
    }

    /// From when on a device asks for an answer.
    fn answer_due(&self) -> Duration {
        self.heard + self.heartbeat * self.answer_after
    }

    fn silence_ends(&self) -> Duration {
        match self.role {
            Role::Device => self.answer_due() + self.heartbeat * SILENT_INTERVALS,
            _ => self.heard + self.heartbeat * SILENT_INTERVALS,
        }
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
            self.send(Heartbeat { answer: now >= self.answer_due() })?;
            self.asked = now;
        }
        Ok(())
    }
}
