//! Watches: one JSON object a line, for as long as the client listens.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::header::CONTENT_TYPE;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::ApiError;
use super::kinds::Kind;
use super::objects::Ask;
use super::query::{Selector, flag};
use super::respond::View;
use crate::app::App;
use crate::store::{Action, Change, Store, Watch};

/// Longest watch; clients begin another.
const LONGEST: Duration = Duration::from_secs(3600);
/// How often a client that asked for it is told how far the watch is.
const BOOKMARK: Duration = Duration::from_secs(60);

struct Follow {
    app: Arc<App>,
    watch: Watch,
    first: VecDeque<Value>,
    kind: &'static Kind,
    namespace: String,
    selector: Selector,
    view: View,
    ends: Instant,
    /// When the next bookmark is due, where the client wants them.
    bookmark: Option<Instant>,
    /// Newest revision that the client has seen everything up to.
    seen: u64,
    over: bool,
}

/// Streams changes of a kind. Without a resource version, what exists comes first as ADDED.
pub(super) fn stream(ask: &Ask) -> Result<Response, ApiError> {
    let (query, kind) = (&ask.query, ask.target.kind);
    let selector = Selector::parse(kind.kind, query)?;
    let wants_all = flag(query.send_initial_events.as_ref()) && query.send_initial_events.is_some();
    let since = match query.resource_version.as_deref() {
        _ if wants_all => None,
        None | Some("" | "0") => None,
        Some(text) => Some(text.parse().map_err(|_| {
            ApiError::bad_request(format!("resourceVersion: Invalid value: {text:?}: must be a number"))
        })?),
    };
    let bookmarks = flag(query.allow_watch_bookmarks.as_ref()) && query.allow_watch_bookmarks.is_some();
    let view = View::of(&ask.headers);
    let mut first = VecDeque::new();
    let (watch, seen) = match since {
        Some(since) => (ask.app.store.watch(Some(since))?, since),
        None => {
            let namespace = Some(ask.target.namespace.as_str()).filter(|namespace| !namespace.is_empty());
            let list = ask.app.store.list(kind.kind, namespace)?;
            let items = list.items.iter().filter(|object| selector.matches(object));
            first.extend(items.map(|object| json!({"type": "ADDED", "object": view.object(kind.kind, object)})));
            if wants_all {
                first.push_back(bookmark(kind, list.revision, true));
            }
            (ask.app.store.watch(Some(list.revision))?, list.revision)
        }
    };
    let limit = query.timeout_seconds.map_or(LONGEST, |seconds| Duration::from_secs(seconds).min(LONGEST));
    let follow = Follow {
        app: ask.app.clone(),
        watch,
        first,
        kind,
        namespace: ask.target.namespace.clone(),
        selector,
        view,
        ends: Instant::now() + limit,
        bookmark: bookmarks.then(|| Instant::now() + BOOKMARK),
        seen,
        over: false,
    };
    let lines = futures_util::stream::unfold(follow, async |mut follow| {
        let line = follow.next().await?;
        Some((Ok::<_, std::io::Error>(Bytes::from(format!("{line}\n"))), follow))
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response())
}

/// Tells how far a watch is; `all`: everything that there was has been told.
fn bookmark(kind: &Kind, revision: u64, all: bool) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
    if all {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object = json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata});
    json!({"type": "BOOKMARK", "object": object})
}

impl Follow {
    /// What a change is to this client: an object that begins or ceases to be selected comes or goes.
    fn event(&self, change: &Change) -> Option<Value> {
        let here =
            change.key.kind == self.kind.kind && (self.namespace.is_empty() || self.namespace == change.key.namespace);
        if !here {
            return None;
        }
        let is = change.action != Action::Deleted && self.selector.matches(&change.object);
        let was = match change.action {
            Action::Added => false,
            Action::Deleted => self.selector.matches(&change.object),
            Action::Modified => change.old.as_ref().is_some_and(|old| self.selector.matches(old)),
        };
        let word = match (was, is) {
            (false, false) => return None,
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
        };
        Some(json!({"type": word, "object": self.view.object(self.kind.kind, &change.object)}))
    }

    async fn next(&mut self) -> Option<Value> {
        if let Some(event) = self.first.pop_front() {
            return Some(event);
        }
        if self.over {
            return None;
        }
        loop {
            let due = self.bookmark;
            let bookmark_due = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let change = tokio::select! {
                change = self.watch.next() => change,
                () = bookmark_due => {
                    self.bookmark = Some(Instant::now() + BOOKMARK);
                    return Some(bookmark(self.kind, self.seen, false));
                }
                () = tokio::time::sleep_until(self.ends) => return None,
                () = self.app.stopped() => return None,
            };
            match change {
                Ok(Some(change)) => {
                    self.seen = change.revision;
                    if let Some(event) = self.event(&change) {
                        return Some(event);
                    }
                }
                Ok(None) => return None,
                Err(expired) => {
                    self.over = true;
                    return Some(json!({"type": "ERROR", "object": ApiError::from(expired).status()}));
                }
            }
        }
    }
}
