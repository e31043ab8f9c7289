//! The client against registries that are honest, slow, confused or hostile.

use std::time::Duration;

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};

use super::*;
use crate::testing::*;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

fn client(address: &str, stall: Duration) -> Client {
    Client::new(Endpoint::for_registry(address, true).unwrap().with_timeouts(LONG, stall))
}

#[tokio::test]
async fn a_tag_is_resolved_by_header_or_else_by_hashing() {
    let registry = Registry::start().await;
    let digest = registry.add_manifest("a/b", "1", MANIFEST, b"{}");
    registry.on("/v2/a/b/manifests/bare", Reply::new(200, "{}").header("content-type", MANIFEST));
    let client = client(&registry.address, LONG);
    assert_eq!(client.resolve("a/b", "1").await.unwrap(), digest);
    assert_eq!(client.resolve("a/b", "bare").await.unwrap(), digest);
    registry.on("/v2/a/b/manifests/no-head", Reply::new(405, ""));
    registry.on("/v2/a/b/manifests/no-head", Reply::new(200, "{}").header("content-type", MANIFEST));
    assert_eq!(client.resolve("a/b", "no-head").await.unwrap(), digest);
    let methods: Vec<_> = registry.seen().into_iter().map(|seen| seen.method).collect();
    assert_eq!(methods, ["HEAD", "HEAD", "GET", "HEAD", "GET"]);
}

#[tokio::test]
async fn connections_are_used_again() {
    let registry = Registry::start().await;
    registry.add_manifest("a", "1", MANIFEST, b"{}");
    let client = client(&registry.address, LONG);
    for _ in 0..10 {
        client.manifest("a", "1").await.unwrap();
    }
    assert!(registry.connections() < 10, "{} connections for 10 requests", registry.connections());
}

