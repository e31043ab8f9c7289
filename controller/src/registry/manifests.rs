//! Manifests and tags: what is pushed must name only what is here, so that whatever has a tag can be pulled whole.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, Limited};
use hyper::StatusCode;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use serde_json::{Value, json};
use skeg_images::Digest;

use super::error::RegistryError;
use super::name::Wanted;
use super::{CONTENT_DIGEST, Registry, page};
use crate::app::App;
use crate::manager::Nudge;
use crate::store::on_disk;

/// Largest manifest in bytes (the specification asks for at least 4 MiB).
pub(super) const MAX_MANIFEST: usize = 4 << 20;
/// Kinds of manifests that list other manifests.
const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// Kinds of manifests that list layers.
const IMAGES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// Lists the tags of a repository.
pub(super) fn tags(
    registry: &Registry,
    repository: &str,
    query: Option<&str>,
) -> Result<Response<Body>, RegistryError> {
    let tags = registry.store.tags(repository)?;
    if tags.is_empty() && !registry.store.repositories()?.iter().any(|name| name == repository) {
        let message = format!("there is no repository {repository}");
        return Err(RegistryError::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", message));
    }
    page(tags, query, |tags| json!({"name": repository, "tags": tags}), &format!("/v2/{repository}/tags/list"))
}

fn find(registry: &Registry, repository: &str, reference: &Wanted) -> Result<(Digest, String), RegistryError> {
    let unknown = || RegistryError::manifest_unknown(repository, &reference.to_string());
    let digest = match reference {
        Wanted::Digest(digest) => *digest,
        Wanted::Tag(tag) => Digest(registry.store.tag(repository, tag)?.ok_or_else(unknown)?),
    };
    let media_type = registry.store.content(repository, &digest.0)?.filter(|media_type| !media_type.is_empty());
    Ok((digest, media_type.ok_or_else(unknown)?))
}

/// Gives a manifest, or only what is known about it.
pub(super) fn get(
    registry: &Registry,
    repository: &str,
    reference: &Wanted,
    head: bool,
) -> Result<Response<Body>, RegistryError> {
    let (digest, media_type) = find(registry, repository, reference)?;
    let bytes = registry.blobs.read(&digest, MAX_MANIFEST as u64)?;
    let bytes = bytes.ok_or_else(|| RegistryError::manifest_unknown(repository, &digest.to_string()))?;
    Response::builder()
        .header(CONTENT_TYPE, media_type)
        .header(CONTENT_LENGTH, bytes.len())
        .header(CONTENT_DIGEST, digest.to_string())
        .body(if head { Body::empty() } else { Body::from(bytes) })
        .map_err(|error| RegistryError::manifest_invalid(error.to_string()))
}

/// Takes a manifest whose parts are all here.
pub(super) async fn put(
    app: &Arc<App>,
    repository: &str,
    reference: &Wanted,
    request: Request,
) -> Result<Response<Body>, RegistryError> {
    let registry = &app.registry;
    let header = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let bytes = Limited::new(request.into_body(), MAX_MANIFEST).collect().await;
    let bytes = bytes
        .map_err(|error| RegistryError::too_large(format!("a manifest may have {MAX_MANIFEST} bytes: {error}")))?
        .to_bytes();
    let manifest: Value = serde_json::from_slice(&bytes)
        .map_err(|error| RegistryError::manifest_invalid(format!("the manifest is no JSON: {error}")))?;
    let media_type = media_type(&manifest, header.as_deref())?;
    let digest = Digest::of(&bytes);
    let tag = match reference {
        Wanted::Digest(wanted) if *wanted != digest => {
            return Err(RegistryError::digest_invalid(format!("the manifest has the digest {digest}, not {wanted}")));
        }
        Wanted::Digest(_) => None,
        Wanted::Tag(tag) => Some(tag.as_str()),
    };
    on_disk(|| {
        let _ledger = registry.ledger();
        check_parts(registry, repository, &manifest, &media_type)?;
        registry.blobs.put(&bytes)?;
        registry.store.add_content(repository, &digest.0, &media_type, tag)?;
        Ok::<_, RegistryError>(())
    })?;
    // A pod may be waiting for it.
    app.nudge(Nudge::Pushed);
    let place = format!("/v2/{repository}/manifests/{digest}");
    let mut response = (StatusCode::CREATED, [(LOCATION, place), (CONTENT_DIGEST, digest.to_string())]).into_response();
    if let Some(subject) = manifest["subject"]["digest"].as_str().and_then(|subject| subject.parse().ok()) {
        response.headers_mut().insert("oci-subject", subject);
    }
    Ok(response)
}

/// The kind of a manifest, as its own mediaType or the request says.
fn media_type(manifest: &Value, header: Option<&str>) -> Result<String, RegistryError> {
    if manifest["schemaVersion"] != 2 {
        return Err(RegistryError::manifest_invalid(format!(
            "schemaVersion must be 2, not {}",
            manifest["schemaVersion"]
        )));
    }
    let header = header.map(|header| header.split(';').next().unwrap_or_default().trim());
    let media_type = match (manifest["mediaType"].as_str(), header) {
        (Some(own), Some(header)) if own != header => {
            return Err(RegistryError::manifest_invalid(format!("mediaType is {own}, but Content-Type {header}")));
        }
        (Some(own), _) => own,
        (None, Some(header)) => header,
        (None, None) => return Err(RegistryError::manifest_invalid("neither mediaType nor Content-Type is there")),
    };
    match INDEXES.contains(&media_type) || IMAGES.contains(&media_type) {
        true => Ok(media_type.to_owned()),
        false => Err(RegistryError::manifest_invalid(format!("manifests of type {media_type} are not supported"))),
    }
}

/// The digests of everything that a manifest needs: manifests of an index, configuration and layers of an image.
pub(super) fn parts<'a>(manifest: &'a Value, media_type: &str) -> Vec<&'a str> {
    let list = |name: &str| manifest[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let digest = |part: &'a Value| part["digest"].as_str().unwrap_or_default();
    match INDEXES.contains(&media_type) {
        true => list("manifests").iter().map(digest).collect(),
        false => {
            // Layers with URLs of their own need not be here (image-spec, layer.md).
            let layers = list("layers").iter().filter(|layer| layer["urls"].as_array().is_none_or(Vec::is_empty));
            std::iter::once(&manifest["config"]).chain(layers).map(digest).collect()
        }
    }
}

