//! The rules of a manifest, each with the field that it is about.

use std::collections::BTreeSet;

use super::container::{Container, RestartPolicy};
use super::data::{Data, is_key};
use super::env::{DataSource, EnvValue, PodField, ResourceField};
use super::job::{CronJob, Job};
use super::network::{HostPorts, Network, Service, ServiceKind, Subnet, TargetPort};
use super::pod::Pod;
use super::probe::{Handler, Probe};
use super::volume::{DownwardValue, Projection, Volume, VolumeSource};
use super::{Invalid, Manifest};
use crate::id::{is_label, is_name};
use crate::limits::{
    MAX_ARGS, MAX_CONTAINERS, MAX_DATA, MAX_ENV, MAX_ITEMS, MAX_LABELS, MAX_NETWORKS, MAX_PATH, MAX_PODS, MAX_PORTS,
    MAX_PULL_SECRETS, MAX_REFERENCE, MAX_VOLUMES,
};

fn require(holds: bool, field: impl FnOnce() -> String, problem: impl FnOnce() -> String) -> Result<(), Invalid> {
    if holds { Ok(()) } else { Err(Invalid { field: field(), problem: problem() }) }
}

fn require_path(path: &str, field: impl FnOnce() -> String) -> Result<(), Invalid> {
    let plain = path.starts_with('/') && path.len() <= MAX_PATH && !path.contains('\0');
    require(plain && path.split('/').all(|part| part != ".."), field, || {
        format!("{path:?} must be an absolute path of at most {MAX_PATH} bytes without `..`")
    })
}

fn require_relative(path: &str, field: impl FnOnce() -> String) -> Result<(), Invalid> {
    let plain = !path.is_empty() && !path.starts_with('/') && path.len() <= MAX_PATH && !path.contains('\0');
    require(plain && path.split('/').all(|part| part != ".."), field, || {
        format!("{path:?} must be a relative path of at most {MAX_PATH} bytes without `..`")
    })
}

fn require_count(count: usize, most: usize, field: &str) -> Result<(), Invalid> {
    require(count <= most, || field.to_owned(), || format!("{count} entries, at most {most} are possible"))
}

fn require_label(name: &str, field: impl FnOnce() -> String) -> Result<(), Invalid> {
    require(is_label(name), field, || format!("{name:?} must be a DNS label"))
}

fn require_name(name: &str, field: impl FnOnce() -> String) -> Result<(), Invalid> {
    require(is_name(name), field, || format!("{name:?} must be a DNS name"))
}

fn require_unique<'a>(names: impl Iterator<Item = &'a str>, field: &str) -> Result<(), Invalid> {
    let mut seen = BTreeSet::new();
    for (index, name) in names.enumerate() {
        require_label(name, || format!("{field}[{index}].name"))?;
        require(seen.insert(name), || format!("{field}[{index}].name"), || format!("{name:?} is used twice"))?;
    }
    Ok(())
}

/// Checks that each key is greater than the one before it.
fn require_sorted<K: Ord>(keys: impl Iterator<Item = K>, field: &str) -> Result<(), Invalid> {
    let mut before = None;
    for (index, key) in keys.enumerate() {
        let sorted = before.as_ref().is_none_or(|before| *before < key);
        require(sorted, || format!("{field}[{index}]"), || "must be sorted and unique".to_owned())?;
        before = Some(key);
    }
    Ok(())
}

fn require_plain(text: &str, field: impl FnOnce() -> String) -> Result<(), Invalid> {
    require(!text.contains('\0'), field, || "holds a NUL byte".to_owned())
}

