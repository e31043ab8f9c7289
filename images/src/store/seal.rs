//! A layer's folder: `fs` with its files, `archive.gz` with what its archive has beside them, and `seal`, which says
//! what both must be. The folder has its name only when all three are whole.
//!
//! Owns the seal and the quick check by it: as many names and as many bytes as when the layer was unpacked. That
//! finds what disks lose that lie about having written; a changed byte is found by `verify` only.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The layer's files: an overlay's lower folder.
pub(super) const TREE: &str = "fs";
/// The record from which the archive can be made again.
pub(super) const ARCHIVE: &str = "archive.gz";
const SEAL: &str = "seal";
const MAX_SEAL: u64 = 4096;

/// What a layer is when nothing of it was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seal {
    /// Digest of the plain archive.
    pub(super) diff_id: String,
    /// Bytes of the plain archive; `None` where it cannot be made again.
    pub(super) archive_size: Option<u64>,
    #[serde(flatten)]
    pub(super) census: Census,
}

/// How much is in a layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Census {
    /// Names below its root.
    pub(super) entries: u64,
    /// Bytes of its files; one with several names counts as often.
    pub(super) bytes: u64,
}

impl Census {
    /// Counts what is there. Looks at each name once and opens no file.
    pub(super) fn take(tree: &Path) -> io::Result<Census> {
        let mut census = Census::default();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // A list instead of recursion; what waits are names, so that few descriptors are open.
        let mut waiting = vec![tree.to_owned()];
        while let Some(path) = waiting.pop() {
            let folder: OwnedFd = rustix::fs::open(&path, flags, Mode::empty())?;
            for item in rustix::fs::Dir::read_from(folder.as_fd())? {
                let item = item?;
                let name = item.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                census.entries += 1;
                let stat = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => waiting.push(path.join(OsStr::from_bytes(name.to_bytes()))),
                    FileType::RegularFile => census.bytes += u64::try_from(stat.st_size).unwrap_or(0),
                    _ => {}
                }
            }
        }
        Ok(census)
    }
}

impl Seal {
    /// Counts what was unpacked and writes the seal. Syncing is the caller's.
    pub(super) fn write(layer: &Path, diff_id: &Digest, archive_size: Option<u64>) -> io::Result<()> {
        let census = Census::take(&layer.join(TREE))?;
        let seal = Seal { diff_id: diff_id.to_string(), archive_size, census };
        File::create_new(layer.join(SEAL))?.write_all(&serde_json::to_vec(&seal)?)
    }

    /// Reads the seal of a layer; `None` where the layer is not there.
    ///
    /// # Errors
    /// There is a layer without a seal that can be read: it is broken.
    pub(super) fn read(layer: &Path) -> io::Result<Option<Seal>> {
        if let Err(error) = fs::symlink_metadata(layer)
            && error.kind() == io::ErrorKind::NotFound
        {
            return Ok(None);
        }
        let mut text = Vec::new();
        File::open(layer.join(SEAL))?.take(MAX_SEAL).read_to_end(&mut text)?;
        Ok(Some(serde_json::from_slice(&text)?))
    }

    /// Tells what is wrong with a layer at a quick look.
    pub(super) fn trouble(&self, layer: &Path) -> Option<String> {
        let there = match Census::take(&layer.join(TREE)) {
            Ok(there) => there,
            Err(error) => return Some(format!("its files cannot be listed: {error}")),
        };
        if there != self.census {
            let Census { entries, bytes } = self.census;
            return Some(format!(
                "it has {} names with {} bytes where {entries} with {bytes} were unpacked",
                there.entries, there.bytes
            ));
        }
        let record = fs::symlink_metadata(layer.join(ARCHIVE)).is_ok_and(|record| record.len() > 0);
        (self.archive_size.is_some() != record).then(|| "the record of its archive is missing".to_owned())
    }
}
