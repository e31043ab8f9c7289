//! The steps around a terminal of the container's own.
//!
//! Owns how it is opened and proved to be one. Must not allocate, lock or log while running.

use super::device::bind_descriptor;
use super::target::{Target, move_to_slot};
use crate::sys::{self, Errno};

/// fstatfs(2)'s magic number of devpts.
pub(super) const DEVPTS_MAGIC: i64 = 0x1cd1;

/// Opens a new terminal in the devpts below the root and keeps its two ends at descriptor numbers that the plan has chosen.
pub(super) fn open(root: i32, master: i32, slave: i32, size: Option<(u16, u16)>) -> sys::Result<()> {
    let resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_SYMLINKS;
    let opened = sys::open_resolved(root, c"dev/pts/ptmx", libc::O_RDWR | libc::O_NOCTTY, resolve)?;
    // CVE-2025-52565: whatever the image has put there, only the multiplexer of a devpts will do.
    if !sys::stat(opened)?.is_character_device(5, 2) || sys::filesystem_kind(opened)? != DEVPTS_MAGIC {
        return Err(Errno(libc::ENODEV));
    }
    move_to_slot(opened, master)?;
    sys::unlock_terminal(master)?;
    if let Some((rows, columns)) = size {
        sys::set_terminal_size(master, rows, columns)?;
    }
    // By the master, not by name: nothing in the container can put another terminal in its place.
    move_to_slot(sys::open_terminal_peer(master)?, slave)
}

/// Binds the terminal's end onto the container's `/dev/console`, both by descriptor.
pub(super) fn bind_console(root: i32, target: &Target, slave: i32) -> sys::Result<()> {
    let place = target.open(root)?;
    bind_descriptor(slave, place)?;
    sys::close(place);
    Ok(())
}
