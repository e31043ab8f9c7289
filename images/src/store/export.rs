//! Images into a folder or an archive that is an OCI layout and a `docker save` archive at the same time, so that every
//! tool reads it. What it promises: docs/decisions/0006-store.md.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;

use super::import::{FULL_NAME, ORIGIN, REF_NAME};
use super::verify::{RemakeError, remake};
use super::{MAX_CONFIG, MAX_MANIFEST, Parts, Record, Store, StoreError};
use crate::digest::Digest;
use crate::reference::Reference;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const BLOCK: usize = 512;

/// Where an export goes.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// A new or empty folder.
    Folder(&'a Path),
    /// A tar archive, written into this file.
    Archive(&'a File),
}

/// Why an image cannot be exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// It is not here, or not whole.
    #[error("image {0} is not whole on this device: pull it again")]
    NotWhole(Digest),
    /// A layer has lost what its archive had.
    #[error("layer {0} cannot be made again: its archive names a file twice, and only the last one is kept")]
    NotRemade(Digest),
    /// A layer is not what it was.
    #[error("layer {layer} is broken ({trouble}): run a verify, and pull the image again")]
    Broken {
        /// Its chain id.
        layer: Digest,
        /// What is wrong.
        trouble: String,
    },
    /// The folder has something in it.
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    /// It cannot be written.
    #[error("cannot write {name}")]
    Write {
        /// The member.
        name: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Writes images into a folder or an archive. Their ids and layers stay; see the module.
    ///
    /// Blocks until all is written; syncing is the caller's. What fails leaves an export that is not whole.
    pub fn export(&self, images: &[Digest], target: Target<'_>) -> Result<(), ExportError> {
        let mut out = Out::new(target)?;
        out.member("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let (mut index, mut list) = (Vec::new(), Vec::new());
        for digest in images {
            self.export_image(digest, &mut out, &mut index, &mut list)?;
        }
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": index,
        });
        out.member("index.json", index.to_string().as_bytes())?;
        out.member("manifest.json", Value::Array(list).to_string().as_bytes())?;
        out.finish()
    }

    fn export_image(
        &self,
        digest: &Digest,
        out: &mut Out<'_>,
        index: &mut Vec<Value>,
        list: &mut Vec<Value>,
    ) -> Result<(), ExportError> {
        let Some((record, parts, seals)) = self.sealed(digest)? else { return Err(ExportError::NotWhole(*digest)) };
        let mut layers = Vec::with_capacity(seals.len());
        for (layer, seal) in parts.layers.iter().zip(&seals) {
            let size = seal.archive_size.ok_or(ExportError::NotRemade(layer.chain_id))?;
            layers.push((layer.diff_id, size));
        }
        let missing = || ExportError::NotWhole(*digest);
        let config = self.0.blobs.read(&parts.config_digest, MAX_CONFIG).map_err(StoreError::from)?;
        let config = config.ok_or_else(missing)?;
        let manifest = plain_manifest(&parts.config_digest, config.len() as u64, &layers);
        for document in [&config, &manifest] {
            out.blob(&Digest::of(document), document)?;
        }
        // The documents that prove under which digest the image is known here.
        for origin in BTreeSet::from([*digest, record.manifest]) {
            if let Some(document) = self.0.blobs.read(&origin, MAX_MANIFEST).map_err(StoreError::from)? {
                out.blob(&origin, &document)?;
            }
        }
        for (layer, (diff_id, size)) in parts.layers.iter().zip(&layers) {
            self.export_layer(&layer.chain_id, diff_id, *size, out)?;
        }
        list.push(saved(&record, &parts));
        index.extend(descriptors(digest, &manifest, &record));
        Ok(())
    }

    fn export_layer(
        &self,
        chain_id: &Digest,
        diff_id: &Digest,
        size: u64,
        out: &mut Out<'_>,
    ) -> Result<(), ExportError> {
        let name = blob_name(diff_id);
        let Some(mut member) = out.begin(&name, size)? else { return Ok(()) };
        let broken = |trouble| ExportError::Broken { layer: *chain_id, trouble };
        match remake(&self.layer_path(chain_id), &mut member) {
            Ok(made) if made == (*diff_id, size) => member.end(),
            Ok((got, _)) => return Err(broken(format!("its archive has the digest {got}"))),
            Err(RemakeError::Broken(trouble)) => return Err(broken(trouble)),
            Err(RemakeError::Out(source)) => Err(source),
        }
        .map_err(|source| ExportError::Write { name, source })
    }
}

