//! One unary call of `grpc.health.v1.Health/Check` over HTTP/2 without TLS (RFC 9113, "gRPC over HTTP2").
//!
//! Owns just as much of HTTP/2 as one call needs: it sends a fixed head, answers settings and pings, and looks for
//! the one message. Header blocks are passed over, so there is no HPACK table to fill.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Largest frame that a peer may send before it was allowed more (RFC 9113, 4.2).
const LARGEST_FRAME: usize = 16_384;
/// Most bytes that are read for one answer.
const MOST_BYTES: usize = 64 * 1024;
/// Largest message: one number.
const LARGEST_MESSAGE: usize = 1024;
/// Longest service name: its length must fit into one byte.
const LONGEST_SERVICE: usize = 127;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;
/// Of headers and data: nothing follows. Of settings and pings: it is an answer.
const END_OR_ACKNOWLEDGE: u8 = 1;
const PADDED: u8 = 8;

/// Asks a service, or the server as a whole where `service` is empty.
pub(super) async fn check(mut stream: TcpStream, service: &str) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("asking by gRPC: {error}");
    stream.write_all(&call(service)?).await.map_err(failed)?;
    let (mut answer, mut read) = (Answer::default(), 0);
    loop {
        let count = stream.read_buf(&mut answer.bytes).await.map_err(failed)?;
        read += count;
        if count == 0 || read > MOST_BYTES {
            return Err("the connection ended without an answer".to_owned());
        }
        let mut reply = Vec::new();
        let found = answer.take(&mut reply)?;
        if found {
            return Ok(());
        }
        stream.write_all(&reply).await.map_err(failed)?;
    }
}

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}

/// Everything that is sent of one's own: preface, settings, head and message.
fn call(service: &str) -> Result<Vec<u8>, String> {
    if service.len() > LONGEST_SERVICE {
        return Err(format!("the name of the service is longer than {LONGEST_SERVICE} bytes"));
    }
    // Indexed `:method: POST` and `:scheme: http`, then literals without indexing (RFC 7541, 6.1 and 6.2.2).
    let mut head = vec![0x83, 0x86];
    let mut literal = |name: &[u8], value: &[u8]| {
        head.extend_from_slice(name);
        // Each value is shorter than 127 bytes.
        head.push(value.len() as u8);
        head.extend_from_slice(value);
    };
    literal(&[0x04], b"/grpc.health.v1.Health/Check");
    literal(&[0x01], b"localhost");
    literal(&[0x0f, 0x10], b"application/grpc");
    literal(b"\x00\x02te", b"trailers");
    let message = match service.as_bytes() {
        [] => Vec::new(),
        name => [&[0x0a, name.len() as u8], name].concat(),
    };
    let message = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    Ok([
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &[]),
        frame(HEADERS, 4, 1, &head),
        frame(DATA, END_OR_ACKNOWLEDGE, 1, &message),
    ]
    .concat())
}

/// What has come so far.
#[derive(Debug, Default)]
struct Answer {
    bytes: Vec<u8>,
    message: Vec<u8>,
}

impl Answer {
    /// Takes the whole frames that are there; true once the service says that it serves. What must be answered is
    /// added to `reply`.
    fn take(&mut self, reply: &mut Vec<u8>) -> Result<bool, String> {
        loop {
            let Some((head, rest)) = self.bytes.split_first_chunk::<9>() else { return Ok(false) };
            let [a, b, c, kind, flags, stream @ ..] = *head;
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if length > LARGEST_FRAME {
                return Err("the answer is not HTTP/2".to_owned());
            }
            let Some(body) = rest.get(..length) else { return Ok(false) };
            let ours = u32::from_be_bytes(stream) & 0x7fff_ffff == 1;
            let ends = flags & END_OR_ACKNOWLEDGE != 0;
            match kind {
                DATA if ours => {
                    let body = unpadded(body, flags)?;
                    self.message.extend_from_slice(&body[..body.len().min(LARGEST_MESSAGE)]);
                    if let Some(serves) = status(&self.message)? {
                        return if serves { Ok(true) } else { Err("the service does not serve".to_owned()) };
                    }
                    if ends {
                        return Err("the answer holds no message".to_owned());
                    }
                }
                HEADERS if ours && ends => return Err("the service answered with an error".to_owned()),
                RESET if ours => return Err("the call was refused".to_owned()),
                GO_AWAY => return Err("the server ended the connection".to_owned()),
                SETTINGS if !ends => reply.extend(frame(SETTINGS, END_OR_ACKNOWLEDGE, 0, &[])),
                PING if !ends => reply.extend(frame(PING, END_OR_ACKNOWLEDGE, 0, body)),
                _ => {}
            }
            self.bytes.drain(..9 + length);
        }
    }
}