impl Manifest {
    /// Checks every item, that none appears twice, and that no two pods publish one host port.
    ///
    /// # Errors
    /// The first rule that is broken, with its field.
    pub fn validate(&self) -> Result<(), Invalid> {
        require_count(self.pods.len(), MAX_PODS, "pods")?;
        let (mut names, mut published) = (BTreeSet::new(), HostPorts::default());
        for (index, pair) in self.pods.windows(2).enumerate() {
            let field = || format!("pods[{}].uid", index + 1);
            require(pair[0].uid < pair[1].uid, field, || "must be sorted and unique".to_owned())?;
        }
        for pod in &self.pods {
            pod.validate()?;
            let full = (&pod.namespace, &pod.name);
            let twice = || format!("{}/{} appears twice", full.0, full.1);
            require(names.insert(full), || "metadata.name".to_owned(), twice)?;
            published.add(pod)?;
        }
        self.validate_others()
    }

    fn validate_others(&self) -> Result<(), Invalid> {
        require_count(self.data.len(), MAX_ITEMS, "data")?;
        require_count(self.services.len(), MAX_ITEMS, "services")?;
        require_count(self.networks.len(), MAX_NETWORKS, "networks")?;
        require_count(self.jobs.len(), MAX_ITEMS, "jobs")?;
        require_count(self.cron_jobs.len(), MAX_ITEMS, "cronJobs")?;
        require_sorted(self.data.iter().map(|data| (data.kind, &data.namespace, &data.name)), "data")?;
        require_sorted(self.services.iter().map(|service| (&service.namespace, &service.name)), "services")?;
        require_sorted(self.networks.iter().map(|network| (&network.namespace, &network.name)), "networks")?;
        require_sorted(self.jobs.iter().map(|job| job.uid), "jobs")?;
        require_sorted(self.cron_jobs.iter().map(|job| job.uid), "cronJobs")?;
        self.data.iter().try_for_each(Data::validate)?;
        self.services.iter().try_for_each(Service::validate)?;
        self.networks.iter().try_for_each(Network::validate)?;
        self.jobs.iter().try_for_each(Job::validate)?;
        self.cron_jobs.iter().try_for_each(CronJob::validate)
    }
}

fn require_full_name(namespace: &str, name: &str) -> Result<(), Invalid> {
    require_label(namespace, || "metadata.namespace".to_owned())?;
    require_name(name, || "metadata.name".to_owned())
}

impl Data {
    /// Checks names, keys and size.
    ///
    /// # Errors
    /// The first rule that is broken, with its field.
    pub fn validate(&self) -> Result<(), Invalid> {
        require_full_name(&self.namespace, &self.name)?;
        require_sorted(self.entries.iter().map(|(key, _)| key), "data")?;
        for (key, _) in &self.entries {
            let field = || format!("data[{key}]");
            require(is_key(key), field, || "must be 1 to 253 letters, digits, `-`, `_` or `.`".to_owned())?;
        }
        let size: usize = self.entries.iter().map(|(key, bytes)| key.len() + bytes.len()).sum();
        require(size <= MAX_DATA, || "data".to_owned(), || format!("{size} bytes, at most {MAX_DATA} are possible"))
    }
}

impl Service {
    /// Checks names and ports.
    ///
    /// # Errors
    /// The first rule that is broken, with its field.
    pub fn validate(&self) -> Result<(), Invalid> {
        require_full_name(&self.namespace, &self.name)?;
        require_count(self.selector.len(), MAX_LABELS, "spec.selector")?;
        require_count(self.ports.len(), MAX_PORTS, "spec.ports")?;
        if let ServiceKind::ExternalName(name) = &self.kind {
            require_name(name, || "spec.externalName".to_owned())?;
        }
        let mut seen = BTreeSet::new();
        for (index, port) in self.ports.iter().enumerate() {
            let at = |field: &str| format!("spec.ports[{index}].{field}");
            let alone = port.name.is_empty() && self.ports.len() == 1;
            require(alone || is_label(&port.name), || at("name"), || "must be a DNS label".to_owned())?;
            require(seen.insert(&port.name), || at("name"), || format!("{:?} is used twice", port.name))?;
            let clear = port.port != 0 && port.node_port != Some(0) && port.target != TargetPort::Number(0);
            require(clear, || at("port"), || "a port must be 1 to 65535".to_owned())?;
        }
        Ok(())
    }
}

