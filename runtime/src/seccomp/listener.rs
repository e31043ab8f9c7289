//! The way of a filter's listener to the agent that answers its notifications.
//!
//! Owns the container process state (config-linux.md, "The Container Process State") and its delivery. Must not answer
//! anything itself.

use super::notifies;
use crate::compile::PlanError;
use crate::handshake::connect_to;
use crate::hooks::HookState;
use crate::oci;
use crate::plan::StartError;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, sendmsg};
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// Who gets the listener, and what it is told.
#[derive(Debug)]
pub(crate) struct Agent {
    path: PathBuf,
    metadata: Option<String>,
    state: HookState,
    /// The running container's first process; nothing while that is the very process that is made.
    container: Option<i32>,
}

impl Agent {
    /// The agent that a specification names, if its profile has a rule with `SCMP_ACT_NOTIFY`.
    pub(crate) fn of(
        spec: &oci::Spec,
        state: Option<&HookState>,
        container: Option<i32>,
    ) -> Result<Option<Agent>, PlanError> {
        let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let Some(seccomp) = seccomp.filter(|seccomp| notifies(seccomp)) else { return Ok(None) };
        let path = seccomp.listener_path().clone().unwrap_or_default();
        let Some(state) = state else {
            let reason = "is told the container's state, which this caller has none of";
            return Err(PlanError::invalid("linux.seccomp.listenerPath", path.display().to_string(), reason));
        };
        let metadata = seccomp.listener_metadata().clone();
        Ok(Some(Agent { path, metadata, state: state.clone(), container }))
    }

    /// Hands the listener of a process over, on a connection of its own. Blocks while the agent takes no connection.
    pub(crate) fn hand_over(&self, listener: &OwnedFd, pid: i32) -> Result<(), StartError> {
        let (container, status) = match self.container {
            None => (pid, oci::ContainerState::Creating),
            Some(container) => (container, oci::ContainerState::Running),
        };
        let mut state = oci::ContainerProcessState::default();
        state
            .set_version(self.state.version.clone())
            .set_fds(vec![oci::SECCOMP_FD_NAME.into()])
            .set_pid(pid)
            .set_metadata(self.metadata.clone())
            .set_state(self.state.at(Some(container), status));
        let told = serde_json::to_vec(&state).expect("texts, numbers and maps of texts have a JSON form");
        let sent = connect_to(&self.path, SocketType::STREAM).and_then(|socket| send(socket, &told, listener.as_fd()));
        sent.map_err(|source| StartError::Listener { path: self.path.clone(), source })
    }
}

/// Sends the descriptor with the first byte, and the rest of the text after it.
fn send(socket: OwnedFd, text: &[u8], listener: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut attached = SendAncillaryBuffer::new(&mut space);
    let descriptors = [listener];
    if !attached.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let sent = sendmsg(&socket, &[IoSlice::new(text)], &mut attached, SendFlags::NOSIGNAL)?;
    UnixStream::from(socket).write_all(&text[sent..])
}
