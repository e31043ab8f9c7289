//! Pulls from Debian's registry over TLS with certificates of its own, by password and by token: images that umoci,
//! buildah and podman have made and skopeo has pushed.
//!
//! Needs root, docker-registry and those tools; says so when one is missing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use skeg_images::{Client, Endpoint, Limits, Login, Platform, Sources, Store};
use support::RealRegistry;

/// `user:secret`, the password by bcrypt.
const HTPASSWD: &str = "user:$2b$04$HJXneTLvsfsdBrdnpdcLoeh55h2PW4U/NklnZp6Xe3l/.8EvKRuM6\n";

/// A certificate for 127.0.0.1 that vouches for itself, in files as the registry wants them.
struct Identity {
    folder: tempfile::TempDir,
    certificate: rcgen::Certificate,
    key: rcgen::KeyPair,
}

impl Identity {
    fn new() -> Identity {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cert.pem"), cert.pem()).unwrap();
        fs::write(folder.path().join("key.pem"), signing_key.serialize_pem()).unwrap();
        fs::write(folder.path().join("htpasswd"), HTPASSWD).unwrap();
        Identity { folder, certificate: cert, key: signing_key }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn tls(&self) -> String {
        format!("  tls:\n    certificate: {}\n    key: {}\n", self.path("cert.pem"), self.path("key.pem"))
    }

    fn client(&self, address: &str, login: Option<Login>) -> Client {
        let pem = fs::read(self.path("cert.pem")).unwrap();
        let endpoint = Endpoint::for_registry(address, false).unwrap().with_authorities(&pem).unwrap();
        Client::with_login(endpoint, login)
    }
}

fn user(password: &str) -> Option<Login> {
    Some(Login::Password { user: "user".to_owned(), password: password.to_owned() })
}

fn sh(script: &str, folder: &Path) -> Result<(), String> {
    let output = Command::new("sh").args(["-e", "-c", script]).current_dir(folder).output().unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{script}: {}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Has each tool make an image with a file `/hello` and pushes it under the tool's name.
fn push(registry: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("hello"), "hello").unwrap();
    let store = "--root $PWD/root --runroot $PWD/run --storage-driver vfs";
    for script in [
        "umoci init --layout umoci; umoci new --image umoci:1; umoci insert --image umoci:1 hello /hello".to_owned(),
        format!(
            "c=$(buildah {store} from scratch); buildah {store} copy -q $c hello /hello; \
             buildah {store} commit -q --format docker $c dir:buildah"
        ),
        format!(
            "tar -cf hello.tar hello; podman {store} import -q hello.tar local/hello:1; \
             podman {store} save -q --format oci-dir -o podman local/hello:1"
        ),
    ] {
        sh(&script, folder.path())?;
    }
    for (source, name) in [("oci:umoci:1", "umoci"), ("dir:buildah", "buildah"), ("oci:podman", "podman")] {
        let copy = "skopeo copy -q --dest-tls-verify=false --dest-creds user:secret";
        sh(&format!("{copy} {source} docker://{registry}/private/{name}:1"), folder.path())?;
    }
    Ok(())
}

/// Pulls what every tool has made, and fails without the right password.
async fn pull_all(identity: &Identity, registry: &RealRegistry) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), Limits { reserve: Some(0), ..Limits::default() }).unwrap();
    for tool in ["umoci", "buildah", "podman"] {
        let repository = format!("private/{tool}");
        let sources = Sources::one(identity.client(&registry.address, user("secret")), &repository);
        let digest = sources.resolve("1").await.unwrap();
        let image = store.pull(&sources, &digest, &Platform::host(), &|_| ()).await.unwrap();
        assert_eq!(fs::read_to_string(image.layers.last().unwrap().join("hello")).unwrap(), "hello", "{tool}");
        for (login, who) in [(None, "anybody without credentials"), (user("wrong"), "user \"user\"")] {
            let client = identity.client(&registry.address, login);
            let error = client.resolve(&repository, "1").await.unwrap_err().to_string();
            assert!(error.contains(&format!("denies it to {who}")), "{error}");
        }
    }
    let stranger = Client::new(Endpoint::for_registry(&registry.address, false).unwrap());
    let error = stranger.resolve("private/umoci", "1").await.unwrap_err();
    assert!(error.to_string().contains("cannot connect"), "a certificate of nobody was taken: {error}");
}

#[tokio::test]
async fn images_of_all_tools_come_by_password_over_tls() {
    let identity = Identity::new();
    let auth = format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", identity.path("htpasswd"));
    let registry = match RealRegistry::start(&format!("{}{auth}", identity.tls())) {
        Ok(registry) => registry,
        Err(why) => return println!("skipped: {why}"),
    };
    if let Err(why) = push(&registry.address) {
        return println!("skipped: {why}");
    }
    pull_all(&identity, &registry).await;
}

/// A token that the registry believes: a JWT by ES256 whose certificate is in the registry's bundle (distribution's
/// token specification).
fn token(certificate: &[u8], key: &[u8], scopes: &[String]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let access = |scope: &String| {
        let parts: Vec<_> = scope.split(':').collect();
        serde_json::json!({"type": parts[0], "name": parts[1], "actions": parts[2].split(',').collect::<Vec<_>>()})
    };
    let claims = serde_json::json!({"iss": "test", "sub": "user", "aud": "registry", "exp": now + 300, "nbf": now - 60,
        "iat": now, "jti": "1", "access": scopes.iter().map(access).collect::<Vec<_>>()});
    let header = serde_json::json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(certificate)]});
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    let random = ring::rand::SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key, &random).unwrap();
    let signature = pair.sign(&random, text.as_bytes()).unwrap();
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// Serves tokens over TLS to whoever has the password; returns its address.
async fn token_server(identity: &Identity) -> String {
    let (certificate, key) = (identity.certificate.der().to_vec(), identity.key.serialize_der());
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.clone()));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![identity.certificate.der().clone()], private)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, certificate, key) = (acceptor.clone(), certificate.clone(), key.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let answer = move |request: Request<Incoming>| {
                    let sent = request.headers().get("authorization").cloned();
                    let right = sent.is_some_and(|sent| sent == format!("Basic {}", STANDARD.encode("user:secret")));
                    let query =
                        request.uri().query().unwrap_or("").replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
                    let scopes: Vec<_> =
                        query.split('&').filter_map(|pair| pair.strip_prefix("scope=")).map(str::to_owned).collect();
                    let (status, body) = match right {
                        true => (200, serde_json::json!({"token": token(&certificate, &key, &scopes)}).to_string()),
                        false => (401, "wrong password".to_owned()),
                    };
                    let answer = Response::builder().status(status).body(Full::new(Bytes::from(body)));
                    async move { answer }
                };
                let io = hyper_util::rt::TokioIo::new(stream);
                let service = hyper::service::service_fn(answer);
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn images_of_all_tools_come_by_token_over_tls() {
    let identity = Identity::new();
    let realm = token_server(&identity).await;
    let auth = format!(
        "auth:\n  token:\n    realm: https://{realm}/token\n    service: registry\n    issuer: test\n    rootcertbundle: {}\n",
        identity.path("cert.pem")
    );
    let registry = match RealRegistry::start(&format!("{}{auth}", identity.tls())) {
        Ok(registry) => registry,
        Err(why) => return println!("skipped: {why}"),
    };
    let address = registry.address.clone();
    if let Err(why) = tokio::task::spawn_blocking(move || push(&address)).await.unwrap() {
        return println!("skipped: {why}");
    }
    pull_all(&identity, &registry).await;
}
