//! From the controller's addresses to one TCP connection: all of them in turn, both families (RFC 8305), through a
//! proxy where one is configured (RFC 9110, CONNECT).
//!
//! It proves nothing about who answers; that is TLS's.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;

/// How long one try is alone before the next one begins (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);
/// Most addresses that are tried.
const MOST: usize = 16;
/// Longest answer of a proxy in bytes.
const ANSWER: usize = 8 * 1024;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum DialError {
    /// A name means nothing.
    #[error("looking up {address}: {source}")]
    Lookup {
        /// `host:port`.
        address: String,
        /// What the resolver says.
        #[source]
        source: io::Error,
    },
    /// Nobody answers.
    #[error("connecting to {address}: {source}")]
    Connect {
        /// `host:port`, and what it means.
        address: String,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The proxy does not connect.
    #[error("the proxy {proxy} does not connect to {address}: {answer}")]
    Proxy {
        /// The proxy.
        proxy: String,
        /// `host:port` of the controller.
        address: String,
        /// Its answer's first line, or what is wrong with it.
        answer: String,
    },
}

/// An HTTP proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// `host:port`.
    pub address: String,
    /// `user:password` in base64, where it wants one.
    login: Option<String>,
}

impl Proxy {
    /// Reads `http://[user:password@]host:port`.
    ///
    /// # Errors
    /// What is wrong with it, without repeating it: it may hold a password.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let rest = text.strip_prefix("http://").ok_or("must begin with http://")?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, address) = match rest.rsplit_once('@') {
            Some((login, address)) => (Some(BASE64_STANDARD.encode(login)), address),
            None => (None, rest),
        };
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) || address.contains(['/', ' ']) {
            return Err("must end with host:port");
        }
        Ok(Proxy { address: address.to_owned(), login })
    }
}

/// Connects to whichever of the addresses answers first; gives its name, too.
///
/// # Errors
/// As [`DialError`], of the try that failed last.
pub async fn dial(addresses: &[String], proxy: Option<&Proxy>) -> Result<(TcpStream, String), DialError> {
    let Some(proxy) = proxy else {
        return race(resolve(addresses).await?, TcpStream::connect).await;
    };
    let mut last = None;
    for address in addresses {
        let (stream, _) = race(resolve(std::slice::from_ref(&proxy.address)).await?, TcpStream::connect).await?;
        match through(stream, proxy, address).await {
            Ok(stream) => return Ok((stream, address.clone())),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| no_address(addresses)))
}

fn no_address(addresses: &[String]) -> DialError {
    DialError::Lookup { address: addresses.join(", "), source: io::ErrorKind::NotFound.into() }
}

/// What the names mean, each with its name: of one name the families in turn, IPv6 first.
async fn resolve(addresses: &[String]) -> Result<Vec<(String, SocketAddr)>, DialError> {
    let (mut found, mut last) = (Vec::new(), None);
    for address in addresses {
        match lookup_host(address).await {
            Ok(means) => found.extend(in_turn(means.collect()).into_iter().map(|means| (address.clone(), means))),
            Err(source) => last = Some(DialError::Lookup { address: address.clone(), source }),
        }
    }
    found.truncate(MOST);
    if found.is_empty() { Err(last.unwrap_or_else(|| no_address(addresses))) } else { Ok(found) }
}

fn in_turn(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let (six, four): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv6);
    let longest = six.len().max(four.len());
    (0..longest).flat_map(|index| [six.get(index), four.get(index)]).flatten().copied().collect()
}

/// Begins one try after the other, each when the one before has failed or had its head start.
async fn race<T, F>(
    addresses: Vec<(String, SocketAddr)>,
    connect: impl Fn(SocketAddr) -> F,
) -> Result<(T, String), DialError>
where
    T: 'static,
    F: Future<Output = io::Result<T>> + 'static,
{
    let mut waiting = addresses.into_iter();
    let (mut tries, mut last) = (JoinSet::new(), None);
    loop {
        let next = waiting.next();
        let more = next.is_some();
        if let Some((name, address)) = next {
            let connecting = connect(address);
            tries.spawn_local(async move { (name, address, connecting.await) });
        }
        let pause = async { if more { tokio::time::sleep(HEAD_START).await } else { std::future::pending().await } };
        tokio::select! {
            ended = tries.join_next() => match ended {
                Some(Ok((name, _, Ok(stream)))) => return Ok((stream, name)),
                Some(Ok((name, address, Err(source)))) => {
                    let address = if name == address.to_string() { name } else { format!("{name} ({address})") };
                    last = Some(DialError::Connect { address, source });
                }
                Some(Err(error)) => {
                    let source = io::Error::other(error);
                    last = Some(DialError::Connect { address: "the controller".to_owned(), source });
                }
                None if !more => return Err(last.unwrap_or_else(|| no_address(&[]))),
                None => {}
            },
            () = pause => {}
        }
    }
}

