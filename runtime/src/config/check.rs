//! The rules of the runtime specification that a typed configuration can break.
//!
//! Owns what is wrong on every host. Must not repeat what compiling a plan finds out anyway, such as paths inside of the
//! root, mount options, device numbers and sysctls.

use super::{Violation, numbers, resources};
use crate::oci;
use oci::LinuxNamespaceType as Namespace;
use std::collections::HashSet;
use std::fmt;
use std::path::Path;

/// More CPUs or memory nodes than any kernel is built for.
pub(crate) const PROCESSORS_MAXIMUM: usize = 8192;
/// See [`PROCESSORS_MAXIMUM`].
pub(crate) const NODES_MAXIMUM: usize = 1024;
/// The kernel's bound on the lines of a map; user_namespaces(7).
const MAPPINGS_MAXIMUM: usize = 340;

pub(super) type Checked = Result<(), Violation>;

/// One rule: fails with its place and value unless it holds.
pub(super) fn rule(
    holds: bool,
    at: impl fmt::Display,
    value: impl fmt::Display,
    rule: &'static str,
    section: &'static str,
) -> Checked {
    if holds { Ok(()) } else { Err(Violation { at: at.to_string(), value: value.to_string(), rule, section }) }
}

/// Checks a whole configuration.
///
/// # Errors
/// The first broken rule.
pub(crate) fn check(spec: &oci::Spec) -> Checked {
    version(spec.version())?;
    if let Some(root) = spec.root() {
        rule(root.path() != Path::new(""), "root.path", "", "must name a folder", "config.md, Root")?;
    }
    spec.process().as_ref().map_or(Ok(()), |it| process("process.", it))?;
    spec.linux().as_ref().map_or(Ok(()), linux)?;
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        self::mount(&format!("mounts[{index}]"), mount)?;
    }
    spec.hooks().as_ref().map_or(Ok(()), hooks)?;
    let keys = spec.annotations().iter().flatten().map(|(key, _)| key);
    keys.into_iter().try_for_each(|key| {
        rule(!key.is_empty(), "annotations", key, "must not have an empty key", "config.md, Annotations")
    })
}

/// SemVer 2.0.0 of the only major version there is; a later minor version only adds.
fn version(version: &str) -> Checked {
    let section = "config.md, Specification version";
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let numeric = |part: &str| {
        let digits = !part.is_empty() && part.len() <= 9 && part.bytes().all(|byte| byte.is_ascii_digit());
        digits && (part == "0" || !part.starts_with('0'))
    };
    let rest = version.get(core.len()..).unwrap_or_default();
    let tail = rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-+.".contains(&byte))
        && !rest.ends_with(['-', '+', '.']);
    let whole = core.split('.').count() == 3 && core.split('.').all(numeric) && tail;
    rule(whole, "ociVersion", version, "must be a version as 1.2.0 (SemVer 2.0.0)", section)?;
    rule(core.starts_with("1."), "ociVersion", version, "must be a version 1; no other is known", section)
}

/// Checks a process; `at` is empty or ends in a dot.
pub(crate) fn process(at: &str, process: &oci::Process) -> Checked {
    let section = "config.md, Process";
    let cwd = process.cwd();
    rule(cwd.is_absolute(), format!("{at}cwd"), cwd.display(), "must be an absolute path", section)?;
    let first = process.args().iter().flatten().next().map_or("", String::as_str);
    rule(!first.is_empty(), format!("{at}args"), first, "must begin with the program to run", section)?;
    environment(&format!("{at}env"), process.env().as_deref().unwrap_or_default(), section)?;
    let mut seen = HashSet::new();
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let (at, section) = (format!("{at}rlimits[{index}]"), "config.md, POSIX process");
        rule(
            seen.insert(limit.typ().to_string()),
            format!("{at}.type"),
            limit.typ(),
            "must not be there twice",
            section,
        )?;
        let ordered = limit.soft() <= limit.hard();
        rule(ordered, format!("{at}.soft"), limit.soft(), "must not be above the hard limit", section)?;
    }
    let score = process.oom_score_adj().unwrap_or(0);
    let section = "config.md, Linux Process";
    let rule_of_score = "must be between -1000 and 1000";
    rule((-1000..=1000).contains(&score), format!("{at}oomScoreAdj"), score, rule_of_score, section)?;
    user(at, process.user())?;
    attributes(at, process)
}

