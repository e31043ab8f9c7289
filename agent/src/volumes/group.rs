//! Gives a volume to a pod's `fsGroup`, as Kubernetes does: every file's group is changed and may read and write, and
//! new files inherit the group. Where the volume's own folder shows that this was done, nothing is touched
//! (`fsGroupChangePolicy: OnRootMismatch`): a start must not read a whole disk.
//!
//! Containers may be at work in the volume: links are never followed.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{Dir, FileType, Mode, OFlags, openat};

/// Group may read and write; folders are entered and hand their group on.
const FILES: u32 = 0o660;
const FOLDERS: u32 = 0o2770;

/// Gives a volume with all that is in it to a group of the host.
///
/// # Errors
/// As of the file system, at the first file that can't be given.
pub fn give(volume: &Path, group: u32) -> io::Result<()> {
    let root = open(rustix::fs::CWD, volume)?;
    let found = std::fs::File::from(root.try_clone()?).metadata()?;
    if found.gid() == group && found.mode() & FOLDERS == FOLDERS {
        return Ok(());
    }
    below(&root, group)?;
    // Last, since it says that all is done.
    one(&root, group)
}

fn open(folder: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    Ok(openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

fn below(folder: &OwnedFd, group: u32) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = openat(folder, ".", flags, Mode::empty())?;
    for entry in Dir::read_from(&readable)? {
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        // It may have gone since.
        let Ok(found) = open(folder, entry.file_name()) else { continue };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
        if kind == FileType::Directory {
            below(&found, group)?;
        }
        if kind != FileType::Symlink {
            one(&found, group)?;
        }
    }
    Ok(())
}

fn one(file: &OwnedFd, group: u32) -> io::Result<()> {
    let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
    let found = std::fs::metadata(&itself)?;
    std::os::unix::fs::chown(&itself, None, Some(group))?;
    let more = if found.is_dir() { FOLDERS } else { FILES };
    std::fs::set_permissions(&itself, Permissions::from_mode(found.mode() & 0o7777 | more))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn fs_group_owns_every_file_and_follows_no_link() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root may give files away");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().join("volume");
        fs::create_dir_all(volume.join("a/b")).unwrap();
        for (path, mode) in [("volume/a/b/file", 0o600), ("outside", 0o600)] {
            fs::write(folder.path().join(path), "").unwrap();
            fs::set_permissions(folder.path().join(path), Permissions::from_mode(mode)).unwrap();
        }
        symlink("../outside", volume.join("link")).unwrap();
        symlink("..", volume.join("up")).unwrap();
        give(&volume, 2000).unwrap();
        let of = |path: &str| {
            let found = fs::metadata(folder.path().join(path)).unwrap();
            (found.gid(), found.mode() & 0o7777)
        };
        assert_eq!(of("volume"), (2000, 0o2775));
        assert_eq!(of("volume/a/b"), (2000, 0o2775));
        assert_eq!(of("volume/a/b/file"), (2000, 0o660));
        assert_eq!(of("outside"), (0, 0o600));
        // Done before: what came since is left as it is.
        fs::write(volume.join("later"), "").unwrap();
        std::os::unix::fs::chown(volume.join("later"), None, Some(7)).unwrap();
        give(&volume, 2000).unwrap();
        assert_eq!(of("volume/later").0, 7);
    }
}
