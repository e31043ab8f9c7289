//! Tables as kubectl prints them: columns and cells for each kind.

mod columns;

use serde_json::{Value, json};

use crate::time;

/// The Table of some objects of a kind.
pub(crate) fn of(objects: &[Value], metadata: &Value, kind: Option<&str>) -> Value {
    let columns = columns::of(kind.unwrap_or_default());
    let definitions: Vec<Value> = columns
        .iter()
        .map(|(name, priority, _)| {
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
            let cells: Vec<String> = columns.iter().map(|(_, _, cell)| cell(object)).collect();
            json!({"cells": cells, "object": part})
        })
        .collect();
    let mut about = json!({"resourceVersion": metadata["resourceVersion"]});
    for field in ["continue", "remainingItemCount"] {
        if !metadata[field].is_null() {
            about[field] = metadata[field].clone();
        }
    }
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": about,
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

/// How often a pod's containers were restarted, and when the last time.
fn restarts(pod: &Value) -> String {
    let count: u64 = statuses(pod).iter().filter_map(|status| status["restartCount"].as_u64()).sum();
    let ended = statuses(pod).iter().filter_map(|status| status["lastState"]["terminated"]["finishedAt"].as_str());
    match ended.max().filter(|_| count > 0) {
        Some(last) => format!("{count} ({} ago)", time::age(&json!(last), time::now())),
        None => count.to_string(),
    }
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
        for kind in crate::api::kinds::KINDS.iter() {
            let table = of(&[json!({"metadata": {"name": "a"}})], &json!({}), Some(kind.kind));
            let columns = table["columnDefinitions"].as_array().unwrap();
            assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), columns.len());
            assert_eq!(
                (&columns[0]["name"], &table["rows"][0]["cells"][0]),
                (&json!(columns::of(kind.kind)[0].0), &table["rows"][0]["cells"][0])
            );
        }
    }
}
