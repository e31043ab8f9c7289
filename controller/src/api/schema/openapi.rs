//! The types as OpenAPI documents: version 2 for clients that check and explain by it (as JSON and as the protobuf of
//! gnostic, which kubectl asks for), version 3 by group.

use serde_json::{Map, Value, json};

use super::wire::Writer;
use super::{Base, Field, Shape, TABLE, Type};
use crate::api::kinds::{KINDS, Kind};

/// Name of a type in a document.
fn definition_name(name: &str) -> String {
    match name.strip_prefix("meta.") {
        Some(rest) => format!("io.k8s.apimachinery.pkg.apis.meta.{rest}"),
        None => format!("io.k8s.api.{name}"),
    }
}

fn base(field: &'static Field, prefix: &str) -> Value {
    let kind = |kind: &str| json!({"type": kind});
    let formatted = |kind: &str, format: &str| json!({"type": kind, "format": format});
    match field.base {
        Base::Text | Base::Duration => kind("string"),
        Base::Quantity => kind("string"),
        Base::Bool => kind("boolean"),
        Base::Int32 => formatted("integer", "int32"),
        Base::Int64 => formatted("integer", "int64"),
        Base::Double => formatted("number", "double"),
        Base::Bytes => formatted("string", "byte"),
        Base::IntOrText => formatted("string", "int-or-string"),
        Base::Time | Base::MicroTime => formatted("string", "date-time"),
        Base::Any => kind("object"),
        Base::Texts => json!({"type": "array", "items": {"type": "string"}}),
        Base::Type(_) => {
            let name = field.inner().map(|inner| definition_name(inner.name)).unwrap_or_default();
            json!({"$ref": format!("{prefix}{name}")})
        }
    }
}

fn property(field: &'static Field, prefix: &str) -> Value {
    let one = base(field, prefix);
    let mut property = match field.shape {
        Shape::One => one,
        Shape::List => json!({"type": "array", "items": one}),
        Shape::Map => json!({"type": "object", "additionalProperties": one}),
    };
    if let Some(key) = field.merge {
        let retain = if field.retain_keys { "merge,retainKeys" } else { "merge" };
        property["x-kubernetes-patch-strategy"] = json!(retain);
        if let Some(key) = key {
            property["x-kubernetes-patch-merge-key"] = json!(key);
        }
    } else if field.retain_keys {
        property["x-kubernetes-patch-strategy"] = json!("retainKeys");
    }
    if !field.keys.is_empty() {
        property["x-kubernetes-list-type"] = json!("map");
        property["x-kubernetes-list-map-keys"] = json!(field.keys);
    } else if field.set {
        property["x-kubernetes-list-type"] = json!("set");
    } else if field.shape == Shape::List {
        property["x-kubernetes-list-type"] = json!("atomic");
    } else if field.atomic {
        property["x-kubernetes-map-type"] = json!("atomic");
    }
    property
}

fn definition(kind: &'static Type, prefix: &str) -> Value {
    let mut properties = Map::new();
    let fields = kind.flat();
    for field in &fields {
        properties.insert(field.name.to_owned(), property(field, prefix));
    }
    let required: Vec<&str> = fields.iter().filter(|field| field.required).map(|field| field.name).collect();
    let mut definition = json!({"type": "object"});
    if kind.atomic {
        definition["x-kubernetes-map-type"] = json!("atomic");
    }
    if !required.is_empty() {
        definition["required"] = json!(required);
    }
    let served: Vec<Value> = KINDS.iter().filter(|served| served.schema == kind.name).map(identity).collect();
    if !served.is_empty() {
        for name in ["apiVersion", "kind"] {
            properties.insert(name.to_owned(), json!({"type": "string"}));
        }
        definition["x-kubernetes-group-version-kind"] = json!(served);
    }
    definition["properties"] = Value::Object(properties);
    definition
}

fn identity(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

fn definitions(prefix: &str) -> Map<String, Value> {
    TABLE.types.iter().map(|kind| (definition_name(kind.name), definition(kind, prefix))).collect()
}

/// What clients look for in a path: whether a change of this kind may be tried (dryRun), and who checks fields.
fn operations(kind: &Kind, typed: impl Fn(&str) -> Value) -> Value {
    let parameters = json!(["dryRun", "fieldManager", "fieldValidation", "force"].map(&typed));
    let operation = |action: &str| {
        json!({
            "operationId": format!("{action}{}{}{}", kind.group.replace('.', ""), kind.version, kind.kind),
            "parameters": parameters, "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": identity(kind),
        })
    };
    json!({"patch": operation("patch"), "put": operation("put"), "post": operation("post")})
}

fn paths(kinds: impl Iterator<Item = &'static Kind>, typed: impl Fn(&str) -> Value + Copy) -> Value {
    Value::Object(kinds.map(|kind| (kind.template(), operations(kind, typed))).collect())
}

/// OpenAPI version 2.
pub(crate) fn v2() -> Value {
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": super::super::discovery::VERSION},
        "paths": paths(KINDS.iter(), |name| json!({"name": name, "in": "query", "type": "string", "uniqueItems": true})),
        "definitions": definitions("#/definitions/"),
    })
}

