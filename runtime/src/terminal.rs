//! Pseudo-terminals of a running container.
//!
//! Owns their opening inside the container's devpts. Must not carry bytes: that is the caller's.

use crate::sys;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// fstatfs(2)'s magic number of devpts.
const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Why a terminal could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// A helper thread could not be started or broke.
    #[error("cannot use a helper thread")]
    Thread(#[source] io::Error),
    /// A system call failed.
    #[error("{call} failed while opening a terminal in the container")]
    Call {
        /// The system call and its object.
        call: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The container's `/dev/pts/ptmx` is something else.
    #[error("the container's /dev/pts/ptmx is not a terminal multiplexer")]
    Forged,
}

/// A new pseudo-terminal in a container's devpts.
#[derive(Debug)]
pub struct Terminal {
    /// The end to read from and write to.
    pub master: OwnedFd,
    /// The end for the process: give a copy as each of its standard streams and set `process.terminal`.
    pub slave: OwnedFd,
}

impl Terminal {
    /// Opens a terminal inside the container whose process `target` (a pidfd) is. The name that programs there see
    /// (`/dev/pts/N`) is right for them.
    ///
    /// # Errors
    /// [`TerminalError`]; [`TerminalError::Forged`] if the container has put something else there (CVE-2025-52565).
    pub fn open(target: BorrowedFd<'_>) -> Result<Terminal, TerminalError> {
        let target = target.try_clone_to_owned().map_err(|source| TerminalError::Call { call: "dup", source })?;
        // A thread can leave for another mount namespace by itself once it shares its root with nobody.
        let thread = std::thread::Builder::new().name("open-terminal".into()).spawn(move || open_there(&target));
        let joined = thread.map_err(TerminalError::Thread)?.join();
        joined.unwrap_or_else(|_| Err(TerminalError::Thread(io::Error::other("the thread panicked"))))
    }

    /// Gives the terminal its size in characters.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn resize(master: BorrowedFd<'_>, rows: u16, columns: u16) -> Result<(), TerminalError> {
        sys::set_terminal_size(master.as_raw_fd(), rows, columns).map_err(call("ioctl(TIOCSWINSZ)"))
    }
}

fn call(call: &'static str) -> impl Fn(sys::Errno) -> TerminalError {
    move |errno| TerminalError::Call { call, source: errno.into() }
}

fn open_there(target: &OwnedFd) -> Result<Terminal, TerminalError> {
    sys::unshare(libc::CLONE_FS).map_err(call("unshare(CLONE_FS)"))?;
    sys::join_namespace(target.as_raw_fd(), libc::CLONE_NEWNS).map_err(call("setns(CLONE_NEWNS)"))?;
    // Never wait on whatever a hostile image has put there, and follow no link to it.
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
    let opened = sys::open_resolved(libc::AT_FDCWD, c"/dev/pts/ptmx", flags, libc::RESOLVE_NO_SYMLINKS);
    let master = sys::own(opened.map_err(call("openat2(/dev/pts/ptmx)"))?);
    let stat = sys::stat(master.as_raw_fd()).map_err(call("fstat(/dev/pts/ptmx)"))?;
    let kind = sys::filesystem_kind(master.as_raw_fd()).map_err(call("fstatfs(/dev/pts/ptmx)"))?;
    if !stat.is_character_device(5, 2) || kind != DEVPTS_MAGIC {
        return Err(TerminalError::Forged);
    }
    sys::unlock_terminal(master.as_raw_fd()).map_err(call("ioctl(TIOCSPTLCK)"))?;
    let slave = sys::own(sys::open_terminal_peer(master.as_raw_fd()).map_err(call("ioctl(TIOCGPTPEER)"))?);
    Ok(Terminal { master, slave })
}
