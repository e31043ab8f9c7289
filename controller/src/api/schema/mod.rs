//! Kubernetes' API types as data: what fields a kind has, their types, how patches join them. Everything that must know
//! fields (checks, OpenAPI, patches, protobuf) reads this table; nothing else in the API knows the fields of kinds
//! that it does not act on.

mod check;
mod openapi;
mod protobuf;
mod wire;

use std::collections::HashMap;
use std::sync::LazyLock;

pub(super) use check::check;
pub(super) use openapi::{v2, v2_protobuf, v3};
pub(super) use protobuf::decode;

/// The data: one line a field.
const TYPES: &str = include_str!("types.txt");

/// A type with fields.
#[derive(Debug)]
pub(super) struct Type {
    /// Such as `apps.v1.Deployment`.
    pub(super) name: &'static str,
    /// In the order of the data.
    pub(super) fields: Vec<Field>,
    /// Whether server-side apply replaces its values whole.
    pub(super) atomic: bool,
}

/// How often a field holds its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// Once.
    One,
    /// In a list.
    List,
    /// In a map from texts.
    Map,
}

/// What a field holds, once, in each item or under each key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Base {
    Text,
    Bool,
    Int32,
    Int64,
    Double,
    /// Base64 in JSON.
    Bytes,
    Quantity,
    IntOrText,
    Time,
    MicroTime,
    Duration,
    /// Any JSON: managed fields, and objects inside objects.
    Any,
    /// A list of texts that is a message in protobuf.
    Texts,
    /// A type, by its place in the table.
    Type(usize),
}

/// One field of a type.
#[derive(Debug)]
pub(super) struct Field {
    /// Name in JSON.
    pub(super) name: &'static str,
    number: u32,
    pub(super) shape: Shape,
    pub(super) base: Base,
    /// Whether absent and zero are different.
    pointer: bool,
    /// Whether the fields of its type stand in the object itself.
    inline: bool,
    required: bool,
    /// Strategic merge: the list is joined, items with a key by this key.
    pub(super) merge: Option<Option<&'static str>>,
    retain_keys: bool,
    /// Server-side apply: the keys by which a list is joined.
    pub(super) keys: Vec<&'static str>,
    /// Server-side apply: a list of different items.
    pub(super) set: bool,
    /// Server-side apply: replaced whole.
    pub(super) atomic: bool,
}

#[derive(Debug)]
struct Table {
    types: Vec<Type>,
    places: HashMap<&'static str, usize>,
}

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::parse(TYPES));

impl Table {
    /// Reads the data. It is part of this program, so what is wrong with it is a bug that the tests find.
    fn parse(text: &'static str) -> Table {
        let lines = || text.lines().filter(|line| !line.starts_with('#'));
        let heads = lines().filter(|line| !line.starts_with(' ')).map(|line| line.split(' ').next().unwrap_or(line));
        let places: HashMap<&str, usize> = heads.enumerate().map(|(place, name)| (name, place)).collect();
        let mut types: Vec<Type> = Vec::with_capacity(places.len());
        for line in lines() {
            match (line.strip_prefix(' '), types.last_mut()) {
                (Some(field), Some(last)) => {
                    let package = last.name.rsplit_once('.').map_or("", |(package, _)| package);
                    last.fields.push(Field::parse(field, package, &places));
                }
                _ => {
                    let (name, atomic) = line.strip_suffix(" atomic").map_or((line, false), |name| (name, true));
                    types.push(Type { name, fields: Vec::new(), atomic });
                }
            }
        }
        Table { types, places }
    }
}

