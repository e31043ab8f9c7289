//! The desired state of one node: a numbered revision that lists its pods.
//!
//! Field names follow Kubernetes' `v1.Pod`; images carry the digest that the controller resolved, so that a
//! fleet runs one content. [`Pod::validate`] is the one place that says what a pod may hold; the controller
//! calls it before it sends, the device before it obeys.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::id::{Digest, Label, Name, Uid, is_label, is_name};
use crate::limits::{
    MAX_ARGS, MAX_CONTAINERS, MAX_ENV, MAX_PATH, MAX_PODS, MAX_PORTS, MAX_PULL_SECRETS, MAX_REFERENCE, MAX_VOLUMES,
};

/// The desired state of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Grows by one with every change; 0 is the empty manifest that every node starts with.
    pub revision: u64,
    /// At most [`MAX_PODS`], sorted by uid, each uid once.
    pub pods: Vec<Pod>,
}

/// A group of containers that share a network and a fate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Names this very pod for ever; a pod made again under the same name has another.
    pub uid: Uid,
    /// Kubernetes namespace.
    pub namespace: Label,
    /// Name within the namespace.
    pub name: Name,
    /// Shares the device's network instead of having its own.
    pub host_network: bool,
    /// What happens when a container ends.
    pub restart_policy: RestartPolicy,
    /// Seconds between the stop signal and the kill.
    pub termination_grace_seconds: u32,
    /// At least one, at most [`MAX_CONTAINERS`], names unique.
    pub containers: Vec<Container>,
    /// At most [`MAX_VOLUMES`], names unique.
    pub volumes: Vec<Volume>,
    /// Names of the secrets for its pulls, in its namespace; at most [`MAX_PULL_SECRETS`]. What they hold comes apart
    /// ([`crate::message::PullSecrets`]), so that a manifest can be kept anywhere and a new password is no new revision.
    pub image_pull_secrets: Vec<Name>,
    /// Its users are the device's instead of its own; with the device's network they always are.
    pub host_users: bool,
}

/// One container of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// Unique in the pod.
    pub name: Label,
    /// What it runs.
    pub image: Image,
    /// Whether the device may fetch it.
    pub pull_policy: PullPolicy,
    /// Replaces the image's entrypoint where not empty.
    pub command: Vec<String>,
    /// Replaces the image's arguments where not empty.
    pub args: Vec<String>,
    /// Added to the image's environment; later entries win.
    pub env: Vec<EnvVar>,
    /// Replaces the image's working directory; absolute.
    pub working_dir: Option<String>,
    /// Who it runs as and what it may do.
    pub security: Security,
    /// Upper bounds.
    pub limits: Limits,
    /// Volumes mounted inside, in order.
    pub mounts: Vec<VolumeMount>,
    /// Ports that it listens on.
    pub ports: Vec<Port>,
}

/// An image by content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// As the user wrote it, for people and for the registry's host and repository.
    pub reference: String,
    /// Digest of the manifest or index that the reference meant when the controller resolved it.
    pub digest: Digest,
    /// Where the device fetches it.
    pub source: ImageSource,
}

/// Whether a device may fetch an image. `Always` is the controller's: it asks anew what the reference means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullPolicy {
    /// When it is not there.
    #[default]
    IfNotPresent,
    /// It must be there.
    Never,
}

/// Where a device fetches an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageSource {
    /// The registry that the reference names.
    Registry,
    /// The controller's own registry, under this repository name.
    Controller(String),
}

/// One environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Not empty, without `=` or NUL.
    pub name: String,
    /// Without NUL.
    pub value: String,
}

/// Who a container runs as; `None` and `false` mean what the image and the runtime's safe defaults say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// Numeric user, over the image's.
    pub user: Option<u32>,
    /// Numeric group, over the image's.
    pub group: Option<u32>,
    /// Refuses to start as user 0.
    pub run_as_non_root: bool,
    /// Mounts the root file system read-only.
    pub read_only_root: bool,
    /// Capabilities over the default set, without `CAP_`, or `ALL`.
    pub add_capabilities: Vec<heapless::String<32>>,
    /// Capabilities taken from the default set, without `CAP_`, or `ALL`.
    pub drop_capabilities: Vec<heapless::String<32>>,
}

/// Upper bounds of a container; `None` is no bound of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// CPU time in thousandths of one CPU.
    pub cpu_millis: Option<u32>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

/// A port that a container listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Inside the pod.
    pub container_port: u16,
    /// Published on the device under this number.
    pub host_port: Option<u16>,
    /// Address of the device that it is published on; `None` is every IPv4 address.
    pub host_ip: Option<std::net::Ipv4Addr>,
    /// Transport.
    pub protocol: Protocol,
}

/// Transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What happens when a container ends (Kubernetes `restartPolicy`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// It is started again, whatever its exit code.
    #[default]
    Always,
    /// It is started again unless it exited with 0.
    OnFailure,
    /// It stays ended.
    Never,
}

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Unique in the pod.
    pub name: Label,
    /// What is behind it.
    pub source: VolumeSource,
}

