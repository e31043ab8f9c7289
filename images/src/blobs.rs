//! Content-addressed files: `blobs/sha256/<hex>`, and `uploads/<id>` for what is not whole yet.
//!
//! Owns one promise: a file below `blobs/` is whole, synced, and was verified against its name when it was put
//! there. The device's store keeps manifests and configurations in it, the controller's registry everything. It
//! knows no meaning of the bytes, and its calls block.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use thiserror::Error;

use crate::digest::{Digest, Hasher};

/// Longest id of an upload in bytes.
pub const MAX_UPLOAD_ID: usize = 64;

/// A folder of blobs. Several may be open on one folder in one process; every change is a rename.
#[derive(Debug)]
pub struct Blobs {
    blobs: PathBuf,
    uploads: PathBuf,
    broken: PathBuf,
    next: AtomicU64,
}

/// Why a blob could not be read or written.
#[derive(Debug, Error)]
pub enum BlobError {
    /// The file system refused.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried, such as `create`.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// No space is left on the file system.
    #[error("no space left on the disk of {}", path.display())]
    Full {
        /// What was being written.
        path: PathBuf,
    },
    /// The bytes are not those that were promised.
    #[error("the content has the digest {got}, not {wanted}")]
    Digest {
        /// The digest that was promised.
        wanted: Digest,
        /// The digest that the bytes have.
        got: Digest,
    },
    /// Not as many bytes as were promised.
    #[error("the content has {got} bytes, not {wanted}")]
    Size {
        /// Bytes that were promised.
        wanted: u64,
        /// Bytes that came.
        got: u64,
    },
    /// The id cannot be a file name.
    #[error("{0:?} is no upload id: 1 to {MAX_UPLOAD_ID} letters, digits and dashes")]
    Id(String),
    /// There is no upload with this id.
    #[error("there is no upload {0:?}")]
    NoUpload(String),
    /// A blob is larger than the reader allows.
    #[error("{} has {size} bytes, more than the {limit} that are read at once", path.display())]
    TooLarge {
        /// The blob.
        path: PathBuf,
        /// Its bytes.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
}

/// Turns an I/O error into the variant that tells a full disk from everything else.
pub(crate) fn blob_io<'a>(operation: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> BlobError + 'a {
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => BlobError::Full { path: path.to_owned() },
        _ => BlobError::Io { operation, path: path.to_owned(), source },
    }
}

/// Creates a folder with mode 0700, and its parents.
pub(crate) fn make_folder(path: &Path) -> Result<(), BlobError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(blob_io("create the folder", path))
}

/// Makes a rename in this folder durable.
pub(crate) fn sync_folder(path: &Path) -> Result<(), BlobError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(blob_io("sync the folder", path))
}