fn environment(at: &str, entries: &[String], section: &'static str) -> Checked {
    entries.iter().enumerate().try_for_each(|(index, entry)| {
        let named = entry.find('=').is_some_and(|end| end > 0);
        rule(named, format!("{at}[{index}]"), entry, "must have the form name=value", section)
    })
}

fn user(at: &str, user: &oci::User) -> Checked {
    let ids = [("uid".to_string(), user.uid()), ("gid".to_string(), user.gid())];
    let groups = user.additional_gids().iter().flatten().enumerate();
    let groups = groups.map(|(index, group)| (format!("additionalGids[{index}]"), *group));
    ids.into_iter().chain(groups).try_for_each(|(name, id)| {
        let section = "config.md, POSIX-platform User";
        // setresuid(2) and chown(2) take -1 for "leave it".
        rule(id != u32::MAX, format!("{at}user.{name}"), id, "must be an id; this one means none", section)
    })
}

/// What the kernel's scheduler is to do with the process.
fn attributes(at: &str, process: &oci::Process) -> Checked {
    let section = "config.md, Linux Process";
    if let Some(priority) = process.io_priority() {
        let value = priority.priority();
        let at = format!("{at}ioPriority.priority");
        rule((0..=7).contains(&value), at, value, "must be between 0 and 7", section)?;
    }
    if let Some(affinity) = process.exec_cpu_affinity() {
        for (name, list) in [("initial", affinity.initial()), ("final", affinity.cpu_affinity_final())] {
            let list = list.as_deref().unwrap_or("0");
            let at = format!("{at}execCPUAffinity.{name}");
            rule(numbers(list, PROCESSORS_MAXIMUM).is_some(), at, list, "must be a list of CPUs as 0-3,7", section)?;
        }
    }
    process.scheduler().as_ref().map_or(Ok(()), |it| scheduler(&format!("{at}scheduler"), it))
}

fn scheduler(at: &str, scheduler: &oci::Scheduler) -> Checked {
    use oci::LinuxSchedulerPolicy as Policy;
    let section = "config.md, Linux Process";
    let policy = *scheduler.policy();
    rule(policy != Policy::SchedIso, format!("{at}.policy"), policy, "is known to no kernel", section)?;
    let nice = scheduler.nice().unwrap_or(0);
    rule((-20..=19).contains(&nice), format!("{at}.nice"), nice, "must be between -20 and 19", section)?;
    let priority = scheduler.priority().unwrap_or(0);
    let at_priority = format!("{at}.priority");
    if matches!(policy, Policy::SchedFifo | Policy::SchedRr) {
        rule((1..=99).contains(&priority), at_priority, priority, "must be between 1 and 99 for this policy", section)?;
    } else {
        rule(priority == 0, at_priority, priority, "must be 0 but for SCHED_FIFO and SCHED_RR", section)?;
    }
    let times = [("runtime", scheduler.runtime()), ("deadline", scheduler.deadline()), ("period", scheduler.period())];
    times.into_iter().try_for_each(|(name, time)| {
        let (time, at) = (time.unwrap_or(0), format!("{at}.{name}"));
        let fits = policy == Policy::SchedDeadline || time == 0;
        rule(fits, at, time, "must be left out but for SCHED_DEADLINE", section)
    })
}

