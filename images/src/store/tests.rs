//! Pulls from a registry on loopback: honest ones, interrupted ones, and ones that are lied to.

use super::disk_tests::SmallDisk;
use super::*;
use crate::client::{Client, ClientError, Endpoint, Sources};
use crate::platform::{NoPlatform, Platform};
use crate::testing::*;

pub(super) fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    // However full this machine's disk is.
    let limits = Limits { high_percent: 100, low_percent: 100, ..Limits::default() };
    let store = Store::open(folder.path(), limits).unwrap();
    (folder, store)
}

fn client(registry: &Registry) -> Client {
    let endpoint = Endpoint::for_registry(&registry.address, true).unwrap();
    Client::new(endpoint.with_timeouts(Duration::from_secs(10), Duration::from_secs(10)))
}

pub(super) async fn pull(store: &Store, registry: &Registry, digest: &Digest) -> Result<Image, PullError> {
    store.pull(&sources(registry), digest, &Platform::host(), &|_| ()).await
}

/// The registry alone, asked again without much of a wait.
fn sources(registry: &Registry) -> Sources {
    Sources::one(client(registry), "demo/web").with_first_wait(Duration::from_millis(1))
}

/// An error with all its sources, as a user sees it.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

pub(super) fn two_layers() -> [(Vec<u8>, Vec<u8>); 2] {
    let base = TarFile::new().folder("./", 0o755).folder("etc", 0o755).file("etc/name", b"base").bytes();
    let top = TarFile::new().file("etc/name", b"top").file("new", &[7; 100_000]).bytes();
    [(gzip(&base), base), (zstd::encode_all(&top[..], 3).unwrap(), top)]
}

#[tokio::test]
async fn an_image_is_pulled_and_there_after_a_restart_without_a_network() {
    let registry = Registry::start().await;
    let digest = registry.add_image("demo/web", "1", &two_layers());
    let (folder, store) = store();
    assert!(store.image(&digest).unwrap().is_none());
    assert_eq!(client(&registry).resolve("demo/web", "1").await.unwrap(), digest);
    let steps = Mutex::new(Vec::new());
    let note = |progress: Progress| steps.lock().unwrap().push(progress);
    let image = store.pull(&sources(&registry), &digest, &Platform::host(), &note).await.unwrap();
    let last = steps.lock().unwrap().last().copied().unwrap();
    assert_eq!((last.layers, last.layers_done, last.bytes_done), (2, 2, last.bytes));
    assert_eq!(fs::read(image.layers[0].join("etc/name")).unwrap(), b"base");
    assert_eq!(fs::read(image.layers[1].join("etc/name")).unwrap(), b"top");
    assert_eq!(image.config.config().as_ref().unwrap().cmd().as_deref(), Some(&["/bin/true".to_owned()][..]));
    drop(store);
    let again = Store::open(folder.path(), Limits::default()).unwrap();
    assert_eq!(again.image(&digest).unwrap().unwrap().layers, image.layers);
    assert_eq!(again.images().unwrap(), [digest]);
    assert!(fs::read_dir(folder.path().join("tmp")).unwrap().next().is_none());
}