impl Blobs {
    /// Opens or creates the folders `blobs/sha256`, `uploads` and `broken` below `root`, mode 0700.
    pub fn open(root: &Path) -> Result<Blobs, BlobError> {
        let blobs = Blobs {
            blobs: root.join("blobs/sha256"),
            uploads: root.join("uploads"),
            broken: root.join("broken"),
            next: AtomicU64::new(0),
        };
        for folder in [&blobs.blobs, &blobs.uploads, &blobs.broken] {
            make_folder(folder)?;
        }
        Ok(blobs)
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.hex())
    }

    /// Tells the size of a blob in bytes; `None` when it is not there.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, BlobError> {
        let path = self.path(digest);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(blob_io("look at", &path)(error)),
        }
    }

    /// Tells when a blob was put there or last touched; `None` when it is not there.
    pub fn modified(&self, digest: &Digest) -> Result<Option<SystemTime>, BlobError> {
        let path = self.path(digest);
        match fs::metadata(&path).and_then(|metadata| metadata.modified()) {
            Ok(modified) => Ok(Some(modified)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(blob_io("look at", &path)(error)),
        }
    }

    /// Notes that somebody counts on a blob now; one that is not there is no error.
    pub fn touch(&self, digest: &Digest) -> Result<(), BlobError> {
        let path = self.path(digest);
        match File::open(&path).and_then(|file| file.set_modified(SystemTime::now())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(blob_io("touch", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Opens a blob for reading and tells its size; `None` when it is not there. The content is not verified again.
    pub fn reader(&self, digest: &Digest) -> Result<Option<(File, u64)>, BlobError> {
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(blob_io("open", &path)(error)),
        };
        let size = file.metadata().map_err(blob_io("look at", &path))?.len();
        Ok(Some((file, size)))
    }

    /// Reads a whole blob of at most `limit` bytes and verifies it.
    ///
    /// One that does not match its name is set aside below `broken/`, and is then as if it were not there.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, BlobError> {
        let path = self.path(digest);
        let Some((file, size)) = self.reader(digest)? else { return Ok(None) };
        if size > limit {
            return Err(BlobError::TooLarge { path, size, limit });
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).map_err(blob_io("read", &path))?;
        let got = Digest::of(&bytes);
        if got == *digest {
            return Ok(Some(bytes));
        }
        log::warn!("{} is broken (its content has the digest {got}): set aside", path.display());
        self.set_aside(&path)?;
        Ok(None)
    }

    /// Moves a broken file or folder out of the way, below `broken/`.
    pub(crate) fn set_aside(&self, path: &Path) -> Result<(), BlobError> {
        let Some(name) = path.file_name() else { return Ok(()) };
        let aside = self.broken.join(name);
        // An older broken object of the same name has told its story.
        let _ = fs::remove_dir_all(&aside).or_else(|_| fs::remove_file(&aside));
        fs::rename(path, &aside).map_err(blob_io("set aside", path))
    }

    /// Stores bytes that are in memory and returns their digest.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, BlobError> {
        let digest = Digest::of(bytes);
        let length = bytes.len() as u64;
        // What is there is read again, so that a damaged one is replaced.
        if self.size(&digest)? == Some(length) && self.read(&digest, length)?.is_some() {
            return Ok(digest);
        }
        let id = format!("put-{}-{}", std::process::id(), self.next.fetch_add(1, Ordering::Relaxed));
        let mut writer = self.create(&id)?;
        match writer.append(bytes) {
            Ok(()) => writer.finish(&digest, Some(length)),
            Err(error) => {
                // The first error is the one to report; what is left of the file goes with the next clean-up.
                let _ = writer.abort();
                Err(error)
            }
        }
    }

    /// Begins an upload. The id is the caller's: 1 to 64 letters, digits and dashes; an upload of that id is replaced.
    pub fn create(&self, id: &str) -> Result<Writer<'_>, BlobError> {
        let path = self.upload_path(id)?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(blob_io("create", &path))?;
        Ok(Writer { blobs: self, path, file, hasher: Hasher::new(), size: 0 })
    }

    /// Goes on with an upload: what is there is read and hashed again, and the writer stands at its end.
    pub fn resume(&self, id: &str) -> Result<Writer<'_>, BlobError> {
        let path = self.upload_path(id)?;
        let mut file = match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(BlobError::NoUpload(id.to_owned())),
            Err(error) => return Err(blob_io("open", &path)(error)),
        };
        let (mut hasher, mut size, mut buffer) = (Hasher::new(), 0, vec![0; 128 << 10]);
        loop {
            match file.read(&mut buffer).map_err(blob_io("read", &path))? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    size += count as u64;
                }
            }
        }
        Ok(Writer { blobs: self, path, file, hasher, size })
    }

    /// Lists the ids of the uploads that are not finished.
    pub fn uploads(&self) -> Result<Vec<String>, BlobError> {
        names(&self.uploads)
    }

    /// Removes an upload; one that is not there is no error.
    pub fn remove_upload(&self, id: &str) -> Result<(), BlobError> {
        let path = self.upload_path(id)?;
        remove(&path).map(|_| ())
    }

    /// Lists all blobs.
    pub fn list(&self) -> Result<Vec<Digest>, BlobError> {
        Ok(names(&self.blobs)?.iter().filter_map(|name| Digest::from_hex(name)).collect())
    }

    /// Removes a blob; tells whether it was there.
    pub fn remove(&self, digest: &Digest) -> Result<bool, BlobError> {
        remove(&self.path(digest))
    }

    fn upload_path(&self, id: &str) -> Result<PathBuf, BlobError> {
        let good = !id.is_empty()
            && id.len() <= MAX_UPLOAD_ID
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        match good {
            true => Ok(self.uploads.join(id)),
            false => Err(BlobError::Id(id.chars().take(100).collect())),
        }
    }
}

fn names(folder: &Path) -> Result<Vec<String>, BlobError> {
    let entries = fs::read_dir(folder).map_err(blob_io("list", folder))?;
    let name = |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().to_string_lossy().into_owned());
    entries.map(name).collect::<io::Result<_>>().map_err(blob_io("list", folder))
}

