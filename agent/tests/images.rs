//! `skegd image`: the same commands with the agent running and without it, and pods that wait for an image.
//!
//! Needs root and /bin/busybox; says so when they are missing.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "what the tests of devices share")]
mod support;

use std::fs;
use std::process::{Output, Stdio};

use serde_json::Value;
use skeg_protocol::manifest::PullPolicy;
use support::needs::{self, needs_root};
use support::{Device, err, out, runs, waits};

fn image(device: &Device, words: &[&str]) -> Output {
    let (command, rest) = words.split_first().unwrap();
    let mut all = device.command(&["image"]);
    all.arg(command).args(rest).stdin(Stdio::null()).output().unwrap()
}

/// Runs `skegd image` with JSON as its output.
fn json(device: &Device, words: &[&str]) -> Value {
    let output = image(device, words);
    assert!(output.status.success(), "{words:?}: {}", err(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn images_are_shown_checked_given_out_and_taken_in_with_and_without_the_agent() {
    needs_root!();
    let mut device = Device::start("images");
    let pod = device.pod(1, "web", "sleep 1000");
    device.controller.want(vec![pod.clone()]);
    device.controller.wait("the pod runs", |told| told.pods.get(&pod.uid).is_some_and(runs));
    let archive = device.folder.path().join("out.tar");
    let archive = archive.to_str().unwrap();
    let digest = device.image.to_string();
    let listed = json(&device, &["ls", "-o", "json"]);
    assert_eq!(listed[0]["digest"], digest.as_str());
    assert_eq!((&listed[0]["needed"], &listed[0]["whole"]), (&true.into(), &true.into()));
    assert!(out(&image(&device, &["ls"])).contains("in use"));
    let refused = image(&device, &["rm", "demo:1"]);
    assert!(!refused.status.success() && err(&refused).contains("is needed by a pod"), "{}", err(&refused));
    assert!(image(&device, &["export", "demo:1", "-f", archive]).status.success());
    assert_eq!(image(&device, &["verify"]).status.code(), Some(0));
    assert_eq!(json(&device, &["prune", "-o", "json"])["removed"], serde_json::json!([]));

    // Without the agent, and without the pod.
    device.controller.want(Vec::new());
    device.controller.wait("the pod is gone", |told| told.pods.is_empty());
    let stopped = device.pod(2, "other", "sleep 1000");
    device.controller.want(vec![stopped.clone()]);
    device.controller.wait("the second pod runs", |told| told.pods.get(&stopped.uid).is_some_and(runs));
    device.power_off();
    let open = device.folder.path().join("state/store/open");
    assert!(!open.exists(), "the store was not closed in order");
    let usage = json(&device, &["usage", "-o", "json"]);
    assert_eq!((usage["images"].as_u64(), usage["reclaimable"].as_u64()), (Some(1), Some(0)));
    let refused = image(&device, &["rm", "demo:1"]);
    assert!(err(&refused).contains("is needed by a pod"), "{}", err(&refused));
    let inspected = json(&device, &["inspect", &digest[..20]]);
    let layer = inspected[0]["layers"][0].as_str().unwrap();
    fs::write(format!("{layer}/bin/busybox"), "damaged").unwrap();
    let verified = image(&device, &["verify"]);
    assert_eq!(verified.status.code(), Some(1), "{}", out(&verified));
    assert!(out(&verified).contains("set aside: layer"));
    let imported = json(&device, &["import", archive, "-o", "json"]);
    assert_eq!(imported[0]["digest"], digest.as_str(), "the archive proves the digest");
    assert_eq!(image(&device, &["verify"]).status.code(), Some(0));
    assert!(!image(&device, &["inspect", "nothing:1"]).status.success());
}

#[test]
fn a_pod_that_may_not_pull_starts_when_its_image_is_imported() {
    needs_root!();
    let source = Device::start("source");
    let pod = source.pod(1, "first", "sleep 1000");
    source.controller.want(vec![pod.clone()]);
    source.controller.wait("the pod runs", |told| told.pods.get(&pod.uid).is_some_and(runs));
    let archive = source.folder.path().join("out.tar");
    let archive = archive.to_str().unwrap();
    assert!(image(&source, &["export", "demo:1", "-f", archive]).status.success());

    let device = Device::start("never");
    let mut never = device.pod(2, "never", "sleep 1000");
    never.containers[0].pull_policy = PullPolicy::Never;
    device.controller.want(vec![never.clone()]);
    device.controller.wait("the pod waits for its image", |told| {
        told.pods.get(&never.uid).and_then(waits).is_some_and(|(reason, _)| reason == "ErrImageNeverPull")
    });
    let imported = image(&device, &["import", archive]);
    assert!(imported.status.success(), "{}", err(&imported));
    device.controller.wait("the pod runs", |told| told.pods.get(&never.uid).is_some_and(runs));
}
