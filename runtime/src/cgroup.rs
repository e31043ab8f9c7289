//! Control groups: where a container's processes are counted, bounded and ended.
//!
//! Owns folders below the cgroup filesystems, on version 2, on version 1, and on hosts that mount both. Must not know
//! containers or plans. Limits are written by `cgroups-rs`; why the rest is own code: `docs/decisions/0002-cgroups.md`.

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::pid::PidController;
use std::collections::BTreeSet;
use std::error::Error as _;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The controllers that skeg uses.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// The scheduling period that CPU limits are counted in; the kernel's default.
const CPU_PERIOD_MICROSECONDS: u64 = 100_000;
/// The smallest CPU quota that the kernel takes.
const CPU_QUOTA_MINIMUM_MICROSECONDS: u64 = 1_000;
/// How long processes that were killed may take to leave.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What bounds a container. `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory in bytes, page cache included.
    pub memory_bytes: Option<u64>,
    /// CPU time in thousandths of one processor.
    pub cpu_millis: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
}

/// Why a cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The mount table cannot be read.
    #[error("cannot read {path}")]
    Mounts {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The host mounts no cgroup filesystem.
    #[error("no cgroup filesystem is mounted; mount cgroup2 on /sys/fs/cgroup")]
    NotMounted,
    /// The name leads elsewhere.
    #[error("cgroup name {name:?} is not a plain relative path")]
    Name {
        /// The refused name.
        name: String,
    },
    /// No hierarchy has the controller that a limit needs.
    #[error("limit {limit} = {value} needs the cgroup controller {controller}, which this kernel does not offer")]
    NoController {
        /// The limit's name.
        limit: &'static str,
        /// The asked value.
        value: u64,
        /// The missing controller.
        controller: &'static str,
    },
    /// The kernel refused a limit.
    #[error("the kernel refused limit {limit} = {value} in {file}")]
    Limit {
        /// The limit's name.
        limit: &'static str,
        /// The file that was written.
        file: PathBuf,
        /// What was asked for, as the file takes it.
        value: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A file or folder operation failed.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// There is no such cgroup.
    #[error("there is no cgroup {name}")]
    Missing {
        /// The name.
        name: String,
    },
    /// Processes did not leave in time.
    #[error("cgroup {path} still holds processes {processes:?}")]
    Busy {
        /// The folder.
        path: PathBuf,
        /// Who is in it.
        processes: Vec<i32>,
    },
}

/// The version of a mounted hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// One mounted cgroup hierarchy.
#[derive(Clone, Debug)]
struct Hierarchy {
    version: Version,
    mount: PathBuf,
    /// All that it offers, in the kernel's order; `name=systemd` for a named one.
    controllers: Vec<String>,
}

/// How the host mounts its cgroups.
#[derive(Clone, Debug)]
pub struct HostCgroups {
    hierarchies: Vec<Hierarchy>,
}

/// Finds the cgroup filesystems of this host by their type in the mount table, never by the names of folders.
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
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in table.lines() {
            let Some(hierarchy) = Hierarchy::from_mount_line(line) else { continue };
            if !hierarchies.iter().any(|known| known.same_as(&hierarchy)) {
                hierarchies.push(hierarchy);
            }
        }
        if hierarchies.is_empty() {
            return Err(CgroupError::NotMounted);
        }
        Ok(HostCgroups { hierarchies })
    }

    /// The hierarchies of version 1 as `cpu,cpuacct`, for mounting them in a container.
    pub(crate) fn version_one(&self) -> impl Iterator<Item = String> {
        self.hierarchies
            .iter()
            .filter(|hierarchy| hierarchy.version == Version::One)
            .map(|hierarchy| hierarchy.controllers.join(","))
    }

    /// The hierarchies to make folders in: those with a controller that skeg uses, and version 2 always, because it
    /// alone can take a newborn process and kill a whole group at once.
    fn used(&self) -> impl Iterator<Item = &Hierarchy> {
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

    fn offers(&self, controller: &str) -> bool {
        self.controllers.iter().any(|offered| offered == controller)
    }

    /// The same hierarchy mounted a second time.
    fn same_as(&self, other: &Hierarchy) -> bool {
        self.version == other.version && (self.version == Version::Two || self.controllers == other.controllers)
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(String::from).collect()
}

/// Undoes the octal escapes of the mount table.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// One folder of a cgroup in one hierarchy.
#[derive(Clone, Debug)]
struct Folder {
    hierarchy: Hierarchy,
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
    name: String,
    folders: Vec<Folder>,
}

impl Cgroup {
    /// Makes the cgroup `name` (such as `skeg/<pod>/<container>`) below each hierarchy's root and sets its limits.
    /// An empty one of that name is taken over. On version 2 the controllers are enabled on the way down, which needs
    /// all folders above the last to be without processes (the root excepted); see the kernel's cgroup-v2.rst.
    ///
    /// # Errors
    /// Any [`CgroupError`]; what was made is removed again.
    pub fn create(name: &str, limits: &Limits) -> Result<Cgroup, CgroupError> {
        Cgroup::create_in(&host_cgroups()?, name, limits)
    }

    /// Finds a cgroup that was made before.
    ///
    /// # Errors
    /// [`CgroupError::Missing`] if no hierarchy has it.
    pub fn open(name: &str) -> Result<Cgroup, CgroupError> {
        let cgroup = Cgroup::place(&host_cgroups()?, name)?;
        if cgroup.folders.iter().any(|folder| folder.path.is_dir()) {
            Ok(cgroup)
        } else {
            Err(CgroupError::Missing { name: name.into() })
        }
    }

    fn place(host: &HostCgroups, name: &str) -> Result<Cgroup, CgroupError> {
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
        if name.len() > 1024 || name.contains(['\0', '\n']) || !name.split('/').all(plain) {
            return Err(CgroupError::Name { name: name.into() });
        }
        let folders = host
            .used()
            .map(|hierarchy| Folder { hierarchy: hierarchy.clone(), path: hierarchy.mount.join(name) })
            .collect();
        Ok(Cgroup { name: name.into(), folders })
    }

    fn create_in(host: &HostCgroups, name: &str, limits: &Limits) -> Result<Cgroup, CgroupError> {
        let cgroup = Cgroup::place(host, name)?;
        let made = cgroup.folders.iter().try_for_each(Folder::make).and_then(|()| {
            let processes = cgroup.processes()?;
            match cgroup.folders.first() {
                Some(folder) if !processes.is_empty() => {
                    Err(CgroupError::Busy { path: folder.path.clone(), processes })
                }
                _ => cgroup.set_limits(limits),
            }
        });
        if let Err(error) = made {
            if !matches!(error, CgroupError::Busy { .. }) {
                // The first error is the one to tell; what stays here is empty and is taken over next time.
                let _ = cgroup.remove();
            }
            return Err(error);
        }
        Ok(cgroup)
    }

    /// The name that it was made with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the limits; also while processes run. A limit that is `None` is left as it is.
    ///
    /// # Errors
    /// [`CgroupError::NoController`] and [`CgroupError::Limit`], naming limit, file and value.
    pub fn set_limits(&self, limits: &Limits) -> Result<(), CgroupError> {
        if let Some(value) = limits.memory_bytes {
            let folder = self.with("memory", value)?;
            let file = match folder.hierarchy.version {
                Version::One => "memory.limit_in_bytes",
                Version::Two => "memory.max",
            };
            let memory = folder.controller(MemController::new);
            folder.limit("memory", file, value.to_string(), || memory.set_limit(signed(value)))?;
        }
        if let Some(value) = limits.pids {
            let folder = self.with("pids", value)?;
            let pids = folder.controller(PidController::new);
            let set = || pids.set_pid_max(MaxValue::Value(signed(value)));
            folder.limit("pids", "pids.max", value.to_string(), set)?;
        }
        if let Some(value) = limits.cpu_millis {
            self.with("cpu", value)?.limit_cpu(value)?;
        }
        // When memory runs out, a container ends as a whole: half a container is worse than none. cgroups-rs knows the
        // file only as an attribute, and drops the errors of those.
        match self.find("memory") {
            Some(folder) if folder.hierarchy.version == Version::Two => {
                let file = folder.path.join("memory.oom.group");
                write(&file, "1").map_err(|source| CgroupError::Limit {
                    limit: "memory",
                    file,
                    value: "1".into(),
                    source,
                })
            }
            _ => Ok(()),
        }
    }

    fn find(&self, controller: &str) -> Option<&Folder> {
        self.folders.iter().find(|folder| folder.hierarchy.offers(controller))
    }

    fn with(&self, controller: &'static str, value: u64) -> Result<&Folder, CgroupError> {
        self.find(controller).ok_or(CgroupError::NoController { limit: controller, value, controller })
    }

    /// The version 2 folder, if that hierarchy is mounted.
    fn unified(&self) -> Option<&Folder> {
        self.folders.iter().find(|folder| folder.hierarchy.version == Version::Two)
    }

    /// Opens what a child needs to enter.
    pub(crate) fn entry(&self) -> Result<Entry, CgroupError> {
        let mut entry = Entry::default();
        for folder in &self.folders {
            match folder.hierarchy.version {
                Version::Two => {
                    let flags = libc::O_PATH | libc::O_DIRECTORY;
                    let opened = fs::OpenOptions::new().read(true).custom_flags(flags).open(&folder.path);
                    entry.born_in = Some(opened.map_err(|source| folder.error("open", "", source))?.into());
                }
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

    /// The processes in it, zombies excepted.
    ///
    /// # Errors
    /// [`CgroupError::File`] if a list cannot be read. A folder that is gone holds nobody.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut processes = BTreeSet::new();
        for folder in &self.folders {
            let text = folder.read_if_there("cgroup.procs")?.unwrap_or_default();
            processes.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
        }
        Ok(processes.into_iter().collect())
    }

    /// How many processes the kernel killed in it for want of memory.
    ///
    /// # Errors
    /// [`CgroupError::File`] if the count cannot be read.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let Some(folder) = self.find("memory") else { return Ok(0) };
        let file = match folder.hierarchy.version {
            Version::One => "memory.oom_control",
            Version::Two => "memory.events",
        };
        let text = folder.read_if_there(file)?.unwrap_or_default();
        Ok(counter(&text, "oom_kill"))
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

    /// Kills every process in it. On version 2 the kernel does it at once (`cgroup.kill`, Linux 5.14); else round after
    /// round until nobody is left. Returns before the last zombie is reaped; [`Cgroup::remove`] waits for that.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] if processes survive for ten seconds.
    pub fn kill(&self) -> Result<(), CgroupError> {
        if let Some(folder) = self.unified() {
            match write(&folder.path.join("cgroup.kill"), "1") {
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(folder.error("write", "cgroup.kill", source)),
            }
        }
        self.kill_one_by_one()
    }

    pub(crate) fn kill_one_by_one(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        loop {
            let processes = self.processes()?;
            let Some(folder) = self.folders.first().filter(|_| !processes.is_empty()) else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(CgroupError::Busy { path: folder.path.clone(), processes });
            }
            let handles: Vec<_> = processes.iter().filter_map(|pid| Some((*pid, open_process(*pid)?))).collect();
            // Who is still listed after its handle was opened is the process that the handle means.
            let still = self.processes()?;
            for (_, handle) in handles.iter().filter(|(pid, _)| still.contains(pid)) {
                // One that is already gone is what was wanted.
                let _ = rustix::process::pidfd_send_signal(handle, rustix::process::Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Removes it with everything below, waiting up to ten seconds for killed processes to leave. Folders above it stay;
    /// open and remove them by their own names.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] if processes stay, [`CgroupError::File`] if the kernel refuses otherwise.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        let mut pause = Duration::from_micros(200);
        for folder in &self.folders {
            while let Err(source) = remove_tree(&folder.path) {
                let error = folder.error("remove", "", source);
                let CgroupError::File { source, .. } = &error else { return Err(error) };
                if source.raw_os_error() != Some(libc::EBUSY) {
                    return Err(error);
                }
                if Instant::now() > deadline {
                    return Err(CgroupError::Busy { path: folder.path.clone(), processes: self.processes()? });
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
        }
        Ok(())
    }
}

impl Folder {
    fn error(&self, action: &'static str, file: &str, source: io::Error) -> CgroupError {
        let path = if file.is_empty() { self.path.clone() } else { self.path.join(file) };
        CgroupError::File { action, path, source }
    }

    /// Makes the folder and those above it; on version 2 hands the controllers down.
    fn make(&self) -> Result<(), CgroupError> {
        let below = self.path.strip_prefix(&self.hierarchy.mount).unwrap_or(&self.path);
        let mut path = self.hierarchy.mount.clone();
        for part in below.components() {
            if self.hierarchy.version == Version::Two {
                self.hand_down(&path)?;
            }
            path.push(part);
            match fs::create_dir(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(CgroupError::File { action: "create", path, source }),
            }
        }
        Ok(())
    }

    /// Enables in a folder's children what skeg uses and what the folder has.
    fn hand_down(&self, folder: &Path) -> Result<(), CgroupError> {
        let read = |name: &str| {
            let path = folder.join(name);
            let text = fs::read_to_string(&path);
            text.map(|text| words(&text)).map_err(|source| CgroupError::File { action: "read", path, source })
        };
        let (offered, enabled) = (read("cgroup.controllers")?, read("cgroup.subtree_control")?);
        for controller in CONTROLLERS {
            let has = |list: &[String]| list.iter().any(|name| name == controller);
            if has(&offered) && !has(&enabled) {
                let path = folder.join("cgroup.subtree_control");
                write(&path, &format!("+{controller}")).map_err(|source| CgroupError::File {
                    action: "enable controllers in",
                    path,
                    source,
                })?;
            }
        }
        Ok(())
    }

    /// A controller of cgroups-rs for this folder and no other, in the version that this hierarchy has.
    fn controller<C>(&self, new: fn(PathBuf, PathBuf, bool) -> C) -> C {
        new(self.path.clone(), self.hierarchy.mount.clone(), self.hierarchy.version == Version::Two)
    }

    fn limit_cpu(&self, millis: u64) -> Result<(), CgroupError> {
        let cpu = self.controller(CpuController::new);
        let period = CPU_PERIOD_MICROSECONDS;
        let quota = signed((millis.saturating_mul(period) / 1000).max(CPU_QUOTA_MINIMUM_MICROSECONDS));
        match self.hierarchy.version {
            // One call for each file, so that the error names the right one.
            Version::One => {
                self.limit("cpu", "cpu.cfs_period_us", period.to_string(), || cpu.set_cfs_period(period))?;
                self.limit("cpu", "cpu.cfs_quota_us", quota.to_string(), || cpu.set_cfs_quota(quota))
            }
            Version::Two => self.limit("cpu", "cpu.max", format!("{quota} {period}"), || {
                cpu.set_cfs_quota_and_period(Some(quota), Some(period))
            }),
        }
    }

    /// Lets cgroups-rs write `file`, which must be there: cgroups-rs opens with `O_CREAT`, and cgroup filesystems
    /// answer an attempt to create with EACCES, which would hide that this kernel lacks the file.
    fn limit(
        &self,
        limit: &'static str,
        file: &str,
        value: String,
        set: impl FnOnce() -> Result<(), cgroups_rs::fs::error::Error>,
    ) -> Result<(), CgroupError> {
        let file = self.path.join(file);
        fs::metadata(&file).and_then(|_| set().map_err(kernel_reason)).map_err(|source| CgroupError::Limit {
            limit,
            file,
            value,
            source,
        })
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

/// What cgroups-rs takes. Values above are told to the kernel as the greatest one: for memory both are no limit at all,
/// and as a number of processes it refuses both.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Takes the kernel's reason out of an error of cgroups-rs; one without stays whole.
fn kernel_reason(error: cgroups_rs::fs::error::Error) -> io::Error {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error),
    }
}

/// Writes a file of the kernel's. It must be there: cgroup filesystems answer an attempt to create with EACCES.
fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

/// Reads `name value` from a flat keyed file.
fn counter(text: &str, name: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

fn open_process(pid: i32) -> Option<OwnedFd> {
    let pid = rustix::process::Pid::from_raw(pid)?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()
}

/// Removes a cgroup folder with those below it; the files in it are the kernel's and go with it.
fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
impl Cgroup {
    /// Reads memory, CPU and pids limits back, whichever version they are in.
    pub(crate) fn read_limits_for_test(&self) -> (Option<String>, Option<String>, Option<String>) {
        let read = |controller, files: [&[&str]; 2]| {
            let folder = self.find(controller)?;
            let files = files[usize::from(folder.hierarchy.version == Version::Two)];
            let read = |file: &&str| fs::read_to_string(folder.path.join(file)).unwrap().trim().to_string();
            Some(files.iter().map(read).collect::<Vec<_>>().join(" "))
        };
        (
            read("memory", [&["memory.limit_in_bytes"], &["memory.max"]]),
            read("cpu", [&["cpu.cfs_quota_us", "cpu.cfs_period_us"], &["cpu.max"]]),
            read("pids", [&["pids.max"], &["pids.max"]]),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that looks like a version 2 hierarchy with these cgroups in it.
    fn version_two(names: &[&str]) -> (tempfile::TempDir, HostCgroups) {
        let root = tempfile::tempdir().unwrap();
        for name in [""].iter().chain(names) {
            let folder = root.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
            for file in ["cgroup.subtree_control", "cgroup.procs", "cgroup.kill", "memory.max", "memory.oom.group"] {
                fs::write(folder.join(file), "").unwrap();
            }
            fs::write(folder.join("memory.events"), "low 0\noom 9\noom_kill 3\noom_group_kill 1\n").unwrap();
            fs::write(folder.join("pids.max"), "").unwrap();
            fs::write(folder.join("cpu.max"), "max 100000\n").unwrap();
        }
        let table = format!("31 23 0:28 / {} rw,nosuid - cgroup2 cgroup2 rw\n", root.path().display());
        let host = HostCgroups::from_mount_table(&table).unwrap();
        (root, host)
    }

    #[test]
    fn version_two_hands_controllers_down_and_takes_limits() {
        let (root, host) = version_two(&["skeg", "skeg/pod", "skeg/pod/web"]);
        assert_eq!(host.to_string(), "v2");
        let limits = Limits { memory_bytes: Some(1 << 20), cpu_millis: Some(1500), pids: Some(7) };
        let cgroup = Cgroup::create_in(&host, "skeg/pod/web", &limits).unwrap();
        let read = |name: &str| fs::read_to_string(root.path().join(name)).unwrap();
        // A real file collects what is written one by one; here each write lands over the start of the one before.
        for folder in ["", "skeg", "skeg/pod"] {
            assert!(read(format!("{folder}/cgroup.subtree_control").trim_start_matches('/')).starts_with("+pids"));
        }
        assert_eq!(read("skeg/pod/web/cgroup.subtree_control"), "");
        assert_eq!(read("skeg/pod/web/memory.max"), "1048576");
        assert_eq!(read("skeg/pod/web/memory.oom.group"), "1");
        assert_eq!(read("skeg/pod/web/pids.max"), "7");
        assert_eq!(read("skeg/pod/web/cpu.max"), "150000 100000");
        assert_eq!(cgroup.oom_kills().unwrap(), 3);
        cgroup.kill().unwrap();
        assert_eq!(read("skeg/pod/web/cgroup.kill"), "1");
        assert!(cgroup.entry().unwrap().born_in.is_some());
    }

    #[test]
    fn a_missing_controller_is_told() {
        let (root, _) = version_two(&["web"]);
        fs::write(root.path().join("cgroup.controllers"), "cpu\n").unwrap();
        let table = format!("31 23 0:28 / {} rw - cgroup2 cgroup2 rw\n", root.path().display());
        let host = HostCgroups::from_mount_table(&table).unwrap();
        let limits = Limits { pids: Some(9), ..Limits::default() };
        let cgroup = Cgroup::place(&host, "web").unwrap();
        let error = cgroup.set_limits(&limits).unwrap_err();
        assert!(error.to_string().starts_with("limit pids = 9 needs the cgroup controller pids"), "{error}");
    }

    #[test]
    fn a_limit_that_the_kernel_lacks_is_told_with_its_file() {
        let (root, host) = version_two(&["web"]);
        let cgroup = Cgroup::place(&host, "web").unwrap();
        let limits = [
            ("memory.max", Limits { memory_bytes: Some(1 << 20), ..Limits::default() }),
            ("pids.max", Limits { pids: Some(9), ..Limits::default() }),
            ("cpu.max", Limits { cpu_millis: Some(500), ..Limits::default() }),
        ];
        for (name, limits) in limits {
            let path = root.path().join("web").join(name);
            fs::remove_file(&path).unwrap();
            match cgroup.set_limits(&limits).unwrap_err() {
                CgroupError::Limit { file, source, .. } => {
                    assert_eq!(file, path);
                    assert_eq!(source.raw_os_error(), Some(libc::ENOENT));
                }
                error => panic!("{error}"),
            }
        }
    }

    #[test]
    fn hierarchies_are_found_by_filesystem_type() {
        let table = "22 1 0:5 / /proc rw - proc proc rw\n\
                     32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                     33 31 0:30 / /odd\\040place rw - cgroup cgroup rw,memory\n\
                     34 31 0:30 / /again rw - cgroup cgroup rw,memory\n\
                     35 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
                     36 31 0:32 / /nowhere rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let host = HostCgroups::from_mount_table(table).unwrap();
        assert_eq!(host.to_string(), "hybrid");
        let cgroup = Cgroup::place(&host, "a/b").unwrap();
        let paths: Vec<_> = cgroup.folders.iter().map(|folder| folder.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["/sys/fs/cgroup/cpu,cpuacct/a/b", "/odd place/a/b", "/nowhere/a/b"]);
        assert!(matches!(HostCgroups::from_mount_table(""), Err(CgroupError::NotMounted)));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let (_root, host) = version_two(&[]);
        for name in ["", "/a", "a/", "a//b", "..", "a/../b", "a/.", "a\nb", "a\0"] {
            assert!(matches!(Cgroup::place(&host, name), Err(CgroupError::Name { .. })), "{name:?}");
        }
    }
}
