//! The steps that set attributes of the process itself.
//!
//! Owns what they do with system calls and how they print. Must not allocate, lock or log while running.

use crate::sys::{self, SchedulerAttributes};
use std::ffi::{CStr, CString};
use std::fmt;

/// One attribute, ready to be set.
#[derive(Debug)]
pub(crate) enum AttributeStep {
    Scheduler {
        name: String,
        attributes: SchedulerAttributes,
    },
    IoPriority {
        class: i32,
        level: i32,
    },
    Personality {
        domain: u64,
    },
    MemoryPolicy {
        mode: i32,
        nodes: Vec<u64>,
    },
    /// CPUs to run on, 64 a word.
    Affinity {
        mask: Vec<u64>,
    },
    /// What the kernel's security module makes of the program that is about to be run.
    Label {
        kind: &'static str,
        file: &'static CStr,
        value: CString,
    },
}

impl AttributeStep {
    /// Carries the step out. Runs in the child: system calls only.
    pub(crate) fn run(&self) -> sys::Result<()> {
        match self {
            AttributeStep::Scheduler { attributes, .. } => sys::set_scheduler(attributes),
            AttributeStep::IoPriority { class, level } => sys::set_io_priority(class << 13 | level),
            AttributeStep::Personality { domain } => sys::set_personality(*domain),
            AttributeStep::MemoryPolicy { mode, nodes } => sys::set_memory_policy(*mode, nodes),
            AttributeStep::Affinity { mask } => sys::set_affinity(mask),
            AttributeStep::Label { file, value, .. } => write_label(file, value.to_bytes()),
        }
    }
}

/// Writes through a procfs that nobody else can see or cover: what the container has at /proc could swallow the label
/// (CVE-2019-16884, CVE-2019-19921).
fn write_label(file: &CStr, value: &[u8]) -> sys::Result<()> {
    let context = sys::open_filesystem(c"proc")?;
    sys::create_filesystem(context)?;
    let private = sys::mount_filesystem(context, 0)?;
    let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_XDEV;
    let file = sys::open_resolved(private, file, libc::O_WRONLY, resolve)?;
    sys::write(file, value)?;
    for fd in [file, private, context] {
        sys::close(fd);
    }
    Ok(())
}

impl fmt::Display for AttributeStep {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttributeStep::Scheduler { name, attributes } => {
                write!(out, "schedule as {name} nice {} priority {}", attributes.nice, attributes.priority)?;
                write!(out, " flags {:#x} runtime {}", attributes.flags, attributes.runtime)?;
                write!(out, " deadline {} period {}", attributes.deadline, attributes.period)
            }
            AttributeStep::IoPriority { class, level } => write!(out, "set I/O priority class {class} level {level}"),
            AttributeStep::Personality { domain } => write!(out, "set personality {domain:#x}"),
            AttributeStep::MemoryPolicy { mode, nodes } => {
                write!(out, "set memory policy {mode:#x} nodes {:#x}", nodes.first().unwrap_or(&0))
            }
            AttributeStep::Affinity { mask } => write!(out, "run on CPUs {:#x}", mask.first().unwrap_or(&0)),
            AttributeStep::Label { kind, value, .. } => write!(out, "set {kind} {}", value.to_string_lossy()),
        }
    }
}
