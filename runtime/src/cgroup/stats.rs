//! What a cgroup used: the figures of `runc events --stats`, in its words.
//!
//! Owns reading and converting the kernel's counts. Must not interpret them. A count that this kernel lacks is left out
//! or 0, as in runc's; one that cannot be read is an error.

use super::hierarchy::Version;
use super::{Cgroup, CgroupError, Folder};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;
use std::io;

/// All figures of a cgroup; `data` of a `stats` event of runc.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Processes.
    pub pids: PidsStats,
    /// Disk traffic.
    pub blkio: BlockStats,
    /// Huge pages by size, such as `2MB`.
    pub hugetlb: BTreeMap<String, HugePageStats>,
}

/// Processor time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuStats {
    /// Time used.
    pub usage: CpuUsage,
    /// Time held back by the quota.
    pub throttling: Throttling,
    /// Time lost to others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Processor time in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuUsage {
    /// All of it.
    pub total: u64,
    /// By processor; version 1 only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// Outside of it.
    pub user: u64,
}

/// What the processor quota did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods that passed.
    pub periods: u64,
    /// Periods in which the quota was used up.
    pub throttled_periods: u64,
    /// Time held back in nanoseconds.
    pub throttled_time: u64,
}

/// Pressure stall information; see the kernel's accounting/psi.rst.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pressure {
    /// While some waited.
    pub some: PressureTotal,
    /// While nobody got on.
    pub full: PressureTotal,
}

/// One line of pressure: shares of time in hundredths of a percent over the last 10, 60 and 300 seconds, and all of it in
/// microseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PressureTotal {
    /// Over ten seconds.
    #[serde(serialize_with = "hundredths")]
    pub avg10: u32,
    /// Over a minute.
    #[serde(serialize_with = "hundredths")]
    pub avg60: u32,
    /// Over five minutes.
    #[serde(serialize_with = "hundredths")]
    pub avg300: u32,
    /// Since the cgroup was made.
    pub total: u64,
}

/// Memory in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryStats {
    /// Page cache.
    pub cache: u64,
    /// Memory, page cache included.
    pub usage: MemoryEntry,
    /// Memory and swap together, as version 1 counts.
    pub swap: MemoryEntry,
    /// Memory of the kernel; version 1 only.
    pub kernel: MemoryEntry,
    /// Buffers of TCP; version 1 only.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryEntry,
    /// `memory.stat` as it stands.
    pub raw: BTreeMap<String, u64>,
    /// Time lost to a want of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One kind of memory in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryEntry {
    /// Its bound; 18446744073709551615 is none.
    pub limit: u64,
    /// Now.
    pub usage: u64,
    /// At most since the cgroup was made.
    pub max: u64,
    /// How often the bound was met.
    pub failcnt: u64,
}

/// Number of processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PidsStats {
    /// Now.
    pub current: u64,
    /// Their bound; 0 is none.
    pub limit: u64,
}

/// Disk traffic by device and direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockStats {
    /// Bytes.
    pub io_service_bytes_recursive: Vec<BlockEntry>,
    /// Operations.
    pub io_serviced_recursive: Vec<BlockEntry>,
    /// Time lost to waiting for disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// One count of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlockEntry {
    /// Its major number.
    pub major: u64,
    /// Its minor number.
    pub minor: u64,
    /// `Read`, `Write` or another word of the kernel's.
    pub op: String,
    /// Bytes or operations.
    pub value: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HugePageStats {
    /// Now.
    pub usage: u64,
    /// At most since the cgroup was made; version 1 only.
    pub max: u64,
    /// How often the bound was met.
    pub failcnt: u64,
}

fn hundredths<S: serde::Serializer>(value: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(f64::from(*value) / 100.0)
}

