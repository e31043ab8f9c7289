//! Limits for version 1: `linux.resources` as calls of cgroups-rs, whose setters are right here once they are given the
//! folder. Where it has none, the value is written as it stands.
//!
//! Owns names and units of version 1. Must not write anything; what a cgroup holds now is read through a function of the
//! caller's.

use super::setting::Setting;
use super::version_two::Current;
use super::{CgroupError, Folder, shared};
use crate::oci;
use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::blkio::BlkIoController;
use cgroups_rs::fs::cpu::CpuController;
use cgroups_rs::fs::cpuset::CpuSetController;
use cgroups_rs::fs::error::Error as CrateError;
use cgroups_rs::fs::hugetlb::HugeTlbController;
use cgroups_rs::fs::memory::MemController;
use cgroups_rs::fs::net_cls::NetClsController;
use cgroups_rs::fs::net_prio::NetPrioController;
use cgroups_rs::fs::pid::PidController;
use cgroups_rs::fs::rdma::RdmaController;
use std::collections::HashMap;

/// Throttles a device, by its numbers and a rate.
type Throttle = fn(&BlkIoController, u64, u64, u64) -> Result<(), CrateError>;

/// A setting of which a controller's setter writes the number.
fn number<C: 'static, N: Copy + ToString + 'static>(
    limit: &str,
    (controller, new): (&str, fn(&Folder) -> C),
    file: &str,
    value: N,
    set: fn(&C, N) -> Result<(), CrateError>,
) -> Setting {
    Setting::new(limit, controller, file, value).by(move |folder| set(&new(folder), value))
}

/// Memory limits. 0 asks for nothing, as everywhere in engines' specifications.
pub(super) fn memory(memory: &oci::LinuxMemory, current: Current<'_>) -> Result<Vec<Setting>, CgroupError> {
    let controller: (&str, fn(&Folder) -> MemController) = ("memory", |folder| folder.controller(MemController::new));
    let asked = |value: Option<i64>| value.filter(|value| *value != 0);
    let mut settings = Vec::new();
    if let Some(limit) = asked(memory.limit()) {
        if memory.check_before_update() == Some(true) {
            shared::check_usage("memory.limit", limit, current("memory.usage_in_bytes"))?;
        }
        let set = MemController::set_limit;
        settings.push(number("memory.limit", controller, "memory.limit_in_bytes", limit, set));
    }
    // Unlimited memory without a word on swap means both.
    let unlimited = asked(memory.limit()).filter(|limit| *limit < 0);
    if let Some(swap) = asked(memory.swap()).or(unlimited) {
        let set = MemController::set_memswap_limit;
        let setting = number("memory.swap", controller, "memory.memsw.limit_in_bytes", swap, set);
        // A kernel without swap accounting has no file, and no bound needs none.
        settings.push(if swap < 0 { setting.if_there() } else { setting });
    }
    if let Some(soft) = asked(memory.reservation()) {
        let set = MemController::set_soft_limit;
        settings.push(number("memory.reservation", controller, "memory.soft_limit_in_bytes", soft, set));
    }
    // memory.kernel is deprecated by the specification, and Linux refuses it since 5.16: kernel memory is memory.
    if let Some(buffers) = asked(memory.kernel_tcp()) {
        let set = MemController::set_tcp_limit;
        settings.push(number("memory.kernelTCP", controller, "memory.kmem.tcp.limit_in_bytes", buffers, set));
    }
    if let Some(swappiness) = memory.swappiness() {
        let set = MemController::set_swappiness;
        settings.push(number("memory.swappiness", controller, "memory.swappiness", swappiness, set));
    }
    if let Some(disable) = memory.disable_oom_killer() {
        let value = u8::from(disable);
        settings.push(Setting::new("memory.disableOOMKiller", "memory", "memory.oom_control", value));
    }
    if let Some(hierarchy) = memory.use_hierarchy() {
        let value = u8::from(hierarchy);
        settings.push(Setting::new("memory.useHierarchy", "memory", "memory.use_hierarchy", value));
    }
    Ok(settings)
}

