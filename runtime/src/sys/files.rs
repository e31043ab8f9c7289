//! Thin wrappers of the system calls on filesystem contexts, folders and links.
//!
//! Owns the crossing into the kernel. Must not hold state, allocate, lock or log: children call it after clone.

use super::calls::{Errno, Result, check};
use std::ffi::{CStr, c_char};

/// fsconfig(2) with a text (at most 255 bytes), or a flag if there is none.
pub(crate) fn configure_filesystem(context: i32, key: &CStr, value: Option<&CStr>) -> Result<()> {
    const FSCONFIG_SET_FLAG: u32 = 0;
    const FSCONFIG_SET_STRING: u32 = 1;
    let command = if value.is_some() { FSCONFIG_SET_STRING } else { FSCONFIG_SET_FLAG };
    let value = value.map_or(std::ptr::null::<c_char>(), CStr::as_ptr);
    // SAFETY: the key is NUL-terminated; the value is null for a flag, else NUL-terminated; both outlive the call.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context, command, key.as_ptr(), value, 0) }).map(drop)
}

/// fsconfig(2) with `FSCONFIG_CMD_RECONFIGURE`.
pub(crate) fn reconfigure_filesystem(context: i32) -> Result<()> {
    const FSCONFIG_CMD_RECONFIGURE: u32 = 7;
    let null = std::ptr::null::<c_char>();
    // SAFETY: this command takes null key and value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_CMD_RECONFIGURE, null, null, 0) }).map(drop)
}

/// fspick(2) of the filesystem that a descriptor shows; always close-on-exec.
pub(crate) fn pick_filesystem(mount: i32) -> Result<i32> {
    const FSPICK_CLOEXEC: u32 = 1;
    const FSPICK_EMPTY_PATH: u32 = 8;
    let flags = FSPICK_CLOEXEC | FSPICK_EMPTY_PATH;
    // SAFETY: the empty path is static; the rest are integers.
    Ok(check(unsafe { libc::syscall(libc::SYS_fspick, mount, c"".as_ptr(), flags) })? as i32)
}

/// unlinkat(2) of a file.
pub(crate) fn remove_file(folder: i32, name: &CStr) -> Result<()> {
    // SAFETY: `name` is NUL-terminated and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_unlinkat, folder, name.as_ptr(), 0) }).map(drop)
}

/// readlinkat(2); returns the length.
pub(crate) fn read_link(folder: i32, name: &CStr, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: `name` is NUL-terminated; the pointer and the length describe a live, writable slice.
    check(unsafe { libc::syscall(libc::SYS_readlinkat, folder, name.as_ptr(), buffer.as_mut_ptr(), buffer.len()) })
}

/// getdents64(2); returns the length of what it wrote.
pub(crate) fn read_folder(folder: i32, buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the pointer and the length describe a live, writable slice.
    check(unsafe { libc::syscall(libc::SYS_getdents64, folder, buffer.as_mut_ptr(), buffer.len()) })
}

/// openat(2) of a new file that only this call made; always close-on-exec.
pub(crate) fn create_file(folder: i32, name: &CStr, mode: u32) -> Result<i32> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: `name` is NUL-terminated and outlives the call.
    Ok(check(unsafe { libc::syscall(libc::SYS_openat, folder, name.as_ptr(), flags, mode) })? as i32)
}

/// sendfile(2) from one file's position to another's; returns the length, 0 at the end.
pub(crate) fn copy_bytes(from: i32, to: i32, length: usize) -> Result<usize> {
    let null = std::ptr::null_mut::<libc::off_t>();
    // SAFETY: a null offset is allowed and means the file's own position.
    check(unsafe { libc::syscall(libc::SYS_sendfile, to, from, null, length) })
}

/// fchmod(2).
pub(crate) fn change_mode(fd: i32, mode: u32) -> Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_fchmod, fd, mode) }).map(drop)
}

/// fchmodat(2). Follows a link: only for names in folders that nobody else sees.
pub(crate) fn change_mode_at(folder: i32, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: `name` is NUL-terminated and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_fchmodat, folder, name.as_ptr(), mode) }).map(drop)
}

/// fchown(2).
pub(crate) fn change_owner_of(fd: i32, user: u32, group: u32) -> Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_fchown, fd, user, group) }).map(drop)
}

/// Tells whether a result says that the thing is already there.
pub(crate) fn is_there<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Errno(libc::EEXIST)))
}
