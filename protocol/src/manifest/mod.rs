//! The desired state of one node: a numbered revision that lists its pods and what they need.
//!
//! Field names follow Kubernetes' `v1.Pod`; images carry the digest that was resolved, so that a fleet runs one
//! content. [`Manifest::validate`] and [`Pod::validate`] are the one place that says what a manifest may hold; the
//! sender calls it before it sends, the device before it obeys.

mod check;
mod container;
mod data;
mod env;
mod job;
mod network;
mod pod;
mod probe;
#[cfg(test)]
mod tests;
mod volume;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use container::{
    BlockIo, Container, Device, Image, ImageSource, Limits, PullPolicy, Requests, RestartPolicy, Security, Ulimit,
};
pub use data::{Data, is_key};
pub use env::{DataKind, DataSource, EnvFrom, EnvValue, EnvVar, PodField, ResourceField, ResourceName};
pub use job::{Concurrency, CronJob, Job};
pub use network::{
    Attachment, Condition, Dependency, Dns, DnsPolicy, HostAlias, HostPorts, Network, Owner, Port, Protocol, Service,
    ServiceKind, ServicePort, Subnet, TargetPort,
};
pub use pod::Pod;
pub use probe::{Handler, HttpGet, Lifecycle, Probe, Probes};
pub use volume::{
    DownwardFile, DownwardValue, EmptyDir, HostPathKind, KeyPath, Projection, Volume, VolumeMount, VolumeSource,
};

use crate::id::{Digest, Uid};
use crate::message::Epoch;

/// The desired state of one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Grows by one with every change; 0 is the empty manifest that every node starts with.
    pub revision: u64,
    /// At most [`crate::limits::MAX_PODS`], sorted by uid, each uid once.
    pub pods: Vec<Pod>,
    /// Config maps and secrets that the pods name; sorted by kind, namespace and name, each once.
    pub data: Vec<Data>,
    /// Services; sorted by namespace and name, each once.
    pub services: Vec<Service>,
    /// Named networks that pods are in; sorted by namespace and name, each once.
    pub networks: Vec<Network>,
    /// Work that ends; sorted by uid, each once.
    pub jobs: Vec<Job>,
    /// Work that returns; sorted by uid, each once.
    pub cron_jobs: Vec<CronJob>,
    /// Seconds that its new pods have to become ready before the device goes back to the revision before; 0 is for
    /// ever.
    pub trial_seconds: u32,
    /// Of the controller that made it; zeros where none did.
    pub epoch: Epoch,
    /// Of its body, as its controller computed it; zeros where none did.
    pub digest: Digest,
}

impl Manifest {
    /// The pod with this uid.
    pub fn pod(&self, uid: Uid) -> Option<&Pod> {
        self.pods.binary_search_by_key(&uid, |pod| pod.uid).ok().map(|index| &self.pods[index])
    }
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
