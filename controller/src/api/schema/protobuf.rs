//! Kubernetes' protobuf bodies (`application/vnd.kubernetes.protobuf`), which kubectl sends for kinds that it knows by
//! heart: read into the JSON that every other client sends.
//!
//! Go's encoder writes a field that is no pointer even when it is empty; its JSON does not. Such fields are left out
//! here, so that both ways lead to one object.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::wire::{Item, Reader};
use super::{Base, Field, Shape, Type};

/// The envelope's first bytes.
const MAGIC: &[u8] = b"k8s\0";
/// Deepest nesting of messages; Kubernetes' own types nest less than 20.
const DEPTH: usize = 64;

/// What an envelope holds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decoded<'a> {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    raw: &'a [u8],
}

/// Opens the envelope (runtime.Unknown).
pub(crate) fn decode(body: &[u8]) -> Result<Decoded<'_>, String> {
    let bytes = body.strip_prefix(MAGIC).ok_or("the body does not begin with the mark of Kubernetes' protobuf")?;
    let mut decoded = Decoded { api_version: String::new(), kind: String::new(), raw: &[] };
    for field in Reader(bytes) {
        match field.ok_or("the envelope ends early")? {
            (1, Item::Bytes(meta)) => {
                for field in Reader(meta) {
                    match field.ok_or("the type in the envelope ends early")? {
                        (1, Item::Bytes(text)) => decoded.api_version = String::from_utf8_lossy(text).into_owned(),
                        (2, Item::Bytes(text)) => decoded.kind = String::from_utf8_lossy(text).into_owned(),
                        _ => {}
                    }
                }
            }
            (2, Item::Bytes(raw)) => decoded.raw = raw,
            _ => {}
        }
    }
    Ok(decoded)
}

impl Decoded<'_> {
    /// The object as JSON.
    pub(crate) fn object(&self, kind: &'static Type) -> Result<Value, String> {
        let mut map = message(self.raw, kind, DEPTH)?;
        map.insert("apiVersion".to_owned(), json!(self.api_version));
        map.insert("kind".to_owned(), json!(self.kind));
        Ok(Value::Object(map))
    }
}

fn message(bytes: &[u8], kind: &'static Type, depth: usize) -> Result<Map<String, Value>, String> {
    let depth = depth.checked_sub(1).ok_or("the object is nested too deep")?;
    let mut map = Map::new();
    for field in Reader(bytes) {
        let (number, item) = field.ok_or_else(|| format!("the {} ends early", kind.name))?;
        let Some(field) = kind.fields.iter().find(|field| field.number == number) else { continue };
        match (field.shape, field.inner()) {
            (Shape::One, Some(inner)) if field.inline => map.extend(message(bytes_of(item, field)?, inner, depth)?),
            (Shape::One, _) => {
                let value = value(item, field, depth)?;
                if field.pointer || field.required || !is_zero(&value) {
                    map.insert(field.name.to_owned(), value);
                }
            }
            (Shape::List, _) => {
                let value = value(item, field, depth)?;
                let list = map.entry(field.name).or_insert_with(|| json!([]));
                if let Some(list) = list.as_array_mut() {
                    list.push(value);
                }
            }
            (Shape::Map, _) => {
                let (key, value) = entry(bytes_of(item, field)?, field, depth)?;
                map.entry(field.name).or_insert_with(|| json!({}))[key] = value;
            }
        }
    }
    Ok(map)
}

/// One entry of a map: key 1, value 2.
fn entry(bytes: &[u8], field: &'static Field, depth: usize) -> Result<(String, Value), String> {
    let (mut key, mut found) = (String::new(), None);
    for part in Reader(bytes) {
        match part.ok_or_else(|| format!("an entry of {} ends early", field.name))? {
            (1, Item::Bytes(text)) => key = text_of(text, field)?,
            (2, item) => found = Some(value(item, field, depth)?),
            _ => {}
        }
    }
    let empty = || if field.inner().is_some() { json!({}) } else { json!("") };
    Ok((key, found.unwrap_or_else(empty)))
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(true) => false,
    }
}

fn bytes_of<'a>(item: Item<'a>, field: &Field) -> Result<&'a [u8], String> {
    match item {
        Item::Bytes(bytes) => Ok(bytes),
        _ => Err(format!("{} has another type on the wire", field.name)),
    }
}

fn text_of(bytes: &[u8], field: &Field) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| format!("{} is no UTF-8", field.name))
}

