//! What a pod can be told: config maps and secrets, and facts about itself and its device.
//!
//! Pure: everything is handed in. Words and rounding are Kubernetes'.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use skeg_protocol::manifest::{Data, DataKind, DataSource, PodField, ResourceField, ResourceName};
use skeg_protocol::{Container, Pod};

/// What is known of the device that pods may ask for.
#[derive(Debug, Clone, Default)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Number of its CPUs.
    pub cpus: u64,
    /// Its memory in bytes.
    pub memory: u64,
    /// Size of the disk with the pods' folders in bytes.
    pub disk: u64,
    /// The least `oom_score_adj` that the agent may give.
    pub least_score: i32,
}

/// All that one pod may be told.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Config maps and secrets of all pods.
    pub data: Arc<Vec<Data>>,
    /// The device.
    pub device: Arc<Device>,
    /// The device's addresses, the one of the default route first.
    pub host_addresses: Vec<IpAddr>,
    /// The pod's own addresses.
    pub addresses: Vec<IpAddr>,
    /// What is missing is passed over, for a further process of a container that runs already.
    pub forgiving: bool,
}

/// As Kubernetes writes a kind in the middle of a message.
pub fn kind_name(kind: DataKind) -> &'static str {
    match kind {
        DataKind::ConfigMap => "ConfigMap",
        DataKind::Secret => "Secret",
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// One `key="value"` a line, sorted, without a newline at the end.
fn lines(pairs: &[(String, String)]) -> String {
    let mut sorted: Vec<_> = pairs.iter().collect();
    sorted.sort();
    let mut text = String::new();
    for (key, value) in sorted {
        writeln!(text, "{key}={value:?}").expect("a string takes every text");
    }
    text.truncate(text.len().saturating_sub(1));
    text
}

fn value(pairs: &[(String, String)], key: &str) -> String {
    pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone()).unwrap_or_default()
}

impl Facts {
    /// The config map or secret that a pod means; `None` where it is missing and that is allowed.
    ///
    /// # Errors
    /// It is missing, in Kubernetes' words.
    pub fn source(&self, pod: &Pod, source: &DataSource) -> Result<Option<&Data>, String> {
        let is = |data: &&Data| {
            data.kind == source.kind && data.namespace == pod.namespace && data.name.as_str() == source.name
        };
        match self.data.iter().find(is) {
            None if !source.optional && !self.forgiving => {
                Err(format!("{} {:?} not found", kind_name(source.kind).to_lowercase(), source.name))
            }
            found => Ok(found),
        }
    }

    /// One key of a config map or secret; `None` where it is missing and that is allowed.
    ///
    /// # Errors
    /// It is missing, in Kubernetes' words.
    pub fn key(&self, pod: &Pod, source: &DataSource, key: &str) -> Result<Option<&[u8]>, String> {
        let Some(data) = self.source(pod, source)? else { return Ok(None) };
        match data.get(key) {
            None if !source.optional && !self.forgiving => {
                let kind = kind_name(source.kind);
                Err(format!("couldn't find key {key} in {kind} {}/{}", pod.namespace, source.name))
            }
            found => Ok(found),
        }
    }

    /// A fact about the pod.
    pub fn field(&self, pod: &Pod, field: &PodField) -> String {
        let first = |addresses: &[IpAddr]| addresses.first().map(ToString::to_string).unwrap_or_default();
        match field {
            PodField::Name => pod.name.to_string(),
            PodField::Namespace => pod.namespace.to_string(),
            PodField::Uid => pod.uid.to_string(),
            PodField::Label(key) => value(&pod.labels, key),
            PodField::Annotation(key) => value(&pod.annotations, key),
            PodField::Labels => lines(&pod.labels),
            PodField::Annotations => lines(&pod.annotations),
            PodField::NodeName => self.device.name.clone(),
            PodField::ServiceAccountName => pod.service_account.to_string(),
            PodField::HostIp => first(&self.host_addresses),
            PodField::HostIps => list(&self.host_addresses),
            PodField::PodIp => first(&self.addresses),
            PodField::PodIps => list(&self.addresses),
        }
    }

