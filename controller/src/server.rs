//! The one port: who connects is told apart by the ClientHello, before anything is promised to anybody.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::LazyConfigAcceptor;

use crate::app::App;
use crate::tls::{ALPN_LINK, key_of_spki};
use crate::{api, link, registry};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes under way at the same time; further clients wait in the kernel's queue.
const HANDSHAKES: usize = 256;
/// Of these, handshakes of one address; further ones are closed and may come again.
const HANDSHAKES_OF_ONE: usize = 128;
/// Connections of enrolled devices at the same time. Nobody else can take these places.
const DEVICES: usize = 16_384;
/// Connections of people, and of devices that are not enrolled, at the same time.
const GUESTS: usize = 1024;
/// Of these, connections of one address.
pub(crate) const GUESTS_OF_ONE: usize = 128;
/// How long a new connection may be silent before its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(15);
/// How long connections may take to end when the controller stops.
const FAREWELL: Duration = Duration::from_secs(5);

/// Everything that a new connection needs.
pub(crate) struct Server {
    /// Shared state.
    pub(crate) app: Arc<App>,
    /// TLS for devices.
    pub(crate) device: Arc<ServerConfig>,
    /// TLS for people.
    pub(crate) https: Arc<ServerConfig>,
}

/// What a connection turned out to be.
enum Peer<S> {
    Device { key: [u8; 32], link: bool, stream: S },
    Person(S),
}

/// Where a connection comes from: an address, of IPv6 the 64 bits that one site has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Origin(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            address => address,
        })
    }
}

/// A bounded number of places, and how many of them one origin may take.
#[derive(Debug)]
struct Places {
    all: usize,
    of_one: usize,
    taken: Mutex<Taken>,
}

/// The places that are not free.
#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: HashMap<Origin, usize>,
}

/// One place, free again when this is dropped.
#[derive(Debug)]
struct Place {
    places: Arc<Places>,
    origin: Origin,
}

impl Places {
    fn new(all: usize, of_one: usize) -> Arc<Places> {
        Arc::new(Places { all, of_one, taken: Mutex::default() })
    }

    /// Takes a place, if there is one for this origin.
    fn enter(self: &Arc<Self>, origin: Origin) -> Option<Place> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.by.get(&origin).copied().unwrap_or(0);
        if taken.all >= self.all || own >= self.of_one {
            return None;
        }
        taken.all += 1;
        taken.by.insert(origin, own + 1);
        Some(Place { places: self.clone(), origin })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        match taken.by.get_mut(&self.origin) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(taken.by.remove(&self.origin)),
        }
    }
}

/// The places of one port: strangers can use up their own, never those of enrolled devices.
struct House {
    handshakes: Arc<Places>,
    guests: Arc<Places>,
    devices: Arc<Places>,
}

impl Server {
    /// Serves the port until the controller stops.
    pub(crate) async fn run(self, listener: TcpListener) {
        let server = Arc::new(self);
        let person = api::router(server.app.clone());
        let house = Arc::new(House {
            handshakes: Places::new(HANDSHAKES, HANDSHAKES_OF_ONE),
            guests: Places::new(GUESTS, GUESTS_OF_ONE),
            devices: Places::new(DEVICES, DEVICES),
        });
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = accept(&listener, &handshakes) => accepted,
                () = server.app.stopped() => break,
            };
            let Some((stream, peer, handshake)) = accepted else { continue };
            let Some(place) = house.handshakes.enter(peer.ip().into()) else {
                log::debug!("{peer} is closed: {HANDSHAKES_OF_ONE} handshakes of its address are under way");
                continue;
            };
            let (server, person, house) = (server.clone(), person.clone(), house.clone());
            tasks.spawn(async move {
                let greeted = tokio::time::timeout(HANDSHAKE, Box::pin(server.greet(stream))).await;
                drop((place, handshake));
                match greeted {
                    Ok(Ok(guest)) => server.serve(guest, peer, &house, person).await,
                    Ok(Err(error)) => log::debug!("handshake with {peer} failed: {error:#}"),
                    Err(_) => log::debug!("handshake with {peer} took longer than {} s", HANDSHAKE.as_secs()),
                }
            });
        }
        let farewell = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
            log::warn!("some connections did not end within {} s and are cut", FAREWELL.as_secs());
        }
    }

    /// Serves a peer that is known by now, if there is a place for it.
    async fn serve(
        &self,
        guest: Peer<tokio_rustls::server::TlsStream<TcpStream>>,
        peer: SocketAddr,
        house: &House,
        person: Router,
    ) {
        let enrolled = match &guest {
            Peer::Person(_) => false,
            Peer::Device { key, .. } => match self.app.store.node_of_key(key) {
                Ok(node) => node.is_some(),
                Err(error) => {
                    log::error!("cannot look for the key of {peer}: {error}");
                    return;
                }
            },
        };
        let places = if enrolled { &house.devices } else { &house.guests };
        let origin = Origin::from(peer.ip());
        let Some(place) = places.enter(origin) else {
            log::warn!("{peer} is closed: its address, or everybody together, has too many connections");
            return;
        };
        match guest {
            Peer::Device { key, link: true, stream } => {
                // Who was let in by a join token is no guest any more.
                let settle = || if enrolled { Some(place) } else { house.devices.enter(origin) };
                link::serve(self.app.clone(), key, peer.ip(), stream, settle).await;
            }
            Peer::Device { key, link: false, stream } => {
                let router = registry::device_router(self.app.clone(), key);
                // Boxed, so that thousands of links do not carry room for what only a request needs.
                Box::pin(serve_http(self.app.stopped(), router, stream)).await;
            }
            Peer::Person(stream) => Box::pin(serve_http(self.app.stopped(), person, stream)).await,
        }
    }

    /// Does the TLS handshake that fits the client.
    async fn greet(&self, stream: TcpStream) -> Result<Peer<tokio_rustls::server::TlsStream<TcpStream>>> {
        stream.set_nodelay(true)?;
        let start = LazyConfigAcceptor::new(Acceptor::default(), stream).await.context("no TLS")?;
        let raw = rustls::server::CertificateType::RawPublicKey;
        let device = start.client_hello().server_cert_types().is_some_and(|kinds| kinds.contains(&raw));
        if !device {
            return Ok(Peer::Person(start.into_stream(self.https.clone()).await?));
        }
        let stream = start.into_stream(self.device.clone()).await?;
        let connection = stream.get_ref().1;
        let key = connection.peer_certificates().and_then(|chain| key_of_spki(chain.first()?));
        let key = key.context("the device showed no Ed25519 key")?;
        let link = connection.alpn_protocol() == Some(ALPN_LINK);
        Ok(Peer::Device { key, link, stream })
    }
}

