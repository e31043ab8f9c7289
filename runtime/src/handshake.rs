//! The words between the caller and the child that it has cloned, from the clone until the child's program runs.
//!
//! Owns the channel, its messages, and the child's walk over the steps. Must not know what a step does.
//!
//! ```text
//!   caller (creates)                     child                                caller (starts), maybe much later
//!   ----------------                     -----                                ---------------------------------
//!   clone3 ────────────────────────────▶ walks the steps
//!   knows the child ◀─ pid, pidfd ─────── Clone: the entrance tells of the child that it has cloned, and ends
//!        ──────────────────── go ──────▶ the child goes on with the steps
//!   clones the source ◀───── reached ─── BindMount
//!        ─────────────────── mount ────▶ attaches it
//!   runs hooks ◀──────────── reached ─── AwaitCaller
//!        ──────────────────── go ──────▶
//!   takes it to the agent ◀── listener ── Seccomp that notifies
//!   returns; its end closes ◀─ reached ─ AwaitStart: accepts ◀─────────────── connects to the start socket, one byte
//!                                        the connection is the channel now
//!                                        AwaitCaller ── reached ────────────▶ runs startContainer hooks
//!                                                    ◀──── go ───────────────
//!                                        a step fails ── index, errno, text ▶ tells it
//!                                        execve ──────── end of file ───────▶ the container runs
//! ```
//!
//! Without `AwaitStart` the last three lines go to the first caller: a resident start waits for no answer at all.
//!
//! The start socket listens in a folder of the caller's. Once the creator is gone the waiting child alone holds it, so the
//! kernel itself tells a created container (connecting works) from a running one (refused), and a failure to run the
//! program finds its way back. A fifo, as runc and crun use it, does neither.

use crate::plan::{StartError, above_standard};
use crate::step::{self, FilesystemStep, Step};
use crate::sys::{self, CloneRequest, Errno};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, bind,
    connect, listen, recvmsg, socket_with, socketpair,
};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A message of the child: the step's index and the errno, 32 bits each in the machine's order, and a text.
const HEADER_LENGTH: usize = 8;
/// The longest message; a text is cut to it.
const MESSAGE_MAXIMUM: usize = 512;
/// What the caller answers, and what `start` begins with.
const GO: [u8; 1] = [b'!'];

/// The socket pair between a caller and its child. Each message stays whole, and the end of the other side is seen.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) caller: OwnedFd,
    pub(crate) child: OwnedFd,
}

impl Channel {
    pub(crate) fn new() -> Result<Channel, StartError> {
        let failed = |source: rustix::io::Errno| StartError::Caller { call: "socketpair", source: source.into() };
        let (caller, child) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(failed)?;
        Ok(Channel { caller: above_standard(caller)?, child: above_standard(child)? })
    }
}

/// What a child says.
#[derive(Debug)]
pub(crate) enum Message {
    /// It has reached this step and waits for the caller.
    Reached(usize),
    /// This step failed; the text tells it, if the listener can't know the plan.
    Failed { index: usize, errno: i32, text: String },
    /// The rest of the plan has become the work of this child.
    Born { pid: i32, pidfd: OwnedFd },
    /// Its seccomp filter is in force, and this is the filter's listener.
    Listens(OwnedFd),
    /// It runs its program, or is gone.
    End,
}

/// Reads the next message.
pub(crate) fn receive(channel: &OwnedFd) -> Result<Message, StartError> {
    let mut buffer = [0_u8; MESSAGE_MAXIMUM];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut attached = RecvAncillaryBuffer::new(&mut space);
    let read = loop {
        let mut parts = [io::IoSliceMut::new(&mut buffer)];
        match recvmsg(channel, &mut parts, &mut attached, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(source) => return Err(StartError::Caller { call: "recvmsg", source: source.into() }),
            Ok(message) => break message.bytes,
        }
    };
    let mut descriptors = attached.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let Some((header, text)) = buffer[..read].split_at_checked(HEADER_LENGTH) else {
        return if read == 0 { Ok(Message::End) } else { Err(StartError::Report) };
    };
    let (index, errno) = header.split_at(4);
    let word = |bytes: &[u8]| bytes.try_into().map(u32::from_ne_bytes).map_err(|_| StartError::Report);
    let (index, errno) = (word(index)? as usize, word(errno)? as i32);
    if errno != 0 {
        return Ok(Message::Failed { index, errno, text: String::from_utf8_lossy(text).into_owned() });
    }
    Ok(match descriptors.next().and_then(|mut descriptors| descriptors.next()) {
        Some(listener) if text.is_empty() => Message::Listens(listener),
        Some(pidfd) => Message::Born { pid: word(text)? as i32, pidfd },
        None => Message::Reached(index),
    })
}

/// Hands the child what it waits for.
pub(crate) fn hand_over(channel: &OwnedFd, mount: &OwnedFd) -> Result<(), StartError> {
    let sent = sys::send_descriptor(channel.as_raw_fd(), &GO, mount.as_raw_fd());
    sent.map_err(|errno| StartError::Caller { call: "sendmsg", source: errno.into() })
}

/// Lets the child go on.
pub(crate) fn let_go(channel: &OwnedFd) -> Result<(), StartError> {
    let sent = rustix::net::send(channel, &GO, rustix::net::SendFlags::NOSIGNAL);
    sent.map(drop).map_err(|source| StartError::Caller { call: "send", source: source.into() })
}

