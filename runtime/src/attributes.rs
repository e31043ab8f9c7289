//! Attributes of a process that need the caller's rights: scheduling, memory policy, personality, security labels.
//!
//! Owns the numbers behind their names (config.md, "Linux Process"; config-linux.md). Must not set anything itself.

use crate::compile::PlanError;
use crate::config::{NODES_MAXIMUM, PROCESSORS_MAXIMUM, numbers};
use crate::oci;
use crate::process::c_string;
use crate::step::{AttributeStep, Step};
use crate::sys::SchedulerAttributes;
use std::path::Path;

/// Tells whether the kernel runs AppArmor.
const APPARMOR_ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// Where selinuxfs is mounted when SELinux has a policy.
const SELINUX_ENFORCE: &str = "/sys/fs/selinux/enforce";

/// Steps for the attributes of a process. They run before it gives up its rights.
pub(crate) fn attributes(
    process: &oci::Process,
    linux: Option<&oci::Linux>,
    steps: &mut Vec<Step>,
) -> Result<(), PlanError> {
    let mut push = |step| steps.push(Step::Attribute(step));
    if let Some(scheduler) = process.scheduler() {
        push(AttributeStep::Scheduler {
            name: scheduler.policy().to_string(),
            attributes: scheduler_numbers(scheduler),
        });
    }
    if let Some(priority) = process.io_priority() {
        let class = match priority.class() {
            oci::IOPriorityClass::IoprioClassRt => 1,
            oci::IOPriorityClass::IoprioClassBe => 2,
            oci::IOPriorityClass::IoprioClassIdle => 3,
        };
        // The configuration's check has bounded the level.
        let level = i32::try_from(priority.priority()).unwrap_or(0) & 7;
        push(AttributeStep::IoPriority { class, level });
    }
    if let Some(personality) = linux.and_then(|linux| linux.personality().as_ref()) {
        // linux/personality.h, PER_*.
        let domain = match personality.domain() {
            oci::LinuxPersonalityDomain::PerLinux => 0,
            oci::LinuxPersonalityDomain::PerLinux32 => 8,
        };
        push(AttributeStep::Personality { domain });
    }
    if let Some(policy) = linux.and_then(|linux| linux.memory_policy().as_ref()) {
        push(memory_policy(policy));
    }
    labels(process)?.into_iter().for_each(push);
    Ok(())
}

/// The CPUs of an exec's first steps and of its program (`execCPUAffinity`), each as a mask.
pub(crate) fn affinity(process: &oci::Process) -> (Option<Vec<u64>>, Option<Vec<u64>>) {
    let mask = |list: &Option<String>| list.as_deref().and_then(|list| numbers(list, PROCESSORS_MAXIMUM));
    let affinity = process.exec_cpu_affinity().as_ref();
    (affinity.and_then(|it| mask(it.initial())), affinity.and_then(|it| mask(it.cpu_affinity_final())))
}

fn scheduler_numbers(scheduler: &oci::Scheduler) -> SchedulerAttributes {
    use oci::LinuxSchedulerFlag as Flag;
    use oci::LinuxSchedulerPolicy as Policy;
    let policy = match scheduler.policy() {
        Policy::SchedOther => libc::SCHED_OTHER,
        Policy::SchedFifo => libc::SCHED_FIFO,
        Policy::SchedRr => libc::SCHED_RR,
        Policy::SchedBatch => libc::SCHED_BATCH,
        // Reserved, and known to no kernel; the configuration's check refuses it.
        Policy::SchedIso => 4,
        Policy::SchedIdle => libc::SCHED_IDLE,
        Policy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    // linux/sched.h, SCHED_FLAG_*.
    let flag = |flag: &Flag| match flag {
        Flag::SchedResetOnFork => 0x01,
        Flag::SchedFlagReclaim => 0x02,
        Flag::SchedFlagDLOverrun => 0x04,
        Flag::SchedFlagKeepPolicy => 0x08,
        Flag::SchedFlagKeepParams => 0x10,
        Flag::SchedFlagUtilClampMin => 0x20,
        Flag::SchedFlagUtilClampMax => 0x40,
    };
    SchedulerAttributes {
        policy: policy.cast_unsigned(),
        flags: scheduler.flags().iter().flatten().map(flag).fold(0, |all, flag| all | flag),
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0).unsigned_abs(),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
        ..SchedulerAttributes::default()
    }
}

/// set_mempolicy(2), with the numbers of linux/mempolicy.h.
fn memory_policy(policy: &oci::LinuxMemoryPolicy) -> AttributeStep {
    use oci::MemoryPolicyFlagType as Flag;
    use oci::MemoryPolicyModeType as Mode;
    let mode = match policy.mode() {
        Mode::MpolDefault => 0,
        Mode::MpolPreferred => 1,
        Mode::MpolBind => 2,
        Mode::MpolInterleave => 3,
        Mode::MpolLocal => 4,
        Mode::MpolPreferredMany => 5,
        Mode::MpolWeightedInterleave => 6,
    };
    let flag = |flag: &Flag| match flag {
        Flag::MpolFStaticNodes => 1 << 15,
        Flag::MpolFRelativeNodes => 1 << 14,
        Flag::MpolFNumaBalancing => 1 << 13,
    };
    let mode = policy.flags().iter().flatten().map(flag).fold(mode, |mode, flag| mode | flag);
    let nodes = policy.nodes().as_deref().and_then(|list| numbers(list, NODES_MAXIMUM)).unwrap_or_default();
    AttributeStep::MemoryPolicy { mode, nodes }
}

/// Labels are asked for by name: without the kernel's part they would confine nothing, so they are refused.
fn labels(process: &oci::Process) -> Result<Vec<AttributeStep>, PlanError> {
    let mut steps = Vec::new();
    let asked = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    // Where there is no AppArmor, everybody is unconfined.
    if let Some(profile) = asked(process.apparmor_profile()).filter(|profile| profile != "unconfined" || apparmor()) {
        let at = "process.apparmorProfile";
        if !apparmor() {
            return Err(PlanError::invalid(at, profile, "cannot be applied: this kernel runs no AppArmor"));
        }
        let value = c_string(at, format!("exec {profile}"))?;
        steps.push(AttributeStep::Label { kind: "AppArmor profile", file: c"thread-self/attr/apparmor/exec", value });
    }
    if let Some(label) = asked(process.selinux_label()) {
        let at = "process.selinuxLabel";
        if !Path::new(SELINUX_ENFORCE).exists() {
            return Err(PlanError::invalid(at, label, "cannot be applied: this kernel runs no SELinux policy"));
        }
        steps.push(AttributeStep::Label {
            kind: "SELinux label",
            file: c"thread-self/attr/exec",
            value: c_string(at, label)?,
        });
    }
    Ok(steps)
}

fn apparmor() -> bool {
    std::fs::read(APPARMOR_ENABLED).is_ok_and(|enabled| enabled.starts_with(b"Y"))
}
