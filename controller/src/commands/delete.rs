//! `skeg delete`.

use anyhow::Result;
use clap::Args;
use hyper::Method;
use serde_json::json;

use super::client::{Client, is_refusal, path};
use crate::api::kinds;

/// Deletes an object.
#[derive(Debug, Clone, Args)]
pub(crate) struct Delete {
    /// Kind, such as pod or deployment
    kind: String,
    /// Which ones
    #[arg(required = true)]
    name: Vec<String>,
    /// Namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Waits until the object is gone
    #[arg(long)]
    wait: bool,
    /// Forgets a pod at once, without waiting for its device
    #[arg(long)]
    force: bool,
    /// Seconds between the stop signal and the kill
    #[arg(long)]
    grace_period: Option<i64>,
}

/// Deletes what was named.
pub(crate) async fn run(client: &Client, options: &Delete) -> Result<()> {
    let namespace = client.namespace(options.namespace.as_deref());
    for name in &options.name {
        let place = path(&options.kind, namespace, name)?;
        let grace = if options.force { Some(0) } else { options.grace_period };
        let body = grace.map(|seconds| json!({"gracePeriodSeconds": seconds}));
        let gone = client.json(Method::DELETE, &place, body.as_ref()).await?;
        // What goes at once is told in a Status, what goes later is the object itself.
        let uid = if gone["kind"] == "Status" { &gone["details"]["uid"] } else { &gone["metadata"]["uid"] };
        let kind = kinds::called(&options.kind).map_or(options.kind.clone(), kinds::Kind::resource_of_one);
        println!("{kind} \"{name}\" deleted");
        if options.wait {
            wait(client, &place, &path(&options.kind, namespace, "")?, name, uid).await?;
        }
    }
    Ok(())
}

/// Waits until an object, or the one of this uid, is gone.
async fn wait(client: &Client, place: &str, list: &str, name: &str, uid: &serde_json::Value) -> Result<()> {
    loop {
        let found = match client.json(Method::GET, place, None).await {
            Err(error) if is_refusal(&error, "NotFound") => return Ok(()),
            found => found?,
        };
        if found["metadata"]["uid"] != *uid {
            return Ok(());
        }
        let since = found["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let watch = format!("{list}?watch=1&resourceVersion={since}&fieldSelector=metadata.name%3D{name}");
        let response = match client.send(Method::GET, &watch, None).await {
            // So much has changed meanwhile that the watch cannot begin there: look again.
            Err(error) if is_refusal(&error, "Expired") => continue,
            response => response?,
        };
        let body = http_body_util::BodyStream::new(response.into_body());
        let bytes = futures_util::StreamExt::filter_map(body, async |frame| frame.ok()?.into_data().ok());
        let mut lines = Box::pin(bytes);
        // Any event is reason enough to look again.
        let _ = futures_util::StreamExt::next(&mut lines).await;
    }
}