impl Network {
    /// Checks names and ranges.
    ///
    /// # Errors
    /// The first rule that is broken, with its field.
    pub fn validate(&self) -> Result<(), Invalid> {
        require_label(&self.namespace, || "metadata.namespace".to_owned())?;
        require_name(&self.name, || "metadata.name".to_owned())?;
        require_count(self.subnets.len(), 2, "subnets")?;
        for (index, subnet) in self.subnets.iter().enumerate() {
            let at = || format!("subnets[{index}]");
            let Subnet { address, prefix, gateway } = subnet;
            let most = if address.is_ipv4() { 30 } else { 126 };
            require((1..=most).contains(prefix), at, || format!("/{prefix} must be /1 to /{most}"))?;
            let alike = gateway.is_none_or(|gateway| gateway.is_ipv4() == address.is_ipv4());
            require(alike, at, || "range and gateway must be of one family".to_owned())?;
        }
        let [first, second] = self.subnets.as_slice() else { return Ok(()) };
        let differ = first.address.is_ipv4() != second.address.is_ipv4();
        require(differ, || "subnets[1]".to_owned(), || "only one range of each family is possible".to_owned())
    }
}

impl Job {
    /// Checks names, template and counts.
    ///
    /// # Errors
    /// The first rule that is broken, with its field.
    pub fn validate(&self) -> Result<(), Invalid> {
        require_full_name(&self.namespace, &self.name)?;
        let field = || "spec.template.spec.restartPolicy".to_owned();
        let ends = self.template.restart_policy != RestartPolicy::Always;
        require(ends, field, || "must be OnFailure or Never".to_owned())?;
        let (field, problem) = (|| "spec.completions".to_owned(), || "an indexed job needs completions".to_owned());
        require(!self.indexed || self.completions.is_some(), field, problem)?;
        // A template has no name of its own; what is made of it is named after the job.
        let named = Pod { namespace: self.namespace.clone(), name: self.name.clone(), ..Pod::clone(&self.template) };
        named.validate().map_err(|invalid| Invalid { field: format!("spec.template.{}", invalid.field), ..invalid })
    }
}

impl CronJob {
    /// Checks names and the job; the schedule's text is checked where it is read.
    ///
    /// # Errors
    /// The first rule that is broken, with its field.
    pub fn validate(&self) -> Result<(), Invalid> {
        require_full_name(&self.namespace, &self.name)?;
        let named = Job { namespace: self.namespace.clone(), name: self.name.clone(), ..self.job.clone() };
        named.validate().map_err(|invalid| Invalid { field: format!("spec.jobTemplate.{}", invalid.field), ..invalid })
    }
}

