//! Writes an initramfs: a cpio archive (newc, see the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`) compressed by gzip.
//!
//! The same contents always give the same bytes: entries are sorted, and no time, owner or inode number
//! of the building machine gets in.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Component, Path};

use flate2::{Compression, GzBuilder};

use crate::board::Board;
use crate::config::{self, Device};
use crate::kernel::{KernelError, KernelPackage};

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Folders that PID 1 mounts something on or writes into.
const FOLDERS: [&str; 8] = ["/dev", "/proc", "/sys", "/run", "/tmp", "/etc", "/var/lib/skeg", "/lib/modules"];

/// Why an initramfs could not be written.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// The kernel package lacks something.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The configuration cannot be said in TOML.
    #[error("configuration of node {node_name:?}: cannot be written")]
    Config {
        /// Name of the node.
        node_name: String,
        /// What cannot be said.
        #[source]
        source: toml::ser::Error,
    },
    /// A path that is relative, empty, or holds `..`.
    #[error("initramfs: {0:?} is not an absolute path without ..")]
    Path(String),
    /// The same path twice.
    #[error("initramfs: {0} is there twice")]
    Twice(String),
    /// A file of more than 4 GiB, the format's limit.
    #[error("initramfs: {path}: {size} bytes, more than cpio can hold")]
    TooLong {
        /// The file.
        path: String,
        /// Its size in bytes.
        size: usize,
    },
    /// The archive cannot be put together.
    #[error("initramfs: cannot be compressed")]
    Write(#[source] io::Error),
}

/// An archive in the making. Parent folders are made as needed (0755).
#[derive(Clone, Debug, Default)]
pub struct Initramfs {
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Initramfs {
    /// Starts an empty archive.
    pub fn new() -> Initramfs {
        Initramfs::default()
    }

    /// Puts together what a device boots into: `skegd` as `/init`, its configuration, the board's modules in
    /// `/lib/modules/NAME.ko`, and the join token if there is one.
    pub fn appliance(
        board: &Board,
        kernel: &KernelPackage,
        device: &Device,
        skegd: Vec<u8>,
        join_token: Option<&str>,
    ) -> Result<Initramfs, InitramfsError> {
        let mut archive = Initramfs::new();
        for folder in FOLDERS {
            archive.folder(folder, 0o755)?;
        }
        let modules = kernel.modules(&board.appliance.modules)?;
        let names: Vec<String> = modules.iter().map(|module| module.name.clone()).collect();
        for module in modules {
            archive.file(&format!("/lib/modules/{}.ko", module.name), 0o644, module.bytes)?;
        }
        let text = config::write(board, device, &names)
            .map_err(|source| InitramfsError::Config { node_name: device.node_name.clone(), source })?;
        archive.file(config::CONFIG_FILE, 0o600, text.into_bytes())?;
        if let Some(token) = join_token {
            archive.file(config::JOIN_TOKEN_FILE, 0o600, token.as_bytes().to_vec())?;
        }
        archive.file("/init", 0o755, skegd)?;
        Ok(archive)
    }

    /// Adds a regular file with permission bits `mode`.
    pub fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) -> Result<(), InitramfsError> {
        self.add(path, FILE | (mode & 0o7777), bytes)
    }

    /// Adds a folder with permission bits `mode`.
    pub fn folder(&mut self, path: &str, mode: u32) -> Result<(), InitramfsError> {
        self.add(path, FOLDER | (mode & 0o7777), Vec::new())
    }

    /// Adds a symbolic link at `path` to `target`.
    pub fn link(&mut self, path: &str, target: &str) -> Result<(), InitramfsError> {
        self.add(path, LINK | 0o777, target.as_bytes().to_vec())
    }

