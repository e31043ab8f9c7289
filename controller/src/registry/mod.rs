//! The controller's own image registry (OCI distribution-spec 1.1, `/v2/`): people push and pull with the admin's
//! token, devices pull with their enrolled keys. Bytes lie in `skeg_images`' blob folder, verified before they
//! have a name; which repository has what is in the store.

mod blobs;
mod collect;
mod error;
mod manifests;
mod name;
mod through;
mod uploads;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use hyper::header::{CONTENT_TYPE, HeaderName, LINK};
use hyper::{Method, StatusCode};
use serde_json::json;
use skeg_images::Digest;
use skeg_images::blobs::Blobs;

use crate::api;
use crate::app::App;
use crate::store::{Database, Key32};
use error::RegistryError;
use name::Place;

/// The header by which clients know that this is a registry.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// The digest of what an answer is about.
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// An unfinished upload that nobody wrote to for so long is dropped: pushes that were broken off must not use up the
/// places of others.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(3600);

/// The registry's blobs, and who is writing what.
#[derive(Debug)]
pub(crate) struct Registry {
    blobs: Arc<Blobs>,
    store: Arc<Database>,
    /// Uploads that a request is writing to right now.
    busy: Mutex<HashSet<String>>,
    /// When an unfinished upload was last written to.
    touched: Mutex<HashMap<String, Instant>>,
    /// One lock a digest that is being fetched from another registry.
    turns: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    /// Bytes of other registries' images that are kept for devices.
    kept_bytes: u64,
    /// Held while a blob gets or loses its last name, so that the two never cross.
    ledger: Mutex<()>,
}

impl Registry {
    /// Opens the folder. Uploads that an earlier process left unfinished are dropped: clients begin them again.
    pub(crate) fn open(root: &Path, store: Arc<Database>, kept_bytes: u64) -> Result<Self> {
        let open = || {
            let blobs = Blobs::open(root)?;
            blobs.uploads()?.iter().try_for_each(|id| blobs.remove_upload(id))?;
            Ok::<_, skeg_images::blobs::BlobError>(blobs)
        };
        let blobs = Arc::new(open().with_context(|| format!("cannot open the registry in {}", root.display()))?);
        Ok(Registry {
            blobs,
            store,
            busy: Mutex::default(),
            touched: Mutex::default(),
            turns: Mutex::default(),
            kept_bytes,
            ledger: Mutex::default(),
        })
    }

    /// The lock of a digest that is being fetched; it goes with its last holder.
    fn turn(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = turns.get(digest).and_then(Weak::upgrade).unwrap_or_default();
        turns.insert(*digest, Arc::downgrade(&turn));
        turn
    }

    fn ledger(&self) -> MutexGuard<'_, ()> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touched(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the uploads that nobody goes on with, and says how many unfinished ones are left.
    fn drop_stale_uploads(&self, now: Instant) -> Result<usize, skeg_images::blobs::BlobError> {
        let mut unfinished = self.blobs.uploads()?;
        let mut touched = self.touched();
        touched.retain(|id, _| unfinished.contains(id));
        let busy = self.busy();
        let stale = |id: &String, touched: &mut HashMap<String, Instant>| {
            let last = *touched.entry(id.clone()).or_insert(now);
            now.saturating_duration_since(last) > UPLOAD_PATIENCE && !busy.contains(id)
        };
        for id in unfinished.extract_if(.., |id| stale(id, &mut touched)) {
            self.blobs.remove_upload(&id)?;
        }
        Ok(unfinished.len())
    }

    fn busy(&self) -> MutexGuard<'_, HashSet<String>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registry for people.
pub(crate) fn admin_router(app: Arc<App>) -> Router {
    router(move |request| {
        let app = app.clone();
        async move {
            if !api::is_admin(&app, request.headers()) {
                return api::ask_for_password(RegistryError::unauthorized().into_response());
            }
            answer(&app, request).await
        }
    })
}

/// The registry for the device that has proved to hold `key`: read-only, and only while the key is enrolled.
pub(crate) fn device_router(app: Arc<App>, key: Key32) -> Router {
    router(move |request| {
        let app = app.clone();
        async move {
            let node = match app.store.node_of_key(&key) {
                Ok(Some(node)) => node,
                Ok(None) => return RegistryError::denied("this device's key is not enrolled here").into_response(),
                Err(error) => return RegistryError::from(error).into_response(),
            };
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                return RegistryError::denied("devices only read").into_response();
            }
            let path = request.uri().path().trim_start_matches("/v2/").to_owned();
            match through::answer(&app, &node, request.method(), &path, request.headers()).await {
                Some(answer) => answer.unwrap_or_else(RegistryError::into_response),
                None => answer(&app, request).await,
            }
        }
    })
}

/// Frees hourly what no manifest names, until the controller stops: what was too young when its manifest was deleted,
/// and what broken pushes have left.
pub(crate) async fn sweep_hourly(app: Arc<App>) {
    loop {
        let swept = app.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || swept.registry.sweep_now()).await {
            log::error!("registry: {error}");
        }
        tokio::select! {
            () = tokio::time::sleep(collect::GRACE) => {}
            () = app.stopped() => return,
        }
    }
}

fn router<F, A>(handler: F) -> Router
where
    F: Fn(Request) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response> + Send + 'static,
{
    let handler = move |request: Request| handler(request);
    Router::new()
        .route("/v2", any(handler.clone()))
        .route("/v2/", any(handler.clone()))
        .route("/v2/{*path}", any(handler))
}

