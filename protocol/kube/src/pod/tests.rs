//! Pods as people write them, and what becomes of them.

use std::net::IpAddr;

use skeg_protocol::Digest;
use skeg_protocol::manifest::*;

use super::*;

fn image(_: usize, reference: &str) -> Result<Image, String> {
    if reference.contains(char::is_uppercase) {
        return Err(format!("{reference:?} is not an image reference"));
    }
    Ok(Image { reference: reference.to_owned(), digest: Digest([1; 32]), source: ImageSource::Registry })
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "labels": {"app": "web"}},
        "spec": {
            "restartPolicy": "OnFailure",
            "securityContext": {"runAsUser": 1000, "runAsNonRoot": true},
            "containers": [{
                "name": "web", "image": "demo-web:1", "args": ["--port", "80"],
                "env": [{"name": "A", "value": "b"}],
                "resources": {"limits": {"memory": "64Mi", "cpu": "500m", "skeg.dev/pids": 20}, "requests": {"cpu": "0.25"}},
                "ports": [{"containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1"}],
                "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": true}],
                "securityContext": {"runAsUser": 5, "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}},
            }],
            "volumes": [{"name": "data", "emptyDir": {"medium": "Memory"}}],
        },
    })
}

fn fault(pointer: &str, value: Value) -> String {
    let mut pod = pod();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    pod.pointer_mut(parent).unwrap()[name] = value;
    convert(&pod, image).unwrap_err().to_string()
}

#[test]
fn a_pod_arrives_with_all_it_says() {
    let pod = convert(&pod(), image).unwrap();
    let container = &pod.containers[0];
    assert_eq!(pod.restart_policy, RestartPolicy::OnFailure);
    assert_eq!(pod.termination_grace_seconds, 30);
    assert!(!pod.host_users);
    assert_eq!(
        container.limits,
        Limits { memory_bytes: Some(64 << 20), cpu_millis: Some(500), pids: Some(20), ..Limits::default() }
    );
    assert_eq!(container.security.user, Some(5));
    assert!(container.security.run_as_non_root);
    assert_eq!(container.security.drop_capabilities, ["ALL"]);
    assert_eq!(container.ports[0].host_ip, Some(IpAddr::from([127, 0, 0, 1])));
    assert_eq!(pod.volumes[0].source, VolumeSource::EmptyDir(EmptyDir { memory: true, ..EmptyDir::default() }));
}

#[test]
fn users_are_the_pod_s_own_unless_it_says_otherwise() {
    let mut pod = pod();
    pod["spec"]["hostUsers"] = json!(true);
    assert!(convert(&pod, image).unwrap().host_users);
    pod["spec"]["hostUsers"] = json!(false);
    assert!(!convert(&pod, image).unwrap().host_users);
    pod["spec"]["hostNetwork"] = json!(true);
    pod["spec"]["containers"][0]["ports"] = json!([]);
    let refused = convert(&pod, image).unwrap_err().to_string();
    assert_eq!(refused, "spec.hostUsers: false must be true or left out when hostNetwork is true");
}

#[test]
fn unknown_fields_are_named_with_their_value() {
    assert_eq!(
        fault("/spec/containers/0/imagee", json!("x")),
        "strict decoding error: unknown field \"spec.containers[0].imagee\" (value \"x\")"
    );
    assert!(fault("/spec/replicas", json!(3)).contains("unknown field \"spec.replicas\" (value 3)"));
    assert!(fault("/speck", json!({})).contains("unknown field \"speck\""));
}

