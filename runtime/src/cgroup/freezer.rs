//! Stopping and going on: the freezer of either version.
//!
//! Owns waiting until everybody stands still. Must not signal or end anybody.

use super::setting::write;
use super::{Cgroup, CgroupError, Folder, PATIENCE, stats};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::File;
use std::io::{Read, Seek};
use std::time::{Duration, Instant};

impl Cgroup {
    /// Stops every process in it and waits until all stand still.
    ///
    /// # Errors
    /// [`CgroupError::Freezer`] if some go on for ten seconds; then all do. [`CgroupError::Unable`] without a freezer.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        let frozen = self.switch(true, "frozen");
        if matches!(frozen, Err(CgroupError::Freezer { .. })) {
            self.thaw()?;
        }
        frozen
    }

    /// Lets every process in it go on.
    ///
    /// # Errors
    /// Those of [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.switch(false, "thawed")
    }

    /// Tells whether everybody in it stands still. Without a freezer nobody does.
    ///
    /// # Errors
    /// [`CgroupError::File`] if the state cannot be read.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        if let Some(folder) = self.unified() {
            let events = folder.read_if_there("cgroup.events")?.unwrap_or_default();
            return Ok(stats::keyed(&events, "frozen") == Some(1));
        }
        let Some(folder) = self.find("freezer") else { return Ok(false) };
        Ok(folder.read_if_there("freezer.state")?.is_some_and(|state| state.trim() == "FROZEN"))
    }

    fn switch(&self, freeze: bool, state: &'static str) -> Result<(), CgroupError> {
        // On a host with both versions every process is in both, and version 2 tells when it is done.
        if let Some(folder) = self.unified() {
            return folder.switch_version_two(freeze, state);
        }
        match self.find("freezer") {
            Some(folder) => folder.switch_version_one(freeze, state),
            None => Err(CgroupError::Unable { action: "freeze or thaw", path: self.path(), controller: "freezer" }),
        }
    }
}

impl Folder {
    fn switch_version_two(&self, freeze: bool, state: &'static str) -> Result<(), CgroupError> {
        let failed = |source| self.error("read", "cgroup.events", source);
        let mut events = File::open(self.path.join("cgroup.events")).map_err(failed)?;
        let written = write(&self.path.join("cgroup.freeze"), if freeze { "1" } else { "0" });
        written.map_err(|source| self.error("write", "cgroup.freeze", source))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut text = String::new();
            events.rewind().and_then(|()| events.read_to_string(&mut text)).map_err(failed)?;
            if stats::keyed(&text, "frozen") == Some(u64::from(freeze)) {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::Freezer { path: self.path.clone(), state });
            }
            // The file wakes its readers on each change.
            let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
    }

    /// Version 1 wakes nobody, and a process that is born at the wrong moment can hold the state at `FREEZING` until the
    /// wish is written again; see the kernel's freezer-subsystem.rst.
    fn switch_version_one(&self, freeze: bool, state: &'static str) -> Result<(), CgroupError> {
        let wanted = if freeze { "FROZEN" } else { "THAWED" };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let written = write(&self.path.join("freezer.state"), wanted);
            written.map_err(|source| self.error("write", "freezer.state", source))?;
            if self.read_if_there("freezer.state")?.is_some_and(|now| now.trim() == wanted) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(CgroupError::Freezer { path: self.path.clone(), state });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
