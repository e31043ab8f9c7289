//! Join tokens over the API: made and listed, never shown again.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ApiError;
use crate::app::App;
use crate::secret::{join_token, random_word, sha256};
use crate::store::TokenRecord;
use crate::time;

const HOUR: i64 = 3600;
/// Longest life of a token.
const LONGEST: i64 = 366 * 24 * HOUR;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Spec {
    ttl_seconds: i64,
    uses: u32,
    labels: BTreeMap<String, String>,
    approve: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Spec { ttl_seconds: HOUR, uses: 1, labels: BTreeMap::new(), approve: false }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Body {
    spec: Spec,
}

fn object(record: &TokenRecord) -> Value {
    let phase = match () {
        () if time::now().as_second() >= record.expires => "expired",
        () if record.revoked => "revoked",
        () if record.uses_left == 0 => "used up",
        () => "usable",
    };
    let stamp = |seconds| jiff::Timestamp::from_second(seconds).map_or(Value::Null, |at| json!(time::text(at)));
    json!({
        "apiVersion": "skeg.dev/v1", "kind": "JoinToken",
        "metadata": {"name": record.id, "creationTimestamp": stamp(record.created)},
        "spec": {
            "ttlSeconds": record.expires - record.created, "uses": record.uses, "labels": record.labels,
            "approve": record.approve,
        },
        "status": {"expires": stamp(record.expires), "usesLeft": record.uses_left, "phase": phase},
    })
}

/// Makes a token; its text is in the answer and nowhere else.
pub(super) async fn create(State(app): State<Arc<App>>, body: Bytes) -> Result<(StatusCode, Json<Value>), ApiError> {
    let Body { spec } = match body.is_empty() {
        true => Body::default(),
        false => serde_json::from_slice(&body).map_err(|error| ApiError::bad_request(error.to_string()))?,
    };
    if !(1..=LONGEST).contains(&spec.ttl_seconds) {
        let problem = format!("{} must be 1 to {LONGEST}", spec.ttl_seconds);
        return Err(ApiError::invalid("JoinToken", "", "spec.ttlSeconds", &problem));
    }
    if spec.uses == 0 {
        return Err(ApiError::invalid("JoinToken", "", "spec.uses", "must be at least 1"));
    }
    if let Some(label) = spec.labels.iter().find(|(key, value)| !is_label(key, value)) {
        let problem = format!("{}={} is no label, or one that belongs to Kubernetes or skeg", label.0, label.1);
        return Err(ApiError::invalid("JoinToken", "", "spec.labels", &problem));
    }
    let secret = random_word(32)?;
    let created = time::now().as_second();
    let record = TokenRecord {
        id: random_word(8)?,
        created,
        expires: created + spec.ttl_seconds,
        uses: spec.uses,
        uses_left: spec.uses,
        labels: spec.labels,
        approve: spec.approve,
        revoked: false,
    };
    app.store.add_token(&sha256(secret.as_bytes()), &record)?;
    let mut object = object(&record);
    object["status"]["token"] = json!(join_token(&app.public_key, &secret));
    Ok((StatusCode::CREATED, Json(object)))
}

/// Whether a token may give this label: well formed, and none that says what the device itself says.
fn is_label(key: &str, value: &str) -> bool {
    let word = |text: &str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        bytes.len() <= 63 && bytes.iter().all(|byte| plain(*byte)) && ends(bytes.first()) && ends(bytes.last())
    };
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let free = |prefix: &str| {
        let reserved = |domain: &str| prefix == domain || prefix.ends_with(&format!(".{domain}"));
        skeg_protocol::id::is_name(prefix) && !["kubernetes.io", "k8s.io", "skeg.dev"].into_iter().any(reserved)
    };
    prefix.is_none_or(free) && word(name) && (value.is_empty() || word(value))
}

/// Takes a token back: it lets nobody in any more. Who is in stays in.
pub(super) async fn revoke(State(app): State<Arc<App>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    if !app.store.revoke_token(&id)? {
        return Err(ApiError::not_found("jointokens", &id));
    }
    let message = format!("the join token {id} lets nobody in any more");
    Ok(Json(json!({"apiVersion": "v1", "kind": "Status", "status": "Success", "message": message})))
}

/// Lists the tokens without their secrets.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let items: Vec<Value> = app.store.tokens()?.iter().map(object).collect();
    Ok(Json(json!({"apiVersion": "skeg.dev/v1", "kind": "JoinTokenList", "metadata": {}, "items": items})))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_gives_labels_of_its_own_only() {
        for (key, value) in [("site", "kiln-7"), ("example.com/site", ""), ("a_b.c", "X")] {
            assert!(is_label(key, value), "{key}={value}");
        }
        let long = "x".repeat(64);
        for (key, value) in [
            ("", "x"),
            ("-a", "x"),
            ("a", "-"),
            ("a", long.as_str()),
            ("a b", "x"),
            ("kubernetes.io/arch", "arm64"),
            ("node-role.kubernetes.io/x", ""),
            ("skeg.dev/x", "y"),
            ("/a", "x"),
            ("a/b/c", "x"),
        ] {
            assert!(!is_label(key, value), "{key}={value}");
        }
    }
}
