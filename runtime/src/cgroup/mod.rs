//! Control groups: where a container's processes are counted, bounded and ended.
//!
//! Owns folders below the cgroup filesystems, on version 2, on version 1, and on hosts that mount both. Must not know
//! containers or plans. What is left to `cgroups-rs` and what is not: `docs/decisions/0002-cgroups.md`.
//!
//! ```text
//!   HostCgroups ──┐                        linux.resources
//!   CgroupPath ───┴─▶ prepare ──▶ Cgroup ──▶ limit: settings (pure), then written ──▶ entry: a child is born in it
//!                     folders and controllers; can be done ahead
//! ```

pub(crate) mod devices;
mod error;
mod freezer;
mod hierarchy;
mod oom;
mod path;
mod processes;
mod setting;
mod shared;
mod stats;
#[cfg(test)]
mod tests;
mod tree;
mod version_one;
mod version_two;

pub(crate) use devices::Instruction;
pub use error::CgroupError;
pub use hierarchy::{HostCgroups, host_cgroups};
pub use oom::OomWatch;
pub use path::CgroupPath;
pub use stats::{
    BlockEntry, BlockStats, CpuStats, CpuUsage, HugePageStats, MemoryEntry, MemoryStats, PidsStats, Pressure,
    PressureTotal, Stats, Throttling,
};

use crate::{oci, sys};
use hierarchy::{Hierarchy, Version, words};
use setting::{Setting, apply, write};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The scheduling period that CPU limits are counted in; the kernel's default.
const CPU_PERIOD_MICROSECONDS: u64 = 100_000;
/// The smallest CPU quota that the kernel takes.
const CPU_QUOTA_MINIMUM_MICROSECONDS: u64 = 1_000;
/// How long processes that were killed may take to leave, or to stop when frozen.
const PATIENCE: Duration = Duration::from_secs(10);

/// What bounds a pod's container. `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes, page cache included.
    pub memory_bytes: Option<u64>,
    /// CPU time in thousandths of one processor.
    pub cpu_millis: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
}

impl Limits {
    /// Says the same in the words of a specification. More than the kernel can count is unlimited; less CPU than it can
    /// give out is that.
    pub fn resources(&self) -> oci::LinuxResources {
        let signed = |value: u64| i64::try_from(value).unwrap_or(-1);
        let mut resources = oci::LinuxResources::default();
        if let Some(bytes) = self.memory_bytes {
            let mut memory = oci::LinuxMemory::default();
            memory.set_limit(Some(signed(bytes)));
            resources.set_memory(Some(memory));
        }
        if let Some(millis) = self.cpu_millis {
            let quota = millis.saturating_mul(CPU_PERIOD_MICROSECONDS) / 1000;
            let mut cpu = oci::LinuxCpu::default();
            cpu.set_quota(Some(signed(quota.max(CPU_QUOTA_MINIMUM_MICROSECONDS))));
            cpu.set_period(Some(CPU_PERIOD_MICROSECONDS));
            resources.set_cpu(Some(cpu));
        }
        if let Some(count) = self.pids {
            let mut pids = oci::LinuxPids::default();
            pids.set_limit(signed(count));
            resources.set_pids(Some(pids));
        }
        resources
    }
}

/// One folder of a cgroup in one hierarchy.
#[derive(Clone, Debug)]
struct Folder {
    hierarchy: Arc<Hierarchy>,
    path: PathBuf,
}

/// What a child needs to enter a cgroup.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// A version 2 folder to be born in.
    pub(crate) born_in: Option<OwnedFd>,
    /// Version 1 `tasks` files to write a 0 to.
    pub(crate) tasks: Vec<(OwnedFd, PathBuf)>,
}

/// A container's cgroup: one folder in each hierarchy that is used.
#[derive(Clone, Debug)]
pub struct Cgroup {
    folders: Vec<Folder>,
    host: HostCgroups,
}

