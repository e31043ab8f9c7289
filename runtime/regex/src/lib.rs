//! `regex-lite` under the name of `regex`, which has the same interface and half a MiB of tables and engines.
//!
//! Owns nothing. oci-spec needs it for one pattern of ASCII digits; why it stands here: docs/decisions/0018-small-binaries.md.

#![deny(unsafe_code)]

pub use regex_lite::*;