fn remove(path: &Path) -> Result<bool, BlobError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(blob_io("remove", path)(error)),
    }
}

/// One upload that is being written. Dropped without [`Writer::finish`], it stays and can be resumed by its id.
pub struct Writer<'a> {
    blobs: &'a Blobs,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Writer<'_> {
    /// Adds bytes at the end.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.file.write_all(bytes).map_err(blob_io("write", &self.path))?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Tells how many bytes are there.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Verifies digest and size, syncs, and moves the file into its place. On a mismatch the upload is removed.
    pub fn finish(self, wanted: &Digest, wanted_size: Option<u64>) -> Result<Digest, BlobError> {
        if let Some(size) = wanted_size.filter(|size| *size != self.size) {
            remove(&self.path)?;
            return Err(BlobError::Size { wanted: size, got: self.size });
        }
        let got = self.hasher.finish();
        if got != *wanted {
            remove(&self.path)?;
            return Err(BlobError::Digest { wanted: *wanted, got });
        }
        // The bytes are on the disk before the name that promises them, and the name before we say so.
        self.file.sync_all().map_err(blob_io("sync", &self.path))?;
        fs::rename(&self.path, self.blobs.path(wanted)).map_err(blob_io("rename", &self.path))?;
        sync_folder(&self.blobs.blobs)?;
        Ok(got)
    }

    /// Gives the upload up and removes its file.
    pub fn abort(self) -> Result<(), BlobError> {
        remove(&self.path).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        (folder, blobs)
    }

    #[test]
    fn what_is_put_is_read_back_and_listed() {
        let (_folder, blobs) = blobs();
        let digest = blobs.put(b"hello").unwrap();
        assert_eq!(blobs.read(&digest, 100).unwrap().as_deref(), Some(&b"hello"[..]));
        assert_eq!(blobs.size(&digest).unwrap(), Some(5));
        assert_eq!(blobs.list().unwrap(), [digest]);
        assert!(blobs.remove(&digest).unwrap());
        assert!(!blobs.remove(&digest).unwrap());
        assert!(blobs.reader(&digest).unwrap().is_none());
        assert!(blobs.uploads().unwrap().is_empty());
    }

    #[test]
    fn an_upload_goes_on_after_a_restart() {
        let (folder, first) = blobs();
        let mut writer = first.create("an-upload-1").unwrap();
        writer.append(b"hello ").unwrap();
        drop(writer);
        drop(first);
        let second = Blobs::open(folder.path()).unwrap();
        assert_eq!(second.uploads().unwrap(), ["an-upload-1"]);
        let mut writer = second.resume("an-upload-1").unwrap();
        assert_eq!(writer.size(), 6);
        writer.append(b"world").unwrap();
        let digest = writer.finish(&Digest::of(b"hello world"), Some(11)).unwrap();
        assert_eq!(second.read(&digest, 100).unwrap().unwrap(), b"hello world");
        assert!(matches!(second.resume("an-upload-1"), Err(BlobError::NoUpload(_))));
    }

    #[test]
    fn wrong_digest_and_wrong_size_leave_nothing() {
        let (_folder, blobs) = blobs();
        for size in [None, Some(4)] {
            let mut writer = blobs.create("x").unwrap();
            writer.append(b"hello").unwrap();
            assert!(writer.finish(&Digest::of(b"other"), size).is_err());
        }
        assert!(blobs.list().unwrap().is_empty() && blobs.uploads().unwrap().is_empty());
    }

    #[test]
    fn a_blob_that_was_damaged_is_set_aside() {
        let (folder, blobs) = blobs();
        let digest = blobs.put(b"hello").unwrap();
        fs::write(blobs.path(&digest), b"jello").unwrap();
        assert!(blobs.read(&digest, 100).unwrap().is_none());
        assert!(blobs.size(&digest).unwrap().is_none());
        assert!(folder.path().join("broken").join(digest.hex()).exists());
        assert_eq!(blobs.put(b"hello").unwrap(), digest);
    }

    #[test]
    fn ids_that_are_paths_are_refused() {
        let (_folder, blobs) = blobs();
        for id in ["", "../x", "a/b", ".", &"x".repeat(65)] {
            assert!(matches!(blobs.create(id), Err(BlobError::Id(_))), "{id}");
        }
    }
}
