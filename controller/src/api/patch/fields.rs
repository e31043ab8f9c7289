//! Sets of fields, as `metadata.managedFields` writes them (structured-merge-diff, "fieldsV1"): a tree whose keys are
//! `f:name` for a field, `k:{"key":"value"}` for an item of a list with keys, `v:value` for one of a set, and `.` for
//! the thing itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::api::schema::{Field, Shape, Type};

/// Deepest tree that is read.
const DEPTH: usize = 64;

/// Some fields of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Fields {
    /// Whether the thing itself is in the set.
    pub(super) here: bool,
    pub(super) below: BTreeMap<String, Fields>,
}

/// What is known of a value's type.
#[derive(Debug, Clone, Copy)]
pub(super) enum Known {
    /// Nothing: objects are joined by name, lists replaced whole.
    Nothing,
    Type(&'static Type),
    Field(&'static Field),
}

/// How a value is looked into.
pub(super) enum Inside {
    /// Replaced whole.
    Leaf,
    /// By name.
    Object,
    /// A list by keys.
    Keyed(&'static [&'static str]),
    /// A list of different items.
    Set,
}

impl Known {
    /// How a value of this type is joined.
    pub(super) fn inside(self, value: &Value) -> Inside {
        let atomic = |kind: &Type| if kind.atomic { Inside::Leaf } else { Inside::Object };
        match (self, value) {
            (Known::Field(field), Value::Array(_)) if field.atomic => Inside::Leaf,
            (Known::Field(field), Value::Array(_)) if !field.keys.is_empty() => Inside::Keyed(&field.keys),
            (Known::Field(field), Value::Array(_)) if field.set => Inside::Set,
            (_, Value::Array(_)) => Inside::Leaf,
            (Known::Field(field), Value::Object(_)) if field.atomic => Inside::Leaf,
            (Known::Field(field), Value::Object(_)) if field.shape == Shape::One => {
                field.inner().map_or(Inside::Object, atomic)
            }
            (Known::Type(kind), Value::Object(_)) => atomic(kind),
            (_, Value::Object(_)) => Inside::Object,
            _ => Inside::Leaf,
        }
    }

    /// What is known of the field of a name.
    pub(super) fn field(self, name: &str) -> Known {
        let of = |kind: &'static Type| kind.field(name).map_or(Known::Nothing, Known::Field);
        match self {
            Known::Type(kind) => of(kind),
            Known::Field(field) if field.shape == Shape::One => field.inner().map_or(Known::Nothing, of),
            Known::Field(field) => field.inner().map_or(Known::Nothing, Known::Type),
            Known::Nothing => Known::Nothing,
        }
    }

    /// What is known of an item of a list.
    pub(super) fn item(self) -> Known {
        match self {
            Known::Field(field) => field.inner().map_or(Known::Nothing, Known::Type),
            _ => Known::Nothing,
        }
    }
}

/// The name of an item in a list with keys. A protocol that is left out is TCP, as everywhere in Kubernetes.
pub(super) fn item_name(item: &Value, keys: &[&str]) -> String {
    let mut map = Map::new();
    for key in keys {
        match &item[*key] {
            Value::Null if *key == "protocol" => drop(map.insert((*key).to_owned(), json!("TCP"))),
            Value::Null => {}
            value => drop(map.insert((*key).to_owned(), value.clone())),
        }
    }
    format!("k:{}", Value::Object(map))
}

impl Fields {
    /// All fields of a value.
    pub(super) fn of(value: &Value, known: Known) -> Fields {
        let mut fields = Fields { here: true, below: BTreeMap::new() };
        match known.inside(value) {
            Inside::Leaf => {}
            Inside::Object => {
                let map = value.as_object();
                // An object is there because something in it is.
                fields.here = map.is_none_or(Map::is_empty);
                for (name, value) in map.into_iter().flatten() {
                    fields.below.insert(format!("f:{name}"), Fields::of(value, known.field(name)));
                }
            }
            Inside::Keyed(keys) => {
                fields.here = false;
                for item in value.as_array().into_iter().flatten() {
                    let mut inner = Fields::of(item, known.item());
                    inner.here = true;
                    fields.below.insert(item_name(item, keys), inner);
                }
            }
            Inside::Set => {
                fields.here = false;
                for item in value.as_array().into_iter().flatten() {
                    fields.below.insert(format!("v:{item}"), Fields { here: true, ..Fields::default() });
                }
            }
        }
        fields
    }

