//! `kill`, `pause`, `resume` and `delete`: what is done to a container that was made.
//!
//! Owns which of them is allowed when, and what a removal takes away. Must not make anything.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context as _, bail};
use regex_lite::Regex;
use skeg_runtime::{oci, run_hooks, send_signal};

use super::container::Container;
use super::state::{Record, Status};
use super::store::{Folder, Locked, Missing};

/// SIGKILL, the same on every architecture.
const KILL: i32 = 9;
/// The kernel's real-time signals, as C libraries number them after taking some for themselves.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// Reads a signal: a number, or a name with or without SIG.
pub(crate) fn signal(text: &str) -> anyhow::Result<i32> {
    if let Ok(number) = text.parse::<i32>() {
        if !(0..=*REAL_TIME.end()).contains(&number) {
            bail!("unknown signal {text:?}: must be between 0 and 64");
        }
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |rest: &str, base: i32, sign: i32| {
        let offset =
            if rest.is_empty() { Some(0) } else { rest.get(1..).and_then(|offset| offset.parse::<i32>().ok()) };
        offset.map(|offset| base + sign * offset).filter(|number| REAL_TIME.contains(number))
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN").filter(|rest| rest.is_empty() || rest.starts_with('+'))
    {
        real_time(rest, *REAL_TIME.start(), 1)
    } else if let Some(rest) = name.strip_prefix("RTMAX").filter(|rest| rest.is_empty() || rest.starts_with('-')) {
        real_time(rest, *REAL_TIME.end(), -1)
    } else {
        format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
    };
    number.with_context(|| format!("unknown signal {text:?}: must be a name such as SIGTERM or a number up to 64"))
}

/// `kill`
pub(crate) fn kill(root: &Path, id: &str, text: &str, all: bool) -> anyhow::Result<()> {
    let number = signal(text)?;
    let container = Container::find(root, id)?;
    let Some(init) = container.init()? else {
        // A cgroup that was found in use is somebody else's.
        if all && container.record.owns_cgroup {
            // Without a pid namespace of its own, a container's processes outlive its first.
            return Ok(container.record.cgroup()?.map_or(Ok(()), |cgroup| cgroup.signal(number))?);
        }
        // Engines know this very text.
        bail!("container not running");
    };
    let cgroup = container.cgroup()?;
    if all {
        cgroup.signal(number)?;
    } else {
        send_signal(init.as_fd(), number).with_context(|| format!("cannot send signal {text} to container {id:?}"))?;
    }
    if number == KILL && cgroup.is_frozen()? {
        // A frozen process of cgroup version 1 dies only when it may run.
        cgroup.thaw()?;
    }
    Ok(())
}

/// `pause`
pub(crate) fn pause(root: &Path, id: &str) -> anyhow::Result<()> {
    let locked = Folder::new(root, id)?.lock()?;
    let container = Container::open(locked.clone())?;
    match container.status()? {
        Status::Running | Status::Created => Ok(container.cgroup()?.freeze()?),
        status => bail!("container {id:?} is {status}, not running"),
    }
}

/// `resume`
pub(crate) fn resume(root: &Path, id: &str) -> anyhow::Result<()> {
    let locked = Folder::new(root, id)?.lock()?;
    let container = Container::open(locked.clone())?;
    match container.status()? {
        Status::Paused => Ok(container.cgroup()?.thaw()?),
        status => bail!("container {id:?} is {status}, not paused"),
    }
}

/// `delete`
pub(crate) fn delete(root: &Path, id: &str, force: bool) -> anyhow::Result<()> {
    let folder = Folder::new(root, id)?;
    let record = match folder.record() {
        Err(error) if force && error.is::<Missing>() => return Ok(()),
        record => record?,
    };
    if force && let Some(record) = record {
        // Before the lock: whoever makes the container may wait for the very process that ends here.
        end_processes(&record)?;
    }
    let locked = match folder.lock() {
        Err(error) if force && error.is::<Missing>() => return Ok(()),
        locked => locked?,
    };
    // It is read again: its maker may have come further until the lock was free.
    let Some(record) = locked.record()? else {
        // Cut short before anything but the folder was there.
        return locked.remove();
    };
    let container = Container { folder: locked.clone(), record };
    if !force {
        let status = container.status()?;
        if status != Status::Stopped {
            bail!("cannot delete container {id:?} that is not stopped: it is {status}");
        }
    }
    let spec = container.spec();
    remove(locked, &container.record)?;
    match spec {
        Ok(spec) => poststop(&spec, &container.record),
        // Cut short before the configuration was copied: it ran no hook that poststop could undo.
        Err(error) if container.record.init.is_none() => log::debug!("no poststop hooks: {error:#}"),
        Err(error) => log::warn!("no poststop hooks of container {id:?} were run: {error:#}"),
    }
    Ok(())
}

/// `delete --regex`: goes on with the others when one refuses.
pub(crate) fn delete_matching(root: &Path, pattern: &str, force: bool) -> anyhow::Result<()> {
    let pattern = Regex::new(pattern).context("--regex")?;
    let mut refused = 0;
    for folder in Folder::list(root)?.iter().filter(|folder| pattern.is_match(folder.id())) {
        match delete(root, folder.id(), force) {
            Ok(()) => {}
            // Somebody else was quicker.
            Err(error) if error.is::<Missing>() => {}
            Err(error) => {
                log::error!("{error:#}");
                refused += 1;
            }
        }
    }
    if refused > 0 {
        bail!("{refused} containers were not deleted");
    }
    Ok(())
}

/// Ends all processes of a container.
fn end_processes(record: &Record) -> anyhow::Result<()> {
    match record.cgroup()? {
        Some(cgroup) if record.owns_cgroup => Ok(cgroup.kill()?),
        _ => Ok(()),
    }
}

/// Ends what is left of a container and removes what was made for it.
///
/// # Errors
/// Something refuses to go; the folder stays, so that the removal can be tried again.
pub(crate) fn remove(locked: Locked, record: &Record) -> anyhow::Result<()> {
    if let Some(cgroup) = record.cgroup()? {
        if record.owns_cgroup {
            cgroup.end()?;
        } else if cgroup.processes()?.is_empty() {
            cgroup.remove()?;
        } // Else others use it: the container was cut short, or refused, before it was its own.
    }
    locked.remove()
}

/// Runs the poststop hooks. A failure is logged, and the removal goes on (runtime.md, "Lifecycle").
pub(crate) fn poststop(spec: &oci::Spec, record: &Record) {
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.poststop().as_deref()).unwrap_or_default();
    let state = record.hook_state().json(None, oci::ContainerState::Stopped);
    for hook in hooks {
        if let Err(error) = run_hooks("poststop", std::slice::from_ref(hook), &state) {
            log::warn!("{:#}", anyhow::Error::new(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_names() {
        for (text, number) in [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigterm", 15), ("Usr1", 10), ("0", 0)] {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        for (text, number) in [("RTMIN", 34), ("SIGRTMIN+3", 37), ("rtmax-1", 63), ("64", 64)] {
            assert_eq!(signal(text).unwrap(), number, "{text}");
        }
        for text in ["", "SIG", "TERMINATE", "65", "-1", "RTMIN+40", "RTMIN3", "RTMAX+1", "9x"] {
            assert!(signal(text).is_err(), "{text}");
        }
    }
}
