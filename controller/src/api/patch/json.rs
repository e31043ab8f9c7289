//! The patches that know no schema: operations and merge.

use json_patch::{Patch, PatchOperation};
use serde_json::{Map, Value};

use crate::api::{ApiError, MAX_BODY};

/// Most operations of a JSON patch (as Kubernetes' API server).
const MAX_OPERATIONS: usize = 10_000;

/// Carries out a JSON patch, all of it or nothing.
pub(crate) fn operate(mut object: Value, body: &[u8]) -> Result<Value, ApiError> {
    let patch: Patch = serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
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

/// Merges a JSON merge patch into an object.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (name, value) in fields {
        match (value, target.as_object_mut()) {
            (Value::Null, Some(target)) => drop(target.remove(name)),
            _ => merge(&mut target[name.as_str()], value),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patched(object: &Value, patch: Value) -> Result<Value, ApiError> {
        operate(object.clone(), patch.to_string().as_bytes())
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
    fn a_merge_patch_replaces_lists_and_removes_by_null() {
        let mut pod =
            json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}, "metadata": {"labels": {"a": "b"}}});
        merge(
            &mut pod,
            &json!({"spec": {"containers": [{"name": "a"}]}, "metadata": {"labels": null}, "x": {"y": null}}),
        );
        assert_eq!(pod, json!({"spec": {"containers": [{"name": "a"}]}, "metadata": {}, "x": {}}));
    }
}
