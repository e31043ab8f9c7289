//! Create, read, replace, patch and delete of any kind, one path shape for all.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query as Parameters, State};
use axum::response::{IntoResponse, Response};
use hyper::header::{ACCEPT, CONTENT_TYPE};
use hyper::{HeaderMap, Method, StatusCode};
use serde_json::{Value, json};
use skeg_protocol::id::{is_label, is_name};

use super::discovery::{Resource, resource};
use super::query::{Query, Selector, flag};
use super::{ApiError, logs, patch, pods, secrets, table, watch};
use crate::app::App;
use crate::link;
use crate::store::{Guard, Key, Store, revision_of};
use crate::time;

/// What a path below `/api/v1/` means.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) resource: &'static Resource,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) part: Option<String>,
}

impl Target {
    fn parse(path: &str) -> Option<Self> {
        let words: Vec<&str> = path.trim_end_matches('/').split('/').collect();
        let (namespace, rest) = match words.as_slice() {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest[0] != "status" => {
                (Some((*namespace).to_owned()), rest)
            }
            rest => (None, rest),
        };
        let (plural, name, part) = match rest {
            [plural] => (plural, None, None),
            [plural, name] => (plural, Some((*name).to_owned()), None),
            [plural, name, part] => (plural, Some((*name).to_owned()), Some((*part).to_owned())),
            _ => return None,
        };
        let resource = resource(plural)?;
        let misfit = matches!((resource.namespaced, &namespace, &name), (false, Some(_), _) | (true, None, Some(_)));
        (!misfit).then_some(Target { resource, namespace, name, part })
    }

    fn key(&self, name: &str) -> Key {
        Key::new(self.resource.kind, self.namespace.as_deref().unwrap_or_default(), name)
    }
}

/// Serves every request below `/api/v1/`.
pub(super) async fn handle(
    State(app): State<Arc<App>>,
    Path(path): Path<String>,
    method: Method,
    Parameters(query): Parameters<Query>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let target = Target::parse(&path).ok_or_else(|| ApiError::not_found_path(&format!("/api/v1/{path}")))?;
    let name = target.name.clone();
    match (&method, name, target.part.as_deref()) {
        (&Method::GET, Some(name), Some("log")) if target.resource.kind == "Pod" => {
            let namespace = target.namespace.clone().unwrap_or_default();
            logs::stream(&app, &namespace, &name, &query).await
        }
        (_, _, Some(_)) => Err(ApiError::not_found_path(&format!("/api/v1/{path}"))),
        (&Method::GET, None, None) if flag(query.watch.as_ref()) => watch::stream(&app, &target, &query, &headers),
        (&Method::GET, None, None) => list(&app, &target, &query, &headers),
        (&Method::GET, Some(name), None) => {
            let key = target.key(&name);
            let object = app.store.get(&key)?.ok_or_else(|| ApiError::not_found(&key.kind, &name))?;
            Ok(answer(StatusCode::OK, &object, &headers))
        }
        (&Method::POST, None, None) => create(&app, &target, &query, read(&headers, &body)?, &headers),
        (&Method::PUT, Some(name), None) => {
            let key = target.key(&name);
            let object = replace(&app, &key, read(&headers, &body)?, &query)?;
            Ok(answer(StatusCode::OK, &object, &headers))
        }
        (&Method::PATCH, Some(name), None) => {
            let key = target.key(&name);
            let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let patched = patch::apply(&app, &key, kind, &body)?;
            match patched {
                patch::Patched::New(object) => create(&app, &target, &query, object, &headers),
                patch::Patched::Changed(object) => {
                    let object = replace(&app, &key, object, &query)?;
                    Ok(answer(StatusCode::OK, &object, &headers))
                }
            }
        }
        (&Method::DELETE, Some(name), None) => delete(&app, &target.key(&name), &query, &headers, &body),
        _ => Err(ApiError::method()),
    }
}

/// Reads a JSON body.
fn read(headers: &HeaderMap, body: &Bytes) -> Result<Value, ApiError> {
    let kind = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json");
    if !kind.starts_with("application/json") {
        return Err(ApiError::media_type(format!("the body must be application/json, not {kind}")));
    }
    serde_json::from_slice(body).map_err(|error| ApiError::bad_request(format!("the body is no JSON: {error}")))
}

/// Answers with an object, as a table where the client asks for one.
fn answer(code: StatusCode, object: &Value, headers: &HeaderMap) -> Response {
    let body = match wants_table(headers) {
        true => table::of(std::slice::from_ref(object), &object["metadata"], object["kind"].as_str()).to_string(),
        false => object.to_string(),
    };
    (code, [(CONTENT_TYPE, "application/json")], body).into_response()
}

