//! A client of the OCI distribution API (distribution-spec 1.1): manifests and blobs, read only.
//!
//! Owns requests, credentials and tokens, redirects, and their bounds. It keeps nothing on disk: what it hands out
//! is for the store to verify and to keep (manifests are verified here, because they are whole in memory).

mod authorization;
mod challenge;
mod connection;
mod endpoint;
mod error;
mod login;
mod sources;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HOST, HeaderMap, LOCATION, RANGE, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};

use crate::digest::{Digest, Hasher};
use connection::Pool;
pub use endpoint::Endpoint;
pub use error::{Asked, ClientError};
pub use login::{Login, LoginError, Logins};
pub(crate) use sources::Attempt;
pub use sources::Sources;

use endpoint::Target;

/// Largest manifest or index that is read (distribution-spec asks registries for at least 4 MiB).
pub const MAX_MANIFEST: u64 = 4 << 20;
const MAX_REDIRECTS: usize = 5;
/// How much of an error's body is read.
const MAX_WORDS: usize = 1024;
/// A registry that sends less than this within the endpoint's stall time has stalled: one that gives a byte now and then
/// would hold a pull for ever.
const LEAST: u64 = 2048;

/// Every kind of manifest that the store understands, best first.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Reads from one registry over kept-alive HTTP/1.1 connections. Clones share connections and authorizations.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    endpoint: Endpoint,
    login: Option<Login>,
    pool: Pool,
    /// `Authorization` headers by repository; asked for again when the registry refuses one, as it does after a while.
    authorizations: Mutex<HashMap<String, String>>,
}

/// A manifest or index as the registry sent it, its bytes verified against its digest.
#[derive(Debug, Clone)]
pub struct RawManifest {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Content-Type of the answer, without parameters.
    pub media_type: String,
    /// The JSON text; the digest is over exactly these bytes.
    pub bytes: Bytes,
}

/// A blob on its way; nothing about it is verified.
pub struct Blob {
    body: Incoming,
    asked: Asked,
    /// Bytes to throw away, when the registry ignored the range that was asked for.
    skip: u64,
    /// How long the registry may take for [`LEAST`] bytes, how many of them have come, and how long that took. Time that
    /// the caller takes does not count.
    stall: Duration,
    come: u64,
    waited: Duration,
}

/// One request, until its answer is there.
struct Ask<'a> {
    method: Method,
    repository: &'a str,
    asked: Asked,
    accept: Option<&'static str>,
    offset: u64,
    /// A form to send.
    body: Option<String>,
}

impl<'a> Ask<'a> {
    fn get(repository: &'a str, asked: Asked) -> Ask<'a> {
        Ask { method: Method::GET, repository, asked, accept: None, offset: 0, body: None }
    }
}

impl Client {
    /// Makes a client without credentials; connects only when something is asked.
    pub fn new(endpoint: Endpoint) -> Client {
        Client::with_login(endpoint, None)
    }

    /// Makes a client that proves who it is when the registry asks for it.
    pub fn with_login(endpoint: Endpoint, login: Option<Login>) -> Client {
        let inner = Inner { endpoint, login, pool: Pool::default(), authorizations: Mutex::default() };
        Client(Arc::new(inner))
    }

    /// Returns the registry's name as errors show it.
    pub fn registry(&self) -> &str {
        &self.0.endpoint.name
    }

    /// Finds the digest that a tag (or a digest's text) means now, with a HEAD request.
    ///
    /// A registry that leaves out `Docker-Content-Digest` is asked for the manifest itself, which is then hashed.
    pub async fn resolve(&self, repository: &str, tag: &str) -> Result<Digest, ClientError> {
        let asked = self.asked(repository, format!("manifest {tag}"));
        let ask = Ask { method: Method::HEAD, accept: Some(MANIFEST_TYPES), ..Ask::get(repository, asked) };
        let response = match self.ask(ask, &format!("/v2/{repository}/manifests/{tag}")).await {
            // Some registries know no HEAD.
            Err(ClientError::Refused { status: StatusCode::METHOD_NOT_ALLOWED, .. }) => None,
            result => Some(result?),
        };
        let header = response.as_ref().and_then(|response| response.headers().get("docker-content-digest"));
        match header.and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok()) {
            Some(digest) => Ok(digest),
            None => Ok(self.manifest(repository, tag).await?.digest),
        }
    }

