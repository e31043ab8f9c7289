//! What several controllers need: owners, pods of templates, conditions, shares.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::super::world::key_of;
use super::Deed;
use crate::time;

/// The reference that makes `owner` the one that an object answers to.
pub(super) fn reference(owner: &Value) -> Value {
    json!({
        "apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
    })
}

/// A new pod of a template, that answers to `owner`. Its name or `generateName` is the caller's to add.
pub(super) fn pod_of(template: &Value, owner: &Value) -> Value {
    let mut metadata = json!({"namespace": owner["metadata"]["namespace"], "ownerReferences": [reference(owner)]});
    for field in ["labels", "annotations", "finalizers"] {
        if !template["metadata"][field].is_null() {
            metadata[field] = template["metadata"][field].clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// Name of an object.
pub(super) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// A number of the specification or status.
pub(super) fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// Whether a pod has ended for good.
pub(crate) fn is_over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

/// Whether an object is on its way out.
pub(super) fn is_leaving(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

/// Whether a pod runs or will.
pub(super) fn is_active(pod: &Value) -> bool {
    !is_over(pod) && !is_leaving(pod)
}

/// A condition of an object.
pub(super) fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// Whether a condition is there and true.
pub(super) fn holds(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|condition| condition["status"] == "True")
}

/// Whether a pod is ready.
pub(super) fn is_ready(pod: &Value) -> bool {
    holds(pod, "Ready")
}

/// A time in an object.
pub(super) fn time_of(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

/// Seconds after a time.
pub(super) fn later(time: Timestamp, seconds: i64) -> Timestamp {
    time.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}

/// When a ready pod has been ready for long enough; `None` when it is not ready.
pub(super) fn available_at(pod: &Value, min_ready_seconds: i64) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|condition| condition["status"] == "True")?;
    Some(later(time_of(&ready["lastTransitionTime"]).unwrap_or(Timestamp::MIN), min_ready_seconds))
}

/// A share of a total, as a number or a percentage.
pub(super) fn share(value: &Value, total: i64, round_up: bool) -> i64 {
    match (value.as_i64(), value.as_str().and_then(|text| text.strip_suffix('%')?.parse::<i64>().ok())) {
        (Some(number), _) => number,
        (None, Some(percent)) if round_up => (total * percent + 99) / 100,
        (None, Some(percent)) => total * percent / 100,
        (None, None) => 0,
    }
}

/// Deletes an object.
pub(super) fn delete(object: &Value) -> Deed {
    Deed::Delete(key_of(object), object["metadata"]["uid"].as_str().unwrap_or_default().to_owned())
}

/// Conditions with one set; its transition time is kept while its status stays.
pub(crate) fn with_condition(
    object: &Value,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Vec<Value> {
    let mut list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let old = list.iter().position(|condition| condition["type"] == kind);
    let since =
        old.filter(|place| list[*place]["status"] == status).map(|place| list[place]["lastTransitionTime"].clone());
    let fresh = json!({
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since.unwrap_or_else(|| json!(time::text(now))),
    });
    match old {
        Some(place) => list[place] = fresh,
        None => list.push(fresh),
    }
    list
}

/// A short name for a content, in letters that make no words (as Kubernetes' pod-template-hash).
pub(super) fn hash(content: &Value) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    // FNV-1a, 64 bits: stable across versions of this program, unlike the standard library's hash.
    let bits = content
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (0..10)
        .scan(bits, |bits, _| {
            let letter = LETTERS[(*bits % 27) as usize];
            *bits /= 27;
            Some(char::from(letter))
        })
        .collect()
}

/// Which pods go first when there are too many: those that matter least.
pub(super) fn rank(pod: &Value) -> (bool, u8, bool, i64, std::cmp::Reverse<Option<Timestamp>>) {
    let bound = pod["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
    let phase = match pod["status"]["phase"].as_str() {
        Some("Running") => 2,
        Some("Unknown") => 1,
        _ => 0,
    };
    let cost = &pod["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"];
    let cost = cost.as_str().and_then(|cost| cost.parse().ok()).unwrap_or(0);
    (bound, phase, is_ready(pod), cost, std::cmp::Reverse(time_of(&pod["metadata"]["creationTimestamp"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_round_as_asked() {
        for (value, total, up, share_) in [
            (json!("25%"), 3, true, 1),
            (json!("25%"), 3, false, 0),
            (json!(2), 3, true, 2),
            (json!("100%"), 7, false, 7),
        ] {
            assert_eq!(share(&value, total, up), share_);
        }
    }

    #[test]
    fn what_is_least_needed_goes_first() {
        let pod = |node: &str, ready: &str, created: &str| {
            json!({
                "metadata": {"creationTimestamp": created}, "spec": {"nodeName": node},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        let mut pods = [
            pod("n", "True", "2026-01-01T00:00:00Z"),
            pod("n", "True", "2026-01-02T00:00:00Z"),
            pod("n", "False", "2026-01-01T00:00:00Z"),
            pod("", "False", "2026-01-01T00:00:00Z"),
        ];
        let wanted: Vec<Value> = pods.iter().rev().cloned().collect();
        pods.sort_by_key(rank);
        assert_eq!(pods.to_vec(), wanted);
    }
}
