//! Who owns which field: server-side apply with its conflicts, and the tracking of every other change
//! (`metadata.managedFields`, as structured-merge-diff defines it).

use serde_json::{Map, Value, json};

use super::fields::{Fields, Inside, Known, changed, item_name};
use crate::api::schema::Type;

/// Fields that nobody owns: what the server sets, and what names the object.
const UNOWNED: [&str; 8] =
    ["name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields", "resourceVersion"];

/// Who makes a change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manager<'a> {
    pub(crate) name: &'a str,
    pub(crate) api_version: &'a str,
    /// `status` or `scale`; empty for the object itself.
    pub(crate) part: &'a str,
    /// Now, as text.
    pub(crate) now: &'a str,
}

/// What an apply leads to.
#[derive(Debug)]
pub(crate) enum Applied {
    Object(Value),
    /// Fields that others own with other values: (manager in words, path) each.
    Conflicts(Vec<(String, String)>),
}

/// One entry of `managedFields`.
#[derive(Debug, Clone)]
struct Entry {
    head: Map<String, Value>,
    fields: Fields,
}

impl Entry {
    fn new(manager: &Manager<'_>, operation: &str) -> Entry {
        let mut head = Map::new();
        head.insert("manager".to_owned(), json!(manager.name));
        head.insert("operation".to_owned(), json!(operation));
        head.insert("apiVersion".to_owned(), json!(manager.api_version));
        head.insert("time".to_owned(), json!(manager.now));
        head.insert("fieldsType".to_owned(), json!("FieldsV1"));
        if !manager.part.is_empty() {
            head.insert("subresource".to_owned(), json!(manager.part));
        }
        Entry { head, fields: Fields::default() }
    }

    fn text(&self, name: &str) -> &str {
        self.head.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    fn is(&self, manager: &Manager<'_>, operation: &str) -> bool {
        self.text("manager") == manager.name
            && self.text("operation") == operation
            && self.text("subresource") == manager.part
    }

    /// The manager as conflicts name it.
    fn words(&self) -> String {
        let mut words = format!("{:?}", self.text("manager"));
        if !self.text("subresource").is_empty() {
            words.push_str(&format!(" with subresource {:?}", self.text("subresource")));
        }
        if self.text("operation") == "Update" {
            words.push_str(&format!(" using {} at {}", self.text("apiVersion"), self.text("time")));
        }
        words
    }
}

fn entries(object: &Value) -> Vec<Entry> {
    let list = object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    let entry = |entry: &Value| {
        let mut head = entry.as_object()?.clone();
        let fields = Fields::read(&head.remove("fieldsV1").unwrap_or_default());
        Some(Entry { head, fields })
    };
    list.iter().filter_map(entry).collect()
}

fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    let list = entries.into_iter().map(|mut entry| {
        entry.head.insert("fieldsV1".to_owned(), entry.fields.write());
        Value::Object(entry.head)
    });
    object["metadata"]["managedFields"] = Value::Array(list.collect());
}

fn owned(mut fields: Fields) -> Fields {
    fields.below.remove("f:apiVersion");
    fields.below.remove("f:kind");
    if let Some(metadata) = fields.below.get_mut("f:metadata") {
        for name in UNOWNED {
            metadata.below.remove(&format!("f:{name}"));
        }
        metadata.here = false;
        if metadata.is_empty() {
            fields.below.remove("f:metadata");
        }
    }
    fields
}

/// The entry of a manager, made where there is none.
fn entry_of<'a>(entries: &'a mut Vec<Entry>, manager: &Manager<'_>, operation: &str) -> &'a mut Entry {
    let place = entries.iter().position(|entry| entry.is(manager, operation)).unwrap_or_else(|| {
        entries.push(Entry::new(manager, operation));
        entries.len() - 1
    });
    &mut entries[place]
}

/// Notes who changed what between two states of an object.
pub(crate) fn track(old: Option<&Value>, new: &mut Value, kind: &'static Type, manager: &Manager<'_>) {
    let (before, known) = (old.cloned().unwrap_or_default(), Known::Type(kind));
    let mut entries = entries(&before);
    let touched = owned(changed(&before, new, known));
    let mut gone = owned(Fields::of(&before, known));
    gone.subtract(&Fields::of(new, known));
    for entry in &mut entries {
        entry.fields.subtract(&touched);
        entry.fields.subtract(&gone);
    }
    if !touched.is_empty() {
        let entry = entry_of(&mut entries, manager, "Update");
        entry.fields.add(&touched);
        entry.head.insert("time".to_owned(), json!(manager.now));
    }
    write(new, entries);
}

/// Applies what a manager wants an object to be.
pub(crate) fn apply(
    live: Option<&Value>,
    config: &Value,
    kind: &'static Type,
    manager: &Manager<'_>,
    force: bool,
) -> Applied {
    let (before, known) = (live.cloned().unwrap_or_else(|| json!({})), Known::Type(kind));
    let mut entries = entries(&before);
    let wanted = owned(Fields::of(config, known));
    let mut merged = before.clone();
    join(&mut merged, config, known);
    let last = entries.iter().find(|entry| entry.is(manager, "Apply")).map(|entry| entry.fields.clone());
    let mut kept = wanted.clone();
    for other in entries.iter().filter(|entry| !entry.is(manager, "Apply")) {
        kept.add(&other.fields);
    }
    prune(&mut merged, &last.unwrap_or_default(), &kept, known);
    let touched = owned(changed(&before, &merged, known));
    let mut conflicts = Vec::new();
    for other in entries.iter_mut().filter(|entry| !entry.is(manager, "Apply")) {
        let common = other.fields.common(&touched);
        conflicts.extend(common.paths().into_iter().map(|path| (other.words(), path)));
        if force {
            other.fields.subtract(&common);
        }
    }
    if !conflicts.is_empty() && !force {
        return Applied::Conflicts(conflicts);
    }
    let entry = entry_of(&mut entries, manager, "Apply");
    if entry.fields != wanted {
        entry.fields = wanted;
        entry.head.insert("time".to_owned(), json!(manager.now));
    }
    write(&mut merged, entries);
    Applied::Object(merged)
}

