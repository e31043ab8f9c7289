//! Masked and read-only paths.
//!
//! Owns what covers a secret: the real null device, or one empty read-only folder that all masks share. Must not fail
//! for a path that this kernel does not have.

use super::device::bind_descriptor;
use super::target::{move_to_slot, open_inside};
use crate::sys::{self, Errno, MountAttributes};
use std::ffi::CStr;

/// The descriptor numbers of what masks use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Covers {
    /// The null device.
    pub(crate) null: i32,
    /// The empty folder: the first mask that needs one mounts it, the others clone that mount.
    pub(crate) folder: i32,
}

impl Covers {
    /// Opens the null device, which also holds the other number until the first mask of a folder.
    pub(crate) fn prepare(self) -> sys::Result<()> {
        let null = sys::open(libc::AT_FDCWD, c"/dev/null", libc::O_PATH | libc::O_NOFOLLOW)?;
        // CVE-2025-31133: what covers a secret must be the null device itself.
        if !sys::stat(null)?.is_character_device(1, 3) {
            return Err(Errno(libc::ENODEV));
        }
        move_to_slot(null, self.null)?;
        sys::duplicate_onto(self.null, self.folder, true)
    }

    /// Hides a path: a file under the null device, a folder under the empty one.
    pub(crate) fn mask(self, root: i32, path: &CStr) -> sys::Result<()> {
        let Some(target) = open_if_there(root, path)? else { return Ok(()) };
        if sys::stat(target)?.is_folder() {
            if sys::stat(self.folder)?.is_folder() {
                bind_descriptor(self.folder, target)?;
            } else {
                self.mount_empty_folder(target)?;
            }
        } else {
            bind_descriptor(self.null, target)?;
        }
        sys::close(target);
        Ok(())
    }

    fn mount_empty_folder(self, target: i32) -> sys::Result<()> {
        let context = sys::open_filesystem(c"tmpfs")?;
        for (key, value) in [(c"nr_blocks", Some(c"1")), (c"nr_inodes", Some(c"1")), (c"ro", None)] {
            sys::configure_filesystem(context, key, value)?;
        }
        sys::create_filesystem(context)?;
        let attributes =
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        let mount = sys::mount_filesystem(context, attributes as u32)?;
        sys::attach_mount(mount, target)?;
        sys::close(context);
        move_to_slot(mount, self.folder)
    }
}

/// Binds a path onto itself, read-only.
pub(crate) fn make_path_read_only(root: i32, path: &CStr) -> sys::Result<()> {
    let Some(target) = open_if_there(root, path)? else { return Ok(()) };
    let flags = libc::OPEN_TREE_CLONE | (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE) as u32;
    let mount = sys::open_tree(target, c"", flags)?;
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
    sys::set_mount_attributes(mount, c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, &attributes)?;
    sys::attach_mount(mount, target)?;
    sys::close(mount);
    sys::close(target);
    Ok(())
}

fn open_if_there(root: i32, path: &CStr) -> sys::Result<Option<i32>> {
    match open_inside(root, path, false) {
        Err(Errno(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        result => result.map(Some),
    }
}
