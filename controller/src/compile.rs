//! From pods to a node's manifest, and from two manifests to the messages that lead from one to the other. Pure.

use std::collections::BTreeMap;

use skeg_protocol::limits::MAX_PODS;
use skeg_protocol::message::{ManifestBegin, ManifestEnd};
use skeg_protocol::{Manifest, Message, Pod, Uid};

use crate::store::StoredManifest;

/// Puts pods in a manifest's order and leaves out those that cannot be in it, each with the reason.
pub(crate) fn assemble(pods: Vec<Pod>) -> (Vec<Pod>, Vec<(Uid, String)>) {
    let mut by_uid: BTreeMap<Uid, Pod> = BTreeMap::new();
    let mut refused = Vec::new();
    for pod in pods {
        if by_uid.len() >= MAX_PODS {
            refused.push((pod.uid, format!("the node has {MAX_PODS} pods already, more are not possible")));
        } else {
            by_uid.insert(pod.uid, pod);
        }
    }
    let pods: Vec<Pod> = by_uid.into_values().collect();
    (pods, refused)
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
        let store = Database::open(&folder.path().join("store.redb")).unwrap();
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
        let base = Manifest { revision: 4, pods: vec![pod(1, "a"), pod(2, "a"), pod(3, "a")] };
        let pods = vec![pod(1, "a"), pod(3, "b"), pod(4, "a")];
        let target = StoredManifest { manifest: Manifest { revision: 5, pods }, digest: Digest([9; 32]) };
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
}