    /// A bound or request of a container of the pod, by its divisor and rounded up; `own` is who asks.
    pub fn resource(&self, pod: &Pod, own: Option<&Container>, asked: &ResourceField) -> String {
        let named = asked.container.as_ref();
        let named = named.and_then(|name| pod.all_containers().find(|container| container.name == *name));
        let Some(container) = named.or(own) else { return String::new() };
        let (limits, requests) = (&container.limits, &container.requests);
        let cpu = limits.cpu_millis.map(u64::from);
        let bytes = |bytes: u64| u128::from(bytes) * 1000;
        let millis = match asked.resource {
            ResourceName::LimitsCpu => u128::from(cpu.unwrap_or(self.device.cpus * 1000)),
            ResourceName::RequestsCpu => u128::from(requests.cpu_millis.map(u64::from).or(cpu).unwrap_or(0)),
            ResourceName::LimitsMemory => bytes(limits.memory_bytes.unwrap_or(self.device.memory)),
            ResourceName::RequestsMemory => bytes(requests.memory_bytes.or(limits.memory_bytes).unwrap_or(0)),
            ResourceName::LimitsEphemeralStorage => bytes(limits.ephemeral_storage_bytes.unwrap_or(self.device.disk)),
            ResourceName::RequestsEphemeralStorage => {
                bytes(requests.ephemeral_storage_bytes.or(limits.ephemeral_storage_bytes).unwrap_or(0))
            }
        };
        millis.div_ceil(u128::from(asked.divisor_millis.max(1))).to_string()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::core::tests::pod;

    /// A config map or secret of the namespace that tests' pods are in.
    pub(crate) fn data(kind: DataKind, name: &str, entries: &[(&str, &[u8])]) -> Data {
        Data {
            kind,
            namespace: pod(1, "web", &["main"]).namespace,
            name: name.try_into().unwrap(),
            immutable: false,
            entries: entries.iter().map(|(key, bytes)| ((*key).to_owned(), bytes.to_vec())).collect(),
        }
    }

    /// A device with two CPUs and 1 GiB.
    pub(crate) fn facts(data: Vec<Data>) -> Facts {
        let device = Device { name: "kiln-7".to_owned(), cpus: 2, memory: 1 << 30, disk: 1 << 35, least_score: -1000 };
        Facts {
            data: Arc::new(data),
            device: Arc::new(device),
            host_addresses: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            addresses: vec!["10.1.0.5".parse().unwrap()],
            forgiving: false,
        }
    }

    #[test]
    fn field_refs_are_those_of_kubernetes() {
        let mut pod = pod(1, "web", &["main"]);
        pod.labels = vec![("b".to_owned(), "say \"x\"\nand y".to_owned()), ("a".to_owned(), "1".to_owned())];
        pod.service_account = "robot".try_into().unwrap();
        let facts = facts(Vec::new());
        for (field, expected) in [
            (PodField::Name, "web"),
            (PodField::Label("a".to_owned()), "1"),
            (PodField::Label("c".to_owned()), ""),
            (PodField::Labels, "a=\"1\"\nb=\"say \\\"x\\\"\\nand y\""),
            (PodField::Annotations, ""),
            (PodField::NodeName, "kiln-7"),
            (PodField::ServiceAccountName, "robot"),
            (PodField::HostIp, "192.0.2.7"),
            (PodField::HostIps, "192.0.2.7,2001:db8::7"),
            (PodField::PodIp, "10.1.0.5"),
        ] {
            assert_eq!(facts.field(&pod, &field), expected, "{field:?}");
        }
        assert_eq!(facts.field(&pod, &PodField::Uid), pod.uid.to_string());
    }

    #[test]
    fn resource_field_refs_are_divided_and_rounded_up_as_in_kubernetes() {
        let mut pod = pod(1, "web", &["main", "side"]);
        pod.containers[0].limits.cpu_millis = Some(1500);
        pod.containers[0].limits.memory_bytes = Some(100 << 20);
        pod.containers[0].requests.memory_bytes = Some((64 << 20) + 1);
        let facts = facts(Vec::new());
        let ask = |container: &str, resource, divisor_millis| {
            let container = (!container.is_empty()).then(|| container.try_into().unwrap());
            facts.resource(&pod, Some(&pod.containers[0]), &ResourceField { container, resource, divisor_millis })
        };
        assert_eq!(ask("", ResourceName::LimitsCpu, 1000), "2");
        assert_eq!(ask("", ResourceName::LimitsCpu, 1), "1500");
        assert_eq!(ask("", ResourceName::RequestsCpu, 1), "1500");
        assert_eq!(ask("", ResourceName::LimitsMemory, 1000), (100 << 20).to_string());
        assert_eq!(ask("", ResourceName::RequestsMemory, 1000 << 20), "65");
        assert_eq!(ask("side", ResourceName::LimitsCpu, 1000), "2", "the node's");
        assert_eq!(ask("side", ResourceName::LimitsMemory, 1000 << 20), "1024", "the node's");
        assert_eq!(ask("side", ResourceName::RequestsMemory, 1000), "0");
        assert_eq!(ask("side", ResourceName::LimitsEphemeralStorage, 1000), (1_u64 << 35).to_string());
    }

    #[test]
    fn what_is_missing_is_told_in_kubernetes_words() {
        let pod = pod(1, "web", &["main"]);
        let facts = facts(vec![data(DataKind::Secret, "login", &[("user", b"me")])]);
        let source = |kind, name: &str, optional| DataSource { kind, name: name.to_owned(), optional };
        let get = |kind, name, key, optional| facts.key(&pod, &source(kind, name, optional), key);
        assert_eq!(get(DataKind::Secret, "login", "user", false), Ok(Some(&b"me"[..])));
        assert_eq!(get(DataKind::ConfigMap, "login", "user", false), Err("configmap \"login\" not found".to_owned()));
        assert_eq!(get(DataKind::Secret, "none", "user", false), Err("secret \"none\" not found".to_owned()));
        let missing = format!("couldn't find key age in Secret {}/login", pod.namespace);
        assert_eq!(get(DataKind::Secret, "login", "age", false), Err(missing));
        assert_eq!(get(DataKind::Secret, "login", "age", true), Ok(None));
        assert_eq!(get(DataKind::ConfigMap, "none", "age", true), Ok(None));
        let forgiving = Facts { forgiving: true, ..facts.clone() };
        assert_eq!(forgiving.key(&pod, &source(DataKind::Secret, "login", false), "age"), Ok(None));
        let mut stranger = pod.clone();
        stranger.namespace = "elsewhere".try_into().unwrap();
        assert!(facts.source(&stranger, &source(DataKind::Secret, "login", false)).is_err(), "another namespace's");
    }
}
