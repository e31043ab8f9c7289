//! A small controller: one port with raw-public-key TLS, the link and a read-only registry behind it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};
use skeg_protocol::limits::MAX_STREAM_DATA;
use skeg_protocol::message::{Base, Hello, ManifestBegin, ManifestPiece, PullSecrets, Welcome};
use skeg_protocol::sync::{body, delta};
use skeg_protocol::{Connection, Digest, Manifest, Message, PodStatus, Uid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::image::Served;

const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const SECRET: &str = "0123456789abcdefghijklmnopqrstuv";
/// Longest wait for anything; only a broken test takes it.
const PATIENCE: Duration = Duration::from_secs(90);

/// What the device has told.
#[derive(Default)]
pub struct Told {
    pub hello: Option<Hello>,
    pub pods: BTreeMap<Uid, PodStatus>,
    pub held: u64,
    pub refused: Option<String>,
}

/// The running controller.
pub struct Controller {
    pub address: SocketAddr,
    pub token: String,
    told: Arc<(Mutex<Told>, Condvar)>,
    wanted: watch::Sender<(Manifest, PullSecrets)>,
}

#[derive(Debug)]
struct AnyKey(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

fn tls() -> (ServerConfig, [u8; 32]) {
    let document = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let public: [u8; 32] = pair.public_key().as_ref().try_into().unwrap();
    let PrivateKeyDer::Pkcs8(key) = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(document.as_ref())) else {
        unreachable!("made as PKCS #8 a line above")
    };
    let signer = provider::sign::any_eddsa_type(&key).unwrap();
    let spki = [SPKI_PREFIX.as_slice(), &public].concat();
    let own = rustls::sign::CertifiedKey::new(vec![CertificateDer::from(spki)], signer);
    let crypto = Arc::new(provider::default_provider());
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&crypto))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(AnyKey(crypto)))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::new(own))));
    config.alpn_protocols = vec![b"skeg/1".to_vec(), b"http/1.1".to_vec()];
    (config, public)
}

impl Controller {
    /// Starts a controller that serves these blobs.
    pub fn start(served: Served) -> Controller {
        let (config, public) = tls();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let told: Arc<(Mutex<Told>, Condvar)> = Arc::default();
        let (wanted, follow) = watch::channel(Default::default());
        let shared = Arc::clone(&told);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                let (acceptor, served) = (TlsAcceptor::from(Arc::new(config)), Arc::new(served));
                while let Ok((tcp, _)) = listener.accept().await {
                    let (acceptor, served) = (acceptor.clone(), Arc::clone(&served));
                    let (told, mut follow) = (Arc::clone(&shared), follow.clone());
                    // A controller that is dropped ends with the test's process.
                    if follow.has_changed().is_err() {
                        return;
                    }
                    follow.mark_changed();
                    tokio::spawn(async move {
                        let Ok(tls) = acceptor.accept(tcp).await else { return };
                        if tls.get_ref().1.alpn_protocol() == Some(b"skeg/1") {
                            link(tls, &told, follow).await;
                        } else {
                            registry(tls, &served).await.ok();
                        }
                    });
                }
            });
        });
        let key = base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(public);
        Controller { address, token: format!("skeg-join.{key}.{SECRET}"), told, wanted }
    }

    /// Wants these pods from now on; returns once the device holds them.
    pub fn want(&self, pods: Vec<skeg_protocol::Pod>) {
        self.want_all(Manifest { pods, ..Manifest::default() });
    }

    /// Wants a whole manifest, whatever its revision, from now on; returns once the device holds it.
    pub fn want_all(&self, mut manifest: Manifest) {
        manifest.pods.sort_by_key(|pod| pod.uid);
        let revision = self.wanted.borrow().0.revision + 1;
        manifest.revision = revision;
        manifest.validate().unwrap();
        self.wanted.send_modify(|wanted| wanted.0 = manifest);
        self.wait("the manifest to be held", |told| told.held == revision);
    }

    /// Lets the device have these secrets from now on.
    pub fn share(&self, secrets: PullSecrets) {
        self.wanted.send_modify(|wanted| wanted.1 = secrets);
    }

    /// Waits until the device has told what `holds` looks for.
    pub fn wait(&self, what: &str, holds: impl Fn(&Told) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let (told, changed) = &*self.told;
        let mut told = told.lock().unwrap();
        while !holds(&told) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain for {what}; the device says: {:#?}", told.pods);
            told = changed.wait_timeout(told, left).unwrap().0;
        }
    }

    /// The state that the device told last of a pod.
    pub fn pod(&self, uid: Uid) -> Option<PodStatus> {
        self.told.0.lock().unwrap().pods.get(&uid).cloned()
    }
}

