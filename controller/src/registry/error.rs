//! Errors as the distribution-spec writes them: `{"errors": [{"code", "message"}]}`.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use serde_json::json;
use skeg_images::blobs::BlobError;

use crate::images::chain;
use crate::store::StoreError;

/// A failed request.
#[derive(Debug)]
pub(super) struct RegistryError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl RegistryError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        RegistryError { status, code, message: message.into() }
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "the admin's token is needed as password or bearer token")
    }

    pub(super) fn denied(message: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "DENIED", message)
    }

    pub(super) fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this method is not possible here")
    }

    pub(super) fn name_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", message)
    }

    pub(super) fn digest_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
    }

    pub(super) fn manifest_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", message)
    }

    pub(super) fn manifest_unknown(repository: &str, reference: &str) -> Self {
        let message = format!("{repository} has no manifest {reference}");
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message)
    }

    pub(super) fn blob_unknown(repository: &str, digest: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", format!("{repository} has no blob {digest}"))
    }

    pub(super) fn upload_unknown(id: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", format!("there is no upload {id}"))
    }

    pub(super) fn upload_invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
    }

    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID", message)
    }
}

impl From<BlobError> for RegistryError {
    fn from(error: BlobError) -> Self {
        let text = chain(&error);
        match error {
            BlobError::Digest { .. } => Self::digest_invalid(text),
            BlobError::Size { .. } => Self::new(StatusCode::BAD_REQUEST, "SIZE_INVALID", text),
            BlobError::Id(_) => Self::upload_invalid(text),
            BlobError::NoUpload(id) => Self::upload_unknown(&id),
            BlobError::Full { .. } => {
                log::error!("registry: {text}");
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "UNKNOWN", text)
            }
            BlobError::TooLarge { .. } => Self::too_large(text),
            BlobError::Io { .. } => {
                log::error!("registry: {text}");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", text)
            }
        }
    }
}

impl From<StoreError> for RegistryError {
    fn from(error: StoreError) -> Self {
        log::error!("registry: {error}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", error.to_string())
    }
}

impl RegistryError {
    /// The answer; its body is left out by HTTP itself where the request was a HEAD.
    pub(super) fn into_response(self) -> Response<Body> {
        let body = json!({"errors": [{"code": self.code, "message": self.message}]});
        (self.status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    }
}
