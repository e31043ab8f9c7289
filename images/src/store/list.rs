//! What is in the store, for people: images with their names and sizes, and where the disk's space went.

use std::collections::BTreeMap;
use std::fs;
use std::time::SystemTime;

use super::{Record, Store, StoreError};
use crate::blobs::{BlobError, blob_io};
use crate::digest::Digest;

/// An image as a list shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The digest by which it was asked for: of its index or of its manifest.
    pub digest: Digest,
    /// Its id, the digest of its configuration; `None` where that is missing or broken.
    pub id: Option<Digest>,
    /// Its names, such as `docker.io/library/nginx:1.27`.
    pub names: Vec<String>,
    /// Bytes of its files; other images may share them.
    pub size: u64,
    /// When it was built, as its configuration says (RFC 3339).
    pub created: Option<String>,
    /// When it was last used, by the device's clock.
    pub last_used: SystemTime,
    /// A kept revision or a container needs it, or a pull uses it.
    pub needed: bool,
    /// All of it is here; `false` where something was found broken and is to be fetched again.
    pub whole: bool,
}

/// Where the space went, in bytes. What images share is counted once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Images.
    pub images: usize,
    /// Layers.
    pub layers: usize,
    /// Files of all layers.
    pub files: u64,
    /// What beside the files is needed to check and export them.
    pub records: u64,
    /// Manifests and configurations.
    pub blobs: u64,
    /// Downloads that were interrupted.
    pub partial: u64,
    /// Files of layers that only images have which nothing needs, or none: what `prune` frees.
    pub reclaimable: u64,
    /// Free on the store's file system.
    pub free: u64,
}

impl Store {
    /// Lists the images, the last used first. Blocks for a few small reads an image.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let mut listed = Vec::new();
        for digest in self.images()? {
            let sealed = self.sealed(&digest)?;
            let Some(Record { names, .. }) = self.record(&digest)? else { continue };
            let parts = self.parts(&digest)?;
            listed.push(Listed {
                digest,
                id: parts.as_ref().map(|parts| parts.config_digest),
                names,
                size: sealed.iter().flat_map(|(_, _, seals)| seals).map(|seal| seal.census.bytes).sum(),
                created: parts.and_then(|parts| parts.config.created().as_ref().map(ToString::to_string)),
                last_used: self.last_used(&digest),
                needed: self.held().needs(&digest),
                whole: sealed.is_some(),
            });
        }
        listed.sort_by(|one, other| other.last_used.cmp(&one.last_used).then(one.digest.cmp(&other.digest)));
        Ok(listed)
    }

    /// Counts what takes space. Blocks for a few small reads an image and a layer.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        let mut usage = Usage { free: self.free()?.bytes, ..Usage::default() };
        // Whether anything that is needed has the layer.
        let mut layers: BTreeMap<Digest, bool> = BTreeMap::new();
        for digest in self.images()? {
            usage.images += 1;
            let needed = self.held().needs(&digest);
            for layer in self.parts(&digest)?.iter().flat_map(|parts| &parts.layers) {
                *layers.entry(layer.chain_id).or_default() |= needed;
            }
        }
        for name in self.names("layers")? {
            let Some(chain_id) = Digest::from_hex(&name) else { continue };
            let path = self.layer_path(&chain_id);
            let bytes = super::Seal::read(&path).ok().flatten().map_or(0, |seal| seal.census.bytes);
            usage.layers += 1;
            usage.files += bytes;
            usage.records += fs::metadata(path.join(super::seal::ARCHIVE)).map_or(0, |record| record.len());
            if !layers.get(&chain_id).copied().unwrap_or(false) {
                usage.reclaimable += bytes;
            }
        }
        usage.blobs = self.folder_bytes("blobs/sha256")?;
        usage.partial = self.folder_bytes("partial")?;
        Ok(usage)
    }

    fn folder_bytes(&self, folder: &str) -> Result<u64, BlobError> {
        let mut bytes = 0;
        for name in self.names(folder)? {
            let path = self.0.root.join(folder).join(name);
            match fs::metadata(&path) {
                Ok(metadata) => bytes += metadata.len(),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(blob_io("look at", &path)(error)),
            }
        }
        Ok(bytes)
    }
}
