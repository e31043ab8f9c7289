//! What is special about Secrets: the form of their data, what their type asks for, and that some never change.
//!
//! An error names the field, never its content.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::api::ApiError;
use crate::pull_secrets;

/// Most bytes of one Secret's values together (as Kubernetes' API server).
const MAX_DATA: usize = 1 << 20;
/// Longest name of a value.
const MAX_KEY: usize = 253;
const FIELDS: [&str; 8] = ["apiVersion", "kind", "metadata", "type", "data", "stringData", "immutable", "status"];

/// Checks a new or changed Secret and moves `stringData` into `data`.
pub(super) fn prepare(secret: &mut Value) -> Result<(), ApiError> {
    let name = secret["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let invalid = |field: &str, problem: &str| ApiError::invalid(pull_secrets::KIND, &name, field, problem);
    let Some(object) = secret.as_object_mut() else { return Err(invalid("", "must be an object")) };
    // Secrets have none; the server gives one to every other kind.
    object.remove("status");
    if let Some(unknown) = object.keys().find(|field| !FIELDS.contains(&field.as_str())) {
        return Err(invalid(unknown, "unknown field"));
    }
    let mut data = take_map(object, "data").map_err(|()| invalid("data", "must be a map of texts"))?;
    let plain = take_map(object, "stringData").map_err(|()| invalid("stringData", "must be a map of texts"))?;
    data.extend(plain.into_iter().map(|(key, text)| {
        let encoded = STANDARD.encode(text.as_str().unwrap_or_default());
        (key, Value::String(encoded))
    }));
    let mut size = 0;
    for (key, text) in &data {
        let usual = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
        if !usual || key.is_empty() || key.len() > MAX_KEY {
            return Err(invalid(
                "data",
                "its names must have 1 to 253 of the characters A-Z, a-z, 0-9, '-', '_' and '.'",
            ));
        }
        let bytes = text.as_str().and_then(|text| STANDARD.decode(text).ok());
        size += bytes.ok_or_else(|| invalid(&format!("data[{key}]"), "must be base64"))?.len();
    }
    if size > MAX_DATA {
        return Err(invalid("data", &format!("has {size} bytes, at most {MAX_DATA} are possible")));
    }
    if !data.is_empty() {
        object.insert("data".to_owned(), Value::Object(data));
    }
    match object.get("immutable") {
        None | Some(Value::Bool(_)) => {}
        Some(Value::Null) => drop(object.remove("immutable")),
        Some(_) => return Err(invalid("immutable", "must be true or false")),
    }
    match object.get("type") {
        None | Some(Value::Null) => drop(object.insert("type".to_owned(), json!("Opaque"))),
        Some(Value::String(_)) => {}
        Some(_) => return Err(invalid("type", "must be a text")),
    }
    if matches!(secret["type"].as_str(), Some("kubernetes.io/dockerconfigjson" | "kubernetes.io/dockercfg")) {
        pull_secrets::config(secret).map_err(|(field, problem)| invalid(field, &problem))?;
    }
    Ok(())
}

/// Takes a map of texts out of an object; an empty one where there is none.
fn take_map(object: &mut Map<String, Value>, field: &str) -> Result<Map<String, Value>, ()> {
    match object.remove(field) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(map)) if map.values().all(Value::is_string) => Ok(map),
        Some(_) => Err(()),
    }
}

/// Checks that a prepared change touches only what may change.
pub(super) fn check_change(old: &Value, new: &Value) -> Result<(), ApiError> {
    let name = new["metadata"]["name"].as_str().unwrap_or_default();
    let invalid = |field, problem| Err(ApiError::invalid(pull_secrets::KIND, name, field, problem));
    if old["type"] != new["type"] {
        return invalid("type", "field is immutable");
    }
    if old["immutable"] == true && new["immutable"] != true {
        return invalid("immutable", "field is immutable when `immutable` is set");
    }
    if old["immutable"] == true && old["data"] != new["data"] {
        return invalid("data", "field is immutable when `immutable` is set");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(fields: &Value) -> Result<Value, String> {
        let mut secret = fields.clone();
        secret["metadata"] = json!({"name": "s"});
        prepare(&mut secret).map(|()| secret).map_err(|error| error.status()["message"].to_string())
    }

    #[test]
    fn plain_values_become_data_and_win() {
        let secret = prepared(&json!({"data": {"a": "eA==", "b": "eQ=="}, "stringData": {"b": "z"}, "status": {}}));
        let wanted = json!({"metadata": {"name": "s"}, "type": "Opaque", "data": {"a": "eA==", "b": "eg=="}});
        assert_eq!(secret, Ok(wanted));
    }

    #[test]
    fn what_is_wrong_is_named_without_its_content() {
        for (fields, part) in [
            (json!({"data": {"a": "hush!"}}), "data[a]: must be base64"),
            (json!({"data": {"a/b": "eA=="}}), "data: its names"),
            (json!({"data": {"a": 1}}), "data: must be a map of texts"),
            (json!({"stringData": ["hush"]}), "stringData: must be a map"),
            (json!({"dota": {"a": "hush"}}), "dota: unknown field"),
            (json!({"immutable": "hush"}), "immutable: must be"),
            (json!({"stringData": {"a": "x".repeat(MAX_DATA + 1)}}), "at most 1048576"),
            (json!({"type": "kubernetes.io/dockerconfigjson"}), "data[.dockerconfigjson]: is required"),
            (
                json!({"type": "kubernetes.io/dockercfg", "stringData": {".dockercfg": "hush"}}),
                "data[.dockercfg]: it is no",
            ),
        ] {
            let error = prepared(&fields).unwrap_err();
            assert!(error.contains(part) && !error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn what_is_immutable_stays() {
        let old = json!({"type": "Opaque", "immutable": true, "data": {"a": "eA=="}});
        let with = |field: &str, value: Value| {
            let mut new = old.clone();
            new[field] = value;
            check_change(&old, &new).is_ok()
        };
        assert!(with("metadata", json!({"labels": {"a": "b"}})));
        assert!(!with("type", json!("x")) && !with("immutable", json!(false)) && !with("data", json!({})));
        let mutable = json!({"type": "Opaque", "data": {"a": "eA=="}});
        assert!(check_change(&mutable, &json!({"type": "Opaque", "immutable": true})).is_ok());
    }
}