/// Processor time.
pub(super) fn cpu(cpu: &oci::LinuxCpu) -> Vec<Setting> {
    let controller: (&str, fn(&Folder) -> CpuController) = ("cpu", |folder| folder.controller(CpuController::new));
    let mut settings = Vec::new();
    if let Some(idle) = cpu.idle() {
        settings.push(Setting::new("cpu.idle", "cpu", "cpu.idle", idle));
    }
    if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
        settings.push(number("cpu.shares", controller, "cpu.shares", shares, CpuController::set_shares));
    }
    if let Some(period) = cpu.period().filter(|period| *period != 0) {
        settings.push(number("cpu.period", controller, "cpu.cfs_period_us", period, CpuController::set_cfs_period));
    }
    if let Some(quota) = cpu.quota().filter(|quota| *quota != 0) {
        settings.push(number("cpu.quota", controller, "cpu.cfs_quota_us", quota, CpuController::set_cfs_quota));
    }
    if let Some(burst) = cpu.burst() {
        settings.push(Setting::new("cpu.burst", "cpu", "cpu.cfs_burst_us", burst));
    }
    if let Some(period) = cpu.realtime_period().filter(|period| *period != 0) {
        let set = CpuController::set_rt_period_us;
        settings.push(number("cpu.realtimePeriod", controller, "cpu.rt_period_us", period, set));
    }
    if let Some(runtime) = cpu.realtime_runtime().filter(|runtime| *runtime != 0) {
        let set = CpuController::set_rt_runtime;
        settings.push(number("cpu.realtimeRuntime", controller, "cpu.rt_runtime_us", runtime, set));
    }
    settings
}

/// Number of processes and threads; 0 means the first one and no more, as on version 2.
pub(super) fn pids(pids: &oci::LinuxPids) -> Vec<Setting> {
    let value = match pids.limit() {
        ..0 => MaxValue::Max,
        limit => MaxValue::Value(limit.max(1)),
    };
    let set = move |folder: &Folder| folder.controller(PidController::new).set_pid_max(value);
    vec![Setting::new("pids.limit", "pids", "pids.max", value.to_string()).by(set)]
}

