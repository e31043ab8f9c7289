//! Who the controller is: its Ed25519 key for devices (raw public keys, RFC 7250), its CA and certificate for
//! people, and the TLS configuration for each. It decides what a peer has proved, never what it may do.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};

use crate::data::Data;
use crate::store::Key32;

/// ALPN of the device link.
pub(crate) const ALPN_LINK: &[u8] = b"skeg/1";
/// ALPN of a device that pulls images.
pub(crate) const ALPN_HTTP1: &[u8] = b"http/1.1";
/// What comes before the 32 bytes of an Ed25519 key in its SubjectPublicKeyInfo (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The SubjectPublicKeyInfo of a raw Ed25519 key.
pub(crate) fn spki_of(key: &Key32) -> Vec<u8> {
    [&SPKI_PREFIX[..], key].concat()
}

/// The raw Ed25519 key in a SubjectPublicKeyInfo; `None` for any other kind of key.
pub(crate) fn key_of_spki(spki: &[u8]) -> Option<Key32> {
    spki.strip_prefix(&SPKI_PREFIX)?.try_into().ok()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The controller's identity towards devices.
#[derive(Debug)]
pub(crate) struct Identity {
    /// Raw public key; devices pin it.
    pub(crate) public: Key32,
    pkcs8: Vec<u8>,
}

impl Identity {
    /// Loads the key, or makes it at first start.
    pub(crate) fn load(data: &Data) -> Result<Self> {
        let pkcs8 = data.get_or_make("identity/key.pk8", || {
            let random = ring::rand::SystemRandom::new();
            let document = Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| anyhow!("cannot make a key"))?;
            Ok(document.as_ref().to_vec())
        })?;
        Identity::from_pkcs8(pkcs8).with_context(|| format!("in {}", data.path("identity/key.pk8").display()))
    }

    /// Takes a key in PKCS#8.
    pub(crate) fn from_pkcs8(pkcs8: Vec<u8>) -> Result<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|error| anyhow!("no Ed25519 key: {error}"))?;
        let public = pair.public_key().as_ref().try_into().context("an Ed25519 key has 32 bytes")?;
        Ok(Identity { public, pkcs8 })
    }

    /// The key as rustls signs with it.
    pub(crate) fn certified(&self) -> Result<Arc<CertifiedKey>> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pkcs8.clone()));
        let key = rustls::crypto::ring::sign::any_eddsa_type(match &der {
            PrivateKeyDer::Pkcs8(der) => der,
            _ => return Err(anyhow!("the key is in PKCS#8")),
        })?;
        Ok(Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki_of(&self.public))], key)))
    }

    /// TLS for devices: raw public keys both ways, TLS 1.3 only, and nothing to resume, so that a revoked key is
    /// looked up at every connection.
    pub(crate) fn device_config(&self) -> Result<Arc<ServerConfig>> {
        let provider = provider();
        let verifier = AnyEd25519Key { algorithms: provider.signature_verification_algorithms };
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.certified()?)));
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.alpn_protocols = vec![ALPN_LINK.to_vec(), ALPN_HTTP1.to_vec()];
        Ok(Arc::new(config))
    }
}

/// Lets in every client that proves to hold the Ed25519 key that it shows. Whose key it is, is decided above TLS.
#[derive(Debug)]
struct AnyEd25519Key {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for AnyEd25519Key {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match key_of_spki(end_entity) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => Err(rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("raw public keys need TLS 1.3".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let spki = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The controller's identity towards people and their tools.
#[derive(Debug)]
pub(crate) struct Authority {
    /// The CA's certificate, for kubeconfigs.
    pub(crate) ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Loads the CA, or makes it at first start.
    pub(crate) fn load(data: &Data) -> Result<Self> {
        let key = data.get_or_make("tls/ca.key", || Ok(KeyPair::generate()?.serialize_pem().into_bytes()))?;
        let key = KeyPair::from_pem(std::str::from_utf8(&key).context("tls/ca.key is no PEM")?)
            .with_context(|| format!("in {}", data.path("tls/ca.key").display()))?;
        let pem = data.get_or_make("tls/ca.pem", || Ok(ca_params().self_signed(&key)?.pem().into_bytes()))?;
        let ca_pem = String::from_utf8(pem).context("tls/ca.pem is no PEM")?;
        Ok(Authority { ca_pem, issuer: Issuer::new(ca_params(), key) })
    }

    /// TLS for people: a fresh certificate of the CA for these names and addresses.
    pub(crate) fn https_config(&self, names: Vec<String>) -> Result<Arc<ServerConfig>> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names).context("a --name is no DNS name or address")?;
        params.distinguished_name.push(DnType::CommonName, "skeg");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], private)?;
        config.alpn_protocols = vec![b"h2".to_vec(), ALPN_HTTP1.to_vec()];
        Ok(Arc::new(config))
    }
}

/// The CA's parameters; they never change, so that the issuer's name in a certificate is the name in ca.pem.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "skeg controller CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

/// Names under which a certificate is valid: those given, the listening address, and this machine for itself.
pub(crate) fn names(given: &[String], listen: IpAddr, host: Option<String>) -> Vec<String> {
    let mut names = given.to_vec();
    if !listen.is_unspecified() {
        names.push(listen.to_string());
    }
    names.extend(host.filter(|name| skeg_protocol::id::is_name(name)));
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_wrapping_and_others_are_refused() {
        assert_eq!(key_of_spki(&spki_of(&[9; 32])), Some([9; 32]));
        assert_eq!(key_of_spki(&[0x30; 44]), None);
        assert_eq!(key_of_spki(&spki_of(&[9; 32])[..43]), None);
    }

    #[test]
    fn the_identity_and_the_authority_outlive_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let data = Data::open(folder.path()).unwrap();
        let (first, second) = (Identity::load(&data).unwrap(), Identity::load(&data).unwrap());
        assert_eq!(first.public, second.public);
        assert_eq!(Authority::load(&data).unwrap().ca_pem, Authority::load(&data).unwrap().ca_pem);
        let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(data.path("identity/key.pk8")).unwrap());
        assert_eq!(mode & 0o777, 0o600);
    }
}