    /// Fetches a manifest or index by digest or tag; at most [`MAX_MANIFEST`] bytes.
    ///
    /// Asked for by digest, the bytes must have it ([`ClientError::Digest`]).
    pub async fn manifest(&self, repository: &str, reference: &str) -> Result<RawManifest, ClientError> {
        let asked = self.asked(repository, format!("manifest {reference}"));
        let ask = Ask { accept: Some(MANIFEST_TYPES), ..Ask::get(repository, asked.clone()) };
        let response = self.ask(ask, &format!("/v2/{repository}/manifests/{reference}")).await?;
        let media_type = content_type(response.headers());
        let bytes = self.collect(response.into_body(), MAX_MANIFEST, &asked).await?;
        if serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_err() {
            let start = &bytes[..bytes.len().min(MAX_WORDS)];
            return Err(ClientError::NotManifest {
                asked,
                media_type,
                body: error::cut(&String::from_utf8_lossy(start)),
            });
        }
        let digest = Digest::of(&bytes);
        match reference.parse::<Digest>() {
            Ok(wanted) if wanted != digest => Err(ClientError::Digest { asked, got: digest }),
            _ => Ok(RawManifest { digest, media_type, bytes }),
        }
    }

    /// Fetches a small blob (an image's configuration) whole and verifies it; at most `limit` bytes.
    pub async fn small_blob(&self, repository: &str, digest: &Digest, limit: u64) -> Result<Bytes, ClientError> {
        let blob = self.blob(repository, digest, 0).await?;
        let asked = blob.asked.clone();
        let bytes = self.collect(blob.body, limit, &asked).await?;
        let mut hasher = Hasher::new();
        hasher.update(&bytes);
        match hasher.finish() {
            got if got == *digest => Ok(bytes),
            got => Err(ClientError::Digest { asked, got }),
        }
    }

    /// Begins to fetch a blob from byte `offset` on; the caller verifies what comes.
    pub async fn blob(&self, repository: &str, digest: &Digest, offset: u64) -> Result<Blob, ClientError> {
        let asked = self.asked(repository, format!("blob {digest}"));
        let ask = Ask { offset, ..Ask::get(repository, asked.clone()) };
        let response = self.ask(ask, &format!("/v2/{repository}/blobs/{digest}")).await?;
        // A registry may ignore the range. No If-Range is needed: what has a digest for its name does not change.
        let skip = if response.status() == StatusCode::PARTIAL_CONTENT { 0 } else { offset };
        let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        if let Some(range) = range.filter(|range| skip == 0 && !range.starts_with(&format!("bytes {offset}-"))) {
            return Err(ClientError::Range { asked, wanted: offset, got: error::cut(range) });
        }
        Ok(Blob { skip, ..Blob::new(response.into_body(), self.0.endpoint.stall_timeout, &asked) })
    }

    fn asked(&self, repository: &str, what: String) -> Asked {
        Asked { registry: self.0.endpoint.name.as_str().into(), repository: repository.into(), what: what.into() }
    }

    /// Sends one request and follows tokens and redirects until it is answered with success.
    async fn ask(&self, ask: Ask<'_>, path: &str) -> Result<Response<Incoming>, ClientError> {
        let mut target = self.0.endpoint.target(path);
        let mut authorization = lock(&self.0.authorizations).get(ask.repository).cloned();
        let (mut redirects, mut authorised) = (0, false);
        loop {
            // Credentials are for the registry alone: storage that it redirects to never sees them.
            let own = self.0.endpoint.is_own(&target);
            let response = self.send(&ask, &target, authorization.as_deref().filter(|_| own)).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status.is_redirection() && status != StatusCode::NOT_MODIFIED {
                redirects += 1;
                if redirects > MAX_REDIRECTS {
                    return Err(ClientError::TooManyRedirects { asked: ask.asked });
                }
                let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or("");
                target = target.follow(location).ok_or_else(|| ClientError::Redirect {
                    asked: ask.asked.clone(),
                    location: error::cut(location),
                })?;
            } else if status == StatusCode::UNAUTHORIZED && own && !authorised {
                authorised = true;
                authorization = self.authorise(&ask, response.headers()).await?;
                if authorization.is_none() {
                    return Err(self.refusal(&ask, response).await);
                }
            } else {
                return Err(self.refusal(&ask, response).await);
            }
        }
    }

