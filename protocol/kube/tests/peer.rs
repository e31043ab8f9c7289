//! Debian's docker-compose as a peer: what it makes of a file must mean the same to us as the file itself.

#![allow(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

use std::path::{Path, PathBuf};
use std::process::Command;

use skeg_kube::{Bundle, Files, Request, convert_compose};
use skeg_protocol::Digest;
use skeg_protocol::manifest::{Image, ImageSource};

struct Disk;

impl Files for Disk {
    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        std::fs::read(path).map_err(|error| error.to_string())
    }

    fn exists(&self, path: &str) -> bool {
        Path::new(path).exists()
    }
}

fn convert(files: &[PathBuf]) -> Bundle {
    let image = |reference: &str| -> Result<Image, String> {
        Ok(Image { reference: reference.to_owned(), digest: Digest([0; 32]), source: ImageSource::Registry })
    };
    let files = files.iter().map(|path| path.to_str().unwrap().to_owned()).collect();
    let variables = [("FROM_SHELL".to_owned(), "shell".to_owned())].into();
    let request = Request { files, project: Some("same".to_owned()), profiles: vec!["*".to_owned()], variables };
    convert_compose(&request, &Disk, &image).unwrap_or_else(|fault| panic!("{fault}")).bundle
}

/// Compares the order-free parts: docker-compose sorts some lists.
fn sorted(mut bundle: Bundle) -> String {
    for pod in &mut bundle.pods {
        pod.labels.sort();
        pod.volumes.iter_mut().for_each(|volume| volume.name.clear());
        pod.volumes.sort_by_key(|volume| format!("{volume:?}"));
        for container in &mut pod.containers {
            container.env.sort_by(|a, b| a.name.cmp(&b.name));
            container.ports.sort_by_key(|port| port.container_port);
            container.mounts.iter_mut().for_each(|mount| mount.volume.clear());
            container.mounts.sort_by(|a, b| a.path.cmp(&b.path));
        }
    }
    format!("{bundle:#?}")
}

fn same(files: &[PathBuf]) {
    let mut command = Command::new("docker-compose");
    for file in files {
        command.arg("-f").arg(file);
    }
    let output = command.arg("config").env("FROM_SHELL", "shell").output();
    let Ok(output) = output else {
        println!("skipped: there is no docker-compose here");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let folder = tempfile::tempdir().unwrap();
    let normal = folder.path().join("normal.yml");
    std::fs::write(&normal, &output.stdout).unwrap();
    let (ours, theirs) = (sorted(convert(files)), sorted(convert(&[normal])));
    if let Some((ours, theirs)) = ours.lines().zip(theirs.lines()).find(|(ours, theirs)| ours != theirs) {
        panic!("ours says {ours:?}, docker-compose says {theirs:?} in\n{}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(ours.lines().count(), theirs.lines().count());
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

#[test]
fn the_examples_mean_the_same_to_docker_compose() {
    same(&[folder().join("examples/compose-minimal.yml")]);
    same(&[folder().join("examples/compose-shop.yml")]);
}

#[test]
fn every_way_of_writing_means_the_same_to_docker_compose() {
    same(&[folder().join("peer/all.yml")]);
    same(&[folder().join("peer/all.yml"), folder().join("peer/over.yml")]);
}
