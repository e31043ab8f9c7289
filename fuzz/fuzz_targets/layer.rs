//! Hostile layers. It owns the promise that unpacking one never panics and touches nothing outside of its folder.

#![no_main]

use std::fs;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // In memory, with a file beside the layer that nothing may touch.
    let folder = PathBuf::from(format!("/dev/shm/skeg-fuzz-{}", std::process::id()));
    let (layer, victim) = (folder.join("layer"), folder.join("victim"));
    fs::create_dir_all(&layer).expect("the layer's folder can be made");
    fs::write(&victim, "untouched").expect("a file can be written");
    skeg_images::fuzzing::layer(bytes, &layer);
    assert_eq!(fs::read(&victim).expect("it is there"), b"untouched");
    assert_eq!(fs::read_dir(&folder).expect("it is there").count(), 2);
    fs::remove_dir_all(&folder).expect("what was unpacked can be removed");
});