/// Merges a configuration into an object.
fn join(target: &mut Value, config: &Value, known: Known) {
    match (known.inside(config), config) {
        (Inside::Object, Value::Object(map)) => {
            if !target.is_object() {
                *target = json!({});
            }
            for (name, value) in map {
                join(&mut target[name.as_str()], value, known.field(name));
            }
        }
        (Inside::Keyed(keys), Value::Array(items)) => {
            let mut list = target.as_array().cloned().unwrap_or_default();
            for item in items {
                let name = item_name(item, keys);
                match list.iter_mut().find(|old| item_name(old, keys) == name) {
                    Some(old) => join(old, item, known.item()),
                    None => list.push(item.clone()),
                }
            }
            *target = Value::Array(list);
        }
        (Inside::Set, Value::Array(items)) => {
            let mut list = target.as_array().cloned().unwrap_or_default();
            list.extend(items.iter().filter(|item| !list.contains(item)).cloned().collect::<Vec<_>>());
            *target = Value::Array(list);
        }
        _ => *target = config.clone(),
    }
}

/// Takes out what the manager applied last time and nobody keeps.
fn prune(value: &mut Value, last: &Fields, kept: &Fields, known: Known) {
    for (name, fields) in &last.below {
        let still = kept.below.get(name);
        match (name.split_once(':'), &mut *value) {
            (Some(("f", field)), Value::Object(map)) => match (still, map.get_mut(field)) {
                (Some(kept), Some(value)) => prune(value, fields, kept, known.field(field)),
                (None, Some(_)) => drop(map.remove(field)),
                (_, None) => {}
            },
            (Some(("k", _)), Value::Array(list)) => {
                let Known::Field(field) = known else { continue };
                let place = list.iter().position(|item| item_name(item, &field.keys) == *name);
                match (still, place) {
                    (Some(kept), Some(place)) => prune(&mut list[place], fields, kept, known.item()),
                    (None, Some(place)) => drop(list.remove(place)),
                    (_, None) => {}
                }
            }
            (Some(("v", text)), Value::Array(list)) if still.is_none() => {
                let gone: Value = serde_json::from_str(text).unwrap_or_default();
                list.retain(|item| *item != gone);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(name: &str) -> Manager<'_> {
        Manager { name, api_version: "apps/v1", part: "", now: "2026-01-01T00:00:00Z" }
    }

    fn kind() -> &'static Type {
        Type::named("apps.v1.Deployment").unwrap()
    }

    fn applied(live: Option<&Value>, config: Value, name: &str, force: bool) -> Result<Value, Vec<(String, String)>> {
        match apply(live, &config, kind(), &manager(name), force) {
            Applied::Object(object) => Ok(object),
            Applied::Conflicts(conflicts) => Err(conflicts),
        }
    }

    fn deployment(containers: Value, replicas: Value) -> Value {
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "labels": {"x": "y"}},
            "spec": {"template": {"spec": {"containers": containers}}},
        });
        if !replicas.is_null() {
            object["spec"]["replicas"] = replicas;
        }
        object
    }

    #[test]
    fn what_is_applied_no_more_goes_and_what_others_own_stays() {
        let two =
            json!([{"name": "a", "image": "1", "env": [{"name": "E", "value": "v"}]}, {"name": "b", "image": "1"}]);
        let first = applied(None, deployment(two, json!(2)), "me", false).unwrap();
        assert!(first["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:replicas"].is_object());
        let other = applied(Some(&first), json!({"metadata": {"labels": {"z": "1"}}}), "other", false).unwrap();
        let one =
            applied(Some(&other), deployment(json!([{"name": "a", "image": "2"}]), Value::Null), "me", false).unwrap();
        let wanted = json!([{"name": "a", "image": "2"}]);
        assert_eq!(one["spec"]["template"]["spec"]["containers"], wanted);
        assert_eq!(one["metadata"]["labels"], json!({"x": "y", "z": "1"}));
        assert_eq!(one["spec"]["replicas"], Value::Null);
    }

    #[test]
    fn a_value_that_another_owns_is_a_conflict_until_forced() {
        let live = applied(None, deployment(json!([{"name": "a", "image": "1"}]), json!(2)), "me", false).unwrap();
        let mut scaled = live.clone();
        scaled["spec"]["replicas"] = json!(5);
        track(Some(&live), &mut scaled, kind(), &manager("kubectl"));
        let again = || deployment(json!([{"name": "a", "image": "1"}]), json!(2));
        let conflicts = applied(Some(&scaled), again(), "me", false).unwrap_err();
        let words = "\"kubectl\" using apps/v1 at 2026-01-01T00:00:00Z".to_owned();
        assert_eq!(conflicts, [(words, ".spec.replicas".to_owned())]);
        let forced = applied(Some(&scaled), again(), "me", true).unwrap();
        assert_eq!(forced["spec"]["replicas"], 2);
        assert_eq!(forced["metadata"]["managedFields"].as_array().unwrap().len(), 1);
        // The same value is shared, and an image of a container is named by its container.
        assert!(applied(Some(&live), deployment(json!([]), json!(2)), "third", false).is_ok());
        let image = deployment(json!([{"name": "a", "image": "9"}]), Value::Null);
        let conflicts = applied(Some(&live), image, "third", false).unwrap_err();
        assert_eq!(conflicts[0].1, ".spec.template.spec.containers[name=\"a\"].image");
    }
}
