//! Published TCP ports of pods with a network of their own: a small proxy in the agent.
//!
//! Each published port is a listener on the device; each connection to it gets a socket inside the pod's
//! network namespace, connected to the container's port on 127.0.0.1, and bytes are copied both ways. The number
//! of connections is bounded. Connections do not outlive the agent. A later version replaces this by packet
//! rules in the kernel; until then a pod sees all its clients as 127.0.0.1, and UDP ports are refused.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpStream as StdStream};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use skeg_protocol::Pod;
use skeg_protocol::manifest::Protocol;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet, spawn_local};

/// Most proxied connections of one pod; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 1024;

/// Why a pod's ports can't be published.
#[derive(Debug, Error)]
pub enum PortError {
    /// Somebody else has the port, or the address is not the device's.
    #[error("host port {port} on {address} can't be published: {source}")]
    Listen {
        /// Which port.
        port: u16,
        /// On which address.
        address: IpAddr,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// Only TCP is carried.
    #[error("host port {port} can't be published: only TCP host ports are possible yet; use hostNetwork")]
    Transport {
        /// Which port.
        port: u16,
    },
}

/// A pod's published ports; dropped, they are closed with their connections.
#[derive(Debug, Default)]
pub struct Published {
    listeners: Vec<JoinHandle<()>>,
}

impl Drop for Published {
    fn drop(&mut self) {
        self.listeners.iter().for_each(JoinHandle::abort);
    }
}

/// Publishes the ports of a pod whose network namespace is `network`. Runs inside a `LocalSet`.
///
/// # Errors
/// As [`PortError`]; nothing is published then.
pub async fn publish(pod: &Pod, network: &Arc<OwnedFd>) -> Result<Published, PortError> {
    let mut published = Published::default();
    let room = Rc::new(Semaphore::new(MOST_CONNECTIONS));
    for port in pod.containers.iter().flat_map(|container| &container.ports) {
        let Some(host_port) = port.host_port else { continue };
        if port.protocol != Protocol::Tcp {
            return Err(PortError::Transport { port: host_port });
        }
        let address = port.host_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let listener = TcpListener::bind((address, host_port)).await.map_err(|source| PortError::Listen {
            port: host_port,
            address,
            source,
        })?;
        let inside = port.container_port;
        published.listeners.push(spawn_local(listen(listener, Arc::clone(network), inside, Rc::clone(&room))));
    }
    Ok(published)
}

async fn listen(listener: TcpListener, network: Arc<OwnedFd>, port: u16, room: Rc<Semaphore>) {
    // Dropped with this task, it ends every connection.
    let mut connections = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(_permit) = room.acquire().await else { return };
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let (network, room) = (Arc::clone(&network), Rc::clone(&room));
                    connections.spawn_local(async move {
                        let Ok(_permit) = room.acquire().await else { return };
                        if let Err(error) = carry(client, &network, port).await {
                            log::debug!("a connection to container port {port}: {error}");
                        }
                    });
                }
                Err(error) => {
                    // Out of descriptors or memory: accepting again at once would only spin.
                    log::warn!("accepting a connection for container port {port}: {error}");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn carry(mut client: TcpStream, network: &Arc<OwnedFd>, port: u16) -> io::Result<()> {
    // A client that vanished without a word would keep its place for ever.
    rustix::net::sockopt::set_socket_keepalive(&client, true)?;
    let mut server = connect(network, port).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}

/// Connects to a port on 127.0.0.1 inside a network namespace.
///
/// # Errors
/// As setns(2), socket(2) and connect(2).
pub async fn connect(network: &Arc<OwnedFd>, port: u16) -> io::Result<TcpStream> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let network = Arc::clone(network);
    // A thread of its own: a thread that has entered a namespace must not serve anybody else. A socket stays
    // in the namespace it was made in, so the thread's work ends with it.
    std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
        sender.send(socket_inside(&network)).ok();
    })?;
    let socket = receiver.await.map_err(io::Error::other)??;
    TcpSocket::from_std_stream(socket).connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into()).await
}

fn socket_inside(network: &OwnedFd) -> io::Result<StdStream> {
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(StdStream::from(socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?))
}
