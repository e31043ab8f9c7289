//! What only an operator decides about a device. Each is one verb on a node: `POST
//! /apis/skeg.dev/v1/nodes/NAME/VERB`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::ApiError;
use crate::app::App;
use crate::link::Command;

/// Does what the verb says and gives an answer in Kubernetes' form.
pub(super) async fn act(
    State(app): State<Arc<App>>,
    Path((node, verb)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let done = match verb.as_str() {
        "overwrite" => overwrite(&app, &node).await?,
        _ => return Err(ApiError::not_found_path(&format!("/apis/skeg.dev/v1/nodes/{node}/{verb}"))),
    };
    Ok(Json(json!({"apiVersion": "v1", "kind": "Status", "status": "Success", "message": done})))
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