impl Pod {
    /// Checks every bound and cross-reference of the pod.
    ///
    /// # Errors
    /// The first rule that is broken, with its field.
    pub fn validate(&self) -> Result<(), Invalid> {
        require_full_name(&self.namespace, &self.name)?;
        require(!self.containers.is_empty(), || "spec.containers".to_owned(), || "at least one is needed".to_owned())?;
        require_count(self.all_containers().count(), MAX_CONTAINERS, "spec.containers")?;
        require_count(self.volumes.len(), MAX_VOLUMES, "spec.volumes")?;
        require_count(self.labels.len(), MAX_LABELS, "metadata.labels")?;
        require_count(self.annotations.len(), MAX_LABELS, "metadata.annotations")?;
        // From the back, so that a clash is blamed on the init container.
        require_unique(self.containers.iter().map(|container| container.name.as_str()), "spec.containers")?;
        for (index, container) in self.init_containers.iter().enumerate() {
            let field = || format!("spec.initContainers[{index}].name");
            let twice = self.all_containers().filter(|other| other.name == container.name).count() > 1;
            require_label(&container.name, field)?;
            require(!twice, field, || format!("{:?} is used twice", container.name))?;
        }
        require_unique(self.volumes.iter().map(|volume| volume.name.as_str()), "spec.volumes")?;
        require_count(self.image_pull_secrets.len(), MAX_PULL_SECRETS, "spec.imagePullSecrets")?;
        for (index, name) in self.image_pull_secrets.iter().enumerate() {
            require_name(name, || format!("spec.imagePullSecrets[{index}].name"))?;
        }
        self.validate_network()?;
        for (index, volume) in self.volumes.iter().enumerate() {
            volume.validate(self, &format!("spec.volumes[{index}]"))?;
        }
        for (index, container) in self.init_containers.iter().enumerate() {
            container.validate(self, &format!("spec.initContainers[{index}]"))?;
        }
        for (index, container) in self.containers.iter().enumerate() {
            container.validate(self, &format!("spec.containers[{index}]"))?;
        }
        Ok(())
    }

    fn validate_network(&self) -> Result<(), Invalid> {
        require_count(self.networks.len(), MAX_NETWORKS, "networks")?;
        require_count(self.host_aliases.len(), MAX_LABELS, "spec.hostAliases")?;
        let alone = (self.networks.is_empty() && !self.no_network) || !self.host_network;
        require(alone, || "spec.hostNetwork".to_owned(), || "must be false in a pod with networks".to_owned())?;
        for (index, attachment) in self.networks.iter().enumerate() {
            require_name(&attachment.network, || format!("networks[{index}].name"))?;
            require_count(attachment.aliases.len(), MAX_LABELS, &format!("networks[{index}].aliases"))?;
        }
        if let Some(hostname) = &self.hostname {
            require_label(hostname, || "spec.hostname".to_owned())?;
        }
        if let Some(subdomain) = &self.subdomain {
            require_label(subdomain, || "spec.subdomain".to_owned())?;
        }
        let servers = || format!("at least one is needed where dnsPolicy is {:?}", self.dns.policy);
        let told = self.dns.policy != super::DnsPolicy::None || !self.dns.servers.is_empty();
        require(told, || "spec.dnsConfig.nameservers".to_owned(), servers)
    }
}

impl Volume {
    fn validate(&self, pod: &Pod, at: &str) -> Result<(), Invalid> {
        match &self.source {
            VolumeSource::EmptyDir(_) => Ok(()),
            VolumeSource::HostPath { path, .. } => require_path(path, || format!("{at}.hostPath.path")),
            VolumeSource::Persistent { name, .. } => {
                require_name(name, || format!("{at}.persistentVolumeClaim.claimName"))
            }
            VolumeSource::Projected { sources, .. } => {
                require_count(sources.len(), MAX_VOLUMES, at)?;
                sources.iter().try_for_each(|source| source.validate(pod, at))
            }
        }
    }
}

