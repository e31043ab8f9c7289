//! What a container finds in its environment, and what of a pod it can ask for. Values that refer to something are
//! resolved on the device when the container starts; `$(NAME)` in a value, a command or an argument is then replaced
//! as Kubernetes does it (`$$` is a dollar sign).

use serde::{Deserialize, Serialize};

use crate::id::Label;

/// One environment variable.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Not empty, without `=` or NUL.
    pub name: String,
    /// Where its value comes from.
    pub value: EnvValue,
}

/// Where the value of a variable comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EnvValue {
    /// This text, without NUL.
    Text(String),
    /// One key of a config map or secret.
    Key {
        /// Which one.
        source: DataSource,
        /// Which key of it.
        key: String,
    },
    /// Something of the pod (Kubernetes `fieldRef`).
    Field(PodField),
    /// A bound of a container (Kubernetes `resourceFieldRef`).
    Resource(ResourceField),
}

impl Default for EnvValue {
    fn default() -> Self {
        EnvValue::Text(String::new())
    }
}

impl From<&str> for EnvValue {
    fn from(text: &str) -> Self {
        EnvValue::Text(text.to_owned())
    }
}

/// Every key of a config map or secret as a variable; keys that are no variable names are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvFrom {
    /// Goes before each key.
    pub prefix: String,
    /// Where the keys are.
    pub source: DataSource,
}

/// A config map or a secret of the pod's namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSource {
    /// Which of the two.
    pub kind: DataKind,
    /// Its name: a DNS name.
    pub name: String,
    /// The pod starts also where it, or the key that is asked for, is missing.
    pub optional: bool,
}

/// A config map or a secret.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DataKind {
    /// Anybody may read it.
    #[default]
    ConfigMap,
    /// In memory or encrypted, never else.
    Secret,
}

/// Something that a pod can be told about itself (Kubernetes `fieldPath`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodField {
    /// `metadata.name`.
    Name,
    /// `metadata.namespace`.
    Namespace,
    /// `metadata.uid`.
    Uid,
    /// `metadata.labels['…']`.
    Label(String),
    /// `metadata.annotations['…']`.
    Annotation(String),
    /// `metadata.labels`, one `key="value"` a line; files only.
    Labels,
    /// `metadata.annotations`, the same.
    Annotations,
    /// `spec.nodeName`.
    NodeName,
    /// `spec.serviceAccountName`.
    ServiceAccountName,
    /// `status.hostIP`.
    HostIp,
    /// `status.hostIPs`, with commas between them.
    HostIps,
    /// `status.podIP`.
    PodIp,
    /// `status.podIPs`, with commas between them.
    PodIps,
}

/// A bound or request of a container, divided and rounded up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceField {
    /// Whose; `None` is the container that asks. Files must name one.
    pub container: Option<Label>,
    /// Which.
    pub resource: ResourceName,
    /// In thousandths of the unit (one byte, one CPU): 1000 for bytes, 1 for thousandths of a CPU; not 0.
    pub divisor_millis: u64,
}

/// Which bound or request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResourceName {
    /// `limits.cpu`; the node's where the container has none.
    LimitsCpu,
    /// `limits.memory`; the node's where the container has none.
    LimitsMemory,
    /// `limits.ephemeral-storage`; the node's where the container has none.
    LimitsEphemeralStorage,
    /// `requests.cpu`.
    RequestsCpu,
    /// `requests.memory`.
    RequestsMemory,
    /// `requests.ephemeral-storage`.
    RequestsEphemeralStorage,
}
