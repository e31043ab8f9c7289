//! The images of a device: manifests and configurations as blobs, layers as unpacked folders.
//!
//! ```text
//! blobs/sha256/<hex>   manifests and configurations, verified whenever they are read
//! layers/<chain id>/   fs: one layer, unpacked, to be an overlay's lower directory; archive.gz; seal
//! images/<hex>         which manifest an image's digest means here, and its names: written when all of it is there
//! partial/<chain id>   the compressed bytes of a layer that is on its way; a later pull goes on from them
//! tmp/ uploads/        what is not whole; emptied when the store is opened
//! broken/              what was found broken; emptied in the next boot, for containers may still run from it
//! open                 the boot in which the store was opened; removed when it is closed in order
//! lock                 held while the store is open
//! ```
//!
//! Owns these folders and one promise: what has its final name is whole and on the disk. Why layers are unpacked,
//! go by their chain id, and are not kept compressed: docs/decisions/0003-layers.md. What is checked when, and what
//! is removed when: docs/decisions/0006-store.md. It mounts nothing.

mod collect;
mod export;
mod import;
mod layer;
mod list;
mod partial;
mod pull;
mod record;
mod seal;
mod verify;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use oci_spec::image::{ImageConfiguration, ImageManifest};
use serde::Deserialize;
use thiserror::Error;

use crate::blobs::{BlobError, Blobs, blob_io, make_folder, sync_folder};
use crate::client::MAX_MANIFEST;
use crate::digest::Digest;
use crate::healthcheck::{self, Healthcheck};
pub use collect::{Goal, Limits};
pub use export::{ExportError, Target};
pub use import::ImportError;
pub use layer::LayerError;
pub use list::{Listed, Usage};
pub use pull::{Progress, PullError};
pub use record::NameError;
use record::Record;
use seal::{Seal, TREE};
pub use verify::Verified;

/// Largest image configuration that is read.
pub const MAX_CONFIG: u64 = 4 << 20;
/// Most layers of one image; overlay takes 500, Docker makes 127.
pub const MAX_LAYERS: usize = 128;
/// A compressed layer is expected to unpack to this many times its size when the space is checked.
const EXPANSION: u64 = 3;
/// Names the boot in which the store was opened.
const OPEN: &str = "open";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The images of a device. Clones are the same store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    root: PathBuf,
    blobs: Blobs,
    next_name: AtomicU64,
    limits: Limits,
    /// What must not be removed.
    held: Mutex<Held>,
    /// Held while records of images change.
    records: Mutex<()>,
    /// After an unclean end each layer is checked before it is used for the first time.
    doubtful: bool,
    checked: Mutex<HashSet<Digest>>,
    /// One lock a layer that is being fetched; a second pull waits for the first.
    layer_locks: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    /// How many layers are fetched at the same time.
    side_by_side: Arc<tokio::sync::Semaphore>,
    /// Held open for its lock.
    _lock: File,
}

/// An image that is whole on this device.
#[derive(Debug, Clone)]
pub struct Image {
    /// The digest by which it was asked for: of its index or of its manifest.
    pub digest: Digest,
    /// The image's configuration: command, environment, user, …
    pub config: ImageConfiguration,
    /// The image's health check, where it has one.
    pub healthcheck: Option<Healthcheck>,
    /// Folders of its layers, lowest first. Read only: images share them.
    pub layers: Vec<PathBuf>,
}

/// Why the store cannot do its work.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file could not be read or written.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Another process has it open.
    #[error("the image store {} is in use by another process", .0.display())]
    InUse(PathBuf),
}

/// What must not be removed. Removing looks here, under the lock, at the moment when it removes.
#[derive(Default)]
struct Held {
    /// Images that the device cannot do without.
    wanted: BTreeSet<Digest>,
    /// What running pulls need, with how many of them do.
    pinned: HashMap<Digest, usize>,
    /// Grows with every image that becomes known.
    generation: u64,
}

