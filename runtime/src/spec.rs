//! The default specification: what a container is unless somebody says otherwise.
//!
//! Owns the safe defaults. Must not depend on the host that it runs on, so that plans are the same everywhere.

use crate::capabilities;
use crate::oci::{
    LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder,
    ProcessBuilder, RootBuilder, Spec, User,
};
use std::collections::HashSet;

/// The environment's `PATH` when the image has none.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Hidden from containers: they tell of the host or reach its hardware.
pub(crate) const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Readable, but writing there would change the host.
pub(crate) const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Makes the default specification: the mounts, devices and masks of the OCI runtime specification, new mount, pid, uts,
/// ipc, network and cgroup namespaces, a small capability set, `no_new_privileges`, the default seccomp profile, and `sh`
/// as the program.
pub fn default_spec() -> Spec {
    let held: HashSet<_> = capabilities::DEFAULT.into_iter().collect();
    let seccomp = crate::default_seccomp(&held).expect("the built-in profile is read by a test");
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(held.clone())
        .effective(held.clone())
        .permitted(held)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build();
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(User::default())
        .args(vec!["sh".to_string()])
        .env(vec![format!("PATH={DEFAULT_PATH}")])
        .cwd("/")
        .capabilities(capabilities.expect("every field is set"))
        .rlimits(Vec::new())
        .no_new_privileges(true)
        .build();
    let linux = LinuxBuilder::default()
        .namespaces(namespaces())
        .masked_paths(MASKED.map(String::from))
        .readonly_paths(READ_ONLY.map(String::from))
        .seccomp(seccomp)
        .build();
    let root = RootBuilder::default().path("rootfs").readonly(false).build();
    let mut spec = Spec::default();
    spec.set_version("1.2.0".into())
        .set_hostname(None)
        .set_annotations(None)
        .set_root(Some(root.expect("every field is set")))
        .set_mounts(Some(mounts()))
        .set_process(Some(process.expect("every field is set")))
        .set_linux(Some(linux.expect("every field is set")));
    spec
}

fn namespaces() -> Vec<crate::oci::LinuxNamespace> {
    let kinds = [
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Cgroup,
    ];
    kinds.map(|kind| LinuxNamespaceBuilder::default().typ(kind).build().expect("every field is set")).into()
}

fn mounts() -> Vec<Mount> {
    let table = [
        ("/proc", "proc", "proc", "nosuid,noexec,nodev"),
        ("/dev", "tmpfs", "tmpfs", "nosuid,strictatime,mode=755,size=65536k"),
        ("/dev/pts", "devpts", "devpts", "nosuid,noexec,newinstance,ptmxmode=0666,mode=0620,gid=5"),
        ("/dev/shm", "tmpfs", "shm", "nosuid,noexec,nodev,mode=1777,size=65536k"),
        ("/dev/mqueue", "mqueue", "mqueue", "nosuid,noexec,nodev"),
        ("/sys", "sysfs", "sysfs", "nosuid,noexec,nodev,ro"),
        ("/sys/fs/cgroup", "cgroup", "cgroup", "nosuid,noexec,nodev,relatime,ro"),
    ];
    let mount = |(destination, kind, source, options): (&str, &str, &str, &str)| {
        let options: Vec<String> = options.split(',').map(String::from).collect();
        let builder = MountBuilder::default().destination(destination).typ(kind).source(source).options(options);
        builder.build().expect("every field is set")
    };
    table.into_iter().map(mount).collect()
}
