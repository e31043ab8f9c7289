//! Images of other registries for devices that reach only their controller: what a device's pods need is fetched,
//! verified, kept, and given to the device by digest.
//!
//! Owns which device may have what: only images that its own manifest names, so that no device can make the
//! controller ask for anything else. What is kept lies in repositories `@host/name`, a name that nobody can push to.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::response::Response;
use hyper::{HeaderMap, Method, StatusCode};
use serde_json::Value;
use skeg_images::blobs::BlobError;
use skeg_images::{Client, ClientError, Digest, Logins, Reference};
use skeg_protocol::manifest::ImageSource;
use skeg_protocol::{Label, Manifest, Name};

use super::error::RegistryError;
use super::manifests::{MAX_MANIFEST, parts};
use super::name::Wanted;
use super::uploads::{Busy, MAX_BLOB};
use super::{Registry, blobs, manifests};
use crate::app::App;
use crate::images;
use crate::pull_secrets;
use crate::store::on_disk;

/// First letter of the repositories that keep what came from elsewhere.
pub(super) const KEPT: char = '@';

/// What a device asks for of another registry's image.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    reference: Reference,
    manifest: bool,
    digest: Digest,
    /// Namespace and name of the pull secrets of the pods that run from it.
    secrets: BTreeSet<(Label, Name)>,
}

/// Finds out whether a path (without its `/v2/`) means an image that the node's pods run from.
fn asked(node: &Manifest, path: &str) -> Option<Asked> {
    let images = node.pods.iter().flat_map(|pod| pod.containers.iter().map(move |container| (pod, &container.image)));
    let elsewhere = images.filter(|(_, image)| image.source == ImageSource::Registry);
    let mut found = elsewhere.filter_map(|(pod, image)| {
        let reference: Reference = image.reference.parse().ok()?;
        let rest = path.strip_prefix(reference.registry())?.strip_prefix('/')?;
        let (kind, digest) = rest.strip_prefix(reference.repository())?.strip_prefix('/')?.split_once('/')?;
        let manifest = match kind {
            "manifests" => true,
            "blobs" => false,
            _ => return None,
        };
        let secrets = pod.image_pull_secrets.iter().map(|name| (pod.namespace.clone(), name.clone())).collect();
        Some(Asked { manifest, digest: digest.parse().ok()?, reference, secrets })
    });
    let mut asked = found.next()?;
    for other in found {
        asked.secrets.extend(other.secrets);
    }
    Some(asked)
}

/// Answers a device that asks for another registry's image; `None` where it asks for something else.
pub(super) async fn answer(
    app: &Arc<App>,
    node: &str,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Option<Result<Response<Body>, RegistryError>> {
    let manifest = match app.store.newest_manifest(node) {
        Ok(manifest) => manifest,
        Err(error) => return Some(Err(error.into())),
    };
    let asked = asked(&manifest, path)?;
    let repository = format!("{KEPT}{}/{}", asked.reference.registry(), asked.reference.repository());
    // It goes on when the device hangs up, which may not wait as long as a slow registry takes.
    let (app, kept, wanted) = (app.clone(), repository.clone(), asked.clone());
    let registry = app.clone();
    let brought = tokio::spawn(async move { bring(&app, &kept, &wanted).await });
    let registry = &registry.registry;
    Some(match brought.await {
        Ok(Ok(())) if asked.manifest => {
            manifests::get(registry, &repository, &Wanted::Digest(asked.digest), method == Method::HEAD)
        }
        Ok(Ok(())) => blobs::get(registry, &repository, &asked.digest, headers, method == Method::HEAD),
        Ok(Err(error)) => Err(error),
        Err(error) => Err(RegistryError::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", error.to_string())),
    })
}

/// Makes sure that something of another registry's image is here.
async fn bring(app: &Arc<App>, repository: &str, asked: &Asked) -> Result<(), RegistryError> {
    let registry = &app.registry;
    let here = || -> Result<bool, RegistryError> {
        let known = registry.store.content(repository, &asked.digest.0)?.is_some();
        Ok(known && registry.blobs.size(&asked.digest)?.is_some())
    };
    // Devices of a fleet ask for the same at the same time: one asks the registry, the others wait.
    let _turn = registry.turn(&asked.digest).lock_owned().await;
    if here()? {
        // What is asked for stays longest.
        return Ok(registry.blobs.touch(&asked.digest)?);
    }
    let failed = |message: String| RegistryError::new(StatusCode::BAD_GATEWAY, "UNKNOWN", message);
    let mut logins = Logins::default();
    for (namespace, name) in &asked.secrets {
        // Those that are not there are told where the pod's tag is looked up, and by the device.
        logins.extend(pull_secrets::logins(&app.store, namespace, std::iter::once(name.as_str()))?.0);
    }
    let sources = images::sources(&asked.reference, &app.upstream, logins).map_err(failed)?;
    let mut last = None;
    for (client, name) in sources.list() {
        let fetched = match asked.manifest {
            true => fetch_manifest(registry, repository, client, name, &asked.digest).await,
            false => fetch_blob(registry, repository, client, name, &asked.digest).await,
        };
        match fetched {
            Err(Failure::Client(error)) => last = Some(error),
            Err(Failure::Here(error)) => return Err(error),
            Ok(()) => return Ok(()),
        }
    }
    match last {
        Some(error) if error.is_not_found() => {
            Err(RegistryError::manifest_unknown(&asked.reference.to_string(), &asked.digest.to_string()))
        }
        Some(error) => Err(failed(images::chain(&error))),
        None => Err(failed("there is no registry to ask".to_owned())),
    }
}

/// Whose fault it is that something did not come.
enum Failure {
    Client(ClientError),
    Here(RegistryError),
}

impl<E: Into<RegistryError>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Here(error.into())
    }
}