/// What is behind a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    /// An empty folder that lives and dies with the pod.
    EmptyDir {
        /// Kept in memory (tmpfs) instead of on disk.
        memory: bool,
    },
    /// A path of the device; must exist.
    HostPath {
        /// Absolute.
        path: String,
    },
}

/// A volume mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Name of the pod's volume.
    pub volume: Label,
    /// Absolute path inside the container.
    pub path: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// What is wrong with a pod or manifest: which field, and which rule it breaks.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    /// Path of the field as Kubernetes writes it, such as `spec.containers[0].name`.
    pub field: String,
    /// The rule and the value that breaks it.
    pub problem: String,
}

fn require(holds: bool, field: impl FnOnce() -> String, problem: impl FnOnce() -> String) -> Result<(), Invalid> {
    if holds { Ok(()) } else { Err(Invalid { field: field(), problem: problem() }) }
}

fn require_path(path: &str, field: impl FnOnce() -> String) -> Result<(), Invalid> {
    let plain = path.starts_with('/') && path.len() <= MAX_PATH && !path.contains('\0');
    require(plain && path.split('/').all(|part| part != ".."), field, || {
        format!("{path:?} must be an absolute path of at most {MAX_PATH} bytes without `..`")
    })
}

fn require_count(count: usize, most: usize, field: &str) -> Result<(), Invalid> {
    require(count <= most, || field.to_owned(), || format!("{count} entries, at most {most} are possible"))
}

fn require_unique<'a>(names: impl Iterator<Item = &'a str>, field: &str) -> Result<(), Invalid> {
    let mut seen = std::collections::BTreeSet::new();
    for (index, name) in names.enumerate() {
        require(is_label(name), || format!("{field}[{index}].name"), || format!("{name:?} must be a DNS label"))?;
        require(seen.insert(name), || format!("{field}[{index}].name"), || format!("{name:?} is used twice"))?;
    }
    Ok(())
}

impl Manifest {
    /// Checks every pod, that no uid or name appears twice, and that no two pods publish one host port.
    ///
    /// # Errors
    /// The first rule that is broken, with its field.
    pub fn validate(&self) -> Result<(), Invalid> {
        require_count(self.pods.len(), MAX_PODS, "pods")?;
        let (mut names, mut published) = (std::collections::BTreeSet::new(), HostPorts::default());
        for (index, pair) in self.pods.windows(2).enumerate() {
            require(
                pair[0].uid < pair[1].uid,
                || format!("pods[{}].uid", index + 1),
                || "must be sorted and unique".to_owned(),
            )?;
        }
        for pod in &self.pods {
            pod.validate()?;
            let full = (&pod.namespace, &pod.name);
            require(
                names.insert(full),
                || "metadata.name".to_owned(),
                || format!("{}/{} appears twice", full.0, full.1),
            )?;
            published.add(pod)?;
        }
        Ok(())
    }

    /// The pod with this uid.
    pub fn pod(&self, uid: Uid) -> Option<&Pod> {
        self.pods.binary_search_by_key(&uid, |pod| pod.uid).ok().map(|index| &self.pods[index])
    }
}

/// Host ports that pods have claimed so far: for each port, who and on which address.
#[derive(Debug, Default)]
pub struct HostPorts<'a>(std::collections::BTreeMap<(u16, bool), Vec<Claim<'a>>>);

/// One pod's claim of a port: the address, `None` for every one, and the pod.
type Claim<'a> = (Option<std::net::Ipv4Addr>, &'a Pod);

impl<'a> HostPorts<'a> {
    /// Adds a pod's ports; two claims clash when either is for every address or both are for the same.
    ///
    /// # Errors
    /// The first port that is taken, and by whom. Ports before it are claimed all the same.
    pub fn add(&mut self, pod: &'a Pod) -> Result<(), Invalid> {
        for (index, container) in pod.containers.iter().enumerate() {
            for port in &container.ports {
                let Some(number) = port.host_port else { continue };
                let claims = self.0.entry((number, port.protocol == Protocol::Udp)).or_default();
                let clash = claims.iter().find(|(ip, _)| ip.is_none() || port.host_ip.is_none() || *ip == port.host_ip);
                if let Some((_, other)) = clash {
                    let (field, names) = (format!("spec.containers[{index}].ports"), (&other.namespace, &other.name));
                    let problem = format!("host port {number} is already published by {}/{}", names.0, names.1);
                    return Err(Invalid { field, problem });
                }
                claims.push((port.host_ip, pod));
            }
        }
        Ok(())
    }
}

