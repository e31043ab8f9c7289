//! Paths of the device that pods ask for: what must be there, and what is made.
//!
//! Kubernetes' `HostPathType`, with its words.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use skeg_protocol::manifest::HostPathKind;

/// Finds, or makes, what a pod asks for; links are resolved here once, so that what is mounted is what was looked at.
///
/// # Errors
/// It is missing or of another kind, in Kubernetes' words, or can't be made.
pub fn find(path: &str, kind: HostPathKind) -> Result<PathBuf, String> {
    let there = Path::new(path);
    let told = |error: io::Error| format!("hostPath {path:?}: {error}");
    if fs::symlink_metadata(there).is_err() {
        match kind {
            HostPathKind::DirectoryOrCreate => {
                DirBuilder::new().recursive(true).mode(0o755).create(there).map_err(told)?;
            }
            HostPathKind::FileOrCreate => {
                drop(OpenOptions::new().write(true).create_new(true).mode(0o644).open(there).map_err(told)?);
            }
            _ => {}
        }
    }
    let found = fs::canonicalize(there).map_err(told)?;
    let is = fs::metadata(&found).map_err(told)?.file_type();
    let (right, what) = match kind {
        HostPathKind::Any => (true, "there"),
        HostPathKind::Directory | HostPathKind::DirectoryOrCreate => (is.is_dir(), "a directory"),
        HostPathKind::File | HostPathKind::FileOrCreate => (is.is_file(), "a file"),
        HostPathKind::Socket => (is.is_socket(), "a socket file"),
        HostPathKind::CharDevice => (is.is_char_device(), "a character device"),
        HostPathKind::BlockDevice => (is.is_block_device(), "a block device"),
    };
    if right { Ok(found) } else { Err(format!("hostPath type check failed: {path} is not {what}")) }
}

/// Whether a path lies on a file system that the kernel makes up, which can't be mounted with other owners
/// (mount_setattr(2), "ID-mapped mounts").
///
/// # Errors
/// As of statfs(2).
pub fn is_of_kernel(path: &Path) -> io::Result<bool> {
    /// proc, sysfs, cgroup, cgroup2, debugfs, tracefs, securityfs and bpf (statfs(2), linux/magic.h).
    const MAGIC: [u64; 8] =
        [0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270, 0x6462_6720, 0x7472_6163, 0x7363_6673, 0xcafe_4a11];
    Ok(MAGIC.contains(&(rustix::fs::statfs(path)?.f_type as u64)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn host_path_types_are_those_of_kubernetes() {
        use HostPathKind as Kind;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::os::unix::fs::symlink("file", at("link")).unwrap();
        let here = at("");
        for (path, kinds) in [
            (here.as_str(), &[Kind::Any, Kind::Directory, Kind::DirectoryOrCreate][..]),
            (&at("file"), &[Kind::Any, Kind::File, Kind::FileOrCreate]),
            (&at("link"), &[Kind::Any, Kind::File, Kind::FileOrCreate]),
            (&at("socket"), &[Kind::Any, Kind::Socket]),
            ("/dev/null", &[Kind::Any, Kind::CharDevice]),
            (&at("none"), &[]),
        ] {
            let all = [Kind::Any, Kind::Directory, Kind::File, Kind::Socket, Kind::CharDevice, Kind::BlockDevice];
            for kind in all {
                assert_eq!(find(path, kind).is_ok(), kinds.contains(&kind), "{path} as {kind:?}");
            }
        }
        assert_eq!(
            find(&at("file"), Kind::DirectoryOrCreate),
            Err(format!("hostPath type check failed: {} is not a directory", at("file")))
        );
    }

    #[test]
    fn the_kernels_own_files_are_known() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_of_kernel(Path::new("/proc")).unwrap() && is_of_kernel(Path::new("/sys/kernel")).unwrap());
        assert!(!is_of_kernel(folder.path()).unwrap() && !is_of_kernel(Path::new("/dev/shm")).unwrap());
    }

    #[test]
    fn folders_and_files_are_made_where_that_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(find(&at("a/b"), HostPathKind::DirectoryOrCreate).unwrap()), 0o755);
        assert_eq!(mode(find(&at("a/f"), HostPathKind::FileOrCreate).unwrap()), 0o644);
        assert!(find(&at("none/f"), HostPathKind::FileOrCreate).is_err(), "a file's folder must be there");
    }
}
