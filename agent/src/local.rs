//! The local socket: `skegd ps`, `logs` and `exec` talk to the agent here, with the same messages as the wire.
//!
//! Owns `control.sock`: only root may use it. What is asked is answered by the same code that answers the
//! controller.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use skeg_protocol::{Connection, Message};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::spawn_local;

use crate::agent::Agent;
use crate::peer::{Peer, PeerError};

/// Name of the socket below `run_dir`.
pub const SOCKET: &str = "control.sock";
/// Most local commands at a time.
const MOST_COMMANDS: usize = 64;

/// Binds the socket, in place of one that an earlier agent left behind.
///
/// # Errors
/// The socket can't be made.
pub fn bind(run_dir: &Path) -> anyhow::Result<UnixListener> {
    let path = run_dir.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing the old {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("binding {}", path.display()))?;
    // The folder is root's alone, so nobody slips in before this.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("setting the mode of {}", path.display()))?;
    Ok(listener)
}

/// Serves commands for ever.
pub async fn serve(agent: Rc<Agent>, listener: UnixListener) {
    let room = Arc::new(tokio::sync::Semaphore::new(MOST_COMMANDS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let agent = Rc::clone(&agent);
                spawn_local(async move {
                    serve_one(&agent, socket).await;
                    drop(permit);
                });
            }
            Err(error) => {
                log::warn!("accepting a local command: {error}");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

async fn serve_one(agent: &Rc<Agent>, socket: UnixStream) {
    match socket.peer_cred() {
        Ok(peer) if peer.uid() == 0 => {}
        Ok(peer) => return log::warn!("user {} may not use the local socket", peer.uid()),
        Err(error) => return log::warn!("the local socket does not say who calls: {error}"),
    }
    let peer = match Peer::new(|now| Ok(Connection::local(now))) {
        Ok(peer) => peer,
        Err(error) => return log::error!("a local connection: {error}"),
    };
    let answer = |message| match message {
        Message::GetStatus(_) => {
            if let Err(error) = peer.send(agent.status()) {
                log::error!("the status does not fit into a frame: {error}");
            }
        }
        Message::StreamOpen(open) => agent.serve_stream(peer.stream(open.id), open.request),
        other => log::warn!("a local command sent a message of kind {}", other.kind()),
    };
    match peer.run(socket, answer).await {
        PeerError::Closed => {}
        error => log::warn!("a local command: {error}"),
    }
}