impl Cgroup {
    /// Makes the folders and hands the controllers down, without any limit, so that it can be done ahead. An empty cgroup
    /// of that path is taken over as it is. On version 2 no folder above the last but the root may hold processes, else
    /// it cannot hand controllers down; see the kernel's cgroup-v2.rst. What is not handed down is told when a limit
    /// asks for it.
    ///
    /// # Errors
    /// [`CgroupError::File`], [`CgroupError::Path`], and [`CgroupError::Busy`] if processes are in it.
    pub fn prepare(host: &HostCgroups, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        let cgroup = Cgroup::place(host, path)?;
        let mut found = false;
        for folder in &cgroup.folders {
            found |= !folder.make()?;
        }
        if !found {
            // Nobody can be in what was made just now.
            return Ok(cgroup);
        }
        let processes = cgroup.processes()?;
        if !processes.is_empty() {
            return Err(CgroupError::Busy { path: cgroup.path(), processes });
        }
        // Whoever is born in a cgroup that was left frozen never gets as far as its first instruction.
        if cgroup.is_frozen()? {
            cgroup.thaw()?;
        }
        Ok(cgroup)
    }

    /// Makes the cgroup and sets its limits: [`Cgroup::prepare`] and [`Cgroup::limit`].
    ///
    /// # Errors
    /// Theirs; what was made for a limit that cannot be set is removed again.
    pub fn create(
        host: &HostCgroups,
        path: &CgroupPath,
        resources: &oci::LinuxResources,
    ) -> Result<Cgroup, CgroupError> {
        let cgroup = Cgroup::prepare(host, path)?;
        if let Err(error) = cgroup.limit(resources) {
            // The first error is the one to tell; what stays here is empty and is taken over next time.
            let _ = cgroup.remove();
            return Err(error);
        }
        Ok(cgroup)
    }

    /// Finds a cgroup that was made before.
    ///
    /// # Errors
    /// [`CgroupError::Missing`] if no hierarchy has it.
    pub fn open(host: &HostCgroups, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        let cgroup = Cgroup::place(host, path)?;
        if cgroup.folders.iter().any(|folder| folder.path.is_dir()) {
            Ok(cgroup)
        } else {
            Err(CgroupError::Missing { path: cgroup.path() })
        }
    }

    /// The folders by hierarchy (`cpu,cpuacct`; nothing for version 2), for a state that is saved.
    pub fn folders(&self) -> BTreeMap<String, PathBuf> {
        self.folders.iter().map(|folder| (folder.hierarchy.key(), folder.path.clone())).collect()
    }

    /// Takes a cgroup by the folders of a saved state, whether they are still there or not: nobody is in what is gone, and
    /// it can be removed. Folders in hierarchies that are no longer mounted are left out.
    ///
    /// # Errors
    /// [`CgroupError::Path`] for a folder that is not below its hierarchy.
    pub fn restore(host: &HostCgroups, folders: &BTreeMap<String, PathBuf>) -> Result<Cgroup, CgroupError> {
        let mut cgroup = Cgroup { folders: Vec::new(), host: host.clone() };
        for hierarchy in host.used() {
            let Some(path) = folders.get(&hierarchy.key()) else { continue };
            let below = path.strip_prefix(&hierarchy.mount).ok().filter(|below| below.components().next().is_some());
            if below.is_none_or(|below| !below.components().all(|part| matches!(part, Component::Normal(_)))) {
                return Err(CgroupError::Path { path: path.clone(), problem: "of the saved state is not a cgroup's" });
            }
            cgroup.folders.push(Folder { hierarchy: hierarchy.clone(), path: path.clone() });
        }
        Ok(cgroup)
    }

    /// Names the folders that a cgroup has or would have. Nothing is looked at or made.
    ///
    /// # Errors
    /// [`CgroupError::File`] if the caller's own cgroup, to which the path is relative, cannot be read.
    pub fn place(host: &HostCgroups, path: &CgroupPath) -> Result<Cgroup, CgroupError> {
        let folder =
            |hierarchy: &Arc<Hierarchy>| Ok(Folder { hierarchy: hierarchy.clone(), path: path.folder(hierarchy)? });
        Ok(Cgroup { folders: host.used().map(folder).collect::<Result<_, CgroupError>>()?, host: host.clone() })
    }

    /// The host that it was made on.
    pub(crate) fn host(&self) -> &HostCgroups {
        &self.host
    }

    /// The folder that stands for all in messages.
    fn path(&self) -> PathBuf {
        self.unified().or(self.folders.first()).map(|folder| folder.path.clone()).unwrap_or_default()
    }

    fn find(&self, controller: &str) -> Option<&Folder> {
        self.folders.iter().find(|folder| folder.hierarchy.offers(controller))
    }

