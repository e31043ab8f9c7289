//! A cgroup with all below it, however deep a container with a writable cgroup has made it.
//!
//! Owns the way through the folders: by descriptors, since a path has an end at 4096 bytes, and without recursion, since a
//! stack has one, too. Must not know what is done at each.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, open, openat, unlinkat};
use rustix::io::Errno;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Visits a folder and everything below it, each before those below. What vanishes meanwhile is left out.
///
/// # Errors
/// The visitor's, or the kernel's.
pub(super) fn visit(top: &Path, mut visitor: impl FnMut(&OwnedFd) -> io::Result<()>) -> io::Result<()> {
    walk(top, &mut visitor, &mut |_, _| Ok(()))
}

/// Removes a folder with everything below it; the files in it are the kernel's and go with it.
///
/// # Errors
/// `EBUSY` if somebody is in one of them, or the kernel's.
pub(super) fn remove(top: &Path) -> io::Result<()> {
    let remove_top = || match std::fs::remove_dir(top) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    };
    match remove_top() {
        // Somebody is in it, or it has folders of its own.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        result => return result,
    }
    walk(top, &mut |_| Ok(()), &mut |parent, name| match unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    })?;
    remove_top()
}

/// A folder on the way down to where the walk is.
struct Level {
    /// Its name in the one above; the top has none.
    name: Option<CString>,
    /// The folders in it that were not entered yet.
    left: Vec<CString>,
}

/// Goes down into each folder and comes up again. Only one is open at a time.
fn walk(
    top: &Path,
    enter: &mut dyn FnMut(&OwnedFd) -> io::Result<()>,
    leave: &mut dyn FnMut(&OwnedFd, &CString) -> io::Result<()>,
) -> io::Result<()> {
    let mut here = match open(top, FOLDER, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    enter(&here)?;
    let mut levels = vec![Level { name: None, left: folders(&here)? }];
    while let Some(level) = levels.last_mut() {
        if let Some(name) = level.left.pop() {
            here = match openat(&here, &name, FOLDER, Mode::empty()) {
                Err(Errno::NOENT) => continue,
                opened => opened?,
            };
            enter(&here)?;
            let left = folders(&here)?;
            levels.push(Level { name: Some(name), left });
        } else if let Some(Level { name: Some(name), .. }) = levels.pop() {
            here = openat(&here, c"..", FOLDER, Mode::empty())?;
            leave(&here, &name)?;
        }
    }
    Ok(())
}

fn folders(folder: &OwnedFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder.as_fd())? {
        let entry = match entry {
            // It was removed while it was read.
            Err(Errno::NOENT) => break,
            entry => entry?,
        };
        if entry.file_type() == FileType::Directory && !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plain folders are removed as cgroups are, and are as deep as a container wants them.
    #[test]
    fn a_tree_deeper_than_a_path_is_visited_and_removed() {
        let ground = tempfile::tempdir().unwrap();
        let top = ground.path().join("top");
        std::fs::create_dir(&top).unwrap();
        let name = CString::new("n".repeat(200)).unwrap();
        let mut here = open(&top, FOLDER, Mode::empty()).unwrap();
        for _ in 0..100 {
            rustix::fs::mkdirat(&here, &name, Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&here, c"beside", Mode::RWXU).unwrap();
            here = openat(&here, &name, FOLDER, Mode::empty()).unwrap();
        }
        let mut count = 0;
        visit(&top, |_| {
            count += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(count, 201);
        walk(&top, &mut |_| Ok(()), &mut |parent, name| Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)).unwrap();
        remove(&top).unwrap();
        remove(&top).unwrap();
        assert!(!top.exists());
    }
}
