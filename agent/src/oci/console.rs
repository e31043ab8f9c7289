//! Where a terminal's master goes: to an engine's socket, or to this process.
//!
//! Owns the socket between. The terminal itself is opened by the runtime, inside the container.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, bail};
use skeg_runtime::{receive_terminal, terminal_pair};

/// The way of one terminal.
#[derive(Debug)]
pub(crate) enum Console {
    /// The process has no terminal.
    None,
    /// Somebody else takes it.
    Socket(OwnedFd),
    /// This process takes it: the ends for the container and for itself.
    Own { container: OwnedFd, own: OwnedFd },
}

impl Console {
    /// Finds the way that the options mean.
    ///
    /// # Errors
    /// They contradict each other, or nobody listens on the socket.
    pub(crate) fn new(terminal: bool, socket: Option<&Path>, detached: bool) -> anyhow::Result<Console> {
        match (terminal, socket) {
            (false, None) => Ok(Console::None),
            (false, Some(_)) => bail!("--console-socket needs a process with a terminal; set process.terminal"),
            (true, Some(path)) => {
                let socket = UnixStream::connect(path);
                let socket = socket.with_context(|| format!("cannot connect to the console socket {path:?}"))?;
                Ok(Console::Socket(socket.into()))
            }
            (true, None) if detached => bail!("a detached process with a terminal needs --console-socket"),
            (true, None) => {
                let (container, own) = terminal_pair().context("cannot make a pair of sockets")?;
                Ok(Console::Own { container, own })
            }
        }
    }

    /// The end for the container.
    pub(crate) fn end(&self) -> anyhow::Result<Option<OwnedFd>> {
        let (Console::Socket(socket) | Console::Own { container: socket, .. }) = self else { return Ok(None) };
        Ok(Some(socket.try_clone().context("cannot copy a socket")?))
    }

    /// The master, if this process takes it. Call it when the process has started.
    pub(crate) fn receive(self) -> anyhow::Result<Option<OwnedFd>> {
        let Console::Own { container, own } = self else { return Ok(None) };
        // Only the container's end is left: if it sends nothing, the wait ends.
        drop(container);
        Ok(Some(receive_terminal(&own).context("cannot receive the terminal")?))
    }
}
