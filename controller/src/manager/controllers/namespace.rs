//! Namespaces: what a new one gets, and how one goes: after everything in it.

use serde_json::{Value, json};

use super::super::world::{World, key_of};
use super::common::{delete, is_leaving, name};
use super::{Deed, Plan};
use crate::api::kinds::KINDS;
use crate::store::Key;

/// What every namespace has.
fn for_new(namespace: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}})
}

/// What is to be done about a namespace.
pub(super) fn plan(world: &World, namespace: &Value) -> Plan {
    let mut plan = Plan::default();
    let own = name(namespace);
    if !is_leaving(namespace) {
        if world.get(&Key::new("ServiceAccount", own, "default")).is_none() {
            plan.add(Deed::Create(for_new(own)));
        }
        return plan;
    }
    let mut left = false;
    for kind in KINDS.iter().filter(|kind| kind.namespaced && kind.form.is_kept()) {
        for object in world.within(kind.kind, own) {
            left = true;
            if !is_leaving(object) {
                plan.add(delete(object));
            }
        }
    }
    // Its events, which are not in memory, go with it.
    if !left {
        plan.add(Deed::Remove(key_of(namespace)));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_goes_after_everything_in_it() {
        let mut namespace = json!({"kind": "Namespace", "metadata": {"name": "a", "uid": "n"}});
        assert!(matches!(plan(&World::of([]), &namespace).deeds.as_slice(), [Deed::Create(_)]));
        namespace["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        let inside = json!({"kind": "Service", "metadata": {"name": "s", "namespace": "a", "uid": "s"}});
        let beside = json!({"kind": "Service", "metadata": {"name": "s", "namespace": "aa", "uid": "t"}});
        let full = plan(&World::of([inside, beside.clone()]), &namespace);
        assert!(matches!(full.deeds.as_slice(), [Deed::Delete(key, _)] if key.namespace == "a"));
        assert!(matches!(plan(&World::of([beside]), &namespace).deeds.as_slice(), [Deed::Remove(_)]));
    }
}
