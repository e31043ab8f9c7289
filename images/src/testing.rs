//! A registry for tests: real HTTP on a loopback socket, scripted to be honest or to lie. It owns no files.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::digest::Digest;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// How a scripted answer ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Whole,
    /// After so many bytes of the body the connection is closed.
    Cut(usize),
    /// After so many bytes of the body nothing comes any more.
    Stall(usize),
    /// The body comes byte by byte, with pauses.
    Drip,
}

#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    pub(crate) end: End,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Bytes>) -> Reply {
        Reply { status, headers: Vec::new(), body: body.into(), end: End::Whole }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn end(self, end: End) -> Reply {
        Reply { end, ..self }
    }
}

/// One request as the registry has seen it: method, path with query, authorization, range, body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) authorization: Option<String>,
    pub(crate) range: Option<String>,
    pub(crate) body: String,
}

#[derive(Default)]
struct State {
    /// Answers by path; each is used once, except the last, which stays.
    replies: HashMap<String, VecDeque<Reply>>,
    seen: Vec<Seen>,
    /// When set, every request below /v2/ needs this token.
    token: Option<(String, String)>,
    connections: usize,
}

#[derive(Clone)]
pub(crate) struct Registry {
    state: Arc<Mutex<State>>,
    pub(crate) address: String,
}

struct Script {
    pieces: VecDeque<Bytes>,
    left: u64,
    end: End,
    pause: Pin<Box<tokio::time::Sleep>>,
}

impl Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.end == End::Drip && !self.pause.as_mut().poll(context).is_ready() {
            return Poll::Pending;
        }
        self.pause = Box::pin(tokio::time::sleep(std::time::Duration::from_millis(5)));
        match (self.pieces.pop_front(), self.end) {
            (Some(piece), _) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            (None, End::Whole | End::Drip) => Poll::Ready(None),
            (None, End::Cut(_)) => Poll::Ready(Some(Err(io::Error::other("cut by the test")))),
            (None, End::Stall(_)) => Poll::Pending,
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        hyper::body::SizeHint::with_exact(self.left)
    }
}

