//! Changes of objects: what is replaced or patched, and what stays the server's.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::kinds::Form;
use super::objects::Ask;
use super::query::flag;
use super::schema::Type;
use super::{ApiError, admit, authorize, body, create, patch};
use crate::store::{Guard, Store, StoreError, revision_of};

/// How often a change is tried on the newest state when others are quicker.
const TRIES: usize = 8;
/// Metadata that a client does not change.
const KEPT: [&str; 6] =
    ["uid", "creationTimestamp", "namespace", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"];

/// Replaces an object, or its status, by what a client sent.
pub(super) fn replace(ask: &Ask, name: &str, object: Value) -> Result<Value, ApiError> {
    if object["metadata"]["name"].as_str() != Some(name) {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            object["metadata"]["name"].as_str().unwrap_or_default()
        )));
    }
    if object["metadata"]["resourceVersion"].as_str().is_some_and(|text| !text.is_empty()) {
        return write(ask, name, &ask.get(name)?, object, true);
    }
    // Who names no version wants it whatever there is.
    repeated(|| write(ask, name, &ask.get(name)?, object.clone(), true))
}

/// Does something again when somebody else was quicker.
pub(super) fn repeated<T>(mut work: impl FnMut() -> Result<T, ApiError>) -> Result<T, ApiError> {
    for _ in 1..TRIES {
        match work() {
            Err(error) if error.is_conflict() => {}
            other => return other,
        }
    }
    work()
}

/// Patches an object. An apply makes it where there is none.
pub(super) fn patch(ask: &mut Ask, name: &str) -> Result<(StatusCode, Value), ApiError> {
    let form = patch::Form::of(body::media_type(&ask.headers))?;
    for _ in 0..TRIES {
        let live = ask.app.store.get(&ask.key(name))?;
        let Some(old) = live else {
            if form != patch::Form::Apply || !ask.target.part().is_empty() {
                return Err(ApiError::not_found(ask.target.kind.kind, name));
            }
            let fresh = applied(ask, name, None)?;
            return Ok((StatusCode::CREATED, create::create(ask, fresh)?));
        };
        let mut object = match form {
            patch::Form::Operations => patch::operate(old.clone(), &ask.body)?,
            patch::Form::Merge => {
                let mut object = old.clone();
                patch::merge(&mut object, &patch::read(&ask.body)?);
                object
            }
            patch::Form::Strategic => {
                let mut object = old.clone();
                patch::strategic(&mut object, &patch::read(&ask.body)?, Type::named(ask.target.kind.schema))?;
                object
            }
            patch::Form::Apply => applied(ask, name, Some(&old))?,
        };
        body::identify(&ask.target, &mut object)?;
        if form != patch::Form::Apply {
            body::validate(&ask.target, &ask.query, &object, &mut ask.warnings)?;
        }
        if object["metadata"]["name"].as_str() != Some(name) {
            return Err(ApiError::bad_request("the name of an object cannot be changed"));
        }
        let pinned = object["metadata"]["resourceVersion"] != old["metadata"]["resourceVersion"];
        match write(ask, name, &old, object, form != patch::Form::Apply) {
            Err(error) if error.is_conflict() && !pinned => ask.warnings.clear(),
            other => return Ok((StatusCode::OK, other?)),
        }
    }
    Err(StoreError::Conflict { key: ask.key(name), expected: 0, found: 0 }.into())
}

/// What an apply makes of an object.
fn applied(ask: &mut Ask, name: &str, live: Option<&Value>) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(&ask.body).map_err(|_| ApiError::bad_request("the patch is no UTF-8"))?;
    let mut config = skeg_kube::yaml::parse_one(text)
        .map_err(|error| ApiError::bad_request(format!("error decoding YAML: {error:#}")))?;
    if ask.query.field_manager.as_deref().is_none_or(str::is_empty) {
        return Err(ApiError::bad_request(
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ));
    }
    if config["metadata"]["managedFields"].as_array().is_some_and(|list| !list.is_empty()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    for field in ["apiVersion", "kind"] {
        if config[field].as_str().is_none_or(str::is_empty) {
            return Err(ApiError::bad_request(format!(
                "Object '{}' is missing",
                if field == "kind" { "Kind" } else { field }
            )));
        }
    }
    body::identify(&ask.target, &mut config)?;
    body::validate(&ask.target, &ask.query, &config, &mut ask.warnings)?;
    config["metadata"]["name"] = json!(name);
    let Some(schema) = Type::named(ask.target.kind.schema) else { return Ok(config) };
    let force = flag(ask.query.force.as_ref());
    match ask.with_manager(|manager| patch::apply(live, &config, schema, manager, force)) {
        patch::Applied::Object(object) => Ok(object),
        patch::Applied::Conflicts(conflicts) => Err(ApiError::apply_conflicts(&conflicts)),
    }
}

