//! How the host mounts its cgroups.
//!
//! Owns reading the mount table, by filesystem type and never by the names of folders. Must not make or change cgroups.

use super::CgroupError;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The controllers that a specification can ask something of, by the names of both versions.
const CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "pids",
    "devices",
    "freezer",
    "blkio",
    "io",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "rdma",
];

/// The version of a mounted hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// One mounted cgroup hierarchy.
#[derive(Clone, Debug)]
pub(super) struct Hierarchy {
    pub(super) version: Version,
    pub(super) mount: PathBuf,
    /// All that it offers, in the kernel's order; `name=systemd` for a named one.
    pub(super) controllers: Vec<String>,
}

/// How the host mounts its cgroups. Reading it takes longer than making a cgroup: whoever stays should keep it.
#[derive(Clone, Debug)]
pub struct HostCgroups {
    hierarchies: Arc<[Arc<Hierarchy>]>,
}

/// Finds the cgroup filesystems of this host by their type in the mount table.
///
/// # Errors
/// [`CgroupError::Mounts`] if the mount table cannot be read, [`CgroupError::NotMounted`] if there is none.
pub fn host_cgroups() -> Result<HostCgroups, CgroupError> {
    let path = Path::new("/proc/self/mountinfo");
    let table = fs::read_to_string(path).map_err(|source| CgroupError::Mounts { path: path.into(), source })?;
    HostCgroups::from_mount_table(&table)
}

impl fmt::Display for HostCgroups {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = |version| self.hierarchies.iter().any(|hierarchy| hierarchy.version == version);
        formatter.write_str(match (has(Version::One), has(Version::Two)) {
            (true, true) => "hybrid",
            (true, false) => "v1",
            _ => "v2",
        })
    }
}

impl HostCgroups {
    pub(crate) fn from_mount_table(table: &str) -> Result<HostCgroups, CgroupError> {
        let mut hierarchies: Vec<Arc<Hierarchy>> = Vec::new();
        for line in table.lines() {
            let Some(hierarchy) = Hierarchy::from_mount_line(line) else { continue };
            if !hierarchies.iter().any(|known| known.same_as(&hierarchy)) {
                hierarchies.push(Arc::new(hierarchy));
            }
        }
        if hierarchies.is_empty() {
            return Err(CgroupError::NotMounted);
        }
        Ok(HostCgroups { hierarchies: hierarchies.into() })
    }

    /// The hierarchies of version 1 as `cpu,cpuacct`, for mounting them in a container.
    pub(crate) fn version_one(&self) -> impl Iterator<Item = String> {
        self.hierarchies.iter().filter(|hierarchy| hierarchy.version == Version::One).map(|hierarchy| hierarchy.key())
    }

    /// The hierarchies to make folders in: those with a controller that a specification knows, and version 2 always,
    /// because it alone can take a newborn process and kill a whole group at once.
    pub(super) fn used(&self) -> impl Iterator<Item = &Arc<Hierarchy>> {
        self.hierarchies.iter().filter(|hierarchy| {
            hierarchy.version == Version::Two || CONTROLLERS.iter().any(|controller| hierarchy.offers(controller))
        })
    }
}

impl Hierarchy {
    /// Reads a line of proc_pid_mountinfo(5).
    fn from_mount_line(line: &str) -> Option<Hierarchy> {
        let (before, after) = line.split_once(" - ")?;
        let mount = PathBuf::from(unescape(before.split(' ').nth(4)?));
        let mut fields = after.split(' ');
        let version = match fields.next()? {
            "cgroup" => Version::One,
            "cgroup2" => Version::Two,
            _ => return None,
        };
        let controllers = match version {
            Version::One => fields
                .nth(1)?
                .split(',')
                .filter(|option| !matches!(*option, "rw" | "ro" | "xattr" | "noprefix" | "clone_children" | "none"))
                .filter(|option| !option.starts_with("release_agent="))
                .map(String::from)
                .collect(),
            // A hierarchy whose list cannot be read offers nothing; asking for a limit then tells.
            Version::Two => words(&fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default()),
        };
        Some(Hierarchy { version, mount, controllers })
    }

    pub(super) fn offers(&self, controller: &str) -> bool {
        self.controllers.iter().any(|offered| offered == controller)
    }

    /// What stands for it in a saved state: its controllers as `cpu,cpuacct`, nothing for version 2.
    pub(super) fn key(&self) -> String {
        match self.version {
            Version::One => self.controllers.join(","),
            Version::Two => String::new(),
        }
    }

    /// The same hierarchy mounted a second time.
    fn same_as(&self, other: &Hierarchy) -> bool {
        self.version == other.version && (self.version == Version::Two || self.controllers == other.controllers)
    }
}

pub(super) fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

/// Undoes the octal escapes of the mount table.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}
