//! Nodes: which of their pods have to go because of a taint, or because their device is silent for longer than they
//! stand. A pod that says nothing stays: silence is normal at the edge.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::world::World;
use super::Plan;
use super::common::{condition, delete, is_active, later, name, time_of};
use crate::schedule::tolerates;

const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// How long a pod stands a taint: `None` for ever.
fn patience(pod: &Value, taint: &Value) -> Option<i64> {
    let tolerations = pod["spec"]["tolerations"].as_array().into_iter().flatten();
    let fitting: Vec<&Value> = tolerations.filter(|toleration| tolerates(toleration, taint)).collect();
    if fitting.is_empty() {
        return Some(0);
    }
    // One without a bound stands it for ever only if no other sets one.
    fitting.iter().filter_map(|toleration| toleration["tolerationSeconds"].as_i64()).min()
}

/// What is to be done about a node's pods.
pub(super) fn plan(world: &World, node: &Value, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut taints: Vec<(Value, Timestamp)> = node["spec"]["taints"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|taint| taint["effect"] == "NoExecute")
        .map(|taint| (taint.clone(), time_of(&taint["timeAdded"]).unwrap_or(now)))
        .collect();
    let silent = condition(node, "Ready").filter(|ready| ready["status"] != "True");
    let silent = silent.and_then(|ready| time_of(&ready["lastTransitionTime"]));
    let unreachable = json!({"key": UNREACHABLE, "effect": "NoExecute"});
    for pod in world.pods_on(name(node)).filter(|pod| is_active(pod)) {
        let mut due: Option<Timestamp> = None;
        for (taint, since) in &mut taints {
            due = [due, patience(pod, taint).map(|seconds| later(*since, seconds))].into_iter().flatten().min();
        }
        // Only a pod that names silence is moved by it.
        let names = |toleration: &Value| toleration["key"] == UNREACHABLE && !toleration["tolerationSeconds"].is_null();
        if let Some(since) = silent
            && pod["spec"]["tolerations"].as_array().into_iter().flatten().any(names)
        {
            let end = patience(pod, &unreachable).map(|seconds| later(since, seconds));
            due = [due, end].into_iter().flatten().min();
        }
        match due {
            Some(due) if due <= now => {
                plan.event(pod, false, "TaintManagerEviction", format!("Marking for deletion Pod {}", name(pod)));
                plan.add(delete(pod));
            }
            later => plan.look_at(later),
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::super::Deed;
    use super::*;

    #[test]
    fn silence_moves_only_pods_that_say_so_and_a_taint_those_that_do_not_stand_it() {
        let pod = |name: &str, tolerations: Value| {
            json!({
                "kind": "Pod", "metadata": {"name": name, "namespace": "d", "uid": name},
                "spec": {"nodeName": "n", "tolerations": tolerations},
            })
        };
        let patient =
            json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}]);
        let stands = json!([{"key": "gpu", "operator": "Exists"}]);
        let world = World::of([pod("plain", Value::Null), pod("patient", patient), pod("stands", stands)]);
        let node = |taints: Value| {
            json!({
                "kind": "Node", "metadata": {"name": "n"}, "spec": {"taints": taints},
                "status": {"conditions": [{"type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-01-01T00:00:00Z"}]},
            })
        };
        let gone = |node: &Value, now: &str| {
            let plan = plan(&world, node, now.parse().unwrap());
            let gone = plan.deeds.into_iter().filter_map(|deed| match deed {
                Deed::Delete(key, _) => Some(key.name),
                _ => None,
            });
            (gone.collect::<Vec<_>>(), plan.again.map(|at| at.to_string()))
        };
        assert_eq!(gone(&node(Value::Null), "2026-01-01T00:00:30Z"), (vec![], Some("2026-01-01T00:01:00Z".to_owned())));
        assert_eq!(gone(&node(Value::Null), "2026-01-01T00:02:00Z").0, ["patient"]);
        let tainted = node(json!([{"key": "gpu", "effect": "NoExecute"}]));
        assert_eq!(gone(&tainted, "2026-01-01T00:00:30Z").0, ["patient", "plain"]);
    }
}
