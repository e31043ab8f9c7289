//! Which node a pod goes to. A pure function of the objects: it reads no clock and writes nothing.

use std::collections::BTreeMap;

use serde_json::Value;

/// Chooses a node for a pod: a ready one that has the pod's nodeSelector, with the fewest pods; the first by name
/// of those.
///
/// # Errors
/// Why none can take it, for people.
pub(crate) fn choose(pod: &Value, nodes: &[Value], pods_of: &BTreeMap<String, usize>) -> Result<String, String> {
    let mut unready = 0;
    let mut unlike = 0;
    let mut best: Option<(usize, &str)> = None;
    for node in nodes {
        let Some(name) = node["metadata"]["name"].as_str() else { continue };
        if !selected(pod, node) {
            unlike += 1;
        } else if !is_ready(node) || node["spec"]["unschedulable"] == true {
            unready += 1;
        } else {
            let candidate = (pods_of.get(name).copied().unwrap_or(0), name);
            best = Some(best.map_or(candidate, |best| best.min(candidate)));
        }
    }
    let Some((_, name)) = best else {
        let total = nodes.len();
        return Err(match total {
            0 => "0/0 nodes are available: no node is enrolled, see `skeg token create`".to_owned(),
            _ => format!(
                "0/{total} nodes are available: {unready} not ready, {unlike} did not match the pod's nodeSelector"
            ),
        });
    };
    Ok(name.to_owned())
}

/// Whether a node's Ready condition is True.
pub(crate) fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn selected(pod: &Value, node: &Value) -> bool {
    let selector = pod["spec"]["nodeSelector"].as_object();
    selector.into_iter().flatten().all(|(label, value)| node["metadata"]["labels"][label] == *value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, ready: bool) -> Value {
        json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/arch": if name == "a" { "arm64" } else { "amd64" }}},
            "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "Unknown" }}]},
        })
    }

    #[test]
    fn the_ready_node_with_the_fewest_pods_is_chosen() {
        let nodes = [node("a", true), node("b", true), node("c", false)];
        let counts = BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 2)]);
        assert_eq!(choose(&json!({}), &nodes, &counts).unwrap(), "b");
        assert_eq!(choose(&json!({}), &nodes, &BTreeMap::new()).unwrap(), "a");
    }

    #[test]
    fn a_selector_is_obeyed_before_the_count() {
        let nodes = [node("a", true), node("b", true)];
        let pod = json!({"spec": {"nodeSelector": {"kubernetes.io/arch": "arm64"}}});
        let counts = BTreeMap::from([("a".to_owned(), 9)]);
        assert_eq!(choose(&pod, &nodes, &counts).unwrap(), "a");
    }

    #[test]
    fn a_pod_that_nobody_can_take_is_told_why() {
        let pod = json!({"spec": {"nodeSelector": {"kubernetes.io/arch": "arm64"}}});
        let message = choose(&pod, &[node("a", false), node("b", true)], &BTreeMap::new()).unwrap_err();
        assert_eq!(message, "0/2 nodes are available: 1 not ready, 1 did not match the pod's nodeSelector");
        assert!(choose(&pod, &[], &BTreeMap::new()).unwrap_err().contains("skeg token create"));
    }
}
