//! Connections to a registry: TCP, TLS, and the ones kept open between requests.
//!
//! Owns sockets only; what is sent over them is the client's business.

use std::io;
use std::sync::Mutex;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::endpoint::{Endpoint, Target};
use super::error::{Asked, ClientError};
use super::lock;

/// A connection that can carry requests, one at a time.
pub(super) type Sender = SendRequest<Full<Bytes>>;

/// Connections kept at most; a pull uses a handful side by side.
const MAX_KEPT: usize = 8;
/// Bytes that hyper may buffer for one connection: bounds a chunk of a body.
const MAX_BUFFER: usize = 64 << 10;

/// Connections that wait for their next request, or for the end of the body that they carry.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<(bool, String, u16, Sender)>>);

impl Pool {
    /// Takes a connection to this host on which the last answer has ended.
    pub(super) fn take(&self, target: &Target) -> Option<Sender> {
        let mut kept = lock(&self.0);
        kept.retain(|(.., sender)| !sender.is_closed());
        let index = kept.iter().position(|(tls, host, port, sender)| {
            (*tls, host, *port) == (target.tls, &target.host, target.port) && sender.is_ready()
        })?;
        Some(kept.swap_remove(index).3)
    }

    /// Keeps a connection whose answer's head has come; it is handed out again once the body has ended, too.
    pub(super) fn keep(&self, target: &Target, sender: Sender) {
        let mut kept = lock(&self.0);
        if kept.len() >= MAX_KEPT {
            kept.remove(0);
        }
        kept.push((target.tls, target.host.clone(), target.port, sender));
    }
}

/// Opens a connection to a host, within the endpoint's connect timeout.
pub(super) async fn connect(endpoint: &Endpoint, target: &Target, asked: &Asked) -> Result<Sender, ClientError> {
    let address = format!("{}:{}", target.host, target.port);
    let stand = async {
        let stream = TcpStream::connect((target.host.as_str(), target.port)).await?;
        stream.set_nodelay(true)?;
        if !target.tls {
            return Ok(Stream::Plain(stream));
        }
        let name = ServerName::try_from(target.host.clone()).map_err(io::Error::other)?;
        let connector = tokio_rustls::TlsConnector::from(endpoint.tls_config(target));
        Ok::<_, io::Error>(Stream::Tls(Box::new(connector.connect(name, stream).await?)))
    };
    let seconds = endpoint.connect_timeout.as_secs_f32();
    let stream = match tokio::time::timeout(endpoint.connect_timeout, stand).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(source)) => return Err(ClientError::Connect { asked: asked.clone(), address, source }),
        Err(_) => return Err(ClientError::ConnectTimeout { asked: asked.clone(), address, seconds }),
    };
    let sender = match stream {
        Stream::Plain(stream) => drive(stream).await,
        Stream::Tls(stream) => drive(*stream).await,
    };
    sender.map_err(|source| ClientError::Handshake { asked: asked.clone(), address, source })
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// Hands the stream to hyper; the task ends when both the sender and the last body are gone.
async fn drive<S>(stream: S) -> Result<Sender, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new().max_buf_size(MAX_BUFFER).handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // The request or body that is under way gets the same error, and reports it.
        if let Err(error) = connection.await {
            log::debug!("connection to a registry ended: {error}");
        }
    });
    Ok(sender)
}
