//! Images out of a folder or an archive: OCI layouts and what `docker save` writes.
//!
//! Owns what the members mean. Layers take the same way as those from a registry: nothing is believed, everything is
//! hashed on the way, and nothing is visible before it is whole.

use std::fs;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use oci_spec::image::{Descriptor, ImageIndex};
use serde::Deserialize;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::layer::{LayerError, Piece, QUEUE, Source, receive};
use super::pull::{Pins, Placing, Temporary, check_platform, put_in_place, select};
use super::{LayerPart, MAX_CONFIG, ManifestError, NameError, Parts, PullError, Store, StoreError, parse_manifest};
use crate::blobs::{BlobError, blob_io};
use crate::bundle::{Bundle, BundleError};
use crate::client::{MAX_MANIFEST, RawManifest};
use crate::digest::{Digest, Hasher};
use crate::platform::Platform;

/// Most images of one archive.
const MAX_IMAGES: usize = 1000;
/// Under which digest an image was known where it was exported, in its descriptor's annotations.
pub(super) const ORIGIN: &str = "dev.skeg.image.origin";
/// A whole name, as containerd and Docker write it.
pub(super) const FULL_NAME: &str = "io.containerd.image.name";
/// A tag, or a whole name (image-spec, annotations.md).
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
const PIECE: usize = 64 << 10;

