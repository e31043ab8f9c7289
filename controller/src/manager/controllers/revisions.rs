//! The history of DaemonSets and StatefulSets: a ControllerRevision a template, numbered, so that a rollout can go back.

use std::cmp::Reverse;

use serde_json::{Value, json};

use super::super::world::World;
use super::common::{delete, hash, name, number, reference};
use super::{Deed, Plan};

/// Label of pods and revisions that names the template they are of.
pub(super) const HASH: &str = "controller-revision-hash";

/// The templates of an object, by the names of their revisions.
pub(super) struct History<'a> {
    /// The hash that the present template's pods carry.
    pub(super) word: String,
    /// Revisions that there are.
    revisions: Vec<&'a Value>,
}

/// What a revision keeps of its object: a patch that `kubectl rollout undo` applies.
fn data(owner: &Value) -> Value {
    let mut template = owner["spec"]["template"].clone();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

impl<'a> History<'a> {
    /// Reads the history and plans its next entry where the template is a new one.
    pub(super) fn of(world: &'a World, owner: &'a Value, plan: &mut Plan) -> History<'a> {
        let wanted = data(owner);
        let revisions: Vec<&Value> = world.controlled(owner, "ControllerRevision").collect();
        let highest = revisions.iter().map(|revision| number(&revision["revision"])).max().unwrap_or(0);
        let word = match revisions.iter().find(|revision| revision["data"] == wanted) {
            Some(same) => {
                if number(&same["revision"]) != highest {
                    let mut newest = (*same).clone();
                    newest["revision"] = json!(highest + 1);
                    plan.add(Deed::Replace(newest));
                }
                same["metadata"]["labels"][HASH].as_str().unwrap_or_default().to_owned()
            }
            None => {
                let word = hash(&wanted);
                let mut labels = owner["spec"]["template"]["metadata"]["labels"].clone();
                labels[HASH] = json!(word);
                plan.add(Deed::Create(json!({
                    "apiVersion": "apps/v1", "kind": "ControllerRevision",
                    "metadata": {
                        "name": format!("{}-{word}", name(owner)), "namespace": owner["metadata"]["namespace"],
                        "labels": labels, "ownerReferences": [reference(owner)],
                        "annotations": owner["metadata"]["annotations"]["kubernetes.io/change-cause"].as_str().map_or_else(
                            || json!({}), |cause| json!({"kubernetes.io/change-cause": cause})),
                    },
                    "data": wanted, "revision": highest + 1,
                })));
                word
            }
        };
        History { word, revisions }
    }

    /// The object as it was when pods of this hash were made; `None` where that is not known.
    pub(super) fn template(&self, word: &str) -> Option<Value> {
        let revision = self.revisions.iter().find(|revision| revision["metadata"]["labels"][HASH] == word)?;
        let mut template = revision["data"]["spec"]["template"].clone();
        template.as_object_mut().map(|template| template.remove("$patch"));
        Some(template)
    }

    /// Forgets the oldest revisions that no pod is of, beyond those that are kept.
    pub(super) fn clean_up(&self, owner: &Value, pods: &[&Value], plan: &mut Plan) {
        let keep = usize::try_from(owner["spec"]["revisionHistoryLimit"].as_i64().unwrap_or(10)).unwrap_or(0);
        let used = |revision: &&&Value| {
            let word = &revision["metadata"]["labels"][HASH];
            *word == self.word || pods.iter().any(|pod| pod["metadata"]["labels"][HASH] == *word)
        };
        let mut idle: Vec<&&Value> = self.revisions.iter().filter(|revision| !used(revision)).collect();
        idle.sort_by_key(|revision| Reverse(number(&revision["revision"])));
        for revision in idle.into_iter().skip(keep) {
            plan.add(delete(revision));
        }
    }
}
