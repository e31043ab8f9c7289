//! A container's bounds and requests in the words of the runtime specification, and what follows from them for the pod.
//!
//! Numbers are the kubelet's (`qos`, `kuberuntime`'s `container_resources`, `cm/helpers_linux.go`). Devices of the host
//! are looked at, never opened.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use skeg_protocol::manifest::{BlockIo, Device};
use skeg_protocol::{Container, Pod};
use skeg_runtime::oci;

use super::ConvertError;

/// Most processes and threads of a container that does not say, against fork bombs (podman's number).
const PIDS: i64 = 2048;
/// Least and usual CPU shares of the kernel.
const SHARES_MINIMUM: u64 = 2;
/// The scheduling period that CPU limits are counted in, in microseconds; the kernel's default.
const PERIOD: u64 = 100_000;
/// The smallest CPU quota that the kernel takes, in microseconds.
const QUOTA_MINIMUM: u64 = 1000;
/// From here on a pod is as little killed as one with guaranteed resources (Kubernetes' system-node-critical).
const CRITICAL: i32 = 2_000_000_000;

/// What a pod is sure to get, as Kubernetes names it; the first are the first to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// Nothing is said.
    BestEffort,
    /// Something is said.
    Burstable,
    /// All that it may get it is sure to get.
    Guaranteed,
}

/// The quality of service class of a pod, by the CPU and memory of its containers.
pub fn qos(pod: &Pod) -> Qos {
    let says_nothing = |one: &Container| {
        let (limits, requests) = (&one.limits, &one.requests);
        [limits.memory_bytes, requests.memory_bytes].iter().all(|bytes| bytes.is_none_or(|bytes| bytes == 0))
            && [limits.cpu_millis, requests.cpu_millis].iter().all(|millis| millis.is_none_or(|millis| millis == 0))
    };
    let guaranteed = |one: &Container| {
        let (limits, requests) = (&one.limits, &one.requests);
        let memory = limits.memory_bytes.is_some_and(|limit| requests.memory_bytes.is_none_or(|asked| asked == limit));
        memory && limits.cpu_millis.is_some_and(|limit| requests.cpu_millis.is_none_or(|asked| asked == limit))
    };
    if pod.all_containers().all(says_nothing) {
        Qos::BestEffort
    } else if pod.all_containers().all(guaranteed) {
        Qos::Guaranteed
    } else {
        Qos::Burstable
    }
}

/// How much sooner than others the kernel kills a container when memory runs out, -1000 to 1000.
pub(crate) fn oom_score_adj(pod: &Pod, container: &Container, node_memory: u64) -> i32 {
    if let Some(score) = container.limits.oom_score_adj {
        return score.into();
    }
    match qos(pod) {
        _ if pod.priority >= CRITICAL => -997,
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let asked = u128::from(requested_memory(container));
            let share = i32::try_from(1000 * asked / u128::from(node_memory.max(1))).unwrap_or(1000);
            // Below all that have no request, above all that are guaranteed.
            (1000 - share).clamp(3, 999)
        }
    }
}

/// Bytes of memory that a container asks for.
pub fn requested_memory(container: &Container) -> u64 {
    container.requests.memory_bytes.or(container.limits.memory_bytes).unwrap_or(0)
}

fn requested_cpu(container: &Container) -> u64 {
    container.requests.cpu_millis.or(container.limits.cpu_millis).unwrap_or(0).into()
}

fn shares(millis: u64) -> u64 {
    (millis * 1024 / 1000).clamp(SHARES_MINIMUM, 262_144)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(-1)
}

