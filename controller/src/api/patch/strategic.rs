//! Strategic merge (k8s.io/apimachinery `strategicpatch`): a merge that joins some lists by a key, which the schema
//! tells, with directives beside the data: `$patch`, `$retainKeys`, `$setElementOrder/…`, `$deleteFromPrimitiveList/…`.

use serde_json::{Map, Value};

use crate::api::ApiError;
use crate::api::schema::{Field, Shape, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const ORDER: &str = "$setElementOrder/";
const DELETE_ITEMS: &str = "$deleteFromPrimitiveList/";

/// Merges a patch into an object of a type; without one, as a JSON merge patch.
pub(crate) fn merge(target: &mut Value, patch: &Value, kind: Option<&'static Type>) -> Result<(), ApiError> {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return Ok(());
    };
    match fields.get(DIRECTIVE).and_then(Value::as_str) {
        Some("replace") => {
            *target = Value::Object(without_directives(fields));
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(ApiError::bad_request(format!("unrecognized type: {DIRECTIVE}: {other}"))),
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    if let (Some(kept), Some(map)) = (fields.get(RETAIN).and_then(Value::as_array), target.as_object_mut()) {
        map.retain(|name, _| kept.iter().any(|kept| kept == name));
    }
    for (name, value) in fields.iter().filter(|(name, _)| !name.starts_with('$')) {
        let field = kind.and_then(|kind| kind.field(name));
        match (value, target.as_object_mut()) {
            (Value::Null, Some(target)) => drop(target.remove(name)),
            (Value::Array(items), _) if field.is_some_and(|field| field.merge.is_some()) => {
                let order = fields.get(&format!("{ORDER}{name}")).and_then(Value::as_array);
                merge_list(&mut target[name.as_str()], items, field, order)?;
            }
            _ => merge(&mut target[name.as_str()], value, one(field))?,
        }
    }
    for (name, value) in fields {
        if let (Some(name), Value::Array(gone)) = (name.strip_prefix(DELETE_ITEMS), value)
            && let Some(list) = target.get_mut(name).and_then(Value::as_array_mut)
        {
            list.retain(|item| !gone.contains(item));
        }
        // An order may come without items: only where they stand is told.
        if let (Some(name), Value::Array(order)) = (name.strip_prefix(ORDER), value)
            && !fields.contains_key(name)
            && target[name].is_array()
        {
            let field = kind.and_then(|kind| kind.field(name));
            merge_list(&mut target[name], &[], field, Some(order))?;
        }
    }
    Ok(())
}

/// The type of what stands in a field that is neither list nor map.
fn one(field: Option<&'static Field>) -> Option<&'static Type> {
    field.filter(|field| field.shape == Shape::One).and_then(Field::inner)
}

fn without_directives(fields: &Map<String, Value>) -> Map<String, Value> {
    fields
        .iter()
        .filter(|(name, _)| !name.starts_with('$'))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn merge_list(
    target: &mut Value,
    items: &[Value],
    field: Option<&'static Field>,
    order: Option<&Vec<Value>>,
) -> Result<(), ApiError> {
    if !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Some(list) = target.as_array_mut() else { return Ok(()) };
    let before = list.clone();
    let key = field.and_then(|field| field.merge.flatten());
    let same = |a: &Value, b: &Value| match key {
        Some(key) => a[key] == b[key],
        None => a == b,
    };
    if items.iter().any(|item| item[DIRECTIVE] == "replace") {
        list.clear();
    }
    for item in items.iter().filter(|item| item[DIRECTIVE] != "replace") {
        if let Some(key) = key.filter(|key| item[*key].is_null()) {
            let message = format!("map: {item} does not contain declared merge key: {key}");
            return Err(ApiError::bad_request(message));
        }
        let place = list.iter().position(|old| same(old, item));
        match (place, item[DIRECTIVE] == "delete") {
            (Some(place), true) => drop(list.remove(place)),
            (None, true) => {}
            (Some(place), false) => merge(&mut list[place], item, field.and_then(Field::inner))?,
            (None, false) => {
                let fresh = item.as_object().map_or_else(|| item.clone(), |map| Value::Object(without_directives(map)));
                list.push(fresh);
            }
        }
    }
    if let Some(order) = order {
        *list = ordered(std::mem::take(list), &before, order, &same);
    }
    Ok(())
}

/// Puts the items that the patch orders in that order; the others keep their place among what stood before.
fn ordered(list: Vec<Value>, before: &[Value], order: &[Value], same: &dyn Fn(&Value, &Value) -> bool) -> Vec<Value> {
    let rank = |item: &Value, among: &[Value]| among.iter().position(|other| same(item, other));
    let (mut told, rest): (Vec<Value>, Vec<Value>) = list.into_iter().partition(|item| rank(item, order).is_some());
    told.sort_by_key(|item| rank(item, order));
    let (mut told, mut rest) = (told.into_iter().peekable(), rest.into_iter().peekable());
    let mut out = Vec::new();
    loop {
        let rest_first = match (rest.peek(), told.peek()) {
            (Some(rest), Some(told)) => match (rank(rest, before), rank(told, before)) {
                (Some(rest), Some(told)) => rest < told,
                _ => false,
            },
            (Some(_), None) => true,
            (None, _) => false,
        };
        match if rest_first { rest.next() } else { told.next() } {
            Some(item) => out.push(item),
            None => return out,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(object: &Value, patch: Value) -> Value {
        let mut object = object.clone();
        merge(&mut object, &patch, Type::named("core.v1.Pod")).unwrap();
        object
    }

    #[test]
    fn lists_are_joined_by_the_keys_of_the_schema() {
        let pod = json!({"spec": {
            "containers": [{"name": "a", "image": "1", "tty": false, "args": ["x"]}, {"name": "b"}],
            "tolerations": [{"key": "a"}],
        }});
        let patch = json!({"spec": {"containers": [{"name": "a", "image": "2", "args": ["y"]}], "tolerations": [{"key": "b"}]}});
        let wanted = json!({"spec": {
            "containers": [{"name": "a", "image": "2", "tty": false, "args": ["y"]}, {"name": "b"}],
            "tolerations": [{"key": "b"}],
        }});
        assert_eq!(merged(&pod, patch), wanted);
        let gone = merged(&pod, json!({"spec": {"containers": [{"name": "b", "$patch": "delete"}]}}));
        assert_eq!(gone["spec"]["containers"].as_array().unwrap().len(), 1);
        let all = merged(&pod, json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "c"}]}}));
        assert_eq!(all["spec"]["containers"], json!([{"name": "c"}]));
        let mut target = pod.clone();
        let keyless = json!({"spec": {"containers": [{"image": "x"}]}});
        assert!(merge(&mut target, &keyless, Type::named("core.v1.Pod")).is_err());
    }

    #[test]
    fn directives_are_obeyed_and_leave_no_trace() {
        let pod = json!({
            "metadata": {"finalizers": ["a", "b"], "labels": {"a": "b"}},
            "spec": {"volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": "a"}, {"name": "x"}, {"name": "b"}]},
        });
        let patch = json!({
            "metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c", "b"], "labels": {"$patch": "replace", "c": "d"}},
            "spec": {
                "volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/a"}}],
                "$setElementOrder/containers": [{"name": "b"}, {"name": "n"}, {"name": "a"}],
                "containers": [{"name": "n", "image": "i"}],
            },
        });
        let wanted = json!({
            "metadata": {"finalizers": ["b", "c"], "labels": {"c": "d"}},
            "spec": {
                "volumes": [{"name": "v", "hostPath": {"path": "/a"}}],
                "containers": [{"name": "x"}, {"name": "b"}, {"name": "n", "image": "i"}, {"name": "a"}],
            },
        });
        assert_eq!(merged(&pod, patch), wanted);
    }
}
