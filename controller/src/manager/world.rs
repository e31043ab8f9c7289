//! All objects that controllers look at, in memory and indexed: filled once from the store, then kept up with its
//! changes. What a controller decides is a function of this.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::kinds::KINDS;
use crate::store::{Action, Change, Key, Store, StoreError};

/// A kind that no controller looks at.
const LEFT_OUT: &str = "Event";
/// Kinds whose content no controller looks at, or that must not lie around in memory: their metadata is enough.
const BARE: [&str; 3] = ["Lease", "Secret", "ConfigMap"];

/// Where an object is among those of its kind.
type Place = (String, String);

/// The objects by kind, namespace and name.
#[derive(Debug, Default)]
pub(crate) struct World {
    kinds: HashMap<&'static str, BTreeMap<Place, Arc<Value>>>,
    /// Objects by the uid of each of their owners.
    owned: HashMap<String, BTreeSet<Key>>,
    /// Pods by the node that they are bound to; those without one are under the empty name.
    on_node: BTreeMap<String, BTreeSet<Place>>,
}

/// The uids of an object's owners.
fn owners(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["ownerReferences"].as_array().into_iter().flatten().filter_map(|owner| owner["uid"].as_str())
}

fn node_of(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

/// The owner that an object answers to.
pub(crate) fn controller_of(object: &Value) -> Option<&Value> {
    object["metadata"]["ownerReferences"].as_array()?.iter().find(|owner| owner["controller"] == true)
}

/// The store's key of an object.
pub(crate) fn key_of(object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    Key::new(object["kind"].as_str().unwrap_or_default(), text("namespace"), text("name"))
}

impl World {
    /// Reads everything anew.
    pub(super) fn load(store: &dyn Store) -> Result<World, StoreError> {
        let mut world = World::default();
        for kind in KINDS.iter().filter(|kind| kind.form.is_kept() && kind.kind != LEFT_OUT) {
            for object in store.list(kind.kind, None)?.items {
                world.insert(&key_of(&object), Arc::new(object));
            }
        }
        Ok(world)
    }

    /// Follows a change; gives what the object was before.
    pub(super) fn follow(&mut self, change: &Change) -> Option<Arc<Value>> {
        if change.key.kind == LEFT_OUT {
            return None;
        }
        let before = self.remove(&change.key);
        if change.action != Action::Deleted {
            self.insert(&change.key, change.object.clone());
        }
        before
    }

    fn insert(&mut self, key: &Key, object: Arc<Value>) {
        let Some(kind) = KINDS.iter().find(|known| known.kind == key.kind) else { return };
        let place = (key.namespace.clone(), key.name.clone());
        let object = match BARE.contains(&kind.kind) {
            true => Arc::new(json!({"kind": object["kind"], "metadata": object["metadata"]})),
            false => object,
        };
        for owner in owners(&object) {
            self.owned.entry(owner.to_owned()).or_default().insert(key.clone());
        }
        if kind.kind == "Pod" {
            self.on_node.entry(node_of(&object).to_owned()).or_default().insert(place.clone());
        }
        self.kinds.entry(kind.kind).or_default().insert(place, object);
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<Value>> {
        let place = (key.namespace.clone(), key.name.clone());
        let object = self.kinds.get_mut(key.kind.as_str())?.remove(&place)?;
        for owner in owners(&object) {
            if let Some(owned) = self.owned.get_mut(owner) {
                owned.remove(key);
                if owned.is_empty() {
                    self.owned.remove(owner);
                }
            }
        }
        if key.kind == "Pod"
            && let Some(pods) = self.on_node.get_mut(node_of(&object))
        {
            pods.remove(&place);
        }
        Some(object)
    }

    /// One object.
    pub(crate) fn get(&self, key: &Key) -> Option<&Value> {
        let place = (key.namespace.clone(), key.name.clone());
        self.kinds.get(key.kind.as_str())?.get(&place).map(AsRef::as_ref)
    }

    /// All objects of a kind, in order of namespace and name.
    pub(crate) fn all(&self, kind: &str) -> impl Iterator<Item = &Value> {
        self.kinds.get(kind).into_iter().flatten().map(|(_, object)| object.as_ref())
    }

    /// The objects of a kind in a namespace.
    pub(crate) fn within<'a>(&'a self, kind: &str, namespace: &'a str) -> impl Iterator<Item = &'a Value> {
        let objects = self.kinds.get(kind);
        let from = (namespace.to_owned(), String::new());
        let range = objects.map(|objects| objects.range(from..)).into_iter().flatten();
        range.take_while(move |(place, _)| place.0 == namespace).map(|(_, object)| object.as_ref())
    }

    /// Everything that has this owner.
    pub(crate) fn owned_by(&self, uid: &str) -> impl Iterator<Item = (&Key, &Value)> {
        let keys = self.owned.get(uid).into_iter().flatten();
        keys.filter_map(|key| Some((key, self.get(key)?)))
    }

    /// The objects of a kind that answer to this owner.
    pub(crate) fn controlled<'a>(&'a self, owner: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        let uid = owner["metadata"]["uid"].as_str().unwrap_or_default();
        let owned = self.owned_by(uid).filter(move |(key, _)| key.kind == kind);
        owned.map(|(_, object)| object).filter(move |object| controller_of(object).is_some_and(|by| by["uid"] == uid))
    }

    /// The pods that are bound to a node; those bound to none are under the empty name.
    pub(crate) fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Value> {
        let pods = self.kinds.get("Pod");
        let places = self.on_node.get(node).into_iter().flatten();
        places.filter_map(move |place| pods?.get(place).map(AsRef::as_ref))
    }

    /// Owners that are named and do not exist, with what names them.
    pub(super) fn orphans(&self) -> Vec<Key> {
        let uids: BTreeSet<&str> = self
            .kinds
            .values()
            .flat_map(BTreeMap::values)
            .filter_map(|object| object["metadata"]["uid"].as_str())
            .collect();
        let lost = self.owned.iter().filter(|(uid, _)| !uids.contains(uid.as_str()));
        lost.flat_map(|(_, keys)| keys.iter().cloned()).collect()
    }

    /// Whether an object with this uid exists under the name that a reference has.
    pub(crate) fn has_owner(&self, namespace: &str, reference: &Value) -> bool {
        let text = |field: &str| reference[field].as_str().unwrap_or_default();
        let same = |key: Key| self.get(&key).is_some_and(|owner| owner["metadata"]["uid"] == reference["uid"]);
        same(Key::new(text("kind"), namespace, text("name"))) || same(Key::new(text("kind"), "", text("name")))
    }

    /// A world of these objects, for tests.
    #[cfg(test)]
    pub(crate) fn of(objects: impl IntoIterator<Item = Value>) -> World {
        let mut world = World::default();
        for object in objects {
            world.insert(&key_of(&object), Arc::new(object));
        }
        world
    }
}
