//! The tools that people have already: kubectl and skopeo, the real ones.

use std::path::Path;
use std::process::Output;

use hyper::Method;
use serde_json::{Value, json};
use tokio::process::Command;

use super::{Controller, pod_key};
use crate::commands::client::is_refusal;
use crate::secret::sha256;
use crate::store::Store;

/// Runs a tool; `None`, said aloud, when this machine does not have it.
async fn run(tool: &str, arguments: &[&str], controller: &Controller) -> Option<Output> {
    let kubeconfig = controller.folder.path().join("data/admin.kubeconfig");
    let mut command = Command::new(tool);
    command.args(arguments).env("KUBECONFIG", kubeconfig).env("HOME", controller.folder.path()).kill_on_drop(true);
    match command.output().await {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {tool} is not installed");
            None
        }
        Err(error) => panic!("{tool}: {error}"),
    }
}

fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{}{out}{err}", if output.status.success() { "" } else { "failed: " })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_creates_shows_changes_and_deletes() {
    let controller = Controller::start().await;
    let file = controller.folder.path().join("pod.yaml");
    let file = file.to_str().unwrap();
    let home = controller.folder.path().join("namespace.yaml");
    std::fs::write(&home, "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: here\n").unwrap();
    let home = home.to_str().unwrap();
    let pod = |image: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: web\n    {image}\n")
    };
    std::fs::write(file, pod("imagee: demo:1")).unwrap();
    let Some(output) = run("kubectl", &["create", "-f", file], &controller).await else { return };
    assert!(text(&output).contains("unknown field \"spec.containers[0].imagee\""), "{}", text(&output));
    std::fs::write(file, pod("image: demo:1")).unwrap();
    for (arguments, part) in [
        (&["create", "-f", file][..], "pod/web created"),
        (&["create", "-f", file], "pods \"web\" already exists"),
        (&["get", "pods", "-o", "wide"], "web    0/1     Pending   0"),
        (&["get", "pods", "nowhere"], "pods \"nowhere\" not found"),
        (&["apply", "-f", file], "pod/web configured"),
        (&["apply", "-f", file], "pod/web unchanged"),
        (&["label", "pod", "web", "a=b"], "pod/web labeled"),
        (&["get", "pods", "-A", "-l", "a=b", "-o", "name"], "pod/web"),
        (&["describe", "pod", "web"], "PodScheduled   False"),
        (&["get", "nodes"], "No resources found"),
        (&["delete", "pod", "web"], "pod \"web\" deleted"),
        (&["get", "pods"], "No resources found in default namespace."),
        (&["create", "-n", "nowhere", "-f", file], "namespaces \"nowhere\" not found"),
        (&["create", "-f", home], "namespace/here created"),
        (&["create", "-n", "here", "-f", file], "pod/web created"),
    ] {
        let output = run("kubectl", arguments, &controller).await.unwrap();
        assert!(text(&output).contains(part), "{arguments:?}: {}", text(&output));
    }
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_makes_a_pull_secret_by_way_of_yaml() {
    let controller = Controller::start().await;
    let make = ["create", "secret", "docker-registry", "pull", "--docker-server=a.example", "--docker-username=user"];
    let yaml = [&make[..], &["--docker-password=hush", "--dry-run=client", "-o", "yaml"]].concat();
    let Some(output) = run("kubectl", &yaml, &controller).await else { return };
    let file = controller.folder.path().join("secret.yaml");
    std::fs::write(&file, &output.stdout).unwrap();
    let file = file.to_str().unwrap();
    for (arguments, part) in [
        (&["apply", "-f", file][..], "secret/pull created"),
        (&["get", "secrets"], "pull   kubernetes.io/dockerconfigjson   1"),
        (&["describe", "secret", "pull"], ".dockerconfigjson:"),
        (&["patch", "secret", "pull", "-p", "{\"stringData\":{\"x\":\"y\"}}"], "secret/pull patched"),
        (&["get", "secret", "pull", "-o", "jsonpath={.data.x}"], "eQ=="),
        (&["patch", "secret", "pull", "-p", "{\"immutable\":true}"], "secret/pull patched"),
        (&["patch", "secret", "pull", "-p", "{\"stringData\":{\"x\":\"z\"}}"], "field is immutable"),
        (&["delete", "secret", "pull"], "secret \"pull\" deleted"),
    ] {
        let output = run("kubectl", arguments, &controller).await.unwrap();
        assert!(text(&output).contains(part), "{arguments:?}: {}", text(&output));
    }
    controller.stop().await;
}

