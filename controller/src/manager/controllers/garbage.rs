//! What becomes of objects whose owner goes: they go too, go first, or forget it.

use serde_json::{Value, json};

use super::super::world::{World, key_of};
use super::common::{delete, is_leaving};
use super::{Deed, Plan};
use crate::api::{FOREGROUND, ORPHAN};
use crate::store::Key;

fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn set_owners(key: &Key, list: Value) -> Deed {
    Deed::Metadata(key.clone(), "ownerReferences", list)
}

fn without_owner(object: &Value, uid: &str) -> Value {
    let list = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    list.filter(|owner| owner["uid"] != uid).cloned().collect()
}

/// What is to be done about an object because of its owners or of what it owns; `None` where that is nothing, and its
/// own controller decides.
pub(super) fn plan(world: &World, object: &Value) -> Option<Plan> {
    let mut plan = Plan::default();
    if is_leaving(object) {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        if finalizers(object).any(|name| name == ORPHAN) {
            world.owned_by(uid).for_each(|(key, dependent)| plan.add(set_owners(key, without_owner(dependent, uid))));
            finish(object, ORPHAN, &mut plan);
            return Some(plan);
        }
        if finalizers(object).any(|name| name == FOREGROUND) {
            let mut left = false;
            for (_, dependent) in world.owned_by(uid) {
                left = true;
                if !is_leaving(dependent) {
                    plan.add(delete(dependent));
                }
            }
            if !left {
                finish(object, FOREGROUND, &mut plan);
            }
            return Some(plan);
        }
        return None;
    }
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let owners = object["metadata"]["ownerReferences"].as_array().filter(|owners| !owners.is_empty())?;
    let alive: Vec<&Value> = owners.iter().filter(|owner| world.has_owner(namespace, owner)).collect();
    match alive.len() {
        0 => plan.add(delete(object)),
        some if some == owners.len() => return None,
        _ => {
            plan.add(set_owners(&key_of(object), json!(alive)));
        }
    }
    Some(plan)
}

/// Takes the last hold off an object, with which it is gone.
fn finish(object: &Value, finalizer: &str, plan: &mut Plan) {
    match finalizers(object).count() {
        1 => plan.add(Deed::Remove(key_of(object))),
        _ => {
            let rest: Vec<&str> = finalizers(object).filter(|name| *name != finalizer).collect();
            plan.add(Deed::Metadata(key_of(object), "finalizers", json!(rest)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: &str, name: &str, owner: Option<&str>) -> Value {
        let mut object = json!({"kind": kind, "metadata": {"name": name, "namespace": "default", "uid": name}});
        if let Some(owner) = owner {
            object["metadata"]["ownerReferences"] =
                json!([{"kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true}]);
        }
        object
    }

    #[test]
    fn dependents_go_with_before_or_without_their_owner() {
        let lost = object("Pod", "p", Some("gone"));
        assert!(
            matches!(plan(&World::of([]), &lost).unwrap().deeds.as_slice(), [Deed::Delete(key, _)] if key.name == "p")
        );
        let pod = object("Pod", "p", Some("rs"));
        let mut set = object("ReplicaSet", "rs", None);
        let world = World::of([pod.clone(), set.clone()]);
        assert_eq!(plan(&world, &pod), None);
        set["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        set["metadata"]["finalizers"] = json!([FOREGROUND]);
        assert!(matches!(plan(&world, &set).unwrap().deeds.as_slice(), [Deed::Delete(key, _)] if key.name == "p"));
        assert!(matches!(plan(&World::of([]), &set).unwrap().deeds.as_slice(), [Deed::Remove(_)]));
        set["metadata"]["finalizers"] = json!([ORPHAN]);
        let orphaned = plan(&world, &set).unwrap();
        let [Deed::Metadata(_, "ownerReferences", list), Deed::Remove(_)] = orphaned.deeds.as_slice() else {
            panic!("{orphaned:?}")
        };
        assert_eq!(*list, json!([]));
    }
}
