//! ReplicaSets: so many pods of one template.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::world::World;
use super::Deed;
use super::Plan;
use super::common::{available_at, delete, is_active, is_ready, name, number, pod_of, rank, with_condition};
use crate::selector;

/// Most pods that are made or deleted at once.
const BURST: usize = 500;

/// What is to be done about a ReplicaSet.
pub(super) fn plan(world: &World, set: &Value, failure: Option<&str>, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut pods: Vec<&Value> = world.controlled(set, "Pod").filter(|pod| is_active(pod)).collect();
    let wanted = usize::try_from(number(&set["spec"]["replicas"])).unwrap_or(0);
    if pods.len() < wanted {
        for _ in 0..(wanted - pods.len()).min(BURST) {
            let mut pod = pod_of(&set["spec"]["template"], set);
            pod["metadata"]["generateName"] = json!(format!("{}-", name(set)));
            plan.add(Deed::Create(pod));
        }
    } else if pods.len() > wanted {
        pods.sort_by_key(|pod| rank(pod));
        for pod in pods.iter().take((pods.len() - wanted).min(BURST)) {
            plan.event(set, false, "SuccessfulDelete", format!("Deleted pod: {}", name(pod)));
            plan.add(delete(pod));
        }
    }
    status(&mut plan, set, &pods, failure, now);
    plan
}

fn status(plan: &mut Plan, set: &Value, pods: &[&Value], failure: Option<&str>, now: Timestamp) {
    let min_ready = number(&set["spec"]["minReadySeconds"]);
    let mut available = 0;
    for at in pods.iter().filter_map(|pod| available_at(pod, min_ready)) {
        if at <= now {
            available += 1;
        } else {
            plan.look_at(Some(at));
        }
    }
    let labels = &set["spec"]["template"]["metadata"]["labels"];
    let labelled = pods.iter().filter(|pod| selector::has_all(labels, &pod["metadata"]["labels"])).count();
    let mut status = json!({
        "replicas": pods.len(), "fullyLabeledReplicas": labelled,
        "readyReplicas": pods.iter().filter(|pod| is_ready(pod)).count(),
        "availableReplicas": available, "observedGeneration": set["metadata"]["generation"],
    });
    let conditions = match failure {
        Some(message) => with_condition(set, "ReplicaFailure", "True", "FailedCreate", message, now),
        None => Vec::new(),
    };
    if !conditions.is_empty() {
        status["conditions"] = json!(conditions);
    }
    plan.status(set, status);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i64) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": "web", "namespace": "default", "uid": "rs", "generation": 3},
            "spec": {"replicas": replicas, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}}},
        })
    }

    fn pod(number: u8, ready: bool) -> Value {
        json!({
            "kind": "Pod",
            "metadata": {
                "name": format!("web-{number}"), "namespace": "default", "uid": number.to_string(), "labels": {"a": "b"},
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true}],
            },
            "status": {"phase": "Running", "conditions": [{
                "type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": "2026-01-01T00:00:00Z",
            }]},
        })
    }

    #[test]
    fn what_lacks_is_made_and_what_is_too_much_goes() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let world = World::of([pod(1, true), pod(2, false)]);
        let made = plan(&world, &set(4), None, now);
        assert_eq!(made.deeds.iter().filter(|deed| matches!(deed, Deed::Create(_))).count(), 2);
        let Some(Deed::Status(_, status)) = made.deeds.last() else { panic!("{made:?}") };
        assert_eq!(
            (&status["replicas"], &status["readyReplicas"], &status["availableReplicas"]),
            (&json!(2), &json!(1), &json!(1))
        );
        let less = plan(&world, &set(1), None, now);
        let gone: Vec<_> = less
            .deeds
            .iter()
            .filter_map(|deed| match deed {
                Deed::Delete(key, _) => Some(key.name.as_str()),
                _ => None,
            })
            .collect();
        assert_eq!(gone, ["web-2"]);
    }
}
