//! The cgroups of pods and containers, by their names below each hierarchy's root.
//!
//! Owns what the agent knows of the host's hierarchies, read once. Must not know pods.

use skeg_runtime::{Cgroup, CgroupError, CgroupPath, HostCgroups, Limits, host_cgroups};
use std::sync::OnceLock;

/// How the host mounts its cgroups. They are mounted before the agent starts and stay.
static HOST: OnceLock<HostCgroups> = OnceLock::new();

fn host() -> Result<&'static HostCgroups, CgroupError> {
    match HOST.get() {
        Some(host) => Ok(host),
        None => host_cgroups().map(|found| HOST.get_or_init(|| found)),
    }
}

/// Makes the cgroup of a container, which ends as a whole when its memory runs out.
pub fn create(name: &str, limits: &Limits) -> Result<Cgroup, CgroupError> {
    let cgroup = Cgroup::create(host()?, &CgroupPath::below_root(name)?, &limits.resources())?;
    cgroup.kill_together_on_oom()?;
    Ok(cgroup)
}

/// Finds the cgroup of a container or pod.
pub fn open(name: &str) -> Result<Cgroup, CgroupError> {
    Cgroup::open(host()?, &CgroupPath::below_root(name)?)
}
