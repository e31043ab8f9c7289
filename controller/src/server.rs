//! The one port: who connects is told apart by the ClientHello, before anything is promised to anybody.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::LazyConfigAcceptor;

use crate::app::App;
use crate::tls::{ALPN_LINK, key_of_spki};
use crate::{api, link, registry};

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes under way at the same time; further clients wait in the kernel's queue.
const HANDSHAKES: usize = 256;
/// Connections at the same time.
const CONNECTIONS: usize = 8192;
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

impl Server {
    /// Serves the port until the controller stops.
    pub(crate) async fn run(self, listener: TcpListener) {
        let server = Arc::new(self);
        let person = api::router(server.app.clone());
        let (handshakes, places) = (Arc::new(Semaphore::new(HANDSHAKES)), Arc::new(Semaphore::new(CONNECTIONS)));
        let mut tasks = JoinSet::new();
        loop {
            while tasks.try_join_next().is_some() {}
            let accepted = tokio::select! {
                accepted = accept(&listener, &places, &handshakes) => accepted,
                () = server.app.stopped() => break,
            };
            let Some((stream, peer, place, handshake)) = accepted else { continue };
            let (server, person) = (server.clone(), person.clone());
            tasks.spawn(async move {
                let _place = place;
                let greeted = tokio::time::timeout(HANDSHAKE, server.greet(stream)).await;
                drop(handshake);
                match greeted {
                    Ok(Ok(Peer::Device { key, link: true, stream })) => {
                        link::serve(server.app.clone(), key, peer.ip(), stream).await;
                    }
                    Ok(Ok(Peer::Device { key, link: false, stream })) => {
                        serve_http(&server.app, registry::device_router(server.app.clone(), key), stream).await;
                    }
                    Ok(Ok(Peer::Person(stream))) => serve_http(&server.app, person, stream).await,
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

type Accepted = (TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit, tokio::sync::OwnedSemaphorePermit);

/// Accepts a connection when there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>, handshakes: &Arc<Semaphore>) -> Option<Accepted> {
    // The semaphores are never closed.
    let place = places.clone().acquire_owned().await.ok()?;
    let handshake = handshakes.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, place, handshake)),
        Err(error) => {
            // Out of file descriptors, for example: a pause lets others end.
            log::warn!("cannot accept a connection: {error}");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// Serves HTTP on one connection until it ends or the controller stops.
async fn serve_http<S>(app: &App, router: Router, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(60)).max_headers(100);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(64).keep_alive_interval(Duration::from_secs(60));
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = app.stopped() => {
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
