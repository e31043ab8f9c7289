//! StatefulSets: pods with numbers, that keep their names and claims.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::world::World;
use super::common::{available_at, delete, is_leaving, is_over, is_ready, name, number, pod_of, reference};
use super::revisions::{HASH, History};
use super::{Deed, Plan};
use crate::store::Key;

/// One place of the set.
struct Place<'a> {
    ordinal: i64,
    pod: Option<&'a Value>,
}

fn ordinal_of(set: &Value, pod: &Value) -> Option<i64> {
    name(pod).strip_prefix(name(set))?.strip_prefix('-')?.parse().ok()
}

/// The claim of a template for one pod.
fn claim_name(template: &Value, pod: &str) -> String {
    format!("{}-{pod}", template["metadata"]["name"].as_str().unwrap_or_default())
}

/// The pod of a place, of a template.
fn pod_for(set: &Value, template: &Value, ordinal: i64, word: &str) -> Value {
    let mut pod = pod_of(template, set);
    let pod_name = format!("{}-{ordinal}", name(set));
    let labels = &mut pod["metadata"]["labels"];
    labels["statefulset.kubernetes.io/pod-name"] = json!(pod_name);
    labels["apps.kubernetes.io/pod-index"] = json!(ordinal.to_string());
    labels[HASH] = json!(word);
    pod["metadata"]["name"] = json!(pod_name);
    pod["spec"]["hostname"] = json!(pod_name);
    if let Some(service) = set["spec"]["serviceName"].as_str().filter(|service| !service.is_empty()) {
        pod["spec"]["subdomain"] = json!(service);
    }
    let mut volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    for template in set["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten() {
        let volume = &template["metadata"]["name"];
        volumes.retain(|other| other["name"] != *volume);
        volumes.push(json!({"name": volume, "persistentVolumeClaim": {"claimName": claim_name(template, &pod_name)}}));
    }
    if !volumes.is_empty() {
        pod["spec"]["volumes"] = Value::Array(volumes);
    }
    pod
}

/// Makes the claims of a pod that are not there. They outlive the pod.
fn make_claims(world: &World, set: &Value, pod: &str, plan: &mut Plan) {
    let namespace = set["metadata"]["namespace"].as_str().unwrap_or_default();
    for template in set["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten() {
        let claim_name = claim_name(template, pod);
        if world.get(&Key::new("PersistentVolumeClaim", namespace, &claim_name)).is_some() {
            continue;
        }
        let mut labels = template["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        labels.extend(set["spec"]["selector"]["matchLabels"].as_object().cloned().unwrap_or_default());
        let mut claim = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": claim_name, "namespace": namespace, "labels": labels},
            "spec": template["spec"],
        });
        if set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete" {
            claim["metadata"]["ownerReferences"] = json!([reference(set)]);
        }
        plan.add(Deed::Create(claim));
    }
}

/// What is to be done about a StatefulSet.
pub(super) fn plan(world: &World, set: &Value, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let history = History::of(world, set, &mut plan);
    let pods: Vec<&Value> = world.controlled(set, "Pod").collect();
    let (start, wanted) = (number(&set["spec"]["ordinals"]["start"]), number(&set["spec"]["replicas"]));
    let at = |ordinal| pods.iter().copied().find(|pod| ordinal_of(set, pod) == Some(ordinal));
    let places: Vec<Place<'_>> = (start..start + wanted).map(|ordinal| Place { ordinal, pod: at(ordinal) }).collect();
    let mut surplus: Vec<&Value> = pods
        .iter()
        .copied()
        .filter(|pod| ordinal_of(set, pod).is_none_or(|ordinal| !(start..start + wanted).contains(&ordinal)))
        .collect();
    surplus.sort_by_key(|pod| ordinal_of(set, pod));
    let current = set["status"]["currentRevision"].as_str().unwrap_or_default();
    let current = current
        .strip_prefix(&format!("{}-", name(set)))
        .filter(|word| history.template(word).is_some())
        .unwrap_or(&history.word)
        .to_owned();
    let serves = |pod: &Value, plan: &mut Plan| match available_at(pod, number(&set["spec"]["minReadySeconds"])) {
        Some(at) if at <= now => !is_leaving(pod),
        later => {
            plan.look_at(later);
            false
        }
    };
    let steady = walk(world, set, &places, &surplus, &history, &current, &serves, &mut plan);
    if steady {
        update(set, &places, &history.word, &serves, &mut plan);
    }
    history.clean_up(set, &pods, &mut plan);
    status(set, &pods, &history.word, &current, &serves, &mut plan);
    plan
}

