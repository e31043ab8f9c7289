//! Images in files: an OCI layout (image-spec, image-layout.md) or a `docker save` archive, as a folder or as a tar.
//!
//! Owns finding a member by its name, in any order and without unpacking: an archive is read once for where its
//! members lie. All names are bounded and none leads out of the folder. What the members mean is `store`'s.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use thiserror::Error;

use crate::blobs::{BlobError, blob_io};
use crate::split::ZSTD_WINDOW_LOG;
use crate::tar::{Archive, Kind};

/// Most members of an archive.
pub const MAX_MEMBERS: usize = 100_000;
/// Most links that lead from one member to the next.
const MAX_LINKS: usize = 8;
const BLOCK: u64 = 512;

/// Why a file or folder with images cannot be read.
#[derive(Debug, Error)]
pub enum BundleError {
    /// The file system refused.
    #[error(transparent)]
    File(#[from] BlobError),
    /// It is a file, but no tar.
    #[error("{} is not a tar archive (plain, gzip or zstd) that can be read: {problem}", path.display())]
    NoArchive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A compressed archive or a pipe for which there is no room while it is read.
    #[error("{} unpacks to more than {room} bytes, which is all the room that the image store has", path.display())]
    NoRoom {
        /// The archive.
        path: PathBuf,
        /// Bytes that may be used.
        room: u64,
    },
    /// More members than an archive may have.
    #[error("{} has more than {MAX_MEMBERS} members", .0.display())]
    TooMany(PathBuf),
    /// A member is larger than it may be.
    #[error("{name} in {} has {size} bytes, {limit} are allowed", path.display())]
    TooLarge {
        /// The folder or archive.
        path: PathBuf,
        /// The member.
        name: String,
        /// Its bytes.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
}

/// Images in a folder or an archive.
#[derive(Debug)]
pub(crate) struct Bundle {
    path: PathBuf,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Folder(OwnedFd),
    Archive { file: File, members: HashMap<String, Member> },
}

#[derive(Debug, Clone)]
enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

/// A member that is being read.
pub(crate) struct MemberReader {
    file: File,
    offset: u64,
    left: u64,
}

impl Read for MemberReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let count = self.file.read_at(&mut buffer[..room], self.offset)?;
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

impl MemberReader {
    pub(crate) fn size(&self) -> u64 {
        self.left
    }
}

impl Bundle {
    /// Opens a folder or an archive. What cannot be read in any order (a pipe, a compressed archive) is first written
    /// to a file without a name in `temp`, of at most `room` bytes.
    pub(crate) fn open(path: &Path, temp: &Path, room: u64) -> Result<Bundle, BundleError> {
        let fail = |operation| blob_io(operation, path);
        let mut file = File::open(path).map_err(fail("open"))?;
        let metadata = file.metadata().map_err(fail("look at"))?;
        if metadata.is_dir() {
            return Ok(Bundle { path: path.to_owned(), source: Source::Folder(file.into()) });
        }
        let mut head = [0; 4];
        let count = read_up_to(&mut file, &mut head).map_err(fail("read"))?;
        let compressed = head.starts_with(&[0x1f, 0x8b]) || head == [0x28, 0xb5, 0x2f, 0xfd];
        if compressed || !metadata.is_file() {
            let rest = io::Cursor::new(head[..count].to_vec()).chain(file);
            let spooled = spool(rest, compressed, temp, room).map_err(fail("unpack"))?;
            file = spooled.ok_or_else(|| BundleError::NoRoom { path: path.to_owned(), room })?;
        }
        let members = index(&mut file, path)?;
        Ok(Bundle { path: path.to_owned(), source: Source::Archive { file, members } })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a member; `None` where there is none of this name.
    pub(crate) fn member(&self, name: &str) -> Result<Option<MemberReader>, BundleError> {
        let path = self.path.join(name);
        let fail = |operation| blob_io(operation, &path);
        match &self.source {
            Source::Folder(folder) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let file: File = match rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve) {
                    Ok(file) => file.into(),
                    Err(Errno::NOENT) => return Ok(None),
                    Err(errno) => return Err(fail("open")(errno.into()).into()),
                };
                let left = file.metadata().map_err(fail("look at"))?.len();
                Ok(Some(MemberReader { file, offset: 0, left }))
            }
            Source::Archive { file, members } => {
                let mut name = plain(name);
                for _ in 0..MAX_LINKS {
                    match members.get(&name) {
                        Some(Member::File { offset, size }) => {
                            let file = file.try_clone().map_err(fail("open"))?;
                            return Ok(Some(MemberReader { file, offset: *offset, left: *size }));
                        }
                        Some(Member::Link(target)) => name.clone_from(target),
                        None => return Ok(None),
                    }
                }
                Ok(None)
            }
        }
    }

    /// Reads a member of at most `limit` bytes; `None` where there is none of this name.
    pub(crate) fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, BundleError> {
        let Some(member) = self.member(name)? else { return Ok(None) };
        let size = member.size();
        if size > limit {
            return Err(BundleError::TooLarge { path: self.path.clone(), name: name.to_owned(), size, limit });
        }
        let mut bytes = Vec::new();
        let read = member.take(limit).read_to_end(&mut bytes);
        read.map_err(blob_io("read", &self.path.join(name)))?;
        Ok(Some(bytes))
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read(&mut buffer[count..])? {
            0 => break,
            more => count += more,
        }
    }
    Ok(count)
}

/// Writes a stream, decompressed, to a file that has no name and goes when it is closed; `None` where it has more bytes
/// than there is `room` for.
fn spool(stream: impl Read, compressed: bool, temp: &Path, room: u64) -> io::Result<Option<File>> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mut file: File = rustix::fs::open(temp, flags, Mode::from_raw_mode(0o600))?.into();
    let mut stream = io::BufReader::new(stream);
    let mut copy = |stream: &mut dyn Read| io::copy(&mut stream.take(room.saturating_add(1)), &mut file);
    let count = if !compressed {
        copy(&mut stream)?
    } else if io::BufRead::fill_buf(&mut stream)?.first() == Some(&0x1f) {
        copy(&mut flate2::bufread::MultiGzDecoder::new(stream))?
    } else {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(stream)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        copy(&mut decoder)?
    };
    Ok((count <= room).then_some(file))
}

