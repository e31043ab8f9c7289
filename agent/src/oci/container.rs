//! A container that was made: its folder, its record, and what the kernel says of it.
//!
//! Owns the way from a name to a container and its status. Must not change anything.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, bail};
use skeg_runtime::{Cgroup, is_waiting, oci};

use super::state::{Record, Status};
use super::store::Folder;

/// The socket that a created container waits at.
pub(crate) const START_SOCKET: &str = "start.sock";
/// The copy of the bundle's config.json: the bundle may change while the container runs.
pub(crate) const CONFIG: &str = "config.json";

/// One container, as it was when it was looked up.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) folder: Folder,
    pub(crate) record: Record,
}

impl Container {
    /// Looks a container up.
    ///
    /// # Errors
    /// There is none of this name, or its maker has not written anything down yet.
    pub(crate) fn find(root: &Path, id: &str) -> anyhow::Result<Container> {
        Container::open(Folder::new(root, id)?)
    }

    /// The same for a folder.
    pub(crate) fn open(folder: Folder) -> anyhow::Result<Container> {
        match folder.record()? {
            Some(record) => Ok(Container { folder, record }),
            None => {
                bail!("container {:?} is not made yet, or its making was cut short; see `delete --force`", folder.id())
            }
        }
    }

    /// The same, also for a container of which nothing but its name is written down.
    pub(crate) fn unfinished(folder: Folder) -> anyhow::Result<Container> {
        let record = folder.record()?;
        let record = record.unwrap_or_else(|| Record { id: folder.id().into(), ..Record::default() });
        Ok(Container { folder, record })
    }

    /// A handle of the first process; nothing if it has ended or never was.
    pub(crate) fn init(&self) -> anyhow::Result<Option<OwnedFd>> {
        let Some(init) = self.record.init else { return Ok(None) };
        init.open().with_context(|| format!("cannot look for process {}", init.pid))
    }

    /// The cgroup.
    ///
    /// # Errors
    /// Somebody else has removed it.
    pub(crate) fn cgroup(&self) -> anyhow::Result<Cgroup> {
        self.record.cgroup()?.with_context(|| format!("container {:?} has lost its cgroup", self.folder.id()))
    }

    /// What the container does now.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub(crate) fn status(&self) -> anyhow::Result<Status> {
        if self.record.init.is_none() && self.folder.is_locked()? {
            return Ok(Status::Creating);
        }
        if self.init()?.is_none() {
            return Ok(Status::Stopped);
        }
        let socket = self.folder.file(START_SOCKET);
        let waiting = is_waiting(&socket).with_context(|| format!("cannot ask at {socket:?}"))?;
        let frozen = self.record.cgroup()?.map_or(Ok(false), |cgroup| cgroup.is_frozen())?;
        Ok(match (frozen, waiting) {
            (true, _) => Status::Paused,
            (false, true) => Status::Created,
            (false, false) => Status::Running,
        })
    }

    /// The config.json that the container was made from.
    ///
    /// # Errors
    /// The copy in the container's folder is gone or damaged.
    pub(crate) fn spec(&self) -> anyhow::Result<oci::Spec> {
        let path = self.folder.file(CONFIG);
        let bytes = fs::read(&path).with_context(|| format!("cannot read {path:?}"))?;
        serde_json::from_slice(&bytes).with_context(|| format!("{path:?} is damaged"))
    }
}