/// Walks the steps. Runs in the child; returns only on failure.
pub(crate) fn walk(steps: &[Step], caller_end: i32, channel: i32) {
    // With this copy open, the child would never see its caller's end.
    sys::close(caller_end);
    walk_from(0, steps, channel);
}

fn walk_from(first: usize, steps: &[Step], channel: i32) {
    let mut texts: (usize, &[String]) = (usize::MAX, &[]);
    for (index, step) in steps.iter().enumerate().skip(first) {
        let done = match step {
            Step::AwaitCaller => say(channel, index, 0, b"", None).and_then(|()| hear(channel)),
            Step::AwaitStart { listener, later } => {
                texts = (index + 1, later);
                await_start(index, channel, *listener)
            }
            Step::Clone { request } => divide(index, steps, channel, *request),
            Step::Filesystem(FilesystemStep::BindMount { root, target, .. }) => say(channel, index, 0, b"", None)
                .and_then(|()| sys::receive_descriptor(channel))
                .and_then(|mount| step::attach(mount, *root, target)),
            // The listener's own descriptor closes with the exec.
            Step::Seccomp { filter } if filter.notifies() => sys::install_filter(&filter.program, filter.flags)
                .and_then(|listener| say(channel, index, 0, b"", Some(listener))),
            step => step.run(),
        };
        if let Err(errno) = done {
            let text = index.checked_sub(texts.0).and_then(|late| texts.1.get(late)).map_or("", String::as_str);
            // If even this fails the caller sees an early end of the child.
            let _ = say(channel, index, errno.0, text.as_bytes(), None);
            return;
        }
    }
}

/// Leaves the rest of the steps to a child of its own, which waits until the caller knows it.
fn divide(index: usize, steps: &[Step], channel: i32, request: CloneRequest) -> sys::Result<()> {
    let child = || {
        // Otherwise its caller is gone.
        if hear(channel).is_ok() {
            walk_from(index + 1, steps, channel);
        }
    };
    let (pid, pidfd) = sys::clone_child(request, child)?;
    say(channel, index, 0, &pid.to_ne_bytes(), Some(pidfd.as_raw_fd()))?;
    sys::exit_now(0)
}

fn say(channel: i32, index: usize, errno: i32, text: &[u8], attached: Option<i32>) -> sys::Result<()> {
    let mut message = [0_u8; MESSAGE_MAXIMUM];
    let length = text.len().min(MESSAGE_MAXIMUM - HEADER_LENGTH);
    message[..4].copy_from_slice(&(index as u32).to_ne_bytes());
    message[4..HEADER_LENGTH].copy_from_slice(&errno.to_ne_bytes());
    message[HEADER_LENGTH..HEADER_LENGTH + length].copy_from_slice(&text[..length]);
    let message = &message[..HEADER_LENGTH + length];
    match attached {
        Some(fd) => sys::send_descriptor(channel, message, fd),
        None => sys::write(channel, message).map(drop),
    }
}

/// Waits for the caller's word.
fn hear(channel: i32) -> sys::Result<()> {
    match sys::read(channel, &mut [0_u8])? {
        0 => Err(Errno(libc::ECANCELED)),
        _ => Ok(()),
    }
}

/// Waits for somebody who connects and sends a byte; others only look whether anybody waits.
fn await_start(index: usize, channel: i32, listener: i32) -> sys::Result<()> {
    say(channel, index, 0, b"", None)?;
    sys::close(channel);
    loop {
        let connection = sys::accept(listener)?;
        if sys::read(connection, &mut [0_u8]) == Ok(1) {
            if connection != channel {
                sys::duplicate_onto(connection, channel, true)?;
                sys::close(connection);
            }
            // Others may hold copies for a moment, as children that have just been cloned do: it ends for all.
            sys::shut_down(listener)?;
            sys::close(listener);
            return Ok(());
        }
        sys::close(connection);
    }
}

/// Names a socket through a descriptor of its folder: an address takes 107 bytes, a path may be longer.
fn with_address<T>(path: &Path, act: impl FnOnce(&SocketAddrUnix) -> rustix::io::Result<T>) -> io::Result<T> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a socket's path needs a folder and a name"));
    };
    let folder = if folder == OsStr::new("") { Path::new(".") } else { folder };
    let folder = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(folder)?;
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok(act(&SocketAddrUnix::new(&path)?)?)
}

fn unix_socket(kind: SocketType) -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
}

/// Makes the socket on which a created container waits, for [`crate::Extras::start_socket`]. Only those who may enter its
/// folder may connect: the folder must be the caller's own.
///
/// # Errors
/// The kernel's refusal, such as `EADDRINUSE` if the path exists.
pub fn bind_start_socket(path: &Path) -> io::Result<OwnedFd> {
    let socket = unix_socket(SocketType::SEQPACKET)?;
    with_address(path, |address| bind(&socket, address))?;
    listen(&socket, 16)?;
    Ok(socket)
}

/// Tells whether a container waits on its start socket: it is created, and neither started nor dead.
///
/// # Errors
/// What has nothing to do with a missing or silent socket.
pub fn is_waiting(path: &Path) -> io::Result<bool> {
    match connect_to_waiting(path) {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ECONNREFUSED) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Connects to the start socket of a waiting container.
pub(crate) fn connect_to_waiting(path: &Path) -> io::Result<OwnedFd> {
    connect_to(path, SocketType::SEQPACKET)
}

/// Connects to a unix socket by a path of any length.
pub(crate) fn connect_to(path: &Path, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = unix_socket(kind)?;
    with_address(path, |address| connect(socket.as_fd(), address))?;
    Ok(socket)
}
