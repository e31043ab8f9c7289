//! One container: an OCI runtime specification becomes a [`Plan`], and the plan a process.
//!
//! Owns namespaces, mounts, capabilities, seccomp, cgroups and the start of processes. Must not know the wire protocol,
//! images or pods, must not keep state on disk, and never outlives a call: there is no thread and no daemon in here.
//!
//! ```text
//!   caller                                            child (a copy; system calls only)
//!   ------                                            ---------------------------------
//!   Plan::compile: every path, string and number
//!   Plan::start:   clone3 ──────────────────────────▶ cgroup, namespaces
//!        │                                            root, mounts, devices, masks, pivot_root
//!        │         (index of the step, errno)         limits, user, capabilities, seccomp
//!        │◀────────────── socket ──────────────────── a step failed: the plan is off
//!        │◀────────────── end of file ─────────────── execve succeeded: the socket closed itself
//!        ▼
//!   Started { pid, pidfd } or StartError that names the step, its path and the reason
//! ```

#![deny(unsafe_code)]

mod attributes;
mod capabilities;
mod cgroup;
mod compile;
mod config;
mod exec;
mod executable;
mod features;
#[cfg(feature = "floor")]
mod floor;
mod handshake;
mod hooks;
mod mounts;
mod network;
mod plan;
mod process;
mod seccomp;
mod signal;
mod spec;
mod step;
mod sys;
mod terminal;
#[cfg(test)]
mod tests;
mod user_namespace;

pub use cgroup::{
    BlockEntry, BlockStats, Cgroup, CgroupError, CgroupPath, CpuStats, CpuUsage, HostCgroups, HugePageStats, Limits,
    MemoryEntry, MemoryStats, OomWatch, PidsStats, Pressure, PressureTotal, Stats, Throttling, host_cgroups,
};
pub use compile::{Extras, PlanError, Request, Root};
pub use config::{ConfigError, InvalidConfig, Violation, parse_config, parse_process, read_config, read_process};
pub use exec::{ExecRequest, exec};
pub use executable::protect_executable;
pub use features::features;
#[cfg(feature = "floor")]
pub use floor::{Floor, Handed};
pub use handshake::{bind_start_socket, is_waiting};
pub use hooks::{HookError, HookState, run_hooks};
pub use mounts::mount_options;
pub use network::{NetworkError, new_network, new_network_with_users};
pub use oci_spec::runtime as oci;
pub use plan::{Exit, Plan, Reaper, StartError, StartRequest, Started, Stdio, start_waiting, wait};
pub use seccomp::{SeccompError, default_seccomp};
pub use signal::send_signal;
pub use spec::default_spec;
pub use terminal::{receive_terminal, resize_terminal, terminal_pair};
pub use user_namespace::{UserNamespaceError, check_other_ids, new_user_namespace, user_namespace_of};
