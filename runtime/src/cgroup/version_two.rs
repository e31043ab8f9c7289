//! Limits for version 2: `linux.resources` as values of the files in the kernel's cgroup-v2.rst.
//!
//! Owns names, units and conversions of version 2. Must not write anything; what a cgroup holds now is read through a
//! function of the caller's.

use super::setting::Setting;
use super::{CgroupError, shared};
use crate::oci;
use std::collections::HashMap;

/// Reads a file of the cgroup as it is now.
pub(super) type Current<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The scheduling period that the kernel starts with.
const DEFAULT_PERIOD_MICROSECONDS: u64 = 100_000;

fn limit_or_max(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

fn no_equal<T>(limit: &str, value: impl ToString, reason: &'static str) -> Result<T, CgroupError> {
    Err(CgroupError::NoEqual { limit: limit.into(), value: value.to_string(), reason })
}

/// Memory limits. 0 asks for nothing, as everywhere in engines' specifications.
pub(super) fn memory(memory: &oci::LinuxMemory, current: Current<'_>) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    let limit = memory.limit().filter(|limit| *limit != 0);
    if let Some(swap) = swap_alone(memory, current)? {
        let setting = Setting::new("memory.swap", "memory", "memory.swap.max", limit_or_max(swap));
        // A kernel without swap accounting has no file, and a container without a bound or without swap needs none.
        settings.push(if swap <= 0 { setting.if_there() } else { setting });
    }
    if let Some(limit) = limit {
        if memory.check_before_update() == Some(true) {
            shared::check_usage("memory.limit", limit, current("memory.current"))?;
        }
        settings.push(Setting::new("memory.limit", "memory", "memory.max", limit_or_max(limit)));
    }
    if let Some(low) = memory.reservation().filter(|low| *low != 0) {
        settings.push(Setting::new("memory.reservation", "memory", "memory.low", limit_or_max(low)));
    }
    if memory.disable_oom_killer() == Some(true) {
        return no_equal("memory.disableOOMKiller", true, "the kernel always ends what has no memory left");
    }
    if let Some(value) = memory.kernel_tcp().filter(|value| *value > 0) {
        return no_equal("memory.kernelTCP", value, "buffers of sockets count as memory.limit");
    }
    if let Some(value) = memory.swappiness() {
        return no_equal("memory.swappiness", value, "it is one for the whole machine, in vm.swappiness");
    }
    if memory.use_hierarchy() == Some(false) {
        return no_equal("memory.useHierarchy", false, "it always counts what is below");
    }
    Ok(settings)
}

/// The specification bounds memory and swap together; version 2 bounds swap alone.
fn swap_alone(memory: &oci::LinuxMemory, current: Current<'_>) -> Result<Option<i64>, CgroupError> {
    let limit = memory.limit().filter(|limit| *limit != 0);
    let both = match memory.swap().filter(|swap| *swap != 0) {
        // Unlimited memory without a word on swap means both, as on version 1.
        None => return Ok(limit.filter(|limit| *limit < 0)),
        Some(both) if both < 0 => return Ok(Some(-1)),
        Some(both) => both,
    };
    let refused =
        |reason: String| CgroupError::Refused { limit: "memory.swap".into(), value: both.to_string(), reason };
    let limit = match limit {
        Some(limit) => limit,
        None => match current("memory.max").as_deref().map(str::trim) {
            Some("max") => -1,
            Some(text) => text.parse().map_err(|_| refused(format!("memory.max reads {text:?}")))?,
            None => return Err(refused("memory.limit is not set, and swap is counted on top of it".into())),
        },
    };
    match limit {
        limit if limit < 0 => Ok(Some(both)),
        limit if both < limit => Err(refused(format!("memory and swap together are less than memory.limit = {limit}"))),
        limit => Ok(Some(both - limit)),
    }
}

/// Processor time.
pub(super) fn cpu(cpu: &oci::LinuxCpu, current: Current<'_>) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    if let Some(value) = cpu.realtime_runtime().filter(|value| *value != 0) {
        return no_equal("cpu.realtimeRuntime", value, "realtime groups are of version 1");
    }
    if let Some(value) = cpu.realtime_period().filter(|value| *value != 0) {
        return no_equal("cpu.realtimePeriod", value, "realtime groups are of version 1");
    }
    // The kernel refuses a weight while a cgroup is idle, and takes one back when it becomes so.
    if let Some(idle) = cpu.idle() {
        settings.push(Setting::new("cpu.idle", "cpu", "cpu.idle", idle));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        settings.push(Setting::new("cpu.shares", "cpu", "cpu.weight", weight_from_shares(shares)));
    }
    let (quota, period) = (cpu.quota().filter(|quota| *quota != 0), cpu.period().filter(|period| *period != 0));
    if quota.is_some() || period.is_some() {
        let now = current("cpu.max").unwrap_or_default();
        let mut now = now.split_whitespace();
        let (quota_now, period_now) = (now.next().unwrap_or("max"), now.next().and_then(|text| text.parse().ok()));
        let quota = quota.map_or_else(|| quota_now.to_owned(), limit_or_max);
        let period = period.or(period_now).unwrap_or(DEFAULT_PERIOD_MICROSECONDS);
        settings.push(Setting::new("cpu.quota", "cpu", "cpu.max", format!("{quota} {period}")));
    }
    if let Some(burst) = cpu.burst() {
        settings.push(Setting::new("cpu.burst", "cpu", "cpu.max.burst", burst));
    }
    Ok(settings)
}