fn linux(linux: &oci::Linux) -> Checked {
    let mut seen: HashSet<Namespace> = HashSet::new();
    for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
        let at = format!("linux.namespaces[{index}]");
        let (kind, section) = (namespace.typ(), "config-linux.md, Namespaces");
        rule(seen.insert(kind), format!("{at}.type"), kind, "must not be there twice", section)?;
        if let Some(path) = namespace.path() {
            rule(path.is_absolute(), format!("{at}.path"), path.display(), "must be an absolute path", section)?;
        }
    }
    let section = "config-linux.md, User namespace mappings";
    for (name, list) in [("uidMappings", linux.uid_mappings()), ("gidMappings", linux.gid_mappings())] {
        let list = list.as_deref().unwrap_or_default();
        let at = format!("linux.{name}");
        let allowed = list.is_empty() || seen.contains(&Namespace::User);
        rule(allowed, &at, format!("{} entries", list.len()), "needs a user namespace", section)?;
        mappings(&at, list, section)?;
    }
    time_offsets(linux, seen.contains(&Namespace::Time))?;
    if let Some(list) = linux.net_devices() {
        let section = "config-linux.md, Network Devices";
        let allowed = list.is_empty() || seen.contains(&Namespace::Network);
        rule(allowed, "linux.netDevices", format!("{} entries", list.len()), "needs a network namespace", section)?;
        list.iter().try_for_each(|(name, device)| {
            let at = format!("linux.netDevices.{name}");
            rule(is_interface(name), &at, name, "must be the name of an interface", section)?;
            let inside = device.name().as_deref().filter(|name| !name.is_empty()).unwrap_or(name);
            rule(is_interface(inside), format!("{at}.name"), inside, "must be the name of an interface", section)
        })?;
    }
    if let Some(flag) = linux.personality().iter().filter_map(|it| it.flags().as_ref()).flatten().next() {
        let section = "config-linux.md, Personality";
        rule(false, "linux.personality.flags[0]", flag, "is a flag; none is supported", section)?;
    }
    linux.memory_policy().as_ref().map_or(Ok(()), memory_policy)?;
    linux.intel_rdt().as_ref().map_or(Ok(()), resources::intel_rdt)?;
    linux.seccomp().as_ref().map_or(Ok(()), seccomp)?;
    linux.resources().as_ref().map_or(Ok(()), resources::check)
}

/// The kernel's own rule, dev_valid_name().
fn is_interface(name: &str) -> bool {
    let plain = |byte: u8| byte != b'/' && byte != b':' && !byte.is_ascii_whitespace();
    (1..=15).contains(&name.len()) && !matches!(name, "." | "..") && name.bytes().all(plain)
}

/// The kernel takes a map of ranges that neither overlap nor leave the ids; user_namespaces(7).
fn mappings(at: &str, list: &[oci::LinuxIdMapping], section: &'static str) -> Checked {
    let few = list.len() <= MAPPINGS_MAXIMUM;
    rule(few, at, format!("{} entries", list.len()), "must have at most 340 entries", section)?;
    let apart = |a: u32, b: u32, sizes: (u32, u32)| {
        u64::from(a) + u64::from(sizes.0) <= u64::from(b) || u64::from(b) + u64::from(sizes.1) <= u64::from(a)
    };
    for (index, mapping) in list.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let size = mapping.size();
        rule(size > 0, format!("{at}.size"), size, "must be at least 1", section)?;
        for (name, first) in [("containerID", mapping.container_id()), ("hostID", mapping.host_id())] {
            let fits = u64::from(first) + u64::from(size) <= u64::from(u32::MAX);
            rule(fits, format!("{at}.{name}"), first, "must leave room for its size below 4294967295", section)?;
        }
        let clear = list.iter().take(index).all(|other| {
            let sizes = (size, other.size());
            apart(mapping.container_id(), other.container_id(), sizes)
                && apart(mapping.host_id(), other.host_id(), sizes)
        });
        rule(clear, &at, mapping.container_id(), "must not overlap another entry", section)?;
    }
    Ok(())
}

fn time_offsets(linux: &oci::Linux, own: bool) -> Checked {
    let section = "config-linux.md, Offset for Time Namespace";
    let none = Default::default();
    let offsets = linux.time_offsets().as_ref().unwrap_or(&none);
    let count = format!("{} entries", offsets.len());
    rule(offsets.is_empty() || own, "linux.timeOffsets", count, "needs a time namespace", section)?;
    offsets.iter().try_for_each(|(clock, offset)| {
        let at = format!("linux.timeOffsets.{clock}");
        rule(matches!(clock.as_str(), "monotonic" | "boottime"), &at, clock, "must be monotonic or boottime", section)?;
        let nanoseconds = offset.nanosecs().unwrap_or(0);
        rule(nanoseconds < 1_000_000_000, format!("{at}.nanosecs"), nanoseconds, "must be below a second", section)
    })
}

