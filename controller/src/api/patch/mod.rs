//! Patches: JSON patch (RFC 6902), JSON merge (RFC 7386), Kubernetes' strategic merge and server-side apply.

mod apply;
mod fields;
mod json;
mod strategic;

use serde_json::Value;

use super::ApiError;

pub(super) use apply::{Applied, Manager, apply, track};
pub(super) use json::{merge, operate};
pub(super) use strategic::merge as strategic;

/// What a patch is, by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Operations,
    Merge,
    Strategic,
    Apply,
}

impl Form {
    /// Reads a media type.
    pub(super) fn of(media_type: &str) -> Result<Form, ApiError> {
        match media_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Form::Operations),
            "application/merge-patch+json" => Ok(Form::Merge),
            "application/strategic-merge-patch+json" => Ok(Form::Strategic),
            "application/apply-patch+yaml" => Ok(Form::Apply),
            _ => Err(ApiError::media_type(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml, \
                 application/strategic-merge-patch+json",
            )),
        }
    }
}

/// Reads a patch that is JSON.
pub(super) fn read(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))
}