/// The resources of a container's cgroup.
///
/// # Errors
/// A device that can't be used, with its field.
pub(crate) fn of_container(container: &Container, nodes: &[Node]) -> Result<oci::LinuxResources, ConvertError> {
    let limits = &container.limits;
    let mut resources = oci::LinuxResources::default();
    let mut memory = oci::LinuxMemory::default();
    memory.set_limit(limits.memory_bytes.map(signed));
    memory.set_swap(limits.memory_swap_bytes.map(signed));
    memory.set_reservation(Some(requested_memory(container)).filter(|bytes| *bytes > 0).map(signed));
    resources.set_memory(Some(memory));
    let mut cpu = oci::LinuxCpu::default();
    cpu.set_shares(Some(shares(requested_cpu(container))));
    if let Some(millis) = limits.cpu_millis.filter(|millis| *millis > 0) {
        let quota = u64::from(millis) * PERIOD / 1000;
        cpu.set_quota(Some(signed(quota.max(QUOTA_MINIMUM))));
        cpu.set_period(Some(PERIOD));
    }
    cpu.set_cpus(limits.cpuset.clone());
    resources.set_cpu(Some(cpu));
    let mut pids = oci::LinuxPids::default();
    pids.set_limit(limits.pids.map_or(PIDS, i64::from));
    resources.set_pids(Some(pids));
    let pages = limits.huge_pages.iter().map(|(size, bytes)| {
        let mut limit = oci::LinuxHugepageLimit::default();
        limit.set_page_size(page_size(*size)).set_limit(signed(*bytes));
        limit
    });
    resources.set_hugepage_limits(Some(pages.collect()).filter(|pages: &Vec<_>| !pages.is_empty()));
    resources.set_block_io(block_io(&limits.block_io)?);
    resources.set_devices(Some(nodes.iter().map(Node::rule).collect()));
    Ok(resources)
}

/// The resources of a pod's cgroup: its weight among pods. Init containers run before the others, so the largest counts.
pub fn of_pod(pod: &Pod) -> oci::LinuxResources {
    let most = |of: fn(&Container) -> u64| {
        let at_once = pod.containers.iter().map(of).fold(0, u64::saturating_add);
        pod.init_containers.iter().map(of).fold(at_once, u64::max)
    };
    let mut resources = oci::LinuxResources::default();
    let mut cpu = oci::LinuxCpu::default();
    cpu.set_shares(Some(shares(most(requested_cpu))));
    resources.set_cpu(Some(cpu));
    let mut memory = oci::LinuxMemory::default();
    memory.set_reservation(Some(most(requested_memory)).filter(|bytes| *bytes > 0).map(signed));
    resources.set_memory(Some(memory));
    resources
}

/// The resources of all pods together: the device's memory but for a part that init and the agent keep, a twentieth, 32 to
/// 256 MiB.
pub fn of_all_pods(memory: u64) -> oci::LinuxResources {
    let reserve = (memory / 20).clamp(32 << 20, 256 << 20);
    let mut bound = oci::LinuxMemory::default();
    bound.set_limit(memory.checked_sub(reserve).filter(|rest| *rest > 0).map(signed));
    let mut resources = oci::LinuxResources::default();
    resources.set_memory(Some(bound));
    resources
}

/// As the kernel names a size of huge pages: `64KB`, `2MB`, `1GB`.
fn page_size(bytes: u64) -> String {
    let units = [(1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "KB")];
    let unit = units.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{bytes}B"), |(unit, name)| format!("{}{name}", bytes / unit))
}

fn block_io(bounds: &[BlockIo]) -> Result<Option<oci::LinuxBlockIo>, ConvertError> {
    if bounds.is_empty() {
        return Ok(None);
    }
    let mut lists: [Vec<oci::LinuxThrottleDevice>; 4] = Default::default();
    for (index, bound) in bounds.iter().enumerate() {
        let found = look(&bound.device, || format!("blockIO[{index}].device"))?;
        if !found.file_type().is_block_device() {
            let problem = format!("{:?} is no block device", bound.device);
            return Err(ConvertError::new(format!("blockIO[{index}].device"), problem));
        }
        let asked = [bound.read_bytes, bound.write_bytes, bound.read_operations, bound.write_operations];
        for (list, rate) in lists.iter_mut().zip(asked) {
            let Some(rate) = rate else { continue };
            let (major, minor): (i64, i64) =
                (rustix::fs::major(found.rdev()).into(), rustix::fs::minor(found.rdev()).into());
            let device = oci::LinuxThrottleDeviceBuilder::default().major(major).minor(minor).rate(rate).build();
            list.push(device.expect("every field is set"));
        }
    }
    let [read, write, reads, writes] = lists;
    let mut io = oci::LinuxBlockIo::default();
    io.set_throttle_read_bps_device(Some(read));
    io.set_throttle_write_bps_device(Some(write));
    io.set_throttle_read_iops_device(Some(reads));
    io.set_throttle_write_iops_device(Some(writes));
    Ok(Some(io))
}

