//! Ways in for the fuzz targets: the parsers of what registries send, without a registry.
//!
//! Owns no rule: what is fuzzed is what a pull uses. Built with the feature `fuzzing` only.

use std::path::Path;

use crate::store::is_image;
use crate::tar::Archive;
use crate::unpack::{Bounds, unpack};

/// Unpacks bytes as a layer's plain archive, of at most 1 MiB of files, into an empty folder; tells whether they are one.
pub fn layer(bytes: &[u8], folder: &Path) -> bool {
    unpack(&mut Archive::new(bytes), folder, Bounds { entries: 1000, folders: 1000, bytes: 1 << 20 }).is_ok()
}

/// Reads bytes as a manifest and a configuration with a NUL byte between them; tells whether they are an image.
pub fn image(bytes: &[u8]) -> bool {
    let Some(middle) = bytes.iter().position(|&byte| byte == 0) else { return false };
    is_image(&bytes[..middle], &bytes[middle + 1..])
}