/// set_mempolicy(2) says which modes need nodes and which refuse them.
fn memory_policy(policy: &oci::LinuxMemoryPolicy) -> Checked {
    use oci::MemoryPolicyModeType as Mode;
    let section = "config-linux.md, Memory policy";
    let (at, nodes) = ("linux.memoryPolicy.nodes", policy.nodes().as_deref().unwrap_or_default());
    let listed = nodes.is_empty() || numbers(nodes, NODES_MAXIMUM).is_some();
    rule(listed, at, nodes, "must be a list of memory nodes as 0-3,7", section)?;
    match policy.mode() {
        Mode::MpolDefault | Mode::MpolLocal => {
            rule(nodes.is_empty(), at, nodes, "must be left out in this mode", section)?;
            let flags = policy.flags().as_deref().unwrap_or_default();
            let first = flags.first().map_or(String::new(), ToString::to_string);
            rule(flags.is_empty(), "linux.memoryPolicy.flags", first, "must be left out in this mode", section)
        }
        Mode::MpolPreferred => Ok(()),
        _ => rule(!nodes.is_empty(), at, nodes, "must name a node in this mode", section),
    }
}

fn mount(at: &str, mount: &oci::Mount) -> Checked {
    let section = "config.md, Mounts";
    let named = mount.destination() != Path::new("");
    rule(named, format!("{at}.destination"), "", "must be a path", section)?;
    let section = "config.md, POSIX-platform Mounts";
    let users = mount.uid_mappings().as_deref().unwrap_or_default();
    let groups = mount.gid_mappings().as_deref().unwrap_or_default();
    let both = users.is_empty() == groups.is_empty();
    rule(both, at, mount.destination().display(), "must have uidMappings and gidMappings, or none", section)?;
    mappings(&format!("{at}.uidMappings"), users, section)?;
    mappings(&format!("{at}.gidMappings"), groups, section)
}

#[allow(deprecated)] // The specification still has prestart.
fn hooks(hooks: &oci::Hooks) -> Checked {
    let section = "config.md, POSIX-platform Hooks";
    let kinds = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    for (kind, list) in kinds {
        for (index, hook) in list.iter().flatten().enumerate() {
            let at = format!("hooks.{kind}[{index}]");
            let path = hook.path();
            rule(path.is_absolute(), format!("{at}.path"), path.display(), "must be an absolute path", section)?;
            let timeout = hook.timeout().unwrap_or(1);
            rule(timeout > 0, format!("{at}.timeout"), timeout, "must be above zero", section)?;
            environment(&format!("{at}.env"), hook.env().as_deref().unwrap_or_default(), section)?;
        }
    }
    Ok(())
}

fn seccomp(seccomp: &oci::LinuxSeccomp) -> Checked {
    use oci::LinuxSeccompAction as Action;
    let section = "config-linux.md, Seccomp";
    let carries = |action| matches!(action, Action::ScmpActErrno | Action::ScmpActTrace);
    let errno = |at: String, action, errno: Option<u32>| {
        let value = errno.unwrap_or(0);
        rule(errno.is_none() || carries(action), &at, value, "does not fit the action, which has no errno", section)?;
        rule(value <= 0xffff, &at, value, "must be below 65536", section)
    };
    errno("linux.seccomp.defaultErrnoRet".into(), seccomp.default_action(), seccomp.default_errno_ret())?;
    let mut notifies = false;
    for (index, call) in seccomp.syscalls().iter().flatten().enumerate() {
        let at = format!("linux.seccomp.syscalls[{index}]");
        let action = call.action();
        errno(format!("{at}.errnoRet"), action, call.errno_ret())?;
        let names = call.names();
        rule(!names.is_empty(), format!("{at}.names"), "nothing", "must name a system call", section)?;
        for (index, argument) in call.args().iter().flatten().enumerate() {
            let at = format!("{at}.args[{index}].index");
            rule(argument.index() < 6, at, argument.index(), "must be between 0 and 5", section)?;
        }
        notifies |= action == Action::ScmpActNotify;
    }
    let at = "linux.seccomp.defaultAction";
    let action = seccomp.default_action();
    rule(action != Action::ScmpActNotify, at, action, "must not be the action for every system call", section)?;
    let path = seccomp.listener_path().as_deref().unwrap_or(Path::new(""));
    let at = "linux.seccomp.listenerPath";
    let reachable = path.is_absolute() || !notifies;
    rule(reachable, at, path.display(), "must be an absolute path if a rule has SCMP_ACT_NOTIFY", section)?;
    let metadata = seccomp.listener_metadata().as_deref().unwrap_or_default();
    let told = metadata.is_empty() || path != Path::new("");
    rule(told, "linux.seccomp.listenerMetadata", metadata, "must not be set without listenerPath", section)
}
