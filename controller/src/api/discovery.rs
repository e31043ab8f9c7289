//! What the API offers, in the documents that kubectl and client libraries ask for first.

use axum::Json;
use axum::extract::Path;
use serde_json::{Value, json};

/// A kind that the API serves.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    /// `Pod`.
    pub(crate) kind: &'static str,
    /// `pods`.
    pub(crate) plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
    /// Whether its objects live in namespaces.
    pub(crate) namespaced: bool,
}

/// Every generic kind.
pub(crate) const RESOURCES: [Resource; 4] = [
    Resource { kind: "Namespace", plural: "namespaces", singular: "namespace", short: &["ns"], namespaced: false },
    Resource { kind: "Node", plural: "nodes", singular: "node", short: &["no"], namespaced: false },
    Resource { kind: "Pod", plural: "pods", singular: "pod", short: &["po"], namespaced: true },
    Resource { kind: "Secret", plural: "secrets", singular: "secret", short: &[], namespaced: true },
];

/// The kind with this plural.
pub(crate) fn resource(plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|resource| resource.plural == plural)
}

pub(super) async fn version() -> Json<Value> {
    Json(json!({
        "major": "1", "minor": "32", "gitVersion": concat!("v1.32.0+skeg-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": format!("linux/{}", std::env::consts::ARCH),
    }))
}

pub(super) async fn api() -> Json<Value> {
    Json(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}))
}

fn skeg_group() -> Value {
    let version = json!({"groupVersion": "skeg.dev/v1", "version": "v1"});
    json!({"name": "skeg.dev", "versions": [version], "preferredVersion": version})
}

pub(super) async fn apis() -> Json<Value> {
    Json(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": [skeg_group()]}))
}

pub(super) async fn group() -> Json<Value> {
    let mut group = skeg_group();
    group["kind"] = json!("APIGroup");
    group["apiVersion"] = json!("v1");
    Json(group)
}

pub(super) async fn core() -> Json<Value> {
    let verbs = |resource: &Resource| match resource.kind {
        "Node" => json!(["delete", "get", "list", "patch", "update", "watch"]),
        _ => json!(["create", "delete", "get", "list", "patch", "update", "watch"]),
    };
    let mut resources: Vec<Value> = RESOURCES
        .iter()
        .map(|resource| {
            json!({
                "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
                "kind": resource.kind, "verbs": verbs(resource), "shortNames": resource.short,
            })
        })
        .collect();
    resources.push(json!({
        "name": "pods/log", "singularName": "", "namespaced": true, "kind": "Pod", "verbs": ["get"],
    }));
    resources.push(json!({
        "name": "pods/exec", "singularName": "", "namespaced": true, "kind": "PodExecOptions", "verbs": ["create", "get"],
    }));
    Json(json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": resources}))
}

pub(super) async fn skeg() -> Json<Value> {
    let tokens = json!({
        "name": "jointokens", "singularName": "jointoken", "namespaced": false, "kind": "JoinToken",
        "verbs": ["create", "list"],
    });
    Json(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "skeg.dev/v1", "resources": [tokens],
    }))
}

pub(super) async fn openapi() -> Json<Value> {
    Json(json!({"paths": {"api/v1": {"serverRelativeURL": "/openapi/v3/api/v1"}}}))
}

/// Just what kubectl needs to know that the server itself checks fields.
pub(super) async fn openapi_paths(Path(path): Path<String>) -> Result<Json<Value>, super::ApiError> {
    if path != "api/v1" {
        return Err(super::ApiError::not_found_path(&path));
    }
    let paths: serde_json::Map<String, Value> = RESOURCES
        .iter()
        .map(|resource| {
            let place = match resource.namespaced {
                true => format!("/api/v1/namespaces/{{namespace}}/{}/{{name}}", resource.plural),
                false => format!("/api/v1/{}/{{name}}", resource.plural),
            };
            let patch = json!({"patch": {
                "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": "patch",
                "x-kubernetes-group-version-kind": {"group": "", "version": "v1", "kind": resource.kind},
            }});
            (place, patch)
        })
        .collect();
    Ok(Json(json!({"openapi": "3.0.0", "info": {"title": "skeg", "version": "v1"}, "paths": paths})))
}