/// Looks at a file of the host; links are followed, as in `/dev/disk/by-id`.
fn look(path: &str, field: impl Fn() -> String) -> Result<std::fs::Metadata, ConvertError> {
    std::fs::metadata(path).map_err(|error| ConvertError::new(field(), format!("{path:?}: {error}")))
}

/// A device node to be made for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Of the file, unique among the container's.
    pub name: String,
    /// A block device, else a character device.
    pub block: bool,
    /// Its number, as `st_rdev`.
    pub device: u64,
    /// Permissions on the host.
    pub mode: u32,
    /// Owner on the host.
    pub user: u32,
    /// Group on the host.
    pub group: u32,
    rights: String,
}

impl Node {
    fn rule(&self) -> oci::LinuxDeviceCgroup {
        let mut rule = oci::LinuxDeviceCgroup::default();
        rule.set_allow(true);
        rule.set_typ(Some(if self.block { oci::LinuxDeviceType::B } else { oci::LinuxDeviceType::C }));
        rule.set_major(Some(rustix::fs::major(self.device).into()));
        rule.set_minor(Some(rustix::fs::minor(self.device).into()));
        rule.set_access(Some(self.rights.clone()));
        rule
    }
}

/// The device nodes of a container, in the order of its devices.
///
/// # Errors
/// A device that is missing or none, with its field.
pub(crate) fn nodes(devices: &[Device]) -> Result<Vec<Node>, ConvertError> {
    let node = |(index, device): (usize, &Device)| {
        let field = || format!("devices[{index}].path");
        let found = look(&device.path, field)?;
        let kind = found.file_type();
        if !kind.is_block_device() && !kind.is_char_device() {
            return Err(ConvertError::new(field(), format!("{:?} is no device", device.path)));
        }
        let rights = [(device.read, 'r'), (device.write, 'w'), (device.mknod, 'm')];
        let rights: String = rights.into_iter().filter_map(|(may, letter)| may.then_some(letter)).collect();
        if rights.is_empty() {
            return Err(ConvertError::new(format!("devices[{index}].permissions"), "must be of r, w and m"));
        }
        Ok(Node {
            name: index.to_string(),
            block: kind.is_block_device(),
            device: found.rdev(),
            mode: found.mode() & 0o777,
            user: found.uid(),
            group: found.gid(),
            rights,
        })
    };
    devices.iter().enumerate().map(node).collect()
}

/// The resource limits of a container's processes.
///
/// # Errors
/// A limit that Linux does not have, or whose soft value is above its hard one.
pub(crate) fn ulimits(container: &Container) -> Result<Vec<oci::PosixRlimit>, ConvertError> {
    use oci::PosixRlimitType as Kind;
    let known = BTreeMap::from([
        ("as", Kind::RlimitAs),
        ("core", Kind::RlimitCore),
        ("cpu", Kind::RlimitCpu),
        ("data", Kind::RlimitData),
        ("fsize", Kind::RlimitFsize),
        ("locks", Kind::RlimitLocks),
        ("memlock", Kind::RlimitMemlock),
        ("msgqueue", Kind::RlimitMsgqueue),
        ("nice", Kind::RlimitNice),
        ("nofile", Kind::RlimitNofile),
        ("nproc", Kind::RlimitNproc),
        ("rss", Kind::RlimitRss),
        ("rtprio", Kind::RlimitRtprio),
        ("rttime", Kind::RlimitRttime),
        ("sigpending", Kind::RlimitSigpending),
        ("stack", Kind::RlimitStack),
    ]);
    let limit = |ulimit: &skeg_protocol::manifest::Ulimit| {
        let field = || format!("ulimits.{}", ulimit.name);
        let kind = known.get(ulimit.name.as_str());
        let kind = kind.ok_or_else(|| ConvertError::new(field(), "is no limit that Linux has"))?;
        if ulimit.soft > ulimit.hard {
            return Err(ConvertError::new(field(), format!("soft {} is above hard {}", ulimit.soft, ulimit.hard)));
        }
        let limit = oci::PosixRlimitBuilder::default().typ(*kind).soft(ulimit.soft).hard(ulimit.hard).build();
        Ok(limit.expect("every field is set"))
    };
    container.limits.ulimits.iter().map(limit).collect()
}

