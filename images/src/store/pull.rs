//! Pulling an image: index, manifest, configuration, then its layers side by side, each named when it is whole.
//!
//! Owns the order of things. A pull that is dropped or fails leaves whole layers and partial downloads; the next pull
//! goes on from them, also after a restart. Whom to ask next when something fails is the sources' business.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use oci_spec::image::ImageIndex;
use thiserror::Error;
use tokio::sync::{Notify, OwnedMutexGuard, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::blobs::{BlobError, blob_io, sync_folder};
use crate::client::{Attempt, ClientError, RawManifest, Sources};
use crate::digest::Digest;
use crate::platform::{NoPlatform, Platform};
use crate::unpack::imitate;

use super::layer::{LayerError, Piece, QUEUE, Received, Source, receive};
use super::partial::{Partial, SYNC_EVERY};
use super::seal::{Seal, TREE};
use super::{Image, LayerPart, MAX_CONFIG, ManifestError, Parts, Store, StoreError, parse_manifest};

/// Layers that are fetched and unpacked at the same time in one store.
pub(super) const SIDE_BY_SIDE: usize = 3;
/// Kinds of configuration that an image has; anything else is an artifact that only looks like one.
const CONFIG_TYPES: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// A smaller layer is rather fetched again than kept while it comes.
const MIN_PARTIAL: u64 = 1 << 20;

/// How far a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Layers of the image.
    pub layers: usize,
    /// Layers that are in their place, those that were there before included.
    pub layers_done: usize,
    /// Compressed bytes of the layers that had to be fetched.
    pub bytes: u64,
    /// Compressed bytes that have come.
    pub bytes_done: u64,
}