fn value(item: Item<'_>, field: &'static Field, depth: usize) -> Result<Value, String> {
    let number = |item| match item {
        // Negative numbers are written as the 64 bits of their two's complement.
        Item::Varint(number) => Ok(number as i64),
        _ => Err(format!("{} has another type on the wire", field.name)),
    };
    Ok(match field.base {
        Base::Text => json!(text_of(bytes_of(item, field)?, field)?),
        Base::Bool => json!(number(item)? != 0),
        Base::Int32 => json!(number(item)? as i32),
        Base::Int64 => json!(number(item)?),
        Base::Double => match item {
            Item::Fixed64(bits) => json!(f64::from_bits(bits)),
            _ => return Err(format!("{} has another type on the wire", field.name)),
        },
        Base::Bytes => json!(STANDARD.encode(bytes_of(item, field)?)),
        Base::Quantity => json!(first_text(bytes_of(item, field)?, field)?),
        Base::Any => {
            let bytes = Reader(bytes_of(item, field)?).flatten().find_map(|(number, item)| match (number, item) {
                (1, Item::Bytes(bytes)) => Some(bytes),
                _ => None,
            });
            serde_json::from_slice(bytes.unwrap_or(b"null")).map_err(|error| format!("{}: {error}", field.name))?
        }
        Base::IntOrText => int_or_text(bytes_of(item, field)?, field)?,
        Base::Time => time(bytes_of(item, field)?, false),
        Base::MicroTime => time(bytes_of(item, field)?, true),
        Base::Duration => json!(""),
        Base::Texts => {
            let items = Reader(bytes_of(item, field)?).flatten();
            let texts = items.filter_map(|(number, item)| match (number, item) {
                (1, Item::Bytes(bytes)) => Some(text_of(bytes, field)),
                _ => None,
            });
            json!(texts.collect::<Result<Vec<_>, _>>()?)
        }
        Base::Type(_) => match field.inner() {
            Some(inner) => Value::Object(message(bytes_of(item, field)?, inner, depth)?),
            None => Value::Null,
        },
    })
}

fn first_text(bytes: &[u8], field: &Field) -> Result<String, String> {
    let text = Reader(bytes).flatten().find_map(|(number, item)| match (number, item) {
        (1, Item::Bytes(bytes)) => Some(text_of(bytes, field)),
        _ => None,
    });
    text.unwrap_or_else(|| Ok(String::new()))
}

fn int_or_text(bytes: &[u8], field: &Field) -> Result<Value, String> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for part in Reader(bytes) {
        match part.ok_or_else(|| format!("{} ends early", field.name))? {
            (1, Item::Varint(kind)) => is_text = kind == 1,
            (2, Item::Varint(found)) => number = found as i32,
            (3, Item::Bytes(found)) => text = text_of(found, field)?,
            _ => {}
        }
    }
    Ok(if is_text { json!(text) } else { json!(number) })
}

/// Seconds 1 and nanoseconds 2; nothing is no time.
fn time(bytes: &[u8], micro: bool) -> Value {
    let (mut seconds, mut nanos) = (None, 0);
    for (number, item) in Reader(bytes).flatten() {
        match (number, item) {
            (1, Item::Varint(found)) => seconds = Some(found as i64),
            (2, Item::Varint(found)) => nanos = found as i32,
            _ => {}
        }
    }
    let at = seconds.and_then(|seconds| Timestamp::new(seconds, nanos).ok());
    match at {
        Some(at) if micro => json!(format!("{at:.6}")),
        Some(at) => json!(crate::time::text(at)),
        None => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::Writer;
    use super::*;

    fn envelope(raw: &[u8]) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.message(1, |meta| {
            meta.bytes(1, b"v1");
            meta.bytes(2, b"Secret");
        });
        writer.bytes(2, raw);
        [MAGIC, &writer.0].concat()
    }

    #[test]
    fn a_body_becomes_the_object_that_json_would_have_been() {
        let mut raw = Writer::default();
        raw.message(1, |metadata| {
            metadata.bytes(1, b"s");
            metadata.bytes(3, b"");
            metadata.bytes(8, b"");
            metadata.message(11, |label| {
                label.bytes(1, b"a");
                label.bytes(2, b"b");
            });
        });
        raw.message(2, |data| {
            data.bytes(1, b"k");
            data.bytes(2, b"\x00\x01");
        });
        let body = envelope(&raw.0);
        let decoded = decode(&body).unwrap();
        let object = decoded.object(Type::named("core.v1.Secret").unwrap()).unwrap();
        let wanted = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "labels": {"a": "b"}}, "data": {"k": "AAE="},
        });
        assert_eq!(object, wanted);
        for end in 0..body.len() {
            // Whatever is cut is refused or leads to less; nothing panics.
            let _ = decode(&body[..end]).and_then(|decoded| decoded.object(Type::named("core.v1.Secret").unwrap()));
        }
    }

    #[test]
    fn nesting_is_bounded() {
        // A JSON schema of messages in messages: ownerless, so only the bound ends it.
        let mut raw = Vec::new();
        for _ in 0..10_000 {
            let mut writer = Writer::default();
            writer.bytes(1, &raw);
            raw = writer.0;
            if raw.len() > 100_000 {
                break;
            }
        }
        let body = envelope(&raw);
        let _ = decode(&body).unwrap().object(Type::named("core.v1.Pod").unwrap());
    }
}