/// Whether the client asks for a Table of meta.k8s.io/v1 first.
pub(super) fn wants_table(headers: &HeaderMap) -> bool {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let words = |kind: &str| {
        let kind: Vec<&str> = kind.split(';').map(str::trim).collect();
        kind.contains(&"as=Table") && kind.contains(&"v=v1")
    };
    accept.split(',').any(words)
}

fn list(app: &App, target: &Target, query: &Query, headers: &HeaderMap) -> Result<Response, ApiError> {
    let selector = Selector::parse(query)?;
    let mut list = app.store.list(target.resource.kind, target.namespace.as_deref())?;
    list.items.retain(|object| selector.matches(object));
    let metadata = json!({"resourceVersion": list.revision.to_string()});
    let body = match wants_table(headers) {
        true => table::of(&list.items, &metadata, Some(target.resource.kind)),
        false => json!({
            "kind": format!("{}List", target.resource.kind), "apiVersion": "v1",
            "metadata": metadata, "items": list.items,
        }),
    };
    Ok((StatusCode::OK, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response())
}

fn create(
    app: &App,
    target: &Target,
    query: &Query,
    mut object: Value,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let kind = target.resource.kind;
    check_maps(kind, &object)?;
    if kind == "Node" {
        return Err(ApiError::bad_request("a node is made when a device enrols: see `skeg token create`"));
    }
    if object["kind"].as_str().is_some_and(|found| found != kind) || !object.is_object() {
        return Err(ApiError::bad_request(format!("the body must be a {kind}, not a {}", object["kind"])));
    }
    if object["apiVersion"].as_str().is_some_and(|found| found != "v1") {
        return Err(ApiError::bad_request(format!("apiVersion must be v1, not {}", object["apiVersion"])));
    }
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let metadata = &mut object["metadata"];
    if let (None, Some(prefix)) = (metadata["name"].as_str(), metadata["generateName"].as_str()) {
        metadata["name"] = json!(format!("{prefix}{}", crate::secret::random_word(5)?));
    }
    let name = metadata["name"].as_str().unwrap_or_default().to_owned();
    let valid = if kind == "Namespace" { is_label(&name) } else { is_name(&name) };
    if !valid {
        return Err(ApiError::invalid(kind, &name, "metadata.name", "must be a DNS name (RFC 1123)"));
    }
    if let Some(namespace) = target.namespace.as_deref().filter(|_| target.resource.namespaced) {
        match metadata["namespace"].as_str().filter(|found| !found.is_empty()) {
            Some(found) if found != namespace => {
                return Err(ApiError::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
            _ => metadata["namespace"] = json!(namespace),
        }
        let home = app.store.get(&Key::new("Namespace", "", namespace))?;
        let home = home.ok_or_else(|| ApiError::not_found("Namespace", namespace))?;
        if home["status"]["phase"] == "Terminating" {
            return Err(ApiError::forbidden(kind, &name, "the namespace is being terminated"));
        }
    } else if target.resource.namespaced {
        return Err(ApiError::method());
    }
    let metadata = &mut object["metadata"];
    metadata["uid"] = json!(uuid::Uuid::new_v4().to_string());
    metadata["creationTimestamp"] = json!(time::text(time::now()));
    for name in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "managedFields"] {
        metadata.as_object_mut().map(|metadata| metadata.remove(name));
    }
    (object["kind"], object["apiVersion"]) = (json!(kind), json!("v1"));
    match kind {
        "Pod" => pods::prepare(&mut object)?,
        "Secret" => secrets::prepare(&mut object)?,
        _ => object["status"] = json!({"phase": "Active"}),
    }
    if query.dry_run.is_none() {
        object = app.store.put(&target.key(&name), object, Guard::Absent)?;
    }
    Ok(answer(StatusCode::CREATED, &object, headers))
}

/// Checks that labels and annotations are maps of texts: one object that clients cannot read spoils every list.
fn check_maps(kind: &str, object: &Value) -> Result<(), ApiError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    for field in ["labels", "annotations"] {
        let map = &object["metadata"][field];
        let texts = map.as_object().is_some_and(|map| map.values().all(Value::is_string));
        if !texts && !map.is_null() {
            let problem = format!("{map} must be a map of texts: quote numbers and booleans");
            return Err(ApiError::invalid(kind, name, &format!("metadata.{field}"), &problem));
        }
    }
    Ok(())
}

/// Replaces an object's user part; what the server owns stays.
fn replace(app: &App, key: &Key, mut object: Value, query: &Query) -> Result<Value, ApiError> {
    let old = app.store.get(key)?.ok_or_else(|| ApiError::not_found(&key.kind, &key.name))?;
    if object["metadata"]["name"].as_str() != Some(&key.name) {
        return Err(ApiError::bad_request("the name of the object does not match the name on the URL"));
    }
    let guard = match object["metadata"]["resourceVersion"].as_str().filter(|text| !text.is_empty()) {
        Some(text) => text.parse().map_err(|_| ApiError::bad_request("metadata.resourceVersion must be a number"))?,
        None => revision_of(&old),
    };
    for name in ["uid", "creationTimestamp", "namespace", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        match &old["metadata"][name] {
            Value::Null => drop(object["metadata"].as_object_mut().map(|metadata| metadata.remove(name))),
            value => object["metadata"][name] = value.clone(),
        }
    }
    check_maps(&key.kind, &object)?;
    object["status"] = old["status"].clone();
    (object["kind"], object["apiVersion"]) = (old["kind"].clone(), old["apiVersion"].clone());
    match key.kind.as_str() {
        "Pod" => pods::check_change(&old, &object)?,
        "Secret" => {
            secrets::prepare(&mut object)?;
            secrets::check_change(&old, &object)?;
        }
        _ => {}
    }
    if query.dry_run.is_some() {
        return Ok(object);
    }
    Ok(app.store.put(key, object, Guard::Revision(guard))?)
}

fn delete(app: &App, key: &Key, query: &Query, headers: &HeaderMap, body: &Bytes) -> Result<Response, ApiError> {
    let options = if body.is_empty() { Value::Null } else { read(headers, body)? };
    let object = app.store.get(key)?.ok_or_else(|| ApiError::not_found(&key.kind, &key.name))?;
    if let Some(uid) = options["preconditions"]["uid"].as_str()
        && object["metadata"]["uid"] != uid
    {
        return Err(ApiError::conflict(key, "the UID in the precondition is not the object's"));
    }
    if query.dry_run.is_some() || !options["dryRun"].is_null() {
        return Ok(answer(StatusCode::OK, &object, headers));
    }
    let grace = options["gracePeriodSeconds"].as_i64().or(query.grace_period_seconds);
    let object = match key.kind.as_str() {
        "Pod" => pods::delete(app, key, &object, grace)?,
        "Node" => link::forget(app, &key.name)?,
        "Secret" => app.store.remove(key)?,
        _ => delete_namespace(app, key)?,
    };
    Ok(answer(StatusCode::OK, &object, headers))
}

fn delete_namespace(app: &App, key: &Key) -> Result<Value, ApiError> {
    if key.name == "default" {
        return Err(ApiError::forbidden("Namespace", &key.name, "this namespace may not be deleted"));
    }
    if !app.store.list("Pod", Some(&key.name))?.items.is_empty() {
        return Err(ApiError::conflict(key, "the namespace still has pods: delete them first"));
    }
    for secret in app.store.list("Secret", Some(&key.name))?.items {
        app.store.remove(&Key::new("Secret", &key.name, secret["metadata"]["name"].as_str().unwrap_or_default()))?;
    }
    Ok(app.store.remove(key)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_clients_cannot_read_are_refused_for_every_kind() {
        let with = |labels: Value| check_maps("Node", &json!({"metadata": {"name": "n", "labels": labels}})).is_ok();
        assert!(with(json!({"a": "1"})) && with(json!({})) && with(Value::Null));
        assert!(!with(json!({"a": 1})) && !with(json!("a")) && !with(json!([])));
    }

    #[test]
    fn paths_mean_what_kubernetes_means() {
        let parse = |path| {
            let target = Target::parse(path)?;
            Some((target.resource.kind, target.namespace, target.name, target.part))
        };
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(parse("pods"), Some(("Pod", None, None, None)));
        assert_eq!(parse("namespaces/a/pods"), Some(("Pod", text("a"), None, None)));
        assert_eq!(parse("namespaces/a/pods/b/log"), Some(("Pod", text("a"), text("b"), text("log"))));
        assert_eq!(parse("namespaces"), Some(("Namespace", None, None, None)));
        assert_eq!(parse("namespaces/a"), Some(("Namespace", None, text("a"), None)));
        assert_eq!(parse("nodes/n"), Some(("Node", None, text("n"), None)));
        for path in ["pods/a", "namespaces/a/nodes", "things", "namespaces/a/pods/b/c/d", ""] {
            assert_eq!(parse(path), None, "{path}");
        }
    }
}
