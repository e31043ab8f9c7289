//! Every bound of the wire in one place. A peer that exceeds one is cut off; it is never obeyed in part.

/// Largest frame body in bytes. A larger frame ends the connection before anything of it is buffered.
pub const MAX_FRAME: usize = 256 * 1024;
/// Most pods in one manifest.
pub const MAX_PODS: usize = 1024;
/// Most containers in one pod.
pub const MAX_CONTAINERS: usize = 32;
/// Most volumes in one pod, and most mounts in one container.
pub const MAX_VOLUMES: usize = 64;
/// Most published ports of one container.
pub const MAX_PORTS: usize = 64;
/// Most words in a command, and most arguments.
pub const MAX_ARGS: usize = 1024;
/// Most environment variables of one container.
pub const MAX_ENV: usize = 1024;
/// Longest path in bytes, as PATH_MAX of Linux less the final NUL.
pub const MAX_PATH: usize = 4095;
/// Longest human-readable text (reason messages, errors) in bytes; senders cut theirs to fit.
pub const MAX_TEXT: usize = 1024;
/// Longest image reference in bytes (host 255 + repository 255 + tag 128 + digest, rounded up).
pub const MAX_REFERENCE: usize = 1024;
/// Most pull secrets that one pod names.
pub const MAX_PULL_SECRETS: usize = 32;
/// Longest text of one pull secret in bytes; all of a node's together fit into one frame.
pub const MAX_PULL_SECRET: usize = 64 * 1024;
/// Most streams open on one connection.
pub const MAX_STREAMS: usize = 64;
/// Bytes that a stream's sender may have under way before the receiver grants more.
pub const STREAM_WINDOW: u32 = 64 * 1024;
/// Largest body of one piece of stream data in bytes.
pub const MAX_STREAM_DATA: usize = 16 * 1024;
/// Most labels, annotations, selectors and the like of one object.
pub const MAX_LABELS: usize = 256;
/// Most config maps and secrets, services, jobs and cron jobs, each, in one manifest.
pub const MAX_ITEMS: usize = 1024;
/// Most named networks in one manifest, and of one pod.
pub const MAX_NETWORKS: usize = 64;
/// Largest config map or secret in bytes, keys and values together (Kubernetes: 1 MiB).
pub const MAX_DATA: usize = 1 << 20;
/// Largest body of a manifest in bytes.
pub const MAX_BODY: usize = 32 << 20;
