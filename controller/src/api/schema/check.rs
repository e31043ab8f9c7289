//! Whether an object has the fields and types of its kind, in the words of Kubernetes' decoder.

use serde_json::Value;

use super::{Base, Field, Shape, Type};

/// Most problems that are told at once.
const MOST: usize = 20;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Check {
    /// Fields that the kind does not have, each in words.
    pub(crate) unknown: Vec<String>,
    /// A value that cannot be what its field is: the object is no use.
    pub(crate) wrong: Option<String>,
}

/// Checks an object of a type.
pub(crate) fn check(object: &Value, kind: &'static Type) -> Check {
    let mut check = Check::default();
    check.fields(object, kind, "", true);
    check
}

impl Check {
    fn fields(&mut self, value: &Value, kind: &'static Type, path: &str, top: bool) {
        let Some(map) = value.as_object() else {
            return self.wrong(value, path, kind.short(), kind.name);
        };
        for (name, value) in map {
            if top && (name == "apiVersion" || name == "kind") {
                continue;
            }
            let place = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            match kind.field(name) {
                Some(field) => self.field(value, field, kind, &place),
                None if self.unknown.len() < MOST => self.unknown.push(format!("unknown field \"{place}\"")),
                None => {}
            }
        }
    }

    fn field(&mut self, value: &Value, field: &'static Field, owner: &'static Type, path: &str) {
        match (field.shape, value) {
            (_, Value::Null) => {}
            (Shape::One, value) => self.one(value, field, owner, path),
            (Shape::List, Value::Array(items)) => {
                for (index, item) in items.iter().enumerate().filter(|(_, item)| !item.is_null()) {
                    self.one(item, field, owner, &format!("{path}[{index}]"));
                }
            }
            (Shape::Map, Value::Object(map)) => {
                for (key, item) in map.iter().filter(|(_, item)| !item.is_null()) {
                    self.one(item, field, owner, &format!("{path}.{key}"));
                }
            }
            (Shape::List, value) => self.wrong(value, path, owner.short(), &format!("[]{}", go_name(field))),
            (Shape::Map, value) => self.wrong(value, path, owner.short(), &format!("map[string]{}", go_name(field))),
        }
    }

    fn one(&mut self, value: &Value, field: &'static Field, owner: &'static Type, path: &str) {
        let holds = match field.base {
            Base::Type(_) => {
                if let Some(inner) = field.inner() {
                    self.fields(value, inner, path, false);
                }
                return;
            }
            Base::Any => true,
            Base::Text | Base::Bytes | Base::Duration => value.is_string(),
            Base::Time | Base::MicroTime => value.as_str().is_some_and(|text| text.parse::<jiff::Timestamp>().is_ok()),
            Base::Bool => value.is_boolean(),
            Base::Int32 => value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
            Base::Int64 => value.is_i64() || value.is_u64(),
            Base::Double => value.is_number(),
            Base::Quantity => value.is_string() || value.is_number(),
            Base::IntOrText => value.is_string() || value.is_i64(),
            Base::Texts => value.as_array().is_some_and(|items| items.iter().all(Value::is_string)),
        };
        if !holds {
            self.wrong(value, path, owner.short(), go_name(field));
        }
    }

    fn wrong(&mut self, value: &Value, path: &str, owner: &str, wanted: &str) {
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        if self.wrong.is_none() {
            // Go's decoder names no indices.
            let place: String =
                path.split('[').map(|part| part.split_once(']').map_or(part, |(_, rest)| rest)).collect();
            let place = if place.is_empty() { String::new() } else { format!(".{place}") };
            self.wrong =
                Some(format!("json: cannot unmarshal {found} into Go struct field {owner}{place} of type {wanted}"));
        }
    }
}

/// What Go calls a field's type.
fn go_name(field: &'static Field) -> &'static str {
    match field.base {
        Base::Text | Base::Bytes | Base::Duration => "string",
        Base::Bool => "bool",
        Base::Int32 => "int32",
        Base::Int64 => "int64",
        Base::Double => "float64",
        Base::Quantity => "resource.Quantity",
        Base::IntOrText => "intstr.IntOrString",
        Base::Time => "v1.Time",
        Base::MicroTime => "v1.MicroTime",
        Base::Any => "object",
        Base::Texts => "[]string",
        Base::Type(_) => field.inner().map_or("object", Type::short),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_and_wrong_types_are_named() {
        let kind = Type::named("apps.v1.Deployment").unwrap();
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "labels": {"a": "b"}},
            "spec": {"replica": 1, "template": {"spec": {"containers": [{"name": "a", "imagee": "b"}]}}},
        });
        let unknown = [
            "unknown field \"spec.replica\"".to_owned(),
            "unknown field \"spec.template.spec.containers[0].imagee\"".to_owned(),
        ];
        assert_eq!(check(&deployment, kind), Check { unknown: unknown.into(), wrong: None });
        let wrong = |object: Value| check(&object, kind).wrong.unwrap();
        assert_eq!(
            wrong(json!({"spec": {"replicas": "1"}})),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        );
        assert_eq!(
            wrong(json!({"spec": {"template": {"spec": {"containers": [{"ports": [{"containerPort": "a"}]}]}}}})),
            "json: cannot unmarshal string into Go struct field \
             ContainerPort.spec.template.spec.containers.ports.containerPort of type int32"
        );
        assert!(
            wrong(json!({"metadata": {"labels": {"a": 1}}})).ends_with("ObjectMeta.metadata.labels.a of type string")
        );
        assert!(wrong(json!([])).contains("cannot unmarshal array"));
    }
}