/// Why an image could not be pulled.
#[derive(Debug, Error)]
pub enum PullError {
    /// The registry did not give what was asked for.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The store's files could not be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image has nothing for this machine.
    #[error("image {digest}")]
    Platform {
        /// The image.
        digest: Digest,
        /// What it has instead.
        #[source]
        source: NoPlatform,
    },
    /// A manifest or configuration is of no use.
    #[error("image {digest}")]
    Manifest {
        /// The document.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// A layer could not be unpacked.
    #[error("layer {layer}")]
    Layer {
        /// Digest of the layer as the registry has it.
        layer: Digest,
        /// What is wrong with it.
        #[source]
        source: LayerError,
    },
    /// The disk is too full to begin, also without the images that nothing needs.
    #[error("not enough space in {}: {needed} {what} are needed, {free} are free", path.display())]
    Space {
        /// The store's folder.
        path: PathBuf,
        /// `bytes` or `inodes`.
        what: &'static str,
        /// How many the missing layers are expected to take, with what is to stay free.
        needed: u64,
        /// How many are free.
        free: u64,
    },
    /// A task ended without a result, which only a panic does.
    #[error("a task of the pull ended unexpectedly")]
    Task(#[source] tokio::task::JoinError),
}

impl From<BlobError> for PullError {
    fn from(error: BlobError) -> PullError {
        PullError::Store(error.into())
    }
}

/// What a pull holds against removal, until it is dropped.
pub(super) struct Pins {
    store: Store,
    digests: Vec<Digest>,
}

impl Pins {
    pub(super) fn new(store: &Store) -> Pins {
        Pins { store: store.clone(), digests: Vec::new() }
    }

    pub(super) fn add(&mut self, digests: impl IntoIterator<Item = Digest>) {
        let mut held = self.store.held();
        for digest in digests {
            *held.pinned.entry(digest).or_insert(0) += 1;
            self.digests.push(digest);
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut held = self.store.held();
        for digest in &self.digests {
            if let Some(count) = held.pinned.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    held.pinned.remove(digest);
                }
            }
        }
    }
}

/// A layer in its temporary folder, which goes when this is dropped.
pub(super) struct Temporary {
    pub(super) folder: PathBuf,
    /// Where its compressed bytes are kept until it is in its place.
    pub(super) partial: Option<PathBuf>,
    pub(super) received: Option<Received>,
}

/// A layer that is ready to be put into its place, or has it already.
pub(super) struct Placing {
    pub(super) layer: LayerPart,
    pub(super) temporary: Option<Temporary>,
    pub(super) place: PathBuf,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the rename there is nothing to remove; what cannot be removed goes when the store is opened next.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A layer that is ready to be put into its place, or was there all along; others wait for it until then.
struct Ready {
    index: usize,
    temporary: Option<Temporary>,
    turn: OwnedMutexGuard<()>,
}

/// What the tasks of one pull share.
struct Shared {
    store: Store,
    sources: Sources,
    bytes_done: AtomicU64,
    moved: Notify,
}

impl Store {
    /// Pulls an image by the digest of its index or manifest; what is there already is not fetched.
    ///
    /// `progress` is called whenever there is something new to say, from this task. Dropping the future gives the
    /// pull up. Several pulls may run at once; a layer that two of them need is fetched once. Up to three threads of
    /// the runtime's blocking pool are busy while layers come; it needs at least one more.
    pub async fn pull(
        &self,
        sources: &Sources,
        digest: &Digest,
        platform: &Platform,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image, PullError> {
        let mut pins = Pins::new(self);
        pins.add([*digest]);
        if let Some(image) = self.image(digest)? {
            return Ok(image);
        }
        let top = sources.manifest(digest).await?;
        // The index is kept as the proof that its digest means this manifest.
        let (raw, index) = match select(&top, platform)? {
            None => (top, None),
            Some(chosen) => (sources.manifest(&chosen).await?, Some(top.bytes)),
        };
        let wrong = |digest: Digest| move |source| PullError::Manifest { digest, source };
        let manifest = parse_manifest(&raw.bytes).map_err(wrong(raw.digest))?;
        let config_digest = super::sha256(manifest.config()).map_err(wrong(raw.digest))?;
        pins.add([raw.digest, config_digest]);
        let config = sources.small_blob(&config_digest, MAX_CONFIG).await?;
        let parts = Parts::new(&manifest, &config).map_err(wrong(config_digest))?;
        check_platform(digest, &parts, platform)?;
        pins.add(parts.layers.iter().map(|layer| layer.chain_id));
        for document in index.iter().chain([&raw.bytes, &config]) {
            self.0.blobs.put(document)?;
        }
        let shared = Shared {
            store: self.clone(),
            sources: sources.clone(),
            bytes_done: AtomicU64::new(0),
            moved: Notify::new(),
        };
        self.pull_layers(Arc::new(shared), &parts.layers, progress).await?;
        self.write_record(digest, &raw.digest)?;
        let layers = parts.layers.iter().map(|layer| self.tree(&layer.chain_id)).collect();
        Ok(Image { digest: *digest, config: parts.config, healthcheck: parts.healthcheck, layers })
    }

    /// Fetches what is missing, and puts it into its place in order: a layer is named after all those below it.
    async fn pull_layers(
        &self,
        shared: Arc<Shared>,
        layers: &[LayerPart],
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), PullError> {
        let (mut bytes, mut unpacked) = (0u64, 0u64);
        for layer in layers {
            if !self.has_layer(&layer.chain_id)? {
                bytes = bytes.saturating_add(layer.size);
                unpacked = unpacked.saturating_add(layer.expected());
            }
        }
        let store = self.clone();
        tokio::task::spawn_blocking(move || store.make_room(unpacked)).await.map_err(PullError::Task)??;
        // Dropping the set aborts its tasks; a layer that is being unpacked then ends as given up.
        let mut tasks = JoinSet::new();
        for (index, layer) in layers.iter().enumerate() {
            tasks.spawn(prepare(Arc::clone(&shared), index, layer.clone()));
        }
        let mut ready: Vec<Option<Ready>> = layers.iter().map(|_| None).collect();
        let (mut done, mut waiting, mut placed) = (0, 0, Instant::now());
        let report = |done| {
            let bytes_done = shared.bytes_done.load(Ordering::Relaxed);
            progress(Progress { layers: layers.len(), layers_done: done, bytes, bytes_done });
        };
        report(0);
        while done < layers.len() {
            tokio::select! {
                finished = tasks.join_next() => {
                    let Some(finished) = finished else { break };
                    let layer = finished.map_err(PullError::Task)??;
                    let index = layer.index;
                    ready[index] = Some(layer);
                }
                () = shared.moved.notified() => {}
                () = tokio::time::sleep(SYNC_EVERY.saturating_sub(placed.elapsed())), if waiting > 0 => {}
            }
            waiting = ready[done..].iter().take_while(|layer| layer.is_some()).count();
            // A sync writes out what other layers have got so far as well: it is spared while little can be lost.
            if done + waiting == layers.len() || (waiting > 0 && placed.elapsed() >= SYNC_EVERY) {
                let batch = ready[done..done + waiting].iter_mut().filter_map(Option::take).collect();
                self.place(layers, batch).await?;
                (done, waiting, placed) = (done + waiting, 0, Instant::now());
            }
            report(done);
        }
        Ok(())
    }

    /// Puts the next layers into their places.
    async fn place(&self, layers: &[LayerPart], batch: Vec<Ready>) -> Result<(), PullError> {
        let first = batch.first().map_or(0, |ready| ready.index);
        let lower = layers[..first].iter().rev().map(|layer| self.tree(&layer.chain_id)).collect();
        let (placing, turns): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|Ready { index, temporary, turn }| {
                let layer = layers[index].clone();
                (Placing { place: self.layer_path(&layer.chain_id), layer, temporary }, turn)
            })
            .unzip();
        let work = tokio::task::spawn_blocking(move || {
            let _until_the_end = turns;
            put_in_place(&placing, lower)
        });
        work.await.map_err(PullError::Task)?
    }

