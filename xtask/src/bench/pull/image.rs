//! The image that is pulled: six layers of files of this machine's `/usr`, once as gzip and once as zstd, as OCI layouts.
//!
//! Which files is decided by a hash of their names, so that they are of all kinds, and the same as long as the machine's
//! packages are. Nothing of it is ever run.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Bytes of files in all layers together: about 250 MB of them are left when compressed.
const BYTES: u64 = 640 << 20;
/// How they are spread over the layers, in hundredths: a base, one large layer, and smaller ones.
const SHARES: [u64; 6] = [30, 34, 15, 12, 6, 3];
/// Larger files are rare in images and would be most of a layer here.
const MAX_FILE: u64 = 24 << 20;

/// How the layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Gzip,
    Zstd,
}

impl Form {
    pub(super) const ALL: [Form; 2] = [Form::Gzip, Form::Zstd];

    pub(super) fn name(self) -> &'static str {
        match self {
            Form::Gzip => "gzip",
            Form::Zstd => "zstd",
        }
    }
}

/// What was built.
#[derive(Serialize, Deserialize)]
pub(super) struct Image {
    /// Bytes of the layers' files.
    pub(super) unpacked: u64,
    /// Bytes of the compressed layers: gzip, zstd.
    pub(super) compressed: [u64; 2],
    /// Digests of the compressed layers: gzip, zstd.
    pub(super) layers: [Vec<String>; 2],
}

/// Builds the layouts `gzip` and `zstd` in a folder, under the tag `1`; what is there from an earlier run is taken.
pub(super) fn build(folder: &Path) -> Result<Image> {
    let note = folder.join("image.json");
    if let Ok(text) = fs::read(&note) {
        return serde_json::from_slice(&text).context("image.json of an earlier run");
    }
    for form in Form::ALL {
        fs::create_dir_all(folder.join(form.name()).join("blobs/sha256"))?;
    }
    let mut image = Image { unpacked: 0, compressed: [0; 2], layers: Default::default() };
    let mut descriptors: [Vec<Value>; 2] = Default::default();
    let mut diff_ids = Vec::new();
    for files in choose()? {
        image.unpacked += files.iter().map(|(_, size)| size).sum::<u64>();
        let archive = archive(&files)?;
        diff_ids.push(name(&archive));
        for (index, form) in Form::ALL.into_iter().enumerate() {
            let bytes = match form {
                Form::Gzip => {
                    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                    encoder.write_all(&archive)?;
                    encoder.finish()?
                }
                Form::Zstd => zstd::encode_all(&archive[..], 3)?,
            };
            let media = format!("application/vnd.oci.image.layer.v1.tar+{}", form.name());
            let descriptor = blob(&folder.join(form.name()), &media, &bytes)?;
            image.compressed[index] += bytes.len() as u64;
            image.layers[index].push(name(&bytes));
            descriptors[index].push(descriptor);
        }
    }
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
    let config =
        serde_json::to_vec(&json!({ "architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs }))?;
    for (form, layers) in Form::ALL.into_iter().zip(descriptors) {
        let layout = folder.join(form.name());
        let config = blob(&layout, "application/vnd.oci.image.config.v1+json", &config)?;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers });
        let mut manifest = blob(&layout, kind, &serde_json::to_vec(&manifest)?)?;
        manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": "1" });
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
        fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    }
    fs::write(&note, serde_json::to_vec(&image)?)?;
    Ok(image)
}

fn name(bytes: &[u8]) -> String {
    let hex: String = digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn blob(layout: &Path, media: &str, bytes: &[u8]) -> Result<Value> {
    let name = name(bytes);
    let path = layout.join("blobs").join(name.replace(':', "/"));
    fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    Ok(json!({ "mediaType": media, "digest": name, "size": bytes.len() }))
}

/// Chooses the files of each layer, with their sizes, sorted by name.
fn choose() -> Result<Vec<Vec<(PathBuf, u64)>>> {
    let (mut found, mut waiting) = (Vec::new(), vec![PathBuf::from("/usr")]);
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                waiting.push(entry.path());
            } else if metadata.is_file() && metadata.len() <= MAX_FILE {
                found.push((entry.path(), metadata.len()));
            }
        }
    }
    found.sort_by_cached_key(|(path, _)| digest(&SHA256, path.as_os_str().as_encoded_bytes()).as_ref().to_vec());
    let mut layers: Vec<Vec<_>> = Vec::new();
    let mut files = found.into_iter();
    for share in SHARES {
        let mut left = BYTES * share / 100;
        let mut layer: Vec<_> = Vec::new();
        while left > 0 {
            let Some((path, size)) = files.next() else { break };
            left = left.saturating_sub(size);
            layer.push((path, size));
        }
        layer.sort();
        layers.push(layer);
    }
    Ok(layers)
}

/// Packs files with the folders that they are in, at a fixed time.
fn archive(files: &[(PathBuf, u64)]) -> Result<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.mode(tar::HeaderMode::Deterministic);
    let mut folders = BTreeSet::new();
    for (path, size) in files {
        let inside = path.strip_prefix("/")?;
        let parents: Vec<_> = inside.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()).collect();
        for parent in parents.into_iter().rev() {
            if folders.insert(parent.to_owned()) {
                builder.append_dir(parent, Path::new("/").join(parent))?;
            }
        }
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let mut header = tar::Header::new_ustar();
        header.set_metadata_in_mode(&file.metadata()?, tar::HeaderMode::Deterministic);
        header.set_size(*size);
        // A file that is being replaced must not break the archive.
        builder.append_data(&mut header, inside, file.chain(io::repeat(0)).take(*size))?;
    }
    Ok(builder.into_inner()?)
}
