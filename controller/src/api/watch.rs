//! Watches: one JSON object a line, for as long as the client listens.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::objects::{Target, wants_table};
use super::query::{Query, Selector};
use super::{ApiError, table};
use crate::app::App;
use crate::store::{Action, Change, Store, Watch};

struct Follow {
    app: Arc<App>,
    watch: Watch,
    first: VecDeque<Value>,
    kind: &'static str,
    namespace: Option<String>,
    selector: Selector,
    table: bool,
    ends: tokio::time::Instant,
    over: bool,
}

/// Longest watch; clients begin another.
const LONGEST: Duration = Duration::from_secs(3600);

/// Streams changes of a kind. Without a resource version, what exists comes first as ADDED.
pub(super) fn stream(
    app: &Arc<App>,
    target: &Target,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let mut selector = Selector::parse(query)?;
    if target.name.is_some() {
        selector = Selector::default();
    }
    let since = match query.resource_version.as_deref() {
        None | Some("" | "0") => None,
        Some(text) => {
            Some(text.parse().map_err(|_| ApiError::bad_request(format!("resourceVersion {text:?} is no number")))?)
        }
    };
    let namespace = target.namespace.clone();
    let mut first = VecDeque::new();
    let watch = match since {
        Some(since) => app.store.watch(Some(since))?,
        None => {
            let list = app.store.list(target.resource.kind, namespace.as_deref())?;
            first.extend(list.items.into_iter().filter(|object| selector.matches(object)));
            app.store.watch(Some(list.revision))?
        }
    };
    let limit = query.timeout_seconds.map_or(LONGEST, |seconds| Duration::from_secs(seconds).min(LONGEST));
    let follow = Follow {
        app: app.clone(),
        watch,
        first,
        kind: target.resource.kind,
        namespace,
        selector,
        table: wants_table(headers),
        ends: tokio::time::Instant::now() + limit,
        over: false,
    };
    let lines = futures_util::stream::unfold(follow, async |mut follow| {
        let line = follow.next().await?;
        Some((Ok::<_, std::io::Error>(Bytes::from(format!("{line}\n"))), follow))
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response())
}

impl Follow {
    fn event(&self, kind: &str, object: &Value) -> Value {
        let object = match self.table {
            true => table::of(std::slice::from_ref(object), &object["metadata"], Some(self.kind)),
            false => object.clone(),
        };
        json!({"type": kind, "object": object})
    }

    fn concerns(&self, change: &Change) -> bool {
        change.key.kind == self.kind
            && self.namespace.as_deref().is_none_or(|namespace| namespace == change.key.namespace)
            && self.selector.matches(&change.object)
    }

    async fn next(&mut self) -> Option<Value> {
        if let Some(object) = self.first.pop_front() {
            return Some(self.event("ADDED", &object));
        }
        if self.over {
            return None;
        }
        loop {
            let change = tokio::select! {
                change = self.watch.next() => change,
                () = tokio::time::sleep_until(self.ends) => return None,
                () = self.app.stopped() => return None,
            };
            match change {
                Ok(Some(change)) if self.concerns(&change) => {
                    let kind = match change.action {
                        Action::Added => "ADDED",
                        Action::Modified => "MODIFIED",
                        Action::Deleted => "DELETED",
                    };
                    return Some(self.event(kind, &change.object));
                }
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(expired) => {
                    self.over = true;
                    return Some(json!({"type": "ERROR", "object": ApiError::from(expired).status()}));
                }
            }
        }
    }
}
