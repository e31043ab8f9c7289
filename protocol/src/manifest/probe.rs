//! How a container is asked how it is, and what is done around its life.

use serde::{Deserialize, Serialize};

/// A question that is put to a container again and again (Kubernetes `v1.Probe`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What is done.
    pub action: Handler,
    /// Milliseconds from the container's start to the first try.
    pub initial_delay_ms: u32,
    /// Milliseconds from one try to the next; not 0.
    pub period_ms: u32,
    /// Milliseconds after which a try has failed; not 0.
    pub timeout_ms: u32,
    /// Successes in a row that count as well; at least 1, and 1 for startup and liveness.
    pub success_threshold: u32,
    /// Failures in a row that count as ill; at least 1.
    pub failure_threshold: u32,
    /// Seconds from the stop signal to the kill when this probe's failure ends the container; `None`: as the pod says.
    pub termination_grace_seconds: Option<u32>,
}

/// Something that is done to a container from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Handler {
    /// Runs a program in the container; well where it exits with 0.
    Exec {
        /// Program and arguments; not empty.
        command: Vec<String>,
    },
    /// Asks by HTTP; well where the answer is 200 to 399.
    HttpGet(HttpGet),
    /// Opens a TCP connection.
    TcpSocket {
        /// Instead of the pod's address.
        host: Option<String>,
        /// Number of the port.
        port: u16,
    },
    /// Asks `grpc.health.v1.Health/Check`.
    Grpc {
        /// Number of the port.
        port: u16,
        /// Name of the service that is asked about; may be empty.
        service: String,
    },
    /// Lets time pass; hooks only.
    Sleep {
        /// So long.
        seconds: u32,
    },
}

/// An HTTP request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpGet {
    /// With TLS; the certificate is not verified.
    pub https: bool,
    /// Instead of the pod's address.
    pub host: Option<String>,
    /// Number of the port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// Further header fields: names and values.
    pub headers: Vec<(String, String)>,
}

/// Probes of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probes {
    /// Until it succeeds the other two wait; its failure ends the container.
    pub startup: Option<Probe>,
    /// Its failure ends the container.
    pub liveness: Option<Probe>,
    /// While it fails no service leads to the pod.
    pub readiness: Option<Probe>,
    /// What the image says of its health is not asked (Compose `healthcheck: disable`). Where this is false and there is
    /// neither readiness nor startup nor liveness here, the image's `HEALTHCHECK` is a readiness probe.
    pub ignore_image: bool,
}

/// What is done around a container's life (Kubernetes `v1.Lifecycle`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// After its start; it counts as started when this has ended, and is ended where this fails.
    pub post_start: Option<Handler>,
    /// Before the stop signal, in the time of the grace period.
    pub pre_stop: Option<Handler>,
    /// Number of the signal that asks it to end; `None` is what the image says, else SIGTERM.
    pub stop_signal: Option<u8>,
}
