//! Errors as Kubernetes answers them: a Status object with reason, message and code.

use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::kinds;
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

/// The resource name that messages use for a kind: `pods`, `deployments.apps`.
fn plural(kind: &str) -> String {
    kinds::of(kind).map_or_else(|| format!("{}s", kind.to_lowercase()), kinds::Kind::resource)
}

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    reason: &'static str,
    field: String,
    message: String,
}

impl Cause {
    /// A value that breaks a rule.
    pub(crate) fn invalid(field: &str, value: &Value, why: &str) -> Cause {
        Cause {
            reason: "FieldValueInvalid",
            field: field.to_owned(),
            message: format!("Invalid value: {value}: {why}"),
        }
    }

    /// A field that is missing.
    pub(crate) fn required(field: &str, why: &str) -> Cause {
        let more = if why.is_empty() { String::new() } else { format!(": {why}") };
        Cause { reason: "FieldValueRequired", field: field.to_owned(), message: format!("Required value{more}") }
    }

    /// A value that is none of those that there are.
    pub(crate) fn unsupported(field: &str, value: &Value, known: &[&str]) -> Cause {
        let known: Vec<String> = known.iter().map(|word| format!("{word:?}")).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", known.join(", "));
        Cause { reason: "FieldValueNotSupported", field: field.to_owned(), message }
    }

    /// A value that may not be there, or may not change.
    pub(crate) fn forbidden(field: &str, why: &str) -> Cause {
        Cause { reason: "FieldValueForbidden", field: field.to_owned(), message: format!("Forbidden: {why}") }
    }
}

impl ApiError {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        ApiError { code, reason, message: message.into(), details: None }
    }

    fn about(mut self, kind: &str, name: &str) -> Self {
        let (group, plural) = kinds::of(kind).map_or(("", kind), |kind| (kind.group, kind.plural));
        let mut details = json!({"kind": plural, "name": name});
        if !group.is_empty() {
            details["group"] = json!(group);
        }
        self.details = Some(details);
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

    /// A request that this user may not make.
    pub(crate) fn denied(kind: &str, name: &str, message: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(kind, name)
    }

    pub(crate) fn forbidden(kind: &str, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", plural(kind));
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(kind, name)
    }

    /// One field whose problem is in words already.
    pub(crate) fn invalid(kind: &str, name: &str, field: &str, problem: &str) -> Self {
        let cause = Cause { reason: "FieldValueInvalid", field: field.to_owned(), message: problem.to_owned() };
        Self::causes(kind, name, &[cause])
    }

    /// What is wrong with an object's fields. There is at least one cause.
    pub(crate) fn causes(kind: &str, name: &str, causes: &[Cause]) -> Self {
        let (qualified, group) =
            kinds::of(kind).map_or_else(|| (kind.to_owned(), ""), |kind| (kind.qualified(), kind.group));
        let words: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let words = if let [only] = words.as_slice() { only.clone() } else { format!("[{}]", words.join(", ")) };
        let message = format!("{qualified} \"{name}\" is invalid: {words}");
        let mut error = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
        let causes: Vec<Value> = causes
            .iter()
            .map(|cause| json!({"reason": cause.reason, "field": cause.field, "message": cause.message}))
            .collect();
        let mut details = json!({"kind": kind, "name": name, "causes": causes});
        if !group.is_empty() {
            details["group"] = json!(group);
        }
        error.details = Some(details);
        error
    }

    /// An apply that meets fields of other managers: (manager in words, path) each.
    pub(crate) fn apply_conflicts(conflicts: &[(String, String)]) -> Self {
        let message = match conflicts {
            [(manager, path)] => format!("Apply failed with 1 conflict: conflict with {manager}: {path}"),
            all => {
                let mut managers: Vec<&str> = all.iter().map(|(manager, _)| manager.as_str()).collect();
                managers.sort_unstable();
                managers.dedup();
                let mut lines = Vec::new();
                for manager in managers {
                    lines.push(format!("conflicts with {manager}:"));
                    let paths = all.iter().filter(|(of, _)| of == manager);
                    lines.extend(paths.map(|(_, path)| format!("- {path}")));
                }
                format!("Apply failed with {} conflicts: {}", all.len(), lines.join("\n"))
            }
        };
        let mut error = Self::new(StatusCode::CONFLICT, "Conflict", message);
        let causes: Vec<Value> = conflicts
            .iter()
            .map(|(manager, path)| {
                let message = format!("conflict with {manager}");
                json!({"reason": "FieldManagerConflict", "message": message, "field": path})
            })
            .collect();
        error.details = Some(json!({"causes": causes}));
        error
    }

    /// Something that may be tried again later.
    pub(crate) fn too_many_requests(message: &str, cause: Option<(&str, String)>) -> Self {
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message);
        if let Some((reason, message)) = cause {
            error.details = Some(json!({"causes": [{"reason": reason, "message": message}]}));
        }
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

    /// What is wrong, for people.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// Whether what it is about does not exist.
    pub(crate) fn is_missing(&self) -> bool {
        self.reason == "NotFound"
    }

    /// Whether somebody else was quicker.
    pub(crate) fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
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