async fn fetch_manifest(
    registry: &Registry,
    repository: &str,
    client: &Client,
    name: &str,
    digest: &Digest,
) -> Result<(), Failure> {
    let raw = client.manifest(name, &digest.to_string()).await.map_err(Failure::Client)?;
    let own = serde_json::from_slice::<Value>(&raw.bytes).ok();
    let own = own.and_then(|manifest| manifest["mediaType"].as_str().map(str::to_owned));
    let media_type = own.unwrap_or(raw.media_type);
    if media_type.is_empty() {
        return Err(RegistryError::manifest_invalid(format!("{digest} has no media type")).into());
    }
    keep(registry, repository, digest, &media_type, || registry.blobs.put(&raw.bytes))
}

/// Fetches a blob into an upload of its own, which a broken transfer leaves for the next attempt.
async fn fetch_blob(
    registry: &Registry,
    repository: &str,
    client: &Client,
    name: &str,
    digest: &Digest,
) -> Result<(), Failure> {
    let id = digest.hex();
    let _busy = Busy::take(registry, &id)?;
    let mut writer = on_disk(|| registry.blobs.resume(&id).or_else(|_| registry.blobs.create(&id)))?;
    let mut blob = client.blob(name, digest, writer.size()).await.map_err(Failure::Client)?;
    while let Some(bytes) = blob.chunk().await.map_err(Failure::Client)? {
        if writer.size() + bytes.len() as u64 > MAX_BLOB {
            writer.abort()?;
            return Err(RegistryError::too_large(format!("a blob may have at most {MAX_BLOB} bytes")).into());
        }
        if let Err(error) = on_disk(|| writer.append(&bytes)) {
            writer.abort()?;
            return Err(error.into());
        }
    }
    keep(registry, repository, digest, "", || writer.finish(digest, None))
}

/// Puts something on the disk and notes that its repository has it, without a collection of garbage in between.
fn keep(
    registry: &Registry,
    repository: &str,
    digest: &Digest,
    media_type: &str,
    put: impl FnOnce() -> Result<Digest, BlobError>,
) -> Result<(), Failure> {
    on_disk(|| {
        let _ledger = registry.ledger();
        put()?;
        Ok(registry.store.add_content(repository, &digest.0, media_type, None)?)
    })
}

impl Registry {
    /// Forgets what was kept for devices, the longest unused first, until no more than `most` bytes are left. What
    /// images share counts for each of them.
    pub(super) fn forget_kept(&self, most: u64) -> Result<(), RegistryError> {
        let mut kept = Vec::new();
        for repository in self.store.repositories()?.into_iter().filter(|name| name.starts_with(KEPT)) {
            for (digest, media_type) in self.store.contents(&repository)? {
                let blob = Digest(digest);
                if media_type.is_empty() {
                    continue;
                }
                let Some(bytes) = self.blobs.read(&blob, MAX_MANIFEST as u64)? else { continue };
                let manifest: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                let mut size = bytes.len() as u64;
                for part in parts(&manifest, &media_type) {
                    let part = part.parse().ok();
                    size += part.map_or(Ok(None), |part| self.blobs.size(&part))?.unwrap_or(0);
                }
                let used = self.blobs.modified(&blob)?.unwrap_or(SystemTime::UNIX_EPOCH);
                kept.push((used, repository.clone(), digest, size));
            }
        }
        kept.sort();
        let mut total: u64 = kept.iter().map(|(_, _, _, size)| size).sum();
        for (_, repository, digest, size) in kept {
            if total <= most {
                break;
            }
            let _ledger = self.ledger();
            self.store.remove_content(&repository, &digest)?;
            total -= size;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skeg_protocol::manifest::Image;

    use super::*;

    #[test]
    fn a_device_gets_only_what_its_pods_run_from() {
        let object = json!({
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {"containers": [{"name": "c", "image": "127.0.0.1:5000/demo/web:1"}]},
        });
        let image = |_: usize, reference: &str| Image {
            reference: reference.to_owned(),
            digest: skeg_protocol::Digest([0; 32]),
            source: ImageSource::Registry,
        };
        let pod = crate::pods::convert(&object, image).unwrap();
        let node = Manifest { revision: 1, pods: vec![pod], ..Manifest::default() };
        let digest = Digest::of(b"x");
        let asked = |path: &str| asked(&node, path).map(|asked| (asked.manifest, asked.digest));
        assert_eq!(asked(&format!("127.0.0.1:5000/demo/web/manifests/{digest}")), Some((true, digest)));
        assert_eq!(asked(&format!("127.0.0.1:5000/demo/web/blobs/{digest}")), Some((false, digest)));
        for other in [
            format!("127.0.0.1:5000/demo/other/blobs/{digest}"),
            format!("127.0.0.1:5001/demo/web/blobs/{digest}"),
            format!("demo/web/blobs/{digest}"),
            "127.0.0.1:5000/demo/web/manifests/1".to_owned(),
            "127.0.0.1:5000/demo/web/tags/list".to_owned(),
            format!("127.0.0.1:5000/demo/web/blobs/uploads/{digest}"),
        ] {
            assert_eq!(asked(&other), None, "{other}");
        }
    }
}