    /// Waits for the turn to fetch a layer: at most one task of this process does.
    async fn turn(&self, chain_id: &Digest) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.0.layer_locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let lock = locks.get(chain_id).and_then(std::sync::Weak::upgrade).unwrap_or_default();
            locks.insert(*chain_id, Arc::downgrade(&lock));
            lock
        };
        lock.lock_owned().await
    }
}

/// Puts layers into their places, the lowest first: imitates and seals, syncs, renames, syncs the folder.
///
/// One sync for all of them, and one call for their ten thousand files: fsync of each would take minutes on a card.
/// `lower` has the trees of the layers below, top first.
pub(super) fn put_in_place(batch: &[Placing], mut lower: Vec<PathBuf>) -> Result<(), PullError> {
    let mut moving = Vec::new();
    for Placing { layer, temporary, place } in batch {
        let Some(temporary) = temporary else {
            lower.insert(0, place.join(TREE));
            continue;
        };
        seal(temporary, layer, &lower).map_err(|source| PullError::Layer { layer: layer.blob, source })?;
        lower.insert(0, temporary.folder.join(TREE));
        moving.push((temporary, place));
    }
    let Some((_, place)) = moving.first() else { return Ok(()) };
    let folder = place.parent().unwrap_or(place);
    let synced = fs::File::open(folder).and_then(|folder| Ok(rustix::fs::syncfs(&folder)?));
    synced.map_err(blob_io("sync", folder))?;
    for (temporary, place) in &moving {
        match fs::rename(&temporary.folder, place) {
            // A pull that was dropped at this very step has put the same layer there in the meantime.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            result => result.map_err(blob_io("put a layer in its place,", place))?,
        }
    }
    sync_folder(folder)?;
    for path in moving.iter().filter_map(|(temporary, _)| temporary.partial.as_deref()) {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(blob_io("remove", path)(error).into()),
            _ => {}
        }
    }
    Ok(())
}

/// Makes a layer whole: what its archive did not say of its folders comes from below, and the seal says what it must be.
fn seal(temporary: &Temporary, layer: &LayerPart, lower: &[PathBuf]) -> Result<(), LayerError> {
    let step = |operation| move |source| LayerError::Folder { operation, source };
    let Some(received) = &temporary.received else { return Err(LayerError::Interrupted) };
    imitate(&temporary.folder.join(TREE), &received.unpacked.implied, lower)
        .map_err(step("give its folders their owners"))?;
    Seal::write(&temporary.folder, &layer.diff_id, received.archive_size).map_err(step("seal it"))?;
    // What was never synced as a download would be written only to be removed.
    match temporary.partial.as_deref().filter(|_| !received.durable).map_or(Ok(()), fs::remove_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(step("remove its partial download")(error)),
        _ => Ok(()),
    }
}

/// Chooses from an index; `None` when this is a manifest itself.
pub(super) fn select(top: &RawManifest, platform: &Platform) -> Result<Option<Digest>, PullError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Kind {
        media_type: Option<String>,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        config: Option<Config>,
        artifact_type: Option<String>,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Config {
        media_type: Option<String>,
    }
    let wrong = |source| PullError::Manifest { digest: top.digest, source };
    let json = |what| move |source| wrong(ManifestError::Json { what, source });
    let kind: Kind = serde_json::from_slice(&top.bytes).map_err(json("image manifest or index"))?;
    let media_type = kind.media_type.unwrap_or_else(|| top.media_type.clone());
    let artifact = kind.artifact_type.or_else(|| {
        let media_type = kind.config.as_ref()?.media_type.clone()?;
        (!CONFIG_TYPES.contains(&media_type.as_str())).then_some(media_type)
    });
    let media_type = artifact.clone().unwrap_or(media_type);
    match (kind.manifests, kind.config.filter(|_| artifact.is_none())) {
        (Some(_), None) => {
            let index: ImageIndex = serde_json::from_slice(&top.bytes).map_err(json("image index"))?;
            let chosen =
                platform.select(&index).map_err(|source| PullError::Platform { digest: top.digest, source })?;
            super::sha256(chosen).map(Some).map_err(wrong)
        }
        (None, Some(_)) => Ok(None),
        _ => Err(wrong(ManifestError::MediaType(media_type.chars().take(100).collect()))),
    }
}

