//! netlink(7): messages as bytes, and their exchange with the kernel.
//!
//! Owns the encoding of messages and attributes for every family that the agent speaks (rtnetlink, nf_tables,
//! connection tracking) and one socket type. Knows no family's words but [`route`]'s. The kernel answers within the
//! call, so nothing here waits for a network.

pub mod route;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Netfilter's family of netlink.
pub const NETFILTER: Option<Protocol> = Some(rustix::net::netlink::NETFILTER);
/// Routes, links, addresses: the family with number 0.
pub const ROUTE: Option<Protocol> = None;

/// Asks for a receipt.
pub const ACK: u16 = 0x4;
/// Asks for a list.
pub const DUMP: u16 = 0x300;
/// Replaces what is there.
pub const REPLACE: u16 = 0x100;
/// Refuses to make what is there.
pub const EXCLUSIVE: u16 = 0x200;
/// Makes what is not there.
pub const CREATE: u16 = 0x400;
/// Adds to the end.
pub const APPEND: u16 = 0x800;
const REQUEST: u16 = 0x1;

const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
/// Bytes before a message's own header.
const HEADER: usize = 16;
/// Marks an attribute that holds attributes.
const NESTED: u16 = 0x8000;
/// Largest datagram that the kernel makes for a list, doubled.
const BUFFER: usize = 64 * 1024;

/// One message under construction; attributes are aligned to four bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(Vec<u8>);

impl Message {
    /// Begins a message of a kind with its family's own header.
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(header);
        Message(bytes)
    }

    /// Adds an attribute of at most 64 KiB.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.attribute(kind, |bytes| bytes.extend(value))
    }

    /// Adds a number in the machine's order.
    pub fn put_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds a number in the network's order, as all of netfilter's are.
    pub fn put_be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds a text with its final NUL.
    pub fn put_text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.attribute(kind, |bytes| {
            bytes.extend(value.as_bytes());
            bytes.push(0);
        })
    }

    /// Adds an attribute that holds others.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Self {
        let at = self.0.len();
        self.0.extend([0; 4]);
        fill(self);
        self.close(at, kind | NESTED)
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        let at = self.0.len();
        self.0.extend([0; 4]);
        fill(&mut self.0);
        self.close(at, kind)
    }

    fn close(&mut self, at: usize, kind: u16) -> &mut Self {
        // A longer attribute is refused by the kernel as malformed; callers split their lists.
        let length = u16::try_from(self.0.len() - at).unwrap_or(u16::MAX);
        self.0[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[at + 2..at + 4].copy_from_slice(&kind.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds bytes that are no attribute, such as the header inside a veth's peer.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend(bytes);
        self
    }

    /// The finished message with its number.
    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// A message of the kernel: its kind, and what follows the common header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// As the family numbers them.
    pub kind: u16,
    /// The number of the socket that asked; in news, of the one whose change it is.
    pub port: u32,
    /// The family's header and the attributes.
    pub body: Vec<u8>,
}

/// The attributes in some bytes; ends at the first that does not fit.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !NESTED, value))
    })
}

/// The value of one attribute.
pub fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// A failed message of several: its place among them, and the kernel's reason.
#[derive(Debug)]
pub struct Refused {
    /// Counted from 0.
    pub index: usize,
    /// Why.
    pub source: io::Error,
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        refused.source
    }
}

fn refused_at(index: usize) -> impl Fn(rustix::io::Errno) -> Refused {
    move |errno| Refused { index, source: errno.into() }
}

