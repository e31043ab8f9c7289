//! A bundle as JSON for people: what says nothing is left out, and secrets are not shown.

use serde::Serialize;
use serde_json::{Map, Value, json};
use skeg_protocol::Digest;
use skeg_protocol::manifest::{Data, DataKind};

use crate::bundle::Bundle;

/// Shows what a bundle asks for.
pub fn show(bundle: &Bundle) -> Value {
    let mut out = Map::new();
    let mut list = |name: &str, items: Vec<Value>| {
        if !items.is_empty() {
            out.insert(name.to_owned(), items.into());
        }
    };
    list("pods", plain_list(&bundle.pods));
    list("data", bundle.data.iter().map(data).collect());
    list("services", plain_list(&bundle.services));
    list("networks", plain_list(&bundle.networks));
    list("jobs", plain_list(&bundle.jobs));
    list("cronJobs", plain_list(&bundle.cron_jobs));
    list("folders", bundle.folders.iter().map(|folder| folder.as_str().into()).collect());
    list("notes", bundle.notes.iter().map(|note| note.as_str().into()).collect());
    out.into()
}

fn plain_list<T: Serialize>(items: &[T]) -> Vec<Value> {
    // Nothing in a manifest refuses to become JSON.
    items.iter().map(|item| prune(serde_json::to_value(item).unwrap_or_default())).collect()
}

/// Takes away what is as it would be anyway, and writes digests as people know them.
fn prune(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(prune).collect(),
        Value::Object(map) => {
            let mut out = Map::new();
            for (key, value) in map {
                let value = match (key.as_str(), digest(&value)) {
                    ("uid", _) => continue,
                    ("digest", Some(Digest([0, ..]))) => continue,
                    ("digest", Some(digest)) => digest.to_string().into(),
                    _ => prune(value),
                };
                let nothing = match &value {
                    Value::Null | Value::Bool(false) => true,
                    Value::String(text) => text.is_empty(),
                    Value::Array(items) => items.is_empty(),
                    Value::Object(map) => map.is_empty(),
                    Value::Number(number) => number.as_u64() == Some(0),
                    Value::Bool(true) => false,
                };
                // An empty folder, say, is told by its name alone.
                if !nothing || key.starts_with(char::is_uppercase) {
                    out.insert(key, value);
                }
            }
            out.into()
        }
        other => other,
    }
}

fn digest(value: &Value) -> Option<Digest> {
    let bytes: Vec<u8> = value.as_array()?.iter().filter_map(|byte| byte.as_u64()?.try_into().ok()).collect();
    bytes.try_into().ok().map(Digest)
}

fn data(data: &Data) -> Value {
    let content = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) if data.kind == DataKind::ConfigMap => text.to_owned(),
        _ => format!("({} bytes)", bytes.len()),
    };
    let entries = data.entries.iter().map(|(key, bytes)| (key.clone(), content(bytes).into()));
    let entries: Map<String, Value> = entries.collect();
    json!({"kind": format!("{:?}", data.kind), "namespace": data.namespace, "name": data.name, "data": entries})
}
