//! The web program that the demo and the tests run in containers: it shows who and where it is, and ends when it
//! is told to. It owns no state and depends on nothing, so that it fits an image without a base. One request at
//! a time, each bounded in bytes and time.
//!
//! `PORT` names the port (default 8080). `GET /` gives a page, `GET /exit?code=N` ends the process with N.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest request that is read; a request line of ours fits many times.
const MAX_REQUEST: usize = 4096;
/// How long a peer may take to ask or to listen.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a request wants.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Page,
    Exit(i32),
    Nothing,
}

/// Reads the request line; anything else of the request is not looked at.
fn parse(request: &str) -> Wish {
    let mut words = request.lines().next().unwrap_or_default().split(' ');
    if words.next() != Some("GET") {
        return Wish::Nothing;
    }
    match words.next() {
        Some("/") => Wish::Page,
        Some(path) => {
            path.strip_prefix("/exit?code=").and_then(|code| code.parse().ok()).map_or(Wish::Nothing, Wish::Exit)
        }
        None => Wish::Nothing,
    }
}

/// The page: one fact a line, so that people and tests read the same.
fn page(started: u64, served: u64) -> String {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!(
        "skeg demo-web {}\nhostname: {}\npid: {}\nstarted: {started}\nrequests: {served}\n",
        env!("CARGO_PKG_VERSION"),
        hostname.trim(),
        std::process::id(),
    )
}

/// Reads a request's head, up to [`MAX_REQUEST`] bytes.
fn read_request(stream: &mut TcpStream) -> io::Result<String> {
    let (mut request, mut piece) = (Vec::new(), [0; 512]);
    while request.len() < MAX_REQUEST && !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut piece)? {
            0 => break,
            length => request.extend_from_slice(&piece[..length]),
        }
    }
    Ok(String::from_utf8_lossy(&request).into_owned())
}

/// Answers one request; gives the exit code that it asked for.
fn serve(stream: &mut TcpStream, started: u64, served: u64) -> io::Result<Option<i32>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let wish = parse(&read_request(stream)?);
    let (status, body) = match wish {
        Wish::Page => ("200 OK", page(started, served)),
        Wish::Exit(code) => ("200 OK", format!("exits with {code}\n")),
        Wish::Nothing => ("404 Not Found", "GET / or GET /exit?code=N\n".to_owned()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()?;
    Ok(if let Wish::Exit(code) = wish { Some(code) } else { None })
}

fn main() -> io::Result<()> {
    let port: u16 = std::env::var("PORT").ok().and_then(|text| text.parse().ok()).unwrap_or(8080);
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    println!("demo-web: serving on port {}, pid {}", listener.local_addr()?.port(), std::process::id());
    let mut served = 0;
    loop {
        let (mut stream, peer) = listener.accept()?;
        served += 1;
        match serve(&mut stream, started, served) {
            Ok(None) => println!("demo-web: request {served} from {}", peer.ip()),
            Ok(Some(code)) => {
                eprintln!("demo-web: exits with {code}, as {} asked", peer.ip());
                std::process::exit(code);
            }
            Err(error) => eprintln!("demo-web: request {served} from {}: {error}", peer.ip()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        assert_eq!(parse("GET / HTTP/1.1\r\n\r\n"), Wish::Page);
        assert_eq!(parse("GET /exit?code=3 HTTP/1.1\r\n\r\n"), Wish::Exit(3));
        for other in ["", "GET", "POST / HTTP/1.1", "GET /exit?code=x HTTP/1.1", "GET /etc/passwd HTTP/1.1"] {
            assert_eq!(parse(other), Wish::Nothing, "{other}");
        }
    }

    #[test]
    fn a_page_and_an_exit_over_a_socket() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            (1..=2).map(|served| serve(&mut listener.accept().unwrap().0, 1, served).unwrap()).collect::<Vec<_>>()
        });
        let ask = |path: &str| {
            let mut stream = TcpStream::connect(address).unwrap();
            write!(stream, "GET {path} HTTP/1.1\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        };
        assert!(ask("/").contains(&format!("\npid: {}\n", std::process::id())));
        assert!(ask("/exit?code=7").ends_with("exits with 7\n"));
        assert_eq!(server.join().unwrap(), [None, Some(7)]);
    }
}