#[tokio::test]
async fn a_challenge_is_answered_with_one_anonymous_token() {
    let registry = Registry::start().await;
    registry.add_manifest("a/b", "1", MANIFEST, b"{}");
    let challenge =
        format!(r#"Bearer realm="http://{}/token?x=y",service="s",scope="repository:a/b:pull""#, registry.address);
    registry.require_token("secret", &challenge);
    let token_path = "/token?x=y&service=s&scope=repository%3Aa%2Fb%3Apull";
    registry.on(token_path, Reply::new(200, r#"{"token":"secret"}"#));
    let client = client(&registry.address, LONG);
    client.resolve("a/b", "1").await.unwrap();
    client.manifest("a/b", "1").await.unwrap();
    assert_eq!(registry.count(token_path), 1);
}

#[tokio::test]
async fn a_token_that_is_refused_ends_the_attempt() {
    let registry = Registry::start().await;
    let challenge = format!(r#"Bearer realm="http://{}/token""#, registry.address);
    registry.require_token("right", &challenge);
    registry.on("/token?scope=repository%3Aa%3Apull", Reply::new(200, r#"{"token":"wrong"}"#));
    let error = client(&registry.address, LONG).resolve("a", "1").await.unwrap_err();
    assert!(error.to_string().contains("401"), "{error}");
    assert_eq!(registry.seen().len(), 3);
}

#[tokio::test]
async fn useless_challenges_are_named() {
    let registry = Registry::start().await;
    registry.on("/v2/a/manifests/basic", Reply::new(401, "who?").header("www-authenticate", "Basic realm=\"x\""));
    registry.on("/v2/a/manifests/ftp", Reply::new(401, "").header("www-authenticate", "Bearer realm=\"ftp://x/\""));
    let html = format!("Bearer realm=\"http://{}/html\"", registry.address);
    registry.on("/v2/a/manifests/html", Reply::new(401, "").header("www-authenticate", &html));
    registry.on("/html?scope=repository%3Aa%3Apull", Reply::new(200, "<html>"));
    let client = client(&registry.address, LONG);
    for (tag, part) in [("ftp", "not an http(s) URL"), ("html", "no usable token")] {
        let error = client.manifest("a", tag).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let error = client.manifest("a", "basic").await.unwrap_err().to_string();
    let wanted = "manifest basic: the registry denies it to anybody without credentials (401 Unauthorized: who?)";
    assert!(error.ends_with(wanted), "{error}");
}

fn with_login(address: &str, login: Login) -> Client {
    let endpoint = Endpoint::for_registry(address, true).unwrap().with_timeouts(LONG, LONG);
    Client::with_login(endpoint, Some(login))
}

fn password() -> Login {
    Login::Password { user: "user".to_owned(), password: "pass".to_owned() }
}

const BASIC: &str = "Basic dXNlcjpwYXNz";

#[tokio::test]
async fn a_password_goes_to_a_registry_that_asks_for_it() {
    let registry = Registry::start().await;
    let denied = Reply::new(401, "who?").header("www-authenticate", "Basic realm=\"x\"");
    registry.on("/v2/a/manifests/1", denied.clone());
    registry.on("/v2/a/manifests/1", Reply::new(200, "{}"));
    registry.on("/v2/a/manifests/2", denied);
    let client = with_login(&registry.address, password());
    client.manifest("a", "1").await.unwrap();
    client.manifest("a", "1").await.unwrap();
    let sent: Vec<_> = registry.seen().into_iter().map(|seen| seen.authorization).collect();
    assert_eq!(sent, [None, Some(BASIC.to_owned()), Some(BASIC.to_owned())]);
    let error = client.manifest("a", "2").await.unwrap_err().to_string();
    assert!(error.contains("denies it to user \"user\" (401") && !error.contains("pass"), "{error}");
}

#[tokio::test]
async fn a_password_is_traded_for_tokens_and_again_when_they_expire() {
    let registry = Registry::start().await;
    registry.add_manifest("a", "1", MANIFEST, b"{}");
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", registry.address);
    let path = "/token?service=s&scope=repository%3Aa%3Apull";
    for token in ["one", "two"] {
        registry.require_token(token, &challenge);
        registry.replace(path, Reply::new(200, format!("{{\"token\":\"{token}\",\"expires_in\":1}}")));
        let client = with_login(&registry.address, password());
        client.manifest("a", "1").await.unwrap();
        client.manifest("a", "1").await.unwrap();
    }
    // The same client, whose token has expired in the meantime.
    let client = with_login(&registry.address, password());
    client.manifest("a", "1").await.unwrap();
    registry.require_token("three", &challenge);
    registry.replace(path, Reply::new(200, r#"{"token":"three"}"#));
    client.manifest("a", "1").await.unwrap();
    let asked: Vec<_> = registry.seen().into_iter().filter(|seen| seen.path == path).collect();
    assert_eq!(asked.len(), 4);
    assert!(asked.iter().all(|seen| seen.authorization.as_deref() == Some(BASIC)), "{asked:?}");
}

#[tokio::test]
async fn an_identity_token_is_traded_by_post() {
    let registry = Registry::start().await;
    registry.add_manifest("a", "1", MANIFEST, b"{}");
    registry.require_token("secret", &format!("Bearer realm=\"http://{}/oauth2\"", registry.address));
    registry.on("/oauth2", Reply::new(200, r#"{"access_token":"secret"}"#));
    with_login(&registry.address, Login::IdentityToken("refresh".to_owned())).manifest("a", "1").await.unwrap();
    let seen = registry.seen();
    let form = "grant_type=refresh_token&client_id=skeg&refresh_token=refresh&scope=repository%3Aa%3Apull";
    assert_eq!((seen[1].method.as_str(), seen[1].body.as_str()), ("POST", form));
    assert_eq!(seen[1].authorization, None);
}

#[tokio::test]
async fn another_part_of_a_blob_is_refused() {
    let registry = Registry::start().await;
    let digest = Digest::of(b"blob");
    let reply = Reply::new(200, "blob").header("content-range", "bytes 0-3/4");
    registry.on(&format!("/v2/a/blobs/{digest}"), Reply { status: 206, ..reply });
    let error = client(&registry.address, LONG).blob("a", &digest, 2).await.err().unwrap();
    assert!(
        error.to_string().ends_with("asked for the bytes from 2 on, the registry sends \"bytes 0-3/4\""),
        "{error}"
    );
}

#[tokio::test]
async fn redirects_are_followed_without_the_token() {
    let (registry, storage) = (Registry::start().await, Registry::start().await);
    let digest = Digest::of(b"blob");
    registry.require_token("secret", &format!("Bearer realm=\"http://{}/token\"", registry.address));
    registry.on("/token?scope=repository%3Aa%3Apull", Reply::new(200, r#"{"access_token":"secret"}"#));
    let elsewhere = format!("http://{}/storage?signed=1", storage.address);
    registry.on(&format!("/v2/a/blobs/{digest}"), Reply::new(307, "").header("location", "/v2/next"));
    registry.on("/v2/next", Reply::new(302, "").header("location", &elsewhere));
    storage.on("/storage?signed=1", Reply::new(200, "blob"));
    let bytes = client(&registry.address, LONG).small_blob("a", &digest, 100).await.unwrap();
    assert_eq!(&bytes[..], b"blob");
    assert_eq!(storage.seen()[0].authorization, None);
    assert_eq!(registry.seen().last().unwrap().authorization.as_deref(), Some("Bearer secret"));
}

#[tokio::test]
async fn redirects_end() {
    let registry = Registry::start().await;
    registry.on("/v2/a/manifests/loop", Reply::new(301, "").header("location", "/v2/a/manifests/loop"));
    registry.on("/v2/a/manifests/file", Reply::new(301, "").header("location", "file:///etc/passwd"));
    registry.on("/v2/a/manifests/none", Reply::new(301, ""));
    let client = client(&registry.address, LONG);
    assert!(matches!(client.manifest("a", "loop").await, Err(ClientError::TooManyRedirects { .. })));
    assert_eq!(registry.seen().len(), 6);
    for tag in ["file", "none"] {
        assert!(matches!(client.manifest("a", tag).await, Err(ClientError::Redirect { .. })));
    }
}

#[tokio::test]
async fn errors_name_everything_and_cut_what_the_registry_says() {
    let registry = Registry::start().await;
    registry.on("/v2/a/b/manifests/1", Reply::new(500, format!("line\r\n{}", "x".repeat(9999))));
    let client = client(&registry.address, LONG);
    let error = client.manifest("a/b", "1").await.unwrap_err().to_string();
    let start = format!("registry {}, repository a/b: manifest 1: the registry answers 500", registry.address);
    assert!(error.starts_with(&start), "{error}");
    assert!(error.len() < start.len() + 240 && !error.contains('\n'), "{error}");
    let error = client.manifest("a/b", "none").await.unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("no such thing"), "{error}");
}

#[tokio::test]
async fn what_does_not_match_its_digest_is_refused() {
    let registry = Registry::start().await;
    let digest = Digest::of(b"right");
    for kind in ["manifests", "blobs"] {
        registry.on(&format!("/v2/a/{kind}/{digest}"), Reply::new(200, "{}"));
    }
    let client = client(&registry.address, LONG);
    let manifest = client.manifest("a", &digest.to_string()).await.unwrap_err();
    let blob = client.small_blob("a", &digest, 100).await.unwrap_err();
    for error in [manifest, blob] {
        assert!(matches!(error, ClientError::Digest { .. }), "{error}");
        assert!(error.to_string().contains(&digest.to_string()), "{error}");
    }
}

#[tokio::test]
async fn what_is_too_large_is_refused() {
    let registry = Registry::start().await;
    registry.on("/v2/a/manifests/1", Reply::new(200, vec![b' '; 5 << 20]));
    let error = client(&registry.address, LONG).manifest("a", "1").await.unwrap_err();
    assert!(matches!(error, ClientError::TooLarge { limit: MAX_MANIFEST, .. }), "{error}");
}

#[tokio::test]
async fn a_registry_that_says_nothing_is_given_up() {
    // It accepts (the kernel does), but nobody reads or answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let error = client(&address, SHORT).resolve("a", "1").await.unwrap_err();
    assert!(error.to_string().ends_with("the registry has sent next to nothing for 0.2 s"), "{error}");
    let registry = Registry::start().await;
    registry.on("/v2/a/manifests/1", Reply::new(200, vec![b' '; 100]).end(End::Stall(50)));
    let error = client(&registry.address, SHORT).manifest("a", "1").await.unwrap_err();
    assert!(matches!(error, ClientError::Stalled { .. }), "{error}");
}

/// Such a registry once held a pull for ever: each byte began the patience anew.
#[tokio::test]
async fn a_registry_that_gives_a_byte_now_and_then_is_given_up() {
    let registry = Registry::start().await;
    let path = format!("/v2/a/blobs/{}", Digest::of(b"x"));
    registry.on(&path, Reply::new(200, vec![0; 100_000]).end(End::Drip));
    let fetched = async {
        let mut blob = client(&registry.address, SHORT).blob("a", &Digest::of(b"x"), 0).await?;
        while blob.chunk().await?.is_some() {}
        Ok::<_, ClientError>(())
    };
    let error = fetched.await.expect_err("all of it came");
    assert!(matches!(error, ClientError::Stalled { .. }), "{error}");
}

#[tokio::test]
async fn headers_without_end_are_refused() {
    let registry = Registry::start().await;
    let mut reply = Reply::new(200, "{}");
    for number in 0..60 {
        reply = reply.header(&format!("x-{number}"), &"x".repeat(4000));
    }
    registry.on("/v2/a/manifests/1", reply);
    let error = client(&registry.address, LONG).manifest("a", "1").await.unwrap_err();
    assert!(matches!(error, ClientError::Transfer { .. }), "{error}");
}

/// The controller's 404 once hid that the registry had asked for a password.
#[tokio::test]
async fn what_the_registry_says_is_not_hidden_by_who_was_asked_in_its_place() {
    let (registry, controller) = (Registry::start().await, Registry::start().await);
    let digest = Digest::of(b"x");
    registry.on(&format!("/v2/a/manifests/{digest}"), Reply::new(401, "give me a password"));
    let sources = Sources::one(client(&registry.address, LONG), "a")
        .and_then([(client(&controller.address, LONG), "registry/a".to_owned())]);
    let error = sources.manifest(&digest).await.unwrap_err().to_string();
    let first = error.find("denies it to anybody without credentials (401 Unauthorized: give me a password)");
    let second = error.find(&format!("in its place, registry {}, repository registry/a", controller.address));
    assert!(first.is_some() && first < second && error.contains("404"), "{error}");
}

#[tokio::test]
async fn a_device_without_a_route_asks_again_soon_and_often() {
    let client = client("127.0.0.1:1", LONG);
    let asked = client.asked("a", "manifest 1".to_owned());
    let sources = Sources::one(client, "a").with_first_wait(Duration::from_micros(1));
    for (kind, wanted) in [(std::io::ErrorKind::NetworkUnreachable, 30), (std::io::ErrorKind::ConnectionRefused, 6)] {
        let mut attempt = sources.attempt();
        let error = || ClientError::Connect { asked: asked.clone(), address: "x".to_owned(), source: kind.into() };
        let mut rounds = 1;
        while attempt.failed(error()).await.is_ok() {
            rounds += 1;
        }
        assert_eq!(rounds, wanted, "{kind}");
    }
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_named() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = gone.local_addr().unwrap().to_string();
    drop(gone);
    let error = client(&address, LONG).resolve("a", "1").await.unwrap_err();
    assert!(error.to_string().contains(&format!("cannot connect to {address}")), "{error}");
}

#[test]
fn endpoints_know_ports_and_docker_hub() {
    let hub = Endpoint::for_registry("docker.io", false).unwrap().target("/v2/");
    assert_eq!((hub.host_header().as_str(), hub.port), ("registry-1.docker.io", 443));
    let six = Endpoint::for_registry("[::1]:5000", true).unwrap().target("/v2/");
    assert_eq!((six.host.as_str(), six.host_header().as_str()), ("::1", "[::1]:5000"));
    for bad in ["", "a/b", "user@host", "host:port", "http://host"] {
        assert!(Endpoint::for_registry(bad, false).is_err(), "{bad}");
    }
}

/// Trusts one raw public key, as a device trusts its controller.
#[derive(Debug)]
struct Pin(Vec<u8>);

impl rustls::client::danger::ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        match key.as_ref() == self.0 {
            true => Ok(rustls::client::danger::ServerCertVerified::assertion()),
            false => Err(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(key.as_ref());
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature_with_raw_key(message, &key, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        vec![rustls::SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Answers every connection with a fixed manifest over TLS with a raw public key; returns address and key.
async fn raw_key_server() -> (String, Vec<u8>) {
    let random = ring::rand::SystemRandom::new();
    let pkcs8 = ring::signature::Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec()));
    let key = provider.key_provider.load_private_key(key).unwrap();
    let public = key.public_key().unwrap().as_ref().to_vec();
    let certified = rustls::sign::CertifiedKey::new(vec![CertificateDer::from(public.clone())], key);
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(Arc::new(certified));
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = hyper::service::service_fn(|_| async {
                    Ok::<_, std::convert::Infallible>(Response::new(http_body_util::Full::new(Bytes::from("{}"))))
                });
                let io = hyper_util::rt::TokioIo::new(stream);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            });
        }
    });
    (address, public)
}

#[tokio::test]
async fn a_controller_is_known_by_its_raw_public_key() {
    let (address, public) = raw_key_server().await;
    let endpoint = |pin: Vec<u8>| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pin(pin)))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"skeg/1".to_vec()];
        Endpoint::with_tls("controller", &address, Arc::new(config)).unwrap().with_timeouts(LONG, LONG)
    };
    let good = Client::new(endpoint(public.clone()));
    assert_eq!(good.resolve("a", "1").await.unwrap(), Digest::of(b"{}"));
    let other = [&public[..public.len() - 1], &[public[public.len() - 1] ^ 1]].concat();
    let error = Client::new(endpoint(other)).resolve("a", "1").await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    assert!(error.to_string().starts_with("registry controller, repository a"), "{error}");
}
