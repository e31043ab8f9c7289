//! `update` and `events`: a container's limits and what it uses of them.
//!
//! Owns the options' meaning and the events' form. Must not know cgroups' files.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use skeg_runtime::oci::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::arguments::Update;
use super::container::Container;
use super::show::print_json;
use super::store::Folder;

/// How often and how long the count of killed processes is read after a notification: version 1 tells that memory ran
/// out before it kills anybody.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);
/// See [`LOOK_INTERVAL`].
const LOOK_TIME: Duration = Duration::from_secs(1);
/// Longest file of resources in bytes.
const RESOURCES_MAXIMUM: u64 = 1 << 20;

/// Reads a size: bytes, or with k, m, g or t behind; -1 is unlimited.
pub(crate) fn size(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a size such as 1048576, 64m or -1");
    if text == "-1" {
        return Ok(-1);
    }
    let lower = text.to_ascii_lowercase();
    // "m", "mb" and "mib" mean the same, as for docker.
    let digits = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, shift) = match digits.as_bytes().last() {
        Some(b'k') => (&digits[..digits.len() - 1], 10),
        Some(b'm') => (&digits[..digits.len() - 1], 20),
        Some(b'g') => (&digits[..digits.len() - 1], 30),
        Some(b't') => (&digits[..digits.len() - 1], 40),
        _ => (digits, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: i64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

/// Reads a time such as 500ms, 5s or 1m.
pub(crate) fn interval(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time such as 500ms, 5s or 1m");
    let split = text.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..split].parse().map_err(|_| wrong())?;
    let duration = match &text[split..] {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60).ok_or_else(wrong)?),
        _ => return Err(wrong()),
    };
    if duration.is_zero() { Err("must be greater than 0".into()) } else { Ok(duration) }
}

/// `update`
pub(crate) fn update(root: &Path, options: &Update) -> anyhow::Result<()> {
    let resources = match &options.resources {
        Some(path) => read(path)?,
        None => from_options(options),
    };
    let folder = Folder::new(root, &options.id)?.lock()?;
    let container = Container::open(folder.clone())?;
    if container.init()?.is_none() {
        bail!("container {:?} is not running", options.id);
    }
    Ok(container.cgroup()?.update(&resources)?)
}

fn read(path: &Path) -> anyhow::Result<LinuxResources> {
    let named = || format!("cannot read resources from {path:?}");
    let mut bytes = Vec::new();
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).with_context(named)?)
    };
    source.take(RESOURCES_MAXIMUM).read_to_end(&mut bytes).with_context(named)?;
    serde_json::from_slice(&bytes).with_context(named)
}

fn from_options(options: &Update) -> LinuxResources {
    let mut memory = LinuxMemory::default();
    // With the limit gone, one for memory and swap together would stand alone, which the kernel refuses.
    let swap = options.memory_swap.or(options.memory.filter(|limit| *limit == -1));
    memory.set_limit(options.memory).set_reservation(options.memory_reservation).set_swap(swap);
    if options.kernel_memory.is_some() || options.kernel_memory_tcp.is_some() {
        log::warn!("limits of the kernel's memory are ignored: the kernel no longer has them");
    }
    let mut cpu = LinuxCpu::default();
    cpu.set_period(options.cpu_period)
        .set_quota(options.cpu_quota)
        .set_burst(options.cpu_burst)
        .set_shares(options.cpu_share)
        .set_realtime_period(options.cpu_rt_period)
        .set_realtime_runtime(options.cpu_rt_runtime)
        .set_idle(options.cpu_idle)
        .set_cpus(options.cpuset_cpus.clone())
        .set_mems(options.cpuset_mems.clone());
    let mut resources = LinuxResources::default();
    resources.set_devices(None);
    if memory != LinuxMemory::default() {
        resources.set_memory(Some(memory));
    }
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }
    if let Some(weight) = options.blkio_weight {
        let mut block = LinuxBlockIo::default();
        block.set_weight(Some(weight));
        resources.set_block_io(Some(block));
    }
    if let Some(limit) = options.pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    resources
}

/// `events`: goes on until the container ends.
pub(crate) fn events(root: &Path, id: &str, once: bool, interval: Duration) -> anyhow::Result<()> {
    let container = Container::find(root, id)?;
    let Some(init) = container.init()? else { bail!("container with id {id} is not running") };
    let cgroup = container.cgroup()?;
    let stats = || print_json(&json!({ "type": "stats", "id": id, "data": cgroup.stats()? }), false);
    if once {
        return stats();
    }
    let watch = cgroup.watch_oom()?;
    let mut kills = watch.kills()?.unwrap_or(0);
    let mut next = Instant::now() + interval;
    let mut look_until = Instant::now();
    loop {
        let now = Instant::now();
        let left = next.saturating_duration_since(now);
        let looks = now < look_until;
        let timeout = if looks { left.min(LOOK_INTERVAL) } else { left };
        let timeout = Timespec::try_from(timeout).context("the interval is too long")?;
        let mut descriptors = [PollFd::new(&init, PollFlags::IN), PollFd::new(&watch, PollFlags::IN | PollFlags::PRI)];
        match poll(&mut descriptors, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error).context("cannot wait for events"),
            Ok(0) if Instant::now() >= next => {
                stats()?;
                next = Instant::now() + interval;
            }
            Ok(_) => {}
        }
        let [ended, changed] = descriptors.map(|descriptor| !descriptor.revents().is_empty());
        if changed || looks {
            if changed {
                look_until = Instant::now() + LOOK_TIME;
            }
            // Its cgroup goes before or after the container: either is its end.
            let Some(now) = watch.kills()? else { return Ok(()) };
            for _ in kills..now {
                print_json(&json!({ "type": "oom", "id": id }), false)?;
            }
            kills = now;
        }
        if ended {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_does() {
        for (text, bytes) in [("0", 0), ("4096", 4096), ("64k", 65_536), ("3M", 3 << 20), ("1gb", 1 << 30), ("-1", -1)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "-2", "1.5g", "1x", "99999999999t", "+1"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn intervals_have_units() {
        assert_eq!(interval("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(interval("2m"), Ok(Duration::from_secs(120)));
        for text in ["5", "0s", "s", "-1s", "5h", "99999999999999999999s", "18446744073709551615m"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }
}