    fn version_one(&self, controller: &str) -> Option<&Folder> {
        self.find(controller).filter(|folder| folder.hierarchy.version == Version::One)
    }

    /// The version 2 folder, if that hierarchy is mounted.
    fn unified(&self) -> Option<&Folder> {
        self.folders.iter().find(|folder| folder.hierarchy.version == Version::Two)
    }

    /// Sets the limits of a new container: all of `linux.resources`, and the default devices with or without rules of
    /// its own. Settle this before anybody enters.
    ///
    /// # Errors
    /// [`CgroupError::NoController`], [`CgroupError::NoEqual`], [`CgroupError::Refused`], [`CgroupError::Limit`] and
    /// [`CgroupError::Devices`], each naming limit and value.
    pub fn limit(&self, resources: &oci::LinuxResources) -> Result<(), CgroupError> {
        self.restrict_devices(resources.devices().as_deref().unwrap_or_default())?;
        self.set(resources)
    }

    /// Changes limits while processes run. What is not named stays as it is, and so do the devices if no rule is named.
    /// When it fails, limits before the one that is told may have changed.
    ///
    /// # Errors
    /// Those of [`Cgroup::limit`].
    pub fn update(&self, resources: &oci::LinuxResources) -> Result<(), CgroupError> {
        if let Some(devices) = resources.devices().as_ref().filter(|devices| !devices.is_empty()) {
            // Version 1 takes rules one by one, starting from nothing: nobody may see the state between.
            let pause = self.version_one("devices").is_some() && !self.is_frozen()?;
            if pause {
                self.freeze()?;
            }
            let restricted = self.restrict_devices(devices);
            if pause {
                self.thaw()?;
            }
            restricted?;
        }
        self.set(resources)
    }

    fn set(&self, resources: &oci::LinuxResources) -> Result<(), CgroupError> {
        apply(self, self.settings(resources)?)?;
        // Last, for it overrides what the rest of the specification says; see config-linux.md, "Unified".
        match resources.unified().as_ref().filter(|unified| !unified.is_empty()) {
            Some(unified) => apply(self, version_two::unified(unified)?),
            None => Ok(()),
        }
    }

