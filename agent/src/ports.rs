//! Connections to ports of pods, from inside a pod's own network namespace.
//!
//! Reaches a pod whatever its networks are, and by its loopback only.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream as StdStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::spawn_blocking;

/// Connects to a port on 127.0.0.1 inside a network namespace.
///
/// # Errors
/// As setns(2), socket(2) and connect(2).
pub async fn connect(network: &Arc<OwnedFd>, port: u16) -> io::Result<TcpStream> {
    let network = Arc::clone(network);
    // A socket stays in the namespace that it was made in.
    let made = spawn_blocking(move || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        crate::netlink::inside(network.as_fd(), || socket_with(AddressFamily::INET, SocketType::STREAM, flags, None))
    });
    let socket = StdStream::from(made.await.map_err(io::Error::other)???);
    TcpSocket::from_std_stream(socket).connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into()).await
}