#[cfg(test)]
mod tests {
    use skeg_protocol::manifest::{Limits, Requests, Ulimit};

    use super::*;
    use crate::core::tests::pod;

    fn with(limits: &[(Option<u64>, Option<u32>)], requests: &[(Option<u64>, Option<u32>)]) -> Pod {
        let names: Vec<String> = (0..limits.len()).map(|number| format!("c{number}")).collect();
        let mut pod = pod(1, "web", &names.iter().map(String::as_str).collect::<Vec<_>>());
        for ((container, limits), requests) in pod.containers.iter_mut().zip(limits).zip(requests) {
            container.limits = Limits { memory_bytes: limits.0, cpu_millis: limits.1, ..Limits::default() };
            container.requests = Requests { memory_bytes: requests.0, cpu_millis: requests.1, ..Requests::default() };
        }
        pod
    }

    #[test]
    fn qos_classes_are_those_of_kubernetes() {
        let (none, all) = ((None, None), (Some(100), Some(10)));
        for (limits, requests, class) in [
            (vec![none], vec![none], Qos::BestEffort),
            (vec![none, none], vec![none, none], Qos::BestEffort),
            (vec![all], vec![none], Qos::Guaranteed),
            (vec![all], vec![all], Qos::Guaranteed),
            (vec![all], vec![(Some(99), Some(10))], Qos::Burstable),
            (vec![all, none], vec![none, none], Qos::Burstable),
            (vec![(Some(100), None)], vec![none], Qos::Burstable),
            (vec![none], vec![(None, Some(1))], Qos::Burstable),
        ] {
            assert_eq!(qos(&with(&limits, &requests)), class, "{limits:?} {requests:?}");
        }
        let mut guaranteed = with(&[all], &[none]);
        guaranteed.init_containers = with(&[none], &[none]).containers;
        assert_eq!(qos(&guaranteed), Qos::Burstable, "init containers count");
    }

    #[test]
    fn oom_score_adj_is_that_of_kubernetes() {
        let score = |pod: &Pod| oom_score_adj(pod, &pod.containers[0], 1000);
        assert_eq!(score(&with(&[(None, None)], &[(None, None)])), 1000);
        assert_eq!(score(&with(&[(Some(10), Some(10))], &[(None, None)])), -997);
        assert_eq!(score(&with(&[(None, None)], &[(Some(250), None)])), 750);
        assert_eq!(score(&with(&[(None, None)], &[(None, Some(5))])), 999);
        assert_eq!(score(&with(&[(None, None)], &[(Some(999), None)])), 3);
        assert_eq!(score(&with(&[(None, None)], &[(Some(5000), None)])), 3);
        let mut critical = with(&[(None, None)], &[(None, None)]);
        critical.priority = 2_000_001_000;
        assert_eq!(score(&critical), -997);
        critical.containers[0].limits.oom_score_adj = Some(-5);
        assert_eq!(score(&critical), -5, "its own word");
    }

