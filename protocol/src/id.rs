//! Identifiers: content digests, pod uids and DNS-style names. Each has one textual form and one on the wire.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A DNS label (RFC 1123): container, volume, namespace and host names; at most 63 bytes.
pub type Label = heapless::String<63>;
/// A DNS subdomain (RFC 1123): pod and node names; at most 253 bytes.
pub type Name = heapless::String<253>;

/// A SHA-256 content digest; `sha256:<64 hex digits>` in text (OCI image-spec, descriptor.md).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut out = [0; 32];
        out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
        Digest(out)
    }
}

/// Why a text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a digest of the form sha256:<64 lowercase hex digits>")]
pub struct DigestError {
    /// The text as given, cut to 100 characters.
    pub text: String,
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let error = || DigestError { text: text.chars().take(100).collect() };
        let hex = text.strip_prefix("sha256:").ok_or_else(error)?;
        let mut bytes = [0; 32];
        if hex.len() != 64 {
            return Err(error());
        }
        parse_hex(hex.as_bytes(), &mut bytes).ok_or_else(error)?;
        Ok(Digest(bytes))
    }
}

/// A pod's unique id: a UUID, 16 bytes on the wire, 36 characters in text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Uid(pub [u8; 16]);

/// Why a text is no uid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a UUID of the form 8-4-4-4-12 lowercase hex digits")]
pub struct UidError {
    /// The text as given, cut to 100 characters.
    pub text: String,
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uid {
    type Err = UidError;

    fn from_str(text: &str) -> Result<Self, UidError> {
        let error = || UidError { text: text.chars().take(100).collect() };
        let groups: Vec<&str> = text.split('-').collect();
        if groups.iter().map(|group| group.len()).collect::<Vec<_>>() != [8, 4, 4, 4, 12] {
            return Err(error());
        }
        let mut bytes = [0; 16];
        parse_hex(groups.concat().as_bytes(), &mut bytes).ok_or_else(error)?;
        Ok(Uid(bytes))
    }
}

/// Fills `out` from lowercase hex digits; `None` where a digit is none or the lengths differ.
fn parse_hex(hex: &[u8], out: &mut [u8]) -> Option<()> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if hex.len() != out.len() * 2 {
        return None;
    }
    for (slot, pair) in out.iter_mut().zip(hex.chunks_exact(2)) {
        *slot = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

/// Says whether `text` is a DNS label (RFC 1123): 1 to 63 of `a-z`, `0-9`, `-`, not `-` at either end.
pub fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Says whether `text` is a DNS subdomain (RFC 1123): labels joined by dots, at most 253 bytes.
pub fn is_name(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_text_round_trips_and_rejects_what_is_none() {
        let text = format!("sha256:{}", "0123456789abcdef".repeat(4));
        assert_eq!(text.parse::<Digest>().unwrap().to_string(), text);
        for bad in ["", "sha256:", "sha512:00", &text[..70], &text.to_uppercase(), &format!("{text}0")] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn uid_text_round_trips_and_rejects_what_is_none() {
        let text = "01234567-89ab-cdef-0123-456789abcdef";
        assert_eq!(text.parse::<Uid>().unwrap().to_string(), text);
        for bad in [
            "",
            "0123456789abcdef0123456789abcdef",
            "01234567-89ab-cdef-0123-456789abcdeg",
            "é1234567-89ab-cdef-0123-456789abcde",
        ] {
            assert!(bad.parse::<Uid>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_follow_rfc_1123() {
        assert!(is_name("web-0.shop") && is_label("a"));
        for bad in ["", "-a", "a-", "A", "a_b", "a..b", ".", &"a".repeat(64)] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
