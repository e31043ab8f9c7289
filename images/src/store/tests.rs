//! Pulls from a registry on loopback: honest ones, interrupted ones, and ones that are lied to.

use super::*;
use crate::client::{Client, ClientError, Endpoint};
use crate::platform::{NoPlatform, Platform};
use crate::testing::*;

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    (folder, store)
}

fn client(registry: &Registry) -> Client {
    let endpoint = Endpoint::for_registry(&registry.address, true).unwrap();
    Client::new(endpoint.with_timeouts(Duration::from_secs(10), Duration::from_secs(10)))
}

async fn pull(store: &Store, registry: &Registry, digest: &Digest) -> Result<Image, PullError> {
    store.pull(&client(registry), "demo/web", digest, &Platform::host(), &|_| ()).await
}

/// An error with all its sources, as a user sees it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

fn two_layers() -> [(Vec<u8>, Vec<u8>); 2] {
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
    let image = store.pull(&client(&registry), "demo/web", &digest, &Platform::host(), &note).await.unwrap();
    let last = steps.lock().unwrap().last().copied().unwrap();
    assert_eq!((last.layers, last.layers_done, last.bytes_done), (2, 2, last.bytes));
    assert_eq!(fs::read(image.layers[0].join("etc/name")).unwrap(), b"base");
    assert_eq!(fs::read(image.layers[1].join("etc/name")).unwrap(), b"top");
    assert_eq!(image.config.config().as_ref().unwrap().cmd().as_deref(), Some(&["/bin/true".to_owned()][..]));
    drop(store);
    let again = Store::open(folder.path()).unwrap();
    assert_eq!(again.image(&digest).unwrap().unwrap().layers, image.layers);
    assert_eq!(again.images().unwrap(), [digest]);
    assert!(fs::read_dir(folder.path().join("tmp")).unwrap().next().is_none());
}
