//! Round trips with skopeo: what it writes is imported, what is exported it reads, and the image stays the same.
//!
//! Needs root and skopeo; says so when it is missing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use skeg_images::{Digest, Limits, Platform, Store, Target};

/// Runs a command that must succeed and returns what it prints.
fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    output.stdout
}

/// Writes an OCI layout of one image whose layer GNU tar has packed.
fn layout(folder: &Path) {
    let root = folder.join("root");
    fs::create_dir_all(root.join("usr/share/doc")).unwrap();
    fs::write(root.join("usr/share/doc/long"), vec![b'x'; 3_000_000]).unwrap();
    fs::hard_link(root.join("usr/share/doc/long"), root.join("same")).unwrap();
    std::os::unix::fs::symlink("usr/share", root.join("link")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(10_000_000).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 9_000_000).unwrap();
    let blobs = folder.join("layout/blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        (digest.to_string(), bytes.len())
    };
    let tar = folder.join("layer.tar");
    let (tar, root) = (tar.to_str().unwrap(), root.to_str().unwrap());
    run("tar", &["--sparse", "--xattrs", "--format=pax", "-cf", tar, "-C", root, "."]);
    let (layer, size) = put(&fs::read(tar).unwrap());
    let host = Platform::host();
    let config = json!({
        "architecture": host.architecture, "os": "linux", "created": "2026-01-02T03:04:05Z",
        "config": {"Cmd": ["/bin/true"], "Labels": {"a": "b"}}, "rootfs": {"type": "layers", "diff_ids": [layer]},
    });
    let (config, config_size) = put(config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": size}],
    });
    let (manifest, size) = put(manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": size,
        "annotations": {"org.opencontainers.image.ref.name": "1"},
    }]});
    fs::write(folder.join("layout/index.json"), index.to_string()).unwrap();
    fs::write(folder.join("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// What skopeo says of an image: its configuration, with the diff ids.
fn config(reference: &str) -> Value {
    serde_json::from_slice(&run("skopeo", &["inspect", "--config", reference])).unwrap()
}

#[test]
fn an_image_stays_the_same_on_its_way_through_skopeo() {
    if Command::new("skopeo").arg("--version").output().is_err() {
        return println!("skipped: skopeo is not there");
    }
    let folder = tempfile::tempdir().unwrap();
    layout(folder.path());
    let at = |kind: &str, name: &str| format!("{kind}:{}", folder.path().join(name).display());
    let first = config(&at("oci", "layout:1"));
    // skopeo packs layers as gzip in OCI forms and as plain tars in docker archives.
    for (kind, name, reference) in [
        ("oci", "copied:1", "copied"),
        ("oci-archive", "copied.oci.tar", "copied.oci.tar"),
        ("docker-archive", "copied.docker.tar:demo/web:1", "copied.docker.tar"),
    ] {
        run("skopeo", &["--insecure-policy", "copy", "-q", &at("oci", "layout:1"), &at(kind, name)]);
        let store_folder = tempfile::tempdir().unwrap();
        let store = Store::open(store_folder.path(), Limits::default()).unwrap();
        let path = folder.path().join(reference);
        let imported = store.import(&path, Some("demo/web:2"), &Platform::host(), &|_, _| ()).unwrap();
        let [(digest, _)] = &imported[..] else { panic!("{imported:?}") };
        assert_eq!(store.verify(&|_, _| ()).unwrap().broken, Vec::<String>::new());
        let archive = folder.path().join(format!("{reference}.again.tar"));
        store.export(&[*digest], Target::Archive(&File::create(&archive).unwrap())).unwrap();
        let again = format!("{reference}.again.tar");
        store.export(&[*digest], Target::Folder(&folder.path().join(format!("{reference}.again")))).unwrap();
        for (kind, name) in
            [("oci-archive", again.clone()), ("docker-archive", again), ("oci", format!("{reference}.again:2"))]
        {
            assert_eq!(config(&at(kind, &name)), first, "{kind} of {reference}");
            // A copy reads and verifies every layer.
            let copy = tempfile::tempdir().unwrap();
            let to = format!("dir:{}", copy.path().display());
            run("skopeo", &["--insecure-policy", "copy", "-q", &at(kind, &name), &to]);
        }
    }
}