#[tokio::test]
async fn an_index_leads_to_the_manifest_for_this_machine() {
    let registry = Registry::start().await;
    let manifest = registry.add_image("demo/web", "here", &two_layers());
    let host = Platform::host();
    let entry = |digest: &Digest, architecture: &str| {
        serde_json::json!({"mediaType": MANIFEST, "digest": digest.to_string(), "size": 1,
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = |entries| serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
    let other = Digest::of(b"another machine's");
    let both = index(vec![entry(&other, "s390x"), entry(&manifest, &host.architecture)]);
    let both = registry.add_manifest("demo/web", "both", INDEX, both.as_bytes());
    let (_folder, store) = store();
    let image = pull(&store, &registry, &both).await.unwrap();
    assert_eq!((image.digest, store.image(&both).unwrap().unwrap().layers.len()), (both, 2));
    let foreign = index(vec![entry(&other, "s390x")]);
    let foreign = registry.add_manifest("demo/web", "foreign", INDEX, foreign.as_bytes());
    let error = pull(&store, &registry, &foreign).await.unwrap_err();
    assert!(matches!(&error, PullError::Platform { source: NoPlatform { .. }, .. }), "{error:?}");
    let wanted = format!("image {foreign}: the image has nothing for {host}; it has linux/s390x");
    assert_eq!(chain(&error), wanted);
}

#[tokio::test]
async fn an_image_for_another_machine_is_refused_before_its_layers_are_fetched() {
    let registry = Registry::start().await;
    let digest = registry.add_image("demo/web", "1", &two_layers());
    let (_folder, store) = store();
    let other = Platform { architecture: "riscv64".to_owned(), variant: None };
    let pulled = store.pull(&sources(&registry), &digest, &other, &|_| ()).await;
    assert!(matches!(pulled, Err(PullError::Platform { .. })));
    assert!(!registry.seen().iter().any(|seen| seen.path.contains(&Digest::of(&two_layers()[0].0).to_string())));
}

/// Pulls an image whose layer's blob is answered like this, and returns the error; nothing may be left of it.
async fn refusal(layer: (Vec<u8>, Vec<u8>), answer: Option<Reply>) -> String {
    let registry = Registry::start().await;
    let path = format!("/v2/demo/web/blobs/{}", Digest::of(&layer.0));
    let digest = registry.add_image("demo/web", "1", &[layer]);
    if let Some(answer) = answer {
        registry.replace(&path, answer);
    }
    let (folder, store) = store();
    let endpoint = Endpoint::for_registry(&registry.address, true).unwrap();
    let client = Client::new(endpoint.with_timeouts(Duration::from_secs(10), Duration::from_millis(300)));
    let sources = Sources::one(client, "demo/web").with_first_wait(Duration::from_millis(1));
    let error = store.pull(&sources, &digest, &Platform::host(), &|_| ()).await.unwrap_err();
    assert!(store.image(&digest).unwrap().is_none());
    for name in ["layers", "images", "partial", "tmp", "uploads"] {
        assert_eq!(fs::read_dir(folder.path().join(name)).unwrap().count(), 0, "left in {name}: {error}");
    }
    chain(&error)
}

#[tokio::test]
async fn layers_that_are_lied_about_are_refused_and_leave_nothing() {
    let tar = TarFile::new().file("x", &[1; 5000]).bytes();
    let (blob, size) = (gzip(&tar), gzip(&tar).len());
    let layer = || (blob.clone(), tar.clone());
    let mut other = blob.clone();
    *other.last_mut().unwrap() ^= 1;
    for (answer, part) in [
        (Reply::new(200, other), "content with the digest sha256:"),
        (Reply::new(200, "<html>".repeat(size)[..size].to_owned()), "content with the digest sha256:"),
        (Reply::new(200, "<html>"), "sent 6 bytes where the manifest says"),
        (Reply::new(200, [&blob[..], b"more"].concat()), "bytes where the manifest says"),
        (Reply::new(404, "gone"), "the registry answers 404 Not Found: gone"),
        (Reply::new(200, blob.clone()).end(End::Cut(0)), "the transfer broke off"),
        (Reply::new(200, blob.clone()).end(End::Stall(20)), "nothing for 0.3 s"),
    ] {
        let error = refusal(layer(), Some(answer)).await;
        assert!(error.contains(part), "{error}");
        assert!(error.contains(&Digest::of(&blob).to_string()), "{error}");
    }
    let error = refusal((blob.clone(), b"another tar".to_vec()), None).await;
    assert!(error.contains("while the image's configuration says"), "{error}");
    let hostile = TarFile::new().file("../../escape", b"x").bytes();
    let error = refusal((gzip(&hostile), hostile), None).await;
    assert!(error.contains("entry \"../../escape\": its name leads upwards"), "{error}");
    let mut broken = blob.clone();
    broken[size / 2] ^= 0x55;
    let error = refusal((broken, tar.clone()), None).await;
    assert!(error.contains("cannot decompress") || error.contains("not a tar archive"), "{error}");
    let short = tar[..1024].to_vec();
    let error = refusal((short.clone(), short), None).await;
    assert!(error.contains("ends within a file's data"), "{error}");
}

#[tokio::test]
async fn a_zstd_window_that_would_take_much_memory_is_refused() {
    let tar = TarFile::new().file("x", &[1; 5000]).bytes();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(27).unwrap();
    io::Write::write_all(&mut encoder, &tar).unwrap();
    io::Write::flush(&mut encoder).unwrap();
    let error = refusal((encoder.finish().unwrap(), tar), None).await;
    assert!(error.contains("cannot decompress it"), "{error}");
}

#[tokio::test]
async fn a_configuration_that_does_not_match_is_refused() {
    let registry = Registry::start().await;
    let digest = registry.add_image("demo/web", "1", &two_layers());
    let layers: Vec<_> = two_layers().iter().map(|(blob, _)| Digest::of(blob).to_string()).collect();
    let (folder, store) = store();
    let pulled = pull(&store, &registry, &digest).await;
    assert!(pulled.is_ok());
    let config = registry
        .seen()
        .into_iter()
        .map(|seen| seen.path)
        .find(|path| path.contains("/blobs/") && !layers.iter().any(|layer| path.contains(layer)));
    registry.replace(&config.unwrap(), Reply::new(200, "{}"));
    drop((store, folder));
    let (_folder, store) = self::store();
    let error = pull(&store, &registry, &digest).await.unwrap_err();
    assert!(matches!(error, PullError::Client(ClientError::Digest { .. })), "{error:?}");
}

#[tokio::test]
async fn a_transfer_that_broke_off_is_continued_where_it_stopped() {
    let registry = Registry::start().await;
    let tar = TarFile::new().file("x", &(0..200_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).bytes();
    let path = format!("/v2/demo/web/blobs/{}", Digest::of(&tar));
    let digest = registry.add_image("demo/web", "1", &[(tar.clone(), tar.clone())]);
    registry.replace(&path, Reply::new(200, tar.clone()).end(End::Cut(300_000)));
    registry.on(&path, Reply::new(206, tar.clone()));
    let (_folder, store) = store();
    pull(&store, &registry, &digest).await.unwrap();
    let ranges: Vec<_> = registry.seen().into_iter().filter(|seen| seen.path == path).map(|seen| seen.range).collect();
    assert_eq!(ranges.len(), 2);
    assert!(ranges[0].is_none() && ranges[1].as_ref().unwrap().starts_with("bytes="), "{ranges:?}");
}

/// A layer that no compressor makes smaller, so large that its download is kept while it comes.
fn large_layer() -> Vec<u8> {
    TarFile::new().file("x", &(0..400_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).bytes()
}

/// Begins a pull from a registry that stops in the middle of the layer, and drops everything there.
async fn cut_short(folder: &Path, registry: &Registry, digest: &Digest, path: &str, tar: &[u8]) {
    registry.replace(path, Reply::new(200, tar.to_vec()).end(End::Stall(1_200_000)));
    let (store, come) = (Store::open(folder, Limits::default()).unwrap(), tokio::sync::Notify::new());
    let note = |progress: Progress| {
        if progress.bytes_done >= 1_200_000 {
            come.notify_one();
        }
    };
    let (from, host) = (sources(registry), Platform::host());
    tokio::select! {
        pulled = store.pull(&from, digest, &host, &note) => panic!("{pulled:?}"),
        () = come.notified() => {}
    }
}

/// Opens the store again; the pull that was dropped may take a moment to let go of it.
async fn reopened(folder: &Path) -> Store {
    let root = folder.to_owned();
    tokio::task::spawn_blocking(move || Store::open(&root, Limits::default())).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_download_goes_on_after_a_restart() {
    let (registry, tar) = (Registry::start().await, large_layer());
    let path = format!("/v2/demo/web/blobs/{}", Digest::of(&tar));
    let digest = registry.add_image("demo/web", "1", &[(tar.clone(), tar.clone())]);
    let folder = tempfile::tempdir().unwrap();
    cut_short(folder.path(), &registry, &digest, &path, &tar).await;
    registry.replace(&path, Reply::new(206, tar.clone()));
    let again = reopened(folder.path()).await;
    assert_eq!(again.names("partial").unwrap(), [Digest::of(&tar).hex()]);
    let image = pull(&again, &registry, &digest).await.unwrap();
    assert_eq!(fs::read(image.layers[0].join("x")).unwrap().len(), 1_600_000);
    let ranges: Vec<_> = registry.seen().into_iter().filter(|seen| seen.path == path).map(|seen| seen.range).collect();
    let begin: u64 = ranges[1].as_ref().unwrap().trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    assert!(ranges.len() == 2 && (1_000_000..=1_200_000).contains(&begin), "{ranges:?}");
    assert!(again.names("partial").unwrap().is_empty());
}

#[tokio::test]
async fn a_partial_download_of_other_bytes_is_dropped_and_fetched_again() {
    let (registry, tar) = (Registry::start().await, large_layer());
    let path = format!("/v2/demo/web/blobs/{}", Digest::of(&tar));
    let digest = registry.add_image("demo/web", "1", &[(tar.clone(), tar.clone())]);
    let folder = tempfile::tempdir().unwrap();
    let mut other = tar.clone();
    other[600_000] ^= 1;
    cut_short(folder.path(), &registry, &digest, &path, &other).await;
    registry.replace(&path, Reply::new(206, tar.clone()));
    let again = reopened(folder.path()).await;
    let error = chain(&pull(&again, &registry, &digest).await.unwrap_err());
    assert!(error.contains("content with the digest sha256:"), "{error}");
    assert!(again.names("partial").unwrap().is_empty());
    registry.replace(&path, Reply::new(200, tar.clone()));
    pull(&again, &registry, &digest).await.unwrap();
}

#[tokio::test]
async fn a_mirror_that_fails_or_lies_is_passed_over() {
    let (mirror, registry) = (Registry::start().await, Registry::start().await);
    let layers = two_layers();
    let digest = registry.add_image("demo/web", "1", &layers);
    let both = || {
        let list = (client(&mirror), "cache/demo/web".to_owned());
        Sources::new(list, [(client(&registry), "demo/web".to_owned())]).with_first_wait(Duration::from_millis(1))
    };
    let (_folder, store) = self::store();
    let host = Platform::host();
    store.pull(&both(), &digest, &host, &|_| ()).await.unwrap();
    assert_eq!(mirror.count(&format!("/v2/cache/demo/web/manifests/{digest}")), 1);
    assert_eq!(mirror.seen().len(), 1, "the mirror was asked again: {:?}", mirror.seen());
    // Now the mirror has everything, but one layer of it is another.
    mirror.add_image("cache/demo/web", "1", &layers);
    let path = format!("/v2/cache/demo/web/blobs/{}", Digest::of(&layers[1].0));
    let mut lie = layers[1].0.clone();
    lie[20] ^= 1;
    mirror.replace(&path, Reply::new(200, lie));
    let (_folder, store) = self::store();
    store.pull(&both(), &digest, &host, &|_| ()).await.unwrap();
    assert_eq!(mirror.count(&path), 1);
}

#[tokio::test]
async fn what_the_registry_itself_says_is_reported_and_not_the_mirror() {
    let (mirror, registry) = (Registry::start().await, Registry::start().await);
    mirror.on(&format!("/v2/a/manifests/{}", Digest::of(b"x")), Reply::new(500, "mirror is ill"));
    let sources = Sources::new((client(&mirror), "a".to_owned()), [(client(&registry), "b".to_owned())]);
    let (_folder, store) = store();
    let pulled = store
        .pull(&sources.with_first_wait(Duration::from_millis(1)), &Digest::of(b"x"), &Platform::host(), &|_| ())
        .await;
    let error = chain(&pulled.unwrap_err());
    assert!(error.contains(&registry.address) && error.contains("404"), "{error}");
    assert_eq!(mirror.seen().len(), 6);
}

#[tokio::test]
async fn a_registry_in_trouble_is_asked_again_and_one_that_wants_much_patience_is_not() {
    let registry = Registry::start().await;
    let digest = registry.add_image("demo/web", "1", &two_layers());
    let path = format!("/v2/demo/web/manifests/{digest}");
    let good = registry.reply(&path);
    registry.replace(&path, Reply::new(503, "busy"));
    registry.on(&path, Reply::new(429, "slowly").header("retry-after", "0"));
    registry.on(&path, good);
    let (_folder, store) = self::store();
    pull(&store, &registry, &digest).await.unwrap();
    assert_eq!(registry.count(&path), 3);
    registry.replace(&path, Reply::new(429, "tomorrow").header("retry-after", "86400"));
    let (_folder, store) = self::store();
    let error = chain(&pull(&store, &registry, &digest).await.unwrap_err());
    assert!(error.contains("429") && error.contains("tomorrow"), "{error}");
    assert_eq!(registry.count(&path), 4);
}

#[tokio::test]
async fn a_registry_without_ranges_begins_again_and_what_is_there_is_skipped() {
    let registry = Registry::start().await;
    let tar = TarFile::new().file("x", &(0..200_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).bytes();
    let path = format!("/v2/demo/web/blobs/{}", Digest::of(&tar));
    let digest = registry.add_image("demo/web", "1", &[(tar.clone(), tar.clone())]);
    registry.replace(&path, Reply::new(200, tar.clone()).end(End::Cut(300_000)));
    registry.on(&path, Reply::new(200, tar.clone()));
    let (_folder, store) = store();
    pull(&store, &registry, &digest).await.unwrap();
    assert_eq!(registry.count(&path), 2);
}

#[tokio::test]
async fn a_pull_that_is_dropped_leaves_whole_layers_only() {
    let registry = Registry::start().await;
    let layers = two_layers();
    let digest = registry.add_image("demo/web", "1", &layers);
    let second = format!("/v2/demo/web/blobs/{}", Digest::of(&layers[1].0));
    registry.replace(&second, Reply::new(200, layers[1].0.clone()).end(End::Stall(50)));
    let (folder, first) = store();
    let placed = tokio::sync::Notify::new();
    let note = |progress: Progress| {
        if progress.layers_done == 1 && progress.bytes_done > 0 {
            placed.notify_one()
        }
    };
    let (from, host) = (sources(&registry), Platform::host());
    let mut pulling = Box::pin(first.pull(&from, &digest, &host, &note));
    tokio::select! {
        pulled = &mut pulling => panic!("{pulled:?}"),
        () = placed.notified() => {}
    }
    // What the running pull needs is spared, though nobody lists it.
    assert_eq!(first.collect(Goal::Everything).await.unwrap(), []);
    assert_eq!(first.names("layers").unwrap().len(), 1);
    drop(pulling);
    drop(first);
    let root = folder.path().to_owned();
    let again = tokio::task::spawn_blocking(move || Store::open(&root, Limits::default())).await.unwrap().unwrap();
    assert!(again.image(&digest).unwrap().is_none());
    assert_eq!(again.names("tmp").unwrap(), Vec::<String>::new());
    assert_eq!(again.names("layers").unwrap(), [Digest::of(&layers[0].1).hex()]);
    registry.replace(&second, Reply::new(200, layers[1].0.clone()));
    pull(&again, &registry, &digest).await.unwrap();
    assert_eq!(registry.count(&format!("/v2/demo/web/blobs/{}", Digest::of(&layers[0].0))), 1);
}

#[tokio::test]
async fn two_pulls_at_once_fetch_a_layer_once() {
    let registry = Registry::start().await;
    let layers = two_layers();
    let one = registry.add_image("demo/web", "1", &layers);
    let two = registry.add_image("demo/web", "2", &layers[..1]);
    let (_folder, store) = store();
    let (first, second, third) =
        tokio::join!(pull(&store, &registry, &one), pull(&store, &registry, &one), pull(&store, &registry, &two));
    assert_eq!(first.unwrap().layers, second.unwrap().layers);
    assert_eq!(third.unwrap().layers.len(), 1);
    for (blob, _) in &layers {
        assert_eq!(registry.count(&format!("/v2/demo/web/blobs/{}", Digest::of(blob))), 1);
    }
}

#[tokio::test]
async fn what_is_found_broken_is_fetched_again_alone() {
    let registry = Registry::start().await;
    let layers = two_layers();
    let digest = registry.add_image("demo/web", "1", &layers);
    let (folder, store) = store();
    let image = pull(&store, &registry, &digest).await.unwrap();
    fs::remove_dir_all(image.layers[1].parent().unwrap()).unwrap();
    assert!(store.image(&digest).unwrap().is_none());
    pull(&store, &registry, &digest).await.unwrap();
    let counts: Vec<_> =
        layers.iter().map(|(blob, _)| registry.count(&format!("/v2/demo/web/blobs/{}", Digest::of(blob)))).collect();
    assert_eq!(counts, [1, 2]);
    for name in store.names("blobs/sha256").unwrap() {
        fs::write(folder.path().join("blobs/sha256").join(&name), "damaged").unwrap();
        assert!(store.image(&digest).unwrap().is_none());
        assert!(folder.path().join("broken").join(&name).exists());
        pull(&store, &registry, &digest).await.unwrap();
    }
    fs::write(folder.path().join("images").join(digest.hex()), "no json").unwrap();
    assert!(store.image(&digest).unwrap().is_none());
    pull(&store, &registry, &digest).await.unwrap();
    assert!(store.image(&digest).unwrap().is_some());
}

#[tokio::test]
async fn space_is_checked_before_anything_is_fetched() {
    let registry = Registry::start().await;
    let tar = TarFile::new().bytes();
    let config = serde_json::json!({"architecture": Platform::host().architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar).to_string()]}})
    .to_string();
    let config_digest = registry.add_blob("demo/web", config.as_bytes());
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest.to_string(), "size": config.len()},
        "layers": [{"mediaType": LAYER, "digest": Digest::of(&tar).to_string(), "size": 1u64 << 60}]})
    .to_string();
    let digest = registry.add_manifest("demo/web", "1", MANIFEST, manifest.as_bytes());
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits { reserve: Some(5 << 20), ..Limits::default() }).unwrap();
    let error = pull(&store, &registry, &digest).await.unwrap_err().to_string();
    let needed = (1u64 << 60) + (5 << 20);
    assert!(error.contains(&format!("{needed} bytes are needed")), "{error}");
}

