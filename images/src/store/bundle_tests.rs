//! Images out of and into folders and archives, without other tools (with them: tests/bundles.rs).

use super::disk_tests::every_kind;
use super::tests::{pull, store, two_layers};
use super::*;
use crate::platform::Platform;
use crate::testing::*;

fn no_progress(_: usize, _: usize) {}

fn import(store: &Store, path: &Path) -> Result<Vec<(Digest, Vec<String>)>, ImportError> {
    store.import(path, None, &Platform::host(), &no_progress)
}

#[tokio::test]
async fn an_export_gives_the_same_image_under_the_same_digest_elsewhere() {
    let registry = Registry::start().await;
    let tar = every_kind();
    let manifest = registry.add_image("demo/web", "1", &[two_layers()[0].clone(), (gzip(&tar), tar)]);
    let entry = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{
        "mediaType": MANIFEST, "digest": manifest.to_string(), "size": 1,
        "platform": {"os": "linux", "architecture": Platform::host().architecture},
    }]});
    let digest = registry.add_manifest("demo/web", "multi", INDEX, entry.to_string().as_bytes());
    let (_folder, here) = store();
    let image = pull(&here, &registry, &digest).await.unwrap();
    here.name(&digest, "demo/web:1").unwrap();
    let out = tempfile::tempdir().unwrap();
    let (archive, folder) = (out.path().join("x.tar"), out.path().join("layout"));
    tokio::task::spawn_blocking(move || {
        here.export(&[digest], Target::Archive(&File::create(&archive).unwrap())).unwrap();
        here.export(&[digest], Target::Folder(&folder)).unwrap();
        let again = here.export(&[digest], Target::Folder(&folder));
        assert!(matches!(again, Err(ExportError::NotEmpty(_))));
        for path in [&archive, &folder] {
            let (_folder, there) = store();
            let name = "docker.io/demo/web:1".to_owned();
            assert_eq!(import(&there, path).unwrap(), [(digest, vec![name])]);
            let imported = there.image(&digest).unwrap().unwrap();
            assert_eq!(imported.config, image.config);
            assert_eq!(there.find("demo/web:1").unwrap(), [digest]);
            let verified = there.verify(&no_progress).unwrap();
            assert_eq!((verified.layers, verified.broken), (2, vec![]));
            // A second import finds everything.
            import(&there, path).unwrap();
        }
    })
    .await
    .unwrap();
}

/// A `docker save` archive of these members, made by hand.
fn docker_archive(layers: &[(&str, &[u8])], diff_ids: &[Digest], config_name: &str) -> Vec<u8> {
    let diff_ids: Vec<_> = diff_ids.iter().map(ToString::to_string).collect();
    let config = serde_json::json!({
        "architecture": Platform::host().architecture, "os": "linux", "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let names: Vec<_> = layers.iter().map(|(name, _)| name).collect();
    let list = serde_json::json!([{"Config": "config.json", "RepoTags": ["demo/web:1"], "Layers": names}]);
    let mut tar = TarFile::new().file(config_name, config.to_string().as_bytes());
    for (name, bytes) in layers {
        tar = tar.file(name, bytes);
    }
    tar.file("manifest.json", list.to_string().as_bytes()).bytes()
}

fn import_bytes(bytes: &[u8]) -> Result<Vec<(Digest, Vec<String>)>, ImportError> {
    let (folder, store) = store();
    let path = folder.path().join("import.tar");
    fs::write(&path, bytes).unwrap();
    let imported = import(&store, &path);
    for name in ["tmp", "images", "layers"] {
        let left = fs::read_dir(folder.path().join(name)).unwrap().count();
        assert!(left == 0 || (imported.is_ok() && name != "tmp"), "left in {name}");
    }
    imported
}

#[test]
fn a_docker_archive_is_imported_whatever_its_compression() {
    let tar = every_kind();
    let id = Digest::of(&tar);
    let plain = docker_archive(&[("a/layer.tar", &tar)], &[id], "config.json");
    assert_eq!(import_bytes(&plain).unwrap()[0].1, ["demo/web:1"]);
    import_bytes(&gzip(&plain)).unwrap();
    import_bytes(&docker_archive(&[("a/layer.tar", &gzip(&tar))], &[id], "config.json")).unwrap();
}

#[test]
fn archives_that_lie_are_refused_and_leave_nothing() {
    let tar = every_kind();
    let id = Digest::of(&tar);
    let error = |bytes: &[u8]| super::tests::chain(&import_bytes(bytes).unwrap_err());
    let wrong_layer = docker_archive(&[("a/layer.tar", &two_layers()[0].1)], &[id], "config.json");
    assert!(error(&wrong_layer).contains("while the image's configuration says"));
    let no_config = docker_archive(&[("a/layer.tar", &tar)], &[id], "other.json");
    assert!(error(&no_config).contains("has no config.json"));
    let hostile = TarFile::new().file("../escape", b"x").bytes();
    let hostile = docker_archive(&[("a/layer.tar", &hostile)], &[Digest::of(&hostile)], "config.json");
    assert!(error(&hostile).contains("leads upwards"));
    assert!(error(&TarFile::new().file("x", b"").bytes()).contains("neither index.json nor manifest.json"));
    assert!(error(b"<html>").contains("not a tar archive"));
    let lying = format!("{:064}", 1);
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"mediaType": MANIFEST, "digest": format!("sha256:{lying}"), "size": 2}]});
    let lying = TarFile::new()
        .file("index.json", index.to_string().as_bytes())
        .file(&format!("blobs/sha256/{lying}"), b"{}")
        .bytes();
    assert!(error(&lying).contains("has the digest"));
}

