//! A container's log, streamed from its device through the link.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use serde_json::Value;
use skeg_protocol::message::{StreamEnd, StreamRequest};
use tokio::sync::oneshot;

use super::ApiError;
use super::query::{Query, flag};
use crate::app::App;
use crate::link::{Command, Opened, Piece};
use crate::store::{Key, Store};

/// A stream that is cancelled when nobody reads it any more.
struct Reader {
    app: Arc<App>,
    node: String,
    opened: Opened,
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.app.hub.send_to(&self.node, self.opened.session, Command::Cancel(self.opened.stream));
    }
}

impl Reader {
    async fn next(&self) -> Piece {
        let Opened { session, stream, pipe } = &self.opened;
        let piece = pipe.next().await;
        if let Piece::Bytes(bytes) = &piece {
            self.app.hub.send_to(&self.node, *session, Command::Consumed(*stream, bytes.len()));
        }
        piece
    }
}

/// Which container is meant.
fn container(pod: &Value, name: &str, query: &Query) -> Result<String, ApiError> {
    let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = containers.iter().filter_map(|container| container["name"].as_str()).collect();
    match (query.container.as_deref().filter(|name| !name.is_empty()), names.as_slice()) {
        (Some(wanted), names) if names.contains(&wanted) => Ok(wanted.to_owned()),
        (Some(wanted), _) => Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {name}"))),
        (None, [only]) => Ok((*only).to_owned()),
        (None, names) => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            names.join(" ")
        ))),
    }
}

/// Streams a log.
pub(super) async fn stream(app: &Arc<App>, namespace: &str, name: &str, query: &Query) -> Result<Response, ApiError> {
    let key = Key::new("Pod", namespace, name);
    let pod = app.store.get(&key)?.ok_or_else(|| ApiError::not_found("Pod", name))?;
    let container = container(&pod, name, query)?;
    let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) else {
        return Err(ApiError::bad_request(format!("pod {name} does not have a node assigned yet")));
    };
    let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
    let request = StreamRequest::Logs {
        pod: uid.parse().map_err(|_| ApiError::bad_request(format!("pod {name} has no valid uid")))?,
        container: heapless_label(&container)?,
        follow: flag(query.follow.as_ref()),
        tail: query.tail_lines,
        previous: flag(query.previous.as_ref()),
        timestamps: flag(query.timestamps.as_ref()),
    };
    let offline = || ApiError::unavailable(format!("node {node} is not connected: its logs are kept on the device"));
    let (answer, opened) = oneshot::channel();
    if !app.hub.send(node, Command::Open(request, answer)) {
        return Err(offline());
    }
    let opened = opened.await.map_err(|_| offline())?.map_err(ApiError::unavailable)?;
    let reader = Reader { app: app.clone(), node: node.to_owned(), opened };
    // An error that comes before the first byte can still be answered as one.
    let first = match reader.next().await {
        Piece::End(StreamEnd::Failed(message)) => return Err(ApiError::bad_request(message)),
        first => first,
    };
    let pieces = futures_util::stream::unfold((Some(first), reader), async |(first, reader)| {
        let piece = match first {
            Some(first) => first,
            None => reader.next().await,
        };
        match piece {
            Piece::Bytes(bytes) => Some((Ok::<_, std::io::Error>(Bytes::from(bytes)), (None, reader))),
            Piece::End(StreamEnd::Failed(message)) => {
                let note = format!("\nerror: {message}\n");
                Some((Ok(Bytes::from(note)), (Some(Piece::End(StreamEnd::Done)), reader)))
            }
            Piece::End(_) => None,
        }
    });
    Ok(([(CONTENT_TYPE, "text/plain")], Body::from_stream(pieces)).into_response())
}

fn heapless_label(text: &str) -> Result<skeg_protocol::Label, ApiError> {
    skeg_protocol::Label::try_from(text).map_err(|_| ApiError::bad_request(format!("container {text:?} is too long")))
}
