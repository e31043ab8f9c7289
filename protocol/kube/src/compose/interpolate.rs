//! `$NAME` and `${NAME…}` in a Compose file, with all of Compose's operators.

use std::collections::BTreeMap;

use serde_json::Value;
use skeg_protocol::Invalid;

use crate::cursor::Fault;

/// Deepest nesting of `${A:-${B}}`.
const DEEPEST: usize = 16;
/// Longest text that comes out, so that a bomb of defaults ends.
const LONGEST: usize = 1 << 20;

/// Variables by name.
pub(super) type Variables = BTreeMap<String, String>;

/// Replaces variables in every text of a document; keys stay as they are.
pub(super) fn document(value: &mut Value, path: &str, variables: &Variables) -> Result<(), Fault> {
    match value {
        Value::String(written) if written.contains('$') => {
            *written =
                text(written, variables).map_err(|problem| Fault::from(Invalid { field: path.to_owned(), problem }))?;
            Ok(())
        }
        Value::Array(items) => items
            .iter_mut()
            .enumerate()
            .try_for_each(|(index, item)| document(item, &format!("{path}[{index}]"), variables)),
        Value::Object(map) => map.iter_mut().try_for_each(|(key, item)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            document(item, &path, variables)
        }),
        _ => Ok(()),
    }
}

/// Replaces variables in a text.
///
/// # Errors
/// A variable that must be there is not, or the text is malformed.
pub(super) fn text(text: &str, variables: &Variables) -> Result<String, String> {
    let mut out = String::new();
    expand(text, variables, 0, &mut out)?;
    Ok(out)
}

fn expand(text: &str, variables: &Variables, depth: usize, out: &mut String) -> Result<(), String> {
    if depth > DEEPEST {
        return Err(format!("variables are nested more than {DEEPEST} deep"));
    }
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(inner) = after.strip_prefix('{') {
            let end = closing(inner).ok_or_else(|| format!("{text:?} has a `${{` without its `}}`"))?;
            braced(&inner[..end], variables, depth, out)?;
            rest = &inner[end + 1..];
        } else {
            let name = name(after);
            if name.is_empty() {
                return Err(format!("{text:?} has a `$` that begins no variable; write `$$` for a dollar sign"));
            }
            out.push_str(variables.get(name).map_or("", String::as_str));
            rest = &after[name.len()..];
        }
        if out.len() > LONGEST {
            return Err(format!("becomes longer than {LONGEST} bytes"));
        }
    }
    out.push_str(rest);
    Ok(())
}

/// Where the brace closes that was opened before `text`.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut before) = (0usize, None);
    for (at, c) in text.char_indices() {
        match c {
            '{' if before == Some('$') => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            _ => {}
        }
        before = Some(c);
    }
    None
}

fn name(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    if text.starts_with(|c: char| c.is_ascii_digit()) { "" } else { &text[..end] }
}

/// What stands between the braces: a name and perhaps an operator.
fn braced(text: &str, variables: &Variables, depth: usize, out: &mut String) -> Result<(), String> {
    let name = name(text);
    let operator = &text[name.len()..];
    if name.is_empty() {
        return Err(format!("`${{{text}}}` names no variable"));
    }
    let value = variables.get(name);
    // With a colon an empty variable counts as none.
    let (there, operator) = match operator.strip_prefix(':') {
        Some(operator) => (value.filter(|value| !value.is_empty()), operator),
        None => (value, operator),
    };
    let mut kind = operator.chars();
    match (kind.next(), there) {
        (None, _) if text.len() == name.len() => out.push_str(value.map_or("", String::as_str)),
        (Some('-' | '?'), Some(value)) => out.push_str(value),
        (Some('-'), None) => expand(kind.as_str(), variables, depth + 1, out)?,
        (Some('+'), Some(_)) => expand(kind.as_str(), variables, depth + 1, out)?,
        (Some('+'), None) => {}
        (Some('?'), None) => {
            let mut message = String::new();
            expand(kind.as_str(), variables, depth + 1, &mut message)?;
            let message = if message.is_empty() { "is not set".to_owned() } else { message };
            return Err(format!("variable {name} is needed: {message}"));
        }
        _ => return Err(format!("`${{{text}}}` has an operator that Compose does not know")),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operator_does_what_composes_page_says() {
        let pairs = [("A", "a"), ("EMPTY", ""), ("B", "b")];
        let variables = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        for (written, becomes) in [
            ("$A ${A} $$A $$$A", "a a $A $a"),
            ("${A:-x}${EMPTY:-x}${NONE:-x}", "axx"),
            ("${A-x}${EMPTY-x}${NONE-x}", "ax"),
            ("${A:+x}${EMPTY:+x}${NONE:+x}", "x"),
            ("${A+x}${EMPTY+x}${NONE+x}", "xx"),
            ("${A:?m}${EMPTY?m}", "a"),
            ("${NONE:-${EMPTY:-$B}}!", "b!"),
            ("${NONE:-{}}", "{}"),
            ("$NONE$A_", ""),
        ] {
            assert_eq!(text(written, &variables).as_deref(), Ok(becomes), "{written}");
        }
        for (written, part) in [
            ("${NONE:?set it}", "variable NONE is needed: set it"),
            ("${EMPTY:?${A}}", "needed: a"),
            ("${NONE?}", "is not set"),
            ("100$", "write `$$`"),
            ("${A", "without its"),
            ("${}", "names no variable"),
            ("${A!x}", "does not know"),
        ] {
            let error = text(written, &variables).unwrap_err();
            assert!(error.contains(part), "{written}: {error}");
        }
    }

    #[test]
    fn nesting_and_growth_end() {
        let deep = format!("{}x{}", "${N:-".repeat(40), "}".repeat(40));
        assert!(text(&deep, &Variables::new()).unwrap_err().contains("nested"));
        let big = Variables::from([("A".to_owned(), "a".repeat(LONGEST / 2))]);
        assert!(text("$A$A$A$A", &big).unwrap_err().contains("longer"));
    }
}
