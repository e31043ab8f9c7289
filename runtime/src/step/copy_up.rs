//! Copies a folder of the image into the fresh filesystem that will cover it (`tmpcopyup`).
//!
//! Owns the copy: folders, files, links, nodes, their modes and owners. Must not follow links, and must not allocate.

use crate::sys::{self, Errno};
use std::ffi::CStr;

/// How deep folders may lie; each level takes a descriptor pair and a few KiB of the child's stack.
const DEPTH_MAXIMUM: usize = 64;
/// The offset of the name in a `struct linux_dirent64`.
const NAME_OFFSET: usize = 19;

/// Copies what is in one folder into another, which is empty.
pub(crate) fn copy_folder(from: i32, to: i32) -> sys::Result<()> {
    copy_entries(from, to, DEPTH_MAXIMUM)
}

fn copy_entries(from: i32, to: i32, depth: usize) -> sys::Result<()> {
    let Some(depth) = depth.checked_sub(1) else { return Err(Errno(libc::ELOOP)) };
    let listing = sys::open(from, c".", libc::O_RDONLY | libc::O_DIRECTORY)?;
    let mut buffer = [0_u8; 4096];
    loop {
        let length = sys::read_folder(listing, &mut buffer)?;
        if length == 0 {
            break;
        }
        let mut entries = buffer.get(..length).unwrap_or(&buffer);
        while let Some((name, rest)) = next_entry(entries) {
            entries = rest;
            if name != c"." && name != c".." {
                copy_entry(from, to, name, depth)?;
            }
        }
    }
    sys::close(listing);
    Ok(())
}

/// Takes the first entry off a listing of getdents64(2).
fn next_entry(entries: &[u8]) -> Option<(&CStr, &[u8])> {
    let length = entries.get(16..18)?;
    let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
    let name = CStr::from_bytes_until_nul(entries.get(NAME_OFFSET..length)?).ok()?;
    Some((name, &entries[length..]))
}

fn copy_entry(from: i32, to: i32, name: &CStr, depth: usize) -> sys::Result<()> {
    let source = sys::open(from, name, libc::O_PATH | libc::O_NOFOLLOW)?;
    let stat = sys::stat(source)?;
    match stat.mode & libc::S_IFMT {
        libc::S_IFDIR => {
            sys::make_folder(to, name, 0o700)?;
            let target = sys::open(to, name, libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW)?;
            copy_entries(source, target, depth)?;
            sys::change_owner_of(target, stat.user, stat.group)?;
            sys::change_mode(target, stat.mode & 0o7777)?;
            sys::close(target);
        }
        libc::S_IFREG => {
            // Somebody who shares the image may have put a fifo or a device there in between.
            let reader = sys::open(from, name, libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK)?;
            if !sys::stat(reader)?.is_file() {
                return Err(Errno(libc::ESTALE));
            }
            let target = sys::create_file(to, name, 0o600)?;
            while sys::copy_bytes(reader, target, 1 << 30)? > 0 {}
            sys::change_owner_of(target, stat.user, stat.group)?;
            sys::change_mode(target, stat.mode & 0o7777)?;
            sys::close(target);
            sys::close(reader);
        }
        libc::S_IFLNK => {
            let mut link = [0_u8; libc::PATH_MAX as usize];
            let length = sys::read_link(from, name, &mut link)?;
            if length >= link.len() {
                return Err(Errno(libc::ENAMETOOLONG));
            }
            sys::make_symlink(CStr::from_bytes_until_nul(&link).map_err(|_| Errno(libc::EINVAL))?, to, name)?;
            sys::change_owner(to, name, stat.user, stat.group)?;
        }
        _ => {
            sys::make_node(to, name, stat.mode, stat.device)?;
            sys::change_owner(to, name, stat.user, stat.group)?;
        }
    }
    sys::close(source);
    Ok(())
}
