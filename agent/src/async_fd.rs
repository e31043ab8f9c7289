//! Readiness of a descriptor inside tokio.
//!
//! Owns the one call that tokio marks as deprecated, and the reason why it is sound here.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime that it is called in.
///
/// tokio deprecated the safe constructor because a type may lie about its descriptor. [`OwnedFd`] can't: it owns
/// the descriptor until it is dropped.
#[expect(deprecated, reason = "its replacement is unsafe, and an OwnedFd keeps the promise that it asks for")]
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}
