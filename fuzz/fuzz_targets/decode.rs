//! Hostile bytes, cut at hostile places. It owns the promise that the decoder and all validation never panic,
//! that cuts change nothing, and that what was decoded means the same when it is encoded again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skeg_protocol::codec::{self, Decoder};
use skeg_protocol::message::Held;
use skeg_protocol::sync::{Answer, Intake, body, delta};
use skeg_protocol::{CodecError, Connection, Digest, Label, Message, Uid};
use std::time::Duration;

/// Everything that comes out of `bytes` when they arrive in pieces of at most `piece` bytes.
fn decode(bytes: &[u8], piece: usize) -> (Vec<Message>, Option<CodecError>) {
    let (mut decoder, mut messages) = (Decoder::default(), Vec::new());
    for part in bytes.chunks(piece) {
        decoder.push(part);
        loop {
            match decoder.next() {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => break,
                Err(error) => return (messages, Some(error)),
            }
        }
    }
    (messages, None)
}

/// Runs whole connections over the bytes: each role, each state that bytes alone can reach.
fn converse(bytes: &[u8], piece: usize) {
    let now = Duration::from_secs(1);
    for mut connection in [Connection::local(now), Connection::controller(now)] {
        for part in bytes.chunks(piece) {
            connection.receive(part, now);
            while let Ok(Some(message)) = connection.next() {
                if let Message::StreamData(data) = &message {
                    connection.consumed(data.id, data.bytes.len()).expect("credit fits a frame");
                }
            }
            let _ = connection.output(now);
        }
    }
}

/// A device whose controller says all this about manifests.
fn take(messages: Vec<Message>) {
    let mut intake = Intake::default();
    for message in messages {
        let answer = match message {
            Message::ManifestBegin(begin) => intake.begin(begin),
            Message::ManifestPiece(piece) => intake.piece(&piece),
            _ => continue,
        };
        if let Answer::Take(whole) = answer {
            let held = whole.held;
            assert!(held.revision > intake.held().revision, "it went back");
            intake.stored(*whole);
            assert_eq!(intake.held(), held);
        }
        let _ = (intake.partial(), intake.items());
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, bytes)) = data.split_first() else { return };
    let piece = usize::from(first) + 1;
    let (messages, error) = decode(bytes, piece);
    assert_eq!((&messages, &error), (&decode(bytes, usize::MAX).0, &decode(bytes, usize::MAX).1), "cuts matter");

    let mut again = Vec::new();
    for message in &messages {
        codec::encode(message, &mut again).expect("what fitted a frame fits it again");
    }
    assert_eq!(decode(&again, piece), (messages.clone(), None), "another meaning after encoding again");

    if let Ok(manifest) = body::decode(Held::NOTHING, bytes) {
        let _ = manifest.validate();
        let _ = manifest.pod(Uid::default());
    }
    let (old, difference) = bytes.split_at(bytes.len().min(usize::from(first)));
    if let Ok(new) = delta::apply(old, difference, 1 << 16) {
        let again = delta::encode(old, &new);
        assert_eq!(delta::apply(old, &again, new.len()).as_ref(), Ok(&new), "a difference leads elsewhere");
    }
    take(messages);

    converse(bytes, piece);

    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(digest) = text.parse::<Digest>() {
            assert_eq!(digest.to_string(), text);
        }
        if let Ok(uid) = text.parse::<Uid>() {
            assert_eq!(uid.to_string(), text);
        }
        if skeg_protocol::id::is_label(text) {
            Label::try_from(text).expect("a label fits its type");
        }
        let _ = skeg_protocol::status::text(text);
    }
});
