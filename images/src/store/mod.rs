//! The images of a device: manifests and configurations as blobs, layers as unpacked folders.
//!
//! ```text
//! blobs/sha256/<hex>   manifests and configurations, verified whenever they are read
//! layers/<chain id>    one layer, unpacked, to be an overlay's lower directory
//! images/<hex>         which manifest an image's digest means here: written last, when all of it is there
//! partial/<chain id>   the compressed bytes of a layer that is on its way; a later pull goes on from them
//! tmp/ uploads/        what is not whole; emptied when the store is opened
//! broken/              what was found broken, for a person to look at; emptied by `retain`
//! lock                 held while the store is open
//! ```
//!
//! Owns these folders and one promise: what has its final name is whole and on the disk. Why layers are unpacked,
//! go by their chain id, and are not kept compressed: docs/decisions/0003-layers.md. It mounts nothing.

mod layer;
mod partial;
mod pull;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use oci_spec::image::{ImageConfiguration, ImageManifest};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::blobs::{BlobError, Blobs, blob_io, make_folder, sync_folder};
use crate::client::MAX_MANIFEST;
use crate::digest::Digest;
pub use layer::LayerError;
pub use pull::{Progress, PullError};

/// Largest image configuration that is read.
pub const MAX_CONFIG: u64 = 4 << 20;
/// Most layers of one image; overlay takes 500, Docker makes 127.
pub const MAX_LAYERS: usize = 128;
const MAX_RECORD: u64 = 4096;
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The images of a device. Clones are the same store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    root: PathBuf,
    blobs: Blobs,
    next_name: AtomicU64,
    /// What running pulls need, with how many of them do; nothing of it is removed.
    pinned: Mutex<HashMap<Digest, usize>>,
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

/// What stands in `images/<hex>`.
#[derive(Serialize, Deserialize)]
struct Record {
    manifest: String,
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
    layers: Vec<LayerPart>,
}

/// One layer as manifest and configuration describe it.
#[derive(Debug, Clone)]
struct LayerPart {
    blob: Digest,
    size: u64,
    diff_id: Digest,
    /// Names the layer together with all below it (OCI image-spec, config.md, "Layer ChainID").
    chain_id: Digest,
}

impl Store {
    /// Opens or creates a store. What an interrupted pull has left is removed.
    ///
    /// Waits up to 5 s for another process that has it open, such as the agent before this one.
    pub fn open(root: &Path) -> Result<Store, StoreError> {
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
        Ok(Store(Arc::new(Inner {
            root: root.to_owned(),
            blobs,
            next_name: AtomicU64::new(0),
            pinned: Mutex::default(),
            layer_locks: Mutex::default(),
            side_by_side: Arc::new(tokio::sync::Semaphore::new(pull::SIDE_BY_SIDE)),
            _lock: lock,
        })))
    }

    /// Returns an image if all of it is on this device, without any network.
    ///
    /// A blob that turns out to be broken is set aside, and the image then counts as not there. Blocks for a few
    /// small reads.
    pub fn image(&self, digest: &Digest) -> Result<Option<Image>, StoreError> {
        let Some(parts) = self.parts(digest)? else { return Ok(None) };
        let layers: Vec<_> = parts.layers.iter().map(|layer| self.layer_path(&layer.chain_id)).collect();
        match layers.iter().find(|path| !path.is_dir()) {
            Some(missing) => {
                log::warn!("image {digest}: its layer {} is missing", missing.display());
                Ok(None)
            }
            None => Ok(Some(Image { digest: *digest, config: parts.config, layers })),
        }
    }

    /// Lists the digests of all images that were pulled whole.
    pub fn images(&self) -> Result<Vec<Digest>, StoreError> {
        Ok(self.names("images")?.iter().filter_map(|name| Digest::from_hex(name)).collect())
    }