    /// Sends one request over a kept connection, or over a new one when the kept one turns out to be closed.
    async fn send(
        &self,
        ask: &Ask<'_>,
        target: &Target,
        authorization: Option<&str>,
    ) -> Result<Response<Incoming>, ClientError> {
        let request = || {
            let mut builder = Request::builder()
                .method(ask.method.clone())
                .uri(&target.path)
                .header(HOST, target.host_header())
                .header(USER_AGENT, concat!("skeg/", env!("CARGO_PKG_VERSION")));
            if let Some(accept) = ask.accept {
                builder = builder.header(ACCEPT, accept);
            }
            if let Some(authorization) = authorization {
                builder = builder.header(AUTHORIZATION, authorization);
            }
            if ask.offset > 0 {
                builder = builder.header(RANGE, format!("bytes={}-", ask.offset));
            }
            if ask.body.is_some() {
                builder = builder.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
            }
            builder.body(Full::from(ask.body.clone().unwrap_or_default()))
        };
        let make = || request().map_err(|source| ClientError::Request { asked: ask.asked.clone(), source });
        let stall = self.0.endpoint.stall_timeout;
        let timed_out = || ClientError::Stalled { asked: ask.asked.clone(), seconds: stall.as_secs_f32() };
        if let Some(mut kept) = self.0.pool.take(target) {
            let answer = tokio::time::timeout(stall, kept.send_request(make()?)).await.map_err(|_| timed_out())?;
            if let Ok(response) = answer {
                self.0.pool.keep(target, kept);
                return Ok(response);
            }
        }
        let mut fresh = connection::connect(&self.0.endpoint, target, &ask.asked).await?;
        let answer = tokio::time::timeout(stall, fresh.send_request(make()?)).await.map_err(|_| timed_out())?;
        let response = answer.map_err(|source| ClientError::Transfer { asked: ask.asked.clone(), source })?;
        self.0.pool.keep(target, fresh);
        Ok(response)
    }

    /// Reads a whole body into memory, bounded in size and in the time between two pieces.
    async fn collect(&self, body: Incoming, limit: u64, asked: &Asked) -> Result<Bytes, ClientError> {
        let mut blob = Blob::new(body, self.0.endpoint.stall_timeout, asked);
        let mut bytes = BytesMut::new();
        while let Some(chunk) = blob.chunk().await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(ClientError::TooLarge { asked: asked.clone(), limit });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }

    /// Reads the beginning of an error's body, for people.
    async fn first_words(&self, ask: &Ask<'_>, body: Incoming) -> String {
        let stall = self.0.endpoint.stall_timeout.min(Duration::from_secs(5));
        let mut blob = Blob::new(body, stall, &ask.asked);
        let mut text = Vec::new();
        while text.len() < MAX_WORDS {
            match blob.chunk().await {
                Ok(Some(chunk)) => text.extend_from_slice(&chunk),
                _ => break,
            }
        }
        text.truncate(MAX_WORDS);
        error::cut(&String::from_utf8_lossy(&text))
    }
}

impl Blob {
    fn new(body: Incoming, stall: Duration, asked: &Asked) -> Blob {
        Blob { body, asked: asked.clone(), skip: 0, stall, come: 0, waited: Duration::ZERO }
    }

    /// Waits for the next bytes; `None` at the end. Fails when next to nothing comes for the endpoint's stall time.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let began = tokio::time::Instant::now();
            let frame = tokio::time::timeout(self.stall.saturating_sub(self.waited), self.body.frame())
                .await
                .map_err(|_| ClientError::Stalled { asked: self.asked.clone(), seconds: self.stall.as_secs_f32() })?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|source| ClientError::Transfer { asked: self.asked.clone(), source })?;
            // Trailers are of no use here.
            let Ok(mut data) = frame.into_data() else { continue };
            self.come += data.len() as u64;
            self.waited += began.elapsed();
            if self.come >= LEAST {
                (self.come, self.waited) = (0, Duration::ZERO);
            }
            let skipped = self.skip.min(data.len() as u64);
            self.skip -= skipped;
            let rest = data.split_off(usize::try_from(skipped).unwrap_or(data.len()));
            if !rest.is_empty() {
                return Ok(Some(rest));
            }
        }
    }
}

fn content_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    text.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// Locks a map whose content is sound after any panic, because every change to it is one call.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