/// Writes an OCI layout with one image of one layer and gives the digest of its manifest.
fn make_layout(folder: &Path) -> String {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], media_type: &str| -> Value {
        let digest = skeg_protocol::Digest(sha256(bytes)).to_string();
        std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    };
    // An empty tar is 1024 zeros; its digest is also its diff id.
    let layer = put(&[0; 1024], "application/vnd.oci.image.layer.v1.tar");
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
        "config": {"Cmd": ["/bin/true"]},
    });
    let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]});
    let mut manifest = put(manifest.to_string().as_bytes(), media_type);
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
    std::fs::write(folder.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())
        .unwrap();
    std::fs::write(folder.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string()).unwrap();
    manifest["digest"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_pushes_and_pulls_and_is_refused_without_the_token() {
    let controller = Controller::start().await;
    let folder = controller.folder.path();
    let digest = make_layout(&folder.join("layout"));
    std::fs::create_dir(folder.join("certs")).unwrap();
    std::fs::copy(folder.join("data/tls/ca.pem"), folder.join("certs/ca.crt")).unwrap();
    let certs = folder.join("certs").to_str().unwrap().to_owned();
    let source = format!("oci:{}:1", folder.join("layout").display());
    let place = format!("docker://{}/demo/web:1", controller.address);
    let creds = format!("admin:{}", controller.app.admin_token);
    let push = |creds: String| {
        let (certs, source, place) = (certs.clone(), source.clone(), place.clone());
        let controller = &controller;
        async move {
            let arguments = [
                "--insecure-policy",
                "copy",
                "--preserve-digests",
                "--dest-cert-dir",
                &certs,
                "--dest-creds",
                &creds,
                &source,
                &place,
            ];
            run("skopeo", &arguments, controller).await
        }
    };
    let Some(output) = push("admin:wrong".to_owned()).await else { return };
    assert!(text(&output).starts_with("failed: "), "{}", text(&output));
    let output = push(creds.clone()).await.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let arguments = ["--insecure-policy", "inspect", "--cert-dir", &certs, "--creds", &creds, &place];
    let output = run("skopeo", &arguments, &controller).await.unwrap();
    assert!(text(&output).contains(&digest), "{}", text(&output));
    let back = format!("dir:{}", folder.join("back").display());
    let arguments = ["--insecure-policy", "copy", "--src-cert-dir", &certs, "--src-creds", &creds, &place, &back];
    let output = run("skopeo", &arguments, &controller).await.unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let found = crate::images::own(&controller.app.store, "demo/web:1").unwrap().unwrap();
    assert_eq!(found.digest.to_string(), digest);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_registry_takes_pieces_and_refuses_what_does_not_fit() {
    let controller = Controller::start().await;
    let client = &controller.client;
    let octets = |bytes: &[u8]| Some(("application/octet-stream", bytes.to_vec()));
    let begun = client.send(Method::POST, "/v2/demo/blobs/uploads/", None).await.unwrap();
    let place = begun.headers()["location"].to_str().unwrap().to_owned();
    let first = client.send(Method::PATCH, &place, octets(b"hello ")).await.unwrap();
    assert_eq!(first.headers()["range"], "0-5");
    client.send(Method::PATCH, &place, octets(b"world")).await.unwrap();
    let digest = skeg_protocol::Digest(sha256(b"hello world")).to_string();
    let done = client.send(Method::PUT, &format!("{place}?digest={digest}"), None).await.unwrap();
    assert_eq!(done.headers()["docker-content-digest"], digest.as_str());
    client.send(Method::HEAD, &format!("/v2/demo/blobs/{digest}"), None).await.unwrap();
    // Mounted from there it costs no bytes; another repository does not have it otherwise.
    assert!(client.send(Method::GET, &format!("/v2/other/blobs/{digest}"), None).await.is_err());
    let mount = format!("/v2/other/blobs/uploads/?mount={digest}&from=demo");
    assert_eq!(client.send(Method::POST, &mount, None).await.unwrap().status(), 201);
    client.send(Method::GET, &format!("/v2/other/blobs/{digest}"), None).await.unwrap();
    // A wrong digest leaves nothing behind.
    let zeros = format!("sha256:{}", "0".repeat(64));
    let whole = format!("/v2/demo/blobs/uploads/?digest={zeros}");
    assert!(client.send(Method::POST, &whole, octets(b"x")).await.is_err());
    // A manifest may name only what is here.
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = |config: &str| {
        let body = json!({"schemaVersion": 2, "mediaType": media_type, "config": {"digest": config}, "layers": []});
        Some((media_type, body.to_string().into_bytes()))
    };
    assert!(client.send(Method::PUT, "/v2/demo/manifests/1", manifest(&zeros)).await.is_err());
    client.send(Method::PUT, "/v2/demo/manifests/1", manifest(&digest)).await.unwrap();
    let tags = client.json(Method::GET, "/v2/demo/tags/list", None).await.unwrap();
    assert_eq!(tags, json!({"name": "demo", "tags": ["1"]}));
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_are_status_objects_and_change_nothing() {
    let controller = Controller::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    let made = controller.create_pod("web").await;
    let mut bad = made.clone();
    bad["metadata"] = json!({"name": "bad"});
    bad["spec"]["containers"][0]["securityContext"] = json!({"privileged": true});
    let error = controller.client.json(Method::POST, pods, Some(&bad)).await.unwrap_err();
    assert!(is_refusal(&error, "Invalid"));
    let wanted = "Pod \"bad\" is invalid: spec.containers[0].securityContext.privileged: not supported yet: true";
    assert_eq!(error.to_string(), wanted);
    assert!(controller.app.store.get(&pod_key("bad")).unwrap().is_none());
    let mut moved = made.clone();
    moved["spec"]["hostNetwork"] = json!(true);
    let error = controller.client.json(Method::PUT, &format!("{pods}/web"), Some(&moved)).await.unwrap_err();
    assert!(error.to_string().contains("may not change fields other than"), "{error}");
    let patch = Some(("application/merge-patch+json", br#"{"metadata":{"labels":{"a":"b"}}}"#.to_vec()));
    controller.client.send(Method::PATCH, &format!("{pods}/web"), patch).await.unwrap();
    let error = controller.client.json(Method::PUT, &format!("{pods}/web"), Some(&made)).await.unwrap_err();
    assert!(is_refusal(&error, "Conflict"), "{error}");
    let error = controller.client.json(Method::GET, "/api/v1/things", None).await.unwrap_err();
    assert!(is_refusal(&error, "NotFound"), "{error}");
    let large = Some(("application/json", vec![b' '; 4 << 20]));
    assert!(controller.client.send(Method::POST, pods, large).await.is_err());
    controller.stop().await;
}