    /// Removes every image that is not listed, and every layer that no listed image has. Runs off the event loop.
    ///
    /// List everything that a container still runs from. What a running pull needs is spared. Returns how many
    /// layers were removed.
    pub async fn retain(&self, keep: &[Digest]) -> Result<usize, StoreError> {
        let (store, keep) = (self.clone(), keep.to_vec());
        let work = tokio::task::spawn_blocking(move || store.retain_blocking(&keep));
        work.await.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))
    }

    fn retain_blocking(&self, keep: &[Digest]) -> Result<usize, StoreError> {
        let mut keep: BTreeSet<Digest> = keep.iter().copied().collect();
        for digest in keep.clone() {
            if let Some(manifest) = self.record(&digest)? {
                keep.insert(manifest);
            }
            let Some(parts) = self.parts(&digest)? else { continue };
            keep.insert(parts.config_digest);
            keep.extend(parts.layers.iter().map(|layer| layer.chain_id));
        }
        let mut removed = Vec::new();
        {
            // A pull pins what it needs under this lock before it looks what is there; the renames are quick.
            let pinned = self.pinned();
            let unwanted = |name: &String| {
                Digest::from_hex(name).is_none_or(|digest| !keep.contains(&digest) && !pinned.contains_key(&digest))
            };
            // Images first: a cut between the two leaves layers without an image, never an image without layers.
            for folder in ["images", "layers", "blobs/sha256"] {
                for name in self.names(folder)?.into_iter().filter(unwanted) {
                    let path = self.0.root.join(folder).join(name);
                    let away = self.temp_path("removed");
                    fs::rename(&path, &away).map_err(blob_io("remove", &path))?;
                    removed.push((folder == "layers", away));
                }
                sync_folder(&self.0.root.join(folder))?;
            }
        }
        for name in self.names("broken")? {
            removed.push((false, self.0.root.join("broken").join(name)));
        }
        let layers = removed.iter().filter(|(is_layer, _)| *is_layer).count();
        for (_, path) in removed {
            let done = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            done.map_err(blob_io("remove", &path))?;
        }
        Ok(layers)
    }

    /// Reads which manifest an image's digest means.
    fn record(&self, digest: &Digest) -> Result<Option<Digest>, StoreError> {
        let path = self.0.root.join("images").join(digest.hex());
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(blob_io("open", &path)(error).into()),
        };
        let record: Result<Record, _> = serde_json::from_reader(io::Read::take(file, MAX_RECORD));
        if let Some(manifest) = record.ok().and_then(|record| record.manifest.parse().ok()) {
            return Ok(Some(manifest));
        }
        log::warn!("{} is broken: set aside", path.display());
        self.0.blobs.set_aside(&path)?;
        Ok(None)
    }

    /// Reads what an image consists of; `None` if any of it is not there or broken.
    fn parts(&self, digest: &Digest) -> Result<Option<Parts>, StoreError> {
        let Some(manifest) = self.record(digest)? else { return Ok(None) };
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

    fn pinned(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, usize>> {
        // Every change to the map is one call, so it is sound after a panic.
        self.0.pinned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the record that makes an image known: the last step of a pull.
    fn write_record(&self, digest: &Digest, manifest: &Digest) -> Result<(), BlobError> {
        let path = self.0.root.join("images").join(digest.hex());
        let temp = self.temp_path("image");
        let text = format!("{{\"manifest\":\"{manifest}\"}}\n");
        let write = || -> io::Result<()> {
            let mut file = File::create_new(&temp)?;
            io::Write::write_all(&mut file, text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temp, &path)
        };
        write().map_err(blob_io("write", &path))?;
        sync_folder(&self.0.root.join("images"))
    }
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

fn sha256(descriptor: &oci_spec::image::Descriptor) -> Result<Digest, ManifestError> {
    let text = descriptor.digest().to_string();
    text.parse().map_err(|_| ManifestError::Algorithm(text.chars().take(100).collect()))
}

impl Parts {
    fn new(manifest: &ImageManifest, config: &[u8]) -> Result<Parts, ManifestError> {
        let config: ImageConfiguration = serde_json::from_slice(config)
            .map_err(|source| ManifestError::Json { what: "image configuration", source })?;
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
            layers.push(LayerPart { blob: sha256(descriptor)?, size: descriptor.size(), diff_id, chain_id });
        }
        Ok(Parts { config_digest: sha256(manifest.config())?, config, layers })
    }
}

#[cfg(test)]
mod tests;
