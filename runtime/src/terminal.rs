//! Pseudo-terminals of a container: made by its own process in its own devpts, held by somebody outside.
//!
//! Owns the steps that make one and the socket over which it comes. Must not carry bytes: that is the caller's.
//!
//! The child opens the terminal once it is inside, so that its name there (`/dev/pts/N`), its owner and its devpts are the
//! container's, and sends the master's descriptor to the socket that the caller has handed over: an engine's
//! `--console-socket`, or one of [`terminal_pair`].

use crate::compile::{PlanError, Slots};
use crate::oci;
use crate::step::{Step, Target};
use crate::sys;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// Makes a pair of sockets: the first is handed over as the console, the second goes to [`receive_terminal`].
///
/// # Errors
/// socketpair(2)'s.
pub fn terminal_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Takes the master's descriptor after the start. The terminal closes when the container's last process has closed it.
///
/// # Errors
/// recvmsg(2)'s, and `UnexpectedEof` if none was sent.
pub fn receive_terminal(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut attached = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0_u8; 64];
    rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut name)], &mut attached, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptor = attached.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptor.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no terminal was sent"))
}

/// Gives a terminal its size in characters.
///
/// # Errors
/// The kernel's refusal.
pub fn resize_terminal(master: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    sys::set_terminal_size(master.as_raw_fd(), rows, columns).map_err(io::Error::from)
}

/// Adds the steps that make the terminal below `root`, bind it to the container's `/dev/console` if that is given, send
/// it, and give it to the process as its streams. `slots` must know the console's number.
pub(crate) fn terminal(
    process: &oci::Process,
    console: i32,
    (root, bind): (i32, Option<Target>),
    slots: &mut Slots,
    steps: &mut Vec<Step>,
) -> Result<(), PlanError> {
    if process.terminal() != Some(true) {
        return Err(PlanError::invalid("process.terminal", "false", "must be true, for there is a console"));
    }
    let (master, slave) = (slots.take(), slots.take());
    let size = process.console_size().as_ref().map(|size| (size.height(), size.width()));
    let size = size.map(|(rows, columns)| {
        let bounded = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
        (bounded(rows), bounded(columns))
    });
    steps.push(Step::OpenTerminal { root, master, slave, size });
    if let Some(target) = bind {
        steps.push(Step::BindConsole { root, target, slave });
    }
    steps.push(Step::SendTerminal { console, master });
    steps.extend((0..3).map(|onto| Step::StandardStream { from: slave, onto }));
    Ok(())
}
