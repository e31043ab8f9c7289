//! Signals to a process that is known by descriptor, so that it is never another one.

use crate::sys;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sends a signal, a real-time one too, to the process of a pidfd; 0 only asks whether it is there. See
/// pidfd_send_signal(2).
///
/// # Errors
/// `ESRCH` when the process has ended, `EINVAL` for a number that is no signal.
pub fn send_signal(process: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    sys::send_signal(process.as_raw_fd(), number).map_err(io::Error::from)
}
