//! Errors as Kubernetes answers them: a Status object with reason, message and code.

use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use serde_json::{Value, json};

use crate::store::{Expired, Key, StoreError};
use skeg_kube::Fault;

/// A failed request.
#[derive(Debug)]
pub(crate) struct ApiError {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Option<Value>,
}

/// The resource name that messages use for a kind.
fn plural(kind: &str) -> String {
    format!("{}s", kind.to_lowercase())
}

impl ApiError {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        ApiError { code, reason, message: message.into(), details: None }
    }

    fn about(mut self, kind: &str, name: &str) -> Self {
        self.details = Some(json!({"kind": plural(kind), "name": name}));
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn not_found_path(path: &str) -> Self {
        let mut error = Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("the server could not find the requested resource ({path})"),
        );
        error.details = Some(json!({}));
        error
    }

    pub(crate) fn not_found(kind: &str, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", plural(kind));
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(kind, name)
    }

    pub(crate) fn method() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    pub(crate) fn media_type(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    pub(crate) fn invalid_patch(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    pub(crate) fn forbidden(kind: &str, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", plural(kind));
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(kind, name)
    }

    pub(crate) fn invalid(kind: &str, name: &str, field: &str, problem: &str) -> Self {
        let message = format!("{kind} \"{name}\" is invalid: {field}: {problem}");
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
        error.details = Some(json!({
            "kind": kind, "name": name,
            "causes": [{"reason": "FieldValueInvalid", "field": field, "message": problem}],
        }));
        error
    }

    /// What is wrong with a Pod, as Kubernetes says it.
    pub(crate) fn fault(name: &str, fault: &Fault) -> Self {
        let text = fault.to_string();
        match fault {
            Fault::Unknown { .. } => {
                Self::bad_request(format!("Pod in version \"v1\" cannot be handled as a Pod: {text}"))
            }
            _ => {
                let field = fault.field();
                let problem = text.strip_prefix(field).map_or(text.as_str(), |rest| rest.trim_start_matches(": "));
                Self::invalid("Pod", name, field, problem)
            }
        }
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    pub(crate) fn conflict(key: &Key, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{}\": {why}", plural(&key.kind), key.name);
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(&key.kind, &key.name)
    }

    /// The Status object.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NotFound(key) => Self::not_found(&key.kind, &key.name),
            StoreError::Exists(key) => {
                let message = format!("{} \"{}\" already exists", plural(&key.kind), key.name);
                Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(&key.kind, &key.name)
            }
            StoreError::Conflict { key, .. } => Self::conflict(
                key,
                "the object has been modified; please apply your changes to the latest version and try again",
            ),
            _ => {
                log::error!("{error}");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", error.to_string())
            }
        }
    }
}

impl From<Expired> for ApiError {
    fn from(expired: Expired) -> Self {
        Self::new(StatusCode::GONE, "Expired", expired.to_string())
    }
}

impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        log::error!("{error:#}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", format!("{error:#}"))
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.code, [(CONTENT_TYPE, "application/json")], self.status().to_string()).into_response()
    }
}
