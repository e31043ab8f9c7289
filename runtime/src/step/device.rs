//! Device nodes and links of the container's `/dev`.
//!
//! Owns how a node comes to be: made, or bound from the host where the kernel refuses to make one. Must not accept
//! another file in its place.

use super::target::PROC_MAGIC;
use super::text;
use crate::sys::{self, Errno};
use std::ffi::{CStr, CString};
use std::fmt;

/// A device node.
#[derive(Debug)]
pub(crate) struct Device {
    /// For people, and where the host has it.
    pub(crate) path: CString,
    pub(crate) name: CString,
    /// Type and permissions.
    pub(crate) mode: u32,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) user: u32,
    pub(crate) group: u32,
    /// The node as the caller has made it, detached: a user namespace may not make any.
    pub(crate) mount: Option<i32>,
}

impl Device {
    /// Makes the node in an open folder.
    pub(crate) fn make(&self, folder: i32) -> sys::Result<()> {
        if let Some(mount) = self.mount {
            let place = self.open_place(folder)?;
            sys::attach_mount(mount, place)?;
            sys::close(place);
            sys::close(mount);
            return Ok(());
        }
        match sys::make_node(folder, &self.name, self.mode, libc::makedev(self.major, self.minor)) {
            Ok(()) if self.user == 0 && self.group == 0 => Ok(()),
            Ok(()) => sys::change_owner(folder, &self.name, self.user, self.group),
            Err(Errno(libc::EEXIST)) => {
                let there = sys::open(folder, &self.name, libc::O_PATH | libc::O_NOFOLLOW)?;
                let same = self.is(sys::stat(there)?);
                sys::close(there);
                if same { Ok(()) } else { Err(Errno(libc::EEXIST)) }
            }
            Err(Errno(libc::EPERM)) => self.bind_from_host(folder),
            Err(errno) => Err(errno),
        }
    }

    fn is(&self, stat: sys::Stat) -> bool {
        let kind = self.mode & libc::S_IFMT;
        let number = if kind == libc::S_IFIFO { stat.device } else { libc::makedev(self.major, self.minor) };
        stat.mode & libc::S_IFMT == kind && stat.device == number
    }

    /// Opens a file for the device to be mounted on, and makes it if there is none.
    fn open_place(&self, folder: i32) -> sys::Result<i32> {
        let made = sys::make_node(folder, &self.name, libc::S_IFREG, 0);
        if !sys::is_there(&made) {
            made?;
        }
        let place = sys::open(folder, &self.name, libc::O_PATH | libc::O_NOFOLLOW)?;
        if sys::filesystem_kind(place)? == PROC_MAGIC {
            return Err(Errno(libc::EPERM));
        }
        Ok(place)
    }

    fn bind_from_host(&self, folder: i32) -> sys::Result<()> {
        let source = sys::open(libc::AT_FDCWD, &self.path, libc::O_PATH | libc::O_NOFOLLOW)?;
        // Whatever the host has under that name, only the very device may enter the container.
        if !self.is(sys::stat(source)?) {
            return Err(Errno(libc::ENODEV));
        }
        let target = self.open_place(folder)?;
        bind_descriptor(source, target)?;
        sys::close(target);
        sys::close(source);
        Ok(())
    }
}

/// Binds what one descriptor shows onto another.
pub(super) fn bind_descriptor(source: i32, target: i32) -> sys::Result<()> {
    let mount = sys::open_tree(source, c"", libc::OPEN_TREE_CLONE | libc::AT_EMPTY_PATH as u32)?;
    sys::attach_mount(mount, target)?;
    sys::close(mount);
    Ok(())
}

/// Makes a link. A file of the image in its place goes; a folder or a mount of the user's stays.
pub(super) fn make_link(folder: i32, name: &CStr, points_to: &CStr) -> sys::Result<()> {
    match sys::make_symlink(points_to, folder, name) {
        Err(Errno(libc::EEXIST)) => match sys::remove_file(folder, name) {
            Err(Errno(libc::EISDIR | libc::EBUSY)) => Ok(()),
            Ok(()) => sys::make_symlink(points_to, folder, name),
            error => error,
        },
        result => result,
    }
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}:{} mode {:o}", text(&self.path), self.major, self.minor, self.mode & 0o7777)?;
        write!(out, " owner {}:{}", self.user, self.group)
    }
}
