//! The HTTPS API in Kubernetes' shape: who may call it, and which handler a path leads to. Handlers read and
//! write objects; what follows from objects is the manager's business.

mod discovery;
mod error;
mod exec;
mod fleet;
mod logs;
mod objects;
mod patch;
mod pods;
mod query;
mod remote;
mod secrets;
mod table;
mod tokens;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use hyper::header::{AUTHORIZATION, WWW_AUTHENTICATE};

use crate::app::App;
use crate::secret;

pub(crate) use error::ApiError;
pub(crate) use table::{of as table, pod_reason};

/// Largest body that the API takes (as Kubernetes' API server).
pub(crate) const MAX_BODY: usize = 3 * 1024 * 1024;

/// Builds everything that people and their tools may call: the API and the registry.
pub(crate) fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/version", get(discovery::version))
        .route("/api", get(discovery::api))
        .route("/apis", get(discovery::apis))
        .route("/api/v1", get(discovery::core))
        .route("/apis/skeg.dev", get(discovery::group))
        .route("/apis/skeg.dev/v1", get(discovery::skeg))
        .route("/apis/skeg.dev/v1/jointokens", get(tokens::list).post(tokens::create))
        .route("/apis/skeg.dev/v1/nodes/{name}/{verb}", post(fleet::act))
        .route("/openapi/v3", get(discovery::openapi))
        .route("/openapi/v3/{*path}", get(discovery::openapi_paths))
        .route("/api/v1/namespaces/{namespace}/pods/{name}/exec", any(exec))
        .route("/api/v1/{*path}", any(objects::handle))
        .fallback(nothing)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(app.clone(), admin_only))
        .with_state(app.clone());
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(|| async { "ok" }))
        .merge(crate::registry::admin_router(app))
        .fallback_service(api)
}

async fn nothing(request: Request) -> ApiError {
    ApiError::not_found_path(request.uri().path())
}

async fn exec(
    State(app): State<Arc<App>>,
    Path((namespace, name)): Path<(String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    exec::serve(&app, &namespace, &name, request).await
}

async fn admin_only(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if is_admin(&app, request.headers()) { next.run(request).await } else { ApiError::unauthorized().into_response() }
}

/// Whether a request shows the admin's token, as a bearer or as the password of basic authentication.
pub(crate) fn is_admin(app: &App, headers: &HeaderMap) -> bool {
    let Some(text) = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) else { return false };
    let Some((scheme, credentials)) = text.split_once(' ') else { return false };
    if scheme.eq_ignore_ascii_case("bearer") {
        return secret::same(&app.admin_token, credentials.trim());
    }
    let decoded = STANDARD.decode(credentials.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    scheme.eq_ignore_ascii_case("basic")
        && decoded
            .as_deref()
            .and_then(|pair| pair.split_once(':'))
            .is_some_and(|(_, password)| secret::same(&app.admin_token, password))
}

/// Asks for basic authentication, as registry clients expect it.
pub(crate) fn ask_for_password(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"skeg\""));
    response
}
