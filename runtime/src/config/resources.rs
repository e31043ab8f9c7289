//! The rules of `linux.resources` and `linux.intelRdt`.
//!
//! Owns ranges that hold for every kernel. Must not know which controllers the host has.

use super::check::{Checked, rule};
use super::numbers;
use crate::oci;

const CPU: &str = "config-linux.md, CPU";
const MEMORY: &str = "config-linux.md, Memory";
const BLOCK: &str = "config-linux.md, Block IO";

/// Checks the limits of a cgroup.
pub(super) fn check(resources: &oci::LinuxResources) -> Checked {
    for (index, device) in resources.devices().iter().flatten().enumerate() {
        self::device(&format!("linux.resources.devices[{index}]"), device)?;
    }
    resources.memory().as_ref().map_or(Ok(()), memory)?;
    resources.cpu().as_ref().map_or(Ok(()), cpu)?;
    resources.block_io().as_ref().map_or(Ok(()), block_io)?;
    let section = "config-linux.md, Huge page limits";
    for (index, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
        let at = format!("linux.resources.hugepageLimits[{index}].pageSize");
        rule(is_page_size(limit.page_size()), at, limit.page_size(), "must be a size as 2MB", section)?;
    }
    let section = "config-linux.md, RDMA";
    for (name, limit) in resources.rdma().iter().flatten() {
        let some = limit.hca_handles().is_some() || limit.hca_objects().is_some();
        let at = format!("linux.resources.rdma.{name}");
        rule(some, at, "nothing", "must have hcaHandles or hcaObjects", section)?;
    }
    let section = "config-linux.md, Unified";
    resources.unified().iter().flatten().try_for_each(|(name, value)| {
        let plain = !name.is_empty() && !name.contains('/') && !name.starts_with('.');
        rule(
            plain,
            format!("linux.resources.unified.{name}"),
            value,
            "must have the name of a file as its key",
            section,
        )
    })
}

fn device(at: &str, device: &oci::LinuxDeviceCgroup) -> Checked {
    use oci::LinuxDeviceType as Kind;
    let section = "config-linux.md, Allowed Device list";
    let kind = device.typ().unwrap_or(Kind::A);
    let known = matches!(kind, Kind::A | Kind::B | Kind::C);
    rule(known, format!("{at}.type"), kind.as_str(), "must be a, b or c", section)?;
    let access = device.access().as_deref().unwrap_or_default();
    let known = access.bytes().all(|byte| b"rwm".contains(&byte));
    rule(known, format!("{at}.access"), access, "must be made of r, w and m", section)?;
    for (name, number) in [("major", device.major()), ("minor", device.minor())] {
        let number = number.unwrap_or(-1);
        // -1 is what engines write for "all".
        let fits = (-1..=i64::from(u32::MAX)).contains(&number);
        rule(fits, format!("{at}.{name}"), number, "must be a device number", section)?;
    }
    Ok(())
}

fn memory(memory: &oci::LinuxMemory) -> Checked {
    let limits = [
        ("limit", memory.limit()),
        ("reservation", memory.reservation()),
        ("swap", memory.swap()),
        ("kernel", memory.kernel()),
        ("kernelTCP", memory.kernel_tcp()),
    ];
    for (name, limit) in limits {
        let limit = limit.unwrap_or(-1);
        let at = format!("linux.resources.memory.{name}");
        rule(limit >= -1, at, limit, "must be a number of bytes, or -1 for no limit", MEMORY)?;
    }
    let swappiness = memory.swappiness().unwrap_or(0);
    rule(swappiness <= 100, "linux.resources.memory.swappiness", swappiness, "must be between 0 and 100", MEMORY)?;
    // `swap` counts memory and swap together.
    let (limit, swap) = (memory.limit().unwrap_or(0), memory.swap().unwrap_or(0));
    let enough = swap <= 0 || limit <= swap;
    rule(enough, "linux.resources.memory.swap", swap, "must not be below the limit of memory", MEMORY)
}

