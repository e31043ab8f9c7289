//! Fresh network namespaces.
//!
//! Owns their making, up to loopback. Must not make links, addresses or rules: those are the agent's.

use crate::sys;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

/// Why a network namespace could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A helper thread could not be started or broke.
    #[error("cannot use a helper thread")]
    Thread(#[source] io::Error),
    /// The kernel refused a new namespace.
    #[error("unshare(CLONE_NEWNET) failed")]
    Unshare(#[source] io::Error),
    /// The loopback interface stayed down.
    #[error("cannot bring loopback up")]
    Loopback(#[source] io::Error),
    /// The namespace's handle could not be opened.
    #[error("cannot open /proc/thread-self/ns/net")]
    Handle(#[source] io::Error),
}

/// Makes a network namespace with loopback up. It lives as long as the returned descriptor or a process in it.
///
/// # Errors
/// [`NetworkError`] names the call.
pub fn new_network() -> Result<OwnedFd, NetworkError> {
    // Namespaces belong to threads: a thread of its own enters the new one and ends, and the caller stays where it is.
    let thread = std::thread::Builder::new().name("new-network".into()).spawn(|| {
        sys::unshare(libc::CLONE_NEWNET).map_err(|errno| NetworkError::Unshare(errno.into()))?;
        sys::bring_loopback_up().map_err(|errno| NetworkError::Loopback(errno.into()))?;
        File::open("/proc/thread-self/ns/net").map(OwnedFd::from).map_err(NetworkError::Handle)
    });
    let joined = thread.map_err(NetworkError::Thread)?.join();
    joined.unwrap_or_else(|_| Err(NetworkError::Thread(io::Error::other("the thread panicked"))))
}