    fn add(&mut self, path: &str, mode: u32, bytes: Vec<u8>) -> Result<(), InitramfsError> {
        let refused = || InitramfsError::Path(path.to_owned());
        let name = path.strip_prefix('/').filter(|name| !name.is_empty()).ok_or_else(refused)?;
        let mut parents = Vec::new();
        let mut so_far = String::new();
        for component in Path::new(name).components() {
            let Component::Normal(part) = component else { return Err(refused()) };
            if !so_far.is_empty() {
                parents.push(so_far.clone());
                so_far.push('/');
            }
            so_far.push_str(part.to_str().ok_or_else(refused)?);
        }
        if u32::try_from(bytes.len()).is_err() {
            return Err(InitramfsError::TooLong { path: path.to_owned(), size: bytes.len() });
        }
        for parent in parents {
            self.entries.entry(parent).or_insert((FOLDER | 0o755, Vec::new()));
        }
        // A folder may be named after it was made as somebody's parent: the named mode counts.
        let is_folder = |mode: u32| mode & !0o7777 == FOLDER;
        match self.entries.insert(so_far, (mode, bytes)) {
            Some((before, _)) if !(is_folder(before) && is_folder(mode)) => Err(InitramfsError::Twice(path.to_owned())),
            _ => Ok(()),
        }
    }

    /// Returns the finished archive.
    pub fn finish(self) -> Result<Vec<u8>, InitramfsError> {
        // The fastest level: the kernel unpacks all of them alike, and most of it is one stripped binary.
        let mut out = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
        // A parent sorts before what is in it: "a" < "a/b".
        for (inode, (name, (mode, bytes))) in (1..).zip(&self.entries) {
            // Checked when it was added.
            let size = u32::try_from(bytes.len()).map_err(|error| InitramfsError::Write(io::Error::other(error)))?;
            let mut writer = cpio::newc::Builder::new(name).ino(inode).mode(*mode).nlink(1).write(&mut out, size);
            writer.write_all(bytes).and_then(|()| writer.finish()).map_err(InitramfsError::Write)?;
        }
        cpio::newc::trailer(&mut out).map_err(InitramfsError::Write)?;
        out.finish().map_err(InitramfsError::Write)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn list(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(archive).read_to_end(&mut plain).unwrap();
        let mut rest = plain.as_slice();
        let mut found = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                return found;
            }
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            assert_eq!((reader.entry().mtime(), reader.entry().uid(), reader.entry().gid()), (0, 0, 0));
            found.push((reader.entry().name().to_owned(), reader.entry().mode(), bytes));
            rest = reader.finish().unwrap();
        }
    }

    #[test]
    fn holds_what_was_put_in_with_parents_first() {
        let mut archive = Initramfs::new();
        archive.file("/lib/modules/x.ko", 0o644, b"module".to_vec()).unwrap();
        archive.link("/bin", "usr/bin").unwrap();
        archive.folder("/lib", 0o700).unwrap();
        let expected = [
            ("bin".to_owned(), 0o120_777, b"usr/bin".to_vec()),
            ("lib".to_owned(), 0o040_700, vec![]),
            ("lib/modules".to_owned(), 0o040_755, vec![]),
            ("lib/modules/x.ko".to_owned(), 0o100_644, b"module".to_vec()),
        ];
        assert_eq!(list(&archive.finish().unwrap()), expected);
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let names = ["/a/b", "/a/c", "/init", "/d"];
        let build = |names: &mut dyn Iterator<Item = &&str>| {
            let mut archive = Initramfs::new();
            names.for_each(|name| archive.file(name, 0o600, name.as_bytes().to_vec()).unwrap());
            archive.finish().unwrap()
        };
        assert_eq!(build(&mut names.iter()), build(&mut names.iter().rev()));
    }

    #[test]
    fn refuses_paths_that_leave_and_files_twice() {
        let mut archive = Initramfs::new();
        for path in ["", "/", "init", "/../init", "/a/../b"] {
            assert!(matches!(archive.file(path, 0, vec![]), Err(InitramfsError::Path(_))), "{path}");
        }
        archive.file("/init", 0o755, vec![1]).unwrap();
        assert!(matches!(archive.file("/init", 0o755, vec![2]), Err(InitramfsError::Twice(_))));
    }
}
