//! DaemonSets: one pod on every node that fits.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::world::World;
use super::common::{available_at, delete, is_leaving, is_over, is_ready, name, number, pod_of, share};
use super::revisions::{HASH, History};
use super::{Deed, Plan};
use crate::schedule;

/// What the pods of a DaemonSet stand, beside what their template says: they belong to the node.
const STOOD: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];

/// A pod of the set for a node.
fn pod_for(set: &Value, node: &str, word: &str) -> Value {
    let mut pod = pod_of(&set["spec"]["template"], set);
    pod["metadata"]["generateName"] = json!(format!("{}-", name(set)));
    pod["metadata"]["labels"][HASH] = json!(word);
    let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for (key, effect) in STOOD {
        let toleration = json!({"key": key, "operator": "Exists", "effect": effect});
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    pod["spec"]["tolerations"] = Value::Array(tolerations);
    pod["spec"]["nodeName"] = json!(node);
    pod
}

/// What is to be done about a DaemonSet.
pub(super) fn plan(world: &World, set: &Value, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let history = History::of(world, set, &mut plan);
    let pods: Vec<&Value> = world.controlled(set, "Pod").collect();
    let mut of_node: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for pod in &pods {
        of_node.entry(pod["spec"]["nodeName"].as_str().unwrap_or_default()).or_default().push(pod);
    }
    let sample = pod_for(set, "", &history.word);
    let fits = |node: &&Value| schedule::belongs(&sample, node);
    let nodes: Vec<&str> = world.all("Node").filter(fits).map(name).collect();
    for node in &nodes {
        let here = of_node.get(node).map(Vec::as_slice).unwrap_or_default();
        let mut live: Vec<&&Value> = here.iter().filter(|pod| !is_leaving(pod)).collect();
        // One that has ended is made anew, after it is gone.
        for ended in live.extract_if(.., |pod| is_over(pod)) {
            plan.event(
                set,
                true,
                "FailedDaemonPod",
                format!("Found failed daemon pod {} on node {node}, will try to kill it", name(ended)),
            );
            plan.add(delete(ended));
        }
        if here.is_empty() {
            plan.add(Deed::Create(pod_for(set, node, &history.word)));
        }
        live.sort_by_key(|pod| pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned());
        for surplus in live.iter().skip(1) {
            plan.add(delete(surplus));
        }
    }
    for (_, misplaced) in of_node.iter().filter(|(node, _)| !nodes.contains(node)) {
        misplaced.iter().filter(|pod| !is_leaving(pod)).for_each(|pod| plan.add(delete(pod)));
    }
    let numbers = Numbers::of(set, &nodes, &of_node, &history.word, now, &mut plan);
    if set["spec"]["updateStrategy"]["type"] != "OnDelete" {
        roll(set, &nodes, &of_node, &history.word, &numbers, &mut plan);
    }
    history.clean_up(set, &pods, &mut plan);
    let status = json!({
        "currentNumberScheduled": numbers.current, "desiredNumberScheduled": nodes.len(),
        "numberAvailable": numbers.available.len(), "numberMisscheduled": numbers.misplaced, "numberReady": numbers.ready,
        "numberUnavailable": nodes.len() - numbers.available.len(), "observedGeneration": set["metadata"]["generation"],
        "updatedNumberScheduled": numbers.updated,
    });
    plan.status(set, status);
    plan
}

/// How many nodes have what.
#[derive(Default)]
struct Numbers<'a> {
    current: usize,
    ready: usize,
    updated: usize,
    misplaced: usize,
    /// Nodes whose pod serves.
    available: Vec<&'a str>,
}

impl<'a> Numbers<'a> {
    fn of(
        set: &Value,
        nodes: &[&'a str],
        of_node: &BTreeMap<&str, Vec<&Value>>,
        word: &str,
        now: Timestamp,
        plan: &mut Plan,
    ) -> Numbers<'a> {
        let mut numbers = Numbers::default();
        let min_ready = number(&set["spec"]["minReadySeconds"]);
        for node in nodes {
            let Some(pod) = of_node.get(node).and_then(|pods| pods.iter().find(|pod| !is_leaving(pod))) else {
                continue;
            };
            numbers.current += 1;
            numbers.ready += usize::from(is_ready(pod));
            numbers.updated += usize::from(pod["metadata"]["labels"][HASH] == word);
            match available_at(pod, min_ready) {
                Some(at) if at <= now => numbers.available.push(node),
                later => plan.look_at(later),
            }
        }
        let elsewhere = of_node.iter().filter(|(node, _)| !nodes.contains(node));
        numbers.misplaced = elsewhere.map(|(_, pods)| pods.len()).sum();
        numbers
    }
}

