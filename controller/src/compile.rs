//! From pods to a node's manifest, and from two manifests to the messages that lead from one to the other. Pure.

use std::collections::BTreeMap;

use skeg_protocol::limits::MAX_PODS;
use skeg_protocol::manifest::HostPorts;
use skeg_protocol::message::{ManifestBegin, ManifestEnd};
use skeg_protocol::{Manifest, Message, Pod, Uid};

use crate::store::StoredManifest;

/// Puts pods in a manifest's order and leaves out those that cannot be in it, each with the reason. Pods come in the
/// order of their claims: of two that want the same host port, the first gets it.
pub(crate) fn assemble(pods: Vec<Pod>) -> (Vec<Pod>, Vec<(Uid, String)>) {
    let (mut taken, mut refused) = (BTreeMap::new(), Vec::new());
    let mut ports = HostPorts::default();
    for pod in &pods {
        let obstacle = if taken.len() >= MAX_PODS {
            Some(format!("the node has {MAX_PODS} pods already, more are not possible"))
        } else {
            ports.add(pod).err().map(|clash| clash.to_string())
        };
        match obstacle {
            Some(obstacle) => refused.push((pod.uid, obstacle)),
            None => drop(taken.insert(pod.uid, pod.clone())),
        }
    }
    (taken.into_values().collect(), refused)
}

/// The messages that bring a device from `base` (or nothing) to `target`.
pub(crate) fn difference(base: Option<&Manifest>, target: &StoredManifest) -> Vec<Message> {
    let empty = Manifest::default();
    let base = base.unwrap_or(&empty);
    let manifest = &target.manifest;
    let removed = base.pods.iter().map(|pod| pod.uid).filter(|uid| manifest.pod(*uid).is_none()).collect();
    let begin = ManifestBegin { revision: manifest.revision, base: base.revision, removed };
    let changed = manifest.pods.iter().filter(|pod| base.pod(pod.uid) != Some(pod));
    let mut messages = vec![Message::from(begin)];
    messages.extend(changed.cloned().map(Message::ManifestPod));
    messages.push(ManifestEnd { revision: manifest.revision, digest: target.digest }.into());
    messages
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skeg_protocol::Digest;
    use skeg_protocol::manifest::{Image, ImageSource};

    use super::*;
    use crate::pods::convert;
    use crate::store::Database;

    fn pod(number: u8, command: &str) -> Pod {
        let object = json!({
            "metadata": {"name": format!("p{number}"), "namespace": "default"},
            "spec": {"containers": [{"name": "c", "image": "x", "command": [command]}]},
        });
        let image = |_, reference: &str| Image {
            reference: reference.to_owned(),
            digest: Digest([0; 32]),
            source: ImageSource::Registry,
        };
        Pod { uid: Uid([number; 16]), ..convert(&object, image).unwrap() }
    }

    #[test]
    fn a_revision_grows_only_with_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let store = Database::open(&folder.path().join("store.redb"), &[7; 32]).unwrap();
        let (one, new) = store.advance_manifest("n", vec![pod(1, "a")], 0).unwrap();
        assert_eq!((one.manifest.revision, new), (1, true));
        let (same, new) = store.advance_manifest("n", vec![pod(1, "a")], 0).unwrap();
        assert_eq!((same, new), (one.clone(), false));
        let (above, _) = store.advance_manifest("n", vec![pod(1, "a")], 40).unwrap();
        assert_eq!((above.manifest.revision, above.digest), (41, one.digest));
        for number in 2..12 {
            store.advance_manifest("n", vec![pod(number, "a")], 0).unwrap();
        }
        assert_eq!(store.manifest("n", 41).unwrap(), None);
        assert_eq!(store.newest_manifest("n").unwrap().manifest.revision, 51);
        assert_eq!(store.newest_manifest("other").unwrap(), StoredManifest::empty());
    }

    #[test]
    fn only_what_changed_is_sent() {
        let base = Manifest { revision: 4, pods: vec![pod(1, "a"), pod(2, "a"), pod(3, "a")], ..Manifest::default() };
        let pods = vec![pod(1, "a"), pod(3, "b"), pod(4, "a")];
        let target =
            StoredManifest { manifest: Manifest { revision: 5, pods, ..Manifest::default() }, digest: Digest([9; 32]) };
        assert_eq!(
            difference(Some(&base), &target),
            [
                ManifestBegin { revision: 5, base: 4, removed: vec![Uid([2; 16])] }.into(),
                Message::ManifestPod(pod(3, "b")),
                Message::ManifestPod(pod(4, "a")),
                ManifestEnd { revision: 5, digest: Digest([9; 32]) }.into(),
            ]
        );
        assert_eq!(difference(None, &target).len(), 5);
    }

    #[test]
    fn a_node_takes_so_many_pods_and_no_more() {
        let pods = (0..=MAX_PODS).rev().map(|number| {
            let mut pod = pod(0, "a");
            pod.uid.0[..8].copy_from_slice(&(number as u64).to_be_bytes());
            pod
        });
        let (taken, refused) = assemble(pods.collect());
        assert_eq!((taken.len(), refused.len()), (MAX_PODS, 1));
        assert!(taken.is_sorted_by_key(|pod| pod.uid));
    }

    #[test]
    fn of_two_pods_with_one_host_port_the_first_gets_it() {
        let port = skeg_protocol::manifest::Port { container_port: 80, host_port: Some(8080), ..Default::default() };
        let [mut first, mut second] = [pod(9, "a"), pod(1, "a")];
        first.containers[0].ports.push(port.clone());
        second.containers[0].ports.push(port);
        let (taken, refused) = assemble(vec![first.clone(), second.clone(), pod(3, "a")]);
        assert_eq!(taken.iter().map(|pod| pod.uid.0[0]).collect::<Vec<_>>(), [3, 9]);
        assert_eq!(refused.len(), 1);
        assert!(refused[0].0 == second.uid && refused[0].1.contains("8080"), "{refused:?}");
        assert_eq!(Manifest { revision: 1, pods: taken, ..Manifest::default() }.validate(), Ok(()));
    }
}
