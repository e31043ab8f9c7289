//! Fresh user namespaces.
//!
//! Owns their making with their id maps; user_namespaces(7). Must not choose ids: those are the caller's.

use crate::oci::LinuxIdMapping;
use crate::plan::{Started, wait};
use crate::sys::{self, CloneRequest};
use rustix::pipe::{PipeFlags, pipe_with};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// Why a user namespace could not be made.
#[derive(Debug, thiserror::Error)]
pub enum UserNamespaceError {
    /// The helper process could not be made: the kernel refuses more user namespaces, or all.
    #[error("cannot make a user namespace: {call} failed")]
    Make {
        /// The system call.
        call: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A map was refused.
    #[error("cannot write {map:?} to /proc/PID/{file}")]
    Map {
        /// The file: `uid_map`, `gid_map` or `setgroups`.
        file: &'static str,
        /// What was to be written.
        map: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// Its handle could not be opened.
    #[error("cannot open /proc/PID/ns/user")]
    Handle(#[source] io::Error),
}

/// Makes a user namespace with these maps. It lives as long as the returned descriptor or a process in it; hand it over as
/// [`crate::Request::user`], to as many containers as shall share it. An unprivileged caller can map its own ids only.
///
/// # Errors
/// [`UserNamespaceError`] names the call or the map.
pub fn new_user_namespace(users: &[LinuxIdMapping], groups: &[LinuxIdMapping]) -> Result<OwnedFd, UserNamespaceError> {
    let failed = |call| move |source| UserNamespaceError::Make { call, source };
    let (waits, lives) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed("pipe2")(error.into()))?;
    let request = CloneRequest { namespaces: libc::CLONE_NEWUSER as u64, sibling: false, cgroup: None };
    // The helper only lives in the namespace until it is killed, or its caller is gone.
    let helper = || {
        sys::close(lives.as_raw_fd());
        let _ = sys::read(waits.as_raw_fd(), &mut [0_u8]);
    };
    let (pid, pidfd) = sys::clone_child(request, helper).map_err(|errno| failed("clone3")(errno.into()))?;
    let made = map(pid, users, groups);
    // The pipe's end would not do: children that other threads clone meanwhile hold copies of it.
    let killed = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
    killed.map_err(|error| failed("pidfd_send_signal")(error.into()))?;
    wait(&Started { pid, pidfd }).map_err(failed("waitid"))?;
    made
}

fn map(pid: i32, users: &[LinuxIdMapping], groups: &[LinuxIdMapping]) -> Result<OwnedFd, UserNamespaceError> {
    let write = |file: &'static str, map: String| {
        std::fs::write(format!("/proc/{pid}/{file}"), &map).map_err(|source| UserNamespaceError::Map {
            file,
            map,
            source,
        })
    };
    if !rustix::process::geteuid().is_root() {
        write("setgroups", "deny".into())?;
    }
    write("uid_map", lines(users))?;
    write("gid_map", lines(groups))?;
    File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from).map_err(UserNamespaceError::Handle)
}

fn lines(map: &[LinuxIdMapping]) -> String {
    map.iter().map(|range| format!("{} {} {}\n", range.container_id(), range.host_id(), range.size())).collect()
}