/// Notes where the members of an archive lie. Their data is passed over, not read.
fn index(file: &mut File, path: &Path) -> Result<HashMap<String, Member>, BundleError> {
    let broken = |problem: String| BundleError::NoArchive { path: path.to_owned(), problem };
    let mut members = HashMap::new();
    let mut begin = 0;
    loop {
        file.seek(SeekFrom::Start(begin)).map_err(|error| broken(error.to_string()))?;
        let mut archive = Archive::new(&mut *file);
        let Some(entry) = archive.next_entry().map_err(|error| broken(error.to_string()))? else { break };
        let data = begin + archive.offset();
        let name = plain(&String::from_utf8_lossy(&entry.path));
        let link = String::from_utf8_lossy(&entry.link).into_owned();
        let stored = if entry.kind == Kind::File { entry.size } else { 0 };
        let member = match entry.kind {
            Kind::File if entry.pieces.is_some() => return Err(broken(format!("{name} is a sparse file"))),
            Kind::File => Member::File { offset: data, size: entry.size },
            Kind::HardLink => Member::Link(plain(&link)),
            Kind::Symlink => Member::Link(beside(&name, &link)),
            _ => Member::Link(String::new()),
        };
        if members.len() >= MAX_MEMBERS {
            return Err(BundleError::TooMany(path.to_owned()));
        }
        members.insert(name, member);
        begin = stored.checked_next_multiple_of(BLOCK).and_then(|length| data.checked_add(length)).unwrap_or(u64::MAX);
    }
    Ok(members)
}

/// `./a//b` is `a/b`, and `a/../b` is `b`; what leads upwards ends at the top.
fn plain(name: &str) -> String {
    let mut parts = Vec::new();
    for part in name.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What a symlink of this name means.
fn beside(name: &str, target: &str) -> String {
    match name.rsplit_once('/') {
        Some((folder, _)) if !target.starts_with('/') => plain(&format!("{folder}/{target}")),
        _ => plain(target),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{TarFile, gzip};

    fn open(bytes: &[u8]) -> Result<Bundle, BundleError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        std::fs::write(&path, bytes).unwrap();
        Bundle::open(&path, folder.path(), 1 << 20)
    }

    fn tar() -> Vec<u8> {
        TarFile::new()
            .file("a/one", &[1; 700])
            .symlink("b/link", "../a/one")
            .symlink("loop", "loop")
            .hard_link("hard", "a/one")
            .file("./two", b"two")
            .bytes()
    }

    #[test]
    fn members_are_found_in_any_order_also_by_links_and_in_compressed_archives() {
        for bytes in [tar(), gzip(&tar()), zstd::encode_all(&tar()[..], 3).unwrap()] {
            let bundle = open(&bytes).unwrap();
            assert_eq!(bundle.read("two", 10).unwrap().unwrap(), b"two");
            for name in ["a/one", "b/link", "hard", "./a/one"] {
                assert_eq!(bundle.read(name, 1000).unwrap().unwrap(), [1; 700], "{name}");
            }
            assert!(bundle.read("loop", 10).unwrap().is_none() && bundle.read("none", 10).unwrap().is_none());
            assert!(matches!(bundle.read("a/one", 699), Err(BundleError::TooLarge { size: 700, .. })));
        }
    }

    #[test]
    fn what_is_no_archive_says_so() {
        for bytes in [&b"<html>".repeat(200)[..], &gzip(b"no tar")[..], &tar()[..100]] {
            assert!(matches!(open(bytes), Err(BundleError::NoArchive { .. })));
        }
    }

    /// Such an archive once filled the disk, and its window the memory.
    #[test]
    fn a_compressed_archive_is_bounded_in_bytes_and_memory() {
        let zeros = vec![0; (1 << 20) + 1];
        for bytes in [gzip(&zeros), zstd::encode_all(&zeros[..], 3).unwrap()] {
            assert!(matches!(open(&bytes), Err(BundleError::NoRoom { room: 1_048_576, .. })));
        }
        let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        wide.window_log(ZSTD_WINDOW_LOG + 1).unwrap();
        std::io::Write::write_all(&mut wide, &zeros).unwrap();
        let error = open(&wide.finish().unwrap()).unwrap_err();
        assert!(matches!(error, BundleError::File(BlobError::Io { operation: "unpack", .. })), "{error}");
    }

    #[test]
    fn a_folder_gives_nothing_from_outside() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        std::fs::write(folder.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", folder.path().join("in/link")).unwrap();
        let bundle = Bundle::open(&folder.path().join("in"), folder.path(), 0).unwrap();
        assert!(bundle.read("none", 10).unwrap().is_none());
        for name in ["link", "../secret", "/etc/passwd"] {
            assert!(matches!(bundle.read(name, 10), Err(BundleError::File(BlobError::Io { .. }))), "{name}");
        }
    }
}