/// A small disk once refused every pull, because 64 MiB were to stay free on any.
#[tokio::test]
async fn a_small_disk_keeps_a_small_reserve() {
    let Some(disk) = SmallDisk::new("size=18944k") else { return };
    let registry = Registry::start().await;
    let images = [1, 2].map(|number| {
        let tar = TarFile::new().file("data", &vec![number; 9_300_000]).bytes();
        registry.add_image("demo/web", &number.to_string(), &[(tar.clone(), tar)])
    });
    let store = Store::open(disk.0.path(), Limits::default()).unwrap();
    pull(&store, &registry, &images[0]).await.unwrap();
    store.want(images);
    // There is room for the second, but not for a twentieth of the disk beside it.
    let error = pull(&store, &registry, &images[1]).await.unwrap_err().to_string();
    let needed = 9_300_000u64.next_multiple_of(512) + 1536 + 18944 * 1024 / 20;
    assert!(error.contains(&format!("{needed} bytes are needed")), "{error}");
}

#[tokio::test]
async fn a_disk_that_fills_up_is_an_error_with_a_name() {
    let Some(disk) = SmallDisk::new("size=1m") else { return };
    let registry = Registry::start().await;
    let tar = TarFile::new().file("large", &vec![1; 4 << 20]).bytes();
    let digest = registry.add_image("demo/web", "1", &[(gzip(&tar), tar)]);
    let store = Store::open(disk.0.path(), Limits { reserve: Some(0), ..Limits::default() }).unwrap();
    let error = pull(&store, &registry, &digest).await.unwrap_err();
    let full =
        matches!(&error, PullError::Layer { source: LayerError::Unpack(crate::unpack::UnpackError::Full { .. }), .. });
    assert!(full, "{error:?}");
    assert!(chain(&error).contains("entry \"large\": no space left"), "{}", chain(&error));
    assert_eq!(store.names("tmp").unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn manifests_of_other_things_are_refused() {
    let registry = Registry::start().await;
    let (_folder, store) = store();
    let schema1 = r#"{"schemaVersion":1,"fsLayers":[]}"#;
    let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let digest = registry.add_manifest("demo/web", "1", signed, schema1.as_bytes());
    let error = chain(&pull(&store, &registry, &digest).await.unwrap_err());
    assert!(error.contains(signed) && error.contains(&digest.to_string()), "{error}");
    let empty = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
    let artifact = r#"{"schemaVersion":2,"artifactType":"application/vnd.cncf.helm.config.v1+json","config":{
        "mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#;
    for (tag, media_type, text, part) in [
        ("2", MANIFEST, empty, "it is not a valid image manifest"),
        ("3", "text/html", "<html>Please log in", "sends \"text/html\" that is no JSON instead: <html>Please log in"),
        ("4", MANIFEST, artifact, "its media type \"application/vnd.cncf.helm.config.v1+json\" is not an image"),
        (
            "5",
            MANIFEST,
            &artifact.replace("artifactType", "x"),
            "its media type \"application/vnd.oci.empty.v1+json\" is not an image",
        ),
    ] {
        let digest = registry.add_manifest("demo/web", tag, media_type, text.as_bytes());
        let error = chain(&pull(&store, &registry, &digest).await.unwrap_err());
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_store_in_use_is_not_opened_twice() {
    let folder = tempfile::tempdir().unwrap();
    let _first = Store::open(folder.path(), Limits::default()).unwrap();
    assert!(matches!(lock_for(folder.path(), Duration::ZERO), Err(StoreError::InUse(_))));
}

#[tokio::test]
async fn configurations_are_read_as_docker_writes_them() {
    let tar = TarFile::new().file("x", b"y").bytes();
    let diff_id = Digest::of(&tar).to_string();
    let architecture = Platform::host().architecture;
    let nothing = serde_json::json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers",
        "diff_ids": [diff_id]}, "config": {"Cmd": null, "Entrypoint": null, "Env": null, "ExposedPorts": null, "Labels": null,
        "OnBuild": null, "StopSignal": null, "User": "", "Volumes": null, "WorkingDir": "", "Healthcheck": null},
        "history": null, "created": null, "container_config": {"Hostname": ""}, "docker_version": "20.10.7", "variant": null});
    let everything = serde_json::json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers",
        "diff_ids": [diff_id]}, "config": {"Hostname": "", "AttachStdin": false, "Cmd": ["a"], "Entrypoint": ["b"],
        "Env": ["A=b"], "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Labels": {"a": "b"}, "StopSignal": "SIGQUIT",
        "User": "app:staff", "Volumes": {"/data": {}}, "WorkingDir": "/app", "ArgsEscaped": true, "Shell": ["sh"],
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000u64, "Retries": 3}, "OnBuild": []},
        "created": "2024-01-02T03:04:05.678901234Z", "history": [{"created_by": "x", "empty_layer": true}]});
    let registry = Registry::start().await;
    let (_folder, store) = store();
    let mut images = Vec::new();
    for (tag, config) in [("1", nothing), ("2", everything)] {
        let config = config.to_string();
        let digest = |bytes: &[u8]| registry.add_blob("demo/web", bytes).to_string();
        let manifest = serde_json::json!({"schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": config.len(),
                "digest": digest(config.as_bytes())},
            "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": tar.len(),
                "digest": digest(&tar)}]});
        let kind = "application/vnd.docker.distribution.manifest.v2+json";
        let digest = registry.add_manifest("demo/web", tag, kind, manifest.to_string().as_bytes());
        images.push(pull(&store, &registry, &digest).await.unwrap());
    }
    let [nothing, everything] = [&images[0], &images[1]].map(|image| image.config.config().as_ref().unwrap());
    assert!(nothing.cmd().is_none() && nothing.volumes().is_none() && nothing.exposed_ports().is_none());
    assert_eq!(everything.user().as_deref(), Some("app:staff"));
    assert_eq!(everything.volumes().as_deref(), Some(&["/data".to_owned()][..]));
    assert_eq!(everything.exposed_ports().as_ref().map(Vec::len), Some(2));
    assert_eq!(everything.stop_signal().as_deref(), Some("SIGQUIT"));
    assert_eq!(everything.labels().as_ref().unwrap()["a"], "b");
}
