//! A place inside the container's root: found, made where it is missing, and used by descriptor only.
//!
//! Owns every lookup below the root. Must not leave the root, whatever links the image holds, and must not allocate.

use super::text;
use crate::sys::{self, Errno};
use std::ffi::{CStr, CString};
use std::fmt;

/// Lookups never follow magic links such as `/proc/self/fd/3`, and never leave the root.
const INSIDE: u64 = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
/// fstatfs(2)'s magic number of procfs.
pub(crate) const PROC_MAGIC: i64 = 0x9fa0;
/// How often a lookup is repeated that the kernel could not finish because of a concurrent rename (openat2(2), EAGAIN).
const LOOKUP_TRIES: usize = 64;
/// How many dangling links are followed to the place that they name; the kernel's own bound, see path_resolution(7).
const LINKS_MAXIMUM: usize = 40;
const PATH_MAXIMUM: usize = libc::PATH_MAX as usize;

/// A place inside the container's root.
#[derive(Debug)]
pub(crate) struct Target {
    /// The path, relative to the root, without `.`, `..` and double slashes; never empty.
    pub(crate) path: CString,
    /// The last part is a file, not a folder.
    pub(crate) file: bool,
    /// Refuses symbolic links on the way, as for everything under `/proc`, `/sys` and `/dev`.
    pub(crate) strict: bool,
    /// May be a mount point on procfs; only for the few files that others are known to emulate.
    pub(crate) on_proc: bool,
}

impl Target {
    /// Opens the place, creating what is missing.
    pub(crate) fn open(&self, root: i32) -> sys::Result<i32> {
        match open_inside(root, &self.path, self.strict) {
            Err(Errno(libc::ENOENT)) => self.make(root),
            result => result,
        }
    }

    /// Opens the place as a mount point: never on procfs, where a mount could hide or fake what others trust.
    pub(crate) fn open_for_mount(&self, root: i32) -> sys::Result<i32> {
        let fd = self.open(root)?;
        if !self.on_proc && sys::filesystem_kind(fd)? == PROC_MAGIC {
            return Err(Errno(libc::EPERM));
        }
        Ok(fd)
    }

    /// Creates what is missing. A link that leads to nothing is followed inside the root, and its end is created.
    fn make(&self, root: i32) -> sys::Result<i32> {
        let mut path = PathBuffer::new(self.path.to_bytes())?;
        for _ in 0..LINKS_MAXIMUM {
            match self.make_parts(root, &mut path)? {
                Made::Whole(fd) => return Ok(fd),
                Made::MetLink => {}
            }
        }
        Err(Errno(libc::ELOOP))
    }

    /// Walks the path part by part. Each is looked up again from the root, so a link is followed inside the root or, when
    /// strict, refused. A dangling link is put into the path in place of its name.
    fn make_parts(&self, root: i32, path: &mut PathBuffer) -> sys::Result<Made> {
        let mut parent = root;
        let mut start = 0;
        while start < path.length {
            let end = path.part_end(start);
            let last = end == path.length;
            let opened = match path.with_leading(end, |leading| open_inside(root, leading, self.strict)) {
                Err(Errno(libc::ENOENT)) => {
                    let made = path.with_part(start, end, |name| match last && self.file {
                        true => sys::make_node(parent, name, libc::S_IFREG | 0o644, 0),
                        false => sys::make_folder(parent, name, 0o755),
                    });
                    if sys::is_there(&made) && !self.strict && path.follow(parent, start, end)? {
                        close_unless(parent, root);
                        return Ok(Made::MetLink);
                    }
                    // Somebody else may have made it in between, which is as good.
                    if !sys::is_there(&made) {
                        made?;
                    }
                    path.with_leading(end, |leading| open_inside(root, leading, self.strict))?
                }
                result => result?,
            };
            close_unless(parent, root);
            parent = opened;
            start = path.next_start(end);
        }
        Ok(Made::Whole(parent))
    }
}