    /// Turns resources into settings, each controller in the version of its hierarchy.
    fn settings(&self, resources: &oci::LinuxResources) -> Result<Vec<Setting>, CgroupError> {
        let one = |controller| self.version_one(controller).is_some();
        let current = |controller: &'static str| {
            move |file: &str| self.find(controller).and_then(|folder| fs::read_to_string(folder.path.join(file)).ok())
        };
        let mut settings = Vec::new();
        if let Some(memory) = resources.memory() {
            let set = if one("memory") { version_one::memory } else { version_two::memory };
            settings.extend(set(memory, &current("memory"))?);
        }
        if let Some(cpu) = resources.cpu() {
            settings.extend(match one("cpu") {
                true => version_one::cpu(cpu),
                false => version_two::cpu(cpu, &current("cpu"))?,
            });
            settings.extend(if one("cpuset") { version_one::cpuset(cpu) } else { version_two::cpuset(cpu) });
        }
        if let Some(pids) = resources.pids() {
            settings.extend(if one("pids") { version_one::pids(pids) } else { version_two::pids(pids) });
        }
        if let Some(block_io) = resources.block_io() {
            settings.extend(match one("blkio") {
                true => version_one::block_io(block_io, &current("blkio"))?,
                false => version_two::block_io(block_io, &current("io"))?,
            });
        }
        if let Some(limits) = resources.hugepage_limits() {
            settings.extend(if one("hugetlb") { version_one::hugetlb(limits) } else { version_two::hugetlb(limits) }?);
        }
        if let Some(devices) = resources.rdma() {
            settings.extend(if one("rdma") { version_one::rdma(devices) } else { version_two::rdma(devices) }?);
        }
        if let Some(network) = resources.network() {
            // A host without any of version 1 can only tell that there is no equal.
            if self.folders.iter().all(|folder| folder.hierarchy.version == Version::Two) {
                settings.extend(version_two::network(network)?);
            } else {
                settings.extend(version_one::network_class(network));
                settings.extend(version_one::network_priorities(network)?);
            }
        }
        Ok(settings)
    }

    /// Lets the container use the devices of these rules and the default ones, and no others.
    fn restrict_devices(&self, devices: &[oci::LinuxDeviceCgroup]) -> Result<(), CgroupError> {
        let rules = devices::rules(devices)?;
        if let Some(folder) = self.version_one("devices") {
            devices::check_version_one(&rules)?;
            return rules.iter().try_for_each(|rule| {
                let (file, value) = (folder.path.join(rule.file()), rule.to_string());
                let written = write(&file, &value);
                written.map_err(|source| CgroupError::Limit { limit: "devices".into(), file, value, source })
            });
        }
        match (self.unified(), devices::program(&rules)) {
            (Some(folder), program) => folder.attach_device_program(program.as_deref()),
            (None, None) => Ok(()),
            (None, Some(_)) => Err(CgroupError::NoController {
                limit: "devices".into(),
                value: format!("{} rules", rules.len()),
                controller: "devices".into(),
                option: "CONFIG_CGROUP_DEVICE",
            }),
        }
    }

    /// Ends a container as a whole when its memory runs out: half a container is worse than none. The agent's policy;
    /// version 1 knows no such thing, and a specification asks for it by `unified`.
    ///
    /// # Errors
    /// [`CgroupError::Limit`].
    pub fn kill_together_on_oom(&self) -> Result<(), CgroupError> {
        match self.find("memory") {
            Some(folder) if folder.hierarchy.version == Version::Two => {
                apply(self, vec![Setting::new("unified[\"memory.oom.group\"]", "memory", "memory.oom.group", 1)])
            }
            _ => Ok(()),
        }
    }

    /// Hands a version 2 cgroup over to `uid`, so that a container with a cgroup namespace and a writable mount can
    /// divide what it got but not raise it; see config-linux.md, "Cgroup ownership". Version 1 is left alone.
    ///
    /// # Errors
    /// [`CgroupError::File`] for what cannot be given away.
    pub fn delegate(&self, uid: u32) -> Result<(), CgroupError> {
        let Some(folder) = self.unified() else { return Ok(()) };
        let list = match fs::read_to_string("/sys/kernel/cgroup/delegate") {
            Ok(list) => list,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                "cgroup.procs cgroup.subtree_control cgroup.threads".into()
            }
            Err(source) => {
                return Err(CgroupError::Mounts { path: "/sys/kernel/cgroup/delegate".into(), source });
            }
        };
        for file in std::iter::once("").chain(list.split_whitespace()) {
            match std::os::unix::fs::chown(folder.path.join(file), Some(uid), None) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !file.is_empty() => {}
                Err(source) => return Err(folder.error("give away", file, source)),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Opens what a child needs to enter.
    pub(crate) fn entry(&self) -> Result<Entry, CgroupError> {
        let mut entry = Entry::default();
        for folder in &self.folders {
            match folder.hierarchy.version {
                Version::Two => entry.born_in = Some(folder.open()?),
                Version::One => {
                    let path = folder.path.join("tasks");
                    let opened = fs::OpenOptions::new().write(true).open(&path);
                    let file = opened.map_err(|source| folder.error("open", "tasks", source))?;
                    entry.tasks.push((file.into(), folder.path.clone()));
                }
            }
        }
        Ok(entry)
    }

    /// Memory in use in bytes, page cache included; `None` without a memory controller.
    ///
    /// # Errors
    /// [`CgroupError::File`] if the count cannot be read.
    pub fn memory_usage(&self) -> Result<Option<u64>, CgroupError> {
        let Some(folder) = self.find("memory") else { return Ok(None) };
        let file = match folder.hierarchy.version {
            Version::One => "memory.usage_in_bytes",
            Version::Two => "memory.current",
        };
        Ok(folder.read_if_there(file)?.and_then(|text| text.trim().parse().ok()))
    }
}

impl Folder {
    fn error(&self, action: &'static str, file: &str, source: io::Error) -> CgroupError {
        let path = if file.is_empty() { self.path.clone() } else { self.path.join(file) };
        CgroupError::File { action, path, source }
    }

