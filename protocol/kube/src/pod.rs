//! From a Pod as Kubernetes writes it to a pod as a device obeys it. Everything that a device would not do is
//! refused here, by name.

use std::net::IpAddr;

use serde_json::{Value, json};
use skeg_protocol::limits::MAX_FRAME;
use skeg_protocol::manifest::{
    Container, EmptyDir, EnvValue, EnvVar, HostPathKind, Image, Limits, Pod, Port, Protocol, PullPolicy, RestartPolicy,
    Security, Volume, VolumeMount, VolumeSource,
};
use skeg_protocol::{Invalid, Name, Uid};

use crate::cursor::{Cursor, Fault, Fields};
use crate::quantity;

/// Resource name of the bound on processes and threads, in a container's `resources.limits`.
const PIDS: &str = "skeg.dev/pids";

const TOP: Fields =
    Fields { read: &["metadata", "spec"], ignored: &["apiVersion", "kind", "status"], unsupported: &[] };
const METADATA: Fields = Fields {
    read: &["name", "namespace", "uid", "labels", "annotations"],
    ignored: &[
        "generateName",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "generation",
        "managedFields",
        "resourceVersion",
        "selfLink",
    ],
    unsupported: &["finalizers", "ownerReferences"],
};
const SPEC: Fields = Fields {
    read: &[
        "containers",
        "volumes",
        "restartPolicy",
        "terminationGracePeriodSeconds",
        "hostNetwork",
        "hostUsers",
        "securityContext",
        "hostPID",
        "hostIPC",
        "nodeSelector",
        "nodeName",
        "imagePullSecrets",
    ],
    // What these say is either how it is on a device anyway or has nothing there that it could apply to.
    ignored: &[
        "automountServiceAccountToken",
        "dnsPolicy",
        "enableServiceLinks",
        "preemptionPolicy",
        "priority",
        "priorityClassName",
        "schedulerName",
        "serviceAccount",
        "serviceAccountName",
        "tolerations",
    ],
    unsupported: &[
        "activeDeadlineSeconds",
        "affinity",
        "dnsConfig",
        "ephemeralContainers",
        "hostAliases",
        "hostname",
        "hostnameOverride",
        "initContainers",
        "os",
        "overhead",
        "readinessGates",
        "resourceClaims",
        "resources",
        "runtimeClassName",
        "schedulingGates",
        "setHostnameAsFQDN",
        "shareProcessNamespace",
        "subdomain",
        "topologySpreadConstraints",
        "workloadRef",
    ],
};
const CONTAINER: Fields = Fields {
    read: &[
        "name",
        "image",
        "command",
        "args",
        "env",
        "workingDir",
        "securityContext",
        "resources",
        "volumeMounts",
        "ports",
        "imagePullPolicy",
        "stdin",
        "stdinOnce",
        "tty",
    ],
    ignored: &["terminationMessagePath", "terminationMessagePolicy"],
    unsupported: &[
        "envFrom",
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "resizePolicy",
        "restartPolicy",
        "restartPolicyRules",
        "startupProbe",
        "volumeDevices",
    ],
};
const POD_SECURITY: Fields = Fields {
    read: &["runAsUser", "runAsGroup", "runAsNonRoot", "seccompProfile"],
    ignored: &[],
    unsupported: &[
        "appArmorProfile",
        "fsGroup",
        "fsGroupChangePolicy",
        "seLinuxChangePolicy",
        "seLinuxOptions",
        "supplementalGroups",
        "supplementalGroupsPolicy",
        "sysctls",
        "windowsOptions",
    ],
};
const CONTAINER_SECURITY: Fields = Fields {
    read: &[
        "runAsUser",
        "runAsGroup",
        "runAsNonRoot",
        "readOnlyRootFilesystem",
        "capabilities",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "seccompProfile",
    ],
    ignored: &[],
    unsupported: &["appArmorProfile", "seLinuxOptions", "windowsOptions"],
};

