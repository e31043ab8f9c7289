//! Hostile manifests and configurations. It owns the promise that reading them never panics.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    skeg_images::fuzzing::image(bytes);
});
