//! Files as users bring them, converted unchanged, against golden results. `UPDATE_GOLDEN=1` writes them anew.

#![allow(clippy::unwrap_used, reason = "a test stops at what it does not expect")]

use std::path::{Path, PathBuf};

use skeg_kube::{Bundle, Files, Node, Request, convert_compose, convert_documents, show, yaml};
use skeg_protocol::Digest;
use skeg_protocol::manifest::{Image, ImageSource};

struct Disk;

impl Files for Disk {
    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        std::fs::read(path).map_err(|error| error.to_string())
    }

    fn exists(&self, path: &str) -> bool {
        Path::new(path).exists()
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")
}

fn image(reference: &str) -> Result<Image, String> {
    Ok(Image { reference: reference.to_owned(), digest: Digest([0; 32]), source: ImageSource::Registry })
}

/// Compares with the golden result, in which the folder of the examples is `EXAMPLES`.
fn golden(name: &str, bundle: &Bundle) {
    let examples = folder().join("examples");
    let text = format!("{:#}\n", show(bundle)).replace(examples.to_str().unwrap(), "EXAMPLES");
    let path = folder().join("golden").join(name).with_extension("json");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == golden, "{} differs; UPDATE_GOLDEN=1 shows how", path.display());
    bundle.clone().into_manifest().unwrap();
}

fn kubernetes(name: &str) -> Bundle {
    let text = std::fs::read_to_string(folder().join("examples").join(name).with_extension("yaml")).unwrap();
    let labels = [("kubernetes.io/os", "linux"), ("example.org/sensor", "true")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let node = Node { name: "board-1".to_owned(), labels };
    convert_documents(&yaml::parse(&text).unwrap(), &node, &image).unwrap()
}

fn compose(name: &str, profiles: &[&str]) -> Bundle {
    let file = folder().join("examples").join(name).with_extension("yml");
    let request = Request {
        files: vec![file.to_str().unwrap().to_owned()],
        profiles: profiles.iter().map(|&name| name.to_owned()).collect(),
        ..Request::default()
    };
    convert_compose(&request, &Disk, &image).unwrap_or_else(|fault| panic!("{fault}")).bundle
}

#[test]
fn a_web_application_of_kubernetes() {
    let bundle = kubernetes("k8s-webapp");
    assert_eq!(bundle.pods.len(), 3);
    golden("k8s-webapp", &bundle);
}

#[test]
fn a_daemon_set_runs_where_its_selector_says() {
    let bundle = kubernetes("k8s-edge-agent");
    assert_eq!(bundle.pods.len(), 1);
    golden("k8s-edge-agent", &bundle);
    let text = std::fs::read_to_string(folder().join("examples/k8s-edge-agent.yaml")).unwrap();
    let elsewhere = convert_documents(&yaml::parse(&text).unwrap(), &Node::default(), &image).unwrap();
    assert!(elsewhere.pods.is_empty());
    assert!(elsewhere.notes[0].contains("is not for this device"), "{:?}", elsewhere.notes);
}

#[test]
fn jobs_and_a_database_that_keeps_its_disk() {
    let bundle = kubernetes("k8s-batch");
    assert_eq!((bundle.pods.len(), bundle.jobs.len(), bundle.cron_jobs.len()), (2, 1, 1));
    golden("k8s-batch", &bundle);
}

#[test]
fn the_smallest_compose_file() {
    golden("compose-minimal", &compose("compose-minimal", &[]));
}

#[test]
fn a_shop_of_four_services_and_one_that_only_its_profile_has() {
    let shop = compose("compose-shop", &[]);
    assert_eq!(shop.pods.len(), 5);
    golden("compose-shop", &shop);
    assert_eq!(compose("compose-shop", &["debug"]).pods.len(), 6);
}

#[test]
fn an_unchanged_file_changes_nothing_and_a_changed_template_makes_new_pods() {
    let uids = |bundle: Bundle| -> Vec<_> { bundle.into_manifest().unwrap().pods.iter().map(|pod| pod.uid).collect() };
    assert_eq!(uids(compose("compose-shop", &[])), uids(compose("compose-shop", &[])));
    let text = std::fs::read_to_string(folder().join("examples/k8s-webapp.yaml")).unwrap();
    let convert = |text: &str| convert_documents(&yaml::parse(text).unwrap(), &Node::default(), &image).unwrap();
    let (before, after) = (uids(convert(&text)), uids(convert(&text.replace("changed by each", "changed by this"))));
    assert!(before.iter().all(|uid| !after.contains(uid)), "{before:?} {after:?}");
    let scaled = uids(convert(&text.replace("replicas: 3", "replicas: 4")));
    assert_eq!(before.iter().filter(|uid| scaled.contains(uid)).count(), 3, "more replicas leave the others alone");
}
