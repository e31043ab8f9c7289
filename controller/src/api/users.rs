//! Who calls: the admin, people with tokens of their own, and service accounts. It knows who somebody is, never what
//! they may do (`authorize`).

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::AUTHORIZATION;
use hyper::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ApiError;
use super::error::Cause;
use super::objects::Ask;
use super::respond::answer;
use crate::app::App;
use crate::secret::{self, random_word, sha256};
use crate::store::{Key, Store, UserRecord};
use crate::time;

/// Longest life of a token of a service account.
const LONGEST: i64 = 366 * 24 * 3600;

/// Somebody who proved who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
}

impl User {
    fn new(name: &str, groups: &[String]) -> User {
        let mut groups = groups.to_vec();
        if let Some(account) = name.strip_prefix("system:serviceaccount:") {
            let namespace = account.split(':').next().unwrap_or_default();
            groups.extend(["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]);
        }
        groups.push("system:authenticated".to_owned());
        User { name: name.to_owned(), groups }
    }

    /// What reviews say of a user.
    pub(super) fn info(&self) -> Value {
        json!({"username": self.name, "groups": self.groups})
    }
}

/// The secret that a request shows: a bearer token, or the password of basic authentication.
fn shown(headers: &HeaderMap) -> Option<String> {
    let (scheme, credentials) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(credentials.trim().to_owned());
    }
    let decoded = STANDARD.decode(credentials.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok())?;
    let (_, password) = decoded.split_once(':').filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    Some(password.to_owned())
}

/// Whose token this is.
pub(super) fn of_token(app: &App, token: &str) -> Result<Option<User>, ApiError> {
    if secret::same(&app.admin_token, token) {
        return Ok(Some(User::new("admin", &["system:masters".to_owned()])));
    }
    let record = app.store.user(&sha256(token.as_bytes()))?;
    let valid = record.filter(|record| record.expires.is_none_or(|expires| time::now().as_second() < expires));
    Ok(valid.map(|record| User::new(&record.name, &record.groups)))
}

/// Lets in who is known, and says to the handlers who it is.
pub(super) async fn authenticate(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let user = shown(request.headers()).map(|token| of_token(&app, &token)).transpose();
    match user {
        Ok(Some(Some(user))) => {
            request.extensions_mut().insert(user);
            next.run(request).await
        }
        Ok(_) => ApiError::unauthorized().into_response(),
        Err(error) => error.into_response(),
    }
}

/// Whether a request shows the admin's token, as a bearer or as the password of basic authentication.
pub(crate) fn is_admin(app: &App, headers: &HeaderMap) -> bool {
    shown(headers).is_some_and(|token| secret::same(&app.admin_token, &token))
}

/// Makes a token for a service account.
pub(super) fn service_account_token(ask: &mut Ask, name: &str) -> Result<Response, ApiError> {
    let mut request = ask.object()?;
    ask.get(name)?;
    let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(3600);
    if !(600..=LONGEST).contains(&seconds) {
        let why = format!("may not be less than 10 minutes or more than {LONGEST} seconds");
        let cause = Cause::invalid("spec.expirationSeconds", &json!(seconds), &why);
        return Err(ApiError::causes("TokenRequest", name, &[cause]));
    }
    let user = format!("system:serviceaccount:{}:{name}", ask.target.namespace);
    let expires = time::now().as_second() + seconds;
    let token = make(&ask.app, &user, Vec::new(), Some(expires))?.1;
    request["kind"] = json!("TokenRequest");
    request["apiVersion"] = json!("authentication.k8s.io/v1");
    request["status"] = json!({"token": token, "expirationTimestamp": stamp(expires)});
    Ok(answer(StatusCode::CREATED, &request, &ask.warnings))
}

fn stamp(seconds: i64) -> Value {
    jiff::Timestamp::from_second(seconds).map_or(Value::Null, |at| json!(time::text(at)))
}

fn make(app: &App, name: &str, groups: Vec<String>, expires: Option<i64>) -> Result<(UserRecord, String), ApiError> {
    let token = random_word(40)?;
    let record =
        UserRecord { id: random_word(8)?, name: name.to_owned(), groups, created: time::now().as_second(), expires };
    app.store.add_user(&sha256(token.as_bytes()), &record)?;
    Ok((record, token))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Wanted {
    user: String,
    #[serde(default)]
    groups: Vec<String>,
    ttl_seconds: Option<i64>,
}

fn object(record: &UserRecord) -> Value {
    json!({
        "apiVersion": "skeg.dev/v1", "kind": "UserToken",
        "metadata": {"name": record.id, "creationTimestamp": stamp(record.created)},
        "spec": {"user": record.name, "groups": record.groups},
        "status": {"expires": record.expires.map(stamp)},
    })
}

/// Makes a token for a person; its text is in the answer and nowhere else.
pub(super) async fn create(State(app): State<Arc<App>>, body: Bytes) -> Result<Response, ApiError> {
    let sent: Value = serde_json::from_slice(&body).map_err(|error| ApiError::bad_request(error.to_string()))?;
    let wanted: Wanted = serde_json::from_value(sent["spec"].clone())
        .map_err(|error| ApiError::bad_request(format!("spec: {error}")))?;
    let reserved = wanted.user.is_empty() || wanted.user.starts_with("system:") || wanted.user == "admin";
    if reserved {
        let why = "must be a name that is not the controller's own (admin, system:…)";
        return Err(ApiError::causes("UserToken", "", &[Cause::invalid("spec.user", &json!(wanted.user), why)]));
    }
    if wanted.ttl_seconds.is_some_and(|seconds| seconds < 1) {
        let cause = Cause::invalid("spec.ttlSeconds", &json!(wanted.ttl_seconds), "must be at least 1");
        return Err(ApiError::causes("UserToken", "", &[cause]));
    }
    let expires = wanted.ttl_seconds.map(|seconds| time::now().as_second().saturating_add(seconds));
    let (record, token) = make(&app, &wanted.user, wanted.groups, expires)?;
    let mut made = object(&record);
    made["status"]["token"] = json!(token);
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Lists people's tokens without their secrets.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let items: Vec<Value> = app.store.users()?.iter().map(object).collect();
    Ok(Json(json!({"apiVersion": "skeg.dev/v1", "kind": "UserTokenList", "metadata": {}, "items": items})))
}

/// Takes a token back.
pub(super) async fn revoke(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    match app.store.remove_user(&id)? {
        true => Ok(Json(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}))),
        false => Err(ApiError::not_found("UserToken", &id)),
    }
}

/// Whether the account of a service account's token still exists is asked at each use.
pub(super) fn still_exists(app: &App, user: &User) -> Result<bool, ApiError> {
    let Some(account) = user.name.strip_prefix("system:serviceaccount:") else { return Ok(true) };
    let Some((namespace, name)) = account.split_once(':') else { return Ok(false) };
    Ok(app.store.get(&Key::new("ServiceAccount", namespace, name))?.is_some())
}
