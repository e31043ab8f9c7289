//! A small HTTPS client for the API: one connection a request, the CA of the kubeconfig and no other.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::kubeconfig::{self, Access};
use crate::api::kinds;

/// Which controller is meant.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// kubeconfig of the controller; otherwise SKEG_KUBECONFIG, then KUBECONFIG
    #[arg(long, global = true)]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// A controller that can be asked.
pub(crate) struct Client {
    access: Access,
    connector: TlsConnector,
}

impl Client {
    /// Reads the kubeconfig.
    pub(crate) fn open(target: &Target) -> Result<Self> {
        let from_env = ["SKEG_KUBECONFIG", "KUBECONFIG"].iter().find_map(std::env::var_os).map(PathBuf::from);
        let path = target.kubeconfig.clone().or(from_env).context(
            "no kubeconfig: give --kubeconfig FILE or set SKEG_KUBECONFIG (skeg serve writes admin.kubeconfig into \
             its data folder)",
        )?;
        let access = kubeconfig::load(&path).with_context(|| format!("cannot use {}", path.display()))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(access.ca.as_bytes()) {
            roots.add(certificate.map_err(|error| anyhow!("the kubeconfig's CA is no certificate: {error:?}"))?)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Client { access, connector: TlsConnector::from(Arc::new(config)) })
    }

    /// The controller's URL and its CA as PEM.
    pub(super) fn place(&self) -> (&str, &str) {
        (&self.access.server, &self.access.ca)
    }

    /// The same controller, asked as somebody else.
    #[cfg(test)]
    pub(crate) fn with_token(&self, token: &str) -> Client {
        Client { access: Access { token: token.to_owned(), ..self.access.clone() }, connector: self.connector.clone() }
    }

    /// The namespace to use where none is given.
    pub(crate) fn namespace<'a>(&'a self, given: Option<&'a str>) -> &'a str {
        given.or(self.access.namespace.as_deref()).unwrap_or("default")
    }

    /// Sends a request and gives the answer's head; a Status error becomes an error.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Response<Incoming>> {
        let uri: Uri = self.access.server.parse().with_context(|| format!("{:?} is no URL", self.access.server))?;
        let host = uri.host().context("the kubeconfig's server has no host")?.trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(443);
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .with_context(|| format!("cannot reach the controller at {host}:{port}"))?;
        let name = ServerName::try_from(host.clone()).with_context(|| format!("{host:?} is no host name"))?;
        let stream = self.connector.connect(name, stream).await.with_context(|| format!("TLS with {host}:{port}"))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let authority = uri.authority().map(ToString::to_string).unwrap_or(host);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, authority)
            .header(ACCEPT, "application/json")
            .header(AUTHORIZATION, format!("Bearer {}", self.access.token));
        let bytes = match body {
            Some((kind, bytes)) => {
                request = request.header(CONTENT_TYPE, kind);
                bytes
            }
            None => Vec::new(),
        };
        let response = sender.send_request(request.body(Full::new(Bytes::from(bytes)))?).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        let status: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        match status["message"].as_str() {
            Some(message) => Err(Refused {
                reason: status["reason"].as_str().unwrap_or_default().to_owned(),
                message: message.to_owned(),
            }
            .into()),
            None => bail!("the controller answered {code}"),
        }
    }

    /// Sends a request and reads a JSON answer.
    pub(crate) async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(|body| ("application/json", body.to_string().into_bytes()));
        let response = self.send(method, path, body).await?;
        Ok(serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?)
    }
}

/// An error that the API answered.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    /// Kubernetes' word for it, such as `NotFound`.
    pub(crate) reason: String,
    message: String,
}

/// Whether an error is the API's, with this reason.
pub(crate) fn is_refusal(error: &anyhow::Error, reason: &str) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.reason == reason)
}

/// Path of a kind's objects.
pub(crate) fn path(kind: &str, namespace: &str, name: &str) -> Result<String> {
    let slash = if name.is_empty() { "" } else { "/" };
    if name.contains(['/', '%', '?', '#']) || name == "." || name == ".." {
        bail!("{name:?} is no name of an object");
    }
    if !namespace.is_empty() && !skeg_protocol::id::is_label(namespace) {
        bail!("{namespace:?} is no namespace: namespaces are DNS labels (RFC 1123)");
    }
    let known = kinds::called(kind).with_context(|| format!("{kind:?} is no kind that skeg knows"))?;
    Ok(format!("{}{slash}{name}", known.path(namespace)))
}
