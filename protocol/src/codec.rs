//! Frames: `length: u24 little-endian` of the body, `kind: u8`, then the body in postcard. The decoder takes
//! bytes as they come and gives whole messages; it never holds more than one frame's worth.

use thiserror::Error;

use crate::limits::MAX_FRAME;
use crate::message::Message;

/// Bytes before a frame's body.
pub const HEADER: usize = 4;
/// Bytes of a decoder's buffer that are kept while nothing comes.
const KEPT: usize = 256;

/// Why bytes are no message. All are final for the connection: a stream of frames cannot be picked up again.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CodecError {
    /// The peer announced a frame that is too long.
    #[error("a frame of kind {kind} with {length} bytes is over the limit of {MAX_FRAME} bytes")]
    TooLong {
        /// Kind number.
        kind: u8,
        /// Announced length in bytes.
        length: usize,
    },
    /// The body is not what its kind says.
    #[error("a frame of kind {kind} with {length} bytes does not decode: {source}")]
    Malformed {
        /// Kind number.
        kind: u8,
        /// Length in bytes.
        length: usize,
        /// What postcard says.
        source: postcard::Error,
    },
}

/// Appends a message as one frame to `out`.
///
/// # Errors
/// [`CodecError::TooLong`] where the body exceeds [`MAX_FRAME`]; `out` is then as before.
pub fn encode(message: &Message, out: &mut Vec<u8>) -> Result<(), CodecError> {
    let (start, kind) = (out.len(), message.kind());
    out.extend_from_slice(&[0; HEADER]);
    *out =
        message.encode_body(std::mem::take(out)).map_err(|source| CodecError::Malformed { kind, length: 0, source })?;
    let length = out.len() - start - HEADER;
    if length > MAX_FRAME {
        out.truncate(start);
        return Err(CodecError::TooLong { kind, length });
    }
    let [a, b, c, ..] = (length as u32).to_le_bytes();
    out[start..start + HEADER].copy_from_slice(&[a, b, c, kind]);
    Ok(())
}

/// Turns bytes into messages.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that were already given out.
    used: usize,
}

impl Decoder {
    /// Takes bytes as they came. The caller drains [`Decoder::next`] before it pushes more, so the buffer
    /// stays within one frame and one push.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.used);
        self.used = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Gives the next whole message, or `None` until more bytes come. Frames of unknown kinds are skipped.
    ///
    /// # Errors
    /// The bytes break the format; the connection must end.
    #[allow(clippy::should_implement_trait, reason = "an iterator ends, a decoder waits")]
    pub fn next(&mut self) -> Result<Option<Message>, CodecError> {
        Ok(self.next_with_length()?.map(|(message, _)| message))
    }

    /// The same with the length of the frame in bytes.
    ///
    /// # Errors
    /// As [`Decoder::next`].
    pub fn next_with_length(&mut self) -> Result<Option<(Message, usize)>, CodecError> {
        loop {
            let pending = &self.buffer[self.used..];
            let Some((&[a, b, c, kind], rest)) = pending.split_first_chunk::<HEADER>() else { return Ok(None) };
            let length = u32::from_le_bytes([a, b, c, 0]) as usize;
            if length > MAX_FRAME {
                return Err(CodecError::TooLong { kind, length });
            }
            let Some(body) = rest.get(..length) else { return Ok(None) };
            let message =
                Message::decode_body(kind, body).map_err(|source| CodecError::Malformed { kind, length, source })?;
            self.used += HEADER + length;
            if let Some(message) = message {
                // A connection is idle most of its life: what a larger frame took is given back.
                if self.used == self.buffer.len() && self.buffer.capacity() > KEPT {
                    (self.buffer, self.used) = (Vec::new(), 0);
                }
                return Ok(Some((message, HEADER + length)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Heartbeat, Reject, RejectCode};

    #[test]
    fn a_heartbeat_is_five_bytes() {
        let mut out = Vec::new();
        encode(&Heartbeat::default().into(), &mut out).unwrap();
        assert_eq!(out, [1, 0, 0, 4, 0]);
    }

    #[test]
    fn frames_split_anywhere_decode_alike() {
        let message: Message = Reject { code: RejectCode::Token, message: "used up".into(), retry_seconds: 60 }.into();
        let mut bytes = Vec::new();
        encode(&message, &mut bytes).unwrap();
        encode(&Heartbeat::default().into(), &mut bytes).unwrap();
        for cut in 0..=bytes.len() {
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                decoder.push(part);
                while let Some(message) = decoder.next().unwrap() {
                    got.push(message);
                }
            }
            assert_eq!(got, [message.clone(), Heartbeat::default().into()], "cut at {cut}");
        }
    }

    #[test]
    fn unknown_kinds_are_skipped() {
        let mut decoder = Decoder::default();
        decoder.push(&[3, 0, 0, 250, 1, 2, 3, 1, 0, 0, 4, 0]);
        assert_eq!(decoder.next(), Ok(Some(Heartbeat::default().into())));
        assert_eq!(decoder.next(), Ok(None));
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_from_its_header() {
        let mut decoder = Decoder::default();
        decoder.push(&[0xff, 0xff, 0xff, 4]);
        assert_eq!(decoder.next(), Err(CodecError::TooLong { kind: 4, length: 0xff_ffff }));
    }

    #[test]
    fn a_message_over_the_limit_leaves_the_output_as_it_was() {
        let message = Reject { code: RejectCode::Token, message: "x".repeat(MAX_FRAME + 1), retry_seconds: 60 }.into();
        let mut out = vec![7];
        assert!(matches!(encode(&message, &mut out), Err(CodecError::TooLong { kind: 3, .. })));
        assert_eq!(out, [7]);
    }
}
