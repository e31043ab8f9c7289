//! The rules that a manifest must keep.

use super::*;
use crate::id::{Digest, Uid};

fn pod(number: u8, host_port: Option<u16>, host_ip: Option<[u8; 4]>) -> Pod {
    let port = Port { container_port: 80, host_port, host_ip: host_ip.map(Into::into), ..Port::default() };
    let image = Image { reference: "web:1".to_owned(), digest: Digest([1; 32]), source: ImageSource::Registry };
    let container = Container { name: "web".try_into().unwrap(), image, ports: vec![port], ..Container::default() };
    Pod {
        uid: Uid([number; 16]),
        namespace: "default".try_into().unwrap(),
        name: format!("web-{number}").as_str().try_into().unwrap(),
        containers: vec![container],
        ..Pod::default()
    }
}

fn problem(pods: Vec<Pod>) -> String {
    Manifest { revision: 1, pods, ..Manifest::default() }
        .validate()
        .map_or_else(|invalid| invalid.to_string(), |()| String::new())
}

#[test]
fn a_host_port_belongs_to_one_pod() {
    assert_eq!(problem(vec![pod(1, Some(8080), None), pod(2, Some(8081), None), pod(3, None, None)]), "");
    assert_eq!(problem(vec![pod(1, Some(80), Some([127, 0, 0, 1])), pod(2, Some(80), Some([127, 0, 0, 2]))]), "");
    assert_eq!(
        problem(vec![pod(1, Some(80), Some([127, 0, 0, 1])), pod(2, Some(80), None)]),
        "spec.containers[0].ports: host port 80 is already published by default/web-1"
    );
}

#[test]
fn pods_are_sorted_and_named_once() {
    assert_eq!(problem(vec![pod(2, None, None), pod(1, None, None)]), "pods[1].uid: must be sorted and unique");
    let mut twin = pod(2, None, None);
    twin.name = pod(1, None, None).name;
    assert_eq!(problem(vec![pod(1, None, None), twin]), "metadata.name: default/web-1 appears twice");
}

#[test]
fn a_broken_rule_names_its_field() {
    let broken = |change: fn(&mut Pod)| {
        let mut pod = pod(1, None, None);
        change(&mut pod);
        pod.validate().unwrap_err().field
    };
    assert_eq!(broken(|pod| pod.containers.clear()), "spec.containers");
    assert_eq!(broken(|pod| pod.name = "A".try_into().unwrap()), "metadata.name");
    assert_eq!(broken(|pod| pod.containers.push(pod.containers[0].clone())), "spec.containers[1].name");
    assert_eq!(broken(|pod| pod.containers[0].image.reference.clear()), "spec.containers[0].image");
    assert_eq!(broken(|pod| pod.containers[0].working_dir = Some("/a/../b".into())), "spec.containers[0].workingDir");
    assert_eq!(broken(|pod| pod.containers[0].ports[0].host_port = Some(0)), "spec.containers[0].ports[0]");
    assert_eq!(
        broken(|pod| pod.containers[0].env.push(EnvVar { name: "A=B".into(), value: EnvValue::default() })),
        "spec.containers[0].env[0]"
    );
    assert_eq!(
        broken(|pod| pod.containers[0].mounts.push(VolumeMount {
            volume: "gone".try_into().unwrap(),
            path: "/data".into(),
            ..VolumeMount::default()
        })),
        "spec.containers[0].volumeMounts[0].name"
    );
}
