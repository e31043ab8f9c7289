//! Finds the place of a value of the wrong type. Deserialization does not tell it, and code that follows the path on the
//! way weighs more than the specification's types themselves; so a wrong document is tried again, with less of it.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// The JSON path of what makes `T` refuse the document with this message; a dot where that is the document itself.
///
/// A list or map is cut to its first entries: the fewest that are refused with the same words end with the culprit. A
/// document is tried again some tens of times, never more often than its depth (128) times the bits of a length.
pub(super) fn locate<T: DeserializeOwned>(mut document: Value, message: &str) -> String {
    let mut path: Vec<Step> = Vec::new();
    while let Some(step) = culprit::<T>(&mut document, &path, message) {
        path.push(step);
    }
    if path.is_empty() {
        return ".".to_owned();
    }
    path.iter().fold(String::new(), |text, step| match step {
        Step::Entry(index) => format!("{text}[{index}]"),
        Step::Member(name) if text.is_empty() => name.clone(),
        Step::Member(name) => format!("{text}.{name}"),
    })
}

/// One step into a document.
enum Step {
    Entry(usize),
    Member(String),
}

/// The entry of the value at `path` that is refused, where it is not the value as a whole.
fn culprit<T: DeserializeOwned>(document: &mut Value, path: &[Step], message: &str) -> Option<Step> {
    let whole = place(document, path)?.clone();
    let length = whole.as_array().map(Vec::len).or_else(|| whole.as_object().map(serde_json::Map::len))?;
    let mut refused = |count: usize| {
        let cut = match &whole {
            Value::Array(entries) => Value::Array(entries[..count].to_vec()),
            Value::Object(members) => {
                Value::Object(members.iter().take(count).map(|(name, value)| (name.clone(), value.clone())).collect())
            }
            other => other.clone(),
        };
        if let Some(place) = place(document, path) {
            *place = cut;
        }
        T::deserialize(&*document).is_err_and(|error| error.to_string() == message)
    };
    let (mut accepted, mut least) = (0, length);
    if length == 0 || refused(0) {
        return None;
    }
    // The whole is refused, nothing of it is not.
    while least - accepted > 1 {
        let middle = accepted + (least - accepted) / 2;
        if refused(middle) { least = middle } else { accepted = middle }
    }
    if !refused(least) {
        return None;
    }
    match &whole {
        Value::Object(members) => members.keys().nth(least - 1).cloned().map(Step::Member),
        _ => Some(Step::Entry(least - 1)),
    }
}

fn place<'a>(document: &'a mut Value, path: &[Step]) -> Option<&'a mut Value> {
    path.iter().try_fold(document, |value, step| match step {
        Step::Entry(index) => value.get_mut(index),
        Step::Member(name) => value.get_mut(name),
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::json;

    use super::*;
    use crate::oci;

    fn place_of(document: Value) -> String {
        let error = oci::Spec::deserialize(&document).expect_err("it is wrong");
        locate::<oci::Spec>(document, &error.to_string())
    }

    #[test]
    fn a_wrong_value_is_found_where_it_is() {
        let mounts = json!([{"destination": "/a"}, {"destination": "/b", "options": ["ro", 5]}, {"destination": "/c"}]);
        assert_eq!(
            place_of(json!({"ociVersion": "1.2.0", "root": {"path": "r"}, "mounts": mounts})),
            "mounts[1].options[1]"
        );
        assert_eq!(place_of(json!({"ociVersion": 5})), "ociVersion");
        assert_eq!(
            place_of(json!({"ociVersion": "1", "linux": {"namespaces": [{"type": "pid"}, {"type": "moon"}]}})),
            "linux.namespaces[1].type"
        );
        assert_eq!(
            place_of(json!({"ociVersion": "1", "process": {"user": {"uid": -1, "gid": 0}}})),
            "process.user.uid"
        );
    }

    #[test]
    fn what_is_missing_is_missing_in_the_place_that_needs_it() {
        assert_eq!(place_of(json!("a text")), ".");
        assert_eq!(
            place_of(json!({"ociVersion": "1", "linux": {"namespaces": [{"path": "/x"}]}})),
            "linux.namespaces[0]"
        );
    }
}