fn cpu(cpu: &oci::LinuxCpu) -> Checked {
    let (quota, burst) = (cpu.quota().unwrap_or(0), cpu.burst().unwrap_or(0));
    let fits = quota <= 0 || burst <= quota.unsigned_abs();
    rule(fits, "linux.resources.cpu.burst", burst, "must not be above a positive quota", CPU)?;
    let idle = cpu.idle().unwrap_or(0);
    rule(matches!(idle, 0 | 1), "linux.resources.cpu.idle", idle, "must be 0 or 1", CPU)?;
    for (name, list) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
        let list = list.as_deref().unwrap_or_default();
        let at = format!("linux.resources.cpu.{name}");
        let listed = list.is_empty() || numbers(list, super::check::PROCESSORS_MAXIMUM).is_some();
        rule(listed, at, list, "must be a list of numbers as 0-3,7", CPU)?;
    }
    Ok(())
}

fn block_io(block: &oci::LinuxBlockIo) -> Checked {
    let weight = |at: String, weight: Option<u16>| {
        let weight = weight.unwrap_or(0);
        // Zero is "not set" to engines.
        rule(weight == 0 || (10..=1000).contains(&weight), at, weight, "must be between 10 and 1000", BLOCK)
    };
    weight("linux.resources.blockIO.weight".into(), block.weight())?;
    weight("linux.resources.blockIO.leafWeight".into(), block.leaf_weight())?;
    for (index, device) in block.weight_device().iter().flatten().enumerate() {
        let at = format!("linux.resources.blockIO.weightDevice[{index}]");
        let some = device.weight().is_some() || device.leaf_weight().is_some();
        rule(some, &at, "nothing", "must have weight or leafWeight", BLOCK)?;
        weight(format!("{at}.weight"), device.weight())?;
        weight(format!("{at}.leafWeight"), device.leaf_weight())?;
        numbers_of(&at, device.major(), device.minor())?;
    }
    let lists = [
        ("throttleReadBpsDevice", block.throttle_read_bps_device()),
        ("throttleWriteBpsDevice", block.throttle_write_bps_device()),
        ("throttleReadIOPSDevice", block.throttle_read_iops_device()),
        ("throttleWriteIOPSDevice", block.throttle_write_iops_device()),
    ];
    for (name, list) in lists {
        for (index, device) in list.iter().flatten().enumerate() {
            let at = format!("linux.resources.blockIO.{name}[{index}]");
            numbers_of(&at, device.major(), device.minor())?;
        }
    }
    Ok(())
}

fn numbers_of(at: &str, major: i64, minor: i64) -> Checked {
    [("major", major), ("minor", minor)].into_iter().try_for_each(|(name, number)| {
        rule(u32::try_from(number).is_ok(), format!("{at}.{name}"), number, "must be a device number", BLOCK)
    })
}

/// `64KB`, `2MB`, `1GB`.
fn is_page_size(size: &str) -> bool {
    let digits = size.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit = size.get(digits.len()..).unwrap_or_default();
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain && matches!(unit, "B" | "KB" | "MB" | "GB" | "TB")
}

/// Checks what is written to resctrl, a line a value.
pub(super) fn intel_rdt(rdt: &oci::LinuxIntelRdt) -> Checked {
    let section = "config-linux.md, IntelRdt";
    let class = rdt.clos_id().as_deref().unwrap_or("/");
    let plain = class == "/" || (!class.is_empty() && !class.contains('/') && !matches!(class, "." | ".."));
    rule(plain, "linux.intelRdt.closID", class, "must be the name of a folder, or / for the default", section)?;
    let bandwidth = rdt.mem_bw_schema().as_deref().unwrap_or("MB:");
    rule(bandwidth.starts_with("MB:"), "linux.intelRdt.memBwSchema", bandwidth, "must start with MB:", section)?;
    let schemes = [("l3CacheSchema", rdt.l3_cache_schema()), ("memBwSchema", rdt.mem_bw_schema())];
    let schemes = schemes.into_iter().filter_map(|(name, scheme)| Some((name, scheme.as_ref()?)));
    let more = rdt.schemata().iter().flatten().map(|line| ("schemata", line));
    schemes.chain(more).try_for_each(|(name, line)| {
        rule(!line.contains('\n'), format!("linux.intelRdt.{name}"), line, "must not contain a line break", section)
    })
}