    #[test]
    fn cpu_shares_quota_and_memory_are_those_of_the_kubelet() {
        let mut pod = with(&[(Some(1 << 20), Some(1500))], &[(Some(1 << 19), Some(250))]);
        let of = |pod: &Pod| {
            let resources = of_container(&pod.containers[0], &[]).unwrap();
            let (cpu, memory) = (resources.cpu().clone().unwrap(), resources.memory().unwrap());
            let pids = resources.pids().as_ref().map(oci::LinuxPids::limit);
            ((cpu.shares(), cpu.quota()), (memory.limit(), memory.reservation()), pids)
        };
        let memory = (Some(1 << 20), Some(1 << 19));
        assert_eq!(of(&pod), ((Some(256), Some(150_000)), memory, Some(2048)));
        pod.containers[0].limits = Limits { pids: Some(7), cpu_millis: Some(1), ..Limits::default() };
        pod.containers[0].requests = Requests::default();
        assert_eq!(of(&pod), ((Some(2), Some(1000)), (None, None), Some(7)));
        pod.containers[0].limits = Limits::default();
        assert_eq!(of(&pod), ((Some(2), None), (None, None), Some(2048)));
    }

    #[test]
    fn init_and_agent_keep_a_part_of_the_memory() {
        let limit = |memory| of_all_pods(memory).memory().unwrap().limit();
        let mib = |count: i64| Some(count << 20);
        assert_eq!([256 << 20, 1 << 30, 8 << 30].map(limit), [mib(224), Some((1 << 30) - (1 << 30) / 20), mib(7936)]);
        assert_eq!(limit(16 << 20), None);
    }

    #[test]
    fn a_pods_weight_is_that_of_its_containers_together() {
        let mut pod = with(&[(None, None); 2], &[(Some(10), Some(500)), (Some(20), Some(500))]);
        let of = |pod: &Pod| {
            let resources = of_pod(pod);
            (resources.cpu().clone().unwrap().shares(), resources.memory().unwrap().reservation())
        };
        assert_eq!(of(&pod), (Some(1024), Some(30)));
        pod.init_containers = with(&[(Some(100), Some(100))], &[(None, None)]).containers;
        assert_eq!(of(&pod), (Some(1024), Some(100)));
    }

    #[test]
    fn devices_huge_pages_and_ulimits_name_what_is_wrong() {
        let device = |path: &str| Device {
            path: path.to_owned(),
            container_path: path.to_owned(),
            read: true,
            write: true,
            mknod: false,
        };
        let found = nodes(&[device("/dev/null"), device("/dev/zero")]).unwrap();
        assert_eq!((found[1].name.as_str(), found[1].device), ("1", rustix::fs::makedev(1, 5)));
        assert_eq!((found[0].rule().major(), found[0].rule().access().as_deref()), (Some(1), Some("rw")));
        assert!(nodes(&[device("/dev/nothing-like-it")]).unwrap_err().to_string().starts_with("devices[0].path"));
        assert!(nodes(&[device("/etc/passwd")]).unwrap_err().to_string().contains("is no device"));
        assert_eq!([64 << 10, 2 << 20, 1 << 30, 100].map(page_size), ["64KB", "2MB", "1GB", "100B"]);
        let mut pod = with(&[(None, None)], &[(None, None)]);
        let mut ask = |name: &str, soft, hard| {
            let name = name.try_into().unwrap();
            pod.containers[0].limits.ulimits = vec![Ulimit { name, soft, hard }];
            ulimits(&pod.containers[0]).map_err(|error| error.to_string())
        };
        assert_eq!(ask("nofile", 5, 10).unwrap()[0].soft(), 5);
        assert!(ask("fly", 1, 1).unwrap_err().starts_with("ulimits.fly"));
        assert!(ask("nofile", 11, 10).unwrap_err().contains("is above hard"));
        pod.containers[0].limits.block_io = vec![BlockIo { device: "/dev/null".to_owned(), ..BlockIo::default() }];
        assert!(of_container(&pod.containers[0], &[]).unwrap_err().to_string().contains("is no block device"));
    }
}