/// Replaces pods of older templates, no more nodes at once than may be without one. Nodes that have none anyway go
/// first.
fn roll(
    set: &Value,
    nodes: &[&str],
    of_node: &BTreeMap<&str, Vec<&Value>>,
    word: &str,
    numbers: &Numbers<'_>,
    plan: &mut Plan,
) {
    let total = i64::try_from(nodes.len()).unwrap_or(i64::MAX);
    let rolling = &set["spec"]["updateStrategy"]["rollingUpdate"];
    let allowed = share(&rolling["maxUnavailable"], total, true).max(1);
    let mut room = allowed - (total - i64::try_from(numbers.available.len()).unwrap_or(0));
    for node in nodes {
        let old = of_node
            .get(node)
            .into_iter()
            .flatten()
            .find(|pod| !is_leaving(pod) && !is_over(pod) && pod["metadata"]["labels"][HASH] != word);
        let Some(old) = old else { continue };
        let serves = numbers.available.contains(node);
        if serves && room <= 0 {
            continue;
        }
        room -= i64::from(serves);
        plan.event(set, false, "SuccessfulDelete", format!("Deleted pod: {}", name(old)));
        plan.add(delete(old));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, sensor: bool) -> Value {
        let labels = if sensor { json!({"sensor": "true"}) } else { json!({}) };
        json!({"kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": {}, "status": {}})
    }

    fn set(image: &str) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet",
            "metadata": {"name": "agent", "namespace": "default", "uid": "ds", "generation": 1},
            "spec": {
                "selector": {"matchLabels": {"a": "b"}},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
                "template": {
                    "metadata": {"labels": {"a": "b"}},
                    "spec": {"nodeSelector": {"sensor": "true"}, "containers": [{"name": "c", "image": image}]},
                },
            },
        })
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    fn made(plan: &Plan) -> Vec<Value> {
        let made = plan.deeds.iter().filter_map(|deed| match deed {
            Deed::Create(object) if object["kind"] == "Pod" => Some(object.clone()),
            _ => None,
        });
        made.collect()
    }

    #[test]
    fn every_node_that_fits_gets_one_and_an_update_goes_node_by_node() {
        let nodes = [node("a", true), node("b", true), node("c", false)];
        let first = plan(&World::of(nodes.clone()), &set("1"), now());
        let mut pods = made(&first);
        assert_eq!(pods.iter().map(|pod| pod["spec"]["nodeName"].as_str().unwrap()).collect::<Vec<_>>(), ["a", "b"]);
        for (place, pod) in pods.iter_mut().enumerate() {
            pod["metadata"]["name"] = json!(format!("agent-{place}"));
            pod["metadata"]["uid"] = json!(format!("p{place}"));
            let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2025-12-01T00:00:00Z"});
            pod["status"] = json!({"phase": "Running", "conditions": [ready]});
        }
        let world = World::of(nodes.iter().cloned().chain(pods.clone()));
        let still = plan(&world, &set("1"), now());
        assert!(made(&still).is_empty() && !still.deeds.iter().any(|deed| matches!(deed, Deed::Delete(..))));
        let update = plan(&world, &set("2"), now());
        let gone: Vec<_> = update.deeds.iter().filter(|deed| matches!(deed, Deed::Delete(..))).collect();
        assert_eq!(gone.len(), 1);
        // A node that fits no more loses its pod.
        let fewer = World::of([node("a", true), node("b", false)].into_iter().chain(pods));
        let moved = plan(&fewer, &set("1"), now());
        assert!(moved.deeds.iter().any(|deed| matches!(deed, Deed::Delete(key, _) if key.name == "agent-1")));
    }
}
