//! A device that reaches only its controller gets another registry's image through it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse;
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, RANGE};
use serde_json::json;
use skeg_images::Digest;
use tokio::net::TcpListener;

use super::Controller;
use super::links::{enrol, request};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

/// A registry on loopback: path to bytes, and which paths were asked for.
struct Upstream {
    address: String,
    documents: Mutex<HashMap<String, Vec<u8>>>,
    asked: Mutex<Vec<String>>,
}

impl Upstream {
    async fn start() -> Arc<Upstream> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let upstream = Arc::new(Upstream { address, documents: Mutex::default(), asked: Mutex::default() });
        let server = upstream.clone();
        let answer = move |request: Request| {
            let server = server.clone();
            async move {
                assert!(request.headers().get(RANGE).is_none());
                let path = request.uri().path().to_owned();
                let found = server.documents.lock().unwrap().get(&path).cloned();
                server.asked.lock().unwrap().push(path);
                match found {
                    Some(bytes) => ([(CONTENT_TYPE, IMAGE)], bytes).into_response(),
                    None => StatusCode::NOT_FOUND.into_response(),
                }
            }
        };
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        upstream
    }

    fn add(&self, kind: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        self.documents.lock().unwrap().insert(format!("/v2/demo/web/{kind}/{digest}"), bytes.to_vec());
        digest
    }

    fn times(&self, digest: &Digest) -> usize {
        self.asked.lock().unwrap().iter().filter(|path| path.ends_with(&digest.to_string())).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_registrys_image_comes_through_once_and_only_for_pods_that_need_it() {
    let upstream = Upstream::start().await;
    let config = upstream.add("blobs", b"{}");
    let layer = upstream.add("blobs", &[7; 300_000]);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": IMAGE, "config": {"digest": config.to_string(), "size": 2},
        "layers": [{"digest": layer.to_string(), "size": 300_000}],
    });
    let manifest = upstream.add("manifests", manifest.to_string().as_bytes());
    let lied = Digest::of(b"what it should be");
    let path = format!("/v2/demo/web/blobs/{lied}");
    upstream.documents.lock().unwrap().insert(path, b"what it is".to_vec());
    let controller = Controller::start_beside(vec![upstream.address.clone()]).await;
    let (known, mut device) = enrol(&controller, "kiln-7").await;
    let get = |kind: &str, digest: &Digest| format!("GET /v2/{}/demo/web/{kind}/{digest}", upstream.address);
    // Nothing on this device needs it: the path is then only that of a repository which cannot be.
    let early = request(&controller, &known, &get("blobs", &layer)).await;
    assert!(early.starts_with("HTTP/1.1 400") && upstream.times(&layer) == 0, "{early}");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {"containers": [{"name": "main", "image": format!("{}/demo/web@{manifest}", upstream.address)}]},
    });
    let place = "/api/v1/namespaces/default/pods";
    controller.client.json(hyper::Method::POST, place, Some(&pod)).await.unwrap();
    device.take_manifest().await;
    for (kind, digest, length) in
        [("manifests", &manifest, None), ("blobs", &config, Some(2)), ("blobs", &layer, Some(300_000))]
    {
        for _ in 0..2 {
            let answer = request(&controller, &known, &get(kind, digest)).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            let length = length.is_none_or(|length| answer.contains(&format!("content-length: {length}")));
            assert!(length && answer.contains(&digest.to_string()));
        }
        assert_eq!(upstream.times(digest), 1, "{kind}");
    }
    let missing = request(&controller, &known, &get("blobs", &Digest::of(b"none"))).await;
    assert!(missing.starts_with("HTTP/1.1 404"), "{missing}");
    let lie = request(&controller, &known, &get("blobs", &lied)).await;
    assert!(lie.starts_with("HTTP/1.1 400") && lie.contains("the content has the digest"), "{lie}");
    let registry = &controller.app.registry;
    registry.sweep_now();
    assert_eq!(request(&controller, &known, &get("blobs", &layer)).await.lines().next(), Some("HTTP/1.1 200 OK"));
    controller.stop().await;
}
