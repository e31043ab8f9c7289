//! Deletions: at once, or marked until whoever holds the object lets go of it.

use axum::response::Response;
use hyper::StatusCode;
use serde_json::{Value, json};

use super::objects::Ask;
use super::query::{Selector, flag};
use super::respond::{View, answer};
use super::{ApiError, admit, body};
use crate::app::App;
use crate::link;
use crate::store::{Key, Store, revision_of, update};
use crate::time;

/// Dependents go first.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// Dependents stay and forget their owner.
pub(crate) const ORPHAN: &str = "orphan";
/// Namespaces that stay.
const STAYING: [&str; 3] = ["default", "kube-system", "kube-public"];

/// How an object is to be deleted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// `Background`, `Foreground` or `Orphan`.
    policy: Option<String>,
    grace: Option<i64>,
    uid: Option<String>,
    version: Option<u64>,
    dry_run: bool,
}

impl Options {
    /// What `DeleteOptions` say.
    pub(super) fn sent(sent: &Value, dry_run: bool) -> Options {
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let orphan = sent["orphanDependents"] == true;
        Options {
            policy: text(&sent["propagationPolicy"]).or_else(|| orphan.then(|| "Orphan".to_owned())),
            grace: sent["gracePeriodSeconds"].as_i64(),
            uid: text(&sent["preconditions"]["uid"]),
            version: text(&sent["preconditions"]["resourceVersion"]).and_then(|text| text.parse().ok()),
            dry_run: dry_run || sent["dryRun"].as_array().is_some_and(|list| !list.is_empty()),
        }
    }

    /// What a request says, in its body or its query.
    fn of(ask: &Ask) -> Result<Options, ApiError> {
        let mut options = Options::sent(&body::delete_options(&ask.headers, &ask.body)?, ask.is_dry_run());
        let orphan = flag(ask.query.orphan_dependents.as_ref()) && ask.query.orphan_dependents.is_some();
        let asked = ask.query.propagation_policy.clone().or_else(|| orphan.then(|| "Orphan".to_owned()));
        options.policy = options.policy.or(asked);
        options.grace = options.grace.or(ask.query.grace_period_seconds);
        match options.policy.as_deref() {
            None | Some("Background" | "Foreground" | "Orphan") => Ok(options),
            Some(odd) => Err(ApiError::bad_request(format!("invalid propagationPolicy {odd:?}"))),
        }
    }
}

/// What became of an object.
pub(crate) enum Outcome {
    Gone(Value),
    /// Marked: it goes later.
    Leaving(Value),
}

/// Deletes one object.
pub(super) fn one(ask: &Ask, name: &str) -> Result<Response, ApiError> {
    let options = Options::of(ask)?;
    let object = ask.get(name)?;
    match delete(&ask.app, &ask.key(name), &object, &options)? {
        Outcome::Leaving(object) => Ok(ask.answer(StatusCode::OK, &object)),
        Outcome::Gone(object) => {
            let kind = ask.target.kind;
            let mut details = json!({"name": name, "kind": kind.plural, "uid": object["metadata"]["uid"]});
            if !kind.group.is_empty() {
                details["group"] = json!(kind.group);
            }
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details,
            });
            Ok(answer(StatusCode::OK, &status, &ask.warnings))
        }
    }
}

/// Deletes all objects that are selected.
pub(super) fn many(ask: &Ask) -> Result<Response, ApiError> {
    let kind = ask.target.kind;
    if !kind.verbs().contains(&"deletecollection") || (kind.namespaced && ask.target.namespace.is_empty()) {
        return Err(ApiError::method());
    }
    let (options, selector) = (Options::of(ask)?, Selector::parse(kind.kind, &ask.query)?);
    let namespace = Some(ask.target.namespace.as_str()).filter(|namespace| !namespace.is_empty());
    let mut list = ask.app.store.list(kind.kind, namespace)?;
    list.items.retain(|object| selector.matches(object));
    for object in &list.items {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        delete(&ask.app, &ask.key(name), object, &options)?;
    }
    let metadata = json!({"resourceVersion": list.revision.to_string()});
    let body = View::of(&ask.headers).list(kind.kind, &kind.api_version(), list.items, &metadata);
    Ok(answer(StatusCode::OK, &body, &ask.warnings))
}

/// Deletes an object as asked.
pub(crate) fn delete(app: &App, key: &Key, object: &Value, options: &Options) -> Result<Outcome, ApiError> {
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
    if let Some(wanted) = options.uid.as_deref().filter(|wanted| *wanted != uid) {
        let why = format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
        return Err(ApiError::conflict(key, &why));
    }
    if let Some(wanted) = options.version.filter(|wanted| *wanted != revision_of(object)) {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {}",
            revision_of(object)
        );
        return Err(ApiError::conflict(key, &why));
    }
    if key.kind == "Namespace" && STAYING.contains(&key.name.as_str()) {
        return Err(ApiError::forbidden("Namespace", &key.name, "this namespace may not be deleted"));
    }
    if options.dry_run {
        return Ok(Outcome::Gone(object.clone()));
    }
    match key.kind.as_str() {
        "Pod" => admit::pods::delete(app, key, object, options.grace),
        "Node" => Ok(Outcome::Gone(link::forget(app, &key.name)?)),
        _ => mark_or_remove(app, key, object, options.policy.as_deref()),
    }
}

fn mark_or_remove(app: &App, key: &Key, object: &Value, policy: Option<&str>) -> Result<Outcome, ApiError> {
    let extra = match policy {
        Some("Foreground") => Some(FOREGROUND),
        Some("Orphan") => Some(ORPHAN),
        _ => None,
    };
    let held = object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
    if !held && extra.is_none() && key.kind != "Namespace" {
        return Ok(Outcome::Gone(app.store.remove(key)?));
    }
    let now = time::text(time::now());
    let marked = update(app.store.as_ref(), key, |object| {
        if object["metadata"]["deletionTimestamp"].is_null() {
            object["metadata"]["deletionTimestamp"] = json!(now);
            object["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        }
        if let Some(extra) = extra {
            let mut list = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
            if !list.iter().any(|name| name == extra) {
                list.push(json!(extra));
            }
            object["metadata"]["finalizers"] = Value::Array(list);
        }
        if key.kind == "Namespace" {
            object["status"]["phase"] = json!("Terminating");
        }
    })?;
    marked.map(Outcome::Leaving).ok_or_else(|| ApiError::not_found(&key.kind, &key.name))
}