impl Cgroup {
    /// Reads what it used so far.
    ///
    /// # Errors
    /// [`CgroupError::File`] if a count cannot be read; not for one that this kernel lacks.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        let mut stats = Stats {
            cpu: self.cpu()?,
            memory: self.memory()?,
            pids: PidsStats::default(),
            blkio: self.block()?,
            hugetlb: self.huge_pages()?,
        };
        if let Some(folder) = self.find("pids") {
            stats.pids.current = folder.number("pids.current")?;
            stats.pids.limit = Some(folder.number("pids.max")?).filter(|limit| *limit != u64::MAX).unwrap_or(0);
        }
        if let Some(folder) = self.unified() {
            stats.cpu.psi = folder.pressure("cpu.pressure")?;
            stats.memory.psi = folder.pressure("memory.pressure")?;
            stats.blkio.psi = folder.pressure("io.pressure")?;
        }
        Ok(stats)
    }

    fn cpu(&self) -> Result<CpuStats, CgroupError> {
        let mut stats = CpuStats::default();
        if let Some(folder) = self.version_one("cpuacct") {
            stats.usage.total = folder.number("cpuacct.usage")?;
            stats.usage.user = folder.number("cpuacct.usage_user")?;
            stats.usage.kernel = folder.number("cpuacct.usage_sys")?;
            let each = folder.read_if_there("cpuacct.usage_percpu")?.unwrap_or_default();
            stats.usage.percpu = each.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        }
        // Version 2 counts time with and without the controller.
        if let Some(folder) = self.find("cpu").or_else(|| self.unified()) {
            let table = folder.table("cpu.stat")?;
            let get = |name: &str| table.get(name).copied().unwrap_or(0);
            stats.throttling.periods = get("nr_periods");
            stats.throttling.throttled_periods = get("nr_throttled");
            stats.throttling.throttled_time = match folder.hierarchy.version {
                Version::One => get("throttled_time"),
                Version::Two => get("throttled_usec").saturating_mul(1000),
            };
            if self.version_one("cpuacct").is_none() {
                let nanoseconds = |name| get(name).saturating_mul(1000);
                stats.usage.total = nanoseconds("usage_usec");
                stats.usage.user = nanoseconds("user_usec");
                stats.usage.kernel = nanoseconds("system_usec");
            }
        }
        Ok(stats)
    }

    fn memory(&self) -> Result<MemoryStats, CgroupError> {
        let Some(folder) = self.find("memory") else { return Ok(MemoryStats::default()) };
        let raw = folder.table("memory.stat")?;
        let stats = match folder.hierarchy.version {
            Version::One => MemoryStats {
                cache: raw.get("total_cache").or(raw.get("cache")).copied().unwrap_or(0),
                usage: folder.memory_version_one("memory")?,
                swap: folder.memory_version_one("memory.memsw")?,
                kernel: folder.memory_version_one("memory.kmem")?,
                kernel_tcp: folder.memory_version_one("memory.kmem.tcp")?,
                raw,
                psi: None,
            },
            Version::Two => {
                let events = folder.table("memory.events")?;
                let usage = MemoryEntry {
                    limit: folder.number("memory.max")?,
                    usage: folder.number("memory.current")?,
                    max: folder.number("memory.peak")?,
                    failcnt: events.get("max").copied().unwrap_or(0),
                };
                let swap = MemoryEntry {
                    limit: folder.number("memory.swap.max")?.saturating_add(usage.limit),
                    usage: folder.number("memory.swap.current")?.saturating_add(usage.usage),
                    ..MemoryEntry::default()
                };
                let cache = raw.get("file").copied().unwrap_or(0);
                MemoryStats { cache, usage, swap, raw, ..MemoryStats::default() }
            }
        };
        Ok(stats)
    }

    fn block(&self) -> Result<BlockStats, CgroupError> {
        let mut stats = BlockStats::default();
        if let Some(folder) = self.version_one("blkio") {
            // The throttle counts every request; the scheduler's own files only know theirs.
            stats.io_service_bytes_recursive = folder.block_version_one("io_service_bytes_recursive")?;
            stats.io_serviced_recursive = folder.block_version_one("io_serviced_recursive")?;
        } else if let Some(folder) = self.find("io") {
            let text = folder.read_if_there("io.stat")?.unwrap_or_default();
            for line in text.lines() {
                let mut words = line.split_whitespace();
                let Some((major, minor)) = words.next().and_then(device_numbers) else { continue };
                for (key, value) in words.filter_map(|word| word.split_once('=')) {
                    let (list, op) = match key {
                        "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                        "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                        "rios" => (&mut stats.io_serviced_recursive, "Read"),
                        "wios" => (&mut stats.io_serviced_recursive, "Write"),
                        _ => continue,
                    };
                    let value = value.parse().unwrap_or(0);
                    list.push(BlockEntry { major, minor, op: op.into(), value });
                }
            }
        }
        Ok(stats)
    }

    fn huge_pages(&self) -> Result<BTreeMap<String, HugePageStats>, CgroupError> {
        let mut stats = BTreeMap::new();
        let Some(folder) = self.find("hugetlb") else { return Ok(stats) };
        let entries = match fs::read_dir(&folder.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(stats),
            entries => entries.map_err(|source| folder.error("read", "", source))?,
        };
        let end = match folder.hierarchy.version {
            Version::One => ".usage_in_bytes",
            Version::Two => ".current",
        };
        for entry in entries {
            let name = entry.map_err(|source| folder.error("read", "", source))?.file_name();
            let name = name.to_string_lossy();
            let Some(size) = name.strip_prefix("hugetlb.").and_then(|name| name.strip_suffix(end)) else { continue };
            if size.contains('.') {
                continue;
            }
            let entry = match folder.hierarchy.version {
                Version::One => HugePageStats {
                    usage: folder.number(&name)?,
                    max: folder.number(&format!("hugetlb.{size}.max_usage_in_bytes"))?,
                    failcnt: folder.number(&format!("hugetlb.{size}.failcnt"))?,
                },
                Version::Two => HugePageStats {
                    usage: folder.number(&name)?,
                    max: 0,
                    failcnt: folder.table(&format!("hugetlb.{size}.events"))?.get("max").copied().unwrap_or(0),
                },
            };
            stats.insert(size.to_owned(), entry);
        }
        Ok(stats)
    }
}

