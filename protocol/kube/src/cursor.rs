//! Reads JSON that a stranger wrote: every access knows its path, so that every complaint names the field as
//! Kubernetes writes it. A field that nobody reads is an error, never silently dropped.

use serde_json::{Map, Value};
use skeg_protocol::Invalid;
use thiserror::Error;

/// What is wrong with an object, and where.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Fault {
    /// Nobody knows this field.
    #[error("strict decoding error: unknown field \"{field}\" (value {value})")]
    Unknown {
        /// Path.
        field: String,
        /// Its value as JSON, shortened.
        value: String,
    },
    /// Kubernetes knows the field or value, skeg does not do it yet.
    #[error("{field}: not supported yet: {value}")]
    Unsupported {
        /// Path.
        field: String,
        /// Its value as JSON, shortened.
        value: String,
    },
    /// The value breaks a rule.
    #[error("{0}")]
    Invalid(#[from] Invalid),
}

impl Fault {
    /// The path of the field.
    pub fn field(&self) -> &str {
        match self {
            Fault::Unknown { field, .. } | Fault::Unsupported { field, .. } => field,
            Fault::Invalid(Invalid { field, .. }) => field,
        }
    }
}

/// The fields that an object may have.
#[derive(Debug)]
pub struct Fields {
    /// Read by the caller.
    pub read: &'static [&'static str],
    /// Without meaning on a device; taken as they are.
    pub ignored: &'static [&'static str],
    /// Kubernetes gives them a meaning that a device does not follow yet.
    pub unsupported: &'static [&'static str],
}

/// A place in a document.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    value: &'a Value,
    path: String,
}