impl Field {
    fn parse(line: &'static str, package: &str, places: &HashMap<&'static str, usize>) -> Field {
        let mut words = line.split(' ');
        let (name, number) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let kind = words.next().unwrap_or_default();
        let (pointer, kind) = kind.strip_prefix('*').map_or((false, kind), |kind| (true, kind));
        let (shape, kind) = match (kind.strip_prefix("[]"), kind.strip_prefix("{}")) {
            (Some(kind), _) => (Shape::List, kind),
            (_, Some(kind)) => (Shape::Map, kind),
            _ => (Shape::One, kind),
        };
        let mut field = Field {
            name,
            number: number.parse().unwrap_or_else(|_| panic!("types.txt: no number in {line:?}")),
            shape,
            base: Base::parse(kind, package, places).unwrap_or_else(|| panic!("types.txt: no type in {line:?}")),
            pointer,
            inline: name == "~",
            required: false,
            merge: None,
            retain_keys: false,
            keys: Vec::new(),
            set: false,
            atomic: false,
        };
        for word in words {
            match word.split_once('=') {
                None if word == "required" => field.required = true,
                None if word == "set" => field.set = true,
                None if word == "atomic" => field.atomic = true,
                Some(("map", keys)) => field.keys = keys.split(',').collect(),
                Some(("patch", patch)) => {
                    let (strategies, key) = patch.split_once(':').map_or((patch, None), |(a, b)| (a, Some(b)));
                    field.retain_keys = strategies.contains("retainKeys");
                    field.merge = strategies.split('+').any(|strategy| strategy == "merge").then_some(key);
                }
                _ => panic!("types.txt: unknown word {word:?} in {line:?}"),
            }
        }
        field
    }

    /// The type of what the field holds, where it has fields.
    pub(super) fn inner(&self) -> Option<&'static Type> {
        match self.base {
            Base::Type(place) => TABLE.types.get(place),
            _ => None,
        }
    }
}

impl Base {
    fn parse(word: &str, package: &str, places: &HashMap<&'static str, usize>) -> Option<Base> {
        Some(match word {
            "string" => Base::Text,
            "bool" => Base::Bool,
            "int32" => Base::Int32,
            "int64" => Base::Int64,
            "double" => Base::Double,
            "bytes" => Base::Bytes,
            "quantity" => Base::Quantity,
            "intstr" => Base::IntOrText,
            "time" => Base::Time,
            "microtime" => Base::MicroTime,
            "duration" => Base::Duration,
            "raw" | "fields" => Base::Any,
            "strings" => Base::Texts,
            name if name.contains('.') => Base::Type(*places.get(name)?),
            name => Base::Type(*places.get(format!("{package}.{name}").as_str())?),
        })
    }
}

impl Type {
    /// The type of this name.
    pub(super) fn named(name: &str) -> Option<&'static Type> {
        TABLE.types.get(*TABLE.places.get(name)?)
    }

    /// A field by its name in JSON, wherever it stands.
    pub(super) fn field(&'static self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find_map(|field| match field.inline {
            true => field.inner().and_then(|inner| inner.field(name)),
            false => (field.name == name).then_some(field),
        })
    }

    /// All fields as they stand in JSON.
    fn flat(&'static self) -> Vec<&'static Field> {
        let fields = self.fields.iter().flat_map(|field| match field.inner().filter(|_| field.inline) {
            Some(inner) => inner.flat(),
            None => vec![field],
        });
        fields.collect()
    }

    /// The last word of the name, as Go calls the type.
    fn short(&self) -> &'static str {
        self.name.rsplit('.').next().unwrap_or(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_reads_and_says_what_kubernetes_says() {
        let pod = Type::named("core.v1.PodSpec").unwrap();
        let containers = pod.field("containers").unwrap();
        assert_eq!((containers.merge, containers.keys.as_slice()), (Some(Some("name")), &["name"][..]));
        let ports = containers.inner().unwrap().field("ports").unwrap();
        assert_eq!((ports.merge, ports.keys.len()), (Some(Some("containerPort")), 2));
        assert!(Type::named("core.v1.Volume").unwrap().field("configMap").is_some());
        assert!(Type::named("core.v1.Probe").unwrap().field("httpGet").is_some());
        for kind in crate::api::kinds::KINDS.iter() {
            assert!(Type::named(kind.schema).is_some(), "{}", kind.schema);
        }
    }
}
