//! Pushing a blob: in one request, or in pieces that can be resumed.

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::header::{CONTENT_RANGE, LOCATION, RANGE};
use skeg_images::Digest;

use super::error::RegistryError;
use super::name::{digest, is_repository};
use super::{CONTENT_DIGEST, Registry};
use crate::secret::random_word;
use crate::store::on_disk;

/// Largest blob in bytes.
pub(super) const MAX_BLOB: u64 = 32 << 30;
/// Uploads that may be unfinished at the same time.
const MAX_UPLOADS: usize = 256;

/// One upload, to which only one request writes at a time.
pub(super) struct Busy<'a> {
    registry: &'a Registry,
    id: String,
}

impl<'a> Busy<'a> {
    pub(super) fn take(registry: &'a Registry, id: &str) -> Result<Self, RegistryError> {
        match registry.busy().insert(id.to_owned()) {
            true => Ok(Busy { registry, id: id.to_owned() }),
            false => Err(RegistryError::upload_invalid(format!("another request is writing to upload {id}"))),
        }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.registry.busy().remove(&self.id);
        self.registry.touched().insert(std::mem::take(&mut self.id), std::time::Instant::now());
    }
}

/// A value of a query, percent-decoded.
pub(super) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let value = query?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok()
}

fn created(repository: &str, digest: &Digest) -> Response<Body> {
    let place = format!("/v2/{repository}/blobs/{digest}");
    (StatusCode::CREATED, [(LOCATION, place), (CONTENT_DIGEST, digest.to_string())]).into_response()
}

/// Says how far an upload is.
fn accepted(status: StatusCode, repository: &str, id: &str, size: u64) -> Response<Body> {
    let place = format!("/v2/{repository}/blobs/uploads/{id}");
    let mut response = (status, [(LOCATION, place), (RANGE, format!("0-{}", size.saturating_sub(1)))]).into_response();
    if let Ok(id) = id.parse() {
        response.headers_mut().insert("docker-upload-uuid", id);
    }
    response
}

/// Begins an upload, or makes do with what another repository has, or takes the whole blob at once.
pub(super) async fn begin(
    registry: &Registry,
    repository: &str,
    request: Request,
) -> Result<Response<Body>, RegistryError> {
    if let (Some(mount), Some(from)) =
        (parameter(request.uri().query(), "mount"), parameter(request.uri().query(), "from"))
    {
        let mount = digest(&mount)?;
        let _ledger = registry.ledger();
        if is_repository(&from) && registry.store.content(&from, &mount.0)?.is_some() {
            registry.store.add_content(repository, &mount.0, "", None)?;
            registry.blobs.touch(&mount)?;
            return Ok(created(repository, &mount));
        }
    }
    if registry.drop_stale_uploads(std::time::Instant::now())? >= MAX_UPLOADS {
        let message = format!("{MAX_UPLOADS} uploads are unfinished: finish or cancel some");
        return Err(RegistryError::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", message));
    }
    let failed =
        |error: anyhow::Error| RegistryError::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", error.to_string());
    let id = random_word(32).map_err(failed)?;
    drop(registry.blobs.create(&id)?);
    match parameter(request.uri().query(), "digest") {
        Some(_) => finish(registry, repository, &id, request).await,
        None => Ok(accepted(StatusCode::ACCEPTED, repository, &id, 0)),
    }
}

/// Says how far an upload is.
pub(super) fn progress(registry: &Registry, repository: &str, id: &str) -> Result<Response<Body>, RegistryError> {
    let _busy = Busy::take(registry, id)?;
    let size = on_disk(|| registry.blobs.resume(id))?.size();
    Ok(accepted(StatusCode::NO_CONTENT, repository, id, size))
}

/// Gives an upload up.
pub(super) fn cancel(registry: &Registry, id: &str) -> Result<Response<Body>, RegistryError> {
    let _busy = Busy::take(registry, id)?;
    registry.blobs.resume(id)?.abort()?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Adds the body of a request to an upload. On a full disk the upload is given up, so that it frees its space.
async fn receive<'a>(
    registry: &'a Registry,
    id: &str,
    request: Request,
) -> Result<skeg_images::blobs::Writer<'a>, RegistryError> {
    let mut writer = on_disk(|| registry.blobs.resume(id))?;
    if let Some(range) = request.headers().get(CONTENT_RANGE) {
        let text = range.to_str().unwrap_or_default();
        let start = text.trim_start_matches("bytes ").split('-').next().and_then(|start| start.parse::<u64>().ok());
        if start != Some(writer.size()) {
            let message = format!("the piece {text} does not follow on the {} bytes that are here", writer.size());
            return Err(RegistryError::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message));
        }
    }
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| RegistryError::upload_invalid(format!("the upload broke off: {error}")))?;
        let Ok(bytes) = frame.into_data() else { continue };
        if writer.size() + bytes.len() as u64 > MAX_BLOB {
            writer.abort()?;
            return Err(RegistryError::too_large(format!("a blob may have at most {MAX_BLOB} bytes")));
        }
        if let Err(error) = on_disk(|| writer.append(&bytes)) {
            writer.abort()?;
            return Err(error.into());
        }
    }
    Ok(writer)
}

/// Takes a piece.
pub(super) async fn append(
    registry: &Registry,
    repository: &str,
    id: &str,
    request: Request,
) -> Result<Response<Body>, RegistryError> {
    let _busy = Busy::take(registry, id)?;
    let size = receive(registry, id, request).await?.size();
    Ok(accepted(StatusCode::ACCEPTED, repository, id, size))
}

/// Takes the last piece, verifies the whole and gives it its name.
pub(super) async fn finish(
    registry: &Registry,
    repository: &str,
    id: &str,
    request: Request,
) -> Result<Response<Body>, RegistryError> {
    let wanted = parameter(request.uri().query(), "digest");
    let wanted = digest(&wanted.ok_or_else(|| RegistryError::digest_invalid("the digest is missing"))?)?;
    let _busy = Busy::take(registry, id)?;
    let writer = receive(registry, id, request).await?;
    on_disk(|| {
        let _ledger = registry.ledger();
        writer.finish(&wanted, None)?;
        registry.store.add_content(repository, &wanted.0, "", None)?;
        Ok::<_, RegistryError>(())
    })?;
    Ok(created(repository, &wanted))
}