/// A value as JSON, short enough for a message.
fn shorten(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

impl<'a> Cursor<'a> {
    /// Starts at a document's field.
    pub fn new(value: &'a Value, path: &str) -> Self {
        Cursor { value, path: path.to_owned() }
    }

    /// Where this is.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Complains about the value here.
    pub fn invalid(&self, problem: &str) -> Fault {
        Invalid { field: self.path.clone(), problem: format!("{} {problem}", shorten(self.value)) }.into()
    }

    /// Complains about what is here without showing it.
    pub fn wrong(&self, problem: impl Into<String>) -> Fault {
        Invalid { field: self.path.clone(), problem: problem.into() }.into()
    }

    /// What is here.
    pub fn value(&self) -> &'a Value {
        self.value
    }

    /// Says that the value here is not supported yet.
    pub fn unsupported(&self) -> Fault {
        Fault::Unsupported { field: self.path.clone(), value: shorten(self.value) }
    }

    fn field(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The object here.
    pub fn object(&self) -> Result<&'a Map<String, Value>, Fault> {
        self.value.as_object().ok_or_else(|| self.invalid("must be an object"))
    }

    /// Checks that the object has no other fields than these, and none that is not supported.
    pub fn fields(&self, fields: &Fields) -> Result<(), Fault> {
        for (name, value) in self.object()? {
            let name = name.as_str();
            if fields.read.contains(&name) || fields.ignored.contains(&name) {
                continue;
            }
            let field = self.field(name);
            let empty = match value {
                Value::Null => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(items) => items.is_empty(),
                _ => false,
            };
            if fields.unsupported.contains(&name) {
                // Tools write out fields that they leave empty.
                if !empty {
                    return Err(Fault::Unsupported { field, value: shorten(value) });
                }
                continue;
            }
            return Err(Fault::Unknown { field, value: shorten(value) });
        }
        Ok(())
    }

    /// A field, where it is there and not null.
    pub fn get(&self, name: &str) -> Result<Option<Cursor<'a>>, Fault> {
        let value = self.object()?.get(name).filter(|value| !value.is_null());
        Ok(value.map(|value| Cursor { value, path: self.field(name) }))
    }

    /// A field that must be there.
    pub fn need(&self, name: &str) -> Result<Cursor<'a>, Fault> {
        self.get(name)?.ok_or_else(|| Invalid { field: self.field(name), problem: "is required".to_owned() }.into())
    }

    /// The items of a list field; none where it is missing.
    pub fn items(&self, name: &str) -> Result<Vec<Cursor<'a>>, Fault> {
        let Some(list) = self.get(name)? else { return Ok(Vec::new()) };
        let items = list.value.as_array().ok_or_else(|| list.invalid("must be a list"))?;
        let at = |index| format!("{}[{index}]", list.path);
        Ok(items.iter().enumerate().map(|(index, value)| Cursor { value, path: at(index) }).collect())
    }

    /// What becomes of each item of a list field; nothing where it is missing.
    pub fn each<T>(&self, name: &str, read: impl FnMut(&Cursor<'a>) -> Result<T, Fault>) -> Result<Vec<T>, Fault> {
        self.items(name)?.iter().map(read).collect()
    }

    /// The entries of an object field; none where it is missing.
    pub fn entries(&self, name: &str) -> Result<Vec<(&'a str, Cursor<'a>)>, Fault> {
        let Some(map) = self.get(name)? else { return Ok(Vec::new()) };
        let entries = map.object()?.iter();
        Ok(entries.map(|(key, value)| (key.as_str(), Cursor { value, path: format!("{}[{key}]", map.path) })).collect())
    }

    /// The text here.
    pub fn text(&self) -> Result<&'a str, Fault> {
        self.value.as_str().ok_or_else(|| self.invalid("must be a text"))
    }

    /// The text here, in a bounded string.
    pub fn bounded<const N: usize>(&self) -> Result<heapless::String<N>, Fault> {
        heapless::String::try_from(self.text()?).map_err(|_| self.invalid(&format!("must have at most {N} bytes")))
    }

    /// The number here.
    pub fn integer<T: TryFrom<i64>>(&self) -> Result<T, Fault> {
        let number = self.value.as_i64().ok_or_else(|| self.invalid("must be a whole number"))?;
        T::try_from(number).map_err(|_| self.invalid("is out of range"))
    }

    /// A boolean field; false where it is missing.
    pub fn flag(&self, name: &str) -> Result<bool, Fault> {
        let Some(field) = self.get(name)? else { return Ok(false) };
        field.value.as_bool().ok_or_else(|| field.invalid("must be true or false"))
    }

    /// The number of a field, where it is there.
    pub fn number<T: TryFrom<i64>>(&self, name: &str) -> Result<Option<T>, Fault> {
        self.get(name)?.map(|field| field.integer()).transpose()
    }

    /// The text of a field; empty where it is missing.
    pub fn word(&self, name: &str) -> Result<&'a str, Fault> {
        Ok(self.get(name)?.map(|field| field.text()).transpose()?.unwrap_or_default())
    }

    /// The texts of an object field, by key.
    pub fn text_map(&self, name: &str) -> Result<Vec<(String, String)>, Fault> {
        let entries = self.entries(name)?;
        entries.iter().map(|(key, value)| Ok(((*key).to_owned(), value.text()?.to_owned()))).collect()
    }

    /// Texts of a list field.
    pub fn texts(&self, name: &str) -> Result<Vec<String>, Fault> {
        self.items(name)?.iter().map(|item| Ok(item.text()?.to_owned())).collect()
    }

    /// Refuses a field unless it is missing or has one of these values.
    pub fn only(&self, name: &str, allowed: &[Value]) -> Result<(), Fault> {
        match self.get(name)? {
            Some(field) if !allowed.contains(field.value) => Err(field.unsupported()),
            _ => Ok(()),
        }
    }

    /// A quantity's text, which YAML may have read as a number.
    pub fn quantity_text(&self) -> Result<String, Fault> {
        match self.value {
            Value::String(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            _ => Err(self.invalid("must be a quantity such as 64Mi or 500m")),
        }
    }
}