/// Why images cannot be imported.
#[derive(Debug, Error)]
pub enum ImportError {
    /// It cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// It has neither an OCI layout's index nor Docker's manifest.
    #[error("{} is neither an OCI layout nor a docker archive: it has neither index.json nor manifest.json", .0.display())]
    Neither(PathBuf),
    /// A list of images that cannot be read.
    #[error("{name} in {}", path.display())]
    List {
        /// The folder or archive.
        path: PathBuf,
        /// `index.json` or `manifest.json`.
        name: &'static str,
        /// What is wrong.
        #[source]
        source: ManifestError,
    },
    /// Something that an image needs is not in it.
    #[error("{} has no {name}", path.display())]
    Missing {
        /// The folder or archive.
        path: PathBuf,
        /// The member.
        name: String,
    },
    /// A member is not what its name says.
    #[error("{name} in {} has the digest {got}", path.display())]
    Digest {
        /// The folder or archive.
        path: PathBuf,
        /// The member.
        name: String,
        /// Its digest.
        got: Digest,
    },
    /// Nothing in it runs here.
    #[error("{} has no image for {wanted}", path.display())]
    NoImage {
        /// The folder or archive.
        path: PathBuf,
        /// What this machine runs.
        wanted: Platform,
    },
    /// As for a pull.
    #[error(transparent)]
    Pull(#[from] PullError),
    /// A name cannot be given.
    #[error(transparent)]
    Name(#[from] NameError),
}

impl From<BlobError> for ImportError {
    fn from(error: BlobError) -> ImportError {
        ImportError::Pull(error.into())
    }
}

impl From<StoreError> for ImportError {
    fn from(error: StoreError) -> ImportError {
        ImportError::Pull(error.into())
    }
}

/// One image of Docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// One image of the list that a bundle has.
enum Entry {
    Oci(Box<Descriptor>),
    Docker(Saved),
}

/// An image as it lies in the bundle.
struct Found {
    /// The digest under which it becomes known, and the documents that prove what it means.
    digest: Digest,
    manifest: Bytes,
    index: Option<Bytes>,
    config: Vec<u8>,
    /// Its layers, and the names of the members that have them.
    parts: Parts,
    members: Vec<String>,
    names: Vec<String>,
}

impl Store {
    /// Imports all images of a folder or archive that run here, and returns them with their names.
    ///
    /// `name` is for a single image, in place of the names in the archive. An image that skeg has exported gets the
    /// digest that it had there, if the archive proves it. Blocks until all is on the disk; `progress` hears of each
    /// layer: how many of how many.
    pub fn import(
        &self,
        path: &Path,
        name: Option<&str>,
        platform: &Platform,
        progress: &dyn Fn(usize, usize),
    ) -> Result<Vec<(Digest, Vec<String>)>, ImportError> {
        let bundle = Bundle::open(path, &self.0.root.join("tmp"), self.room()?)?;
        let mut imported = Vec::new();
        // One after the other: the documents of all together could fill the memory.
        for entry in entries(&bundle, platform)? {
            let mut image = match entry {
                Entry::Oci(descriptor) => oci_image(&bundle, &descriptor, platform)?,
                Entry::Docker(saved) => docker_image(&bundle, saved)?,
            };
            check_platform(&image.digest, &image.parts, platform)?;
            if let Some(name) = name {
                image.names = vec![name.to_owned()];
            }
            self.import_image(&bundle, &image, progress)?;
            imported.push((image.digest, image.names));
        }
        if imported.is_empty() {
            return Err(ImportError::NoImage { path: path.to_owned(), wanted: platform.clone() });
        }
        Ok(imported)
    }

    fn import_image(&self, bundle: &Bundle, image: &Found, progress: &dyn Fn(usize, usize)) -> Result<(), ImportError> {
        let layers = &image.parts.layers;
        let mut pins = Pins::new(self);
        pins.add([image.digest, Digest::of(&image.manifest), image.parts.config_digest]);
        pins.add(layers.iter().map(|layer| layer.chain_id));
        let mut expected = 0u64;
        for layer in layers {
            if !self.has_layer(&layer.chain_id)? {
                expected = expected.saturating_add(layer.expected());
            }
        }
        self.make_room(expected)?;
        for document in image.index.iter().chain([&image.manifest]) {
            self.0.blobs.put(document)?;
        }
        self.0.blobs.put(&image.config)?;
        for (done, (layer, member)) in layers.iter().zip(&image.members).enumerate() {
            progress(done, layers.len());
            if !self.has_layer(&layer.chain_id)? {
                self.import_layer(bundle, member, layer, &layers[..done])?;
            }
        }
        progress(layers.len(), layers.len());
        self.write_record(&image.digest, &Digest::of(&image.manifest))?;
        for name in &image.names {
            self.name(&image.digest, name)?;
        }
        Ok(())
    }

    fn import_layer(
        &self,
        bundle: &Bundle,
        member: &str,
        layer: &LayerPart,
        below: &[LayerPart],
    ) -> Result<(), ImportError> {
        let wrong = |source| PullError::Layer { layer: layer.blob, source };
        let mut reader = open(bundle, member)?;
        let mut temporary = Temporary { folder: self.temp_path("layer"), partial: None, received: None };
        let made = fs::DirBuilder::new().mode(0o700).create(&temporary.folder);
        let step = |operation| move |source| LayerError::Folder { operation, source };
        made.map_err(step("make its temporary folder")).map_err(wrong)?;
        let (sender, queue) = mpsc::channel(QUEUE);
        let received = std::thread::scope(|scope| {
            let feeding = scope.spawn(move || feed(&mut reader, &sender));
            // Nobody waits to hear where to begin: a member is read from its start.
            let (begin, _) = oneshot::channel();
            let received = receive(Source { partial: None, begin, queue }, layer, &temporary.folder, &self.0.limits);
            match feeding.join() {
                Ok(Ok(())) => received,
                Ok(Err(source)) => Err(step("read it")(source)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        });
        temporary.received = Some(received.map_err(wrong)?);
        let lower = below.iter().rev().map(|layer| self.tree(&layer.chain_id)).collect();
        let place = self.layer_path(&layer.chain_id);
        put_in_place(&[Placing { layer: layer.clone(), temporary: Some(temporary), place }], lower)?;
        Ok(())
    }
}

/// Sends a member into the queue. Where nobody takes it any more, whoever did has the better error.
fn feed(reader: &mut impl Read, queue: &mpsc::Sender<Piece>) -> std::io::Result<()> {
    loop {
        let mut piece = vec![0; PIECE];
        let piece = match reader.read(&mut piece)? {
            0 => Piece::End,
            count => {
                piece.truncate(count);
                Piece::Data(piece.into())
            }
        };
        let end = matches!(piece, Piece::End);
        if queue.blocking_send(piece).is_err() || end {
            return Ok(());
        }
    }
}

fn open(bundle: &Bundle, name: &str) -> Result<crate::bundle::MemberReader, ImportError> {
    let missing = || ImportError::Missing { path: bundle.path().to_owned(), name: name.to_owned() };
    bundle.member(name)?.ok_or_else(missing)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Reads a blob and verifies it; `None` where it is not there.
fn blob(bundle: &Bundle, digest: &Digest, limit: u64) -> Result<Option<Vec<u8>>, ImportError> {
    let name = blob_name(digest);
    let Some(bytes) = bundle.read(&name, limit)? else { return Ok(None) };
    match Digest::of(&bytes) {
        got if got == *digest => Ok(Some(bytes)),
        got => Err(ImportError::Digest { path: bundle.path().to_owned(), name, got }),
    }
}

fn needed(bundle: &Bundle, digest: &Digest, limit: u64) -> Result<Vec<u8>, ImportError> {
    let missing = || ImportError::Missing { path: bundle.path().to_owned(), name: blob_name(digest) };
    blob(bundle, digest, limit)?.ok_or_else(missing)
}

/// A manifest, or the one that an index has for this platform together with that index.
fn documents(
    bundle: &Bundle,
    digest: &Digest,
    bytes: Vec<u8>,
    platform: &Platform,
) -> Result<(Bytes, Option<Bytes>), ImportError> {
    let top = RawManifest { digest: *digest, media_type: String::new(), bytes: bytes.into() };
    match select(&top, platform)? {
        None => Ok((top.bytes, None)),
        Some(chosen) => Ok((needed(bundle, &chosen, MAX_MANIFEST)?.into(), Some(top.bytes))),
    }
}

/// Lists the images that may run here.
fn entries(bundle: &Bundle, platform: &Platform) -> Result<Vec<Entry>, ImportError> {
    let wrong = |name, what| {
        move |source| ImportError::List {
            path: bundle.path().to_owned(),
            name,
            source: ManifestError::Json { what, source },
        }
    };
    if let Some(index) = bundle.read("index.json", MAX_MANIFEST)? {
        let index: ImageIndex = serde_json::from_slice(&index).map_err(wrong("index.json", "image index"))?;
        // Images for other machines, and attestations, may lie beside.
        let here = |descriptor: &&Descriptor| {
            descriptor.platform().as_ref().is_none_or(|there| {
                platform.runs(&there.os().to_string(), &there.architecture().to_string(), there.variant().as_deref())
            })
        };
        let descriptors = index.manifests().iter().take(MAX_IMAGES).filter(here);
        return Ok(descriptors.cloned().map(Box::new).map(Entry::Oci).collect());
    }
    let list = bundle.read("manifest.json", MAX_MANIFEST)?;
    let list = list.ok_or_else(|| ImportError::Neither(bundle.path().to_owned()))?;
    let saved: Vec<Saved> = serde_json::from_slice(&list).map_err(wrong("manifest.json", "list of images"))?;
    Ok(saved.into_iter().take(MAX_IMAGES).map(Entry::Docker).collect())
}

fn oci_image(bundle: &Bundle, descriptor: &Descriptor, platform: &Platform) -> Result<Found, ImportError> {
    let list = |source| ImportError::List { path: bundle.path().to_owned(), name: "index.json", source };
    let digest = super::sha256(descriptor).map_err(list)?;
    let bytes = needed(bundle, &digest, MAX_MANIFEST)?;
    let (raw, index) = documents(bundle, &digest, bytes, platform)?;
    let wrong = |source| PullError::Manifest { digest, source };
    let manifest = parse_manifest(&raw).map_err(wrong)?;
    let config = needed(bundle, &super::sha256(manifest.config()).map_err(wrong)?, MAX_CONFIG)?;
    let parts = Parts::new(&manifest, &config).map_err(wrong)?;
    let members = parts.layers.iter().map(|layer| blob_name(&layer.blob)).collect();
    let annotation = |name: &str| descriptor.annotations().as_ref().and_then(|all| all.get(name).cloned());
    // A tag alone names nothing.
    let whole = |name: &String| name.contains([':', '/']);
    let name = annotation(FULL_NAME).or_else(|| annotation(REF_NAME).filter(whole));
    let mut found = Found { digest, manifest: raw, index, config, parts, members, names: name.into_iter().collect() };
    if let Some(origin) = annotation(ORIGIN).and_then(|origin| origin.parse().ok()) {
        take_origin(bundle, &origin, platform, &mut found)?;
    }
    Ok(found)
}

/// Gives an image the digest that it had where it was exported, if the documents of that digest are there and lead to
/// the same configuration, and by that to the same layers.
fn take_origin(bundle: &Bundle, origin: &Digest, platform: &Platform, found: &mut Found) -> Result<(), ImportError> {
    let Some(bytes) = blob(bundle, origin, MAX_MANIFEST)? else { return Ok(()) };
    let (raw, index) = documents(bundle, origin, bytes, platform)?;
    let wrong = |source| PullError::Manifest { digest: *origin, source };
    let parts = parse_manifest(&raw).and_then(|manifest| Parts::new(&manifest, &found.config)).map_err(wrong)?;
    if parts.config_digest == found.parts.config_digest {
        (found.digest, found.manifest, found.index) = (*origin, raw, index);
    }
    Ok(())
}

/// Such an image has no manifest: one is made of what is there.
fn docker_image(bundle: &Bundle, saved: Saved) -> Result<Found, ImportError> {
    let config = bundle.read(&saved.config, MAX_CONFIG)?;
    let missing = || ImportError::Missing { path: bundle.path().to_owned(), name: saved.config.clone() };
    let config = config.ok_or_else(missing)?;
    let mut layers = Vec::new();
    for name in saved.layers.iter().take(super::MAX_LAYERS + 1) {
        let mut reader = open(bundle, name)?;
        let size = reader.size();
        let digest = digest_of(&mut reader).map_err(blob_io("read", &bundle.path().join(name)))?;
        layers.push((digest, size));
    }
    let manifest = super::export::plain_manifest(&Digest::of(&config), config.len() as u64, &layers);
    let digest = Digest::of(&manifest);
    let wrong = |source| PullError::Manifest { digest, source };
    let parts = parse_manifest(&manifest).and_then(|manifest| Parts::new(&manifest, &config)).map_err(wrong)?;
    let names = saved.repo_tags.unwrap_or_default();
    Ok(Found { digest, manifest: manifest.into(), index: None, config, parts, members: saved.layers, names })
}

fn digest_of(reader: &mut impl Read) -> std::io::Result<Digest> {
    let (mut hasher, mut buffer) = (Hasher::new(), vec![0; PIECE]);
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}
