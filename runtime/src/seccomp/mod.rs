//! Seccomp: the default profile, and the compilation of OCI profiles into a BPF program.
//!
//! Owns the meaning of `linux.seccomp` (config-linux.md, "Seccomp"). Must not install anything: children do that with the
//! compiled program.

mod architectures;
mod assembler;
mod listener;
mod rules;
#[cfg(test)]
mod tests;

pub(crate) use listener::Agent;

use crate::oci::{self, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag};
use crate::sys::Instruction;
use serde::Deserialize;
use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// How many compiled profiles are remembered; a device runs one or two.
const REMEMBERED: usize = 4;
/// `BPF_MAXINSNS` of linux/bpf_common.h.
const LENGTH_MAXIMUM: usize = 4096;

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` of linux/seccomp.h, since Linux 5.19.
const WAIT_KILLABLE_RECV: libc::c_ulong = 1 << 5;

/// Why a seccomp profile could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The flag is for notifications, and no rule asks for any.
    #[error("linux.seccomp.flags: {0} needs a rule with SCMP_ACT_NOTIFY")]
    Flag(LinuxSeccompFilterFlag),
    /// The process hands its listener over by sendmsg(2), under the filter already.
    #[error("linux.seccomp.syscalls: sendmsg must be allowed if a rule has SCMP_ACT_NOTIFY")]
    Handover,
    /// The kernel takes no program of this length.
    #[error(
        "linux.seccomp.syscalls: the filter has {0} instructions, more than the {LENGTH_MAXIMUM} that the kernel takes"
    )]
    Length(usize),
    /// The built-in profile is broken.
    #[error("the built-in seccomp profile cannot be read")]
    Profile(#[source] serde_json::Error),
}

/// A compiled profile.
#[derive(Debug)]
pub(crate) struct Filter {
    /// The program.
    pub(crate) program: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*` to install it with.
    pub(crate) flags: u64,
}

impl Filter {
    /// Whether its installation gives a listener.
    pub(crate) fn notifies(&self) -> bool {
        self.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "the seccomp filter with flags {:#x}", self.flags)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_errno_ret: u32,
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    capability: Option<String>,
    #[serde(flatten)]
    rule: oci::LinuxSyscall,
}

/// Returns the default profile for a container with this bounding set: containers that were given a capability may also
/// make the system calls that it is good for. The profile and its reasons are in `runtime/profiles/`.
///
/// # Errors
/// [`SeccompError::Profile`] if the built-in data cannot be read, which a test rules out.
pub fn default_seccomp(bounding: &HashSet<oci::Capability>) -> Result<LinuxSeccomp, SeccompError> {
    let text = include_str!("../../profiles/default-seccomp.json");
    let profile: Profile = serde_json::from_str(text).map_err(SeccompError::Profile)?;
    let held: HashSet<String> = bounding.iter().map(|capability| format!("CAP_{capability}")).collect();
    let counts = |group: &Group| match group.capability.as_deref() {
        None => true,
        Some(name) => name.strip_prefix('!').map_or_else(|| held.contains(name), |without| !held.contains(without)),
    };
    let mut seccomp = LinuxSeccomp::default();
    seccomp
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(profile.default_errno_ret))
        .set_syscalls(Some(profile.groups.into_iter().filter(counts).map(|group| group.rule).collect()));
    Ok(seccomp)
}

/// Compiles a profile, or finds it among those compiled before.
pub(crate) fn compile(seccomp: &LinuxSeccomp) -> Result<Arc<Filter>, SeccompError> {
    static COMPILED: Mutex<Vec<(LinuxSeccomp, Arc<Filter>)>> = Mutex::new(Vec::new());
    let find = |compiled: &[(LinuxSeccomp, Arc<Filter>)]| {
        compiled.iter().find(|(known, _)| known == seccomp).map(|(_, filter)| Arc::clone(filter))
    };
    // A panic elsewhere cannot leave a half-written entry: entries are pushed whole.
    if let Some(filter) = find(&COMPILED.lock().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(filter);
    }
    let filter = Arc::new(compile_now(seccomp)?);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if compiled.len() >= REMEMBERED {
        compiled.remove(0);
    }
    compiled.push((seccomp.clone(), Arc::clone(&filter)));
    Ok(filter)
}

/// Tells whether an agent is named, as it must be if a rule asks it. It gets its listener even if none does: whoever
/// names one waits for it.
fn notifies(seccomp: &LinuxSeccomp) -> bool {
    seccomp.listener_path().as_deref().is_some_and(|path| path != Path::new(""))
}

fn compile_now(seccomp: &LinuxSeccomp) -> Result<Filter, SeccompError> {
    let meanings = rules::meanings(seccomp)?;
    let notifies = notifies(seccomp);
    if notifies && !rules::passes(&meanings, libc::SYS_sendmsg) {
        return Err(SeccompError::Handover);
    }
    let program = assembler::assemble(&meanings);
    if program.len() > LENGTH_MAXIMUM {
        return Err(SeccompError::Length(program.len()));
    }
    let mut flags = if notifies { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    for flag in seccomp.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
            // The process that installs the filter has one thread: it is in step with itself, and the kernel refuses the
            // flag beside a listener.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if !notifies => {
                return Err(SeccompError::Flag(*flag));
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => WAIT_KILLABLE_RECV,
        };
    }
    Ok(Filter { program, flags })
}
