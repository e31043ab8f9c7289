//! What only an operator decides about a device. Each is one verb on a node: `POST
//! /apis/skeg.dev/v1/nodes/NAME/VERB`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::ApiError;
use crate::app::App;
use crate::link::{self, Command};
use crate::store::ConsentError;
use crate::time;

/// Does what the verb says and gives an answer in Kubernetes' form.
pub(super) async fn act(
    State(app): State<Arc<App>>,
    Path((node, verb)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let done = match verb.as_str() {
        "overwrite" => overwrite(&app, &node).await?,
        "approve" => consent(&app, &node, false)?,
        "replace" => consent(&app, &node, true)?,
        "revoke" => revoke(&app, &node)?,
        _ => return Err(ApiError::not_found_path(&format!("/apis/skeg.dev/v1/nodes/{node}/{verb}"))),
    };
    Ok(Json(json!({"apiVersion": "v1", "kind": "Status", "status": "Success", "message": done})))
}

/// Lists the devices that wait for consent.
pub(super) async fn pending(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let item = |waiting: &crate::store::Waiting| {
        let since = jiff::Timestamp::from_second(waiting.since).map_or(Value::Null, |at| json!(time::text(at)));
        json!({"name": waiting.name, "token": waiting.token, "labels": waiting.labels, "since": since})
    };
    let items: Vec<Value> = app.store.all_waiting()?.iter().map(item).collect();
    Ok(Json(json!({"apiVersion": "skeg.dev/v1", "kind": "PendingNodeList", "metadata": {}, "items": items})))
}

/// Lets in the device that waits for a name.
fn consent(app: &App, node: &str, replace: bool) -> Result<String, ApiError> {
    let waiting = app.store.consent(node, replace).map_err(|error| match error {
        ConsentError::Store(error) => error.into(),
        error => ApiError::bad_request(error.to_string()),
    })?;
    link::label(app.store.as_ref(), node, &waiting.labels)?;
    app.hub.send(node, Command::Close("another device took its name with an operator's consent"));
    Ok(format!("the device that waits for the name {node} is let in when it asks again, within about a minute"))
}

/// Forgets a device's key, at once; its node and pods stay.
fn revoke(app: &App, node: &str) -> Result<String, ApiError> {
    if app.store.forget_key(node)?.is_none() {
        return Err(ApiError::not_found("nodes", node));
    }
    app.hub.send(node, Command::Close("its key was revoked"));
    Ok(format!("the key of node {node} is forgotten: its device comes back only with a new join token"))
}

/// Gives a device this controller's manifest in place of one that this controller does not know.
async fn overwrite(app: &App, node: &str) -> Result<String, ApiError> {
    let (answer, done) = oneshot::channel();
    let away = || ApiError::unavailable(format!("node {node} is not connected: say it again when it is"));
    if !app.hub.send(node, Command::Overwrite(answer)) {
        return Err(away());
    }
    done.await.map_err(|_| away())?.map_err(ApiError::bad_request)?;
    Ok(format!("node {node} is given this controller's manifest"))
}