/// Makes what lacks in order and takes away what is too much from the end, one at a time where the policy says so. Says
/// whether everything is in its place.
#[allow(clippy::too_many_arguments, reason = "one step of one function, split off for its length")]
fn walk(
    world: &World,
    set: &Value,
    places: &[Place<'_>],
    surplus: &[&Value],
    history: &History<'_>,
    current: &str,
    serves: &impl Fn(&Value, &mut Plan) -> bool,
    plan: &mut Plan,
) -> bool {
    let in_order = set["spec"]["podManagementPolicy"] != "Parallel";
    let partition = number(&set["spec"]["updateStrategy"]["rollingUpdate"]["partition"]);
    let mut steady = true;
    for place in places {
        match place.pod {
            None => {
                let pod_name = format!("{}-{}", name(set), place.ordinal);
                make_claims(world, set, &pod_name, plan);
                let rolling = set["spec"]["updateStrategy"]["type"] != "OnDelete" && place.ordinal >= partition;
                let word = if rolling { history.word.as_str() } else { current };
                let template = history.template(word).unwrap_or_else(|| set["spec"]["template"].clone());
                plan.add(Deed::Create(pod_for(set, &template, place.ordinal, word)));
                plan.event(
                    set,
                    false,
                    "SuccessfulCreate",
                    format!("create Pod {pod_name} in StatefulSet {} successful", name(set)),
                );
                steady = false;
            }
            // One that has ended is made anew, after it is gone.
            Some(pod) if is_over(pod) && !is_leaving(pod) => {
                plan.add(delete(pod));
                steady = false;
            }
            Some(pod) if is_leaving(pod) => steady = false,
            Some(pod) if in_order && !serves(pod, plan) => steady = false,
            Some(_) => continue,
        }
        if in_order {
            return false;
        }
    }
    for pod in surplus.iter().rev() {
        steady = false;
        if !is_leaving(pod) {
            plan.event(
                set,
                false,
                "SuccessfulDelete",
                format!("delete Pod {} in StatefulSet {} successful", name(pod), name(set)),
            );
            plan.add(delete(pod));
        }
        if in_order {
            return false;
        }
    }
    steady
}

/// Replaces the last pod of an older template, down to the partition; the next one only when it serves.
fn update(set: &Value, places: &[Place<'_>], word: &str, serves: &impl Fn(&Value, &mut Plan) -> bool, plan: &mut Plan) {
    if set["spec"]["updateStrategy"]["type"] == "OnDelete" {
        return;
    }
    let partition = number(&set["spec"]["updateStrategy"]["rollingUpdate"]["partition"]);
    for place in places.iter().rev().filter(|place| place.ordinal >= partition) {
        let Some(pod) = place.pod else { return };
        if pod["metadata"]["labels"][HASH] != word {
            plan.event(
                set,
                false,
                "SuccessfulDelete",
                format!("delete Pod {} in StatefulSet {} successful", name(pod), name(set)),
            );
            plan.add(delete(pod));
            return;
        }
        if !serves(pod, plan) {
            return;
        }
    }
}

fn status(
    set: &Value,
    pods: &[&Value],
    word: &str,
    current: &str,
    serves: &impl Fn(&Value, &mut Plan) -> bool,
    plan: &mut Plan,
) {
    let of = |word: &str| pods.iter().filter(|pod| pod["metadata"]["labels"][HASH] == word).count();
    let (updated, total) = (of(word), pods.len());
    let ready = pods.iter().filter(|pod| is_ready(pod) && !is_leaving(pod)).count();
    let available = pods.iter().filter(|pod| serves(pod, plan)).count();
    let wanted = usize::try_from(number(&set["spec"]["replicas"])).unwrap_or(0);
    // The update is over when every pod is of it and ready.
    let done = updated == total && total == wanted && ready == wanted;
    let current = if done || set["status"]["currentRevision"].is_null() { word } else { current };
    let revision = |word: &str| format!("{}-{word}", name(set));
    plan.status(
        set,
        json!({
            "observedGeneration": set["metadata"]["generation"], "replicas": total, "readyReplicas": ready,
            "availableReplicas": available, "currentReplicas": of(current), "updatedReplicas": updated,
            "currentRevision": revision(current), "updateRevision": revision(word), "collisionCount": 0,
        }),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(replicas: i64, image: &str, policy: &str) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "db", "namespace": "default", "uid": "sts", "generation": 1},
            "spec": {
                "replicas": replicas, "serviceName": "db", "podManagementPolicy": policy,
                "selector": {"matchLabels": {"a": "b"}},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}],
            },
            "status": {},
        })
    }

    /// Plays the rest of the world: everything that is made is ready at once, what is deleted is gone at once.
    fn play(set: &mut Value, objects: &mut Vec<Value>) -> Vec<String> {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut log = Vec::new();
        for _ in 0..100 {
            let world = World::of(objects.iter().cloned().chain([set.clone()]));
            let plan = plan(&world, set, now);
            let mut acted = false;
            for deed in plan.deeds {
                match deed {
                    Deed::Create(mut object) => {
                        object["metadata"]["uid"] = object["metadata"]["name"].clone();
                        if object["kind"] == "Pod" {
                            log.push(format!("+{}", name(&object)));
                            let ready = json!({"type": "Ready", "status": "True", "lastTransitionTime": "2025-12-01T00:00:00Z"});
                            object["status"] = json!({"phase": "Running", "conditions": [ready]});
                        }
                        objects.push(object);
                        acted = true;
                    }
                    Deed::Delete(key, _) => {
                        log.push(format!("-{}", key.name));
                        objects.retain(|object| object["kind"] != *key.kind || name(object) != key.name);
                        acted = true;
                    }
                    Deed::Status(_, status) => {
                        acted |= set["status"] != status;
                        set["status"] = status;
                    }
                    _ => {}
                }
            }
            if !acted {
                return log;
            }
        }
        panic!("it never settles: {log:?}");
    }

    #[test]
    fn pods_come_in_order_are_updated_from_the_end_and_keep_their_claims() {
        let (mut db, mut objects) = (set(3, "1", "OrderedReady"), Vec::new());
        assert_eq!(play(&mut db, &mut objects), ["+db-0", "+db-1", "+db-2"]);
        let claims =
            |objects: &[Value]| objects.iter().filter(|object| object["kind"] == "PersistentVolumeClaim").count();
        assert_eq!(claims(&objects), 3);
        db["spec"]["template"]["spec"]["containers"][0]["image"] = json!("2");
        assert_eq!(play(&mut db, &mut objects), ["-db-2", "+db-2", "-db-1", "+db-1", "-db-0", "+db-0"]);
        assert_eq!(db["status"]["currentRevision"], db["status"]["updateRevision"]);
        db["spec"]["replicas"] = json!(1);
        assert_eq!(play(&mut db, &mut objects), ["-db-2", "-db-1"]);
        assert_eq!((claims(&objects), number(&db["status"]["replicas"])), (3, 1));
    }

    #[test]
    fn a_partition_keeps_the_first_pods_as_they_are() {
        let (mut db, mut objects) = (set(3, "1", "Parallel"), Vec::new());
        play(&mut db, &mut objects);
        db["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = json!(2);
        db["spec"]["template"]["spec"]["containers"][0]["image"] = json!("2");
        assert_eq!(play(&mut db, &mut objects), ["-db-2", "+db-2"]);
        objects.retain(|object| name(object) != "db-0");
        assert_eq!(play(&mut db, &mut objects), ["+db-0"]);
        let first = objects.iter().find(|object| name(object) == "db-0").unwrap();
        assert_eq!(first["spec"]["containers"][0]["image"], "1");
    }
}
