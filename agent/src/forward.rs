//! Port-forward: one TCP connection from a stream to a port on a pod's loopback address.
//!
//! It owns that connection and nothing else; who may ask for it is the controller's and the local socket's.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream as StdStream};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use skeg_protocol::limits::MAX_STREAM_DATA;
use skeg_protocol::message::{Channel, StreamEnd};
use skeg_protocol::{Pod, Uid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};

use crate::agent::Agent;
use crate::peer::{Sender, Stream, StreamEvent};

/// Carries bytes both ways until the port or the opener closes.
///
/// # Errors
/// Why there is no connection, for people.
pub async fn serve(agent: &Rc<Agent>, stream: &mut Stream, pod: Uid, port: u16) -> Result<StreamEnd, String> {
    let connection = connect(agent, pod, port).await?;
    let (mut from, mut to) = connection.into_split();
    let sender = stream.sender();
    let mut answers = std::pin::pin!(answer(&mut from, &sender));
    tokio::select! {
        end = &mut answers => return Ok(end),
        more = ask(stream, &mut to) => if !more {
            return Ok(StreamEnd::Cancelled);
        },
        () = sender.closed() => return Ok(StreamEnd::Cancelled),
    }
    // The opener has said all and waits for the rest of the answer.
    drop(to);
    tokio::select! {
        end = &mut answers => Ok(end),
        () = sender.closed() => Ok(StreamEnd::Cancelled),
    }
}

/// What the port says, until it closes.
async fn answer(from: &mut OwnedReadHalf, sender: &Sender) -> StreamEnd {
    let mut buffer = vec![0; MAX_STREAM_DATA];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return StreamEnd::Done,
            Ok(length) => {
                if sender.send(Channel::Stdout, &buffer[..length]).await.is_err() {
                    return StreamEnd::Cancelled;
                }
            }
            Err(error) => return StreamEnd::Failed(format!("reading from the port: {error}")),
        }
    }
}

/// What the opener says, until its end; false when the stream is closed.
async fn ask(stream: &mut Stream, to: &mut OwnedWriteHalf) -> bool {
    loop {
        match stream.next().await {
            Some(StreamEvent::Data(_, bytes)) if bytes.is_empty() => return to.shutdown().await.is_ok(),
            // A port that takes no more may still have something to say.
            Some(StreamEvent::Data(_, bytes)) => {
                if to.write_all(&bytes).await.is_err() {
                    return true;
                }
            }
            Some(StreamEvent::Resize { .. }) => {}
            Some(StreamEvent::Closed(_)) | None => return false,
        }
    }
}

async fn connect(agent: &Rc<Agent>, uid: Uid, port: u16) -> Result<TcpStream, String> {
    let pod = agent.node.borrow().pod(uid).cloned().ok_or_else(|| format!("pod {uid} is not on this device"))?;
    let problem = |error: io::Error| format!("connecting to port {port} of pod {}: {error}", pod.name);
    let socket = if pod.host_network {
        TcpSocket::new_v4().map_err(problem)?
    } else {
        let process = process(agent, &pod)?;
        TcpSocket::from_std_stream(inside(process).await.map_err(problem)?)
    };
    socket.connect(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into()).await.map_err(problem)
}

/// A process of the pod: it knows the pod's network.
fn process(agent: &Rc<Agent>, pod: &Pod) -> Result<OwnedFd, String> {
    let live = agent.host.live.borrow();
    let live = live.iter().find(|(key, _)| key.pod == pod.uid).map(|(_, live)| live);
    let live = live.ok_or_else(|| format!("no container of pod {} is running", pod.name))?;
    live.pidfd.try_clone().map_err(|error| error.to_string())
}

/// A socket in the network of a process.
async fn inside(process: OwnedFd) -> io::Result<StdStream> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A thread of its own: a thread that has entered a namespace must not serve anybody else. A socket stays in the
    // namespace it was made in, so the thread's work ends with it.
    std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
        let socket = move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::NETWORK).and_then(|()| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)
        });
        sender.send(socket).ok();
    })?;
    Ok(StdStream::from(receiver.await.map_err(io::Error::other)??))
}
