//! What the API offers, in the documents that clients ask for first; all of it follows from the table of kinds.

use axum::body::Body;
use axum::extract::Path;
use axum::response::{IntoResponse, Response};
use hyper::HeaderMap;
use hyper::header::{ACCEPT, CONTENT_TYPE};
use serde_json::{Value, json};

use super::ApiError;
use super::kinds::{KINDS, Kind};
use super::schema;

/// The version of Kubernetes whose API this is.
pub(super) const VERSION: &str = concat!("v1.32.0+skeg-", env!("CARGO_PKG_VERSION"));
/// Groups outside the table: the controller's own.
const OWN_GROUP: &str = "skeg.dev";

fn json_answer(value: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

pub(super) async fn version() -> Response {
    json_answer(&json!({
        "major": "1", "minor": "32", "gitVersion": VERSION,
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": format!("linux/{}", std::env::consts::ARCH),
    }))
}

/// The groups beside the core group, each once, in the order of the table.
fn groups() -> Vec<&'static str> {
    let mut groups: Vec<&str> = KINDS.iter().map(|kind| kind.group).filter(|group| !group.is_empty()).collect();
    groups.dedup();
    groups.push(OWN_GROUP);
    groups
}

fn group_document(group: &str) -> Value {
    let version = json!({"groupVersion": format!("{group}/v1"), "version": "v1"});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

/// Kind and verbs of what stands behind an object's name.
fn part(kind: &Kind, part: &str) -> (Value, &'static [&'static str]) {
    let of = |group: &str, name: &str| json!({"group": group, "version": "v1", "kind": name});
    match part {
        "scale" => (of("autoscaling", "Scale"), &["get", "patch", "update"]),
        "log" => (of("", "Pod"), &["get"]),
        "exec" => (of("", "PodExecOptions"), &["create", "get"]),
        "attach" => (of("", "PodAttachOptions"), &["create", "get"]),
        "portforward" => (of("", "PodPortForwardOptions"), &["create", "get"]),
        "binding" => (of("", "Binding"), &["create"]),
        "eviction" => (of("policy", "Eviction"), &["create"]),
        "token" => (of("authentication.k8s.io", "TokenRequest"), &["create"]),
        "finalize" => (of(kind.group, kind.kind), &["update"]),
        _ => (of(kind.group, kind.kind), &["get", "patch", "update"]),
    }
}

fn categories(kind: &Kind) -> Value {
    const ALL: [&str; 8] = ["Pod", "Service", "Deployment", "DaemonSet", "ReplicaSet", "StatefulSet", "Job", "CronJob"];
    if ALL.contains(&kind.kind) { json!(["all"]) } else { Value::Null }
}

fn join_tokens() -> Value {
    json!({
        "name": "jointokens", "singularName": "jointoken", "namespaced": false, "kind": "JoinToken",
        "verbs": ["create", "list"],
    })
}

/// The kinds of one group and their parts, as clients have always asked for them.
fn resource_list(group: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in KINDS.iter().filter(|kind| kind.group == group) {
        let mut entry = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": kind.verbs(), "shortNames": kind.short,
        });
        if let categories @ Value::Array(_) = categories(kind) {
            entry["categories"] = categories;
        }
        resources.push(entry);
        for name in kind.parts {
            let (of, verbs) = part(kind, name);
            let mut entry = json!({
                "name": format!("{}/{name}", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": of["kind"], "verbs": verbs,
            });
            if of["group"] != kind.group {
                entry["group"] = of["group"].clone();
                entry["version"] = of["version"].clone();
            }
            resources.push(entry);
        }
    }
    if group == OWN_GROUP {
        resources.push(join_tokens());
    }
    if resources.is_empty() {
        return None;
    }
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}))
}