    /// Makes the folder and those above it. Says whether the folder is new.
    fn make(&self) -> Result<bool, CgroupError> {
        let mut new = false;
        let below = self.path.strip_prefix(&self.hierarchy.mount).unwrap_or(&self.path);
        let mut path = self.hierarchy.mount.clone();
        for part in below.components() {
            let parent = path.clone();
            if self.hierarchy.version == Version::Two {
                self.hand_down(&parent)?;
            }
            path.push(part);
            new = match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                Err(source) => return Err(CgroupError::File { action: "create", path, source }),
                Ok(()) => true,
            };
            if self.hierarchy.version == Version::One && self.hierarchy.offers("cpuset") {
                inherit(&parent, &path)?;
            }
        }
        Ok(new)
    }

    /// Enables in a folder's children what the folder has, all at once if the kernel lets.
    fn hand_down(&self, folder: &Path) -> Result<(), CgroupError> {
        let read = |name: &str| {
            let path = folder.join(name);
            let text = fs::read_to_string(&path);
            text.map(|text| words(&text)).map_err(|source| CgroupError::File { action: "read", path, source })
        };
        let (offered, enabled) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
        let missing: Vec<_> =
            offered.iter().filter(|name| !enabled.contains(name)).map(|name| format!("+{name}")).collect();
        let file = folder.join("cgroup.subtree_control");
        if !missing.is_empty() && write(&file, &missing.join(" ")).is_err() {
            for controller in missing {
                // A limit that asks for one that stays away tells so; no limit may ask.
                if let Err(error) = write(&file, &controller) {
                    log::debug!("{}: {controller}: {error}", file.display());
                }
            }
        }
        Ok(())
    }

    /// Tells whether the folder itself has a controller; on version 2 that is up to those above it.
    fn has(&self, controller: &str) -> Result<bool, CgroupError> {
        match self.hierarchy.version {
            Version::One => Ok(self.hierarchy.offers(controller)),
            Version::Two => {
                let text = self.read_if_there("cgroup.controllers")?.unwrap_or_default();
                Ok(text.split_whitespace().any(|name| name == controller))
            }
        }
    }

    /// A controller of cgroups-rs for this folder and no other.
    fn controller<C>(&self, new: fn(PathBuf, PathBuf, bool) -> C) -> C {
        new(self.path.clone(), self.hierarchy.mount.clone(), self.hierarchy.version == Version::Two)
    }

    fn open(&self) -> Result<OwnedFd, CgroupError> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let opened = fs::OpenOptions::new().read(true).custom_flags(flags).open(&self.path);
        opened.map(OwnedFd::from).map_err(|source| self.error("open", "", source))
    }

    /// Puts a program in charge of devices, and takes away the ones of before. Between, both must agree to a use.
    fn attach_device_program(&self, program: Option<&[Instruction]>) -> Result<(), CgroupError> {
        let failed = |action| {
            move |errno: sys::Errno| CgroupError::Devices { action, path: self.path.clone(), source: errno.into() }
        };
        let folder = fs::File::open(&self.path).map_err(|source| self.error("open", "", source))?;
        let folder = folder.as_raw_fd();
        let before = sys::device_programs(folder);
        if let Some(program) = program {
            let loaded = sys::load_device_program(program).map_err(failed("load the BPF program that keeps them"))?;
            let attached = sys::attach_device_program(folder, loaded.as_raw_fd());
            attached.map_err(failed("attach the BPF program that keeps them"))?;
        }
        match before {
            // Without the right to look there is also none to have attached one.
            Err(errno) if program.is_none() && errno.0 == libc::EPERM => Ok(()),
            before => before
                .and_then(|before| before.iter().try_for_each(|id| sys::detach_device_program(folder, *id)))
                .map_err(failed("take the BPF program of before away")),
        }
    }

    fn read_if_there(&self, file: &str) -> Result<Option<String>, CgroupError> {
        match fs::read_to_string(self.path.join(file)) {
            Ok(text) => Ok(Some(text)),
            // ENODEV: the folder was removed between open and read.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(None),
            Err(source) => Err(self.error("read", file, source)),
        }
    }
}

/// Gives a new version 1 cpuset what its parent has: without processors and memory nodes nobody can enter.
fn inherit(parent: &Path, folder: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let read = |folder: &Path| {
            let path = folder.join(file);
            fs::read_to_string(&path).map_err(|source| CgroupError::File { action: "read", path, source })
        };
        if read(folder)?.trim().is_empty() {
            let path = folder.join(file);
            let written = write(&path, read(parent)?.trim());
            written.map_err(|source| CgroupError::File { action: "write", path, source })?;
        }
    }
    Ok(())
}
