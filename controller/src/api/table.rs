//! Tables as kubectl prints them: columns and cells for each kind.

use serde_json::{Value, json};

use crate::time;

/// (name, priority): priority 1 shows with `-o wide` only.
type Columns = &'static [(&'static str, u8)];

const PODS: Columns = &[
    ("Name", 0),
    ("Ready", 0),
    ("Status", 0),
    ("Restarts", 0),
    ("Age", 0),
    ("IP", 1),
    ("Node", 1),
    ("Nominated Node", 1),
    ("Readiness Gates", 1),
];
const NODES: Columns = &[
    ("Name", 0),
    ("Status", 0),
    ("Roles", 0),
    ("Age", 0),
    ("Version", 0),
    ("Internal-IP", 1),
    ("External-IP", 1),
    ("OS-Image", 1),
    ("Kernel-Version", 1),
    ("Container-Runtime", 1),
];
const SECRETS: Columns = &[("Name", 0), ("Type", 0), ("Data", 0), ("Age", 0)];
const OTHERS: Columns = &[("Name", 0), ("Status", 0), ("Age", 0)];

/// The Table of some objects of a kind.
pub(crate) fn of(objects: &[Value], metadata: &Value, kind: Option<&str>) -> Value {
    let (columns, cells): (Columns, fn(&Value) -> Vec<String>) = match kind {
        Some("Pod") => (PODS, pod_cells),
        Some("Node") => (NODES, node_cells),
        Some("Secret") => (SECRETS, secret_cells),
        _ => (OTHERS, other_cells),
    };
    let definitions: Vec<Value> = columns
        .iter()
        .map(|(name, priority)| {
            let format = if *name == "Name" { "name" } else { "" };
            json!({"name": name, "type": "string", "format": format, "description": "", "priority": priority})
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let part = json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
            });
            json!({"cells": cells(object), "object": part})
        })
        .collect();
    let metadata = json!({"resourceVersion": metadata["resourceVersion"]});
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": definitions, "rows": rows,
    })
}

fn statuses(pod: &Value) -> &[Value] {
    pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// How many containers are ready, of how many.
pub(crate) fn pod_ready(pod: &Value) -> (usize, usize) {
    let ready = statuses(pod).iter().filter(|status| status["ready"] == true).count();
    (ready, pod["spec"]["containers"].as_array().map_or(0, Vec::len))
}

/// The STATUS column, as kubectl's printer makes it.
pub(crate) fn pod_reason(pod: &Value) -> String {
    let mut reason = pod["status"]["reason"]
        .as_str()
        .filter(|reason| !reason.is_empty())
        .map_or_else(|| pod["status"]["phase"].as_str().unwrap_or("Unknown").to_owned(), str::to_owned);
    let mut running = false;
    for status in statuses(pod).iter().rev() {
        let (waiting, ended) = (&status["state"]["waiting"], &status["state"]["terminated"]);
        if let Some(word) = waiting["reason"].as_str().filter(|word| !word.is_empty()) {
            reason = word.to_owned();
        } else if let Some(word) = ended["reason"].as_str().filter(|word| !word.is_empty()) {
            reason = word.to_owned();
        } else if !ended.is_null() {
            reason = match ended["signal"].as_i64() {
                Some(signal) if signal != 0 => format!("Signal:{signal}"),
                _ => format!("ExitCode:{}", ended["exitCode"]),
            };
        } else if status["ready"] == true && !status["state"]["running"].is_null() {
            running = true;
        }
    }
    if reason == "Completed" && running {
        reason = "Running".to_owned();
    }
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        reason = "Terminating".to_owned();
    }
    reason
}

fn or_none(value: &Value) -> String {
    value.as_str().filter(|text| !text.is_empty()).unwrap_or("<none>").to_owned()
}

fn secret_cells(secret: &Value) -> Vec<String> {
    vec![
        secret["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        or_none(&secret["type"]),
        secret["data"].as_object().map_or(0, serde_json::Map::len).to_string(),
        time::age(&secret["metadata"]["creationTimestamp"], time::now()),
    ]
}

/// The cells of a pod's row.
pub(crate) fn pod_cells(pod: &Value) -> Vec<String> {
    let now = time::now();
    let (ready, all) = pod_ready(pod);
    let restarts: u64 = statuses(pod).iter().filter_map(|status| status["restartCount"].as_u64()).sum();
    let ended = statuses(pod).iter().filter_map(|status| status["lastState"]["terminated"]["finishedAt"].as_str());
    let restarts = match ended.max().filter(|_| restarts > 0) {
        Some(last) => format!("{restarts} ({} ago)", time::age(&json!(last), now)),
        None => restarts.to_string(),
    };
    vec![
        pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        format!("{ready}/{all}"),
        pod_reason(pod),
        restarts,
        time::age(&pod["metadata"]["creationTimestamp"], now),
        or_none(&pod["status"]["podIP"]),
        or_none(&pod["spec"]["nodeName"]),
        "<none>".to_owned(),
        "<none>".to_owned(),
    ]
}

fn node_cells(node: &Value) -> Vec<String> {
    let info = &node["status"]["nodeInfo"];
    let addresses = node["status"]["addresses"].as_array().map(Vec::as_slice).unwrap_or_default();
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP");
    let status = if crate::schedule::is_ready(node) { "Ready" } else { "NotReady" };
    vec![
        node["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        status.to_owned(),
        "<none>".to_owned(),
        time::age(&node["metadata"]["creationTimestamp"], time::now()),
        or_none(&info["kubeletVersion"]),
        internal.map_or_else(|| "<none>".to_owned(), |address| or_none(&address["address"])),
        "<none>".to_owned(),
        or_none(&info["osImage"]),
        or_none(&info["kernelVersion"]),
        or_none(&info["containerRuntimeVersion"]),
    ]
}

fn other_cells(object: &Value) -> Vec<String> {
    vec![
        object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
        or_none(&object["status"]["phase"]),
        time::age(&object["metadata"]["creationTimestamp"], time::now()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_column_tells_what_hurts() {
        let pod = |state: Value, phase: &str| {
            json!({
                "metadata": {"name": "a"},
                "status": {"phase": phase, "containerStatuses": [{"ready": !state["running"].is_null(), "state": state}]},
            })
        };
        for (state, phase, text) in [
            (json!({"running": {}}), "Running", "Running"),
            (json!({"waiting": {"reason": "CrashLoopBackOff"}}), "Running", "CrashLoopBackOff"),
            (json!({"waiting": {"reason": "ErrImagePull"}}), "Pending", "ErrImagePull"),
            (json!({"terminated": {"reason": "OOMKilled", "exitCode": 137}}), "Failed", "OOMKilled"),
            (json!({"terminated": {"reason": "Completed", "exitCode": 0}}), "Succeeded", "Completed"),
            (json!({"terminated": {"reason": "", "exitCode": 3}}), "Failed", "ExitCode:3"),
        ] {
            assert_eq!(pod_reason(&pod(state, phase)), text);
        }
        let mut deleted = pod(json!({"running": {}}), "Running");
        deleted["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(pod_reason(&deleted), "Terminating");
    }

    #[test]
    fn a_row_has_a_cell_for_every_column() {
        for (kind, columns) in [("Pod", PODS), ("Node", NODES), ("Namespace", OTHERS)] {
            let table = of(&[json!({"metadata": {"name": "a"}})], &json!({}), Some(kind));
            assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), columns.len());
        }
    }
}
