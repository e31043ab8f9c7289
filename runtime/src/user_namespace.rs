//! Fresh user namespaces.
//!
//! Owns their making with their id maps, and whether the kernel can show files with their ids; user_namespaces(7). Must
//! not choose ids: those are the caller's.

use crate::oci::LinuxIdMapping;
use crate::plan::{Started, wait};
use crate::sys::{self, CloneRequest, MountAttributes};
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
    #[error("cannot open /proc/PID/ns/{kind}")]
    Handle {
        /// The namespace's name there.
        kind: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A filesystem, or the kernel, can't show files with other owners than they have.
    #[error("{path} can't be mounted with other ids")]
    Unmappable {
        /// A file or folder there.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// Makes a user namespace with these maps. It lives as long as the returned descriptor or a process in it; hand it over as
/// [`crate::Request::user`], to as many containers as shall share it. An unprivileged caller can map its own ids only.
///
/// # Errors
/// [`UserNamespaceError`] names the call or the map.
pub fn new_user_namespace(users: &[LinuxIdMapping], groups: &[LinuxIdMapping]) -> Result<OwnedFd, UserNamespaceError> {
    make(libc::CLONE_NEWUSER, "user", lines(users), lines(groups))
}

/// Finds the user namespace that a network namespace belongs to; ioctl_ns(2). `None` is the caller's own.
///
/// # Errors
/// As ioctl_ns(2).
pub fn user_namespace_of(network: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let owner = File::from(sys::own(sys::owning_user_namespace(network.as_raw_fd())?));
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let own = std::fs::metadata("/proc/self/ns/user")?;
    Ok((identity(owner.metadata()?) != identity(own)).then(|| owner.into()))
}

/// Makes sure that a container with a user namespace can have its layers below `folder`: the filesystem there and the
/// kernel's overlay must take mounts with other ids (Linux 5.19).
///
/// # Errors
/// [`UserNamespaceError`] says what the kernel refuses.
pub fn check_other_ids(folder: &Path) -> Result<(), UserNamespaceError> {
    let failed = |source| UserNamespaceError::Unmappable { path: folder.into(), source };
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    // Overlay says so at the mount only, and to a mount namespace of its own.
    if older(&release, [5, 19]) {
        let reason = format!("overlay takes them since Linux 5.19, this is {release}");
        return Err(failed(io::Error::new(io::ErrorKind::Unsupported, reason)));
    }
    let user = make(libc::CLONE_NEWUSER, "user", "0 1 1\n".into(), "0 1 1\n".into())?;
    let path = CString::new(folder.as_os_str().as_encoded_bytes()).map_err(|error| failed(error.into()))?;
    let mount = sys::open_tree(libc::AT_FDCWD, &path, libc::OPEN_TREE_CLONE).map_err(|errno| failed(errno.into()))?;
    let mount = sys::own(mount);
    let attributes = MountAttributes {
        set: libc::MOUNT_ATTR_IDMAP,
        user_namespace: user.as_raw_fd() as u64,
        ..MountAttributes::default()
    };
    sys::set_mount_attributes(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH, &attributes)
        .map_err(|errno| failed(errno.into()))
}

/// Whether a release as uname(2) tells it is before `wanted`. One that is not understood counts as old.
fn older(release: &str, wanted: [u32; 2]) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)] < wanted
}

/// Makes a user namespace with these maps in the kernel's words, and what else `kinds` has within it; opens the one named
/// `kind`.
pub(crate) fn make(
    kinds: i32,
    kind: &'static str,
    users: String,
    groups: String,
) -> Result<OwnedFd, UserNamespaceError> {
    let failed = |call| move |source| UserNamespaceError::Make { call, source };
    let (waits, lives) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed("pipe2")(error.into()))?;
    let request = CloneRequest { namespaces: kinds as u64, sibling: false, cgroup: None };
    // The helper only lives in the namespace until it is killed, or its caller is gone.
    let helper = || {
        sys::close(lives.as_raw_fd());
        let _ = sys::read(waits.as_raw_fd(), &mut [0_u8]);
    };
    let (pid, pidfd) = sys::clone_child(request, helper).map_err(|errno| failed("clone3")(errno.into()))?;
    let made = map(pid, users, groups).and_then(|()| {
        let handle = File::open(format!("/proc/{pid}/ns/{kind}"));
        handle.map(OwnedFd::from).map_err(|source| UserNamespaceError::Handle { kind, source })
    });
    // The pipe's end would not do: children that other threads clone meanwhile hold copies of it.
    let killed = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
    killed.map_err(|error| failed("pidfd_send_signal")(error.into()))?;
    wait(&Started { pid, pidfd }).map_err(failed("waitid"))?;
    made
}

fn map(pid: i32, users: String, groups: String) -> Result<(), UserNamespaceError> {
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
    write("uid_map", users)?;
    write("gid_map", groups)
}

fn lines(map: &[LinuxIdMapping]) -> String {
    map.iter().map(|range| format!("{} {} {}\n", range.container_id(), range.host_id(), range.size())).collect()
}

#[cfg(test)]
mod tests {
    use super::older;

    #[test]
    fn releases_are_compared_by_number() {
        for (release, old) in
            [("5.4.0-150-generic", true), ("5.19", false), ("6.1.0-38-arm64", false), ("10.0", false), ("odd", true)]
        {
            assert_eq!(older(release, [5, 19]), old, "{release}");
        }
    }
}
