//! One limit, ready to be written, and the writing.
//!
//! Owns the order in which limits are written and what a refusal says. Must not know what a specification asks for:
//! `version_one.rs` and `version_two.rs` turn that into settings.

use super::{Cgroup, CgroupError, Folder};
use cgroups_rs::fs::error::Error as CrateError;
use std::error::Error as _;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

/// Writes a setting by a controller of cgroups-rs.
type Setter = Box<dyn Fn(&Folder) -> Result<(), CrateError>>;

/// One limit as the kernel takes it.
pub(super) struct Setting {
    /// Its place below `linux.resources`.
    limit: String,
    /// The controller that has the file; `cgroup` for the files that every version 2 cgroup has.
    controller: String,
    file: String,
    value: String,
    /// The kernel may lack the file: then this limit is in force anyway.
    optional: bool,
    setter: Option<Setter>,
}

impl Setting {
    /// A value to write into a file as it stands.
    pub(super) fn new(
        limit: impl Into<String>,
        controller: &str,
        file: impl Into<String>,
        value: impl ToString,
    ) -> Self {
        let (limit, file, value) = (limit.into(), file.into(), value.to_string());
        Setting { limit, controller: controller.into(), file, value, optional: false, setter: None }
    }

    /// Lets cgroups-rs do the writing.
    pub(super) fn by(mut self, set: impl Fn(&Folder) -> Result<(), CrateError> + 'static) -> Self {
        self.setter = Some(Box::new(set));
        self
    }

    /// Takes a kernel without the file for one that keeps the limit.
    pub(super) fn if_there(mut self) -> Self {
        self.optional = true;
        self
    }

    fn write(&self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        let missing = || CgroupError::NoController {
            limit: self.limit.clone(),
            value: self.value.clone(),
            controller: self.controller.clone(),
            option: kernel_option(&self.controller),
        };
        let core = self.controller == "cgroup";
        let folder = if core { cgroup.unified() } else { cgroup.find(&self.controller) };
        let folder = folder.ok_or_else(missing)?;
        let file = folder.path.join(&self.file);
        let written = match &self.setter {
            None => write(&file, &self.value),
            // cgroups-rs opens with `O_CREAT`, and cgroup filesystems answer an attempt to create with EACCES, which
            // would hide that this kernel lacks the file.
            Some(set) => std::fs::metadata(&file).and_then(|_| set(folder).map_err(kernel_reason)),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.optional => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !core && !folder.has(&self.controller)? => {
                Err(missing())
            }
            Err(source) => {
                Err(CgroupError::Limit { limit: self.limit.clone(), file, value: self.value.clone(), source })
            }
            Ok(()) => Ok(()),
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.file, self.value)
    }
}

/// Writes settings. Some are bound to each other (memory and swap, quota and burst), and which of two the kernel takes
/// first depends on what was there before: what it refuses is tried again after the rest, while that leads anywhere.
pub(super) fn apply(cgroup: &Cgroup, mut settings: Vec<Setting>) -> Result<(), CgroupError> {
    loop {
        let tried = settings.len();
        let mut first = None;
        settings.retain(|setting| match setting.write(cgroup) {
            Ok(()) => false,
            Err(error) => {
                first.get_or_insert(error);
                true
            }
        });
        match first {
            None => return Ok(()),
            Some(error) if settings.len() == tried => return Err(error),
            Some(_) => {}
        }
    }
}

/// The kernel's build option for a controller.
fn kernel_option(controller: &str) -> &'static str {
    match controller {
        "memory" => "CONFIG_MEMCG",
        "cpu" => "CONFIG_CGROUP_SCHED and CONFIG_CFS_BANDWIDTH",
        "cpuset" => "CONFIG_CPUSETS",
        "pids" => "CONFIG_CGROUP_PIDS",
        "io" | "blkio" => "CONFIG_BLK_CGROUP",
        "hugetlb" => "CONFIG_CGROUP_HUGETLB",
        "rdma" => "CONFIG_CGROUP_RDMA",
        "net_cls" => "CONFIG_CGROUP_NET_CLASSID",
        "net_prio" => "CONFIG_CGROUP_NET_PRIO",
        "misc" => "CONFIG_CGROUP_MISC",
        "cgroup" => "CONFIG_CGROUPS and a mounted cgroup2",
        _ => "the option of that controller",
    }
}

/// Takes the kernel's reason out of an error of cgroups-rs; one without stays whole.
fn kernel_reason(error: CrateError) -> io::Error {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.and_then(io::Error::raw_os_error) {
        Some(code) => io::Error::from_raw_os_error(code),
        None => io::Error::other(error),
    }
}

/// Writes a file of the kernel's. It must be there: cgroup filesystems answer an attempt to create with EACCES.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}