impl Registry {
    pub(crate) async fn start() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let registry = Registry { state: Arc::default(), address };
        let server = registry.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                server.state.lock().unwrap().connections += 1;
                let server = server.clone();
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| server.clone().answer(request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        registry
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Script>, Infallible> {
        let (request, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let header = |name: &str| request.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let path = request.uri.path_and_query().unwrap().as_str().to_owned();
        let seen = Seen {
            method: request.method.to_string(),
            path: path.clone(),
            authorization: header("authorization"),
            range: header("range"),
            body: String::from_utf8_lossy(&body).into_owned(),
        };
        let range: Option<usize> = seen
            .range
            .as_deref()
            .map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
        let authorization = seen.authorization.clone();
        let mut state = self.state.lock().unwrap();
        state.seen.push(seen);
        let denied = state.token.clone().filter(|(token, _)| {
            path.starts_with("/v2/") && authorization.as_deref() != Some(format!("Bearer {token}").as_str())
        });
        let mut reply = if let Some((_, challenge)) = denied {
            Reply::new(401, "denied").header("www-authenticate", &challenge)
        } else {
            let replies = state.replies.get_mut(&path);
            match replies {
                Some(queue) if queue.len() > 1 => queue.pop_front().unwrap(),
                Some(queue) => queue[0].clone(),
                None => Reply::new(404, r#"{"errors":[{"code":"NOT_FOUND","message":"no such thing"}]}"#),
            }
        };
        if let Some(range) = range.filter(|_| reply.status == 206) {
            let (last, length) = (reply.body.len() - 1, reply.body.len());
            reply = reply.header("content-range", &format!("bytes {range}-{last}/{length}"));
            reply.body = reply.body.slice(range..);
        }
        Ok(respond(reply))
    }

    /// Sets the answer to a path; called again, adds a later answer to the same path.
    pub(crate) fn on(&self, path: &str, reply: Reply) {
        self.state.lock().unwrap().replies.entry(path.to_owned()).or_default().push_back(reply);
    }

    pub(crate) fn replace(&self, path: &str, reply: Reply) {
        self.state.lock().unwrap().replies.insert(path.to_owned(), VecDeque::from([reply]));
    }

    /// Returns the next answer to a path.
    pub(crate) fn reply(&self, path: &str) -> Reply {
        self.state.lock().unwrap().replies[path][0].clone()
    }

    pub(crate) fn require_token(&self, token: &str, challenge: &str) {
        self.state.lock().unwrap().token = Some((token.to_owned(), challenge.to_owned()));
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.lock().unwrap().seen.clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }

    pub(crate) fn count(&self, path: &str) -> usize {
        self.seen().iter().filter(|seen| seen.path == path).count()
    }

    pub(crate) fn add_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.on(&format!("/v2/{repository}/blobs/{digest}"), Reply::new(200, bytes.to_vec()));
        digest
    }

    pub(crate) fn add_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let reply = Reply::new(200, bytes.to_vec())
            .header("content-type", media_type)
            .header("docker-content-digest", &digest.to_string());
        self.on(&format!("/v2/{repository}/manifests/{digest}"), reply.clone());
        self.on(&format!("/v2/{repository}/manifests/{tag}"), reply);
        digest
    }

    /// Adds an image of these layers, each as (blob, its plain tar), and returns its manifest's digest.
    pub(crate) fn add_image(&self, repository: &str, tag: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Digest {
        let diff_ids: Vec<_> = layers.iter().map(|(_, tar)| Digest::of(tar).to_string()).collect();
        let platform = crate::Platform::host();
        let config = serde_json::json!({
            "architecture": platform.architecture, "os": "linux",
            "config": {"Cmd": ["/bin/true"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = serde_json::to_vec(&config).unwrap();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|(blob, _)| {
                let digest = self.add_blob(repository, blob);
                serde_json::json!({"mediaType": LAYER, "digest": digest.to_string(), "size": blob.len()})
            })
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.add_blob(repository, &config).to_string(), "size": config.len(),
            },
            "layers": descriptors,
        });
        self.add_manifest(repository, tag, MANIFEST, &serde_json::to_vec(&manifest).unwrap())
    }
}

fn respond(reply: Reply) -> Response<Script> {
    let left = reply.body.len() as u64;
    let body = match reply.end {
        End::Whole | End::Drip => reply.body,
        End::Cut(count) | End::Stall(count) => reply.body.slice(..count),
    };
    let piece = if reply.end == End::Drip { 1 } else { 10_000 };
    let pieces = body.chunks(piece).map(Bytes::copy_from_slice).collect();
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        let name: HeaderName = name.parse().unwrap();
        response = response.header(name, HeaderValue::from_str(&value).unwrap());
    }
    response
        .body(Script { pieces, left, end: reply.end, pause: Box::pin(tokio::time::sleep(std::time::Duration::ZERO)) })
        .unwrap()
}

/// Builds tars for tests, also such as no honest tool makes.
pub(crate) struct TarFile(Vec<u8>);

impl TarFile {
    pub(crate) fn new() -> TarFile {
        TarFile(Vec::new())
    }

    /// Adds one entry as it is told: no name is checked.
    pub(crate) fn raw(mut self, kind: u8, name: &str, link: &str, mode: u32, data: &[u8]) -> TarFile {
        let mut header = tar::Header::new_ustar();
        let block = header.as_mut_bytes();
        assert!(name.len() <= 100 && link.len() <= 100, "use pax for long names");
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        if matches!(kind, b'3' | b'4') {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> TarFile {
        self.raw(b'0', name, "", 0o644, data)
    }

    pub(crate) fn folder(self, name: &str, mode: u32) -> TarFile {
        self.raw(b'5', name, "", mode, b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> TarFile {
        self.raw(b'2', name, target, 0o777, b"")
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> TarFile {
        self.raw(b'1', name, target, 0o644, b"")
    }

    /// Adds PAX records for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> TarFile {
        let mut data = Vec::new();
        for (key, value) in records {
            let content = key.len() + value.len() + 3;
            let mut length = content + content.to_string().len();
            length = content + length.to_string().len();
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.raw(b'x', "pax", "", 0o644, &data)
    }

    pub(crate) fn bytes(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}
