//! Who is in a cgroup, and how they are signalled and ended.
//!
//! Owns the lists of processes and the removal of folders. Must not set limits.

use super::hierarchy::Version;
use super::setting::write;
use super::{Cgroup, CgroupError, PATIENCE, tree};
use crate::signal::send_signal;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

impl Cgroup {
    /// The processes in it and below it, zombies excepted, by number.
    ///
    /// # Errors
    /// [`CgroupError::File`] if a list cannot be read. A folder that is gone holds nobody.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut processes = BTreeSet::new();
        for folder in &self.folders {
            let visited = tree::visit(&folder.path, |folder| {
                let listed = list(folder)?;
                processes.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
                Ok(())
            });
            visited.map_err(|source| folder.error("read", "cgroup.procs", source))?;
        }
        Ok(processes.into_iter().collect())
    }

    /// The cgroup for one more process: on version 2, one whose processes have moved below and that has handed its
    /// controllers down can hold none itself (cgroup-v2.rst, "No Internal Process Constraint"), and one that they have
    /// left may be gone. Then it is where `pid` is now.
    ///
    /// # Errors
    /// [`CgroupError::File`] if that cannot be read.
    pub fn beside(mut self, pid: i32) -> Result<Cgroup, CgroupError> {
        let Some(folder) = self.folders.iter_mut().find(|folder| folder.hierarchy.version == Version::Two) else {
            return Ok(self);
        };
        let handed_down = folder.read_if_there("cgroup.subtree_control")?;
        if handed_down.is_none_or(|controllers| !controllers.trim().is_empty()) {
            let path = PathBuf::from(format!("/proc/{pid}/cgroup"));
            let table = fs::read_to_string(&path);
            let table = table.map_err(|source| CgroupError::File { action: "read", path, source })?;
            if let Some(below) = table.lines().find_map(|line| line.strip_prefix("0::/")) {
                folder.path = folder.hierarchy.mount.join(below);
            }
        }
        Ok(self)
    }

    /// Sends a signal to every process in it; 0 reaches nobody. Those that are born meanwhile may miss it.
    ///
    /// # Errors
    /// [`CgroupError::File`] if they cannot be listed or the kernel refuses, such as `EINVAL` for a number that is none.
    pub fn signal(&self, number: i32) -> Result<(), CgroupError> {
        let failed = |source| CgroupError::File { action: "signal the processes in", path: self.path(), source };
        let processes = self.processes()?;
        let handles: Vec<_> = processes.iter().filter_map(|pid| Some((*pid, open_process(*pid)?))).collect();
        // Who is still listed after its handle was opened is the process that the handle means.
        let still = self.processes()?;
        for (_, handle) in handles.iter().filter(|(pid, _)| still.contains(pid)) {
            match send_signal(handle.as_fd(), number) {
                // One that is already gone needs no signal.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                sent => sent.map_err(failed)?,
            }
        }
        Ok(())
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
        let deadline = Instant::now() + PATIENCE;
        let mut first = true;
        loop {
            let processes = self.processes()?;
            if processes.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(CgroupError::Busy { path: self.path(), processes });
            }
            // Who forks faster than he is listed must stand still for it. Where nobody can be made to, rounds must do.
            if !std::mem::take(&mut first)
                && let Err(error) = self.freeze()
            {
                log::debug!("{error}");
            }
            self.signal(libc::SIGKILL)?;
            // A frozen process dies when it goes on.
            if self.is_frozen()? {
                self.thaw()?;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends all processes in it and removes it: [`Cgroup::kill`] and [`Cgroup::remove`], but one that is empty, as that of
    /// a container that has ended, goes at once.
    ///
    /// # Errors
    /// Theirs.
    pub fn end(&self) -> Result<(), CgroupError> {
        if self.folders.iter().all(|folder| tree::remove(&folder.path).is_ok()) {
            return Ok(());
        }
        self.kill()?;
        self.remove()
    }

    /// Removes it with everything below, waiting up to ten seconds for killed processes to leave. Folders above it stay;
    /// open and remove them by their own paths.
    ///
    /// # Errors
    /// [`CgroupError::Busy`] if processes stay, [`CgroupError::File`] if the kernel refuses otherwise.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(200);
        for folder in &self.folders {
            while let Err(source) = tree::remove(&folder.path) {
                if source.raw_os_error() != Some(libc::EBUSY) {
                    return Err(folder.error("remove", "", source));
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
        Ok(super::stats::keyed(&text, "oom_kill").unwrap_or(0))
    }
}

/// Reads the list of processes of one folder; nothing if it is gone, or a threaded cgroup's, which are listed in the
/// folder that it belongs to.
fn list(folder: &OwnedFd) -> io::Result<String> {
    use rustix::fs::{Mode, OFlags, openat};
    let mut text = String::new();
    let opened = openat(folder, c"cgroup.procs", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    match opened.map_err(io::Error::from).and_then(|file| fs::File::from(file).read_to_string(&mut text)) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)) => {}
        read => drop(read?),
    }
    Ok(text)
}

fn open_process(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}
