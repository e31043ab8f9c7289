//! The datagrams between init and agent: postcard over a `SOCK_SEQPACKET` pair, descriptors by `SCM_RIGHTS`.
//!
//! Owns their form and their bounds. Keeps no state.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Most items that init holds.
pub const MAX_ITEMS: usize = 4096;
/// Most descriptors of one item.
pub const MAX_FDS: usize = 8;
/// Longest key in bytes.
pub const MAX_KEY: usize = 200;
/// Most bytes of the agent's own in one item.
pub const MAX_DATA: usize = 512;
/// Largest datagram in bytes.
pub(crate) const MAX_DATAGRAM: usize = 4096;

pub(crate) type Key = heapless::String<MAX_KEY>;
pub(crate) type Data = heapless::Vec<u8, MAX_DATA>;
pub(crate) type Fds = heapless::Vec<OwnedFd, MAX_FDS>;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// It left with this code, 0 to 255.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
    /// It is gone and was never init's child, or ended too long before it was held: nobody knows how.
    Lost,
}

/// The end of a held process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exited {
    /// Key of the item.
    pub key: String,
    /// The process that it had.
    pub pid: i32,
    /// How it ended.
    pub exit: Exit,
    /// When init reaped it: milliseconds since 1970 by the device's own clock, which may be wrong.
    pub at_ms: u64,
}

/// Why init does not hold an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The table is full.
    #[error("init already holds {MAX_ITEMS} items")]
    Full,
    /// Not all descriptors arrived: more than [`MAX_FDS`], or init has no free descriptor left.
    #[error("not all descriptors arrived at init: more than {MAX_FDS}, or init has none free (ulimit -n)")]
    Descriptors,
}

/// From agent to init.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack: init allocates nothing for it")]
pub(crate) enum Request {
    List,
    Hold { sequence: u32, key: Key, pid: Option<i32>, data: Data },
    Forget { sequence: u32, key: Key },
    Alive,
}

/// From init to agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "one at a time, on the stack: init allocates nothing for it")]
pub(crate) enum Reply {
    Item { key: Key, pid: Option<i32>, data: Data, ended: Option<Ended> },
    ListEnd,
    Done { sequence: u32 },
    Refused { sequence: u32, refusal: Refusal },
    Exited { key: Key, pid: i32, ended: Ended },
    Ping,
}

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) exit: Exit,
    pub(crate) at_ms: u64,
}

/// One datagram as it arrived.
pub(crate) struct Received {
    /// Its bytes in the caller's buffer; 0 when the peer is gone.
    pub(crate) length: usize,
    pub(crate) fds: Fds,
    /// Descriptors were lost on the way.
    pub(crate) fds_cut: bool,
    /// Bytes were lost on the way.
    pub(crate) cut: bool,
}

/// Sends one datagram and never waits: a full socket is [`io::ErrorKind::WouldBlock`].
pub(crate) fn send(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut buffer = [0; MAX_DATAGRAM];
    let bytes = postcard::to_slice(message, &mut buffer).map_err(io::Error::other)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one datagram and never waits: an empty socket is [`io::ErrorKind::WouldBlock`].
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8; MAX_DATAGRAM]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut fds = Fds::new();
    let mut fds_cut = message.flags.contains(ReturnFlags::CTRUNC);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(arrived) = message {
            for fd in arrived {
                // One descriptor too many closes itself here.
                fds_cut |= fds.push(fd).is_err();
            }
        }
    }
    Ok(Received { length: message.bytes, fds, fds_cut, cut: message.flags.contains(ReturnFlags::TRUNC) })
}
