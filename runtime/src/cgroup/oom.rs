//! Hearing of processes that the kernel killed for want of memory.
//!
//! Owns the notification of either version. Must not wait: callers have loops of their own.

use super::hierarchy::Version;
use super::{Cgroup, CgroupError};
use rustix::event::EventfdFlags;
use rustix::fs::inotify::{CreateFlags, WatchFlags, add_watch, init};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// A descriptor that becomes readable when memory ran out in a cgroup, and when the cgroup is gone.
#[derive(Debug)]
pub struct OomWatch {
    events: OwnedFd,
    cgroup: Cgroup,
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

impl OomWatch {
    /// Takes what was told and returns how many processes were killed so far; nothing if the cgroup is gone. Never
    /// blocks.
    ///
    /// # Errors
    /// [`CgroupError::File`] if the count cannot be read.
    pub fn kills(&self) -> Result<Option<u64>, CgroupError> {
        let mut buffer = [0_u8; 4096];
        loop {
            match rustix::io::read(&self.events, &mut buffer) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(errno) => {
                    let path = self.cgroup.path();
                    return Err(CgroupError::File { action: "read the events of", path, source: errno.into() });
                }
            }
        }
        if self.cgroup.find("memory").is_some_and(|folder| folder.path.is_dir()) {
            self.cgroup.oom_kills().map(Some)
        } else {
            Ok(None)
        }
    }
}

impl Cgroup {
    /// Starts to listen for memory that ran out: by inotify on `memory.events` of version 2, by an eventfd on
    /// `memory.oom_control` of version 1.
    ///
    /// # Errors
    /// [`CgroupError::Unable`] without a memory controller, [`CgroupError::File`].
    pub fn watch_oom(&self) -> Result<OomWatch, CgroupError> {
        let unable = || CgroupError::Unable { action: "watch the memory of", path: self.path(), controller: "memory" };
        let folder = self.find("memory").ok_or_else(unable)?;
        let failed = |file| move |errno: rustix::io::Errno| folder.error("watch", file, errno.into());
        let events = match folder.hierarchy.version {
            Version::Two => {
                let file = "memory.events";
                let events = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(failed(file))?;
                add_watch(&events, folder.path.join(file), WatchFlags::MODIFY).map_err(failed(file))?;
                events
            }
            Version::One => {
                let file = "memory.oom_control";
                let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
                let events = rustix::event::eventfd(0, flags).map_err(failed(file))?;
                let control =
                    File::open(folder.path.join(file)).map_err(|source| folder.error("open", file, source))?;
                // The kernel keeps what it needs of both.
                let line = format!("{} {}", events.as_raw_fd(), control.as_raw_fd());
                let file = "cgroup.event_control";
                let written = super::setting::write(&folder.path.join(file), &line);
                written.map_err(|source| folder.error("write", file, source))?;
                events
            }
        };
        Ok(OomWatch { events, cgroup: self.clone() })
    }
}