/// Turns shares (2 to 262144, default 1024) into a weight (1 to 10000, default 100) so that least, default and greatest
/// meet: the curve that runc and crun agreed upon in 2025. A straight line would make 1024 shares a weight of 39.
fn weight_from_shares(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let log = (shares as f64).log2();
            10_f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil() as u64
        }
    }
}

/// Number of processes and threads. 0 would keep the first process from being born, so it means that one and no more.
pub(super) fn pids(pids: &oci::LinuxPids) -> Vec<Setting> {
    let limit = pids.limit();
    vec![Setting::new("pids.limit", "pids", "pids.max", limit_or_max(if limit == 0 { 1 } else { limit }))]
}

/// Processors and memory nodes.
pub(super) fn cpuset(cpu: &oci::LinuxCpu) -> Vec<Setting> {
    let set = |limit, file, value: &Option<String>| {
        value.as_ref().filter(|value| !value.is_empty()).map(|value| Setting::new(limit, "cpuset", file, value))
    };
    set("cpu.cpus", "cpuset.cpus", cpu.cpus()).into_iter().chain(set("cpu.mems", "cpuset.mems", cpu.mems())).collect()
}

/// Disk traffic. Weights go to the scheduler BFQ where it is, else, converted, to the kernel's cost model.
pub(super) fn block_io(io: &oci::LinuxBlockIo, current: Current<'_>) -> Result<Vec<Setting>, CgroupError> {
    const NO_LEAVES: &str = "processes of an inner cgroup have no weight of their own";
    let mut settings = Vec::new();
    if let Some(weight) = io.leaf_weight().filter(|weight| *weight != 0) {
        return no_equal("blockIO.leafWeight", weight, NO_LEAVES);
    }
    let bfq = current("io.bfq.weight").is_some();
    let weights = |weight: u16| if bfq { u64::from(weight) } else { weight_from_bfq(weight) };
    let file = if bfq { "io.bfq.weight" } else { "io.weight" };
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        settings.push(Setting::new("blockIO.weight", "io", file, weights(weight)));
    }
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        let limit = format!("blockIO.weightDevice[{index}]");
        if let Some(weight) = device.leaf_weight().filter(|weight| *weight != 0) {
            return no_equal(&format!("{limit}.leafWeight"), weight, NO_LEAVES);
        }
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let value = format!("{}:{} {}", device.major(), device.minor(), weights(weight));
            settings.push(Setting::new(limit, "io", file, value));
        }
    }
    for (name, key, devices) in [
        ("throttleReadBpsDevice", "rbps", io.throttle_read_bps_device()),
        ("throttleWriteBpsDevice", "wbps", io.throttle_write_bps_device()),
        ("throttleReadIOPSDevice", "riops", io.throttle_read_iops_device()),
        ("throttleWriteIOPSDevice", "wiops", io.throttle_write_iops_device()),
    ] {
        for (index, device) in devices.iter().flatten().enumerate() {
            // As on version 1, a rate of 0 takes the bound away.
            let rate = if device.rate() == 0 { "max".into() } else { device.rate().to_string() };
            let value = format!("{}:{} {key}={rate}", device.major(), device.minor());
            settings.push(Setting::new(format!("blockIO.{name}[{index}]"), "io", "io.max", value));
        }
    }
    Ok(settings)
}