/// Processors and memory nodes.
pub(super) fn cpuset(cpu: &oci::LinuxCpu) -> Vec<Setting> {
    let set = |limit, file, value: &Option<String>, set: fn(&CpuSetController, &str) -> Result<(), CrateError>| {
        let value = value.clone().filter(|value| !value.is_empty())?;
        let setting = Setting::new(limit, "cpuset", file, &value);
        Some(setting.by(move |folder| set(&folder.controller(CpuSetController::new), &value)))
    };
    [
        set("cpu.cpus", "cpuset.cpus", cpu.cpus(), CpuSetController::set_cpus),
        set("cpu.mems", "cpuset.mems", cpu.mems(), CpuSetController::set_mems),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Disk traffic. Weights go to whichever scheduler has the files; cgroups-rs knows one name of them only.
pub(super) fn block_io(io: &oci::LinuxBlockIo, current: Current<'_>) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    let prefix = if current("blkio.bfq.weight").is_some() { "blkio.bfq." } else { "blkio." };
    for (limit, file, weight) in [("weight", "weight", io.weight()), ("leafWeight", "leaf_weight", io.leaf_weight())] {
        if let Some(weight) = weight.filter(|weight| *weight != 0) {
            settings.push(Setting::new(format!("blockIO.{limit}"), "blkio", format!("{prefix}{file}"), weight));
        }
    }
    for (index, device) in io.weight_device().iter().flatten().enumerate() {
        for (file, weight) in [("weight_device", device.weight()), ("leaf_weight_device", device.leaf_weight())] {
            if let Some(weight) = weight.filter(|weight| *weight != 0) {
                let value = format!("{}:{} {weight}", device.major(), device.minor());
                let limit = format!("blockIO.weightDevice[{index}]");
                settings.push(Setting::new(limit, "blkio", format!("{prefix}{file}"), value));
            }
        }
    }
    let throttles: [(&str, &str, &Option<Vec<oci::LinuxThrottleDevice>>, Throttle); 4] = [
        (
            "throttleReadBpsDevice",
            "read_bps",
            io.throttle_read_bps_device(),
            BlkIoController::throttle_read_bps_for_device,
        ),
        (
            "throttleWriteBpsDevice",
            "write_bps",
            io.throttle_write_bps_device(),
            BlkIoController::throttle_write_bps_for_device,
        ),
        (
            "throttleReadIOPSDevice",
            "read_iops",
            io.throttle_read_iops_device(),
            BlkIoController::throttle_read_iops_for_device,
        ),
        (
            "throttleWriteIOPSDevice",
            "write_iops",
            io.throttle_write_iops_device(),
            BlkIoController::throttle_write_iops_for_device,
        ),
    ];
    for (name, file, devices, set) in throttles {
        for (index, device) in devices.iter().flatten().enumerate() {
            let limit = format!("blockIO.{name}[{index}]");
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            let (Ok(major), Ok(minor)) = (u64::try_from(device.major()), u64::try_from(device.minor())) else {
                let reason = "a device has no negative numbers".into();
                return Err(CgroupError::Refused { limit, value, reason });
            };
            let rate = device.rate();
            let set = move |folder: &Folder| set(&folder.controller(BlkIoController::new), major, minor, rate);
            settings.push(Setting::new(limit, "blkio", format!("blkio.throttle.{file}_device"), value).by(set));
        }
    }
    Ok(settings)
}

/// Huge pages.
pub(super) fn hugetlb(limits: &[oci::LinuxHugepageLimit]) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    for (index, limit) in limits.iter().enumerate() {
        let (name, size) = shared::huge_page(index, limit)?;
        let file = format!("hugetlb.{size}.limit_in_bytes");
        settings.push(match u64::try_from(limit.limit()) {
            Err(_) => Setting::new(name, "hugetlb", file, -1),
            Ok(bytes) => {
                let size = size.to_owned();
                Setting::new(name, "hugetlb", file, bytes)
                    .by(move |folder| folder.controller(HugeTlbController::new).set_limit_in_bytes(&size, bytes))
            }
        });
    }
    Ok(settings)
}

/// Handles and objects of RDMA devices.
pub(super) fn rdma(devices: &HashMap<String, oci::LinuxRdma>) -> Result<Vec<Setting>, CgroupError> {
    let line = |(device, limits): (&String, &oci::LinuxRdma)| {
        let (limit, value) = shared::rdma(device, limits)?;
        let setting = Setting::new(limit, "rdma", "rdma.max", &value);
        Ok(setting
            .by(move |folder| RdmaController::new(folder.path.clone(), folder.hierarchy.mount.clone()).set_max(&value)))
    };
    devices.iter().map(line).collect()
}

/// The class of outgoing packets.
pub(super) fn network_class(network: &oci::LinuxNetwork) -> Vec<Setting> {
    let class = network.class_id().filter(|class| *class != 0);
    let setting = |class: u32| {
        let set = move |folder: &Folder| {
            NetClsController::new(folder.path.clone(), folder.hierarchy.mount.clone()).set_class(class.into())
        };
        Setting::new("network.classID", "net_cls", "net_cls.classid", class).by(set)
    };
    class.map(setting).into_iter().collect()
}

/// The priority of outgoing packets by interface.
pub(super) fn network_priorities(network: &oci::LinuxNetwork) -> Result<Vec<Setting>, CgroupError> {
    let mut settings = Vec::new();
    for (index, entry) in network.priorities().iter().flatten().enumerate() {
        let limit = format!("network.priorities[{index}]");
        shared::check_device(&limit, entry.name())?;
        let (name, priority) = (entry.name().clone(), entry.priority());
        let value = format!("{name} {priority}");
        let set = move |folder: &Folder| {
            let controller = NetPrioController::new(folder.path.clone(), folder.hierarchy.mount.clone());
            controller.set_if_prio(&name, priority.into())
        };
        settings.push(Setting::new(limit, "net_prio", "net_prio.ifpriomap", value).by(set));
    }
    Ok(settings)
}
