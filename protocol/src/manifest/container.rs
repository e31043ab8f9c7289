//! One container of a pod.

use serde::{Deserialize, Serialize};

use super::env::{EnvFrom, EnvVar};
use super::network::Port;
use super::probe::{Lifecycle, Probes};
use super::volume::VolumeMount;
use crate::id::{Digest, Label};

/// One container of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Added to the image's environment, before `env`.
    pub env_from: Vec<EnvFrom>,
    /// Added to the image's environment; later entries win.
    pub env: Vec<EnvVar>,
    /// Replaces the image's working directory; absolute.
    pub working_dir: Option<String>,
    /// Who it runs as and what it may do.
    pub security: Security,
    /// Upper bounds.
    pub limits: Limits,
    /// What it is sure to get.
    pub requests: Requests,
    /// Volumes mounted inside, in order.
    pub mounts: Vec<VolumeMount>,
    /// Devices of the host that it may use.
    pub devices: Vec<Device>,
    /// Ports that it listens on.
    pub ports: Vec<Port>,
    /// How it is asked how it is.
    pub probes: Probes,
    /// What is done around its life.
    pub lifecycle: Lifecycle,
    /// Instead of the pod's. An init container with `Always` is a sidecar: it is started in its turn and runs on.
    pub restart_policy: Option<RestartPolicy>,
    /// Starts after failures before it stays ended (Compose `on-failure:n`).
    pub max_restarts: Option<u32>,
    /// Has a standard input that stays open.
    pub stdin: bool,
    /// Has a terminal.
    pub tty: bool,
    /// A small init is its first process and reaps what others leave (Compose `init`).
    pub init: bool,
}

/// An image by content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// As the user wrote it, for people and for the registry's host and repository.
    pub reference: String,
    /// Digest of the manifest or index that the reference meant when it was resolved.
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageSource {
    /// The registry that the reference names.
    #[default]
    Registry,
    /// The controller's own registry, under this repository name.
    Controller(String),
}

/// Who a container runs as; `None` and `false` mean what the image and the runtime's safe defaults say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// Numeric user, over the image's.
    pub user: Option<u32>,
    /// Numeric group, over the image's.
    pub group: Option<u32>,
    /// A name or `name:group` of the image's `/etc/passwd`, over the image's; only where `user` is `None` (Compose
    /// `user`).
    pub user_name: Option<String>,
    /// Refuses to start as user 0.
    pub run_as_non_root: bool,
    /// Mounts the root file system read-only.
    pub read_only_root: bool,
    /// Capabilities over the default set, without `CAP_`, or `ALL`.
    pub add_capabilities: Vec<heapless::String<32>>,
    /// Capabilities taken from the default set, without `CAP_`, or `ALL`.
    pub drop_capabilities: Vec<heapless::String<32>>,
    /// System calls are not filtered.
    pub seccomp_unconfined: bool,
}

/// Upper bounds of a container; `None` is no bound of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Memory and swap together in bytes, as Docker counts it; never below `memory_bytes`.
    pub memory_swap_bytes: Option<u64>,
    /// CPU time in thousandths of one CPU.
    pub cpu_millis: Option<u32>,
    /// CPUs that it may use, as `0-2,7`.
    pub cpuset: Option<String>,
    /// Processes and threads.
    pub pids: Option<u32>,
    /// Bytes of its logs, its writable layer and its emptyDirs on disk.
    pub ephemeral_storage_bytes: Option<u64>,
    /// Huge pages: size of one in bytes, and bytes of them.
    pub huge_pages: Vec<(u64, u64)>,
    /// Block devices.
    pub block_io: Vec<BlockIo>,
    /// setrlimit(2).
    pub ulimits: Vec<Ulimit>,
    /// Size of `/dev/shm` in bytes; `None` is 64 MiB.
    pub shm_bytes: Option<u64>,
    /// -1000 to 1000 instead of what follows from the pod's QoS class.
    pub oom_score_adj: Option<i16>,
}

/// What a container is sure to get; `None` is the limit, where there is one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// CPU time in thousandths of one CPU.
    pub cpu_millis: Option<u32>,
    /// Bytes on disk.
    pub ephemeral_storage_bytes: Option<u64>,
}

/// Bounds for one block device; `None` is no bound.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockIo {
    /// Its node below `/dev`.
    pub device: String,
    /// Bytes a second read.
    pub read_bytes: Option<u64>,
    /// Bytes a second written.
    pub write_bytes: Option<u64>,
    /// Operations a second read.
    pub read_operations: Option<u64>,
    /// Operations a second written.
    pub write_operations: Option<u64>,
}

/// One resource limit of processes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// As in `getrlimit(2)`, in small letters without `RLIMIT_`: `nofile`.
    pub name: heapless::String<16>,
    /// `u64::MAX` is none.
    pub soft: u64,
    /// `u64::MAX` is none.
    pub hard: u64,
}

/// A device of the host in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// On the host, below `/dev`.
    pub path: String,
    /// In the container, below `/dev`.
    pub container_path: String,
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be made with mknod(2).
    pub mknod: bool,
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
