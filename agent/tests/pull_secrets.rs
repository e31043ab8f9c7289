//! Pods whose images lie in a registry with a password behind TLS (Debian's), and the secrets that open it.
//!
//! Needs root, /bin/busybox, docker-registry and skopeo; says so when one is missing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../images/tests/support/mod.rs"]
mod registry;
#[allow(dead_code, reason = "what the tests of devices share")]
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use registry::RealRegistry;
use skeg_protocol::Pod;
use skeg_protocol::manifest::{Image, ImageSource};
use skeg_protocol::message::{PullSecret, PullSecrets};
use support::needs::{self, needs_root};
use support::{Device, err, runs, waits};

/// `user:secret`, the password by bcrypt.
const HTPASSWD: &str = "user:$2b$04$HJXneTLvsfsdBrdnpdcLoeh55h2PW4U/NklnZp6Xe3l/.8EvKRuM6\n";

/// A registry with a password and a certificate of its own in `folder`.
fn locked(folder: &Path) -> Result<RealRegistry, String> {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let path = |name: &str| folder.join(name).display().to_string();
    fs::write(path("cert.pem"), made.cert.pem()).unwrap();
    fs::write(path("key.pem"), made.signing_key.serialize_pem()).unwrap();
    fs::write(path("htpasswd"), HTPASSWD).unwrap();
    support::own_network();
    RealRegistry::start(&format!(
        "  tls:\n    certificate: {}\n    key: {}\nauth:\n  htpasswd:\n    realm: test\n    path: {}\n",
        path("cert.pem"),
        path("key.pem"),
        path("htpasswd"),
    ))
}

/// Pushes the image that a device has, as it is.
fn push(source: &Device, registry: &str) -> Result<(), String> {
    let pod = source.pod(1, "first", "sleep 1000");
    source.controller.want(vec![pod.clone()]);
    source.controller.wait("the pod runs", |told| told.pods.get(&pod.uid).is_some_and(runs));
    let layout = source.folder.path().join("layout");
    let exported = source.skegd(&["image", "export", "demo:1", "-f", &format!("{}/", layout.display())]);
    assert!(exported.status.success(), "{}", err(&exported));
    let pushed = Command::new("skopeo")
        .args(["copy", "-q", "--preserve-digests", "--dest-tls-verify=false", "--dest-creds", "user:secret"])
        .arg(format!("oci:{}", layout.display()))
        .arg(format!("docker://{registry}/private/demo:1"))
        .output()
        .map_err(|error| format!("skopeo cannot be started: {error}"))?;
    assert!(pushed.status.success(), "{}", err(&pushed));
    Ok(())
}

fn secrets(registry: &str, password: &str) -> PullSecrets {
    let auth = BASE64_STANDARD.encode(format!("user:{password}"));
    PullSecrets {
        secrets: vec![PullSecret {
            namespace: "default".try_into().unwrap(),
            name: "pull".try_into().unwrap(),
            config: format!(r#"{{"auths": {{"{registry}": {{"auth": "{auth}"}}}}}}"#),
        }],
    }
}

fn says(device: &Device, pod: &Pod, words: &str) {
    device.controller.wait(words, |told| {
        let waiting = told.pods.get(&pod.uid).and_then(waits);
        waiting.is_some_and(|(_, message)| message.contains(words))
    });
}

/// Whether a file below a folder holds a text.
fn is_written(folder: &Path, text: &str) -> bool {
    fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let holds = |bytes: Vec<u8>| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        (kind.is_dir() && is_written(&path, text)) || (kind.is_file() && fs::read(&path).is_ok_and(holds))
    })
}

#[test]
fn a_pod_pulls_with_its_secret_which_may_come_late_be_wrong_change_and_go() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let registry = match locked(folder.path()) {
        Ok(registry) => registry,
        Err(why) => return println!("skipped: {why}"),
    };
    let source = Device::start("source");
    if let Err(why) = push(&source, &registry.address) {
        return println!("skipped: {why}");
    }
    let address = &registry.address;
    let more = format!("[[registry]]\nhost = {address:?}\nca_file = {:?}\n", folder.path().join("cert.pem"));
    let device = Device::start_with("private", &more);
    let mut pod = device.pod(2, "private", "sleep 1000");
    pod.image_pull_secrets = vec!["pull".try_into().unwrap()];
    pod.containers[0].image =
        Image { reference: format!("{address}/private/demo:1"), digest: source.image, source: ImageSource::Registry };
    device.controller.want(vec![pod.clone()]);
    says(&device, &pod, "pull secret \"pull\" has not come from the controller yet");
    device.controller.share(secrets(address, "hush-hush"));
    // The last that was asked is the test's controller, which has nothing.
    device.controller.wait("the pull with the wrong password to fail", |told| {
        let waiting = told.pods.get(&pod.uid).and_then(waits);
        waiting.is_some_and(|(_, message)| message.contains("MANIFEST_UNKNOWN") && !message.contains("pull secret"))
    });
    assert!(device.log().contains("the registry denies it to user \"user\""));
    device.controller.share(PullSecrets::default());
    says(&device, &pod, "no usable pull secret \"pull\" in namespace \"default\"");
    device.controller.share(secrets(address, "secret"));
    device.controller.wait("the pod runs", |told| told.pods.get(&pod.uid).is_some_and(runs));
    // Neither on the disk nor in the log: the password is nowhere, plain or in base64.
    for password in
        ["hush-hush".to_owned(), BASE64_STANDARD.encode("user:hush-hush"), BASE64_STANDARD.encode("user:secret")]
    {
        assert!(!is_written(device.folder.path(), &password), "{password} was written");
    }
}
