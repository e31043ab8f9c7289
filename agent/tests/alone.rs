//! A device's own projects: what people write is brought up, followed, and survives. Needs root and busybox-static.

#![allow(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

#[allow(dead_code, reason = "what the tests of devices share")]
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::needs::{self, needs_root};
use support::{Device, err, image, out, until};

/// Writes the tests' image as an OCI layout.
fn layout(folder: &Path) -> PathBuf {
    let (digest, served) = image::make();
    let blobs = folder.join("layout/blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let mut size = 0;
    for (_, bytes) in served.values() {
        let name = image::sha256(bytes);
        if name == digest {
            size = bytes.len();
        }
        fs::write(blobs.join(name.to_string().trim_start_matches("sha256:")), bytes).unwrap();
    }
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let entry = json!({"mediaType": manifest, "digest": digest.to_string(), "size": size});
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    fs::write(folder.join("layout/index.json"), index.to_string()).unwrap();
    fs::write(folder.join("layout/oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    folder.join("layout")
}

fn done(device: &Device, words: &[&str]) -> String {
    let output = device.skegd(words);
    assert!(output.status.success(), "skegd {words:?}: {}", err(&output));
    out(&output)
}

/// The pods of the device by name.
fn pods(device: &Device) -> Vec<(String, String, String)> {
    let json: Value = serde_json::from_str(&done(device, &["ps", "-o", "json"])).unwrap();
    let text = |pod: &Value, name: &str| pod[name].as_str().unwrap().to_owned();
    let mut pods: Vec<_> = json["pods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| (format!("{}/{}", text(pod, "namespace"), text(pod, "name")), text(pod, "uid"), text(pod, "phase")))
        .collect();
    pods.sort();
    pods
}

fn names(device: &Device) -> Vec<String> {
    pods(device).into_iter().map(|(name, ..)| name).collect()
}

const COMPOSE: &str = "name: shop\nservices:\n  web:\n    image: hello:1\n    network_mode: none\n    \
    command: ['echo \"it says $$WORD\"; exec sleep 1000']\n    environment: {WORD: '${WORD:-first}'}\n    \
    restart: always\n    stop_grace_period: 1s\n";
const DEPLOYMENT: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: twins}\nspec:\n  replicas: 2\n  \
    selector: {matchLabels: {app: twins}}\n  template:\n    metadata: {labels: {app: twins}}\n    spec:\n      \
    terminationGracePeriodSeconds: 1\n      containers:\n        - {name: main, image: 'hello:1', args: ['exec sleep 1000']}\n";

#[test]
fn projects_are_brought_up_followed_and_survive() {
    needs_root!();
    let mut device = Device::start("alone");
    let folder = device.folder.path().to_owned();
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let layout = layout(&folder);
    done(&device, &["image", "import", layout.to_str().unwrap(), "--name", "hello:1"]);
    let compose = write("compose.yml", COMPOSE);

    // Up, and up again: nothing happens to what is as it should be.
    done(&device, &["up", "-f", &compose]);
    let first = pods(&device);
    assert_eq!(first.len(), 1, "{first:?}");
    assert_eq!((first[0].0.as_str(), first[0].2.as_str()), ("shop/web-1", "Running"));
    let log = until("the first line", || Some(done(&device, &["logs", "web-1"])).filter(|log| !log.is_empty()));
    assert_eq!(log, "it says first\n", "the shell has the dollar sign");
    done(&device, &["up", "-f", &compose]);
    assert_eq!(pods(&device), first);

    // A changed file makes a new pod in place of the old one.
    let changed = write("compose.yml", &COMPOSE.replace("first", "second"));
    done(&device, &["up", "-f", &changed]);
    let second = until("the new pod alone", || {
        Some(pods(&device)).filter(|pods| pods.len() == 1 && pods[0].1 != first[0].1 && pods[0].2 == "Running")
    });

    // What is stopped stays so, whatever happens to the agent, until it is started.
    done(&device, &["stop", "shop"]);
    device.kill_agent();
    assert_eq!(names(&device), Vec::<String>::new());
    done(&device, &["start", "--timeout", "60", "shop"]);
    assert_eq!(pods(&device), second);

    // Kubernetes' documents beside it, and a reboot of both without any command.
    let twins = write("twins.yaml", DEPLOYMENT);
    done(&device, &["up", "-f", &twins]);
    assert_eq!(pods(&device).len(), 3);
    let projects = done(&device, &["projects"]);
    assert!(projects.contains("shop") && projects.contains("twins"), "{projects}");
    device.power_off();
    device.power_on();
    until("all pods again", || {
        let answers = device.skegd(&["ps"]).status.success();
        (answers && pods(&device).iter().filter(|(.., phase)| phase == "Running").count() == 3).then_some(())
    });

    // What is wrong is named, and changes nothing.
    let wrong = write("wrong.yml", &COMPOSE.replace("restart: always", "restart: sometimes"));
    let refused = device.skegd(&["up", "-f", &wrong]);
    assert!(!refused.status.success());
    assert!(err(&refused).contains("services.web.restart: \"sometimes\" must be no, always"), "{}", err(&refused));
    let job = "apiVersion: batch/v1\nkind: Job\nmetadata: {name: once}\nspec: {template: {spec: {restartPolicy: Never, \
        containers: [{name: a, image: 'hello:1'}]}}}\n";
    let refused = device.skegd(&["up", "-f", &write("job.yaml", job)]);
    assert!(err(&refused).contains("Job default/once: this device does not run jobs yet"), "{}", err(&refused));
    let clash = write("clash.yml", &COMPOSE.replace("name: shop", "name: shop2"));
    let gone = write("gone.yml", &COMPOSE.replace("hello:1", "nobody.invalid/none:1"));
    let refused = device.skegd(&["up", "-f", &gone]);
    assert!(!refused.status.success() && err(&refused).contains("nobody.invalid"), "{}", err(&refused));
    assert!(done(&device, &["config", "-f", &clash]).contains("\"project\": \"shop2\""));
    assert_eq!(pods(&device).len(), 3);

    done(&device, &["down", "-p", "twins"]);
    done(&device, &["down", "-f", &changed]);
    assert_eq!(names(&device), Vec::<String>::new());
    assert!(!device.skegd(&["down", "-p", "twins"]).status.success(), "it is forgotten");
    device.power_off();
}

#[test]
fn a_folder_of_documents_is_one_project_that_loses_what_it_no_longer_says() {
    needs_root!();
    let mut device = Device::start("alone-folder");
    let folder = device.folder.path().join("manifests");
    fs::create_dir(&folder).unwrap();
    let layout = layout(device.folder.path());
    done(&device, &["image", "import", layout.to_str().unwrap(), "--name", "hello:1"]);
    fs::write(folder.join("compose.yml"), COMPOSE).unwrap();
    fs::write(folder.join("twins.yaml"), DEPLOYMENT).unwrap();
    fs::write(folder.join("README"), "not for us").unwrap();
    let folder_text = folder.to_str().unwrap();
    done(&device, &["apply", folder_text]);
    assert_eq!(pods(&device).len(), 3);
    fs::remove_file(folder.join("twins.yaml")).unwrap();
    done(&device, &["apply", folder_text]);
    until("the twins to be gone", || (names(&device).len() == 1).then_some(()));
    fs::write(folder.join("broken.yaml"), "kind: Pod\nmetadata: {name: a}\nspec: {contaners: []}\n").unwrap();
    let refused = device.skegd(&["apply", folder_text]);
    assert!(!refused.status.success() && err(&refused).contains("spec.contaners"), "{}", err(&refused));
    assert_eq!(names(&device).len(), 1, "a folder is taken whole or not at all");
    device.power_off();
}