/// Writes a changed object if it is still as it was read; gives what the store has then. `track`: whose changes these
/// are is not known yet.
fn write(ask: &Ask, name: &str, old: &Value, mut object: Value, track: bool) -> Result<Value, ApiError> {
    let (kind, key) = (ask.target.kind, ask.key(name));
    body::drop_nulls(&mut object);
    let guard = match object["metadata"]["resourceVersion"].as_str().filter(|text| !text.is_empty()) {
        Some(text) => text.parse().map_err(|_| {
            let problem = format!("Invalid value: {text:?}: must be a number");
            ApiError::invalid(kind.kind, name, "metadata.resourceVersion", &problem)
        })?,
        None => revision_of(old),
    };
    if let Some(uid) =
        object["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty() && old["metadata"]["uid"] != **uid)
    {
        let found = old["metadata"]["uid"].as_str().unwrap_or_default();
        let why = format!(
            "StorageError: invalid object, Code: 4, Precondition failed: UID in precondition: {uid}, UID in object meta: {found}"
        );
        return Err(ApiError::conflict(&key, &why));
    }
    keep(ask, old, &mut object);
    admit::check_metadata(kind.kind, &object)?;
    if ask.target.part() != "status" {
        admit::admit(&ask.app, kind.kind, &mut object, Some(old))?;
    }
    authorize::check_grant(&ask.app, &ask.user, kind.kind, &object)?;
    if kind.form == Form::Counted && ask.target.part().is_empty() && differs(old, &object) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        object["metadata"]["generation"] = json!(generation);
    }
    if let Some(schema) = Type::named(kind.schema).filter(|_| track) {
        ask.with_manager(|manager| patch::track(Some(old), &mut object, schema, manager));
    }
    if ask.is_dry_run() {
        return Ok(object);
    }
    let written = ask.app.store.put(&key, object, Guard::Revision(guard))?;
    finish(ask, name, written)
}

/// An object that is to go goes when nobody holds it any more.
fn finish(ask: &Ask, name: &str, object: Value) -> Result<Value, ApiError> {
    let held = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    let leaving = !object["metadata"]["deletionTimestamp"].is_null();
    let free = !held(&object["metadata"]["finalizers"]) && !held(&object["spec"]["finalizers"]);
    if leaving && free && !matches!(ask.target.kind.kind, "Pod" | "Node") {
        return Ok(ask.app.store.remove(&ask.key(name))?);
    }
    Ok(object)
}

/// Puts back what this path does not change.
fn keep(ask: &Ask, old: &Value, object: &mut Value) {
    let (kind, part) = (ask.target.kind, ask.target.part());
    if part == "status" {
        let status = object["status"].take();
        let version = object["metadata"]["resourceVersion"].take();
        *object = old.clone();
        object["status"] = status;
        object["metadata"]["resourceVersion"] = version;
        return;
    }
    for name in KEPT {
        match &old["metadata"][name] {
            Value::Null => drop(object["metadata"].as_object_mut().map(|metadata| metadata.remove(name))),
            value => object["metadata"][name] = value.clone(),
        }
    }
    if kind.has_status() {
        match &old["status"] {
            Value::Null => drop(object.as_object_mut().map(|object| object.remove("status"))),
            status => object["status"] = status.clone(),
        }
    }
    let finalizers = &old["spec"]["finalizers"];
    if kind.kind == "Namespace" && part != "finalize" && !finalizers.is_null() {
        object["spec"]["finalizers"] = finalizers.clone();
    }
}

/// Whether two states differ in what was asked for.
fn differs(old: &Value, new: &Value) -> bool {
    let asked = |object: &Value| {
        let mut object = object.as_object().cloned().unwrap_or_default();
        object.remove("metadata");
        object.remove("status");
        object
    };
    asked(old) != asked(new)
}
