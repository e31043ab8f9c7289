//! Golden bytes: what each kind of message looks like on the wire, kept in `golden.txt`. Boards in the field speak
//! these bytes for years, so a change here is a change of the protocol and needs a new field at a message's end, a
//! new kind, or a new version. `UPDATE_GOLDEN=1 cargo test -p skeg-protocol --test wire` writes the file anew.

use std::fmt::Write as _;
use std::path::Path;

use skeg_protocol::codec::{Decoder, encode};
use skeg_protocol::manifest::Manifest;
use skeg_protocol::message::Held;
use skeg_protocol::sync::body;

use crate::samples::{messages, pod};

const HEADER: &str = "# The frame of each sample message: its kind and name, then length (3 bytes, little-endian), kind\n\
                      # (1 byte) and postcard body in hex. Kept by golden.rs.\n";

/// The samples as the text of `golden.txt`.
fn rendered() -> String {
    let mut text = HEADER.to_owned();
    for message in messages() {
        let mut frame = Vec::new();
        encode(&message, &mut frame).unwrap();
        let name = format!("{message:?}");
        let name = name.split(['(', ' ']).next().unwrap();
        write!(text, "\n{} {name}\n", message.kind()).unwrap();
        for line in frame.chunks(32) {
            let words: Vec<String> =
                line.chunks(4).map(|word| word.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
            writeln!(text, "  {}", words.join(" ")).unwrap();
        }
    }
    text
}

/// The bytes of a rendered text, all frames in one sequence.
fn bytes(text: &str) -> Vec<u8> {
    let digits: String = text.lines().filter(|line| line.starts_with("  ")).flat_map(str::split_whitespace).collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn the_wire_is_as_it_was() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire/golden.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, rendered()).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert_eq!(rendered(), kept, "the wire has changed: is that meant? See the head of golden.rs");
}

#[test]
fn golden_bytes_decode_to_the_samples() {
    let mut decoder = Decoder::default();
    decoder.push(&bytes(include_str!("golden.txt")));
    for sample in messages() {
        assert_eq!(decoder.next(), Ok(Some(sample)));
    }
    assert_eq!(decoder.next(), Ok(None));
}

/// The digest of a manifest is over these bytes, at both ends and for years.
#[test]
fn the_body_of_a_manifest_is_as_it_was() {
    let manifest = Manifest { pods: vec![pod()], trial_seconds: 90, ..Manifest::default() };
    let bytes = body::encode(&manifest).unwrap();
    let mut text = "# The body of a manifest with the sample pod, in hex. Kept by golden.rs.\n".to_owned();
    for line in bytes.chunks(48) {
        let digits: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{digits}").unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire/body.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, kept, "the body has changed: is that meant? See the head of golden.rs");
    let digits: String = kept.lines().skip(1).collect();
    let bytes: Vec<u8> =
        (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect();
    assert_eq!(body::decode(Held::NOTHING, &bytes), Ok(manifest));
}

#[test]
fn every_kind_has_a_sample() {
    let mut kinds: Vec<u8> = messages().iter().map(skeg_protocol::Message::kind).collect();
    kinds.dedup();
    assert_eq!(kinds, (1..=20).collect::<Vec<u8>>());
}

#[test]
fn fields_of_newer_versions_are_passed_over() {
    for sample in messages() {
        let mut frame = Vec::new();
        encode(&sample, &mut frame).unwrap();
        frame.extend_from_slice(b"newer");
        let length = frame.len() - 4;
        frame[..3].copy_from_slice(&(length as u32).to_le_bytes()[..3]);
        let mut decoder = Decoder::default();
        decoder.push(&frame);
        assert_eq!(decoder.next(), Ok(Some(sample)));
    }
}
