//! Which pods are on which node: an index in memory, so that a device's report costs a look at its own pods, however
//! many others there are.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::Key;

/// Pods by node.
#[derive(Debug, Default)]
pub(super) struct Placed {
    of_node: HashMap<String, BTreeSet<Key>>,
    node_of: HashMap<Key, String>,
}

impl Placed {
    /// Notes what an object is now; `None` when it is gone. Only pods matter.
    pub(super) fn note(&mut self, key: &Key, object: Option<&Value>) {
        if key.kind != "Pod" {
            return;
        }
        let node = object.and_then(|pod| pod["spec"]["nodeName"].as_str()).filter(|node| !node.is_empty());
        if self.node_of.get(key).map(String::as_str) == node {
            return;
        }
        if let Some(old) = self.node_of.remove(key)
            && let Some(keys) = self.of_node.get_mut(&old)
        {
            keys.remove(key);
            if keys.is_empty() {
                self.of_node.remove(&old);
            }
        }
        if let Some(node) = node {
            self.node_of.insert(key.clone(), node.to_owned());
            self.of_node.entry(node.to_owned()).or_default().insert(key.clone());
        }
    }

    /// The pods of a node, in order.
    pub(super) fn of(&self, node: &str) -> Vec<Key> {
        self.of_node.get(node).into_iter().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_found_where_they_are_and_nowhere_else() {
        let mut placed = Placed::default();
        let key = |name: &str| Key::new("Pod", "default", name);
        let on = |node: &str| json!({"spec": {"nodeName": node}});
        placed.note(&key("a"), Some(&on("kiln-7")));
        placed.note(&key("b"), Some(&on("kiln-70")));
        placed.note(&key("c"), Some(&json!({"spec": {}})));
        placed.note(&Key::new("Node", "", "kiln-7"), Some(&on("kiln-7")));
        assert_eq!(placed.of("kiln-7"), [key("a")]);
        placed.note(&key("c"), Some(&on("kiln-7")));
        assert_eq!(placed.of("kiln-7"), [key("a"), key("c")]);
        placed.note(&key("a"), Some(&on("kiln-70")));
        placed.note(&key("c"), None);
        assert!(placed.of("kiln-7").is_empty() && placed.of_node.len() == 1);
        assert_eq!(placed.of("kiln-70"), [key("a"), key("b")]);
    }
}