async fn answer(app: &Arc<App>, request: Request) -> Response<Body> {
    let mut response = serve(app, request).await.unwrap_or_else(RegistryError::into_response);
    response.headers_mut().insert(API_VERSION, hyper::header::HeaderValue::from_static("registry/2.0"));
    response
}

async fn serve(app: &Arc<App>, request: Request) -> Result<Response<Body>, RegistryError> {
    let path = request.uri().path().strip_prefix("/v2").unwrap_or_default().trim_start_matches('/').to_owned();
    let (registry, method) = (&app.registry, request.method().clone());
    let reading = method == Method::GET || method == Method::HEAD;
    match Place::parse(&path)? {
        Place::Base if reading => Ok(json_answer(&json!({}))),
        Place::Catalog if reading => {
            let mut names = registry.store.repositories()?;
            names.retain(|name| !name.starts_with(through::KEPT));
            page(names, request.uri().query(), |names| json!({"repositories": names}), "/v2/_catalog")
        }
        Place::Tags { repository } if reading => manifests::tags(registry, &repository, request.uri().query()),
        Place::Manifest { repository, reference } => match method {
            Method::GET | Method::HEAD => manifests::get(registry, &repository, &reference, method == Method::HEAD),
            Method::PUT => manifests::put(app, &repository, &reference, request).await,
            Method::DELETE => manifests::delete(registry, &repository, &reference),
            _ => Err(RegistryError::method()),
        },
        Place::Blob { repository, digest } => match method {
            Method::GET | Method::HEAD => {
                blobs::get(registry, &repository, &digest, request.headers(), method == Method::HEAD)
            }
            Method::DELETE => blobs::delete(registry, &repository, &digest),
            _ => Err(RegistryError::method()),
        },
        Place::Uploads { repository } if method == Method::POST => uploads::begin(registry, &repository, request).await,
        Place::Upload { repository, id } => match method {
            Method::GET => uploads::progress(registry, &repository, &id),
            Method::PATCH => uploads::append(registry, &repository, &id, request).await,
            Method::PUT => uploads::finish(registry, &repository, &id, request).await,
            Method::DELETE => uploads::cancel(registry, &id),
            _ => Err(RegistryError::method()),
        },
        _ => Err(RegistryError::method()),
    }
}

/// Answers with as much of a sorted list as the query asks for (distribution-spec, "Listing Tags"), and with the way
/// to the rest.
fn page(
    mut names: Vec<String>,
    query: Option<&str>,
    answer: impl FnOnce(&[String]) -> serde_json::Value,
    path: &str,
) -> Result<Response<Body>, RegistryError> {
    if let Some(last) = uploads::parameter(query, "last") {
        names.retain(|name| *name > last);
    }
    let Some(most) = uploads::parameter(query, "n") else { return Ok(json_answer(&answer(&names))) };
    let wrong = |_| RegistryError::new(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", format!("n={most}"));
    let most = most.parse::<usize>().map_err(wrong)?;
    let more = names.len() > most;
    names.truncate(most);
    let mut response = json_answer(&answer(&names));
    // The names of repositories and tags need no escapes in a URL.
    if let Some(last) = names.last().filter(|_| more)
        && let Ok(link) = format!("<{path}?n={most}&last={last}>; rel=\"next\"").parse()
    {
        response.headers_mut().insert(LINK, link);
    }
    Ok(response)
}

fn json_answer(value: &serde_json::Value) -> Response<Body> {
    (StatusCode::OK, [(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_in_pages() {
        let names = || ["a", "b", "c"].map(str::to_owned).to_vec();
        let ask = |query| {
            let mut told = Vec::new();
            let answer = |names: &[String]| {
                told = names.to_vec();
                json!(names)
            };
            let response = page(names(), query, answer, "/v2/_catalog").unwrap();
            let link = response.headers().get(LINK).map(|link| link.to_str().unwrap().to_owned());
            (link, told.concat())
        };
        assert_eq!(ask(None), (None, "abc".to_owned()));
        let next = Some("</v2/_catalog?n=2&last=b>; rel=\"next\"".to_owned());
        assert_eq!(ask(Some("n=2")), (next, "ab".to_owned()));
        assert_eq!(ask(Some("n=2&last=b")), (None, "c".to_owned()));
        assert_eq!(ask(Some("n=0")), (None, String::new()));
        assert!(page(names(), Some("n=x"), |names| json!(names), "/").is_err());
    }

    #[test]
    fn an_upload_that_was_given_up_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Database::open(&folder.path().join("store.redb"), &[7; 32]).unwrap());
        let registry = Registry::open(&folder.path().join("registry"), store, 0).unwrap();
        drop(registry.blobs.create("a1").unwrap());
        drop(registry.blobs.create("b2").unwrap());
        let begin = Instant::now();
        assert_eq!(registry.drop_stale_uploads(begin).unwrap(), 2);
        registry.busy().insert("b2".to_owned());
        assert_eq!(registry.drop_stale_uploads(begin + UPLOAD_PATIENCE).unwrap(), 2);
        let late = begin + UPLOAD_PATIENCE + Duration::from_secs(1);
        assert_eq!(registry.drop_stale_uploads(late).unwrap(), 1);
        assert_eq!(registry.blobs.uploads().unwrap(), ["b2"]);
    }
}
