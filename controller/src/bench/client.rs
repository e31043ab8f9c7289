//! A device's way in: its TLS with raw public keys both ways, the controller's pinned, and its Hello.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Method;
use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::json;
use skeg_protocol::Uid;
use skeg_protocol::message::{Hello, NodeInfo, VERSIONS};
use skeg_protocol::sync::Intake;

use super::process::Controller;
use crate::commands::{Client, Target};
use crate::store::Key32;
use crate::tls::{Identity, key_of_spki};

/// Accepts one key.
#[derive(Debug)]
struct Pinned {
    key: Key32,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if key_of_spki(end_entity) == Some(self.key) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("raw public keys need TLS 1.3".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// TLS of a device that holds `identity` towards the controller that holds `controller`.
pub(crate) fn config(
    provider: &Arc<CryptoProvider>,
    controller: Key32,
    identity: &Identity,
    alpn: &[u8],
) -> Result<ClientConfig> {
    let verifier = Pinned { key: controller, provider: provider.clone() };
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(identity.certified()?)));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// What lets devices in.
pub(super) struct Access {
    /// Of the controller.
    pub(super) address: SocketAddr,
    /// Of the controller.
    pub(super) controller: Key32,
    /// Of a join token.
    pub(super) secret: heapless::String<64>,
    /// For every TLS configuration.
    pub(super) provider: Arc<CryptoProvider>,
}

impl Access {
    /// Makes a join token for so many devices.
    pub(super) async fn ask(controller: &Controller, data: &Path, devices: usize) -> Result<Self> {
        let client = Client::open(&Target { kubeconfig: Some(data.join("admin.kubeconfig")) })?;
        let body = json!({"spec": {"uses": devices, "ttlSeconds": 3600}});
        let made = client.json(Method::POST, "/apis/skeg.dev/v1/jointokens", Some(&body)).await?;
        let token = made["status"]["token"].as_str().context("the controller gave no token")?;
        let mut parts = token.split('.').skip(1);
        let key = parts.next().and_then(|key| URL_SAFE_NO_PAD.decode(key).ok()).and_then(|key| key.try_into().ok());
        let secret = parts.next().and_then(|secret| secret.try_into().ok());
        Ok(Access {
            address: controller.address,
            controller: key.context("the token has no key")?,
            secret: secret.context("the token has no secret")?,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
        })
    }
}

/// A new key.
pub(super) fn identity() -> Result<Identity> {
    let document = ring::signature::Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new());
    Identity::from_pkcs8(document.ok().context("no random bytes")?.as_ref().to_vec())
}

/// What a device says first.
pub(super) fn hello(name: &str, own: Ipv4Addr, join: Option<heapless::String<64>>, intake: &Intake) -> Hello {
    Hello {
        versions: VERSIONS,
        join,
        node: NodeInfo {
            name: name.try_into().unwrap_or_default(),
            arch: "amd64".try_into().unwrap_or_default(),
            kernel: "6.1.0-38-amd64".try_into().unwrap_or_default(),
            os: "Debian GNU/Linux 12 (bookworm)".try_into().unwrap_or_default(),
            agent: env!("CARGO_PKG_VERSION").try_into().unwrap_or_default(),
            cpus: 4,
            memory_bytes: 1 << 30,
            boot: Uid([7; 16]),
            address: Some(own.into()),
            user_namespaces: true,
        },
        held: intake.held(),
        partial: intake.partial(),
    }
}
