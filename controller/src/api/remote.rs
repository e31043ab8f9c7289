//! A stream to a container on its device: found by pod and container, and cancelled when nobody wants it any more.

use std::sync::Arc;

use serde_json::Value;
use skeg_protocol::message::StreamRequest;
use skeg_protocol::{Label, Uid};
use tokio::sync::oneshot;

use super::ApiError;
use crate::app::App;
use crate::link::{Command, Opened, Piece};
use crate::store::{Key, Store};

/// Most bytes of input that are handed on at once.
const INPUT: usize = 64 * 1024;

/// An open stream.
pub(super) struct Remote {
    app: Arc<App>,
    node: String,
    opened: Opened,
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.send(Command::Cancel(self.opened.stream));
    }
}

impl Remote {
    /// Opens a stream to a pod's container; a name is needed only where there are several.
    pub(super) async fn open(
        app: &Arc<App>,
        namespace: &str,
        name: &str,
        container: Option<&str>,
        request: impl FnOnce(Uid, Label) -> StreamRequest,
    ) -> Result<Remote, ApiError> {
        let key = Key::new("Pod", namespace, name);
        let pod = app.store.get(&key)?.ok_or_else(|| ApiError::not_found("Pod", name))?;
        let container = self::container(&pod, name, container)?;
        let container = Label::try_from(container.as_str())
            .map_err(|_| ApiError::bad_request(format!("container {container:?} is too long")))?;
        let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) else {
            return Err(ApiError::bad_request(format!("pod {name} does not have a node assigned yet")));
        };
        let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
        let uid = uid.parse().map_err(|_| ApiError::bad_request(format!("pod {name} has no valid uid")))?;
        let offline = || ApiError::unavailable(format!("node {node} is not connected: try again when it is"));
        let (answer, opened) = oneshot::channel();
        if !app.hub.send(node, Command::Open(request(uid, container), answer)) {
            return Err(offline());
        }
        let opened = opened.await.map_err(|_| offline())?.map_err(ApiError::unavailable)?;
        Ok(Remote { app: app.clone(), node: node.to_owned(), opened })
    }

    fn send(&self, command: Command) {
        self.app.hub.send_to(&self.node, self.opened.session, command);
    }

    /// Waits for bytes or the end. One reader only.
    pub(super) async fn next(&self) -> Piece {
        let piece = self.opened.pipe.next().await;
        if let Piece::Bytes(_, bytes) = &piece {
            self.send(Command::Consumed(self.opened.stream, bytes.len()));
        }
        piece
    }

    /// Sends bytes to the process and waits until they are on their way; none end its standard input. What comes after
    /// the end of the stream is dropped. One writer only.
    pub(super) async fn input(&self, bytes: &[u8]) {
        let pieces = if bytes.is_empty() { vec![bytes] } else { bytes.chunks(INPUT).collect() };
        for piece in pieces {
            let (done, departed) = oneshot::channel();
            self.send(Command::Input(self.opened.stream, piece.to_vec(), done));
            // An error means that the stream is over, which its output tells.
            let _ = departed.await;
        }
    }

    /// Tells the terminal's new size.
    pub(super) fn resize(&self, columns: u16, rows: u16) {
        self.send(Command::Resize(self.opened.stream, columns, rows));
    }
}

/// Which container is meant.
fn container(pod: &Value, name: &str, wanted: Option<&str>) -> Result<String, ApiError> {
    let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = containers.iter().filter_map(|container| container["name"].as_str()).collect();
    match (wanted.filter(|name| !name.is_empty()), names.as_slice()) {
        (Some(wanted), names) if names.contains(&wanted) => Ok(wanted.to_owned()),
        (Some(wanted), _) => Err(ApiError::bad_request(format!("container {wanted} is not valid for pod {name}"))),
        (None, [only]) => Ok((*only).to_owned()),
        (None, names) => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            names.join(" ")
        ))),
    }
}