#[test]
fn what_a_device_does_not_do_is_refused() {
    for (pointer, value, start) in [
        ("/spec/resources", json!({"limits": {}}), "spec.resources: not supported yet"),
        ("/spec/hostPID", json!(true), "spec.hostPID: not supported yet: true"),
        (
            "/spec/containers/0/securityContext/privileged",
            json!(true),
            "spec.containers[0].securityContext.privileged: not supported yet: true",
        ),
        ("/spec/containers/0/volumeDevices", json!([{"name": "a"}]), "spec.containers[0].volumeDevices: not supported"),
        ("/spec/containers/0/env/0/valueFrom", json!({"fileKeyRef": {"key": "a"}}), ""),
        ("/spec/volumes/0/nfs", json!({"server": "a"}), "spec.volumes[0].nfs: not supported yet"),
        ("/spec/containers/0/resources/limits/nvidia.com~1gpu", json!(1), ""),
    ] {
        let text = fault(pointer, value);
        assert!(text.starts_with(start), "{pointer}: {text}");
    }
}

#[test]
fn bad_values_are_named_with_their_rule() {
    for (pointer, value, part) in [
        ("/spec/containers/0/image", json!(5), "spec.containers[0].image: 5 must be a text"),
        ("/spec/containers/0/image", json!("Demo:1"), "spec.containers[0].image: \"Demo:1\" is not an image reference"),
        ("/spec/containers/0/name", json!("Web"), "spec.containers[0].name: \"Web\" must be a DNS label"),
        ("/spec/restartPolicy", json!("Sometimes"), "spec.restartPolicy: \"Sometimes\" must be Always"),
        ("/spec/containers/0/ports/0/containerPort", json!(70000), "ports[0].containerPort: 70000 is out of range"),
        ("/spec/containers/0/resources/limits/memory", json!("lots"), "resources.limits[memory]: \"lots\" must be"),
        ("/spec/containers/0/securityContext/capabilities", json!({"add": ["FLY"]}), "\"FLY\" is no capability"),
        ("/spec/containers", json!([]), "spec.containers: at least one is needed"),
        ("/spec/terminationGracePeriodSeconds", json!(-1), "spec.terminationGracePeriodSeconds: -1 is out of range"),
    ] {
        let text = fault(pointer, value);
        assert!(text.contains(part), "{pointer}: {text}");
    }
}

#[test]
fn empty_fields_that_tools_write_out_do_no_harm() {
    let mut pod = pod();
    pod["spec"]["affinity"] = json!({});
    pod["spec"]["initContainers"] = json!([]);
    pod["metadata"]["creationTimestamp"] = Value::Null;
    pod["spec"]["containers"][0]["resources"] = json!({});
    convert(&pod, image).unwrap();
}

