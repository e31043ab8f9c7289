//! What a client sends: JSON, YAML or Kubernetes' protobuf, read into an object and checked against its kind's fields.

use axum::body::Bytes;
use hyper::HeaderMap;
use hyper::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::ApiError;
use super::query::Query;
use super::schema::{self, Type};
use super::target::Target;

/// The type of what is sent to a target.
fn type_of(target: &Target) -> Option<&'static Type> {
    Type::named(match target.part() {
        "scale" => "autoscaling.v1.Scale",
        "eviction" => "policy.v1.Eviction",
        "binding" => "core.v1.Binding",
        "token" => "authentication.v1.TokenRequest",
        _ => target.kind.schema,
    })
}

/// The media type of a body.
pub(super) fn media_type(headers: &HeaderMap) -> &str {
    headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("application/json")
}

/// Reads a body as an object of a type.
fn decode(headers: &HeaderMap, body: &Bytes, kind: Option<&'static Type>) -> Result<Value, ApiError> {
    match media_type(headers).split(';').next().unwrap_or_default().trim() {
        "application/json" | "" => serde_json::from_slice(body).map_err(|error| {
            ApiError::bad_request(format!("the object provided is unrecognized (must be of type JSON): {error}"))
        }),
        "application/yaml" => {
            let text = std::str::from_utf8(body).map_err(|_| ApiError::bad_request("the body is no UTF-8"))?;
            skeg_kube::yaml::parse_one(text).map_err(|error| ApiError::bad_request(format!("{error:#}")))
        }
        "application/vnd.kubernetes.protobuf" => {
            let decoded = schema::decode(body).map_err(ApiError::bad_request)?;
            let kind = kind.ok_or_else(|| ApiError::media_type("this kind has no protobuf form"))?;
            decoded.object(kind).map_err(ApiError::bad_request)
        }
        other => Err(ApiError::media_type(format!(
            "the body of the request was in an unknown format ({other}) - accepted media types include: \
             application/json, application/yaml, application/vnd.kubernetes.protobuf"
        ))),
    }
}

/// Reads the object that a request carries, of the kind that its path names; what is unknown in it becomes warnings, or
/// an error where the client wants that.
pub(super) fn object(
    target: &Target,
    query: &Query,
    headers: &HeaderMap,
    body: &Bytes,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let kind = type_of(target);
    let mut object = decode(headers, body, kind)?;
    if !object.is_object() {
        return Err(ApiError::bad_request("the object provided is unrecognized: it is no JSON object"));
    }
    if target.part().is_empty() || target.part() == "status" {
        identify(target, &mut object)?;
    }
    validate(target, query, &object, warnings)?;
    Ok(object)
}

/// Checks that an object is of the kind of its path, and fills in what it leaves out.
pub(super) fn identify(target: &Target, object: &mut Value) -> Result<(), ApiError> {
    let (kind, version) = (target.kind.kind, target.kind.api_version());
    if let Some(found) = object["apiVersion"].as_str().filter(|found| !found.is_empty() && *found != version) {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({found}) does not match the expected API version ({version})"
        )));
    }
    if let Some(found) = object["kind"].as_str().filter(|found| !found.is_empty() && *found != kind) {
        return Err(ApiError::bad_request(format!(
            "the kind in the data ({found}) does not match the expected kind ({kind})"
        )));
    }
    object["kind"] = json!(kind);
    object["apiVersion"] = json!(version);
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    Ok(())
}

/// Takes out what is null: to Kubernetes' typed objects that is the same as not there, and two objects that differ in it
/// are equal.
pub(super) fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Checks the fields of an object as the client asks for it: `Strict`, `Warn` (the default) or `Ignore`.
pub(super) fn validate(
    target: &Target,
    query: &Query,
    object: &Value,
    warnings: &mut Vec<String>,
) -> Result<(), ApiError> {
    let Some(kind) = type_of(target) else { return Ok(()) };
    let found = schema::check(object, kind);
    let cannot = |why: String| {
        let (kind, version) = (target.kind.kind, target.kind.version);
        ApiError::bad_request(format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"))
    };
    if let Some(wrong) = found.wrong {
        return Err(cannot(wrong));
    }
    match query.field_validation.as_deref() {
        Some("Strict") if !found.unknown.is_empty() => {
            Err(cannot(format!("strict decoding error: {}", found.unknown.join(", "))))
        }
        Some("Strict" | "Ignore") => Ok(()),
        Some("Warn" | "") | None => {
            warnings.extend(found.unknown);
            Ok(())
        }
        Some(other) => Err(ApiError::bad_request(format!(
            "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
        ))),
    }
}

/// Reads the options of a deletion: nothing, JSON or protobuf.
pub(super) fn delete_options(headers: &HeaderMap, body: &Bytes) -> Result<Value, ApiError> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    decode(headers, body, Type::named("meta.v1.DeleteOptions"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_is_the_same_as_not_there() {
        let mut object = json!({"metadata": {"creationTimestamp": null, "name": "a"}, "list": [{"x": null}, {"y": 1}]});
        drop_nulls(&mut object);
        assert_eq!(object, json!({"metadata": {"name": "a"}, "list": [{}, {"y": 1}]}));
    }
}
