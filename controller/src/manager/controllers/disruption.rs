//! PodDisruptionBudgets: how many of their pods may go by eviction now.

use serde_json::{Value, json};

use super::super::world::{World, controller_of};
use super::Plan;
use super::common::{is_active, is_ready, number, share};
use crate::selector;
use crate::store::Key;

/// How many pods there should be: what their owners ask for.
fn expected(world: &World, namespace: &str, pods: &[&Value]) -> i64 {
    let mut owners: Vec<Key> = pods
        .iter()
        .filter_map(|pod| controller_of(pod))
        .map(|owner| {
            Key::new(owner["kind"].as_str().unwrap_or_default(), namespace, owner["name"].as_str().unwrap_or_default())
        })
        .collect();
    owners.sort();
    owners.dedup();
    let free = pods.iter().filter(|pod| controller_of(pod).is_none()).count();
    let asked: i64 =
        owners.iter().filter_map(|key| world.get(key)).map(|owner| number(&owner["spec"]["replicas"])).sum();
    asked + i64::try_from(free).unwrap_or(0)
}

/// What is to be done about a budget.
pub(super) fn plan(world: &World, budget: &Value) -> Plan {
    let mut plan = Plan::default();
    let namespace = budget["metadata"]["namespace"].as_str().unwrap_or_default();
    let spec = &budget["spec"];
    let pods: Vec<&Value> = world
        .within("Pod", namespace)
        .filter(|pod| is_active(pod) && selector::matches(&spec["selector"], &pod["metadata"]["labels"]))
        .collect();
    let expected = expected(world, namespace, &pods);
    let healthy = i64::try_from(pods.iter().filter(|pod| is_ready(pod)).count()).unwrap_or(0);
    let desired = match spec["maxUnavailable"].is_null() {
        false => (expected - share(&spec["maxUnavailable"], expected, true)).max(0),
        true => share(&spec["minAvailable"], expected, true),
    };
    let status = json!({
        "observedGeneration": budget["metadata"]["generation"], "expectedPods": expected, "currentHealthy": healthy,
        "desiredHealthy": desired, "disruptionsAllowed": (healthy - desired).max(0),
    });
    plan.status(budget, status);
    plan
}

#[cfg(test)]
mod tests {
    use super::super::Deed;
    use super::*;

    #[test]
    fn what_is_healthy_beyond_need_may_go() {
        let pod = |name: &str, ready: &str| {
            json!({
                "kind": "Pod", "metadata": {"name": name, "namespace": "d", "uid": name, "labels": {"a": "b"}},
                "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]},
            })
        };
        let world = World::of([pod("x", "True"), pod("y", "True"), pod("z", "False")]);
        for (field, value, allowed) in [
            ("minAvailable", json!(1), 1),
            ("maxUnavailable", json!(1), 0),
            ("maxUnavailable", json!("50%"), 1),
            ("minAvailable", json!("100%"), 0),
        ] {
            let budget = json!({
                "kind": "PodDisruptionBudget", "metadata": {"name": "b", "namespace": "d"},
                "spec": {"selector": {"matchLabels": {"a": "b"}}, field: value},
            });
            let plan = plan(&world, &budget);
            let Deed::Status(_, status) = &plan.deeds[0] else { panic!("{plan:?}") };
            assert_eq!(status["disruptionsAllowed"], allowed, "{field} {value}");
        }
    }
}