#[test]
fn probes_find_named_ports_and_have_kubernetes_defaults() {
    let mut pod = pod();
    let container = &mut pod["spec"]["containers"][0];
    container["ports"][0]["name"] = json!("http");
    container["livenessProbe"] = json!({"httpGet": {"port": "http", "path": "healthz", "scheme": "HTTPS"}});
    container["readinessProbe"] = json!({"tcpSocket": {"port": 81}, "successThreshold": 2, "timeoutSeconds": 7});
    container["startupProbe"] = json!({"grpc": {"port": 9}, "failureThreshold": 30, "periodSeconds": 1});
    container["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 3}}, "stopSignal": "SIGUSR1"});
    let container = &convert(&pod, image).unwrap().containers[0];
    let liveness = container.probes.liveness.as_ref().unwrap();
    let get = HttpGet { https: true, port: 80, path: "/healthz".into(), ..HttpGet::default() };
    assert_eq!(liveness.action, Handler::HttpGet(get));
    assert_eq!((liveness.period_ms, liveness.timeout_ms, liveness.failure_threshold), (10_000, 1000, 3));
    let readiness = container.probes.readiness.as_ref().unwrap();
    assert_eq!((readiness.success_threshold, readiness.timeout_ms), (2, 7000));
    assert_eq!(container.probes.startup.as_ref().unwrap().failure_threshold, 30);
    assert!(container.probes.ignore_image);
    assert_eq!(container.lifecycle.pre_stop, Some(Handler::Sleep { seconds: 3 }));
    assert_eq!(container.lifecycle.stop_signal, Some(10));
    let at = "/spec/containers/0/livenessProbe";
    assert!(fault(at, json!({"tcpSocket": {"port": "http"}})).contains("tcpSocket.port: \"http\" is no port of this"));
    assert!(fault(at, json!({"exec": {"command": ["a"]}, "grpc": {"port": 1}})).contains("must have exactly one of"));
    assert!(fault(at, json!({"sleep": {"seconds": 1}})).contains("unknown field"));
    assert!(fault(at, json!({"exec": {}})).contains("livenessProbe.exec.command: must not be empty"));
}

#[test]
fn init_containers_come_first_and_only_sidecars_are_asked_how_they_are() {
    let mut pod = pod();
    let probe = json!({"exec": {"command": ["true"]}});
    pod["spec"]["initContainers"] = json!([
        {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always", "livenessProbe": probe},
        {"name": "prepare", "image": "busybox:1"},
    ]);
    assert_eq!(image_references(&pod), ["proxy:1", "busybox:1", "demo-web:1"]);
    let seen = std::cell::RefCell::new(Vec::new());
    let converted = convert(&pod, |index, reference| {
        seen.borrow_mut().push((index, reference.to_owned()));
        image(index, reference)
    });
    let converted = converted.unwrap();
    assert_eq!(converted.init_containers[0].restart_policy, Some(RestartPolicy::Always));
    assert_eq!(converted.init_containers[1].restart_policy, None);
    assert_eq!(seen.borrow()[2], (2, "demo-web:1".to_owned()));
    pod["spec"]["initContainers"][1]["livenessProbe"] = probe;
    let text = convert(&pod, image).unwrap_err().to_string();
    assert!(text.starts_with("spec.initContainers[1].livenessProbe: is only for"), "{text}");
}

#[test]
fn environment_and_files_name_their_sources() {
    let mut pod = pod();
    let container = &mut pod["spec"]["containers"][0];
    container["envFrom"] = json!([{"prefix": "X_", "secretRef": {"name": "s", "optional": true}}]);
    container["env"] = json!([
        {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
        {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
    ]);
    pod["spec"]["volumes"][0] = json!({"name": "data", "projected": {"defaultMode": 0o400, "sources": [
        {"secret": {"name": "s", "items": [{"key": "k", "path": "a/b", "mode": 0o440}]}},
        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]}});
    let pod = convert(&pod, image).unwrap();
    let container = &pod.containers[0];
    let secret = |optional| DataSource { kind: DataKind::Secret, name: "s".into(), optional };
    assert_eq!(container.env_from, [EnvFrom { prefix: "X_".into(), source: secret(true) }]);
    assert!(matches!(&container.env[0].value, EnvValue::Key { key, .. } if key == "k"));
    assert_eq!(container.env[1].value, EnvValue::Field(PodField::Label("app".into())));
    let memory = ResourceField { container: None, resource: ResourceName::LimitsMemory, divisor_millis: 1000 << 20 };
    assert_eq!(container.env[2].value, EnvValue::Resource(memory));
    let VolumeSource::Projected { sources, default_mode } = &pod.volumes[0].source else { panic!("{:?}", pod.volumes) };
    let items = vec![KeyPath { key: "k".into(), path: "a/b".into(), mode: Some(0o440) }];
    assert_eq!(sources[0], Projection::Data { source: secret(false), items });
    assert_eq!(*default_mode, 0o400);
}

#[test]
fn volumes_and_mounts_arrive_with_all_they_say() {
    let mut pod = pod();
    pod["spec"]["volumes"] = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "db"}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
        {"name": "host", "hostPath": {"path": "/etc/machine-id", "type": "File"}},
        {"name": "map", "configMap": {"name": "m", "optional": true}},
    ]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([
        {"name": "data", "mountPath": "/a", "subPath": "cash$"},
        {"name": "data", "mountPath": "/b", "subPathExpr": "$(A)"},
    ]);
    let pod = convert(&pod, image).unwrap();
    let source = |index: usize| &pod.volumes[index].source;
    assert_eq!(*source(0), VolumeSource::Persistent { name: "db".into(), read_only: false, like_image: false });
    assert_eq!(*source(1), VolumeSource::EmptyDir(EmptyDir { memory: true, size_limit: Some(8 << 20), mode: None }));
    assert_eq!(*source(2), VolumeSource::HostPath { path: "/etc/machine-id".into(), kind: HostPathKind::File });
    let mounts = &pod.containers[0].mounts;
    assert_eq!(mounts[0].sub_path.as_deref(), Some("cash$$"), "a plain path is not expanded");
    assert_eq!(mounts[1].sub_path.as_deref(), Some("$(A)"));
}

#[test]
fn what_a_pod_says_of_itself_arrives() {
    let mut pod = pod();
    pod["metadata"]["ownerReferences"] = json!([{"kind": "ReplicaSet"}]);
    let spec = pod["spec"].as_object_mut().unwrap();
    for (name, value) in [
        ("hostname", json!("box")),
        ("subdomain", json!("db")),
        ("shareProcessNamespace", json!(true)),
        ("activeDeadlineSeconds", json!(60)),
        ("priorityClassName", json!("system-node-critical")),
        ("serviceAccountName", json!("robot")),
        ("dnsPolicy", json!("None")),
        (
            "dnsConfig",
            json!({"nameservers": ["10.0.0.1"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}]}),
        ),
        ("hostAliases", json!([{"ip": "10.1.1.1", "hostnames": ["db.old"]}])),
        (
            "securityContext",
            json!({"fsGroup": 7, "supplementalGroups": [8], "sysctls": [{"name": "a.b", "value": "1"}]}),
        ),
    ] {
        spec.insert(name.to_owned(), value);
    }
    let pod = convert(&pod, image).unwrap();
    assert_eq!(pod.labels, [("app".to_owned(), "web".to_owned())]);
    assert_eq!((pod.hostname.as_deref(), pod.subdomain.as_deref()), (Some("box"), Some("db")));
    assert!(pod.share_processes);
    assert_eq!((pod.active_deadline_seconds, pod.priority), (Some(60), 2_000_001_000));
    assert_eq!((pod.dns.policy, pod.dns.options[0].as_str()), (DnsPolicy::None, "ndots:2"));
    assert_eq!(pod.host_aliases[0].ip, Some(IpAddr::from([10, 1, 1, 1])));
    assert_eq!((pod.fs_group, &pod.supplemental_groups), (Some(7), &vec![8]));
    assert_eq!(pod.sysctls, [("a.b".to_owned(), "1".to_owned())]);
    assert_eq!(pod.service_account, "robot");
}

#[test]
fn resources_know_requests_pages_and_devices() {
    let limits = json!({"memory": "64Mi", "hugepages-2Mi": "4Mi", "device.skeg.dev/snd_timer": 1});
    let mut pod = pod();
    pod["spec"]["containers"][0]["resources"] = json!({"limits": limits, "requests": {"cpu": "100m"}});
    let container = &convert(&pod, image).unwrap().containers[0];
    assert_eq!(container.requests.cpu_millis, Some(100));
    assert_eq!(container.requests.memory_bytes, Some(64 << 20), "the limit is the request where there is none");
    assert_eq!(container.limits.huge_pages, [(2 << 20, 4 << 20)]);
    assert_eq!(container.devices[0].path, "/dev/snd/timer");
    let text = fault("/spec/containers/0/resources", json!({"limits": {"memory": 1}, "requests": {"memory": 2}}));
    assert!(text.contains("the request of memory must not be more than its limit"), "{text}");
    let text = fault("/spec/containers/0/resources/limits", json!({"device.skeg.dev/fuse": 2}));
    assert!(text.contains("must be 1"), "{text}");
}
