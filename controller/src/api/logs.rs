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
use crate::time;

/// Streams a log.
pub(super) async fn stream(app: &Arc<App>, namespace: &str, name: &str, query: &Query) -> Result<Response, ApiError> {
    let since_seconds = since(query, time::now())?;
    let request = |pod, container| StreamRequest::Logs {
        pod,
        container,
        follow: flag(query.follow.as_ref()),
        tail: query.tail_lines,
        since_seconds,
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

/// How far back the log is wanted. A time is turned into an age, since the device's clock may be another one.
fn since(query: &Query, now: jiff::Timestamp) -> Result<Option<u64>, ApiError> {
    let Some(text) = &query.since_time else { return Ok(query.since_seconds) };
    let time: jiff::Timestamp = text
        .parse()
        .map_err(|error| ApiError::bad_request(format!("sinceTime {text:?} is no time of RFC 3339: {error}")))?;
    Ok(Some(u64::try_from(now.as_second() - time.as_second()).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_time_becomes_an_age() {
        let now: jiff::Timestamp = "2026-11-28T12:00:00Z".parse().unwrap();
        let ask = |seconds, time: Option<&str>| {
            let query = Query { since_seconds: seconds, since_time: time.map(str::to_owned), ..Query::default() };
            since(&query, now).ok()
        };
        assert_eq!(ask(None, None), Some(None));
        assert_eq!(ask(Some(5), None), Some(Some(5)));
        assert_eq!(ask(None, Some("2026-11-28T11:59:00Z")), Some(Some(60)));
        assert_eq!(ask(None, Some("2026-11-28T13:00:00+01:00")), Some(Some(0)));
        assert_eq!(ask(None, Some("2027-01-01T00:00:00Z")), Some(Some(0)), "of a clock that is ahead");
        assert_eq!(ask(None, Some("yesterday")), None);
    }
}
