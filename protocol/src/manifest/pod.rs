//! A pod: containers that share a network and a fate.

use serde::{Deserialize, Serialize};

use super::container::{Container, RestartPolicy};
use super::network::{Attachment, Dependency, Dns, HostAlias, Owner};
use super::volume::Volume;
use crate::id::{Label, Name, Uid};

/// A group of containers that share a network and a fate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Names this very pod for ever; a pod made again under the same name has another.
    pub uid: Uid,
    /// Kubernetes namespace.
    pub namespace: Label,
    /// Name within the namespace.
    pub name: Name,
    /// For selectors and for the pod itself; keys once.
    pub labels: Vec<(String, String)>,
    /// For the pod itself; keys once.
    pub annotations: Vec<(String, String)>,
    /// The job that it was made for.
    pub owner: Option<Owner>,
    /// Shares the device's network instead of having its own.
    pub host_network: bool,
    /// Its users are the device's instead of its own; with the device's network they always are.
    pub host_users: bool,
    /// Its containers see each other's processes.
    pub share_processes: bool,
    /// What happens when a container ends.
    pub restart_policy: RestartPolicy,
    /// Seconds between the stop signal and the kill.
    pub termination_grace_seconds: u32,
    /// Seconds from its start after which it has failed.
    pub active_deadline_seconds: Option<u32>,
    /// Started one after the other before the others; names unique among all containers.
    pub init_containers: Vec<Container>,
    /// At least one, names unique. With the init containers at most [`crate::limits::MAX_CONTAINERS`].
    pub containers: Vec<Container>,
    /// At most [`crate::limits::MAX_VOLUMES`], names unique.
    pub volumes: Vec<Volume>,
    /// Names of the secrets for its pulls, in its namespace; at most [`crate::limits::MAX_PULL_SECRETS`]. What they hold
    /// comes apart ([`crate::message::PullSecrets`]): a new password is no new revision.
    pub image_pull_secrets: Vec<Name>,
    /// Named networks that it is in; none is the device's network of pods.
    pub networks: Vec<Attachment>,
    /// Has a loopback and nothing else (Compose `network_mode: none`).
    pub no_network: bool,
    /// Instead of its name's first label.
    pub hostname: Option<Label>,
    /// Its full name ends with `<subdomain>.<namespace>.svc.<cluster domain>`.
    pub subdomain: Option<Label>,
    /// How it asks for names.
    pub dns: Dns,
    /// Further lines of `/etc/hosts`.
    pub host_aliases: Vec<HostAlias>,
    /// Group of its volumes, and one more group of its processes.
    pub fs_group: Option<u32>,
    /// Further groups of its processes.
    pub supplemental_groups: Vec<u32>,
    /// Names and values, of those that belong to the pod's namespaces.
    pub sysctls: Vec<(String, String)>,
    /// Who must go first when the device runs short: the lowest.
    pub priority: i32,
    /// What must have happened to other pods before it starts.
    pub depends_on: Vec<Dependency>,
    /// Name of its service account, for the pod itself.
    pub service_account: Name,
}

impl Default for Pod {
    /// A pod without name or container that asks for nothing special; 30 seconds of grace, as in Kubernetes.
    fn default() -> Self {
        Pod {
            uid: Uid::default(),
            namespace: Label::new(),
            name: Name::new(),
            labels: Vec::new(),
            annotations: Vec::new(),
            owner: None,
            host_network: false,
            host_users: false,
            share_processes: false,
            restart_policy: RestartPolicy::default(),
            termination_grace_seconds: 30,
            active_deadline_seconds: None,
            init_containers: Vec::new(),
            containers: Vec::new(),
            volumes: Vec::new(),
            image_pull_secrets: Vec::new(),
            networks: Vec::new(),
            no_network: false,
            hostname: None,
            subdomain: None,
            dns: Dns::default(),
            host_aliases: Vec::new(),
            fs_group: None,
            supplemental_groups: Vec::new(),
            sysctls: Vec::new(),
            priority: 0,
            depends_on: Vec::new(),
            service_account: Name::new(),
        }
    }
}

impl Pod {
    /// Every container: the init containers first, in the order of their starts.
    pub fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().chain(&self.containers)
    }

    /// The container of this name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.all_containers().find(|container| container.name == name)
    }
}