/// Asks a proxy for a way to the controller.
async fn through(mut stream: TcpStream, proxy: &Proxy, address: &str) -> Result<TcpStream, DialError> {
    let refused =
        |answer: String| DialError::Proxy { proxy: proxy.address.clone(), address: address.to_owned(), answer };
    let login = proxy.login.as_ref().map(|login| format!("Proxy-Authorization: Basic {login}\r\n"));
    let request = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n{}\r\n", login.unwrap_or_default());
    let io = |error: io::Error| refused(error.to_string());
    stream.write_all(request.as_bytes()).await.map_err(io)?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the answer's head is TLS's.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= ANSWER {
            return Err(refused(format!("its answer is longer than {ANSWER} bytes")));
        }
        answer.push(stream.read_u8().await.map_err(io)?);
    }
    let head = String::from_utf8_lossy(&answer);
    let first = head.lines().next().unwrap_or_default();
    let mut words = first.split(' ');
    let (version, status) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if version.starts_with("HTTP/1.") && status.len() == 3 && status.starts_with('2') {
        return Ok(stream);
    }
    Err(refused(first.chars().take(200).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(work: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, work)
    }

    #[test]
    fn families_take_turns() {
        let address = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (a, b, c) = (address("192.0.2.1:1"), address("192.0.2.2:1"), address("[2001:db8::1]:1"));
        assert_eq!(in_turn(vec![a, b, c]), [c, a, b]);
    }

    #[test]
    fn an_address_that_is_silent_holds_nobody_up_and_a_dead_one_even_less() {
        run(async {
            let named = |number: u8| (number.to_string(), SocketAddr::from(([192, 0, 2, number], 1)));
            let connect = |address: SocketAddr| async move {
                match address.ip().to_string().as_str() {
                    "192.0.2.1" => std::future::pending().await,
                    "192.0.2.3" => Ok(7),
                    _ => Err(io::ErrorKind::ConnectionRefused.into()),
                }
            };
            assert_eq!(race(vec![named(1), named(2), named(3)], connect).await.unwrap(), (7, "3".to_owned()));
            let error = race(vec![named(2), named(4)], connect).await.unwrap_err().to_string();
            assert!(error.contains("4 (192.0.2.4:1)") && error.contains("refused"), "{error}");
        });
    }

    #[test]
    fn proxies_are_read_and_their_passwords_not_shown() {
        let proxy = Proxy::parse("http://user:hush@proxy.example:3128/").unwrap();
        assert_eq!(proxy.address, "proxy.example:3128");
        assert_eq!(proxy.login.as_deref(), Some("dXNlcjpodXNo"));
        assert_eq!(Proxy::parse("http://[2001:db8::1]:8080").unwrap().address, "[2001:db8::1]:8080");
        for bad in ["", "proxy:3128", "https://proxy:3128", "http://proxy", "http://:1", "http://a:b/c", "http://a b:1"]
        {
            assert!(Proxy::parse(bad).is_err(), "{bad}");
        }
    }

    /// A proxy that gives one answer; gives what it was asked.
    async fn proxied(answer: &'static [u8]) -> (Result<String, DialError>, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::parse(&format!("http://u:p@{}", listener.local_addr().unwrap())).unwrap();
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer).await.unwrap();
            String::from_utf8(request).unwrap()
        };
        let asking = async {
            let (mut stream, name) = dial(&["controller.example:7443".to_owned()], Some(&proxy)).await?;
            assert_eq!(stream.read_u8().await.unwrap(), b'!', "a byte of TLS was lost");
            Ok(name)
        };
        let (request, result) = tokio::join!(serving, asking);
        (result, request)
    }

    #[test]
    fn a_proxy_leads_to_the_controller_or_says_why_not() {
        run(async {
            let (result, request) = proxied(b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n!").await;
            assert_eq!(result.unwrap(), "controller.example:7443");
            assert!(request.starts_with("CONNECT controller.example:7443 HTTP/1.1\r\n"), "{request}");
            assert!(request.contains("\r\nProxy-Authorization: Basic dTpw\r\n"), "{request}");
            for (answer, part) in [
                (&b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"[..], "407 Proxy"),
                (b"HTTP/1.1 2000 x\r\n\r\n", "2000"),
                (b"SSH-2.0-x\r\n\r\n", "SSH"),
                (b"HTTP/1.1 200 OK\r\n", "end of file"),
            ] {
                let error = proxied(answer).await.0.unwrap_err().to_string();
                assert!(error.contains(part) && !error.contains("dTpw"), "{error}");
            }
        });
    }
}