/// A socket to the kernel.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket {
    /// Opens a socket in the thread's network namespace. `groups` are the multicast groups to hear, a bit each.
    pub fn open(family: Option<Protocol>, groups: u32) -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, family)?;
        bind(&socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(Socket(socket))
    }

    /// Sends one request and gives all answers: of a list each item, else at most one.
    pub fn ask(&self, message: Message) -> io::Result<Vec<Answer>> {
        send(&self.0, &message.finish(1), SendFlags::empty())?;
        let (mut answers, mut buffer) = (Vec::new(), vec![0; BUFFER]);
        loop {
            let (length, _) = recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty())?;
            for (sequence, answer) in messages(&buffer[..length]) {
                match answer.kind {
                    _ if sequence != 1 => {}
                    KIND_DONE => return Ok(answers),
                    KIND_ERROR => return error_of(&answer.body).map_or(Ok(answers), Err),
                    _ => answers.push(answer),
                }
            }
        }
    }

    /// Sends requests together and waits for the receipt of each.
    pub fn carry_out(&self, messages: Vec<Message>) -> Result<(), Refused> {
        let count = messages.len();
        let mut bytes = Vec::with_capacity(count * 128);
        for (message, sequence) in messages.into_iter().zip(1..) {
            bytes.extend(message.finish(sequence));
        }
        send(&self.0, &bytes, SendFlags::empty()).map_err(refused_at(0))?;
        let (mut receipts, mut failed, mut buffer) = (0, None, vec![0; BUFFER]);
        while receipts < count {
            let (length, _) = recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()).map_err(refused_at(receipts))?;
            for (sequence, answer) in self::messages(&buffer[..length]) {
                let Some(index) = (sequence as usize).checked_sub(1).filter(|_| answer.kind == KIND_ERROR) else {
                    continue;
                };
                receipts += 1;
                if let Some(source) = error_of(&answer.body).filter(|_| failed.is_none()) {
                    failed = Some(Refused { index, source });
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Sends messages that the kernel takes or refuses as one, as nf_tables does between its two marks. It answers
    /// before the call returns, and only where something is wrong.
    pub fn carry_out_as_one(&self, messages: Vec<Message>) -> Result<(), Refused> {
        let mut bytes = Vec::with_capacity(messages.len() * 256);
        for (message, sequence) in messages.into_iter().zip(1..) {
            bytes.extend(message.finish(sequence));
        }
        rustix::net::sockopt::set_socket_send_buffer_size_force(&self.0, bytes.len().max(BUFFER) * 2)
            .map_err(refused_at(0))?;
        send(&self.0, &bytes, SendFlags::empty()).map_err(refused_at(0))?;
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = match recv(&self.0, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((length, _)) => length,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(refused_at(0)(error)),
            };
            for (sequence, answer) in self::messages(&buffer[..length]) {
                if let Some(source) = error_of(&answer.body).filter(|_| answer.kind == KIND_ERROR) {
                    return Err(Refused { index: (sequence as usize).saturating_sub(1), source });
                }
            }
        }
    }

    /// The number under which the kernel knows this socket.
    pub fn port(&self) -> io::Result<u32> {
        let address = SocketAddrNetlink::try_from(rustix::net::getsockname(&self.0)?)?;
        Ok(address.pid())
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.0
    }
}

/// What the kernel told a listener's socket; `None` where nothing is there now.
///
/// # Errors
/// As recv(2); `ENOBUFS` says that something was missed.
pub fn told(socket: impl AsFd) -> io::Result<Option<Vec<Answer>>> {
    let mut buffer = vec![0; BUFFER];
    match recv(socket, buffer.as_mut_slice(), RecvFlags::DONTWAIT) {
        Ok((length, _)) => Ok(Some(messages(&buffer[..length]).map(|(_, answer)| answer).collect())),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Does something inside another network namespace, on a thread of its own: a thread that has entered one must not
/// serve anybody else.
pub fn inside<T: Send>(network: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let entered = || {
            move_into_link_name_space(network, Some(LinkNameSpaceType::Network))?;
            Ok(work())
        };
        let thread = std::thread::Builder::new().stack_size(128 * 1024).spawn_scoped(scope, entered)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the network namespace panicked")))
    })
}

/// The messages of one datagram with their numbers.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u32, Answer)> {
    std::iter::from_fn(move || {
        let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let length = usize::try_from(number(0)?).ok()?;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let (sequence, port, body) = (number(8)?, number(12)?, bytes.get(HEADER..length)?.to_vec());
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((sequence, Answer { kind, port, body }))
    })
}

fn error_of(body: &[u8]) -> Option<io::Error> {
    let code = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    (code != 0).then(|| io::Error::from_raw_os_error(-code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_nested_and_read_again() {
        let mut message = Message::new(7, ACK, &[1, 2, 3, 4]);
        message.put_text(3, "lo").nest(18, |inner| {
            inner.put(1, b"veth").put_u32(2, 9);
        });
        let bytes = message.finish(5);
        let (sequence, answer) = messages(&bytes).next().unwrap();
        assert_eq!((sequence, answer.kind), (5, 7));
        let body = &answer.body[4..];
        assert_eq!(attribute(body, 3), Some(b"lo\0".as_slice()));
        let inner = attribute(body, 18).unwrap();
        assert_eq!(attribute(inner, 1), Some(b"veth".as_slice()));
        assert_eq!(attribute(inner, 2), Some(9u32.to_ne_bytes().as_slice()));
        assert_eq!(attribute(inner, 3), None);
    }

    #[test]
    fn attributes_that_lie_about_their_length_end_the_list() {
        for bytes in [&[0u8, 0, 1, 0][..], &[3, 0, 1, 0], &[200, 0, 1, 0, 1], &[8], &[]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