/// Checks that the repository has everything that a manifest names.
fn check_parts(registry: &Registry, repository: &str, manifest: &Value, media_type: &str) -> Result<(), RegistryError> {
    let manifests = INDEXES.contains(&media_type);
    for text in parts(manifest, media_type) {
        let digest: Digest = text
            .parse()
            .map_err(|error| RegistryError::manifest_invalid(format!("a part of the manifest: {error}")))?;
        let known = registry.store.content(repository, &digest.0)?;
        if !known.is_some_and(|media_type| !manifests || !media_type.is_empty()) {
            let code = if manifests { "MANIFEST_UNKNOWN" } else { "MANIFEST_BLOB_UNKNOWN" };
            let message = format!("the manifest names {digest}, which {repository} does not have: push it first");
            return Err(RegistryError::new(StatusCode::NOT_FOUND, code, message));
        }
    }
    Ok(())
}

/// Takes a tag, or a manifest with its tags, from a repository.
pub(super) fn delete(
    registry: &Registry,
    repository: &str,
    reference: &Wanted,
) -> Result<Response<Body>, RegistryError> {
    {
        let _ledger = registry.ledger();
        let (digest, _) = find(registry, repository, reference)?;
        match reference {
            Wanted::Tag(tag) => registry.store.remove_tag(repository, tag)?,
            Wanted::Digest(_) => registry.store.remove_content(repository, &digest.0)?,
        };
    }
    on_disk(|| registry.sweep_now());
    Ok(StatusCode::ACCEPTED.into_response())
}
