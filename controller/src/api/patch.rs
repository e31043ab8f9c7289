//! Patches: JSON patch (RFC 6902), JSON merge (RFC 7386), Kubernetes' strategic merge for the lists that a pod has, and
//! server-side apply as create-or-merge without field managers.

use axum::body::Bytes;
use json_patch::{Patch, PatchOperation};
use serde_json::{Map, Value};

use super::{ApiError, MAX_BODY};
use crate::app::App;
use crate::store::{Key, Store};

/// Most operations of a JSON patch (as Kubernetes' API server).
const MAX_OPERATIONS: usize = 10_000;

/// What a patch leads to.
#[derive(Debug)]
pub(super) enum Patched {
    /// An object to be made (server-side apply of one that does not exist).
    New(Value),
    /// The object as it is to be.
    Changed(Value),
}

/// Lists that strategic merge joins by a key, anywhere in a pod.
fn merge_key(field: &str) -> Option<&'static str> {
    match field {
        "containers" | "volumes" | "env" | "initContainers" | "imagePullSecrets" => Some("name"),
        "ports" => Some("containerPort"),
        "volumeMounts" => Some("mountPath"),
        "conditions" => Some("type"),
        _ => None,
    }
}

/// Applies a patch of this media type to an object.
pub(super) fn apply(app: &App, key: &Key, media_type: &str, body: &Bytes) -> Result<Patched, ApiError> {
    let old = app.store.get(key)?;
    let missing = || ApiError::not_found(&key.kind, &key.name);
    let json = |bytes: &[u8]| -> Result<Value, ApiError> {
        serde_json::from_slice(bytes).map_err(|error| ApiError::bad_request(format!("the patch is no JSON: {error}")))
    };
    match media_type.split(';').next().unwrap_or_default().trim() {
        "application/json-patch+json" => {
            let patch: Patch = serde_json::from_slice(body)
                .map_err(|error| ApiError::bad_request(format!("the patch is no JSON patch: {error}")))?;
            Ok(Patched::Changed(operate(old.ok_or_else(missing)?, patch)?))
        }
        "application/merge-patch+json" => {
            let mut object = old.ok_or_else(missing)?;
            merge(&mut object, &json(body)?, &|_| None);
            Ok(Patched::Changed(object))
        }
        "application/strategic-merge-patch+json" => {
            let mut object = old.ok_or_else(missing)?;
            merge(&mut object, &json(body)?, &merge_key);
            Ok(Patched::Changed(object))
        }
        "application/apply-patch+yaml" => {
            let text = std::str::from_utf8(body).map_err(|_| ApiError::bad_request("the patch is no UTF-8"))?;
            let patch = skeg_kube::yaml::parse_one(text).map_err(|error| ApiError::bad_request(error.to_string()))?;
            let Some(mut object) = old else { return Ok(Patched::New(patch)) };
            merge(&mut object, &patch, &merge_key);
            Ok(Patched::Changed(object))
        }
        other => Err(ApiError::media_type(format!(
            "patches of type {other:?} are not supported: send application/json-patch+json, \
             application/merge-patch+json, application/strategic-merge-patch+json or application/apply-patch+yaml"
        ))),
    }
}

/// Carries out a JSON patch, all of it or nothing.
fn operate(mut object: Value, patch: Patch) -> Result<Value, ApiError> {
    if patch.0.len() > MAX_OPERATIONS {
        return Err(ApiError::bad_request(format!("the patch has more than {MAX_OPERATIONS} operations")));
    }
    let mut room = MAX_BODY;
    for (index, operation) in patch.0.into_iter().enumerate() {
        if let PatchOperation::Copy(copy) = &operation {
            // Copies of copies double: what is copied counts.
            let size = object.pointer(copy.from.as_str()).map_or(0, |value| value.to_string().len());
            room = room.checked_sub(size).ok_or_else(|| {
                ApiError::bad_request(format!("the patch copies more than {MAX_BODY} bytes (operation {index})"))
            })?;
        }
        json_patch::patch_unsafe(&mut object, std::slice::from_ref(&operation)).map_err(|error| {
            ApiError::invalid_patch(format!("operation {index} of the patch ({operation}): {}", error.kind))
        })?;
    }
    Ok(object)
}

fn merge(target: &mut Value, patch: &Value, merge_key: &dyn Fn(&str) -> Option<&'static str>) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with('$')) {
        match (value, merge_key(name)) {
            (Value::Null, _) => drop(target.as_object_mut().map(|target| target.remove(name))),
            (Value::Array(items), Some(key)) => merge_list(&mut target[name.as_str()], items, key, merge_key),
            _ => merge(&mut target[name.as_str()], value, merge_key),
        }
    }
}

fn merge_list(target: &mut Value, items: &[Value], key: &str, merge_key: &dyn Fn(&str) -> Option<&'static str>) {
    if !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Some(list) = target.as_array_mut() else { return };
    if items.iter().any(|item| item["$patch"] == "replace") {
        list.clear();
    }
    for item in items.iter().filter(|item| item["$patch"] != "replace") {
        let place = list.iter().position(|old| old[key] == item[key]);
        match (place, item["$patch"] == "delete") {
            (Some(place), true) => drop(list.remove(place)),
            (None, true) => {}
            (Some(place), false) => merge(&mut list[place], item, merge_key),
            (None, false) => list.push(item.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(object: &Value, patch: Value) -> Result<Value, ApiError> {
        operate(object.clone(), serde_json::from_value(patch).unwrap())
    }

    #[test]
    fn a_json_patch_works_whole_or_not_at_all_and_cannot_blow_up() {
        let pod = json!({"metadata": {"labels": {"a": "b"}}, "list": [1, 2]});
        let patch = json!([
            {"op": "test", "path": "/metadata/labels/a", "value": "b"},
            {"op": "add", "path": "/list/-", "value": 3},
            {"op": "move", "from": "/metadata/labels/a", "path": "/metadata/labels/x~1y"},
        ]);
        let wanted = json!({"metadata": {"labels": {"x/y": "b"}}, "list": [1, 2, 3]});
        assert_eq!(patched(&pod, patch).unwrap(), wanted);
        assert!(patched(&pod, json!([{"op": "test", "path": "/list/0", "value": 2}])).is_err());
        assert!(patched(&pod, json!([{"op": "remove", "path": "/nothing"}])).is_err());
        let doubling: Vec<Value> =
            (0..64).map(|index| json!({"op": "copy", "from": "", "path": format!("/copy{index}")})).collect();
        assert!(patched(&pod, Value::Array(doubling)).is_err());
    }

    #[test]
    fn a_merge_patch_replaces_lists_and_a_strategic_one_joins_them() {
        let pod = json!({"spec": {"containers": [{"name": "a", "image": "1", "tty": false}, {"name": "b"}]}});
        let patch = json!({"spec": {"containers": [{"name": "a", "image": "2"}]}, "metadata": {"labels": {"x": "y"}}});
        let mut merged = pod.clone();
        merge(&mut merged, &patch, &|_| None);
        assert_eq!(merged, patch);
        let mut joined = pod;
        merge(&mut joined, &patch, &merge_key);
        assert_eq!(joined["spec"]["containers"], json!([{"name": "a", "image": "2", "tty": false}, {"name": "b"}]));
        merge(&mut joined, &json!({"spec": {"containers": [{"name": "b", "$patch": "delete"}]}}), &merge_key);
        assert_eq!(joined["spec"]["containers"].as_array().unwrap().len(), 1);
        merge(&mut joined, &json!({"metadata": {"labels": null}}), &merge_key);
        assert_eq!(joined["metadata"], json!({}));
    }
}
