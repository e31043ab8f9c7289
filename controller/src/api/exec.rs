//! `kubectl exec`: a further process in a container, its streams carried over one WebSocket.
//!
//! Speaks Kubernetes' remote command protocols v5 and v4 (k8s.io/apimachinery `remotecommand`): each binary message
//! begins with the number of its channel. The older SPDY is not spoken.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{FromRequestParts, Request};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::{Value, json};
use skeg_protocol::message::{Channel, StreamEnd, StreamRequest};

use super::ApiError;
use super::query::flag;
use super::remote::Remote;
use crate::app::App;
use crate::link::Piece;

/// The protocols that are spoken, the best first.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// Largest message that is taken; kubectl sends 32 KiB at most.
const MAX_MESSAGE: usize = 1 << 20;
/// Most arguments and bytes of a command: what fits into a frame of the link.
const MAX_COMMAND: usize = 64 * 1024;
/// How often a silent client is asked whether it still lives.
const PING: Duration = Duration::from_secs(30);

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Of v5: the channel that follows is ended.
const CLOSE: u8 = 255;

/// What is to run.
#[derive(Debug, Default, PartialEq, Eq)]
struct Order {
    container: Option<String>,
    command: Vec<String>,
    stdin: bool,
    tty: bool,
}

impl Order {
    fn parse(query: &str) -> Result<Order, ApiError> {
        let mut order = Order::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let value = value.into_owned();
            match name.as_ref() {
                "command" => order.command.push(value),
                "container" => order.container = Some(value),
                "stdin" => order.stdin = flag(Some(&value)),
                "tty" => order.tty = flag(Some(&value)),
                // Output always flows; a client that wants none drops it.
                _ => {}
            }
        }
        let length: usize = order.command.iter().map(|word| word.len() + 8).sum();
        match order.command.first() {
            None => Err(ApiError::bad_request("you must specify at least one command for the container")),
            Some(_) if length > MAX_COMMAND => {
                Err(ApiError::bad_request(format!("the command is longer than {MAX_COMMAND} bytes")))
            }
            Some(_) => Ok(order),
        }
    }
}

/// Serves one request.
pub(super) async fn serve(app: &Arc<App>, namespace: &str, name: &str, request: Request) -> Result<Response, ApiError> {
    let order = Order::parse(request.uri().query().unwrap_or_default())?;
    let (mut parts, _) = request.into_parts();
    let upgrade = WebSocketUpgrade::from_request_parts(&mut parts, &()).await.map_err(|_| {
        ApiError::bad_request("exec needs a WebSocket (RFC 6455); kubectl has spoken it since version 1.31")
    })?;
    let Order { container, command, stdin, tty } = order;
    let request = |pod, container| StreamRequest::Exec { pod, container, command, tty, stdin };
    let remote = Remote::open(app, namespace, name, container.as_deref(), request).await?;
    let upgrade = upgrade.protocols(PROTOCOLS).max_message_size(MAX_MESSAGE);
    Ok(upgrade.on_upgrade(|socket| carry(socket, remote)))
}

/// Carries bytes until the process ends or the client has gone, with which the process ends too.
async fn carry(socket: WebSocket, remote: Remote) {
    let (mut sink, source) = socket.split();
    let end = tokio::select! {
        end = output(&remote, &mut sink) => end,
        () = input(&remote, source) => None,
    };
    if let Some(end) = end {
        let mut message = vec![ERROR];
        message.extend(status(&end).to_string().into_bytes());
        // The client may have gone meanwhile; nobody else wants to know.
        let _ = sink.send(Message::Binary(message.into())).await;
        // A close without a code is an error to kubectl.
        let _ = sink.send(Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: "".into() }))).await;
    }
}

/// Sends output until the process ends; `None` when the client has gone.
async fn output(remote: &Remote, sink: &mut SplitSink<WebSocket, Message>) -> Option<StreamEnd> {
    loop {
        let message = match tokio::time::timeout(PING, remote.next()).await {
            Err(_) => Message::Ping(Vec::new().into()),
            Ok(Piece::End(end)) => return Some(end),
            Ok(Piece::Bytes(channel, bytes)) => {
                let mut message = vec![if channel == Channel::Stderr { STDERR } else { STDOUT }];
                message.extend(bytes);
                Message::Binary(message.into())
            }
        };
        sink.send(message).await.ok()?;
    }
}

/// A terminal's size as clients send it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Hands on what the client sends, until it closes.
async fn input(remote: &Remote, mut source: SplitStream<WebSocket>) {
    while let Some(Ok(message)) = source.next().await {
        let Message::Binary(message) = message else { continue };
        match message.split_first() {
            Some((&STDIN, bytes)) if !bytes.is_empty() => remote.input(bytes).await,
            Some((&RESIZE, bytes)) => {
                if let Ok(Size { width, height }) = serde_json::from_slice(bytes) {
                    remote.resize(width, height);
                }
            }
            Some((&CLOSE, [STDIN])) => remote.input(&[]).await,
            _ => {}
        }
    }
}

/// The Status object that tells how a process ended.
fn status(end: &StreamEnd) -> Value {
    match end {
        StreamEnd::Exited(0) | StreamEnd::Done => json!({"metadata": {}, "status": "Success"}),
        StreamEnd::Exited(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        StreamEnd::Cancelled => failure("the device has cancelled the stream"),
        StreamEnd::Failed(message) => failure(message),
    }
}

fn failure(message: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_becomes_an_order() {
        let order =
            Order::parse("command=sh&command=-c&command=echo+a%26b&container=web&stdin=true&tty=false").unwrap();
        let command = ["sh", "-c", "echo a&b"].map(str::to_owned).to_vec();
        assert_eq!(order, Order { container: Some("web".into()), command, stdin: true, tty: false });
        assert!(Order::parse("container=web").is_err());
        assert!(Order::parse(&format!("command={}", "a".repeat(MAX_COMMAND))).is_err());
    }
}