/// Accepts a connection when one more handshake may be under way.
async fn accept(
    listener: &TcpListener,
    handshakes: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    // The semaphore is never closed.
    let handshake = handshakes.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, handshake)),
        Err(error) => {
            // Out of file descriptors, for example: a pause lets others end.
            log::warn!("cannot accept a connection: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// Serves HTTP on one connection until it ends, is silent for too long or the controller stops.
async fn serve_http<S>(stopped: impl Future<Output = ()>, router: Router, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(60)).max_headers(100);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(64).keep_alive_interval(Duration::from_secs(60));
    let asked = Notify::new();
    let service = service_fn(|request| {
        asked.notify_one();
        TowerToHyperService::new(router.clone()).call(request)
    });
    let silence = async {
        if tokio::time::timeout(FIRST_REQUEST, asked.notified()).await.is_ok() {
            std::future::pending::<()>().await;
        }
    };
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = silence => return log::debug!("a connection without a request is closed"),
        () = stopped => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        log::debug!("an HTTP connection ended: {error}");
    }
}

/// The address that clients on this machine use for a listening address.
pub(crate) fn reachable(listen: IpAddr) -> IpAddr {
    match listen {
        IpAddr::V4(address) if address.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(address) if address.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn origin(address: &str) -> Origin {
        Origin::from(address.parse::<IpAddr>().unwrap())
    }

    /// What the server answers to these bytes before it closes.
    async fn answer(request: &[u8]) -> String {
        let (server, mut client) = tokio::io::duplex(4096);
        let router = Router::new().route("/", axum::routing::get(|| async { "here" }));
        client.write_all(request).await.unwrap();
        let mut answer = String::new();
        tokio::join!(serve_http(std::future::pending(), router, server), client.read_to_string(&mut answer)).1.unwrap();
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_asks_nothing_is_closed() {
        let began = tokio::time::Instant::now();
        for silent in [&b""[..], b"G", b"GET / HTTP/1.1\r\nHost: a", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            assert!(!answer(silent).await.contains("here"));
        }
        assert!(began.elapsed() < 5 * FIRST_REQUEST);
        assert!(answer(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.ends_with("here"));
    }

    #[test]
    fn one_site_is_one_origin() {
        assert_eq!(origin("2001:db8:1:2::1"), origin("2001:db8:1:2:ffff::9"));
        assert_ne!(origin("2001:db8:1:2::1"), origin("2001:db8:1:3::1"));
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
    }

    #[test]
    fn one_origin_cannot_take_all_places_and_gives_back_what_it_took() {
        let places = Places::new(3, 2);
        let first = places.enter(origin("192.0.2.1"));
        let second = places.enter(origin("192.0.2.1"));
        assert!(first.is_some() && second.is_some());
        assert!(places.enter(origin("192.0.2.1")).is_none());
        let other = places.enter(origin("192.0.2.2"));
        assert!(other.is_some() && places.enter(origin("192.0.2.3")).is_none());
        drop(second);
        assert!(places.enter(origin("192.0.2.3")).is_some());
        drop((first, other));
        let taken = places.taken.lock().unwrap();
        assert!(taken.all == 0 && taken.by.is_empty());
    }
}