impl Pod {
    /// Checks every bound and cross-reference of the pod.
    ///
    /// # Errors
    /// The first rule that is broken, with its field.
    pub fn validate(&self) -> Result<(), Invalid> {
        require(
            is_label(&self.namespace),
            || "metadata.namespace".to_owned(),
            || format!("{:?} must be a DNS label", self.namespace),
        )?;
        require(is_name(&self.name), || "metadata.name".to_owned(), || format!("{:?} must be a DNS name", self.name))?;
        require(!self.containers.is_empty(), || "spec.containers".to_owned(), || "at least one is needed".to_owned())?;
        require_count(self.containers.len(), MAX_CONTAINERS, "spec.containers")?;
        require_count(self.volumes.len(), MAX_VOLUMES, "spec.volumes")?;
        require_unique(self.containers.iter().map(|container| container.name.as_str()), "spec.containers")?;
        require_unique(self.volumes.iter().map(|volume| volume.name.as_str()), "spec.volumes")?;
        require_count(self.image_pull_secrets.len(), MAX_PULL_SECRETS, "spec.imagePullSecrets")?;
        for (index, name) in self.image_pull_secrets.iter().enumerate() {
            let field = || format!("spec.imagePullSecrets[{index}].name");
            require(is_name(name), field, || format!("{name:?} must be a DNS name"))?;
        }
        for (index, volume) in self.volumes.iter().enumerate() {
            if let VolumeSource::HostPath { path } = &volume.source {
                require_path(path, || format!("spec.volumes[{index}].hostPath.path"))?;
            }
        }
        self.containers
            .iter()
            .enumerate()
            .try_for_each(|(index, container)| container.validate(self, &format!("spec.containers[{index}]")))
    }
}

impl Container {
    fn validate(&self, pod: &Pod, at: &str) -> Result<(), Invalid> {
        require_count(self.command.len(), MAX_ARGS, &format!("{at}.command"))?;
        require_count(self.args.len(), MAX_ARGS, &format!("{at}.args"))?;
        require_count(self.env.len(), MAX_ENV, &format!("{at}.env"))?;
        require_count(self.mounts.len(), MAX_VOLUMES, &format!("{at}.volumeMounts"))?;
        require_count(self.ports.len(), MAX_PORTS, &format!("{at}.ports"))?;
        let reference = &self.image.reference;
        require(
            !reference.is_empty() && reference.len() <= MAX_REFERENCE,
            || format!("{at}.image"),
            || format!("must have 1 to {MAX_REFERENCE} bytes"),
        )?;
        for (index, word) in self.command.iter().chain(&self.args).enumerate() {
            require(!word.contains('\0'), || format!("{at}.command+args[{index}]"), || "holds a NUL byte".to_owned())?;
        }
        for (index, variable) in self.env.iter().enumerate() {
            let EnvVar { name, value } = variable;
            let plain = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
            require(
                plain,
                || format!("{at}.env[{index}]"),
                || format!("{name:?}: a name must not be empty or hold `=`, and neither name nor value may hold NUL"),
            )?;
        }
        if let Some(path) = &self.working_dir {
            require_path(path, || format!("{at}.workingDir"))?;
        }
        for (index, mount) in self.mounts.iter().enumerate() {
            require_path(&mount.path, || format!("{at}.volumeMounts[{index}].mountPath"))?;
            require(
                pod.volumes.iter().any(|volume| volume.name == mount.volume),
                || format!("{at}.volumeMounts[{index}].name"),
                || format!("the pod has no volume {:?}", mount.volume),
            )?;
        }
        for (index, port) in self.ports.iter().enumerate() {
            let clear = port.container_port != 0 && port.host_port != Some(0);
            require(clear, || format!("{at}.ports[{index}]"), || "a port must be 1 to 65535".to_owned())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(number: u8, host_port: Option<u16>, host_ip: Option<[u8; 4]>) -> Pod {
        let port = Port { container_port: 80, host_port, host_ip: host_ip.map(Into::into), protocol: Protocol::Tcp };
        let image = Image { reference: "web:1".to_owned(), digest: Digest([1; 32]), source: ImageSource::Registry };
        let container = Container {
            name: "web".try_into().unwrap(),
            image,
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            security: Security::default(),
            limits: Limits::default(),
            pull_policy: PullPolicy::default(),
            mounts: Vec::new(),
            ports: vec![port],
        };
        Pod {
            uid: Uid([number; 16]),
            namespace: "default".try_into().unwrap(),
            name: format!("web-{number}").as_str().try_into().unwrap(),
            host_network: false,
            restart_policy: RestartPolicy::Always,
            termination_grace_seconds: 30,
            containers: vec![container],
            volumes: Vec::new(),
            image_pull_secrets: Vec::new(),
            host_users: false,
        }
    }

    fn problem(pods: Vec<Pod>) -> String {
        Manifest { revision: 1, pods }.validate().map_or_else(|invalid| invalid.to_string(), |()| String::new())
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
        assert_eq!(
            broken(|pod| pod.containers[0].working_dir = Some("/a/../b".into())),
            "spec.containers[0].workingDir"
        );
        assert_eq!(broken(|pod| pod.containers[0].ports[0].host_port = Some(0)), "spec.containers[0].ports[0]");
        assert_eq!(
            broken(|pod| pod.containers[0].env.push(EnvVar { name: "A=B".into(), value: String::new() })),
            "spec.containers[0].env[0]"
        );
        assert_eq!(
            broken(|pod| pod.containers[0].mounts.push(VolumeMount {
                volume: "gone".try_into().unwrap(),
                path: "/data".into(),
                read_only: false
            })),
            "spec.containers[0].volumeMounts[0].name"
        );
    }
}