/// Why a manifest or configuration is of no use.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// It is no JSON of the right form.
    #[error("it is not a valid {what}")]
    Json {
        /// What it should be.
        what: &'static str,
        /// Where it is not.
        #[source]
        source: serde_json::Error,
    },
    /// A kind that is not an image.
    #[error("its media type {0:?} is not an image that can be run")]
    MediaType(String),
    /// A digest that is not SHA-256.
    #[error("its digest {0:?} is not sha256")]
    Algorithm(String),
    /// The configuration does not fit the manifest.
    #[error("its manifest has {layers} layers, its configuration {diff_ids}")]
    Layers {
        /// Layers of the manifest.
        layers: usize,
        /// Diff ids of the configuration.
        diff_ids: usize,
    },
    /// Too many layers.
    #[error("it has {0} layers, {MAX_LAYERS} are allowed")]
    TooManyLayers(usize),
}

/// A manifest with its configuration, checked against each other.
struct Parts {
    config_digest: Digest,
    config: ImageConfiguration,
    healthcheck: Option<Healthcheck>,
    layers: Vec<LayerPart>,
}

/// One layer as manifest and configuration describe it.
#[derive(Debug, Clone)]
struct LayerPart {
    blob: Digest,
    size: u64,
    compressed: bool,
    diff_id: Digest,
    /// Names the layer together with all below it (OCI image-spec, config.md, "Layer ChainID").
    chain_id: Digest,
}

impl LayerPart {
    /// How many bytes it is expected to take when it is unpacked.
    fn expected(&self) -> u64 {
        if self.compressed { self.size.saturating_mul(EXPANSION) } else { self.size }
    }
}