/// Refuses an image for another machine before its layers are fetched.
pub(super) fn check_platform(digest: &Digest, parts: &Parts, platform: &Platform) -> Result<(), PullError> {
    let (os, architecture) = (parts.config.os().to_string(), parts.config.architecture().to_string());
    if platform.runs(&os, &architecture, parts.config.variant().as_deref()) {
        return Ok(());
    }
    let source = NoPlatform { wanted: platform.clone(), there: vec![format!("{os}/{architecture}")] };
    Err(PullError::Platform { digest: *digest, source })
}

/// Brings one layer into a temporary folder, unless it is in its place already.
async fn prepare(shared: Arc<Shared>, index: usize, layer: LayerPart) -> Result<Ready, PullError> {
    let store = &shared.store;
    let turn = store.turn(&layer.chain_id).await;
    if store.has_layer(&layer.chain_id)? {
        return Ok(Ready { index, temporary: None, turn });
    }
    // The semaphore is never closed; without a permit the layer would merely be fetched at once.
    let _permit = Arc::clone(&store.0.side_by_side).acquire_owned().await.ok();
    let mut attempt = shared.sources.attempt();
    loop {
        match fetch(&shared, &layer, &mut attempt).await {
            Err(PullError::Layer { source, .. }) if source.is_of_the_content() && attempt.lied() => {
                log::warn!("layer {}: {source}; another source is asked", layer.blob);
            }
            result => return Ok(Ready { index, temporary: Some(result?), turn }),
        }
    }
}

/// Fetches a layer into a temporary folder, going on from what an earlier attempt has left.
async fn fetch(shared: &Shared, layer: &LayerPart, attempt: &mut Attempt<'_>) -> Result<Temporary, PullError> {
    let store = &shared.store;
    let (sender, queue) = mpsc::channel(QUEUE);
    let (begin, offset) = oneshot::channel();
    let (part, folder, limits) = (layer.clone(), store.temp_path("layer"), store.0.limits);
    let partial = (layer.size >= MIN_PARTIAL).then(|| store.partial_path(&layer.chain_id));
    // The folder belongs to this closure until it is whole: whatever happens, it is removed off the event loop.
    let unpacking = tokio::task::spawn_blocking(move || {
        let mut temporary = Temporary { folder, partial, received: None };
        let made = fs::DirBuilder::new().mode(0o700).create(&temporary.folder);
        made.map_err(|source| LayerError::Folder { operation: "make its temporary folder", source })?;
        let partial = temporary.partial.as_deref().map(Partial::open).transpose();
        let partial =
            partial.map_err(|source| LayerError::Folder { operation: "open its partial download", source })?;
        temporary.received = Some(receive(Source { partial, begin, queue }, &part, &temporary.folder, &limits)?);
        Ok(temporary)
    });
    let sent = send(shared, layer, attempt, offset, sender).await;
    let unpacked = unpacking.await.map_err(PullError::Task)?;
    // When the network failed, the unpacking was given up because of it.
    sent?;
    unpacked.map_err(|source| PullError::Layer { layer: layer.blob, source })
}

/// Sends a blob into the queue; a transfer that breaks off is continued where it stopped.
async fn send(
    shared: &Shared,
    layer: &LayerPart,
    attempt: &mut Attempt<'_>,
    offset: oneshot::Receiver<u64>,
    queue: mpsc::Sender<Piece>,
) -> Result<(), ClientError> {
    // The receiver is gone only if it has failed, and then it has the better error: here and below.
    let Ok(mut sent) = offset.await else { return Ok(()) };
    shared.bytes_done.fetch_add(sent, Ordering::Relaxed);
    while sent < layer.size {
        let before = sent;
        match send_from(shared, layer, attempt, &queue, &mut sent).await {
            Ok(()) => break,
            Err(error) => {
                if sent > before {
                    attempt.progressed();
                }
                attempt.failed(error).await?;
                log::info!("layer {}: continued from byte {sent} of {}", layer.blob, layer.size);
            }
        }
    }
    let _ = queue.send(Piece::End).await;
    Ok(())
}

async fn send_from(
    shared: &Shared,
    layer: &LayerPart,
    attempt: &Attempt<'_>,
    queue: &mpsc::Sender<Piece>,
    sent: &mut u64,
) -> Result<(), ClientError> {
    let (client, repository) = attempt.source();
    let mut blob = client.blob(repository, &layer.blob, *sent).await?;
    while let Some(chunk) = blob.chunk().await? {
        let length = chunk.len() as u64;
        if queue.send(Piece::Data(chunk)).await.is_err() {
            return Ok(());
        }
        *sent += length;
        shared.bytes_done.fetch_add(length, Ordering::Relaxed);
        shared.moved.notify_one();
    }
    Ok(())
}
