//! Config maps and secrets.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::env::DataKind;
use crate::id::{Label, Name};

/// A config map or a secret: keys and bytes.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// Which of the two.
    pub kind: DataKind,
    /// Kubernetes namespace.
    pub namespace: Label,
    /// Unique among its kind in the namespace.
    pub name: Name,
    /// Never changes; running pods are not told anything new.
    pub immutable: bool,
    /// Keys are file names ([`is_key`]), sorted, each once.
    pub entries: Vec<(String, Vec<u8>)>,
}

impl Data {
    /// The bytes of a key.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.entries.iter().find(|(name, _)| name == key).map(|(_, bytes)| bytes.as_slice())
    }
}

/// Says whether a text can be a key: 1 to 253 of `A-Z a-z 0-9 - _ .`, and not `.` or beginning with `..`.
pub fn is_key(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=253).contains(&text.len()) && text.bytes().all(plain) && text != "." && !text.starts_with("..")
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not what is in it: this may be a secret.
        write!(f, "{:?}({}/{}, {} keys)", self.kind, self.namespace, self.name, self.entries.len())
    }
}
