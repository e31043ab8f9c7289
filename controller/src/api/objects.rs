//! Every request for objects, one path shape for all kinds: which handler it goes to.

use std::sync::Arc;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Query as Parameters, State};
use axum::response::Response;
use hyper::{HeaderMap, Method, StatusCode, Uri};
use serde_json::{Value, json};

use super::query::{Query, Selector, flag};
use super::respond::{View, answer};
use super::target::Target;
use super::users::User;
use super::{ApiError, body, change, create, delete, logs, parts, patch, reviews, watch};
use crate::app::App;
use crate::store::{Key, Store};
use crate::time;

/// A request for objects.
pub(super) struct Ask {
    pub(super) app: Arc<App>,
    pub(super) user: User,
    pub(super) target: Target,
    pub(super) query: Query,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// What the client is told beside the answer.
    pub(super) warnings: Vec<String>,
}

/// Serves every request for objects.
pub(super) async fn handle(
    State(app): State<Arc<App>>,
    Extension(user): Extension<User>,
    method: Method,
    uri: Uri,
    Parameters(query): Parameters<Query>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let target = Target::parse(uri.path()).ok_or_else(|| ApiError::not_found_path(uri.path()))?;
    let mut ask = Ask { app, user, target, query, headers, body, warnings: Vec::new() };
    if ask.target.part() == "log" && method == Method::GET {
        let name = ask.target.name.clone().unwrap_or_default();
        return logs::stream(&ask.app, &ask.target.namespace, &name, &ask.query).await;
    }
    ask.serve(&method)
}

impl Ask {
    fn serve(&mut self, method: &Method) -> Result<Response, ApiError> {
        let name = self.target.name.clone();
        if !self.target.kind.form.is_kept() {
            return match (method, name) {
                (&Method::POST, None) => reviews::answer_to(self),
                _ => Err(ApiError::method()),
            };
        }
        match (method, name, self.target.part()) {
            (&Method::GET, None, _) if flag(self.query.watch.as_ref()) => watch::stream(self),
            (&Method::GET, None, _) => self.list(),
            (&Method::GET, Some(name), "" | "status") => {
                let object = self.get(&name)?;
                Ok(self.answer(StatusCode::OK, &object))
            }
            (&Method::POST, None, _) => {
                let object = self.object()?;
                let made = create::create(self, object)?;
                Ok(self.answer(StatusCode::CREATED, &made))
            }
            (&Method::PUT, Some(name), "" | "status" | "finalize") => {
                let object = self.object()?;
                let changed = change::replace(self, &name, object)?;
                Ok(self.answer(StatusCode::OK, &changed))
            }
            (&Method::PATCH, Some(name), "" | "status") => {
                let (code, changed) = change::patch(self, &name)?;
                Ok(self.answer(code, &changed))
            }
            (&Method::DELETE, Some(name), "") => delete::one(self, &name),
            (&Method::DELETE, None, _) => delete::many(self),
            (_, Some(name), "scale" | "binding" | "eviction" | "token") => parts::serve(self, method, &name),
            _ => Err(ApiError::method()),
        }
    }

    /// The key of an object.
    pub(super) fn key(&self, name: &str) -> Key {
        self.target.key(name)
    }

    /// An object that must be there.
    pub(super) fn get(&self, name: &str) -> Result<Value, ApiError> {
        let object = self.app.store.get(&self.key(name))?;
        object.ok_or_else(|| ApiError::not_found(self.target.kind.kind, name))
    }

    /// The object that the request carries.
    pub(super) fn object(&mut self) -> Result<Value, ApiError> {
        body::object(&self.target, &self.query, &self.headers, &self.body, &mut self.warnings)
    }

    /// Whether the request is only tried.
    pub(super) fn is_dry_run(&self) -> bool {
        self.query.dry_run.as_deref().is_some_and(|text| !text.is_empty())
    }

    /// Whoever makes the change, for `managedFields`: as the client says, else the name of its program.
    pub(super) fn manager_name(&self) -> String {
        let agent = self.headers.get(hyper::header::USER_AGENT).and_then(|value| value.to_str().ok());
        let program = agent.and_then(|agent| agent.split(['/', ' ']).next()).filter(|name| !name.is_empty());
        let name = self.query.field_manager.as_deref().filter(|name| !name.is_empty()).or(program);
        name.unwrap_or("unknown").chars().take(128).collect()
    }

    /// Calls `work` with the manager of the change.
    pub(super) fn with_manager<T>(&self, work: impl FnOnce(&patch::Manager<'_>) -> T) -> T {
        let (name, api_version) = (self.manager_name(), self.target.kind.api_version());
        let now = time::text(time::now());
        let part = if self.target.part() == "finalize" { "" } else { self.target.part() };
        work(&patch::Manager { name: &name, api_version: &api_version, part, now: &now })
    }

    /// Answers with an object of this kind.
    pub(super) fn answer(&self, code: StatusCode, object: &Value) -> Response {
        let body = View::of(&self.headers).object(self.target.kind.kind, object);
        answer(code, &body, &self.warnings)
    }

    fn list(&self) -> Result<Response, ApiError> {
        let kind = self.target.kind;
        let selector = Selector::parse(kind.kind, &self.query)?;
        let namespace = Some(self.target.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let mut list = self.app.store.list(kind.kind, namespace)?;
        list.items.retain(|object| selector.matches(object));
        if let Some(after) = self.query.resume.as_deref().filter(|text| !text.is_empty()) {
            let after = place::read(after)?;
            list.items.retain(|object| place::of(object) > after);
        }
        let mut metadata = json!({"resourceVersion": list.revision.to_string()});
        if let Some(limit) = self.query.limit.filter(|limit| *limit > 0 && *limit < list.items.len()) {
            let rest = list.items.split_off(limit);
            metadata["continue"] = json!(list.items.last().map(|last| place::write(&place::of(last))));
            if selector.is_empty() {
                metadata["remainingItemCount"] = json!(rest.len());
            }
        }
        let body = View::of(&self.headers).list(kind.kind, &kind.api_version(), list.items, &metadata);
        Ok(answer(StatusCode::OK, &body, &self.warnings))
    }
}

/// Where a list that was given in pieces goes on: after an object's namespace and name. Pieces that follow show the
/// objects as they are by then (what Kubernetes calls an inconsistent continuation).
mod place {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::{Value, json};

    use crate::api::ApiError;

    pub(super) type Place = (String, String);

    pub(super) fn of(object: &Value) -> Place {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        (text("namespace"), text("name"))
    }

    pub(super) fn write(place: &Place) -> String {
        URL_SAFE_NO_PAD.encode(json!({"v": "meta.k8s.io/v1", "start": [place.0, place.1]}).to_string())
    }

    pub(super) fn read(token: &str) -> Result<Place, ApiError> {
        let bytes = URL_SAFE_NO_PAD.decode(token).ok();
        let value: Option<Value> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let text = |index: usize| value.as_ref()?["start"][index].as_str().map(str::to_owned);
        text(0).zip(text(1)).ok_or_else(|| ApiError::bad_request("continue key is not valid"))
    }
}
