//! One GET over a connection of its own, and whether the answer's code is good. Reads no more than the status line.

use skeg_protocol::manifest::HttpGet;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{authority, shown, tls};

/// Longest status line in bytes.
const LONGEST: usize = 1024;

/// Asks, with TLS where the probe says so.
pub(super) async fn get(stream: TcpStream, get: &HttpGet) -> Result<(), String> {
    let request = request(get)?;
    if get.https {
        let stream = tls::connect(stream, get.host.as_deref()).await?;
        exchange(stream, &request).await
    } else {
        exchange(stream, &request).await
    }
}

fn request(get: &HttpGet) -> Result<Vec<u8>, String> {
    let path = if get.path.starts_with('/') { get.path.clone() } else { format!("/{}", get.path) };
    let named = |name: &str| get.headers.iter().any(|(field, _)| field.eq_ignore_ascii_case(name));
    let mut lines = vec![format!("GET {path} HTTP/1.1")];
    for (name, value) in [("Host", authority(get).as_str()), ("User-Agent", "kube-probe/skeg"), ("Accept", "*/*")] {
        if !named(name) {
            lines.push(format!("{name}: {value}"));
        }
    }
    lines.extend(get.headers.iter().map(|(name, value)| format!("{name}: {value}")));
    lines.push("Connection: close".to_owned());
    // A line break would begin a line of its own.
    let plain = !path.contains(' ') && lines.iter().all(|line| !line.contains(|c: char| c.is_control()));
    match plain {
        true => Ok(format!("{}\r\n\r\n", lines.join("\r\n")).into_bytes()),
        false => Err("the probe's path or a header field holds a space or a control character".to_owned()),
    }
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("asking by HTTP: {error}");
    stream.write_all(request).await.map_err(failed)?;
    stream.flush().await.map_err(failed)?;
    let mut line = Vec::new();
    while !line.contains(&b'\n') && line.len() < LONGEST {
        if stream.read_buf(&mut line).await.map_err(failed)? == 0 {
            break;
        }
    }
    judge(&line)
}

/// Whether an answer that begins like this is a good one: 200 to 399, as in Kubernetes.
fn judge(answer: &[u8]) -> Result<(), String> {
    let line = answer.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let code = line.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5)).map(String::from_utf8_lossy);
    match code.and_then(|code| code.parse::<u16>().ok()) {
        Some(200..=399) => Ok(()),
        Some(code) => Err(format!("the answer was HTTP code {code}")),
        None => Err(format!("the answer is not HTTP: {:?}", shown(line))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn codes_from_200_to_399_are_good() {
        for (line, good) in [
            ("HTTP/1.1 200 OK\r\n", true),
            ("HTTP/1.0 399 x\n", true),
            ("HTTP/1.1 400 Bad\r\n", false),
            ("HTTP/1.1 199\r\n", false),
            ("HTTP/1.1 20", false),
            ("SSH-2.0-OpenSSH\r\n", false),
            ("", false),
        ] {
            assert_eq!(judge(line.as_bytes()).is_ok(), good, "{line:?}");
        }
    }

    #[test]
    fn a_request_names_its_host_unless_the_probe_does() {
        let mut get = HttpGet { port: 80, path: "health".to_owned(), ..HttpGet::default() };
        let text = |get: &HttpGet| String::from_utf8(request(get).unwrap()).unwrap();
        assert!(text(&get).starts_with("GET /health HTTP/1.1\r\nHost: 127.0.0.1:80\r\n"));
        get.headers = vec![("host".to_owned(), "example.com".to_owned())];
        assert_eq!(text(&get).matches("ost: ").count(), 1);
        get.headers[0].1 = "a\r\nX: y".to_owned();
        assert!(request(&get).is_err());
    }

    proptest! {
        #[test]
        fn any_answer_is_judged(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = judge(&bytes);
        }
    }
}
