//! Answers: an object or a list, as the client wants it: whole, as a table, or its metadata alone.

use axum::response::{IntoResponse, Response};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderValue, WARNING};
use hyper::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use super::table;

/// Most warnings of one answer.
const WARNINGS: usize = 20;

/// How a client wants objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    Whole,
    Table,
    /// Metadata alone.
    Partial,
}

impl View {
    /// Reads what a request accepts: the first form that is known here.
    pub(super) fn of(headers: &HeaderMap) -> View {
        let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        for kind in accept.split(',') {
            let words: Vec<&str> = kind.split(';').map(str::trim).collect();
            if words.first() != Some(&"application/json") {
                continue;
            }
            let form = words.iter().find_map(|word| word.strip_prefix("as="));
            match form {
                None => return View::Whole,
                Some("Table") if words.contains(&"v=v1") => return View::Table,
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") if words.contains(&"v=v1") => {
                    return View::Partial;
                }
                Some(_) => {}
            }
        }
        View::Whole
    }

    /// One object in this form.
    pub(super) fn object(self, kind: &str, object: &Value) -> Value {
        match self {
            View::Whole => object.clone(),
            View::Table => table::of(std::slice::from_ref(object), &object["metadata"], Some(kind)),
            View::Partial => json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
            }),
        }
    }

    /// A list in this form.
    pub(super) fn list(self, kind: &str, api_version: &str, items: Vec<Value>, metadata: &Value) -> Value {
        match self {
            View::Whole => json!({
                "kind": format!("{kind}List"), "apiVersion": api_version, "metadata": metadata, "items": items,
            }),
            View::Table => table::of(&items, metadata, Some(kind)),
            View::Partial => json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                "items": items.iter().map(|item| self.object(kind, item)).collect::<Vec<_>>(),
            }),
        }
    }
}

/// Answers with JSON, and with what the client should know beside it (RFC 7234, section 5.5).
pub(super) fn answer(code: StatusCode, body: &Value, warnings: &[String]) -> Response {
    let mut response = (code, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response();
    for warning in warnings.iter().take(WARNINGS) {
        let text = format!("299 - {warning:?}");
        if let Ok(value) = HeaderValue::from_str(&text) {
            response.headers_mut().append(WARNING, value);
        }
    }
    response
}
