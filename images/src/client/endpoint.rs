//! Where a registry is and how to reach it. Owns addresses and URLs; opens no connection.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};

use crate::reference::is_host;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A registry's address with its transport security.
#[derive(Clone)]
pub struct Endpoint {
    /// What errors call it.
    pub(super) name: String,
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// The TLS configuration for the registry itself; none means X.509 with the web's roots.
    config: Option<Arc<ClientConfig>>,
    /// The same for the hosts that it refers to: token servers, storage.
    others: Option<Arc<ClientConfig>>,
    pub(super) connect_timeout: Duration,
    pub(super) stall_timeout: Duration,
}

/// The text is no `host[:port]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a registry of the form host[:port]")]
pub struct EndpointError(pub String);

/// A file of certificate authorities is of no use.
#[derive(Debug, thiserror::Error)]
pub enum AuthoritiesError {
    /// It is no PEM.
    #[error("it is no PEM file")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// One of its certificates is broken.
    #[error("one of its certificates cannot be used")]
    Certificate(#[from] rustls::Error),
    /// There is no certificate in it.
    #[error("it holds no certificate")]
    Empty,
}

impl Endpoint {
    /// Addresses a registry as references name it: `docker.io`, `ghcr.io`, `127.0.0.1:5000`.
    ///
    /// HTTPS with the web's certificate roots, or plain HTTP when the operator has said so for this host. The
    /// default port is 443 or 80. `docker.io` is reached at `registry-1.docker.io`.
    pub fn for_registry(registry: &str, plain_http: bool) -> Result<Endpoint, EndpointError> {
        let address = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
        let (host, port) = split(address).ok_or_else(|| EndpointError(registry.chars().take(100).collect()))?;
        Ok(Endpoint {
            name: registry.to_owned(),
            tls: !plain_http,
            port: port.unwrap_or(if plain_http { 80 } else { 443 }),
            host,
            config: None,
            others: None,
            connect_timeout: CONNECT_TIMEOUT,
            stall_timeout: STALL_TIMEOUT,
        })
    }

    /// Addresses a registry whose TLS the caller has configured, such as the controller's with raw public keys.
    ///
    /// `name` is what errors call it, `address` is `host[:port]` (default 443). The configuration's ALPN is replaced
    /// by `http/1.1`; the server's name is sent as it is in the address and means what the configuration's verifier
    /// makes of it.
    pub fn with_tls(name: &str, address: &str, config: Arc<ClientConfig>) -> Result<Endpoint, EndpointError> {
        let mut endpoint = Endpoint::for_registry(address, false)?;
        let mut config = ClientConfig::clone(&config);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        endpoint.config = Some(Arc::new(config));
        name.clone_into(&mut endpoint.name);
        Ok(endpoint)
    }

    /// Trusts the certificate authorities of a PEM file for this registry, and no others; for the hosts that it refers
    /// to (token server, storage) beside the web's.
    pub fn with_authorities(mut self, pem: &[u8]) -> Result<Endpoint, AuthoritiesError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.add(certificate?)?;
        }
        if roots.is_empty() {
            return Err(AuthoritiesError::Empty);
        }
        let all = web_roots().into_iter().chain(roots.roots.iter().cloned()).collect();
        self.others = Some(web_config(RootCertStore { roots: all }));
        self.config = Some(web_config(roots));
        Ok(self)
    }

    /// Sets how long a connection may take to stand (10 s) and how long the registry may send nothing (30 s).
    #[must_use]
    pub fn with_timeouts(self, connect: Duration, stall: Duration) -> Endpoint {
        Endpoint { connect_timeout: connect, stall_timeout: stall, ..self }
    }

    pub(super) fn target(&self, path: &str) -> Target {
        Target { tls: self.tls, host: self.host.clone(), port: self.port, path: path.to_owned() }
    }

    /// Tells whether the target is the registry itself and not a host that it redirected to.
    pub(super) fn is_own(&self, target: &Target) -> bool {
        (self.tls, &self.host, self.port) == (target.tls, &target.host, target.port)
    }

    /// Returns the TLS configuration for a host.
    pub(super) fn tls_config(&self, target: &Target) -> Arc<ClientConfig> {
        let special = if self.is_own(target) { &self.config } else { &self.others };
        special.clone().unwrap_or_else(|| {
            static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
            Arc::clone(CONFIG.get_or_init(|| web_config(RootCertStore { roots: web_roots() })))
        })
    }
}

fn web_roots() -> Vec<TrustAnchor<'static>> {
    webpki_roots::TLS_SERVER_ROOTS.to_vec()
}

/// Makes the configuration for registries with X.509 certificates.
fn web_config(roots: RootCertStore) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the cipher suites of TLS 1.2 and 1.3");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// One URL, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) tls: bool,
    /// Name or address, IPv6 without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Path and query, beginning with a slash.
    pub(super) path: String,
}

impl Target {
    /// Takes an absolute http or https URL apart; anything else is `None`. User information is refused.
    pub(super) fn parse(url: &str) -> Option<Target> {
        let uri: hyper::Uri = url.parse().ok()?;
        let tls = match uri.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let (host, port) = split(uri.authority()?.as_str())?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Some(Target { tls, host, port: port.unwrap_or(if tls { 443 } else { 80 }), path })
    }

    /// Resolves a `Location` against this URL: absolute, or a path from the root.
    pub(super) fn follow(&self, location: &str) -> Option<Target> {
        if location.starts_with('/') && !location.starts_with("//") {
            let uri: hyper::Uri = location.parse().ok()?;
            return Some(Target { path: uri.path_and_query()?.as_str().to_owned(), ..self.clone() });
        }
        Target::parse(location)
    }

    pub(super) fn host_header(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == if self.tls { 443 } else { 80 } { host } else { format!("{host}:{}", self.port) }
    }
}

/// Splits `host[:port]`; brackets around an IPv6 address are taken off.
fn split(authority: &str) -> Option<(String, Option<u16>)> {
    if !is_host(authority) {
        return None;
    }
    let colon = authority.rfind(':').filter(|colon| !authority[*colon..].contains(']'));
    let (host, port) = match colon {
        Some(colon) => (&authority[..colon], Some(authority[colon + 1..].parse().ok()?)),
        None => (authority, None),
    };
    Some((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port))
}
