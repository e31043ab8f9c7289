//! Join tokens over the API: made and listed, never shown again.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
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
}

impl Default for Spec {
    fn default() -> Self {
        Spec { ttl_seconds: HOUR, uses: 1 }
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
        () if record.uses_left == 0 => "used up",
        () => "usable",
    };
    let stamp = |seconds| jiff::Timestamp::from_second(seconds).map_or(Value::Null, |at| json!(time::text(at)));
    json!({
        "apiVersion": "skeg.dev/v1", "kind": "JoinToken",
        "metadata": {"name": record.id, "creationTimestamp": stamp(record.created)},
        "spec": {"ttlSeconds": record.expires - record.created, "uses": record.uses},
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
    let secret = random_word(32)?;
    let created = time::now().as_second();
    let record = TokenRecord {
        id: random_word(8)?,
        created,
        expires: created + spec.ttl_seconds,
        uses: spec.uses,
        uses_left: spec.uses,
    };
    app.store.add_token(&sha256(secret.as_bytes()), &record)?;
    let mut object = object(&record);
    object["status"]["token"] = json!(join_token(&app.public_key, &secret));
    Ok((StatusCode::CREATED, Json(object)))
}

/// Lists the tokens without their secrets.
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let items: Vec<Value> = app.store.tokens()?.iter().map(object).collect();
    Ok(Json(json!({"apiVersion": "skeg.dev/v1", "kind": "JoinTokenList", "metadata": {}, "items": items})))
}
