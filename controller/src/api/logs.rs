//! A container's log, streamed from its device through the link.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use skeg_protocol::message::{StreamEnd, StreamRequest};

use super::ApiError;
use super::query::{Query, flag};
use super::remote::Remote;
use crate::app::App;
use crate::link::Piece;

/// Streams a log.
pub(super) async fn stream(app: &Arc<App>, namespace: &str, name: &str, query: &Query) -> Result<Response, ApiError> {
    let request = |pod, container| StreamRequest::Logs {
        pod,
        container,
        follow: flag(query.follow.as_ref()),
        tail: query.tail_lines,
        previous: flag(query.previous.as_ref()),
        timestamps: flag(query.timestamps.as_ref()),
    };
    let reader = Remote::open(app, namespace, name, query.container.as_deref(), request).await?;
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
            Piece::Bytes(_, bytes) => Some((Ok::<_, std::io::Error>(Bytes::from(bytes)), (None, reader))),
            Piece::End(StreamEnd::Failed(message)) => {
                let note = format!("\nerror: {message}\n");
                Some((Ok(Bytes::from(note)), (Some(Piece::End(StreamEnd::Done)), reader)))
            }
            Piece::End(_) => None,
        }
    });
    Ok(([(CONTENT_TYPE, "text/plain")], Body::from_stream(pieces)).into_response())
}
