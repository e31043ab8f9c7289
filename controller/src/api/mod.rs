//! The HTTPS API in Kubernetes' shape: who may call it, and which handler a path leads to. Handlers read and
//! write objects; what follows from objects is the manager's business.

mod admit;
mod audit;
mod authorize;
mod body;
mod change;
mod create;
mod delete;
mod discovery;
mod error;
mod exec;
mod fleet;
pub(crate) mod kinds;
mod logs;
mod objects;
mod parts;
mod patch;
mod query;
mod remote;
mod respond;
mod reviews;
mod schema;
mod table;
mod target;
mod tokens;
mod users;
mod watch;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete as remove, get, post};
use hyper::Method;
use hyper::header::{HeaderValue, WWW_AUTHENTICATE};

use crate::app::App;
use authorize::Deed;
use target::Target;
use users::User;

pub(crate) use audit::Audit;
pub(crate) use create::prepare;
pub(crate) use delete::{FOREGROUND, ORPHAN, Options as DeleteOptions, delete};
pub(crate) use error::ApiError;
pub(crate) use table::{of as table, pod_reason};
pub(crate) use users::is_admin;

/// Largest body that the API takes (as Kubernetes' API server).
pub(crate) const MAX_BODY: usize = 3 * 1024 * 1024;

/// Builds everything that people and their tools may call: the API and the registry.
pub(crate) fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        // Some clients write these with a slash at the end.
        .route("/version/", get(discovery::version))
        .route("/api/", get(discovery::api))
        .route("/apis/", get(discovery::apis))
        .route("/api/v1/", get(discovery::core))
        .route("/apis/{group}/", get(discovery::group))
        .route("/apis/{group}/{version}/", get(discovery::group_version))
        .route("/version", get(discovery::version))
        .route("/api", get(discovery::api))
        .route("/apis", get(discovery::apis))
        .route("/api/v1", get(discovery::core))
        .route("/apis/{group}", get(discovery::group))
        .route("/apis/{group}/{version}", get(discovery::group_version))
        .route("/apis/skeg.dev/v1/jointokens", get(tokens::list).post(tokens::create))
        .route("/apis/skeg.dev/v1/jointokens/{id}", remove(tokens::revoke))
        .route("/apis/skeg.dev/v1/pendingnodes", get(fleet::pending))
        .route("/apis/skeg.dev/v1/usertokens", get(users::list).post(users::create))
        .route("/apis/skeg.dev/v1/usertokens/{id}", remove(users::revoke))
        .route("/openapi/v2", get(discovery::openapi_v2))
        .route("/openapi/v3", get(discovery::openapi_v3))
        .route("/openapi/v3/{*path}", get(discovery::openapi_v3_of))
        .route("/apis/skeg.dev/v1/nodes/{name}/{verb}", post(fleet::act))
        .route("/api/v1/namespaces/{namespace}/pods/{name}/exec", any(exec))
        .route("/api/v1/{*path}", any(objects::handle))
        .route("/apis/{group}/{version}/{*path}", any(objects::handle))
        .fallback(nothing)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(app.clone(), authorized))
        .layer(middleware::from_fn_with_state(app.clone(), users::authenticate))
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

/// What a request would do.
fn deed_of(request: &Request) -> Deed {
    let (path, method) = (request.uri().path(), request.method());
    let watch = request.uri().query().is_some_and(|query| {
        form_urlencoded::parse(query.as_bytes())
            .any(|(name, value)| name == "watch" && !matches!(&*value, "0" | "false"))
    });
    let verb = |named: bool| match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ if named => "get",
        _ if watch => "watch",
        _ => "list",
    };
    if let Some(target) = Target::parse(path) {
        let connects = matches!(target.part(), "exec" | "attach" | "portforward");
        let verb = if connects { "create" } else { verb(target.name.is_some()) };
        let part = target.part.as_deref().map_or_else(String::new, |part| format!("/{part}"));
        return Deed {
            verb: verb.to_owned(),
            group: target.kind.group.to_owned(),
            resource: format!("{}{part}", target.kind.plural),
            namespace: match target.kind.kind {
                // A namespace is in itself, so that its own rules can speak of it.
                "Namespace" => target.name.clone().unwrap_or_default(),
                _ => target.namespace.clone(),
            },
            name: target.name.unwrap_or_default(),
            path: String::new(),
        };
    }
    let words: Vec<&str> = path.trim_matches('/').split('/').collect();
    if let ["apis", "skeg.dev", "v1", resource, name @ ..] = words.as_slice() {
        return Deed {
            verb: verb(!name.is_empty()).to_owned(),
            group: "skeg.dev".to_owned(),
            resource: (*resource).to_owned(),
            name: name.concat(),
            ..Deed::default()
        };
    }
    Deed { verb: method.as_str().to_lowercase(), path: path.to_owned(), ..Deed::default() }
}

/// Lets through what the user may do, and notes what was changed.
async fn authorized(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let Some(user) = request.extensions().get::<User>().cloned() else {
        return ApiError::unauthorized().into_response();
    };
    let deed = deed_of(&request);
    let allowed = match users::still_exists(&app, &user) {
        Ok(true) => authorize::check(&app, &user, &deed),
        Ok(false) => Err(ApiError::unauthorized()),
        Err(error) => Err(error),
    };
    let response = match allowed {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    app.audit.note(&user, &deed, response.status().as_u16());
    response
}

/// Asks for basic authentication, as registry clients expect it.
pub(crate) fn ask_for_password(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"skeg\""));
    response
}
