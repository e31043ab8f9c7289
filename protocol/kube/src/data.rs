//! ConfigMaps and Secrets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use skeg_protocol::manifest::{Data, DataKind};

use crate::cursor::{Cursor, Fault, Fields};
use crate::pod::METADATA;

/// Converts a ConfigMap or a Secret, whichever the object's kind says.
///
/// # Errors
/// The first field that is unknown or breaks a rule. What stands in a secret is not in the message.
pub fn convert_data(object: &Value) -> Result<Data, Fault> {
    let top = Cursor::new(object, "");
    let secret = object["kind"] == "Secret";
    let mut entries = Vec::new();
    let kind = if secret {
        top.fields(&Fields {
            read: &["metadata", "data", "stringData", "immutable"],
            ignored: &["apiVersion", "kind", "type"],
            unsupported: &[],
        })?;
        entries.extend(top.entries("data")?.iter().map(binary).collect::<Result<Vec<_>, Fault>>()?);
        for (key, value) in top.entries("stringData")? {
            // As Kubernetes has it: stringData wins over data.
            entries.retain(|(other, _)| other != key);
            entries.push((key.to_owned(), plain(&value)?));
        }
        DataKind::Secret
    } else {
        top.fields(&Fields {
            read: &["metadata", "data", "binaryData", "immutable"],
            ignored: &["apiVersion", "kind"],
            unsupported: &[],
        })?;
        for (key, value) in top.entries("data")? {
            entries.push((key.to_owned(), plain(&value)?));
        }
        for (key, value) in top.entries("binaryData")? {
            if entries.iter().any(|(other, _)| other == key) {
                return Err(value.wrong("is in data, too"));
            }
            entries.push(binary(&(key, value))?);
        }
        DataKind::ConfigMap
    };
    entries.sort();
    top.only("immutable", &[json!(true), json!(false)])?;
    let metadata = top.need("metadata")?;
    metadata.fields(&METADATA)?;
    let data = Data {
        kind,
        namespace: metadata.need("namespace")?.bounded()?,
        name: metadata.need("name")?.bounded()?,
        immutable: top.flag("immutable")?,
        entries,
    };
    data.validate()?;
    Ok(data)
}

fn plain(at: &Cursor<'_>) -> Result<Vec<u8>, Fault> {
    match at.value() {
        Value::String(text) => Ok(text.clone().into_bytes()),
        // Not shown: it may be a secret.
        _ => Err(at.wrong("must be a text; put it in quotes")),
    }
}

fn binary((key, at): &(&str, Cursor<'_>)) -> Result<(String, Vec<u8>), Fault> {
    let text = plain(at)?;
    // Long values are often wrapped.
    let text: Vec<u8> = text.into_iter().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let bytes = STANDARD.decode(text).map_err(|error| at.wrong(format!("is no base64: {error}")))?;
    Ok(((*key).to_owned(), bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_bytes_and_texts_of_which_texts_win() {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": "s", "namespace": "default"},
            "data": {"b": "AAH/", "a": "b2xk"}, "stringData": {"a": "new"},
        });
        let data = convert_data(&secret).unwrap();
        assert_eq!(data.entries, [("a".to_owned(), b"new".to_vec()), ("b".to_owned(), vec![0, 1, 255])]);
        assert_eq!((data.kind, data.immutable), (DataKind::Secret, false));
    }

    #[test]
    fn a_config_map_has_texts_and_bytes_under_different_keys() {
        let mut map = json!({
            "kind": "ConfigMap", "metadata": {"name": "m", "namespace": "default"},
            "data": {"b": "x"}, "binaryData": {"a": "AA=="}, "immutable": true,
        });
        let data = convert_data(&map).unwrap();
        assert_eq!(data.entries, [("a".to_owned(), vec![0]), ("b".to_owned(), b"x".to_vec())]);
        assert!(data.immutable);
        map["binaryData"]["b"] = json!("");
        assert_eq!(convert_data(&map).unwrap_err().to_string(), "binaryData[b]: is in data, too");
    }

    #[test]
    fn a_secret_is_never_shown_in_a_complaint() {
        for (field, value) in [("data", json!("hunter2!")), ("stringData", json!(424_242))] {
            let secret = json!({
                "kind": "Secret", "metadata": {"name": "s", "namespace": "default"}, field: {"k": value},
            });
            let text = convert_data(&secret).unwrap_err().to_string();
            assert!(text.starts_with(&format!("{field}[k]: ")), "{text}");
            assert!(!text.contains("hunter2") && !text.contains("424242"), "{text}");
        }
        let bad_key = json!({"kind": "Secret", "metadata": {"name": "s", "namespace": "x"}, "stringData": {"a/b": ""}});
        assert!(convert_data(&bad_key).unwrap_err().to_string().contains("data[a/b]"));
    }
}