impl Store {
    /// Opens or creates a store. What an interrupted pull has left in `tmp` is removed.
    ///
    /// Waits up to 5 s for another process that has it open, such as the agent before this one.
    pub fn open(root: &Path, limits: Limits) -> Result<Store, StoreError> {
        make_folder(root)?;
        let lock = lock_for(root, LOCK_PATIENCE)?;
        let tmp = root.join("tmp");
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(blob_io("empty", &tmp)(error).into()),
            _ => {}
        }
        for name in ["layers", "images", "partial", "tmp"] {
            make_folder(&root.join(name))?;
        }
        let blobs = Blobs::open(root)?;
        for id in blobs.uploads()? {
            blobs.remove_upload(&id)?;
        }
        let (boot, doubtful) = note_opening(root)?;
        if boot {
            empty(&root.join("broken"))?;
        }
        if doubtful {
            log::warn!("the image store {} was not closed in order: its layers are checked", root.display());
        }
        Ok(Store(Arc::new(Inner {
            root: root.to_owned(),
            blobs,
            next_name: AtomicU64::new(0),
            limits,
            held: Mutex::default(),
            records: Mutex::default(),
            doubtful,
            checked: Mutex::default(),
            layer_locks: Mutex::default(),
            side_by_side: Arc::new(tokio::sync::Semaphore::new(pull::SIDE_BY_SIDE)),
            _lock: lock,
        })))
    }

    /// Returns an image if all of it is on this device, without any network.
    ///
    /// What turns out to be broken is set aside, and the image then counts as not there. Blocks for a few small reads;
    /// after an unclean end for a look at each file of a layer that was not looked at since.
    pub fn image(&self, digest: &Digest) -> Result<Option<Image>, StoreError> {
        let Some(parts) = self.parts(digest)? else { return Ok(None) };
        let mut layers = Vec::with_capacity(parts.layers.len());
        for layer in &parts.layers {
            if !self.has_layer(&layer.chain_id)? {
                log::warn!("image {digest}: its layer {} is missing", layer.chain_id);
                return Ok(None);
            }
            layers.push(self.tree(&layer.chain_id));
        }
        Ok(Some(Image { digest: *digest, config: parts.config, healthcheck: parts.healthcheck, layers }))
    }

    /// Tells whether a layer is there; one that is broken is set aside.
    fn has_layer(&self, chain_id: &Digest) -> Result<bool, StoreError> {
        let path = self.layer_path(chain_id);
        let trouble = match Seal::read(&path) {
            Ok(None) => return Ok(false),
            Ok(Some(_)) if !self.0.doubtful || lock(&self.0.checked).contains(chain_id) => return Ok(true),
            Ok(Some(seal)) => seal.trouble(&path),
            Err(error) => Some(format!("its seal cannot be read: {error}")),
        };
        match trouble {
            Some(trouble) => {
                self.set_layer_aside(chain_id, &trouble)?;
                Ok(false)
            }
            None => {
                lock(&self.0.checked).insert(*chain_id);
                Ok(true)
            }
        }
    }

    fn set_layer_aside(&self, chain_id: &Digest, trouble: &str) -> Result<(), BlobError> {
        let path = self.layer_path(chain_id);
        log::warn!("{} is broken ({trouble}): set aside", path.display());
        self.0.blobs.set_aside(&path)?;
        sync_folder(&self.0.root.join("layers"))
    }

    /// Lists the digests of all images that were pulled whole.
    pub fn images(&self) -> Result<Vec<Digest>, StoreError> {
        Ok(self.names("images")?.iter().filter_map(|name| Digest::from_hex(name)).collect())
    }

    /// Reads what an image consists of; `None` if any of it is not there or broken.
    fn parts(&self, digest: &Digest) -> Result<Option<Parts>, StoreError> {
        let Some(Record { manifest, .. }) = self.record(digest)? else { return Ok(None) };
        let Some(bytes) = self.0.blobs.read(&manifest, MAX_MANIFEST)? else { return Ok(None) };
        let parts = parse_manifest(&bytes).and_then(|manifest| {
            let config_digest = sha256(manifest.config())?;
            Ok((manifest, config_digest))
        });
        let Ok((manifest, config_digest)) = parts else { return Ok(None) };
        let Some(config) = self.0.blobs.read(&config_digest, MAX_CONFIG)? else { return Ok(None) };
        // What was checked when it was pulled is checked again by the same rules, which may have become stricter.
        Ok(Parts::new(&manifest, &config).ok())
    }

    fn layer_path(&self, chain_id: &Digest) -> PathBuf {
        self.0.root.join("layers").join(chain_id.hex())
    }

    fn partial_path(&self, chain_id: &Digest) -> PathBuf {
        self.0.root.join("partial").join(chain_id.hex())
    }

    /// The folder of a layer's files.
    fn tree(&self, chain_id: &Digest) -> PathBuf {
        self.layer_path(chain_id).join(TREE)
    }

    fn temp_path(&self, what: &str) -> PathBuf {
        self.0.root.join("tmp").join(format!("{what}-{}", self.0.next_name.fetch_add(1, Ordering::Relaxed)))
    }

    fn names(&self, folder: &str) -> Result<Vec<String>, BlobError> {
        let path = self.0.root.join(folder);
        let entries = fs::read_dir(&path).map_err(blob_io("list", &path))?;
        let name =
            |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().to_string_lossy().into_owned());
        entries.map(name).collect::<io::Result<_>>().map_err(blob_io("list", &path))
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        lock(&self.0.held)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Where this does not reach the disk, the layers are checked next time without need.
        let _ = fs::remove_file(self.root.join(OPEN));
    }
}

/// Locks what is sound after any panic, because every change to it is one call.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes everything in a folder.
fn empty(folder: &Path) -> Result<(), BlobError> {
    for entry in fs::read_dir(folder).map_err(blob_io("list", folder))? {
        let path = entry.map_err(blob_io("list", folder))?.path();
        remove(&path)?;
    }
    Ok(())
}

/// Removes a file, or a folder with all that is in it.
fn remove(path: &Path) -> Result<(), BlobError> {
    let folder = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(blob_io("remove", path))
}

