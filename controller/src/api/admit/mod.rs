//! What a kind asks of its objects: defaults that are filled in, rules that are checked, and what may not change.
//! Clients' objects and those of controllers pass through here alike.

mod defaults;
pub(super) mod pods;
mod rules;
mod secrets;
mod services;
mod workloads;

use serde_json::{Value, json};

use super::ApiError;
use super::error::Cause;
use crate::app::App;

/// Most bytes of a ConfigMap's values together (as Kubernetes' API server).
const MAX_DATA: usize = 1 << 20;

/// Fills in and checks an object; `old` is what it was before a change.
pub(super) fn admit(app: &App, kind: &str, object: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
    check_metadata(kind, object)?;
    match (kind, old) {
        ("Pod", None) => pods::prepare(object),
        ("Pod", Some(old)) => pods::check_change(old, object),
        ("Secret", _) => {
            secrets::prepare(object)?;
            old.map_or(Ok(()), |old| secrets::check_change(old, object))
        }
        ("ConfigMap", _) => config_map(object, old),
        ("Service", _) => services::admit(app, object, old),
        ("Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "Job" | "CronJob", _) => {
            workloads::admit(kind, object, old)
        }
        ("Namespace", None) => {
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            object["spec"]["finalizers"] = json!(["kubernetes"]);
            object["status"] = json!({"phase": "Active"});
            Ok(())
        }
        ("PersistentVolumeClaim", None) => {
            object["status"] = json!({"phase": "Pending"});
            default(&mut object["spec"], "volumeMode", json!("Filesystem"));
            Ok(())
        }
        ("PersistentVolume", None) => {
            object["status"] = json!({"phase": "Available"});
            default(&mut object["spec"], "persistentVolumeReclaimPolicy", json!("Retain"));
            default(&mut object["spec"], "volumeMode", json!("Filesystem"));
            Ok(())
        }
        ("StorageClass", None) => {
            default(object, "reclaimPolicy", json!("Delete"));
            default(object, "volumeBindingMode", json!("Immediate"));
            Ok(())
        }
        ("RoleBinding" | "ClusterRoleBinding", _) => binding(kind, object, old),
        _ => Ok(()),
    }
}

/// Fills in a field that is missing.
fn default(place: &mut Value, name: &str, value: Value) {
    if place[name].is_null() {
        place[name] = value;
    }
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Checks that labels and annotations are maps of texts, and labels have their form: one object that clients cannot read
/// spoils every list.
pub(super) fn check_metadata(kind: &str, object: &Value) -> Result<(), ApiError> {
    for field in ["labels", "annotations"] {
        let map = &object["metadata"][field];
        let texts = map.as_object().is_some_and(|map| map.values().all(Value::is_string));
        if !texts && !map.is_null() {
            let problem = format!("{map} must be a map of texts: quote numbers and booleans");
            return Err(ApiError::invalid(kind, name_of(object), &format!("metadata.{field}"), &problem));
        }
    }
    let causes = rules::labels("metadata.labels", &object["metadata"]["labels"]);
    if causes.is_empty() { Ok(()) } else { Err(ApiError::causes(kind, name_of(object), &causes)) }
}

fn config_map(object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    let fail = |cause: Cause| Err(ApiError::causes("ConfigMap", name_of(object), &[cause]));
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in object[field].as_object().into_iter().flatten() {
            size += key.len() + value.as_str().map_or(0, str::len);
            let plain = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
            if !plain || key.is_empty() || key.len() > 253 || key == "." || key.starts_with("..") {
                let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  \
                           or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
                return fail(Cause::invalid(&format!("{field}[{key}]"), &json!(key), why));
            }
        }
    }
    if size > MAX_DATA {
        return fail(Cause::invalid("", &json!(""), "Too long: must have at most 1048576 bytes"));
    }
    let Some(old) = old.filter(|old| old["immutable"] == true) else { return Ok(()) };
    for field in ["immutable", "data", "binaryData"] {
        if old[field] != object[field] {
            return fail(Cause::forbidden(field, "field is immutable when `immutable` is set"));
        }
    }
    Ok(())
}

fn binding(kind: &str, object: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
    const GROUP: &str = "rbac.authorization.k8s.io";
    default(&mut object["roleRef"], "apiGroup", json!(GROUP));
    for subject in object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
        if matches!(subject["kind"].as_str(), Some("User" | "Group")) {
            default(subject, "apiGroup", json!(GROUP));
        }
    }
    match old {
        Some(old) if old["roleRef"] != object["roleRef"] => {
            let cause = Cause::invalid("roleRef", &object["roleRef"], "cannot change roleRef");
            Err(ApiError::causes(kind, name_of(object), &[cause]))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_clients_cannot_read_are_refused_for_every_kind() {
        let with =
            |labels: Value| check_metadata("Node", &json!({"metadata": {"name": "n", "labels": labels}})).is_ok();
        assert!(with(json!({"a": "1", "example.org/b": ""})) && with(json!({})) && with(Value::Null));
        assert!(!with(json!({"a": 1})) && !with(json!("a")) && !with(json!([])));
        assert!(!with(json!({"a": "b c"})) && !with(json!({"a/b/c": "d"})) && !with(json!({"": "d"})));
    }
}
