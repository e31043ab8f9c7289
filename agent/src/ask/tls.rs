//! TLS with a container that is asked how it is. Its certificate proves nothing and is not looked at, as in
//! Kubernetes: the question goes to this pod's own network, and no secret is in it.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn config() -> Result<Arc<ClientConfig>, Error> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let verifier = Arc::new(Anybody(provider));
    let config = Arc::new(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    Ok(Arc::clone(CONFIG.get_or_init(|| config)))
}

/// Begins TLS over a connection.
pub(super) async fn connect(stream: TcpStream, host: Option<&str>) -> Result<TlsStream<TcpStream>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("TLS: {error}");
    let config = config().map_err(|error| failed(&error))?;
    let host = host.filter(|host| !host.is_empty()).unwrap_or("127.0.0.1").to_owned();
    let name = ServerName::try_from(host).map_err(|error| failed(&error))?;
    TlsConnector::from(config).connect(name, stream).await.map_err(|error| failed(&error))
}
