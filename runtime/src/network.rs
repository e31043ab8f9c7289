//! Fresh network namespaces.
//!
//! Owns their making, up to loopback. Must not make links, addresses or rules: those are the agent's.

use crate::sys;
use crate::user_namespace::{self, UserNamespaceError};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Why a network namespace could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A helper thread could not be started or broke.
    #[error("cannot use a helper thread")]
    Thread(#[source] io::Error),
    /// The kernel refused a new namespace.
    #[error("unshare(CLONE_NEWNET) failed")]
    Unshare(#[source] io::Error),
    /// The user namespace that it shall belong to could not be made.
    #[error(transparent)]
    Users(#[from] UserNamespaceError),
    /// The new namespace could not be entered.
    #[error("setns(CLONE_NEWNET) failed")]
    Join(#[source] io::Error),
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
    on_a_thread(|| {
        sys::unshare(libc::CLONE_NEWNET).map_err(|errno| NetworkError::Unshare(errno.into()))?;
        sys::bring_loopback_up().map_err(|errno| NetworkError::Loopback(errno.into()))?;
        File::open("/proc/thread-self/ns/net").map(OwnedFd::from).map_err(NetworkError::Handle)
    })
}

/// Makes a user namespace and, belonging to it, a network namespace with loopback up. The users and groups from 0 to
/// `count` there are the host's from `first` on. The returned descriptor is the network's and keeps both;
/// [`crate::user_namespace_of`] finds the other.
///
/// # Errors
/// [`NetworkError`] names the call or the map.
pub fn new_network_with_users(first: u32, count: u32) -> Result<OwnedFd, NetworkError> {
    let map = format!("0 {first} {count}\n");
    let network = user_namespace::make(libc::CLONE_NEWUSER | libc::CLONE_NEWNET, "net", map.clone(), map)?;
    on_a_thread(move || {
        let joined = sys::join_namespace(network.as_raw_fd(), libc::CLONE_NEWNET);
        joined.map_err(|errno| NetworkError::Join(errno.into()))?;
        sys::bring_loopback_up().map_err(|errno| NetworkError::Loopback(errno.into()))?;
        Ok(network)
    })
}

/// Namespaces belong to threads: a thread of its own enters another one and ends, and the caller stays where it is.
fn on_a_thread(work: impl FnOnce() -> Result<OwnedFd, NetworkError> + Send + 'static) -> Result<OwnedFd, NetworkError> {
    let thread = std::thread::Builder::new().name("new-network".into()).spawn(work);
    let joined = thread.map_err(NetworkError::Thread)?.join();
    joined.unwrap_or_else(|_| Err(NetworkError::Thread(io::Error::other("the thread panicked"))))
}