impl Folder {
    /// Reads a file that holds one number; `max` is the greatest, and a file that this kernel lacks 0.
    fn number(&self, file: &str) -> Result<u64, CgroupError> {
        let Some(text) = self.read_if_there(file)? else { return Ok(0) };
        match text.trim() {
            "max" => Ok(u64::MAX),
            text => text.parse().map_err(|error| self.error("understand", file, io::Error::other(error))),
        }
    }

    /// Reads a flat keyed file.
    fn table(&self, file: &str) -> Result<BTreeMap<String, u64>, CgroupError> {
        let text = self.read_if_there(file)?.unwrap_or_default();
        let entry =
            |line: &str| line.split_once(' ').and_then(|(key, value)| Some((key.into(), value.trim().parse().ok()?)));
        Ok(text.lines().filter_map(entry).collect())
    }

    fn memory_version_one(&self, prefix: &str) -> Result<MemoryEntry, CgroupError> {
        Ok(MemoryEntry {
            limit: self.number(&format!("{prefix}.limit_in_bytes"))?,
            usage: self.number(&format!("{prefix}.usage_in_bytes"))?,
            max: self.number(&format!("{prefix}.max_usage_in_bytes"))?,
            failcnt: self.number(&format!("{prefix}.failcnt"))?,
        })
    }

    /// Reads lines such as `8:0 Read 4096`.
    fn block_version_one(&self, name: &str) -> Result<Vec<BlockEntry>, CgroupError> {
        let text = self.read_if_there(&format!("blkio.throttle.{name}"))?.unwrap_or_default();
        let entry = |line: &str| {
            let mut words = line.split_whitespace();
            let (major, minor) = device_numbers(words.next()?)?;
            Some(BlockEntry { major, minor, op: words.next()?.into(), value: words.next()?.parse().ok()? })
        };
        Ok(text.lines().filter_map(entry).collect())
    }

    /// Reads a pressure file; nothing if the kernel does not keep it, which it may also say on reading.
    fn pressure(&self, file: &str) -> Result<Option<Pressure>, CgroupError> {
        let text = match self.read_if_there(file) {
            Err(CgroupError::File { source, .. }) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                return Ok(None);
            }
            text => text?,
        };
        Ok(text.map(|text| pressure(&text)))
    }
}

fn device_numbers(word: &str) -> Option<(u64, u64)> {
    let (major, minor) = word.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn pressure(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let total = match words.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            // The kernel prints two digits behind the point.
            let share = || value.replace('.', "").parse().unwrap_or(0);
            match key {
                "avg10" => total.avg10 = share(),
                "avg60" => total.avg60 = share(),
                "avg300" => total.avg300 = share(),
                "total" => total.total = value.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
    pressure
}

/// Reads `name value` from a flat keyed file.
pub(super) fn keyed(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_reads_as_runc_prints_it() {
        let text =
            "some avg10=1.25 avg60=0.00 avg300=100.00 total=12345\nfull avg10=0.05 avg60=0.00 avg300=0.00 total=7\n";
        let json = serde_json::to_value(pressure(text)).unwrap();
        assert_eq!(json["some"], serde_json::json!({"avg10": 1.25, "avg60": 0.0, "avg300": 100.0, "total": 12345}));
        assert_eq!(json["full"]["avg10"], 0.05);
    }
}
