//! Rules for texts that many fields share, in Kubernetes' words.

use serde_json::{Value, json};
use skeg_protocol::id::is_name;

use crate::api::error::Cause;

/// Letters, digits, `-`, `_` and `.`, with a letter or digit at both ends; at most 63.
fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    ends.iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
        && bytes.len() <= 63
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// What is wrong with some labels.
pub(super) fn labels(field: &str, labels: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        let (prefix, name) = key.split_once('/').map_or((None, key.as_str()), |(prefix, name)| (Some(prefix), name));
        if !is_qualified(name) || prefix.is_some_and(|prefix| !is_name(prefix)) {
            let why = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                       alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                       '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
            causes.push(Cause::invalid(field, &json!(key), why));
        }
        let text = value.as_str().unwrap_or_default();
        if !text.is_empty() && !is_qualified(text) {
            let why = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and \
                       must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', \
                       regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
            causes.push(Cause::invalid(field, value, why));
        }
    }
    causes
}

/// A field that must be one of some words, where it is there.
pub(super) fn one_of(object: &Value, path: &str, field: &str, known: &[&str], causes: &mut Vec<Cause>) {
    let value = &object[field];
    if !value.is_null() && !value.as_str().is_some_and(|word| known.contains(&word)) {
        causes.push(Cause::unsupported(&format!("{path}.{field}"), value, known));
    }
}

/// A number that may not be negative, where it is there.
pub(super) fn not_negative(object: &Value, path: &str, field: &str, causes: &mut Vec<Cause>) {
    if object[field].as_i64().is_some_and(|number| number < 0) {
        let why = "must be greater than or equal to 0";
        causes.push(Cause::invalid(&format!("{path}.{field}"), &object[field], why));
    }
}
