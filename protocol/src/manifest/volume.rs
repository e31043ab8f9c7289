//! Volumes of a pod and where a container sees them.

use serde::{Deserialize, Serialize};

use super::env::{DataSource, PodField, ResourceField};
use crate::id::Label;

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
    EmptyDir(EmptyDir),
    /// A path of the device.
    HostPath {
        /// Absolute.
        path: String,
        /// What must be there, or is made.
        kind: HostPathKind,
    },
    /// A folder of the device that outlives every pod, made when it is first used: Kubernetes' claims and Compose's
    /// named volumes.
    Persistent {
        /// Its name in the pod's namespace: a DNS name.
        name: String,
        /// For the whole pod.
        read_only: bool,
        /// While it is empty it takes owner and mode of the image's folder that it is mounted over, as in Docker.
        like_image: bool,
    },
    /// Files made of config maps, secrets and facts about the pod; they follow their sources without a restart.
    Projected {
        /// In order; a later one wins where two make the same file.
        sources: Vec<Projection>,
        /// Permission bits of files that have none of their own.
        default_mode: u16,
    },
}

/// An empty folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmptyDir {
    /// Kept in memory (tmpfs) instead of on disk.
    pub memory: bool,
    /// Most bytes in it.
    pub size_limit: Option<u64>,
    /// Permission bits; `None` is 0777.
    pub mode: Option<u16>,
}

/// What a hostPath volume must be (Kubernetes `HostPathType`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostPathKind {
    /// Anything that is there.
    #[default]
    Any,
    /// A folder; made where it is missing, 0755.
    DirectoryOrCreate,
    /// A folder.
    Directory,
    /// A file; made where it is missing, 0644.
    FileOrCreate,
    /// A file.
    File,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// One source of a projected volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Projection {
    /// Keys of a config map or secret.
    Data {
        /// Which.
        source: DataSource,
        /// Only these keys; empty is every key under its own name.
        items: Vec<KeyPath>,
    },
    /// Facts about the pod.
    Downward(Vec<DownwardFile>),
}

/// A key and the file that it becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPath {
    /// The key.
    pub key: String,
    /// Relative, without `..`.
    pub path: String,
    /// Permission bits.
    pub mode: Option<u16>,
}

/// A file with a fact about the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownwardFile {
    /// Relative, without `..`.
    pub path: String,
    /// Permission bits.
    pub mode: Option<u16>,
    /// What stands in it.
    pub value: DownwardValue,
}

/// What stands in a file about the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownwardValue {
    /// Something of the pod.
    Field(PodField),
    /// A bound of a container.
    Resource(ResourceField),
}

/// A volume mounted in a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// Name of the pod's volume.
    pub volume: Label,
    /// Absolute path inside the container.
    pub path: String,
    /// Mounted read-only.
    pub read_only: bool,
    /// Only this of the volume: relative, without `..`; `$(NAME)` is replaced from the container's environment.
    pub sub_path: Option<String>,
}