/// The images that a pod's containers name, in order.
pub fn image_references(pod: &Value) -> Vec<String> {
    let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    containers.iter().map(|container| container["image"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The names of the secrets for a pod's pulls.
pub fn pull_secret_names(pod: &Value) -> impl Iterator<Item = &str> {
    let names = pod["spec"]["imagePullSecrets"].as_array().map(Vec::as_slice).unwrap_or_default();
    names.iter().filter_map(|entry| entry["name"].as_str())
}

/// Converts a Pod. `image` says what a container's image reference means, by the container's index, or why it is none.
///
/// # Errors
/// The first field that is unknown, unsupported or breaks a rule.
pub fn convert(pod: &Value, image: impl Fn(usize, &str) -> Result<Image, String>) -> Result<Pod, Fault> {
    let top = Cursor::new(pod, "");
    top.fields(&TOP)?;
    let (metadata, spec) = (top.need("metadata")?, top.need("spec")?);
    metadata.fields(&METADATA)?;
    for map in ["labels", "annotations"] {
        metadata.entries(map)?.iter().try_for_each(|(_, value)| value.text().map(drop))?;
    }
    spec.fields(&SPEC)?;
    spec.only("hostPID", &[json!(false)])?;
    spec.only("hostIPC", &[json!(false)])?;
    spec.entries("nodeSelector")?.iter().try_for_each(|(_, value)| value.text().map(drop))?;
    let uid = match metadata.get("uid")? {
        Some(uid) => uid.text()?.parse().map_err(|_| uid.invalid("must be a UUID"))?,
        None => Uid::default(),
    };
    let host_network = spec.flag("hostNetwork")?;
    let host_users = spec.flag("hostUsers")?;
    if host_network && let Some(users) = spec.get("hostUsers")?.filter(|_| !host_users) {
        return Err(users.invalid("must be true or left out when hostNetwork is true"));
    }
    let shared = pod_security(&spec)?;
    let containers = spec.items("containers")?;
    let containers = containers.iter().enumerate().map(|(index, at)| {
        let security = container_security(at, &shared)?;
        container(at, security, host_network, |reference| image(index, reference))
    });
    let pod = Pod {
        uid,
        namespace: metadata.need("namespace")?.bounded()?,
        name: metadata.need("name")?.bounded()?,
        host_network,
        restart_policy: restart_policy(&spec)?,
        termination_grace_seconds: match spec.get("terminationGracePeriodSeconds")? {
            Some(seconds) => seconds.integer()?,
            None => 30,
        },
        containers: containers.collect::<Result<_, Fault>>()?,
        volumes: spec.items("volumes")?.iter().map(volume).collect::<Result<_, Fault>>()?,
        image_pull_secrets: spec.items("imagePullSecrets")?.iter().map(pull_secret).collect::<Result<_, Fault>>()?,
        host_users,
        ..Pod::default()
    };
    pod.validate()?;
    let size = postcard::to_allocvec(&pod).map_or(usize::MAX, |bytes| bytes.len());
    if size > MAX_FRAME {
        let problem = format!("{size} bytes on the wire, at most {MAX_FRAME} are possible");
        return Err(Invalid { field: "spec".to_owned(), problem }.into());
    }
    Ok(pod)
}

fn pull_secret(at: &Cursor<'_>) -> Result<Name, Fault> {
    at.fields(&Fields { read: &["name"], ignored: &[], unsupported: &[] })?;
    at.need("name")?.bounded()
}

fn restart_policy(spec: &Cursor<'_>) -> Result<RestartPolicy, Fault> {
    let Some(policy) = spec.get("restartPolicy")? else { return Ok(RestartPolicy::Always) };
    match policy.text()? {
        "Always" => Ok(RestartPolicy::Always),
        "OnFailure" => Ok(RestartPolicy::OnFailure),
        "Never" => Ok(RestartPolicy::Never),
        _ => Err(policy.invalid("must be Always, OnFailure or Never")),
    }
}

fn container(
    at: &Cursor<'_>,
    security: Security,
    host_network: bool,
    image: impl Fn(&str) -> Result<Image, String>,
) -> Result<Container, Fault> {
    at.fields(&CONTAINER)?;
    at.only("stdin", &[json!(false)])?;
    at.only("stdinOnce", &[json!(false)])?;
    at.only("tty", &[json!(false)])?;
    // Whether the reference is asked for anew is the controller's; the device keeps to the content that it is told.
    at.only("imagePullPolicy", &[json!("Always"), json!("IfNotPresent"), json!("Never")])?;
    let reference = at.need("image")?;
    let image = image(reference.text()?).map_err(|problem| Invalid { field: reference.path().to_owned(), problem })?;
    let variables = at.items("env")?;
    Ok(Container {
        name: at.need("name")?.bounded()?,
        image,
        pull_policy: match at.get("imagePullPolicy")? {
            Some(policy) if policy.text()? == "Never" => PullPolicy::Never,
            _ => PullPolicy::IfNotPresent,
        },
        command: at.texts("command")?,
        args: at.texts("args")?,
        env: variables.iter().map(variable).collect::<Result<_, Fault>>()?,
        working_dir: match at.get("workingDir")? {
            Some(path) => Some(path.text()?.to_owned()).filter(|path| !path.is_empty()),
            None => None,
        },
        security,
        limits: limits(at)?,
        mounts: at.items("volumeMounts")?.iter().map(mount).collect::<Result<_, Fault>>()?,
        ports: at.items("ports")?.iter().map(|port| self::port(port, host_network)).collect::<Result<_, Fault>>()?,
        ..Container::default()
    })
}

fn variable(at: &Cursor<'_>) -> Result<EnvVar, Fault> {
    at.fields(&Fields { read: &["name", "value"], ignored: &[], unsupported: &["valueFrom"] })?;
    let value = at.get("value")?.map(|value| value.text()).transpose()?.unwrap_or_default();
    Ok(EnvVar { name: at.need("name")?.text()?.to_owned(), value: EnvValue::from(value) })
}

fn limits(at: &Cursor<'_>) -> Result<Limits, Fault> {
    let Some(resources) = at.get("resources")? else { return Ok(Limits::default()) };
    resources.fields(&Fields { read: &["limits", "requests"], ignored: &[], unsupported: &["claims"] })?;
    for (_, request) in resources.entries("requests")? {
        let text = request.quantity_text()?;
        quantity::millis(&text).ok_or_else(|| request.invalid("must be a quantity such as 64Mi or 500m"))?;
    }
    let mut limits = Limits::default();
    for (name, limit) in resources.entries("limits")? {
        let text = limit.quantity_text()?;
        let bad = || limit.invalid("must be a quantity such as 64Mi or 500m");
        let positive = |number: u64| if number == 0 { Err(limit.invalid("must be more than 0")) } else { Ok(number) };
        match name {
            "memory" => limits.memory_bytes = Some(positive(quantity::units(&text).ok_or_else(bad)?)?),
            "cpu" => {
                let millis = quantity::millis(&text).and_then(|millis| u64::try_from(millis).ok()).ok_or_else(bad)?;
                limits.cpu_millis = Some(positive(millis)?.try_into().map_err(|_| bad())?);
            }
            PIDS => {
                let count = positive(quantity::units(&text).ok_or_else(bad)?)?;
                limits.pids = Some(count.try_into().map_err(|_| bad())?);
            }
            _ => return Err(limit.unsupported()),
        }
    }
    Ok(limits)
}

fn mount(at: &Cursor<'_>) -> Result<VolumeMount, Fault> {
    at.fields(&Fields {
        read: &["name", "mountPath", "readOnly", "mountPropagation", "recursiveReadOnly"],
        ignored: &[],
        unsupported: &["subPath", "subPathExpr"],
    })?;
    at.only("mountPropagation", &[json!("None")])?;
    at.only("recursiveReadOnly", &[json!("Disabled")])?;
    Ok(VolumeMount {
        volume: at.need("name")?.bounded()?,
        path: at.need("mountPath")?.text()?.to_owned(),
        read_only: at.flag("readOnly")?,
        sub_path: None,
    })
}

fn port(at: &Cursor<'_>, host_network: bool) -> Result<Port, Fault> {
    at.fields(&Fields {
        read: &["containerPort", "hostPort", "hostIP", "protocol", "name"],
        ignored: &[],
        unsupported: &[],
    })?;
    at.get("name")?.map(|name| name.text()).transpose()?;
    let number = |name| -> Result<Option<u16>, Fault> {
        let Some(number) = at.get(name)? else { return Ok(None) };
        match number.integer()? {
            0 => Err(number.invalid("must be 1 to 65535")),
            port => Ok(Some(port)),
        }
    };
    let protocol = match at.get("protocol")? {
        None => Protocol::Tcp,
        Some(protocol) => match protocol.text()? {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => return Err(protocol.unsupported()),
            _ => return Err(protocol.invalid("must be TCP or UDP")),
        },
    };
    let host_ip = match at.get("hostIP")? {
        Some(address) if !address.text()?.is_empty() => {
            let address: IpAddr = address.text()?.parse().map_err(|_| address.invalid("must be an IP address"))?;
            Some(address).filter(|address| !address.is_unspecified())
        }
        _ => None,
    };
    let (container_port, host_port) = (number("containerPort")?, number("hostPort")?);
    let container_port = container_port
        .ok_or_else(|| Invalid { field: format!("{}.containerPort", at.path()), problem: "is required".to_owned() })?;
    if host_network && host_port.is_some_and(|port| port != container_port) {
        return Err(at.invalid("hostPort must be the containerPort when hostNetwork is true"));
    }
    // With the device's own network there is nothing to publish.
    Ok(Port { container_port, host_port: host_port.filter(|_| !host_network), host_ip, protocol, ..Port::default() })
}

fn volume(at: &Cursor<'_>) -> Result<Volume, Fault> {
    at.fields(&Fields {
        read: &["name", "emptyDir", "hostPath"],
        ignored: &[],
        unsupported: &[
            "awsElasticBlockStore",
            "azureDisk",
            "azureFile",
            "cephfs",
            "cinder",
            "configMap",
            "csi",
            "downwardAPI",
            "ephemeral",
            "fc",
            "flexVolume",
            "flocker",
            "gcePersistentDisk",
            "gitRepo",
            "glusterfs",
            "image",
            "iscsi",
            "nfs",
            "persistentVolumeClaim",
            "photonPersistentDisk",
            "portworxVolume",
            "projected",
            "quobyte",
            "rbd",
            "scaleIO",
            "secret",
            "storageos",
            "vsphereVolume",
        ],
    })?;
    let source = match (at.get("emptyDir")?, at.get("hostPath")?) {
        (Some(_), Some(_)) => return Err(at.invalid("must have one source")),
        (None, Some(path)) => {
            path.fields(&Fields { read: &["path", "type"], ignored: &[], unsupported: &[] })?;
            path.only("type", &[json!(""), json!("Directory"), json!("File")])?;
            VolumeSource::HostPath { path: path.need("path")?.text()?.to_owned(), kind: HostPathKind::Any }
        }
        // Kubernetes, too, takes a volume without a source for an emptyDir.
        (None, None) => VolumeSource::EmptyDir(EmptyDir::default()),
        (Some(empty), None) => {
            empty.fields(&Fields { read: &["medium"], ignored: &[], unsupported: &["sizeLimit"] })?;
            empty.only("medium", &[json!(""), json!("Memory")])?;
            let medium = empty.get("medium")?.map(|medium| medium.text()).transpose()?;
            VolumeSource::EmptyDir(EmptyDir { memory: medium == Some("Memory"), ..EmptyDir::default() })
        }
    };
    Ok(Volume { name: at.need("name")?.bounded()?, source })
}

/// The part of a pod's security context that its containers inherit.
fn pod_security(spec: &Cursor<'_>) -> Result<Security, Fault> {
    let Some(at) = spec.get("securityContext")? else { return Ok(Security::default()) };
    at.fields(&POD_SECURITY)?;
    seccomp(&at)?;
    Ok(Security {
        user: at.get("runAsUser")?.map(|id| id.integer()).transpose()?,
        group: at.get("runAsGroup")?.map(|id| id.integer()).transpose()?,
        run_as_non_root: at.flag("runAsNonRoot")?,
        ..Security::default()
    })
}

fn container_security(container: &Cursor<'_>, shared: &Security) -> Result<Security, Fault> {
    let Some(at) = container.get("securityContext")? else { return Ok(shared.clone()) };
    at.fields(&CONTAINER_SECURITY)?;
    at.only("privileged", &[json!(false)])?;
    at.only("allowPrivilegeEscalation", &[json!(false)])?;
    at.only("procMount", &[json!("Default")])?;
    seccomp(&at)?;
    let (mut add_capabilities, mut drop_capabilities) = (Vec::new(), Vec::new());
    if let Some(capabilities) = at.get("capabilities")? {
        capabilities.fields(&Fields { read: &["add", "drop"], ignored: &[], unsupported: &[] })?;
        add_capabilities = capability_names(&capabilities, "add")?;
        drop_capabilities = capability_names(&capabilities, "drop")?;
    }
    let id = |name, inherited: Option<u32>| -> Result<Option<u32>, Fault> {
        Ok(at.get(name)?.map(|id| id.integer()).transpose()?.or(inherited))
    };
    Ok(Security {
        user: id("runAsUser", shared.user)?,
        group: id("runAsGroup", shared.group)?,
        run_as_non_root: match at.get("runAsNonRoot")? {
            Some(_) => at.flag("runAsNonRoot")?,
            None => shared.run_as_non_root,
        },
        read_only_root: at.flag("readOnlyRootFilesystem")?,
        add_capabilities,
        drop_capabilities,
        ..Security::default()
    })
}

fn seccomp(at: &Cursor<'_>) -> Result<(), Fault> {
    let Some(profile) = at.get("seccompProfile")? else { return Ok(()) };
    profile.fields(&Fields { read: &["type"], ignored: &[], unsupported: &["localhostProfile"] })?;
    profile.only("type", &[json!("RuntimeDefault")])
}

fn capability_names(at: &Cursor<'_>, name: &str) -> Result<Vec<heapless::String<32>>, Fault> {
    at.items(name)?
        .iter()
        .map(|item| {
            let text = item.text()?;
            let plain = text.strip_prefix("CAP_").unwrap_or(text);
            let known = plain == "ALL" || CAPABILITIES.contains(&plain);
            let bounded = heapless::String::try_from(plain);
            bounded.ok().filter(|_| known).ok_or_else(|| item.invalid("is no capability (capabilities(7))"))
        })
        .collect()
}

/// Every capability of Linux (capabilities(7)).
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

#[cfg(test)]
mod tests {
    use skeg_protocol::Digest;
    use skeg_protocol::manifest::ImageSource;

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
                    "resources": {"limits": {"memory": "64Mi", "cpu": "500m", "skeg.dev/pids": 20}, "requests": {"cpu": 1}},
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
            ("/spec/initContainers", json!([{"name": "a"}]), "spec.initContainers: not supported yet"),
            ("/spec/hostPID", json!(true), "spec.hostPID: not supported yet: true"),
            (
                "/spec/containers/0/securityContext/privileged",
                json!(true),
                "spec.containers[0].securityContext.privileged: not supported yet: true",
            ),
            (
                "/spec/containers/0/livenessProbe",
                json!({"exec": {}}),
                "spec.containers[0].livenessProbe: not supported yet",
            ),
            (
                "/spec/containers/0/env/0/valueFrom",
                json!({"fieldRef": {}}),
                "spec.containers[0].env[0].valueFrom: not supported yet",
            ),
            ("/spec/volumes/0/configMap", json!({"name": "a"}), "spec.volumes[0].configMap: not supported yet"),
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
            (
                "/spec/containers/0/image",
                json!("Demo:1"),
                "spec.containers[0].image: \"Demo:1\" is not an image reference",
            ),
            ("/spec/containers/0/name", json!("Web"), "spec.containers[0].name: \"Web\" must be a DNS label"),
            ("/spec/restartPolicy", json!("Sometimes"), "spec.restartPolicy: \"Sometimes\" must be Always"),
            ("/spec/containers/0/ports/0/containerPort", json!(70000), "ports[0].containerPort: 70000 is out of range"),
            ("/spec/containers/0/resources/limits/memory", json!("lots"), "resources.limits[memory]: \"lots\" must be"),
            ("/spec/containers/0/securityContext/capabilities", json!({"add": ["FLY"]}), "\"FLY\" is no capability"),
            ("/spec/containers", json!([]), "spec.containers: at least one is needed"),
            (
                "/spec/terminationGracePeriodSeconds",
                json!(-1),
                "spec.terminationGracePeriodSeconds: -1 is out of range",
            ),
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
}
