//! sd_notify(3) from inside a container: its word is passed on to whoever started the runtime.
//!
//! Owns the socket in the container's folder. Must pass on nothing but readiness: a container must not, for example,
//! name another main process.

use std::fs::{self, DirBuilder, Permissions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, poll};
use skeg_runtime::oci;

use super::store::Folder;

/// The folder of the socket in the container; runc's, so that images find it.
const INSIDE: &str = "/run/notify";
/// Longest message in bytes; systemd's own limit.
const MESSAGE_MAXIMUM: usize = 4096;
/// How many messages are read before the caller looks at anything else: a container can write for ever.
const AT_ONCE: usize = 4;

/// The name of systemd's socket, or of an engine's.
fn host() -> Option<PathBuf> {
    std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()).map(PathBuf::from)
}

/// Adds to a specification what a container needs to reach its socket, if this process was given one.
pub(crate) fn prepare(folder: &Folder, spec: &mut oci::Spec) -> anyhow::Result<()> {
    if host().is_none() {
        return Ok(());
    }
    let outside = folder.file("notify");
    DirBuilder::new().mode(0o755).create(&outside).with_context(|| format!("cannot make {outside:?}"))?;
    let options = ["bind", "nosuid", "noexec", "nodev", "ro"].map(String::from).to_vec();
    let mut mount = oci::Mount::default();
    mount.set_destination(INSIDE.into()).set_source(Some(outside)).set_options(Some(options)).set_typ(None);
    spec.mounts_mut().get_or_insert_default().push(mount);
    if let Some(process) = spec.process_mut() {
        process.env_mut().get_or_insert_default().push(format!("NOTIFY_SOCKET={INSIDE}/notify.sock"));
    }
    Ok(())
}

/// The socket that a container writes to.
#[derive(Debug)]
pub(crate) struct Notify {
    inside: UnixDatagram,
    host: SocketAddr,
}

impl AsFd for Notify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inside.as_fd()
    }
}

impl Notify {
    /// Opens the socket, if this process was given one and the container was made with one.
    pub(crate) fn open(folder: &Folder) -> anyhow::Result<Option<Notify>> {
        let Some(host) = host() else { return Ok(None) };
        let place = folder.file("notify");
        if !place.is_dir() {
            return Ok(None);
        }
        let path = place.join("notify.sock");
        let inside = UnixDatagram::bind(&path).with_context(|| format!("cannot make the socket {path:?}"))?;
        // The container's user may be anyone.
        fs::set_permissions(&path, Permissions::from_mode(0o777))
            .with_context(|| format!("cannot open up {path:?}"))?;
        inside.set_nonblocking(true).context("cannot use the notify socket")?;
        let name = host.as_os_str().as_encoded_bytes();
        let host = match name.strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(&host),
        };
        Ok(Some(Notify { inside, host: host.context("NOTIFY_SOCKET is no socket's name")? }))
    }

    /// Passes on that the container is ready, and which process it is. Says whether it was.
    pub(crate) fn forward(&self, pid: i32) -> anyhow::Result<bool> {
        let mut buffer = [0; MESSAGE_MAXIMUM];
        for _ in 0..AT_ONCE {
            let length = match self.inside.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error).context("cannot read the container's notification"),
            };
            if buffer[..length].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                let socket = UnixDatagram::unbound().context("cannot make a socket")?;
                let message = format!("READY=1\nMAINPID={pid}\n");
                socket.send_to_addr(message.as_bytes(), &self.host).context("cannot write to NOTIFY_SOCKET")?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits until the container is ready or has ended.
    pub(crate) fn wait(&self, pid: i32, init: &OwnedFd) -> anyhow::Result<()> {
        loop {
            let mut descriptors = [PollFd::new(self, PollFlags::IN), PollFd::new(init, PollFlags::IN)];
            match poll(&mut descriptors, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for the container's notification"),
            }
            let ended = !descriptors[1].revents().is_empty();
            if self.forward(pid)? || ended {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_writes_on_and_on_does_not_keep_the_reader() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("host");
        let host = UnixDatagram::bind(&path).unwrap();
        let (inside, container) = UnixDatagram::pair().unwrap();
        inside.set_nonblocking(true).unwrap();
        let notify = Notify { inside, host: SocketAddr::from_pathname(&path).unwrap() };
        for _ in 0..AT_ONCE {
            container.send(b"STATUS=busy").unwrap();
        }
        container.send(b"READY=1\nMAINPID=1").unwrap();
        assert!(!notify.forward(7).unwrap());
        assert!(notify.forward(7).unwrap());
        let mut told = [0; 64];
        let length = host.recv(&mut told).unwrap();
        assert_eq!(&told[..length], b"READY=1\nMAINPID=7\n");
    }
}