/// Turns a weight of BFQ (10 to 1000) into one of the cost model (1 to 10000), as a straight line.
fn weight_from_bfq(weight: u16) -> u64 {
    1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

/// Huge pages, also while they are only reserved.
pub(super) fn hugetlb(limits: &[oci::LinuxHugepageLimit]) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    for (index, limit) in limits.iter().enumerate() {
        let (name, size) = shared::huge_page(index, limit)?;
        let value = limit_or_max(limit.limit());
        settings.push(Setting::new(&name, "hugetlb", format!("hugetlb.{size}.max"), &value));
        // Since Linux 5.7.
        settings.push(Setting::new(&name, "hugetlb", format!("hugetlb.{size}.rsvd.max"), value).if_there());
    }
    Ok(settings)
}

/// Handles and objects of RDMA devices.
pub(super) fn rdma(devices: &HashMap<String, oci::LinuxRdma>) -> Result<Vec<Setting>, CgroupError> {
    let line = |(device, limits): (&String, &oci::LinuxRdma)| {
        let (limit, value) = shared::rdma(device, limits)?;
        Ok(Setting::new(limit, "rdma", "rdma.max", value))
    };
    devices.iter().map(line).collect()
}

/// Network classes and priorities: version 2 has none.
pub(super) fn network(network: &oci::LinuxNetwork) -> Result<Vec<Setting>, CgroupError> {
    const REASON: &str = "packets are told apart by cgroup path in nftables or by a BPF program";
    if let Some(class) = network.class_id().filter(|class| *class != 0) {
        return no_equal("network.classID", class, REASON);
    }
    if let Some(first) = network.priorities().iter().flatten().next() {
        return no_equal("network.priorities[0]", first, REASON);
    }
    Ok(Vec::new())
}