/// OpenAPI version 3 of one group's version; the types that it reaches and no others.
pub(crate) fn v3(group: &str, version: &str) -> Option<Value> {
    let kinds = || KINDS.iter().filter(move |kind| kind.group == group && kind.version == version);
    kinds().next()?;
    let prefix = "#/components/schemas/";
    let mut schemas = Map::new();
    let mut due: Vec<&'static Type> = kinds().filter_map(|kind| Type::named(kind.schema)).collect();
    while let Some(kind) = due.pop() {
        if schemas.insert(definition_name(kind.name), definition(kind, prefix)).is_none() {
            due.extend(kind.fields.iter().filter_map(Field::inner));
            due.extend(kind.flat().into_iter().filter_map(Field::inner));
            due.retain(|kind| !schemas.contains_key(&definition_name(kind.name)));
        }
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": super::super::discovery::VERSION},
        "paths": paths(kinds(), |name| json!({"name": name, "in": "query", "schema": {"type": "string"}})),
        "components": {"schemas": schemas},
    }))
}

/// OpenAPI version 2 as gnostic's `openapi.v2.Document` (gnostic-models, openapiv2/OpenAPIv2.proto; the numbers below
/// are that file's).
pub(crate) fn v2_protobuf() -> Vec<u8> {
    let document = v2();
    let mut out = Writer::default();
    out.bytes(1, b"2.0");
    out.message(2, |info| {
        info.bytes(1, b"Kubernetes");
        info.bytes(2, super::super::discovery::VERSION.as_bytes());
    });
    out.message(8, |paths| {
        for (path, operations) in document["paths"].as_object().into_iter().flatten() {
            paths.message(2, |named| {
                named.bytes(1, path.as_bytes());
                named.message(2, |item| {
                    for (method, number) in [("put", 3), ("post", 4), ("patch", 8)] {
                        item.message(number, |out| operation(out, &operations[method]));
                    }
                });
            });
        }
    });
    out.message(9, |definitions| named_schemas(definitions, &document["definitions"]));
    out.0
}

fn operation(out: &mut Writer, operation: &Value) {
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        // ParametersItem > Parameter > NonBodyParameter > QueryParameterSubSchema
        out.message(8, |out| {
            out.message(1, |out| {
                out.message(2, |out| {
                    out.message(3, |query| {
                        query.bytes(2, b"query");
                        query.bytes(4, parameter["name"].as_str().unwrap_or_default().as_bytes());
                        query.bytes(6, b"string");
                    });
                });
            });
        });
    }
    extensions(out, 13, operation);
}

fn named_schemas(out: &mut Writer, schemas: &Value) {
    for (name, schema) in schemas.as_object().into_iter().flatten() {
        out.message(1, |named| {
            named.bytes(1, name.as_bytes());
            named.message(2, |out| self::schema(out, schema));
        });
    }
}

fn schema(out: &mut Writer, schema: &Value) {
    if let Some(reference) = schema["$ref"].as_str() {
        out.bytes(1, reference.as_bytes());
    }
    if let Some(format) = schema["format"].as_str() {
        out.bytes(2, format.as_bytes());
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        out.bytes(19, name.as_bytes());
    }
    if schema["additionalProperties"].is_object() {
        out.message(21, |item| item.message(1, |out| self::schema(out, &schema["additionalProperties"])));
    }
    if let Some(kind) = schema["type"].as_str() {
        out.message(22, |item| item.bytes(1, kind.as_bytes()));
    }
    if schema["items"].is_object() {
        out.message(23, |item| item.message(1, |out| self::schema(out, &schema["items"])));
    }
    if schema["properties"].is_object() {
        out.message(25, |properties| named_schemas(properties, &schema["properties"]));
    }
    extensions(out, 31, schema);
}

/// The `x-` fields, whose values gnostic carries as YAML: JSON is YAML.
fn extensions(out: &mut Writer, number: u32, object: &Value) {
    for (name, value) in object.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        out.message(number, |named| {
            named.bytes(1, name.as_bytes());
            named.message(2, |any| any.bytes(2, value.to_string().as_bytes()));
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        let document = v2();
        let text = document.to_string();
        let names = text.split("\"#/definitions/").skip(1).map(|rest| &rest[..rest.find('"').unwrap()]);
        let mut count = 0;
        for name in names {
            assert!(document["definitions"][name].is_object(), "{name}");
            count += 1;
        }
        assert!(count > 100);
        let apps = v3("apps", "v1").unwrap();
        let text = apps.to_string();
        for name in text.split("\"#/components/schemas/").skip(1).map(|rest| &rest[..rest.find('"').unwrap()]) {
            assert!(apps["components"]["schemas"][name].is_object(), "{name}");
        }
        assert_eq!(v3("apps", "v2"), None);
    }
}