/// A manifest whose layers are plain archives, each as (diff id, bytes).
pub(super) fn plain_manifest(config: &Digest, config_size: u64, layers: &[(Digest, u64)]) -> Vec<u8> {
    let layer =
        |(digest, size): &(Digest, u64)| json!({"mediaType": LAYER, "digest": digest.to_string(), "size": size});
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config.to_string(), "size": config_size},
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// One descriptor a name, as an OCI layout wants it; one without a name where there is none.
fn descriptors(digest: &Digest, manifest: &[u8], record: &Record) -> Vec<Value> {
    let descriptor = |name: Option<&String>| {
        let mut annotations = json!({ORIGIN: digest.to_string()});
        if let Some(name) = name {
            let tag = name.parse::<Reference>().ok().and_then(|name| name.tag().map(str::to_owned));
            annotations[FULL_NAME] = json!(name);
            annotations[REF_NAME] = json!(tag.as_ref().unwrap_or(name));
        }
        json!({
            "mediaType": MANIFEST, "digest": Digest::of(manifest).to_string(), "size": manifest.len(),
            "annotations": annotations,
        })
    };
    match record.names.as_slice() {
        [] => vec![descriptor(None)],
        names => names.iter().map(|name| descriptor(Some(name))).collect(),
    }
}

/// The image in Docker's list. It knows names with a tag only.
fn saved(record: &Record, parts: &Parts) -> Value {
    let tagged = |name: &&String| name.parse::<Reference>().is_ok_and(|name| name.digest().is_none());
    let layers: Vec<_> = parts.layers.iter().map(|layer| blob_name(&layer.diff_id)).collect();
    let names: Vec<_> = record.names.iter().filter(tagged).collect();
    json!({"Config": blob_name(&parts.config_digest), "RepoTags": names, "Layers": layers})
}

/// An export that is being written.
struct Out<'a> {
    target: Target<'a>,
    /// Members that are there: images share layers.
    there: BTreeSet<String>,
}

/// A member that is being written.
struct Member<'a> {
    file: Sink<'a>,
    padding: usize,
}

enum Sink<'a> {
    File(File),
    Archive(&'a File),
}

impl<'a> Out<'a> {
    fn new(target: Target<'a>) -> Result<Out<'a>, ExportError> {
        if let Target::Folder(path) = target {
            let fail = |source| ExportError::Write { name: path.display().to_string(), source };
            fs::create_dir_all(path).map_err(fail)?;
            if fs::read_dir(path).map_err(fail)?.next().is_some() {
                return Err(ExportError::NotEmpty(path.to_owned()));
            }
            fs::create_dir_all(path.join("blobs/sha256")).map_err(fail)?;
        }
        Ok(Out { target, there: BTreeSet::new() })
    }

    /// Begins a member; `None` where it is there already.
    fn begin(&mut self, name: &str, size: u64) -> Result<Option<Member<'a>>, ExportError> {
        if !self.there.insert(name.to_owned()) {
            return Ok(None);
        }
        let begin = || match self.target {
            Target::Folder(path) => Ok(Member { file: Sink::File(File::create_new(path.join(name))?), padding: 0 }),
            Target::Archive(mut file) => {
                let mut header = tar::Header::new_ustar();
                header.set_path(name)?;
                header.set_mode(0o644);
                header.set_uid(0);
                header.set_gid(0);
                header.set_mtime(0);
                header.set_size(size);
                header.set_cksum();
                file.write_all(header.as_bytes())?;
                let padding = usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or(0);
                Ok(Member { file: Sink::Archive(file), padding })
            }
        };
        begin().map(Some).map_err(|source| ExportError::Write { name: name.to_owned(), source })
    }

    fn member(&mut self, name: &str, bytes: &[u8]) -> Result<(), ExportError> {
        let Some(mut member) = self.begin(name, bytes.len() as u64)? else { return Ok(()) };
        let written = member.write_all(bytes).and_then(|()| member.end());
        written.map_err(|source| ExportError::Write { name: name.to_owned(), source })
    }

    fn blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), ExportError> {
        self.member(&blob_name(digest), bytes)
    }

    fn finish(self) -> Result<(), ExportError> {
        match self.target {
            Target::Folder(_) => Ok(()),
            Target::Archive(mut file) => file
                .write_all(&[0; 2 * BLOCK])
                .map_err(|source| ExportError::Write { name: "the archive's end".to_owned(), source }),
        }
    }
}

impl Member<'_> {
    fn end(mut self) -> io::Result<()> {
        let padding = self.padding;
        self.write_all(&[0; BLOCK][..padding])
    }
}

impl Write for Member<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Sink::File(file) => file.write(buffer),
            Sink::Archive(file) => file.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
