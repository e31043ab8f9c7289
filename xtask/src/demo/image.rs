//! A small OCI image of one static program, as an OCI image layout on disk: one tar.gz layer, its configuration,
//! its manifest and an index (OCI image-spec, image-layout.md). Equal programs give equal images.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

/// A blob of the layout: what a descriptor says of it.
struct Blob {
    digest: String,
    size: usize,
}

fn sha256(bytes: &[u8]) -> String {
    ring::digest::digest(&ring::digest::SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn blob(layout: &Path, bytes: &[u8]) -> Result<Blob> {
    let hex = sha256(bytes);
    let path = layout.join("blobs/sha256").join(&hex);
    std::fs::write(&path, bytes).with_context(|| path.display().to_string())?;
    Ok(Blob { digest: format!("sha256:{hex}"), size: bytes.len() })
}

fn json_blob(layout: &Path, value: &Value) -> Result<Blob> {
    blob(layout, &serde_json::to_vec(value)?)
}

/// A tar archive with the program at its root and nothing else.
fn layer(name: &str, program: &[u8]) -> Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, name, program)?;
    Ok(archive.into_inner()?)
}

/// Writes the image of a program for this machine's architecture into a new folder, under the tag `1`; gives the
/// size of its layer in bytes.
pub(crate) fn write(layout: &Path, name: &str, program: &Path, port: u16) -> Result<usize> {
    let program = std::fs::read(program).with_context(|| program.display().to_string())?;
    std::fs::create_dir_all(layout.join("blobs/sha256")).with_context(|| layout.display().to_string())?;
    let archive = layer(name, &program).context("the layer of the image")?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&archive)?;
    let layer = blob(layout, &gzip.finish()?)?;
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let config = json_blob(
        layout,
        &json!({
            "architecture": architecture,
            "os": "linux",
            // Nobody: the program needs no right at all.
            "config": {
                "User": "65534:65534",
                "Entrypoint": [format!("/{name}")],
                "ExposedPorts": { format!("{port}/tcp"): {} },
                "Env": ["PATH=/", format!("PORT={port}")],
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&archive))] },
        }),
    )?;
    let media = "application/vnd.oci.image";
    let manifest = json_blob(
        layout,
        &json!({
            "schemaVersion": 2,
            "mediaType": format!("{media}.manifest.v1+json"),
            "config": { "mediaType": format!("{media}.config.v1+json"), "digest": config.digest, "size": config.size },
            "layers": [{
                "mediaType": format!("{media}.layer.v1.tar+gzip"), "digest": layer.digest, "size": layer.size,
            }],
        }),
    )?;
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": format!("{media}.manifest.v1+json"), "digest": manifest.digest, "size": manifest.size,
            "annotations": { "org.opencontainers.image.ref.name": "1" },
        }],
    });
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    std::fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    Ok(layer.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn every_descriptor_names_a_blob_of_its_digest_and_size() {
        let folder = tempfile::tempdir().unwrap();
        let (program, layout) = (folder.path().join("program"), folder.path().join("layout"));
        std::fs::write(&program, b"#!/bin/true\n").unwrap();
        write(&layout, "program", &program, 8080).unwrap();
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
            let bytes = std::fs::read(layout.join("blobs/sha256").join(&digest)).unwrap();
            assert_eq!((sha256(&bytes), bytes.len() as u64), (digest, descriptor["size"].as_u64().unwrap()));
            bytes
        };
        let manifest = blob(&read(&layout.join("index.json"))["manifests"][0]);
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        let mut archive = Vec::new();
        let layer = blob(&manifest["layers"][0]);
        std::io::copy(&mut flate2::read::GzDecoder::new(layer.as_slice()), &mut archive).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sha256(&archive)));
        let mut archive = tar::Archive::new(archive.as_slice());
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!((entry.path().unwrap().to_str(), entry.header().mode().unwrap()), (Some("program"), 0o755));
    }
}