/// Sends a whole manifest.
fn send_manifest(connection: &mut Connection, manifest: &Manifest) {
    let bytes = body::encode(manifest).unwrap();
    let delta = delta::encode(b"", &bytes);
    let begin = ManifestBegin {
        revision: manifest.revision,
        epoch: [1; 8],
        base: Base::Nothing,
        size: bytes.len() as u32,
        digest: Digest::of(&bytes),
        length: delta.len() as u32,
        check: [0; 8],
        from: 0,
    };
    connection.send(begin).unwrap();
    for piece in delta.chunks(MAX_STREAM_DATA) {
        connection.send(ManifestPiece { bytes: piece.to_vec() }).unwrap();
    }
}

async fn link(
    mut tls: TlsStream<TcpStream>,
    told: &(Mutex<Told>, Condvar),
    mut wanted: watch::Receiver<(Manifest, PullSecrets)>,
) {
    let mut shared = PullSecrets::default();
    let began = Instant::now();
    let mut connection = Connection::controller(Duration::ZERO);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let output = connection.output(began.elapsed());
        if tls.write_all(&output).await.is_err() || tls.flush().await.is_err() {
            return;
        }
        tokio::select! {
            read = tls.read(&mut buffer) => match read {
                Ok(length) if length > 0 => connection.receive(&buffer[..length], began.elapsed()),
                _ => return,
            },
            changed = wanted.changed(), if connection.is_open() => {
                if changed.is_err() {
                    return;
                }
                let (manifest, secrets) = wanted.borrow_and_update().clone();
                if secrets != shared {
                    connection.send(secrets.clone()).unwrap();
                    shared = secrets;
                }
                let held = told.0.lock().unwrap().held;
                if manifest.revision > held {
                    send_manifest(&mut connection, &manifest);
                }
            }
        }
        while let Some(message) = connection.next().unwrap() {
            let mut now = told.0.lock().unwrap();
            match message {
                Message::Hello(hello) => {
                    assert!(now.hello.is_some() || hello.join.as_deref() == Some(SECRET), "enrolled without a token");
                    now.held = hello.held.revision;
                    now.hello = Some(hello);
                    let welcome = Welcome { version: 1, heartbeat_seconds: 10, time: 0, retry_seconds: 1 };
                    connection.welcome(welcome).unwrap();
                }
                Message::Held(held) => now.held = held.revision,
                Message::ManifestRefused(refused) => now.refused = Some(refused.message),
                Message::StatusUpdate(update) => {
                    if update.full {
                        now.pods.clear();
                    }
                    for uid in &update.removed {
                        now.pods.remove(uid);
                    }
                    now.pods.extend(update.pods.into_iter().map(|pod| (pod.uid, pod)));
                }
                other => panic!("a device sent {other:?}"),
            }
            told.1.notify_all();
        }
    }
}

async fn registry(mut tls: TlsStream<TcpStream>, served: &Served) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            let length = tls.read(&mut buffer).await?;
            if length == 0 {
                return Ok(());
            }
            request.extend_from_slice(&buffer[..length]);
        }
        let text = String::from_utf8_lossy(&request).into_owned();
        request.clear();
        let path = text.split(' ').nth(1).unwrap_or_default();
        let (status, kind, body): (&str, &str, &[u8]) = match served.get(path) {
            Some((kind, body)) => ("200 OK", kind, body),
            None => ("404 Not Found", "application/json", br#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#),
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        tls.write_all(head.as_bytes()).await?;
        if !text.starts_with("HEAD") {
            tls.write_all(body).await?;
        }
        tls.flush().await?;
    }
}
