//! Which node a pod goes to. A pure function of the objects: it reads no clock and writes nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// What the pods of a node take already.
#[derive(Debug, Default)]
pub(crate) struct Load {
    pods: usize,
    host_ports: BTreeSet<(u64, String)>,
}

impl Load {
    /// Counts a pod in.
    pub(crate) fn add(&mut self, pod: &Value) {
        self.pods += 1;
        self.host_ports.extend(host_ports(pod));
    }
}

/// The ports that a pod publishes, with their protocol. The address does not count: a port is given out once a node.
fn host_ports(pod: &Value) -> impl Iterator<Item = (u64, String)> {
    let list = |value: &Value, field: &str| value[field].as_array().cloned().unwrap_or_default();
    let ports = list(&pod["spec"], "containers").into_iter().flat_map(move |container| list(&container, "ports"));
    ports.filter_map(|port| Some((port["hostPort"].as_u64()?, port["protocol"].as_str().unwrap_or("TCP").to_owned())))
}

/// Chooses a node for a pod: a ready one that has the pod's nodeSelector and its host ports free, with the fewest
/// pods; the first by name of those.
///
/// # Errors
/// Why none can take it, for people.
pub(crate) fn choose(pod: &Value, nodes: &[Value], loads: &BTreeMap<String, Load>) -> Result<String, String> {
    let (mut unready, mut unlike, mut busy) = (0, 0, 0);
    let mut best: Option<(usize, &str)> = None;
    for node in nodes {
        let Some(name) = node["metadata"]["name"].as_str() else { continue };
        let load = loads.get(name);
        if !selected(pod, node) {
            unlike += 1;
        } else if !is_ready(node) || node["spec"]["unschedulable"] == true {
            unready += 1;
        } else if host_ports(pod).any(|port| load.is_some_and(|load| load.host_ports.contains(&port))) {
            busy += 1;
        } else {
            let candidate = (load.map_or(0, |load| load.pods), name);
            best = Some(best.map_or(candidate, |best| best.min(candidate)));
        }
    }
    let Some((_, name)) = best else {
        let total = nodes.len();
        return Err(match total {
            0 => "0/0 nodes are available: no node is enrolled, see `skeg token create`".to_owned(),
            _ => format!(
                "0/{total} nodes are available: {unready} not ready, {unlike} did not match the pod's nodeSelector, \
                 {busy} didn't have free ports for the requested pod ports"
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

    fn loads(counts: &[(&str, usize)]) -> BTreeMap<String, Load> {
        let load = |count| Load { pods: count, ..Load::default() };
        counts.iter().map(|(name, count)| ((*name).to_owned(), load(*count))).collect()
    }

    #[test]
    fn a_host_port_is_given_out_once_a_node() {
        let nodes = [node("a", true), node("b", true)];
        let pod = json!({"spec": {"containers": [{"ports": [{"containerPort": 80, "hostPort": 80}]}]}});
        let mut loads = loads(&[("b", 5)]);
        loads.entry("a".to_owned()).or_default().add(&pod);
        assert_eq!(choose(&pod, &nodes, &loads).unwrap(), "b");
        loads.entry("b".to_owned()).or_default().add(&pod);
        assert!(choose(&pod, &nodes, &loads).unwrap_err().contains("2 didn't have free ports"));
    }

    #[test]
    fn the_ready_node_with_the_fewest_pods_is_chosen() {
        let nodes = [node("a", true), node("b", true), node("c", false)];
        let counts = loads(&[("a", 3), ("b", 2)]);
        assert_eq!(choose(&json!({}), &nodes, &counts).unwrap(), "b");
        assert_eq!(choose(&json!({}), &nodes, &BTreeMap::new()).unwrap(), "a");
    }

    #[test]
    fn a_selector_is_obeyed_before_the_count() {
        let nodes = [node("a", true), node("b", true)];
        let pod = json!({"spec": {"nodeSelector": {"kubernetes.io/arch": "arm64"}}});
        let counts = loads(&[("a", 9)]);
        assert_eq!(choose(&pod, &nodes, &counts).unwrap(), "a");
    }

    #[test]
    fn a_pod_that_nobody_can_take_is_told_why() {
        let pod = json!({"spec": {"nodeSelector": {"kubernetes.io/arch": "arm64"}}});
        let message = choose(&pod, &[node("a", false), node("b", true)], &BTreeMap::new()).unwrap_err();
        assert_eq!(
            message,
            "0/2 nodes are available: 1 not ready, 1 did not match the pod's nodeSelector, 0 didn't have free ports for the \
             requested pod ports"
        );
        assert!(choose(&pod, &[], &BTreeMap::new()).unwrap_err().contains("skeg token create"));
    }
}