#[tokio::test]
async fn a_false_origin_is_not_believed() {
    let registry = Registry::start().await;
    let [mine, other] = [0, 1].map(|at| registry.add_image("demo/web", &at.to_string(), &two_layers()[at..=at]));
    let (_folder, here) = store();
    pull(&here, &registry, &mine).await.unwrap();
    pull(&here, &registry, &other).await.unwrap();
    tokio::task::spawn_blocking(move || {
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("layout");
        here.export(&[mine], Target::Folder(&folder)).unwrap();
        // The documents of another image are laid beside, and the index says that it is that one.
        let bytes = here.0.blobs.read(&other, MAX_MANIFEST).unwrap().unwrap();
        fs::write(folder.join("blobs/sha256").join(other.hex()), bytes).unwrap();
        let index = fs::read_to_string(folder.join("index.json")).unwrap();
        let origin = |digest: &Digest| format!("\"dev.skeg.image.origin\":\"{digest}\"");
        assert!(index.contains(&origin(&mine)));
        fs::write(folder.join("index.json"), index.replace(&origin(&mine), &origin(&other))).unwrap();
        let (_folder, there) = store();
        let imported = import(&there, &folder).unwrap();
        assert!(imported[0].0 != other && imported[0].0 != mine);
        assert!(there.image(&other).unwrap().is_none());
    })
    .await
    .unwrap();
}

#[test]
fn what_cannot_be_exported_says_why() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tar = TarFile::new().file("twice", b"1").file("twice", b"2").bytes();
    let registry = runtime.block_on(Registry::start());
    let twice = registry.add_image("demo/web", "1", &[(gzip(&tar), tar)]);
    let good = registry.add_image("demo/web", "2", &two_layers());
    let (folder, store) = store();
    runtime.block_on(pull(&store, &registry, &twice)).unwrap();
    let image = runtime.block_on(pull(&store, &registry, &good)).unwrap();
    let mut out = File::create(folder.path().join("out")).unwrap();
    let error = |digest, out: &File| store.export(&[digest], Target::Archive(out)).unwrap_err().to_string();
    assert!(error(twice, &out).contains("names a file twice"));
    assert!(error(Digest([1; 32]), &out).contains("is not whole on this device"));
    fs::write(image.layers[1].join("new"), [8; 100_000]).unwrap();
    assert!(error(good, &out).contains("its archive has the digest"));
    out.flush().unwrap();
}
