//! An image of Debian's busybox for several architectures under one name, built by Debian's umoci.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use skeg_disk::board::Architecture;
use tempfile::TempDir;

use crate::succeed;

/// Media type of a list of manifests (OCI image specification, "OCI Image Index").
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An OCI layout with one image, tagged `latest`.
#[derive(Debug)]
pub struct Image {
    folder: TempDir,
}

impl Image {
    /// Puts each busybox into an image of its own, with all applets, and lists the images in an index.
    pub fn busybox(programs: &BTreeMap<Architecture, PathBuf>) -> Result<Image> {
        Image::with_layers(programs, &[])
    }

    /// As [`Image::busybox`], with one more layer for each folder, whose content lands in the root.
    pub fn with_layers(programs: &BTreeMap<Architecture, PathBuf>, folders: &[PathBuf]) -> Result<Image> {
        let image = Image { folder: tempfile::tempdir()? };
        let layout = image.layout();
        succeed(Command::new("umoci").args(["init", "--layout"]).arg(&layout))?;
        for (architecture, program) in programs {
            image.add(*architecture, program, folders)?;
        }
        let listed = fs::read(layout.join("index.json"))?;
        let mut listed: Value = serde_json::from_slice(&listed).context("umoci wrote no JSON")?;
        for (entry, architecture) in listed["manifests"].as_array_mut().into_iter().flatten().zip(programs.keys()) {
            entry["platform"] = json!({ "architecture": architecture.debian_name(), "os": "linux" });
            if let Some(fields) = entry.as_object_mut() {
                fields.remove("annotations");
            }
        }
        listed["mediaType"] = INDEX.into();
        let mut top = image.store(&listed)?;
        top["annotations"] = json!({ "org.opencontainers.image.ref.name": "latest" });
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [top] });
        fs::write(layout.join("index.json"), index.to_string())?;
        Ok(image)
    }

    /// Returns the digest of the index that lists all architectures.
    pub fn digest(&self) -> Result<String> {
        let index: Value = serde_json::from_slice(&fs::read(self.layout().join("index.json"))?)?;
        Ok(index["manifests"][0]["digest"].as_str().context("the layout lists no image")?.to_owned())
    }

    /// Returns the layout's name for skopeo.
    pub fn reference(&self) -> String {
        format!("oci:{}:latest", self.layout().display())
    }

    fn layout(&self) -> PathBuf {
        self.folder.path().join("layout")
    }

    /// Adds the image of one architecture, tagged with its name.
    fn add(&self, architecture: Architecture, program: &Path, folders: &[PathBuf]) -> Result<()> {
        let root = tempfile::tempdir()?;
        let bin = root.path().join("bin");
        fs::create_dir(&bin)?;
        fs::create_dir(root.path().join("tmp"))?;
        fs::copy(program, bin.join("busybox"))?;
        // The program itself may be for another processor; this machine's has the same applets.
        for applet in succeed(Command::new("busybox").arg("--list"))?.lines().filter(|applet| *applet != "busybox") {
            std::os::unix::fs::symlink("busybox", bin.join(applet))?;
        }
        let tagged = format!("{}:{}", self.layout().display(), architecture.debian_name());
        succeed(Command::new("umoci").args(["new", "--image", &tagged]))?;
        for folder in std::iter::once(root.path()).chain(folders.iter().map(PathBuf::as_path)) {
            succeed(Command::new("umoci").args(["insert", "--image", &tagged]).arg(folder).arg("/"))?;
        }
        let name = architecture.debian_name();
        succeed(Command::new("umoci").args(["config", "--image", &tagged, "--architecture", name]))?;
        Ok(())
    }

    /// Writes a blob; returns its descriptor.
    fn store(&self, blob: &Value) -> Result<Value> {
        let text = blob.to_string();
        let partial = self.folder.path().join("blob");
        fs::write(&partial, &text)?;
        let digest = succeed(Command::new("sha256sum").arg(&partial))?;
        let digest = digest.split_whitespace().next().context("sha256sum printed nothing")?;
        fs::rename(&partial, self.layout().join("blobs/sha256").join(digest))?;
        Ok(json!({ "mediaType": blob["mediaType"], "digest": format!("sha256:{digest}"), "size": text.len() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skopeo_finds_each_architecture_behind_one_name() {
        if let Some(missing) = crate::missing_program() {
            assert!(std::env::var_os("CI").is_none(), "{missing}");
            println!("skipped: {missing}");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let programs = [Architecture::X86_64, Architecture::Aarch64].map(|architecture| {
            let program = folder.path().join(architecture.debian_name());
            fs::write(&program, architecture.debian_name()).unwrap();
            (architecture, program)
        });
        let image = Image::busybox(&BTreeMap::from(programs)).unwrap();
        let copy = format!("oci:{}:copy", folder.path().join("copy").display());
        succeed(Command::new("skopeo").args(["copy", "--quiet", "--all", &image.reference(), &copy])).unwrap();
        for name in ["amd64", "arm64"] {
            let inspect = ["--override-arch", name, "inspect", "--config", &copy];
            let config: Value = serde_json::from_str(&succeed(Command::new("skopeo").args(inspect)).unwrap()).unwrap();
            assert_eq!(config["architecture"], name);
        }
    }
}
