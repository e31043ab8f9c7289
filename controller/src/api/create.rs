//! New objects: what every object gets, and then what its kind asks for.

use std::sync::PoisonError;

use serde_json::{Value, json};
use skeg_protocol::id::{is_label, is_name};

use super::error::Cause;
use super::kinds::Form;
use super::objects::Ask;
use super::schema::Type;
use super::{ApiError, admit, authorize, body, patch};
use crate::app::App;
use crate::store::{Guard, Key, Store};
use crate::time;

const NAME_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                         and must start and end with an alphanumeric character (e.g. 'example.com', regex used for \
                         validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                          start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                          validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
/// What the server gives, whatever a client sends.
const GIVEN: [&str; 7] = [
    "resourceVersion",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "managedFields",
    "generation",
    "uid",
];

/// Makes an object that a client sent.
pub(super) fn create(ask: &Ask, mut object: Value) -> Result<Value, ApiError> {
    let kind = ask.target.kind;
    body::drop_nulls(&mut object);
    if kind.kind == "Node" {
        return Err(ApiError::bad_request("a node is made when a device enrols: see `skeg token create`"));
    }
    place(ask, &mut object)?;
    // Addresses and node ports are given out one after the other.
    let _turn = ask.app.allocating.lock().unwrap_or_else(PoisonError::into_inner);
    let owners = object["metadata"]["managedFields"].take();
    prepare(&ask.app, kind.kind, &mut object)?;
    if owners.is_array() {
        // Of an apply, which knows the owners already.
        object["metadata"]["managedFields"] = owners;
    } else if let Some(schema) = Type::named(kind.schema) {
        ask.with_manager(|manager| patch::track(None, &mut object, schema, manager));
    }
    authorize::check_grant(&ask.app, &ask.user, kind.kind, &object)?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    if ask.is_dry_run() {
        return match ask.app.store.get(&ask.key(&name))? {
            Some(_) => Err(crate::store::StoreError::Exists(ask.key(&name)).into()),
            None => Ok(object),
        };
    }
    Ok(ask.app.store.put(&ask.key(&name), object, Guard::Absent)?)
}

/// Gives an object the namespace of its path, which must exist and may not be on its way out.
fn place(ask: &Ask, object: &mut Value) -> Result<(), ApiError> {
    let kind = ask.target.kind;
    let metadata = &mut object["metadata"];
    let named = metadata["namespace"].as_str().unwrap_or_default();
    if !kind.namespaced {
        drop(metadata.as_object_mut().map(|metadata| metadata.remove("namespace")));
        return Ok(());
    }
    let namespace = ask.target.namespace.as_str();
    if namespace.is_empty() {
        return Err(ApiError::method());
    }
    if !named.is_empty() && named != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    metadata["namespace"] = json!(namespace);
    let home = ask.app.store.get(&Key::new("Namespace", "", namespace))?;
    let home = home.ok_or_else(|| ApiError::not_found("Namespace", namespace))?;
    if home["status"]["phase"] == "Terminating" {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(ApiError::forbidden(kind.kind, name, &why));
    }
    Ok(())
}

/// Fills in what every new object has and what its kind defaults to, and checks it. Clients' objects and those of
/// controllers pass through here.
pub(crate) fn prepare(app: &App, kind: &str, object: &mut Value) -> Result<(), ApiError> {
    let metadata = &mut object["metadata"];
    let named = metadata["name"].as_str().is_some_and(|name| !name.is_empty());
    if let Some(prefix) = metadata["generateName"].as_str().filter(|prefix| !named && !prefix.is_empty()) {
        // As Kubernetes: room for the random part.
        let prefix: String = prefix.chars().take(58).collect();
        metadata["name"] = json!(format!("{prefix}{}", crate::secret::random_word(5)?));
    }
    let name = metadata["name"].as_str().unwrap_or_default().to_owned();
    check_name(kind, &name)?;
    for field in GIVEN {
        metadata.as_object_mut().map(|metadata| metadata.remove(field));
    }
    metadata["uid"] = json!(uuid::Uuid::new_v4().to_string());
    metadata["creationTimestamp"] = json!(time::text(time::now()));
    let known = super::kinds::of(kind);
    if known.is_some_and(|known| known.form == Form::Counted) {
        metadata["generation"] = json!(1);
    }
    if known.is_some_and(super::kinds::Kind::has_status) {
        object.as_object_mut().map(|object| object.remove("status"));
    }
    admit::admit(app, kind, object, None)
}

fn check_name(kind: &str, name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        let cause = Cause::required("metadata.name", "name or generateName is required");
        return Err(ApiError::causes(kind, name, &[cause]));
    }
    let rule = match kind {
        "Namespace" | "Service" => (!is_label(name)).then_some(LABEL_RULE),
        "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding" => {
            let plain = name.len() <= 253 && !name.contains(['/', '%']) && name != "." && name != "..";
            (!plain).then_some("may not contain '/' or '%', and may not be '.' or '..'")
        }
        _ => (!is_name(name)).then_some(NAME_RULE),
    };
    match rule {
        None => Ok(()),
        Some(rule) => Err(ApiError::causes(kind, name, &[Cause::invalid("metadata.name", &json!(name), rule)])),
    }
}
