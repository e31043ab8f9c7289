//! From pods to a node's manifest: which of them can be in it, and what else they need there. Pure.

use std::collections::{BTreeMap, BTreeSet};

use skeg_protocol::limits::MAX_PODS;
use skeg_protocol::manifest::{DataKind, DataSource, EnvValue, HostPorts, Projection, VolumeSource};
use skeg_protocol::{Pod, Uid};

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

/// The config maps and secrets that pods name, in a manifest's order: kind, namespace, name.
pub(crate) fn data_named(pods: &[Pod]) -> BTreeSet<(DataKind, String, String)> {
    let mut named = BTreeSet::new();
    for pod in pods {
        let mut name = |source: &DataSource| {
            named.insert((source.kind, pod.namespace.as_str().to_owned(), source.name.clone()));
        };
        for container in pod.all_containers() {
            container.env_from.iter().for_each(|from| name(&from.source));
            for variable in &container.env {
                if let EnvValue::Key { source, .. } = &variable.value {
                    name(source);
                }
            }
        }
        for volume in &pod.volumes {
            let VolumeSource::Projected { sources, .. } = &volume.source else { continue };
            for projection in sources {
                if let Projection::Data { source, .. } = projection {
                    name(source);
                }
            }
        }
    }
    named
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skeg_protocol::manifest::{Image, ImageSource};
    use skeg_protocol::{Digest, Manifest};

    use super::*;
    use crate::pods::convert;

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

    #[test]
    fn what_pods_read_is_found_wherever_they_name_it() {
        let object = json!({
            "metadata": {"name": "p", "namespace": "default"},
            "spec": {
                "containers": [{
                    "name": "c", "image": "x", "envFrom": [{"configMapRef": {"name": "a"}}],
                    "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "b", "key": "k"}}}],
                }],
                "initContainers": [{"name": "i", "image": "x", "envFrom": [{"secretRef": {"name": "c"}}]}],
                "volumes": [{"name": "v", "configMap": {"name": "d"}}],
            },
        });
        let image = |_, reference: &str| crate::manager::unresolved(reference);
        let named = data_named(&[convert(&object, image).unwrap()]);
        let words: Vec<_> = named.iter().map(|(kind, _, name)| (*kind == DataKind::Secret, name.as_str())).collect();
        assert_eq!(words, [(false, "a"), (false, "d"), (true, "b"), (true, "c")]);
    }
}