/// Notes that the store is open in this boot. Tells whether it is so for the first time in this boot, and whether an
/// earlier boot ended with it open.
fn note_opening(root: &Path) -> Result<(bool, bool), BlobError> {
    let path = root.join(OPEN);
    let boot = fs::read(BOOT_ID).map_err(blob_io("read", Path::new(BOOT_ID)))?;
    let mut earlier = Vec::new();
    match File::open(&path) {
        // A process that was killed has lost nothing of what it wrote: only a new boot is a reason for doubt.
        Ok(file) => file.take(64).read_to_end(&mut earlier).map(drop).map_err(blob_io("read", &path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(blob_io("open", &path)(error)),
    }
    if earlier == boot {
        return Ok((false, false));
    }
    let there = path.exists();
    write_whole(&root.join("tmp").join(OPEN), &path, &boot)?;
    Ok((true, there))
}

/// Writes a small file by way of `temp`, so that it is there whole, with what it had before, or not at all.
fn write_whole(temp: &Path, path: &Path, bytes: &[u8]) -> Result<(), BlobError> {
    let write = || -> io::Result<()> {
        let mut file = File::create(temp)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(temp, path)
    };
    write().map_err(blob_io("write", path))?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Locks the store against other processes. The lock ends with the process, however it ends.
fn lock_for(root: &Path, patience: Duration) -> Result<File, StoreError> {
    let path = root.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(blob_io("open", &path))?;
    let pause = Duration::from_millis(50);
    for _ in 0..=patience.as_millis() / pause.as_millis() {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(pause),
            Err(errno) => return Err(blob_io("lock", &path)(errno.into()).into()),
        }
    }
    Err(StoreError::InUse(root.to_owned()))
}

fn parse_manifest(bytes: &[u8]) -> Result<ImageManifest, ManifestError> {
    serde_json::from_slice(bytes).map_err(|source| ManifestError::Json { what: "image manifest", source })
}

/// Tells whether a manifest and a configuration are an image, as a pull judges them.
#[cfg(feature = "fuzzing")]
pub(crate) fn is_image(manifest: &[u8], config: &[u8]) -> bool {
    parse_manifest(manifest).and_then(|manifest| Parts::new(&manifest, config)).is_ok()
}

fn sha256(descriptor: &oci_spec::image::Descriptor) -> Result<Digest, ManifestError> {
    let text = descriptor.digest().to_string();
    text.parse().map_err(|_| ManifestError::Algorithm(text.chars().take(100).collect()))
}

impl Parts {
    fn new(manifest: &ImageManifest, config: &[u8]) -> Result<Parts, ManifestError> {
        let no_json = |source| ManifestError::Json { what: "image configuration", source };
        let document: serde_json::Value = serde_json::from_slice(config).map_err(no_json)?;
        let healthcheck = healthcheck::of(&document).map_err(no_json)?;
        let config = ImageConfiguration::deserialize(document).map_err(no_json)?;
        let diff_ids = config.rootfs().diff_ids();
        let count = manifest.layers().len();
        if count > MAX_LAYERS {
            return Err(ManifestError::TooManyLayers(count));
        }
        if count != diff_ids.len() {
            return Err(ManifestError::Layers { layers: count, diff_ids: diff_ids.len() });
        }
        let mut layers: Vec<LayerPart> = Vec::with_capacity(count);
        for (descriptor, diff_id) in manifest.layers().iter().zip(diff_ids) {
            let media_type = descriptor.media_type().to_string();
            if !media_type.contains(".tar") || media_type.contains("encrypted") {
                return Err(ManifestError::MediaType(media_type.chars().take(100).collect()));
            }
            let diff_id: Digest =
                diff_id.parse().map_err(|_| ManifestError::Algorithm(diff_id.chars().take(100).collect()))?;
            let chain_id = match layers.last() {
                None => diff_id,
                Some(below) => Digest::of(format!("{} {diff_id}", below.chain_id).as_bytes()),
            };
            let (blob, size, compressed) = (sha256(descriptor)?, descriptor.size(), !media_type.ends_with(".tar"));
            layers.push(LayerPart { blob, size, compressed, diff_id, chain_id });
        }
        Ok(Parts { config_digest: sha256(manifest.config())?, config, healthcheck, layers })
    }
}

#[cfg(test)]
mod bundle_tests;
#[cfg(test)]
mod disk_tests;
#[cfg(test)]
mod tests;
