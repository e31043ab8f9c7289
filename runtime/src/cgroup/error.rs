//! Why a cgroup could not be used.
//!
//! Owns the error type of the folder. Must not decide what to do about one.

use std::io;
use std::path::PathBuf;

/// Why a cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A table of the kernel's cannot be read.
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
    /// The path leads elsewhere or is none.
    #[error("linux.cgroupsPath {path:?} {problem}")]
    Path {
        /// The refused path.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No hierarchy has the controller that a limit needs.
    #[error(
        "linux.resources.{limit} = {value} needs the cgroup controller {controller}, which is not there; the kernel has \
         it if it was built with {option}, and on version 2 if every cgroup above hands it down"
    )]
    NoController {
        /// The limit's place in the specification.
        limit: String,
        /// The asked value.
        value: String,
        /// The missing controller.
        controller: String,
        /// The kernel's build option.
        option: &'static str,
    },
    /// The hierarchies of this host have nothing that means the same.
    #[error("linux.resources.{limit} = {value} has no equal on this host's cgroup version: {reason}")]
    NoEqual {
        /// The limit's place in the specification.
        limit: String,
        /// The asked value.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// A limit contradicts itself or another one.
    #[error("linux.resources.{limit} = {value} is refused: {reason}")]
    Refused {
        /// The limit's place in the specification.
        limit: String,
        /// The asked value.
        value: String,
        /// Why.
        reason: String,
    },
    /// The kernel refused a limit.
    #[error("the kernel refused linux.resources.{limit}: {value:?} into {file}")]
    Limit {
        /// The limit's place in the specification.
        limit: String,
        /// The file that was written.
        file: PathBuf,
        /// What was asked for, as the file takes it.
        value: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to watch over the devices.
    #[error("linux.resources.devices: cannot {action} in {path}")]
    Devices {
        /// What was tried.
        action: &'static str,
        /// The cgroup.
        path: PathBuf,
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
    #[error("there is no cgroup {path}")]
    Missing {
        /// Its path.
        path: PathBuf,
    },
    /// The host lacks what an operation needs.
    #[error("cannot {action} cgroup {path}: neither a version 2 hierarchy nor the controller {controller} is mounted")]
    Unable {
        /// What was asked for.
        action: &'static str,
        /// The cgroup.
        path: PathBuf,
        /// The controller of version 1 that would do it.
        controller: &'static str,
    },
    /// Processes did not do in time what was asked.
    #[error("cgroup {path} still holds processes {processes:?}")]
    Busy {
        /// The folder.
        path: PathBuf,
        /// Who is in it.
        processes: Vec<i32>,
    },
    /// Processes did not stop or go on in time.
    #[error("cgroup {path} did not become {state} in time")]
    Freezer {
        /// The folder.
        path: PathBuf,
        /// What was waited for.
        state: &'static str,
    },
}