/// One group as aggregated discovery (apidiscovery.k8s.io/v2) tells it.
fn aggregated(group: &str) -> Value {
    let mut resources: Vec<Value> = KINDS
        .iter()
        .filter(|kind| kind.group == group)
        .map(|kind| {
            let parts = kind.parts.iter().map(|name| {
                let (of, verbs) = part(kind, name);
                json!({"subresource": name, "responseKind": of, "verbs": verbs})
            });
            let mut entry = json!({
                "resource": kind.plural, "singularResource": kind.singular, "verbs": kind.verbs(),
                "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
                "scope": if kind.namespaced { "Namespaced" } else { "Cluster" }, "shortNames": kind.short,
                "subresources": parts.collect::<Vec<_>>(),
            });
            if let categories @ Value::Array(_) = categories(kind) {
                entry["categories"] = categories;
            }
            entry
        })
        .collect();
    if group == OWN_GROUP {
        resources.push(json!({
            "resource": "jointokens", "singularResource": "jointoken", "verbs": ["create", "list"], "scope": "Cluster",
            "responseKind": {"group": OWN_GROUP, "version": "v1", "kind": "JoinToken"},
        }));
    }
    let metadata = if group.is_empty() { json!({}) } else { json!({"name": group}) };
    let version = json!({"version": "v1", "freshness": "Current", "resources": resources});
    json!({"metadata": metadata, "versions": [version]})
}

/// Aggregated discovery in the version that the client asks for; `None` where it asks for none.
fn aggregate(headers: &HeaderMap, groups: &[&str]) -> Option<Response> {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok())?;
    let version = ["v2", "v2beta1"].into_iter().find(|version| {
        let asks = |kind: &str| {
            let words: Vec<&str> = kind.split(';').map(str::trim).collect();
            words.contains(&"as=APIGroupDiscoveryList") && words.contains(&format!("v={version}").as_str())
        };
        accept.split(',').any(asks)
    })?;
    let items: Vec<Value> = groups.iter().map(|group| aggregated(group)).collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items,
    });
    let kind = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    Some(([(CONTENT_TYPE, kind)], list.to_string()).into_response())
}

pub(super) async fn api(headers: HeaderMap) -> Response {
    let plain = json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []});
    aggregate(&headers, &[""]).unwrap_or_else(|| json_answer(&plain))
}

pub(super) async fn apis(headers: HeaderMap) -> Response {
    let groups = groups();
    let documents: Vec<Value> = groups.iter().map(|group| group_document(group)).collect();
    let plain = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": documents});
    aggregate(&headers, &groups).unwrap_or_else(|| json_answer(&plain))
}

pub(super) async fn core() -> Response {
    json_answer(&resource_list("").unwrap_or_default())
}

pub(super) async fn group(Path(group): Path<String>) -> Result<Response, ApiError> {
    if !groups().contains(&group.as_str()) {
        return Err(ApiError::not_found_path(&format!("/apis/{group}")));
    }
    let mut document = group_document(&group);
    document["kind"] = json!("APIGroup");
    document["apiVersion"] = json!("v1");
    Ok(json_answer(&document))
}

pub(super) async fn group_version(Path((group, version)): Path<(String, String)>) -> Result<Response, ApiError> {
    let list = resource_list(&group).filter(|_| version == "v1" && !group.is_empty());
    list.map(|list| json_answer(&list)).ok_or_else(|| ApiError::not_found_path(&format!("/apis/{group}/{version}")))
}

pub(super) async fn openapi_v2(headers: HeaderMap) -> Response {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("com.github.proto-openapi.spec.v2") {
        const KIND: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
        return ([(CONTENT_TYPE, KIND)], Body::from(schema::v2_protobuf())).into_response();
    }
    json_answer(&schema::v2())
}

pub(super) async fn openapi_v3() -> Response {
    let entry = |root: &str| {
        let place = root.trim_start_matches('/').to_owned();
        (place.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{place}?hash={VERSION}")}))
    };
    let paths: serde_json::Map<String, Value> = KINDS.iter().map(|kind| entry(&kind.root())).collect();
    json_answer(&json!({"paths": paths}))
}

pub(super) async fn openapi_v3_of(Path(path): Path<String>) -> Result<Response, ApiError> {
    let words: Vec<&str> = path.split('/').collect();
    let document = match words.as_slice() {
        ["api", version] => schema::v3("", version),
        ["apis", group, version] => schema::v3(group, version),
        _ => None,
    };
    document.map(|document| json_answer(&document)).ok_or_else(|| ApiError::not_found_path(&path))
}