enum Made {
    Whole(i32),
    MetLink,
}

fn close_unless(fd: i32, root: i32) {
    if fd != root {
        sys::close(fd);
    }
}

/// Opens a path inside the root. Repeats the lookup while the kernel says that it raced with a rename.
pub(crate) fn open_inside(root: i32, path: &CStr, strict: bool) -> sys::Result<i32> {
    let resolve = if strict { INSIDE | libc::RESOLVE_NO_SYMLINKS } else { INSIDE };
    let mut result = Err(Errno(libc::EAGAIN));
    for _ in 0..LOOKUP_TRIES {
        result = sys::open_resolved(root, path, libc::O_PATH, resolve);
        if result != Err(Errno(libc::EAGAIN)) {
            break;
        }
    }
    result
}

/// Moves a descriptor to a number that the plan has chosen. Whoever calls it holds no other descriptor for a moment:
/// that could have the very number.
pub(crate) fn move_to_slot(fd: i32, slot: i32) -> sys::Result<()> {
    if fd != slot {
        sys::duplicate_onto(fd, slot, true)?;
        sys::close(fd);
    }
    Ok(())
}

/// A path on the stack, cut into parts without allocation.
struct PathBuffer {
    bytes: [u8; PATH_MAXIMUM],
    length: usize,
}

impl PathBuffer {
    fn new(path: &[u8]) -> sys::Result<PathBuffer> {
        let mut buffer = PathBuffer { bytes: [0; PATH_MAXIMUM], length: path.len() };
        buffer.bytes[..PATH_MAXIMUM - 1].get_mut(..path.len()).ok_or(Errno(libc::ENAMETOOLONG))?.copy_from_slice(path);
        buffer.length -= path.iter().rev().take_while(|byte| **byte == b'/').count();
        Ok(buffer)
    }

    fn part_end(&self, start: usize) -> usize {
        let rest = &self.bytes[start..self.length];
        start + rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len())
    }

    fn next_start(&self, end: usize) -> usize {
        let rest = &self.bytes[end..self.length];
        end + rest.iter().take_while(|byte| **byte == b'/').count()
    }

    /// Shows a range of the path as a C string; its last byte is put back afterwards.
    fn with_part<T>(&mut self, start: usize, end: usize, use_it: impl FnOnce(&CStr) -> T) -> T {
        let byte = std::mem::replace(&mut self.bytes[end], 0);
        // The NUL is at `end` at the latest, so the bytes hold one.
        let result = use_it(CStr::from_bytes_until_nul(&self.bytes[start..=end]).unwrap_or(c"."));
        self.bytes[end] = byte;
        result
    }

    fn with_leading<T>(&mut self, end: usize, use_it: impl FnOnce(&CStr) -> T) -> T {
        self.with_part(0, end, use_it)
    }

    /// Puts a link's text in place of the part that it is. Tells whether the part is a link.
    fn follow(&mut self, parent: i32, start: usize, end: usize) -> sys::Result<bool> {
        let mut link = [0_u8; PATH_MAXIMUM];
        let length = match self.with_part(start, end, |name| sys::read_link(parent, name, &mut link)) {
            Err(Errno(libc::EINVAL)) => return Ok(false),
            result => result?,
        };
        let before = if link[0] == b'/' { 0 } else { start };
        let text = &link[..length];
        let text = &text[text.iter().take_while(|byte| **byte == b'/').count()..];
        let rest = self.length - end;
        if text.is_empty() || before + text.len() + rest >= PATH_MAXIMUM {
            return Err(Errno(if text.is_empty() { libc::EINVAL } else { libc::ENAMETOOLONG }));
        }
        self.bytes.copy_within(end..self.length, before + text.len());
        self.bytes[before..before + text.len()].copy_from_slice(text);
        self.length = before + text.len() + rest;
        self.bytes[self.length] = 0;
        Ok(true)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "/{}", text(&self.path))
    }
}
