//! Seccomp: the default profile, and the compilation of OCI profiles into BPF programs.
//!
//! Owns the meaning of `linux.seccomp`. Must not install anything: children do that with the compiled programs.
//!
//! seccompiler has one match action a filter, so a profile becomes a stack of filters: the first lets through what any
//! rule names and gives the rest the default action; one more for each other action. The kernel takes the strictest
//! answer and, among equals, that of the filter installed last.

use crate::{oci, syscalls};
use oci::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// How many compiled profiles are remembered; a device runs one or two.
const REMEMBERED: usize = 4;

/// Why a seccomp profile could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    /// The action cannot be carried out here.
    #[error("seccomp action {0} is not supported; use SCMP_ACT_ALLOW, _ERRNO, _KILL, _LOG, _TRAP or _TRACE")]
    Action(String),
    /// The architecture has no filter compiler.
    #[error("seccomp is not supported on {0}")]
    Architecture(&'static str),
    /// The filter compiler refused a rule.
    #[error("seccomp rule for {name} cannot be compiled")]
    Rule {
        /// The system call.
        name: String,
        /// The compiler's reason.
        #[source]
        source: seccompiler::BackendError,
    },
    /// The filter compiler refused the whole filter.
    #[error("seccomp filter cannot be compiled")]
    Filter(#[source] seccompiler::BackendError),
    /// The built-in profile is broken.
    #[error("the built-in seccomp profile cannot be read")]
    Profile(#[source] serde_json::Error),
}

/// A compiled profile: filters in the order of their installation.
#[derive(Debug)]
pub(crate) struct Filters {
    programs: Vec<BpfProgram>,
}

impl Filters {
    pub(crate) fn programs(&self) -> impl Iterator<Item = &[sock_filter]> {
        self.programs.iter().map(Vec::as_slice)
    }
}

impl fmt::Display for Filters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} seccomp filters", self.programs.len())
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
    let text = include_str!("../profiles/default-seccomp.json");
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
pub(crate) fn compile(seccomp: &LinuxSeccomp) -> Result<Arc<Filters>, SeccompError> {
    static COMPILED: Mutex<Vec<(LinuxSeccomp, Arc<Filters>)>> = Mutex::new(Vec::new());
    let find = |compiled: &[(LinuxSeccomp, Arc<Filters>)]| {
        compiled.iter().find(|(known, _)| known == seccomp).map(|(_, filters)| Arc::clone(filters))
    };
    // A panic elsewhere cannot leave a half-written entry: entries are pushed whole.
    if let Some(filters) = find(&COMPILED.lock().unwrap_or_else(PoisonError::into_inner)) {
        return Ok(filters);
    }
    let filters = Arc::new(compile_now(seccomp)?);
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    if compiled.len() >= REMEMBERED {
        compiled.remove(0);
    }
    compiled.push((seccomp.clone(), Arc::clone(&filters)));
    Ok(filters)
}

fn compile_now(seccomp: &LinuxSeccomp) -> Result<Filters, SeccompError> {
    let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
    let no_rules = Vec::new();
    let rules = seccomp.syscalls().as_ref().unwrap_or(&no_rules);
    let mut programs = Vec::new();
    if default != SeccompAction::Allow {
        programs.push(filter(rules.iter(), default.clone(), SeccompAction::Allow)?);
    }
    let mut actions: Vec<SeccompAction> = Vec::new();
    for rule in rules {
        let action = action(rule.action(), rule.errno_ret())?;
        if action != SeccompAction::Allow && action != default && !actions.contains(&action) {
            actions.push(action);
        }
    }
    for wanted in actions {
        let with_it = |rule: &&oci::LinuxSyscall| action(rule.action(), rule.errno_ret()).is_ok_and(|it| it == wanted);
        programs.push(filter(rules.iter().filter(with_it), SeccompAction::Allow, wanted.clone())?);
    }
    if default != SeccompAction::Allow {
        programs.push(unknown_are_missing());
    }
    Ok(Filters { programs })
}

/// A program that answers ENOSYS to every number above the highest known one, and allows the rest.
fn unknown_are_missing() -> BpfProgram {
    let instruction = |code: u32, jt: u8, jf: u8, k: u32| sock_filter { code: code as u16, jt, jf, k };
    let highest = u32::try_from(syscalls::highest()).unwrap_or(u32::MAX);
    vec![
        // The number of the system call is the first word of struct seccomp_data.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 0, 1, highest),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn filter<'a>(
    rules: impl Iterator<Item = &'a oci::LinuxSyscall>,
    mismatch: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, SeccompError> {
    let architecture =
        TargetArch::try_from(std::env::consts::ARCH).map_err(|_| SeccompError::Architecture(std::env::consts::ARCH))?;
    let mut by_number: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut always: HashSet<i64> = HashSet::new();
    for rule in rules {
        for name in rule.names() {
            // A name of another architecture or of a newer kernel has no number here, so there is nothing to filter.
            let Some(number) = syscalls::number(name) else { continue };
            let conditions = conditions(rule).map_err(|source| SeccompError::Rule { name: name.clone(), source })?;
            if conditions.is_empty() {
                always.insert(number);
            }
            by_number.entry(number).or_default().extend(conditions);
        }
    }
    // An empty chain means "always" to the compiler; it wins over any condition of the same call.
    for number in always {
        by_number.insert(number, Vec::new());
    }
    let filter = SeccompFilter::new(by_number, mismatch, matched, architecture).map_err(SeccompError::Filter)?;
    BpfProgram::try_from(filter).map_err(SeccompError::Filter)
}

/// The argument conditions of a rule. Conditions on different arguments must all hold; several on one argument are
/// alternatives, as in libseccomp.
fn conditions(rule: &oci::LinuxSyscall) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let Some(arguments) = rule.args().as_ref().filter(|arguments| !arguments.is_empty()) else {
        return Ok(Vec::new());
    };
    let distinct: HashSet<usize> = arguments.iter().map(LinuxSeccompArg::index).collect();
    let compiled = arguments.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    if distinct.len() == arguments.len() {
        return Ok(vec![SeccompRule::new(compiled)?]);
    }
    compiled.into_iter().map(|condition| SeccompRule::new(vec![condition])).collect()
}

fn condition(argument: &LinuxSeccompArg) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (operator, value) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => (SeccompCmpOp::Ne, argument.value()),
        LinuxSeccompOperator::ScmpCmpLt => (SeccompCmpOp::Lt, argument.value()),
        LinuxSeccompOperator::ScmpCmpLe => (SeccompCmpOp::Le, argument.value()),
        LinuxSeccompOperator::ScmpCmpEq => (SeccompCmpOp::Eq, argument.value()),
        LinuxSeccompOperator::ScmpCmpGe => (SeccompCmpOp::Ge, argument.value()),
        LinuxSeccompOperator::ScmpCmpGt => (SeccompCmpOp::Gt, argument.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (SeccompCmpOp::MaskedEq(argument.value()), argument.value_two().unwrap_or(0))
        }
    };
    let index = u8::try_from(argument.index()).unwrap_or(u8::MAX);
    SeccompCondition::new(index, SeccompCmpArgLen::Qword, operator, value)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<SeccompAction, SeccompError> {
    let errno = errno.unwrap_or(libc::EPERM as u32);
    Ok(match action {
        LinuxSeccompAction::ScmpActAllow => SeccompAction::Allow,
        LinuxSeccompAction::ScmpActErrno => SeccompAction::Errno(errno),
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => SeccompAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => SeccompAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => SeccompAction::Trap,
        LinuxSeccompAction::ScmpActLog => SeccompAction::Log,
        LinuxSeccompAction::ScmpActTrace => SeccompAction::Trace(errno),
        LinuxSeccompAction::ScmpActNotify => return Err(SeccompError::Action("SCMP_ACT_NOTIFY".into())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the filters as the kernel would: the strictest answer, and among equals that of the last filter.
    fn answer(filters: &Filters, number: i64, arguments: [u64; 6]) -> u32 {
        let architecture = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
        let mut data = vec![number as u32, architecture, 0, 0];
        data.extend(arguments.iter().flat_map(|argument| [*argument as u32, (*argument >> 32) as u32]));
        let mut told = libc::SECCOMP_RET_ALLOW;
        for program in filters.programs().collect::<Vec<_>>().into_iter().rev() {
            let value = interpret(program, &data);
            if ((value & 0xffff_0000) as i32) < ((told & 0xffff_0000) as i32) {
                told = value;
            }
        }
        told
    }

    /// The few instructions of classic BPF that filters are made of.
    fn interpret(program: &[sock_filter], data: &[u32]) -> u32 {
        let (mut at, mut value) = (0, 0_u32);
        loop {
            let it = &program[at];
            let jump = |taken: bool| 1 + usize::from(if taken { it.jt } else { it.jf });
            at += match it.code {
                0x20 => {
                    value = data[it.k as usize / 4];
                    1
                }
                0x54 => {
                    value &= it.k;
                    1
                }
                0x05 => 1 + it.k as usize,
                0x15 => jump(value == it.k),
                0x25 => jump(value > it.k),
                0x35 => jump(value >= it.k),
                0x06 => return it.k,
                other => panic!("instruction {other:#x}"),
            };
        }
    }

    fn default_capabilities() -> HashSet<oci::Capability> {
        crate::capabilities::DEFAULT.into_iter().collect()
    }

    #[test]
    fn the_default_profile_answers_as_it_says() {
        let filters = compile(&default_seccomp(&default_capabilities()).unwrap()).unwrap();
        let allow = libc::SECCOMP_RET_ALLOW;
        let (refused, missing) = (libc::SECCOMP_RET_ERRNO | 1, libc::SECCOMP_RET_ERRNO | 38);
        let first = |argument| [argument, 0, 0, 0, 0, 0];
        for (number, argument, wanted) in [
            (libc::SYS_read, 0, allow),
            (libc::SYS_execve, 0, allow),
            (libc::SYS_chroot, 0, allow),
            (libc::SYS_mount, 0, refused),
            (libc::SYS_keyctl, 0, refused),
            (libc::SYS_io_uring_setup, 0, refused),
            (libc::SYS_clone, libc::SIGCHLD as u64, allow),
            (libc::SYS_clone, libc::CLONE_NEWUSER as u64, refused),
            (libc::SYS_clone3, 0, missing),
            (libc::SYS_socket, libc::AF_INET as u64, allow),
            (libc::SYS_socket, libc::AF_VSOCK as u64, refused),
            (libc::SYS_personality, 0xffff_ffff, allow),
            (libc::SYS_personality, 4, refused),
            (syscalls::highest() + 1, 0, missing),
            // The x32 numbers of x86_64.
            (0x4000_0000, 0, missing),
        ] {
            assert_eq!(answer(&filters, number, first(argument)), wanted, "system call {number} with {argument:#x}");
        }
        let administrator = default_capabilities().into_iter().chain([oci::Capability::SysAdmin]).collect();
        let filters = compile(&default_seccomp(&administrator).unwrap()).unwrap();
        assert_eq!(answer(&filters, libc::SYS_mount, first(0)), allow);
        assert_eq!(answer(&filters, libc::SYS_clone3, first(0)), allow);
        assert_eq!(answer(&filters, libc::SYS_keyctl, first(0)), refused);
    }

    #[test]
    fn a_compiled_profile_is_remembered() {
        let profile = default_seccomp(&default_capabilities()).unwrap();
        assert!(Arc::ptr_eq(&compile(&profile).unwrap(), &compile(&profile).unwrap()));
    }

    #[test]
    fn every_name_of_the_profile_is_known() {
        let profile: Profile = serde_json::from_str(include_str!("../profiles/default-seccomp.json")).unwrap();
        for name in profile.groups.iter().flat_map(|group| group.rule.names()) {
            // Every name of aarch64 is one of x86_64's too.
            assert!(syscalls::number(name).is_some() || cfg!(not(target_arch = "x86_64")), "{name}");
        }
    }
}