    /// Reads the tree of a client or the store; what is no tree is an empty set.
    pub(super) fn read(tree: &Value) -> Fields {
        Self::read_to(tree, DEPTH)
    }

    fn read_to(tree: &Value, depth: usize) -> Fields {
        let Some(map) = tree.as_object().filter(|_| depth > 0) else { return Fields::default() };
        let mut fields = Fields { here: map.is_empty() || map.contains_key("."), below: BTreeMap::new() };
        for (name, tree) in map.iter().filter(|(name, _)| *name != ".") {
            fields.below.insert(name.clone(), Self::read_to(tree, depth - 1));
        }
        fields
    }

    /// Writes the tree.
    pub(super) fn write(&self) -> Value {
        let mut map = Map::new();
        if self.here && !self.below.is_empty() {
            map.insert(".".to_owned(), json!({}));
        }
        map.extend(self.below.iter().map(|(name, fields)| (name.clone(), fields.write())));
        Value::Object(map)
    }

    /// Whether nothing is in the set.
    pub(super) fn is_empty(&self) -> bool {
        !self.here && self.below.is_empty()
    }

    /// Takes another set's fields in.
    pub(super) fn add(&mut self, other: &Fields) {
        self.here |= other.here;
        for (name, fields) in &other.below {
            self.below.entry(name.clone()).or_default().add(fields);
        }
    }

    /// Takes another set's fields out.
    pub(super) fn subtract(&mut self, other: &Fields) {
        self.here &= !other.here;
        for (name, fields) in &other.below {
            if let Some(mine) = self.below.get_mut(name) {
                mine.subtract(fields);
                if mine.is_empty() {
                    self.below.remove(name);
                }
            }
        }
    }

    /// The fields that are in both.
    pub(super) fn common(&self, other: &Fields) -> Fields {
        let mut both = Fields { here: self.here && other.here, below: BTreeMap::new() };
        for (name, fields) in &self.below {
            if let Some(other) = other.below.get(name) {
                let common = fields.common(other);
                if !common.is_empty() {
                    both.below.insert(name.clone(), common);
                }
            }
        }
        both
    }

    /// Each field's path, as conflicts name it: `.spec.containers[name="web"].image`.
    pub(super) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.walk("", &mut paths);
        paths
    }

    fn walk(&self, path: &str, paths: &mut Vec<String>) {
        if self.here && self.below.is_empty() {
            paths.push(path.to_owned());
        }
        for (name, fields) in &self.below {
            let step = match name.split_once(':') {
                Some(("f", name)) => format!(".{name}"),
                Some(("k", keys)) => {
                    let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                    let words = keys.iter().map(|(key, value)| format!("{key}={value}"));
                    format!("[{}]", words.collect::<Vec<_>>().join(","))
                }
                Some((_, value)) => format!("[={value}]"),
                None => name.clone(),
            };
            fields.walk(&format!("{path}{step}"), paths);
        }
    }
}

/// The fields of `new` that are not in `old` or differ there.
pub(super) fn changed(old: &Value, new: &Value, known: Known) -> Fields {
    if old == new {
        return Fields::default();
    }
    let mut out = Fields::default();
    match (known.inside(new), old) {
        (Inside::Object, Value::Object(before)) if !new.as_object().is_none_or(Map::is_empty) => {
            for (name, value) in new.as_object().into_iter().flatten() {
                let inner = match before.get(name) {
                    Some(old) => changed(old, value, known.field(name)),
                    None => Fields::of(value, known.field(name)),
                };
                if !inner.is_empty() {
                    out.below.insert(format!("f:{name}"), inner);
                }
            }
        }
        (Inside::Keyed(keys), Value::Array(before)) => {
            for item in new.as_array().into_iter().flatten() {
                let name = item_name(item, keys);
                let inner = match before.iter().find(|old| item_name(old, keys) == name) {
                    Some(old) => changed(old, item, known.item()),
                    None => Fields { here: true, ..Fields::of(item, known.item()) },
                };
                if !inner.is_empty() {
                    out.below.insert(name, inner);
                }
            }
        }
        (Inside::Set, Value::Array(before)) => {
            for item in new.as_array().into_iter().flatten().filter(|item| !before.contains(item)) {
                out.below.insert(format!("v:{item}"), Fields { here: true, ..Fields::default() });
            }
        }
        _ => return Fields::of(new, known),
    }
    out
}
