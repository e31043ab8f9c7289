//! What is known of a container: what was written down when it was made, and what the kernel says now.
//!
//! Owns the form of `state.json` and of `state`'s output, and the container's status. Must not change anything.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use skeg_runtime::{Cgroup, CgroupError, HookState, host_cgroups};

/// The file `state.json` of a container's folder. What can be asked of the kernel is not in it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    /// The version that the container's config.json is written for.
    pub(crate) oci_version: String,
    /// The container's name.
    pub(crate) id: String,
    /// Folder with config.json, absolute.
    pub(crate) bundle: PathBuf,
    /// Folder of the container's root, absolute.
    pub(crate) rootfs: PathBuf,
    /// When it was made, as RFC 3339.
    pub(crate) created: String,
    /// The annotations of config.json.
    pub(crate) annotations: BTreeMap<String, String>,
    /// The folders of its cgroup, by controllers; written down before they are made.
    pub(crate) cgroup: BTreeMap<String, PathBuf>,
    /// The cgroup was made, or found empty, so that all that runs in it is this container's.
    pub(crate) owns_cgroup: bool,
    /// The name of its session keyring, if it has its own.
    pub(crate) keyring: Option<String>,
    /// Its first process, once there is one.
    pub(crate) init: Option<Init>,
}

/// A process that is never mistaken for another one that got its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Init {
    /// Its number.
    pub(crate) pid: i32,
    /// When it began, in clock ticks since the boot.
    pub(crate) started: u64,
}

/// Runtime specification, runtime.md "State", and `paused` as runc and crun have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        })
    }
}

/// What `state` and `list` print; the fields are runc's `containerState`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown<'a> {
    pub(crate) oci_version: &'a str,
    pub(crate) id: &'a str,
    pub(crate) pid: i32,
    pub(crate) status: Status,
    pub(crate) bundle: &'a Path,
    pub(crate) rootfs: &'a Path,
    pub(crate) created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: &'a BTreeMap<String, String>,
    pub(crate) owner: String,
}

impl Record {
    /// What hooks are told of the container.
    pub(crate) fn hook_state(&self) -> HookState {
        HookState {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            annotations: self.annotations.clone().into_iter().collect(),
            version: self.oci_version.clone(),
        }
    }

    /// The cgroup, if it is still there.
    pub(crate) fn cgroup(&self) -> Result<Option<Cgroup>, CgroupError> {
        match Cgroup::restore(&host_cgroups()?, &self.cgroup) {
            Err(CgroupError::Missing { .. }) => Ok(None),
            cgroup => cgroup.map(Some),
        }
    }

    /// Combines what is written down with a status.
    pub(crate) fn shown(&self, status: Status, owner: String) -> Shown<'_> {
        let init = self.init.filter(|_| status != Status::Stopped);
        Shown {
            oci_version: &self.oci_version,
            id: &self.id,
            pid: init.map_or(0, |init| init.pid),
            status,
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            created: &self.created,
            annotations: &self.annotations,
            owner,
        }
    }
}

impl Init {
    /// Writes down which process has this number now.
    pub(crate) fn of(pid: i32) -> io::Result<Init> {
        match Stat::read(pid)? {
            Some(stat) => Ok(Init { pid, started: stat.started }),
            None => Err(io::Error::from_raw_os_error(rustix::io::Errno::SRCH.raw_os_error())),
        }
    }

    /// A handle of the process; nothing if it has ended.
    pub(crate) fn open(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The descriptor was opened first: if the number still means the right process, so does the descriptor.
        let alive = Stat::read(self.pid)?.is_some_and(|stat| stat.started == self.started && !stat.ended);
        Ok(alive.then_some(pidfd))
    }
}

/// What proc_pid_stat(5) says of a process.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    /// A zombie, or dead: it only waits to be reaped.
    ended: bool,
    /// In clock ticks since the boot.
    started: u64,
}

impl Stat {
    fn read(pid: i32) -> io::Result<Option<Stat>> {
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(text) => Stat::parse(&text).map(Some).ok_or_else(|| io::Error::other("/proc/PID/stat has another form")),
            // ESRCH: it ended between open and read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The command, in parentheses, may hold anything, other parentheses too.
    fn parse(text: &str) -> Option<Stat> {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let ended = matches!(fields.next()?, "Z" | "X");
        // `fields` is now before field 4; the start is field 22.
        let started = fields.nth(18)?.parse().ok()?;
        Some(Stat { ended, started })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_be_called_anything() {
        let rest = "1 1 1 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        for name in ["sh", "a) Z 1 (b", ""] {
            let stat = Stat::parse(&format!("7 ({name}) S {rest}"));
            assert_eq!(stat, Some(Stat { ended: false, started: 4711 }));
        }
        assert_eq!(Stat::parse(&format!("7 (sh) Z {rest}")), Some(Stat { ended: true, started: 4711 }));
        assert_eq!(Stat::parse("7 (sh) S 1"), None);
    }

    #[test]
    fn a_number_that_went_to_another_process_opens_nothing() {
        let this = Init::of(std::process::id() as i32).unwrap();
        assert!(this.open().unwrap().is_some());
        assert!(Init { started: this.started + 1, ..this }.open().unwrap().is_none());
    }
}