fn unpadded(body: &[u8], flags: u8) -> Result<&[u8], String> {
    if flags & PADDED == 0 {
        return Ok(body);
    }
    let inner = body.split_first().and_then(|(pad, rest)| rest.get(..rest.len().checked_sub(usize::from(*pad))?));
    inner.ok_or_else(|| "the answer is not HTTP/2".to_owned())
}

/// Whether the message says `SERVING`; nothing as long as it is not whole.
fn status(message: &[u8]) -> Result<Option<bool>, String> {
    let Some((head, rest)) = message.split_first_chunk::<5>() else { return Ok(None) };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || length > LARGEST_MESSAGE {
        return Err("the answer is compressed or too large".to_owned());
    }
    // Field 1, a number: 1 is SERVING; without it the status is UNKNOWN.
    Ok(rest.get(..length).map(|body| body.starts_with(&[0x08, 0x01])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(frames: &[Vec<u8>]) -> Result<bool, String> {
        let (mut answer, mut reply, mut last) = (Answer::default(), Vec::new(), Ok(false));
        // Byte by byte, as a slow peer sends it.
        for byte in frames.concat() {
            answer.bytes.push(byte);
            last = answer.take(&mut reply);
            if last != Ok(false) {
                return last;
            }
        }
        last
    }

    #[test]
    fn a_server_that_serves_is_well_and_others_are_not() {
        let settings = frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
        let headers = frame(HEADERS, 4, 1, &[0x88]);
        let data = |message: &[u8]| frame(DATA, 0, 1, &[&[0, 0, 0, 0, message.len() as u8], message].concat());
        assert_eq!(answer(&[settings.clone(), headers.clone(), data(&[8, 1])]), Ok(true));
        assert!(answer(&[settings.clone(), headers.clone(), data(&[8, 2])]).is_err());
        assert!(answer(&[headers.clone(), data(&[])]).is_err(), "unknown");
        assert!(answer(&[frame(HEADERS, 5, 1, &[0x88])]).is_err(), "only trailers");
        assert!(answer(&[frame(GO_AWAY, 0, 0, &[0; 8])]).is_err());
        let padded = frame(DATA, PADDED, 1, &[2, 0, 0, 0, 0, 2, 8, 1, 0, 0]);
        assert_eq!(answer(&[headers.clone(), padded]), Ok(true));
        assert!(answer(&[frame(DATA, PADDED, 1, &[9, 0])]).is_err());
        assert!(answer(&[b"HTTP/1.1 400 Bad Request\r\n".to_vec()]).is_err());
    }

    #[test]
    fn settings_and_pings_are_answered() {
        let mut answer = Answer { bytes: frame(SETTINGS, 0, 0, &[]), ..Answer::default() };
        answer.bytes.extend(frame(PING, 0, 0, b"12345678"));
        let mut reply = Vec::new();
        assert_eq!(answer.take(&mut reply), Ok(false));
        assert_eq!(reply, [frame(SETTINGS, 1, 0, &[]), frame(PING, 1, 0, b"12345678")].concat());
    }

    #[test]
    fn a_service_name_that_does_not_fit_is_refused() {
        assert!(call(&"x".repeat(127)).is_ok() && call(&"x".repeat(128)).is_err());
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_fail_hard(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let (mut answer, mut reply) = (Answer { bytes, ..Answer::default() }, Vec::new());
            let _ = answer.take(&mut reply);
        }
    }
}
