//! The cgroups of pods and containers, by their names below each hierarchy's root.
//!
//! Owns what the agent knows of the host's hierarchies, read once. Must not know pods.

use std::sync::OnceLock;

use skeg_runtime::oci::LinuxResources;
use skeg_runtime::{Cgroup, CgroupError, CgroupPath, HostCgroups, host_cgroups};

/// How the host mounts its cgroups. They are mounted before the agent starts and stay.
static HOST: OnceLock<HostCgroups> = OnceLock::new();

fn host() -> Result<&'static HostCgroups, CgroupError> {
    match HOST.get() {
        Some(host) => Ok(host),
        None => host_cgroups().map(|found| HOST.get_or_init(|| found)),
    }
}

/// Makes the cgroup of a container, which ends as a whole when its memory runs out.
pub fn create(name: &str, resources: &LinuxResources) -> Result<Cgroup, CgroupError> {
    let cgroup = Cgroup::create(host()?, &CgroupPath::below_root(name)?, resources)?;
    cgroup.kill_together_on_oom()?;
    Ok(cgroup)
}

/// Makes the cgroup that a pod's containers are in, or takes it as it is, and sets its share of the device.
pub fn weigh(name: &str, resources: &LinuxResources) -> Result<(), CgroupError> {
    let path = CgroupPath::below_root(name)?;
    let cgroup = match Cgroup::open(host()?, &path) {
        Err(CgroupError::Missing { .. }) => Cgroup::prepare(host()?, &path)?,
        found => found?,
    };
    cgroup.update(resources)
}

/// Finds the cgroup of a container or pod.
pub fn open(name: &str) -> Result<Cgroup, CgroupError> {
    Cgroup::open(host()?, &CgroupPath::below_root(name)?)
}
