//! Networks, names, ports and services: how the pods of a device find each other and are found.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::{Invalid, Pod};
use crate::id::{Label, Name, Uid};

/// A port that a container listens on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// By which services and probes may name it; unique in the pod where not empty.
    pub name: Label,
    /// Inside the pod.
    pub container_port: u16,
    /// Published on the device under this number.
    pub host_port: Option<u16>,
    /// Address of the device that it is published on; `None` is every address.
    pub host_ip: Option<IpAddr>,
    /// Transport.
    pub protocol: Protocol,
}

/// Transport of a port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, where the device's kernel has it.
    Sctp,
}

/// A pod's place in a named network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// A network of the manifest in the pod's namespace.
    pub network: Name,
    /// Further names that this network's members know the pod by.
    pub aliases: Vec<Name>,
    /// Instead of one from the network's range.
    pub ipv4: Option<Ipv4Addr>,
    /// Instead of one from the network's range.
    pub ipv6: Option<Ipv6Addr>,
    /// Instead of one that is made up.
    pub mac: Option<[u8; 6]>,
}

/// A named network of a device; pods in different networks do not reach each other.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Kubernetes namespace, or Compose project.
    pub namespace: Label,
    /// Unique in the namespace.
    pub name: Name,
    /// Ranges of its addresses, at most one of each family; the device chooses those that are not given.
    pub subnets: Vec<Subnet>,
    /// Nothing leaves it.
    pub internal: bool,
    /// Largest packet in bytes; `None`: as the device's way out allows.
    pub mtu: Option<u16>,
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its first address.
    pub address: IpAddr,
    /// Bits of it that are the same in all addresses.
    pub prefix: u8,
    /// The device's own address in it; `None` is the first usable one.
    pub gateway: Option<IpAddr>,
}

/// How a pod asks for names (Kubernetes `dnsPolicy` and `dnsConfig`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Where the questions go.
    pub policy: DnsPolicy,
    /// Further servers.
    pub servers: Vec<IpAddr>,
    /// Further search domains.
    pub searches: Vec<Name>,
    /// Options of resolv.conf(5), such as `ndots:2`.
    pub options: Vec<heapless::String<64>>,
}

/// Where a pod's questions for names go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DnsPolicy {
    /// To the device's own server, which knows pods and services and asks others for the rest.
    #[default]
    ClusterFirst,
    /// Where the device's own questions go.
    Default,
    /// Only where the pod says.
    None,
}

/// A line of a pod's `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostAlias {
    /// The address; `None` is the device's (Compose `host-gateway`).
    pub ip: Option<IpAddr>,
    /// Its names.
    pub hostnames: Vec<Name>,
}

/// A name and address for all pods that a selector chooses (Kubernetes `v1.Service`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Kubernetes namespace.
    pub namespace: Label,
    /// Unique in the namespace.
    pub name: Name,
    /// What it is.
    pub kind: ServiceKind,
    /// Labels that its pods have; none selects nothing.
    pub selector: Vec<(String, String)>,
    /// At most [`crate::limits::MAX_PORTS`].
    pub ports: Vec<ServicePort>,
    /// Seconds for which one client keeps its pod; `None` spreads every connection.
    pub affinity_seconds: Option<u32>,
    /// Connections from outside keep their source address and go to this device's pods only.
    pub external_local: bool,
    /// Pods that are not ready have names, too.
    pub publish_not_ready: bool,
}

/// What a service is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceKind {
    /// Has addresses of its own; with a node port in its ports it is a NodePort service. No address: the device
    /// chooses.
    ClusterIp(Vec<IpAddr>),
    /// Names its pods' addresses.
    #[default]
    Headless,
    /// Another DNS name for this one.
    ExternalName(String),
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Unique in the service; may be empty where it is the only one.
    pub name: Label,
    /// Transport.
    pub protocol: Protocol,
    /// Of the service.
    pub port: u16,
    /// Of its pods.
    pub target: TargetPort,
    /// Published on the device under this number.
    pub node_port: Option<u16>,
}

/// A port of a service's pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the name that the pods' containers give it.
    Name(Label),
}

/// Ports of the device that were claimed so far: for each, who and on which address.
#[derive(Debug, Default)]
pub struct HostPorts<'a>(std::collections::BTreeMap<(u16, Protocol), Vec<Claim<'a>>>);

/// One pod's claim of a port: the address, `None` for every one, and the pod.
type Claim<'a> = (Option<IpAddr>, &'a Pod);

impl<'a> HostPorts<'a> {
    /// Adds a pod's ports; two claims clash when either is for every address or both are for the same.
    ///
    /// # Errors
    /// The first port that is taken, and by whom. Ports before it are claimed all the same.
    pub fn add(&mut self, pod: &'a Pod) -> Result<(), Invalid> {
        for (index, container) in pod.containers.iter().enumerate() {
            for port in &container.ports {
                let Some(number) = port.host_port else { continue };
                let claims = self.0.entry((number, port.protocol)).or_default();
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

/// Something that must have happened to other pods before a pod starts (Compose `depends_on`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// A pod of the same namespace.
    pub pod: Name,
    /// What must be true of it.
    pub condition: Condition,
    /// Starts all the same where there is no such pod.
    pub optional: bool,
}

/// What must be true of a pod that another depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Condition {
    /// `service_started`.
    #[default]
    Started,
    /// `service_healthy`: it is ready.
    Healthy,
    /// `service_completed_successfully`.
    Completed,
}

/// Names a pod of a job or of a cron job's job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The job.
    pub uid: Uid,
    /// Which of its completions, for an indexed job.
    pub index: Option<u32>,
}