/// Files of version 2 by their names, a line of each at a time, for that is what the kernel takes.
pub(super) fn unified(files: &HashMap<String, String>) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    let mut files: Vec<_> = files.iter().collect();
    files.sort();
    for (file, value) in files {
        let limit = format!("unified[{file:?}]");
        let plain =
            |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let (controller, rest) = file.split_once('.').unwrap_or((file, ""));
        // What moves processes or opens the cgroup is no limit.
        let limits = controller != "cgroup" || rest.starts_with("max.") || rest == "pressure";
        if !plain(controller) || !rest.split('.').all(plain) || !limits {
            let reason = "the key is not the name of a limit's file, CONTROLLER.NAME".into();
            return Err(CgroupError::Refused { limit, value: value.clone(), reason });
        }
        settings.extend(value.lines().map(|line| Setting::new(&limit, controller, file, line)));
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn from<T: serde::de::DeserializeOwned>(json: serde_json::Value) -> T {
        serde_json::from_value(json).unwrap()
    }

    fn nothing(_: &str) -> Option<String> {
        None
    }

    fn lines(settings: Vec<Setting>) -> String {
        settings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn memory_and_swap_are_told_apart() {
        let told =
            |json, now: &str| memory(&from(json), &|_| Some(now.into())).map(lines).map_err(|error| error.to_string());
        assert_eq!(told(json!({"limit": 100, "swap": 150}), "").unwrap(), "memory.swap.max=50; memory.max=100");
        assert_eq!(told(json!({"limit": 100, "swap": 100}), "").unwrap(), "memory.swap.max=0; memory.max=100");
        assert_eq!(told(json!({"limit": 100, "swap": -1}), "").unwrap(), "memory.swap.max=max; memory.max=100");
        assert_eq!(told(json!({"limit": -1}), "").unwrap(), "memory.swap.max=max; memory.max=max");
        assert_eq!(told(json!({"limit": -1, "swap": 7}), "").unwrap(), "memory.swap.max=7; memory.max=max");
        assert_eq!(told(json!({"swap": 150}), "100\n").unwrap(), "memory.swap.max=50");
        assert_eq!(told(json!({"swap": 150}), "max\n").unwrap(), "memory.swap.max=150");
        assert_eq!(told(json!({"limit": 0, "swap": 0, "reservation": 9}), "").unwrap(), "memory.low=9");
        let error = told(json!({"limit": 100, "swap": 99}), "").unwrap_err();
        assert!(error.starts_with("linux.resources.memory.swap = 99 is refused"), "{error}");
        let error = told(json!({"limit": 100, "checkBeforeUpdate": true}), "101\n").unwrap_err();
        assert!(error.contains("101 bytes are in use"), "{error}");
        assert!(memory(&from(json!({"swap": 9})), &nothing).is_err());
        for what in [json!({"swappiness": 5}), json!({"disableOOMKiller": true}), json!({"kernelTCP": 5})] {
            let error = memory(&from(what.clone()), &nothing).map(lines).unwrap_err();
            assert!(matches!(error, CgroupError::NoEqual { .. }), "{what}");
        }
    }

    #[test]
    fn processor_limits_keep_what_is_not_named() {
        let told = |json, now: &str| lines(cpu(&from(json), &|_| Some(now.into())).unwrap());
        assert_eq!(told(json!({"quota": 5000, "period": 10000}), "max 100000"), "cpu.max=5000 10000");
        assert_eq!(told(json!({"quota": -1}), "5000 10000\n"), "cpu.max=max 10000");
        assert_eq!(told(json!({"period": 20000}), "5000 10000\n"), "cpu.max=5000 20000");
        assert_eq!(told(json!({"quota": 5000}), ""), "cpu.max=5000 100000");
        assert_eq!(
            told(json!({"idle": 1, "burst": 7, "shares": 1024}), ""),
            "cpu.idle=1; cpu.weight=100; cpu.max.burst=7"
        );
        assert!(cpu(&from(json!({"realtimeRuntime": 5})), &nothing).is_err());
    }

    #[test]
    fn shares_and_weights_meet_at_both_ends_and_the_default() {
        let weights = [0, 1, 2, 3, 1024, 262_143, 262_144, u64::MAX].map(weight_from_shares);
        assert_eq!(weights, [1, 1, 1, 2, 100, 10_000, 10_000, 10_000]);
        assert_eq!([0, 10, 500, 1000, u16::MAX].map(weight_from_bfq), [1, 1, 4950, 10_000, 10_000]);
    }

    #[test]
    fn disk_limits_are_told_by_device() {
        let io = from(json!({
            "weight": 500,
            "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
            "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}],
            "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}],
        }));
        let rates = "io.max=8:0 rbps=600; io.max=8:16 wiops=max";
        assert_eq!(lines(block_io(&io, &nothing).unwrap()), format!("io.weight=4950; io.weight=8:0 1; {rates}"));
        let bfq = |file: &str| (file == "io.bfq.weight").then(String::new);
        assert_eq!(lines(block_io(&io, &bfq).unwrap()), format!("io.bfq.weight=500; io.bfq.weight=8:0 10; {rates}"));
        let leaf = from(json!({"leafWeight": 10}));
        assert!(matches!(block_io(&leaf, &nothing), Err(CgroupError::NoEqual { .. })));
    }

    #[test]
    fn files_of_version_two_are_written_by_name_and_nothing_else_is() {
        let files = |key: &str, value: &str| unified(&HashMap::from([(key.into(), value.into())])).map(lines);
        assert_eq!(files("memory.high", "5").unwrap(), "memory.high=5");
        assert_eq!(files("io.max", "8:0 rbps=1\n8:16 rbps=2\n").unwrap(), "io.max=8:0 rbps=1; io.max=8:16 rbps=2");
        assert_eq!(files("cgroup.max.depth", "5").unwrap(), "cgroup.max.depth=5");
        for key in
            ["", "memory", "memory.", ".max", "../memory.max", "a/b.c", "memory..max", "cgroup.procs", "cgroup.kill"]
        {
            let error = files(key, "1").unwrap_err().to_string();
            assert!(error.contains(&format!("unified[{key:?}]")), "{error}");
        }
    }

    #[test]
    fn processes_sizes_and_devices_are_told() {
        let told = |limit: i64| lines(pids(&from(json!({ "limit": limit }))));
        assert_eq!([7, 0, -1].map(told), ["pids.max=7", "pids.max=1", "pids.max=max"]);
        let pages: Vec<_> = from(json!([{"pageSize": "2MB", "limit": 4096}]));
        assert_eq!(lines(hugetlb(&pages).unwrap()), "hugetlb.2MB.max=4096; hugetlb.2MB.rsvd.max=4096");
        for size in ["", "2", "MB", "2MB/../x", "2mb"] {
            let pages: Vec<_> = from(json!([{"pageSize": size, "limit": 1}]));
            assert!(matches!(hugetlb(&pages), Err(CgroupError::Refused { .. })), "{size}");
        }
        let devices: HashMap<_, _> = from(json!({"mlx5_1": {"hcaHandles": 3}}));
        assert_eq!(lines(rdma(&devices).unwrap()), "rdma.max=mlx5_1 hca_handle=3");
        assert!(rdma(&HashMap::from([("a b".into(), oci::LinuxRdma::default())])).is_err());
        assert!(network(&from(json!({"classID": 5}))).is_err());
        assert_eq!(lines(network(&from(json!({"classID": 0}))).unwrap()), "");
        let cpu: oci::LinuxCpu = from(json!({"cpus": "0-1", "mems": ""}));
        assert_eq!(lines(cpuset(&cpu)), "cpuset.cpus=0-1");
    }
}
