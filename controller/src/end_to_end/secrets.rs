//! Secrets for pulls: who is sent them, and what the controller itself does with them.

use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use skeg_images::Digest;
use skeg_protocol::Message;
use skeg_protocol::message::PullSecrets;
use tokio::net::TcpListener;

use super::device::{Device, NOTHING, hello};
use super::links::{enrol, open, request};
use super::{Controller, pod_key};

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn config(registry: &str, password: &str) -> String {
    json!({"auths": {registry: {"auth": STANDARD.encode(format!("user:{password}"))}}}).to_string()
}

async fn create_secret(controller: &Controller, name: &str, config: &str) {
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config},
    });
    let made = controller.client.json(Method::POST, SECRETS, Some(&secret)).await.unwrap();
    assert_eq!(made["data"][".dockerconfigjson"], STANDARD.encode(config));
}

async fn create_pod(controller: &Controller, name: &str, node: &str, image: &str, secrets: &[&str]) {
    let secrets: Vec<Value> = secrets.iter().map(|name| json!({"name": name})).collect();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "nodeName": node, "imagePullSecrets": secrets, "containers": [{"name": "main", "image": image}],
        },
    });
    controller.client.json(Method::POST, "/api/v1/namespaces/default/pods", Some(&pod)).await.unwrap();
}

/// The next message, which must be secrets: their names and what they hold.
async fn told(device: &mut Device) -> Vec<(String, String)> {
    let Message::PullSecrets(PullSecrets { secrets }) = device.expect().await else { panic!("no secrets came") };
    secrets.into_iter().map(|secret| (format!("{}/{}", secret.namespace, secret.name), secret.config)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_reaches_only_the_node_that_needs_it_and_follows_its_changes() {
    let controller = Controller::start().await;
    controller.name_image("demo", 7);
    let (identity, mut needs) = enrol(&controller, "needs").await;
    let (_, mut other) = enrol(&controller, "other").await;
    let (first, second) = (config("a.example", "first"), config("a.example", "second"));
    create_secret(&controller, "pull", &first).await;
    create_secret(&controller, "unused", &first).await;
    create_pod(&controller, "private", "needs", "demo:1", &["pull", "missing"]).await;
    create_pod(&controller, "public", "other", "demo:1", &[]).await;
    // Before the manifest, so that the first pull has it.
    assert_eq!(told(&mut needs).await, [("default/pull".to_owned(), first)]);
    needs.take_manifest().await;
    other.take_manifest().await;
    let revision = needs.intake.held().revision;

    let patch = json!({"data": {".dockerconfigjson": STANDARD.encode(&second)}});
    let place = format!("{SECRETS}/pull");
    controller
        .client
        .json(
            Method::PUT,
            &place,
            Some(&json!({
                "metadata": {"name": "pull"}, "type": "kubernetes.io/dockerconfigjson", "data": patch["data"],
            })),
        )
        .await
        .unwrap();
    assert_eq!(told(&mut needs).await, [("default/pull".to_owned(), second.clone())]);
    // The next connection is told, too, though its manifest is as it was.
    let held = needs.intake.held();
    drop(needs);
    let mut needs = open(&controller, &identity, hello("needs", None, held)).await;
    assert!(matches!(needs.expect().await, Message::Welcome(_)));
    assert_eq!(told(&mut needs).await, [("default/pull".to_owned(), second)]);
    controller.client.json(Method::DELETE, &place, None).await.unwrap();
    assert_eq!(told(&mut needs).await, []);
    assert_eq!(controller.app.store.newest_manifest("needs").unwrap().revision, revision);
    // What the other node is told next is a manifest: it never was sent a secret.
    create_pod(&controller, "more", "other", "demo:1", &[]).await;
    other.take_manifest().await;
    assert_ne!(other.intake.held(), NOTHING);
    controller.stop().await;
}

/// A registry on loopback with one image, `private/web:1`, for `user` with the password `secret`.
async fn locked_registry() -> (String, Digest, Digest) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (config, right) = (Digest::of(b"{}"), format!("Basic {}", STANDARD.encode("user:secret")));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": IMAGE, "config": {"digest": config.to_string(), "size": 2}, "layers": [],
    });
    let manifest = manifest.to_string();
    let digest = Digest::of(manifest.as_bytes());
    let answer = move |request: Request| {
        let (right, manifest) = (right.clone(), manifest.clone());
        async move {
            if request.headers().get(AUTHORIZATION).is_none_or(|sent| sent != right.as_str()) {
                return (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Basic realm=\"test\"")]).into_response();
            }
            match request.uri().path().contains("/manifests/") {
                true => ([(CONTENT_TYPE, IMAGE)], manifest).into_response(),
                false => "{}".into_response(),
            }
        }
    };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    (address, digest, config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_asks_a_locked_registry_with_the_pods_secret() {
    let (registry, digest, blob) = locked_registry().await;
    let controller = Controller::start_beside(vec![registry.clone()]).await;
    let (known, mut device) = enrol(&controller, "kiln-7").await;
    let image = format!("{registry}/private/web:1");
    create_pod(&controller, "web", "kiln-7", &image, &["pull"]).await;
    let message = |pod: &Value| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        waiting["message"].as_str().unwrap_or_default().to_owned()
    };
    let failed = controller.until(&pod_key("web"), |pod| message(pod).contains("pull secret")).await;
    let text = message(&failed);
    assert!(text.contains("\"pull\" does not exist in namespace \"default\"") && text.contains("denies"), "{text}");
    // A pod without the secret fails too, and does not stand in the way of one that has it.
    create_pod(&controller, "stranger", "kiln-7", &image, &[]).await;
    controller.until(&pod_key("stranger"), |pod| message(pod).contains("denies")).await;
    create_secret(&controller, "pull", &config(&registry, "secret")).await;
    assert_eq!(told(&mut device).await.len(), 1);
    device.take_manifest().await;
    let pod = device.pods.values().next().unwrap();
    assert_eq!((device.pods.len(), pod.name.as_str(), pod.containers[0].image.digest.0), (1, "web", digest.0));
    // The same secret opens the registry for a device that reaches only its controller.
    let through = request(&controller, &known, &format!("GET /v2/{registry}/private/web/blobs/{blob}")).await;
    assert!(through.starts_with("HTTP/1.1 200"), "{through}");
    controller.stop().await;
}
