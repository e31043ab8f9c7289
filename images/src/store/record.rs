//! Which manifest an image's digest means here, and by which names people know the image: `images/<hex>`.

use std::fs::{self, File};
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Store, StoreError, lock, write_whole};
use crate::blobs::{BlobError, blob_io};
use crate::digest::Digest;
use crate::reference::{Reference, ReferenceError};

/// Most names of one image.
const MAX_NAMES: usize = 64;
/// Largest record in bytes; longer references than 512 bytes are none.
const MAX_RECORD: u64 = 64 << 10;

/// What is known of an image beside its content.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) manifest: Digest,
    pub(super) names: Vec<String>,
}

/// What stands in the file.
#[derive(Serialize, Deserialize)]
struct Text {
    manifest: String,
    names: Vec<String>,
}

/// Why an image cannot get a name.
#[derive(Debug, Error)]
pub enum NameError {
    /// It is none.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The image is not here.
    #[error("image {0} is not on this device")]
    NoImage(Digest),
    /// It has too many.
    #[error("image {0} has {MAX_NAMES} names already, more are not possible")]
    TooMany(Digest),
    /// A record cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Reads the record of an image. One that is broken is set aside.
    pub(super) fn record(&self, digest: &Digest) -> Result<Option<Record>, StoreError> {
        let path = self.record_path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(blob_io("open", &path)(error).into()),
        };
        let text: Result<Text, _> = serde_json::from_reader(file.take(MAX_RECORD));
        if let Ok(Text { manifest, names }) = text
            && let Ok(manifest) = manifest.parse()
        {
            return Ok(Some(Record { manifest, names }));
        }
        log::warn!("{} is broken: set aside", path.display());
        self.0.blobs.set_aside(&path)?;
        Ok(None)
    }

    fn record_path(&self, digest: &Digest) -> std::path::PathBuf {
        self.0.root.join("images").join(digest.hex())
    }

    /// Makes an image known: the last step of a pull. The names that it has stay.
    pub(super) fn write_record(&self, digest: &Digest, manifest: &Digest) -> Result<(), StoreError> {
        let _records = lock(&self.0.records);
        let names = self.record(digest)?.map(|record| record.names).unwrap_or_default();
        self.put_record(digest, &Record { manifest: *manifest, names })?;
        // Whoever is about to remove what no image has looks again. Until now the pull's pins have kept it.
        self.held().generation += 1;
        Ok(())
    }

    fn put_record(&self, digest: &Digest, record: &Record) -> Result<(), BlobError> {
        let path = self.record_path(digest);
        let text = Text { manifest: record.manifest.to_string(), names: record.names.clone() };
        let mut bytes = serde_json::to_vec(&text).map_err(|error| blob_io("write", &path)(error.into()))?;
        bytes.push(b'\n');
        write_whole(&self.temp_path("image"), &path, &bytes)
    }

    /// Gives an image a name, such as `docker.io/library/nginx:1.27`, and takes it from the image that had it.
    pub fn name(&self, digest: &Digest, name: &str) -> Result<(), NameError> {
        let name = whole_name(name)?;
        let _records = lock(&self.0.records);
        let mut record = self.record(digest)?.ok_or(NameError::NoImage(*digest))?;
        if record.names.contains(&name) {
            return Ok(());
        }
        if record.names.len() >= MAX_NAMES {
            return Err(NameError::TooMany(*digest));
        }
        self.take_name(&name)?;
        record.names.push(name);
        self.put_record(digest, &record).map_err(StoreError::from)?;
        Ok(())
    }

    /// Takes a name from the image that has it. Tells the image and how many names it has left.
    pub fn unname(&self, name: &str) -> Result<Option<(Digest, usize)>, NameError> {
        let name = whole_name(name)?;
        let _records = lock(&self.0.records);
        Ok(self.take_name(&name)?)
    }

    fn take_name(&self, name: &str) -> Result<Option<(Digest, usize)>, StoreError> {
        for digest in self.images()? {
            let Some(mut record) = self.record(&digest)? else { continue };
            if let Some(at) = record.names.iter().position(|known| known == name) {
                record.names.remove(at);
                self.put_record(&digest, &record)?;
                return Ok(Some((digest, record.names.len())));
            }
        }
        Ok(None)
    }

    /// Finds the image that a person means: by name, by digest, or by at least four digits of its digest or id.
    /// Several may be meant by few digits.
    pub fn find(&self, what: &str) -> Result<Vec<Digest>, StoreError> {
        let digits = what.strip_prefix("sha256:").unwrap_or(what);
        let by_digits = digits.len() >= 4 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let name = whole_name(what).ok();
        let mut found = Vec::new();
        for digest in self.images()? {
            let Some(record) = self.record(&digest)? else { continue };
            if name.as_ref().is_some_and(|name| record.names.contains(name)) {
                return Ok(vec![digest]);
            }
            let id = || Ok::<_, StoreError>(self.parts(&digest)?.map(|parts| parts.config_digest.hex()));
            if by_digits && (digest.hex().starts_with(digits) || id()?.is_some_and(|id| id.starts_with(digits))) {
                found.push(digest);
            }
        }
        Ok(found)
    }

    /// Notes that an image is used now, at most once an hour.
    pub fn touch(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.record_path(digest);
        let touch = || -> io::Result<()> {
            let (file, now) = (File::open(&path)?, std::time::SystemTime::now());
            let last = file.metadata()?.modified()?;
            match now.duration_since(last) {
                Ok(age) if age < std::time::Duration::from_secs(3600) => Ok(()),
                _ => file.set_modified(now),
            }
        };
        touch().map_err(blob_io("note the use of", &path)).map_err(StoreError::from)
    }

    /// Tells when an image was last used; the epoch where that is not known.
    pub(super) fn last_used(&self, digest: &Digest) -> std::time::SystemTime {
        let modified = fs::metadata(self.record_path(digest)).and_then(|record| record.modified());
        modified.unwrap_or(std::time::SystemTime::UNIX_EPOCH)
    }
}

/// A reference with nothing left to guess. With a tag the digest is left out: the name may mean something else later.
fn whole_name(name: &str) -> Result<String, ReferenceError> {
    let reference: Reference = name.parse()?;
    let place = format!("{}/{}", reference.registry(), reference.repository());
    Ok(match (reference.tag(), reference.digest()) {
        (None, Some(digest)) => format!("{place}@{digest}"),
        (tag, _) => format!("{place}:{}", tag.unwrap_or("latest")),
    })
}
