//! YAML and JSON as people write manifests: several documents, Kubernetes' reading of booleans and octals.

use serde_json::Value;
use thiserror::Error;

/// Why a text holds no documents.
#[derive(Debug, Error)]
pub enum YamlError {
    /// It is no YAML; the message has the line.
    #[error(transparent)]
    Syntax(#[from] serde_saphyr::Error),
    /// A document is no object.
    #[error("a document must be an object with apiVersion and kind, not {0}")]
    NoObject(Value),
    /// There is none, or there are several.
    #[error("exactly one document is needed")]
    NotOne,
}

fn options() -> serde_saphyr::Options {
    serde_saphyr::options! { strict_booleans: true, legacy_octal_numbers: true }
}

/// Parses every document of a file; empty ones are left out.
///
/// # Errors
/// What does not parse, with its line.
pub fn parse(text: &str) -> Result<Vec<Value>, YamlError> {
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options())?;
    let mut objects = Vec::new();
    for document in documents {
        match document {
            Value::Null => {}
            Value::Object(list) if list.get("kind").and_then(Value::as_str) == Some("List") => {
                objects.extend(list.get("items").and_then(Value::as_array).cloned().unwrap_or_default());
            }
            object @ Value::Object(_) => objects.push(object),
            other => return Err(YamlError::NoObject(other)),
        }
    }
    Ok(objects)
}

/// Parses a text that holds one document.
///
/// # Errors
/// It does not parse, or holds none or several.
pub fn parse_one(text: &str) -> Result<Value, YamlError> {
    let mut objects = parse(text)?;
    match (objects.pop(), objects.len()) {
        (Some(object), 0) => Ok(object),
        _ => Err(YamlError::NotOne),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn documents_lists_and_json_are_read() {
        let objects = parse("---\na: yes\nb: 0644\n---\n---\nkind: List\nitems:\n- c: true\n").unwrap();
        assert_eq!(objects, [json!({"a": "yes", "b": 420}), json!({"c": true})]);
        assert_eq!(parse(r#"{"a": [1, "2"]}"#).unwrap(), [json!({"a": [1, "2"]})]);
    }

    #[test]
    fn bombs_of_aliases_and_depth_are_refused() {
        let mut bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for (name, before) in ('b'..='j').zip('a'..) {
            bomb.push_str(&format!("{name}: &{name} [{}]\n", vec![format!("*{before}"); 9].join(", ")));
        }
        assert!(parse(&bomb).is_err());
        assert!(parse(&format!("a: {}{}", "[".repeat(10_000), "]".repeat(10_000))).is_err());
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let error = parse("a: 1\nb: [\n").unwrap_err().to_string();
        assert!(error.contains("line") || error.contains(':'), "{error}");
        assert!(parse("- 1\n").is_err());
        assert!(parse("a: 1\na: 2\n").is_err());
        assert!(parse_one("").is_err());
    }
}
