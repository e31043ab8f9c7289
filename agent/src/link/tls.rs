//! TLS 1.3 with raw public keys (RFC 7250): the device proves its key, the controller must prove the pinned one.
//! No certificate authority, no name and no clock takes part.

use std::sync::Arc;

use rustls::client::AlwaysResolvesClientRawPublicKeys;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, PeerIncompatible, SignatureScheme, version,
};

use super::identity::{Identity, PublicKey};

/// DER of a SubjectPublicKeyInfo for Ed25519 up to the key itself (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// ALPN of the link.
pub const LINK: &[u8] = b"skeg/1";
/// ALPN of the controller's registry.
pub const REGISTRY: &[u8] = b"http/1.1";

/// A public key as TLS carries it.
pub fn spki(key: &PublicKey) -> Vec<u8> {
    [SPKI_PREFIX.as_slice(), key].concat()
}

/// Accepts exactly one server key.
#[derive(Debug)]
struct Pinned {
    spki: Vec<u8>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if end_entity.as_ref() == self.spki {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
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

/// The device's TLS towards the controller that holds `controller`, for one application protocol.
///
/// # Errors
/// The device's key can't be used by rustls.
pub fn client_config(identity: &Identity, controller: &PublicKey, alpn: &[u8]) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(ring::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.private.as_slice()));
    let signer = ring::sign::any_eddsa_type(match &key {
        PrivateKeyDer::Pkcs8(key) => key,
        _ => return Err(Error::General("the device's key is no PKCS #8".to_owned())),
    })?;
    let own = CertifiedKey::new(vec![CertificateDer::from(spki(&identity.public))], signer);
    let verifier = Pinned { spki: spki(controller), provider: Arc::clone(&provider) };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(own))));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.enable_sni = false;
    // A resumed session would skip the proof of keys, and a device connects rarely.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// Says why there is no TLS connection. Networks with a portal answer in everybody's place until somebody has logged in.
pub fn explain(error: std::io::Error, address: &str) -> anyhow::Error {
    let cause = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    let what = match cause {
        Some(Error::InvalidMessage(_)) => "what answers speaks no TLS",
        Some(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
            "what answers has another key than the pinned one"
        }
        Some(Error::PeerIncompatible(_) | Error::AlertReceived(_)) => "what answers is no skeg controller",
        _ => return anyhow::Error::from(error).context(format!("TLS with {address}")),
    };
    let hint = "a portal or proxy of the network may answer in the controller's place, or the address is wrong";
    anyhow::Error::from(error).context(format!("TLS with {address}: {what}: {hint}"))
}