impl Projection {
    fn validate(&self, pod: &Pod, at: &str) -> Result<(), Invalid> {
        match self {
            Projection::Data { source, items } => {
                source.validate(at)?;
                require_count(items.len(), MAX_ENV, &format!("{at}.items"))?;
                for (index, item) in items.iter().enumerate() {
                    let key = || format!("{at}.items[{index}].key");
                    require(is_key(&item.key), key, || format!("{:?} is no key", item.key))?;
                    require_relative(&item.path, || format!("{at}.items[{index}].path"))?;
                }
                Ok(())
            }
            Projection::Downward(files) => {
                require_count(files.len(), MAX_ENV, &format!("{at}.items"))?;
                for (index, file) in files.iter().enumerate() {
                    require_relative(&file.path, || format!("{at}.items[{index}].path"))?;
                    if let DownwardValue::Resource(resource) = &file.value {
                        let named = resource.container.is_some();
                        let field = || format!("{at}.items[{index}].resourceFieldRef.containerName");
                        require(named, field, || "is required".to_owned())?;
                        resource.validate(pod, &format!("{at}.items[{index}].resourceFieldRef"))?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl DataSource {
    fn validate(&self, at: &str) -> Result<(), Invalid> {
        require_name(&self.name, || format!("{at}.name"))
    }
}

impl ResourceField {
    fn validate(&self, pod: &Pod, at: &str) -> Result<(), Invalid> {
        require(self.divisor_millis != 0, || format!("{at}.divisor"), || "must not be 0".to_owned())?;
        let Some(name) = &self.container else { return Ok(()) };
        let known = pod.all_containers().any(|container| container.name == *name);
        require(known, || format!("{at}.containerName"), || format!("the pod has no container {name:?}"))
    }
}

impl Container {
    fn validate(&self, pod: &Pod, at: &str) -> Result<(), Invalid> {
        require_count(self.command.len(), MAX_ARGS, &format!("{at}.command"))?;
        require_count(self.args.len(), MAX_ARGS, &format!("{at}.args"))?;
        require_count(self.mounts.len(), MAX_VOLUMES, &format!("{at}.volumeMounts"))?;
        require_count(self.devices.len(), MAX_VOLUMES, &format!("{at}.devices"))?;
        require_count(self.ports.len(), MAX_PORTS, &format!("{at}.ports"))?;
        let reference = &self.image.reference;
        let bounded = !reference.is_empty() && reference.len() <= MAX_REFERENCE;
        require(bounded, || format!("{at}.image"), || format!("must have 1 to {MAX_REFERENCE} bytes"))?;
        for (index, word) in self.command.iter().chain(&self.args).enumerate() {
            require_plain(word, || format!("{at}.command+args[{index}]"))?;
        }
        self.validate_env(pod, at)?;
        if let Some(path) = &self.working_dir {
            require_path(path, || format!("{at}.workingDir"))?;
        }
        self.validate_mounts(pod, at)?;
        for (index, port) in self.ports.iter().enumerate() {
            let clear = port.container_port != 0 && port.host_port != Some(0);
            require(clear, || format!("{at}.ports[{index}]"), || "a port must be 1 to 65535".to_owned())?;
        }
        for (index, device) in self.devices.iter().enumerate() {
            for path in [&device.path, &device.container_path] {
                let field = || format!("{at}.devices[{index}]");
                require_path(path, field)?;
                require(path.starts_with("/dev/"), field, || format!("{path:?} must be below /dev"))?;
            }
        }
        self.validate_handlers(at)
    }

    fn validate_env(&self, pod: &Pod, at: &str) -> Result<(), Invalid> {
        require_count(self.env.len(), MAX_ENV, &format!("{at}.env"))?;
        require_count(self.env_from.len(), MAX_ENV, &format!("{at}.envFrom"))?;
        for (index, from) in self.env_from.iter().enumerate() {
            from.source.validate(&format!("{at}.envFrom[{index}]"))?;
            require_plain(&from.prefix, || format!("{at}.envFrom[{index}].prefix"))?;
        }
        for (index, variable) in self.env.iter().enumerate() {
            let (name, at) = (&variable.name, format!("{at}.env[{index}]"));
            let text = if let EnvValue::Text(text) = &variable.value { text.as_str() } else { "" };
            let plain = !name.is_empty() && !name.contains(['=', '\0']) && !text.contains('\0');
            let rule = "a name must not be empty or hold `=`, and neither name nor value may hold NUL";
            require(plain, || at.clone(), || format!("{name:?}: {rule}"))?;
            match &variable.value {
                EnvValue::Text(_) => {}
                EnvValue::Key { source, .. } => source.validate(&at)?,
                EnvValue::Field(PodField::Labels | PodField::Annotations) => {
                    let problem = || "labels and annotations as a whole are for files only".to_owned();
                    return Err(Invalid { field: at, problem: problem() });
                }
                EnvValue::Field(_) => {}
                EnvValue::Resource(resource) => resource.validate(pod, &at)?,
            }
        }
        Ok(())
    }

    fn validate_mounts(&self, pod: &Pod, at: &str) -> Result<(), Invalid> {
        for (index, mount) in self.mounts.iter().enumerate() {
            require_path(&mount.path, || format!("{at}.volumeMounts[{index}].mountPath"))?;
            if let Some(path) = &mount.sub_path {
                require_relative(path, || format!("{at}.volumeMounts[{index}].subPath"))?;
            }
            let known = pod.volumes.iter().any(|volume| volume.name == mount.volume);
            let field = || format!("{at}.volumeMounts[{index}].name");
            require(known, field, || format!("the pod has no volume {:?}", mount.volume))?;
        }
        Ok(())
    }

    fn validate_handlers(&self, at: &str) -> Result<(), Invalid> {
        let probes = [
            ("startupProbe", &self.probes.startup),
            ("livenessProbe", &self.probes.liveness),
            ("readinessProbe", &self.probes.readiness),
        ];
        for (name, probe) in probes {
            let Some(probe) = probe else { continue };
            probe.validate(name == "readinessProbe", &format!("{at}.{name}"))?;
        }
        let hooks = [("postStart", &self.lifecycle.post_start), ("preStop", &self.lifecycle.pre_stop)];
        for (name, hook) in hooks {
            let Some(hook) = hook else { continue };
            let at = format!("{at}.lifecycle.{name}");
            let probes_only = matches!(hook, Handler::Grpc { .. });
            require(!probes_only, || at.clone(), || "a hook must be exec, httpGet, tcpSocket or sleep".to_owned())?;
            hook.validate(&at)?;
        }
        let signal = self.lifecycle.stop_signal;
        let field = || format!("{at}.lifecycle.stopSignal");
        require(signal.is_none_or(|number| (1..=64).contains(&number)), field, || "must be 1 to 64".to_owned())
    }
}

impl Probe {
    fn validate(&self, many: bool, at: &str) -> Result<(), Invalid> {
        let positive = |number: u32, field: &str| {
            require(number > 0, || format!("{at}.{field}"), || "must be more than 0".to_owned())
        };
        positive(self.period_ms, "periodSeconds")?;
        positive(self.timeout_ms, "timeoutSeconds")?;
        positive(self.failure_threshold, "failureThreshold")?;
        let threshold = self.success_threshold == 1 || (many && self.success_threshold > 1);
        let rule = if many { "must be at least 1" } else { "must be 1" };
        require(threshold, || format!("{at}.successThreshold"), || rule.to_owned())?;
        let sleep = matches!(self.action, Handler::Sleep { .. });
        require(!sleep, || at.to_owned(), || "a probe must be exec, httpGet, tcpSocket or grpc".to_owned())?;
        self.action.validate(at)
    }
}

impl Handler {
    fn validate(&self, at: &str) -> Result<(), Invalid> {
        let port = |port: u16| require(port != 0, || format!("{at}.port"), || "must be 1 to 65535".to_owned());
        match self {
            Handler::Exec { command } => {
                require_count(command.len(), MAX_ARGS, &format!("{at}.exec.command"))?;
                let field = || format!("{at}.exec.command");
                require(!command.is_empty(), field, || "must not be empty".to_owned())?;
                command.iter().try_for_each(|word| require_plain(word, || format!("{at}.exec.command")))
            }
            Handler::HttpGet(get) => {
                require_count(get.headers.len(), MAX_LABELS, &format!("{at}.httpGet.httpHeaders"))?;
                port(get.port)
            }
            Handler::TcpSocket { port: number, .. } | Handler::Grpc { port: number, .. } => port(*number),
            Handler::Sleep { .. } => Ok(()),
        }
    }
}
