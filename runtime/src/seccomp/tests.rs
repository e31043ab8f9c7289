//! Filters beside their meaning: the program runs in an interpreter of classic BPF, the profile in a naive evaluator.

use super::architectures::{X32_BIT, architectures};
use super::rules::{answer, strictness};
use super::*;
use crate::oci::{
    Arch, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};
use proptest::prelude::*;

/// A system call as a filter sees it.
#[derive(Clone, Copy, Debug)]
struct Call {
    number: u32,
    audit: u32,
    arguments: [u64; 6],
}

const AUDIT: u32 = if cfg!(target_arch = "x86_64") { 0xc000_003e } else { 0xc000_00b7 };
const COMPATIBLE: [Arch; 2] = if cfg!(target_arch = "x86_64") {
    [Arch::ScmpArchX86, Arch::ScmpArchX32]
} else {
    [Arch::ScmpArchArm, Arch::ScmpArchAarch64]
};
const MISSING: u32 = libc::SECCOMP_RET_ERRNO | 38;

/// The few instructions of classic BPF that filters are made of. Fails where the kernel's checker would.
fn interpret(program: &[Instruction], call: Call) -> u32 {
    let mut data = vec![call.number, call.audit, 0, 0];
    data.extend(call.arguments.iter().flat_map(|argument| [*argument as u32, (*argument >> 32) as u32]));
    let (mut at, mut value) = (0, 0_u32);
    loop {
        let it = program[at];
        let jump = |taken: bool| 1 + usize::from(if taken { it.if_true } else { it.if_false });
        at += match it.code {
            0x20 => {
                value = data[it.value as usize / 4];
                1
            }
            0x54 => {
                value &= it.value;
                1
            }
            0x05 => 1 + it.value as usize,
            0x15 => jump(value == it.value),
            0x25 => jump(value > it.value),
            0x35 => jump(value >= it.value),
            0x06 => return it.value,
            other => panic!("instruction {other:#x}"),
        };
    }
}

fn holds(argument: &LinuxSeccompArg, call: Call) -> bool {
    let (there, value) = (call.arguments[argument.index()], argument.value());
    match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => there != value,
        LinuxSeccompOperator::ScmpCmpLt => there < value,
        LinuxSeccompOperator::ScmpCmpLe => there <= value,
        LinuxSeccompOperator::ScmpCmpEq => there == value,
        LinuxSeccompOperator::ScmpCmpGe => there >= value,
        LinuxSeccompOperator::ScmpCmpGt => there > value,
        LinuxSeccompOperator::ScmpCmpMaskedEq => there & value == argument.value_two().unwrap_or(0),
    }
}

fn matches(rule: &LinuxSyscall, call: Call) -> bool {
    let arguments = rule.args().as_deref().unwrap_or_default();
    let distinct: HashSet<usize> = arguments.iter().map(LinuxSeccompArg::index).collect();
    if distinct.len() == arguments.len() {
        arguments.iter().all(|argument| holds(argument, call))
    } else {
        arguments.iter().any(|argument| holds(argument, call))
    }
}

/// What the profile says of a call, rule by rule. Knows nothing of calls made through others.
fn evaluate(profile: &LinuxSeccomp, call: Call) -> u32 {
    let listed = architectures(profile.architectures().as_deref().unwrap_or_default());
    let by_number = |first: u32| (first == X32_BIT) == (call.number >= X32_BIT) || call.audit != 0xc000_003e;
    let of_audit = |audit: u32| audit == call.audit;
    let Some(architecture) = listed.iter().find(|it| of_audit(it.audit) && by_number(it.first)) else {
        let known = listed.iter().any(|it| of_audit(it.audit));
        return if known { MISSING } else { libc::SECCOMP_RET_KILL_PROCESS };
    };
    let rules = profile.syscalls().as_deref().unwrap_or_default();
    let numbers = |rule: &LinuxSyscall| -> Vec<u32> {
        rule.names().iter().filter_map(|name| (architecture.number)(name)).collect()
    };
    let named = rules.iter().filter(|rule| numbers(rule).contains(&call.number) && matches(rule, call));
    let strictest = named.map(|rule| answer(rule.action(), rule.errno_ret())).min_by_key(|told| strictness(*told));
    let newest = rules.iter().flat_map(numbers).max().unwrap_or(u32::MAX);
    let lenient = matches!(profile.default_action(), LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog);
    let missing = call.number > newest && !lenient;
    let default = answer(profile.default_action(), profile.default_errno_ret());
    strictest.unwrap_or(if missing { MISSING } else { default })
}

fn any_action() -> impl Strategy<Value = LinuxSeccompAction> {
    prop::sample::select(vec![
        LinuxSeccompAction::ScmpActAllow,
        LinuxSeccompAction::ScmpActErrno,
        LinuxSeccompAction::ScmpActKill,
        LinuxSeccompAction::ScmpActKillProcess,
        LinuxSeccompAction::ScmpActKillThread,
        LinuxSeccompAction::ScmpActLog,
        LinuxSeccompAction::ScmpActNotify,
        LinuxSeccompAction::ScmpActTrace,
        LinuxSeccompAction::ScmpActTrap,
    ])
}

/// Values at the edges of their halves.
fn any_word() -> impl Strategy<Value = u64> {
    let half = prop_oneof![Just(0_u64), Just(1), Just(0x7fff_ffff), Just(0x8000_0000), Just(0xffff_ffff), 0..4_u64];
    (half.clone(), half).prop_map(|(upper, lower)| upper << 32 | lower)
}

fn any_argument() -> impl Strategy<Value = LinuxSeccompArg> {
    use LinuxSeccompOperator::*;
    let operators = vec![ScmpCmpNe, ScmpCmpLt, ScmpCmpLe, ScmpCmpEq, ScmpCmpGe, ScmpCmpGt, ScmpCmpMaskedEq];
    (0..3_usize, prop::sample::select(operators), any_word(), any_word()).prop_map(
        |(index, operator, value, second)| {
            let builder = LinuxSeccompArgBuilder::default().index(index).op(operator).value(value).value_two(second);
            builder.build().unwrap()
        },
    )
}

/// Names that exist everywhere, only somewhere, and nowhere; none that i386 also makes through another call.
const NAMES: [&str; 14] = [
    "read",
    "write",
    "open",
    "stat",
    "ioctl",
    "clone",
    "clone3",
    "mmap2",
    "personality",
    "futex",
    "execve",
    "mseal",
    "cacheflush",
    "no_such_call",
];

fn any_rule() -> impl Strategy<Value = LinuxSyscall> {
    let names = prop::collection::vec(prop::sample::select(NAMES.to_vec()), 1..6);
    let arguments = prop::collection::vec(any_argument(), 0..4);
    (names, any_action(), prop::option::of(0..100_u32), arguments).prop_map(|(names, action, errno, arguments)| {
        let names: Vec<String> = names.into_iter().map(String::from).collect();
        let mut rule = LinuxSyscallBuilder::default().names(names).action(action).args(arguments).build().unwrap();
        rule.set_errno_ret(errno);
        rule
    })
}

fn any_profile() -> impl Strategy<Value = LinuxSeccomp> {
    let architectures = prop::sample::subsequence(COMPATIBLE.to_vec(), 0..=2);
    let rules = prop::collection::vec(any_rule(), 0..40);
    (any_action(), prop::option::of(0..100_u32), architectures, rules).prop_map(
        |(action, errno, architectures, rules)| {
            let mut profile = LinuxSeccomp::default();
            profile.set_default_action(action).set_default_errno_ret(errno);
            profile.set_architectures(Some(architectures)).set_syscalls(Some(rules));
            profile
        },
    )
}

fn any_call() -> impl Strategy<Value = Call> {
    let number = prop_oneof![0..600_u32, Just(X32_BIT), (0..600_u32).prop_map(|number| number | X32_BIT), any::<u32>()];
    let audit = prop::sample::select(vec![AUDIT, AUDIT, 0x4000_0003, 0x4000_0028, 0x0000_0008]);
    let named = prop::sample::select(NAMES.to_vec());
    (number, audit, named, any::<bool>(), any_word(), any_word(), any_word()).prop_map(
        |(number, audit, named, by_name, first, second, third)| {
            let listed = architectures(&COMPATIBLE);
            let same: Vec<_> = listed.iter().filter(|it| it.audit == audit).collect();
            let known = same.get(number as usize % same.len().max(1)).and_then(|it| (it.number)(named));
            let number = known.filter(|_| by_name).unwrap_or(number);
            Call { number, audit, arguments: [first, second, third, 0, 0, 0] }
        },
    )
}

proptest! {
    // Each case looks hundreds of names up.
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_filter_answers_as_its_profile(
        profile in any_profile(),
        calls in prop::collection::vec(any_call(), 32),
    ) {
        let program = assembler::assemble(&rules::meanings(&profile).unwrap());
        for call in calls {
            prop_assert_eq!(interpret(&program, call), evaluate(&profile, call), "{:x?}", call);
        }
    }
}

fn native(number: i64, first: u64) -> Call {
    Call { number: number as u32, audit: AUDIT, arguments: [first, 0, 0, 0, 0, 0] }
}

fn default_capabilities() -> HashSet<oci::Capability> {
    crate::capabilities::DEFAULT.into_iter().collect()
}

#[test]
fn the_default_profile_answers_as_it_says() {
    let filter = compile(&default_seccomp(&default_capabilities()).unwrap()).unwrap();
    let allow = libc::SECCOMP_RET_ALLOW;
    let refused = libc::SECCOMP_RET_ERRNO | 1;
    for (number, argument, wanted) in [
        (libc::SYS_read, 0, allow),
        (libc::SYS_execve, 0, allow),
        (libc::SYS_chroot, 0, allow),
        (libc::SYS_mount, 0, refused),
        (libc::SYS_keyctl, 0, refused),
        (libc::SYS_io_uring_setup, 0, refused),
        (libc::SYS_clone, libc::SIGCHLD as u64, allow),
        (libc::SYS_clone, libc::CLONE_NEWUSER as u64, refused),
        (libc::SYS_clone3, 0, MISSING),
        (libc::SYS_socket, libc::AF_INET as u64, allow),
        (libc::SYS_socket, libc::AF_VSOCK as u64, refused),
        (libc::SYS_personality, 0xffff_ffff, allow),
        (libc::SYS_personality, 4, refused),
        (999, 0, MISSING),
        (i64::from(X32_BIT), 0, MISSING),
    ] {
        assert_eq!(interpret(&filter.program, native(number, argument)), wanted, "call {number} with {argument:#x}");
    }
    let foreign = Call { audit: 0x4000_0003, ..native(0, 0) };
    assert_eq!(interpret(&filter.program, foreign), libc::SECCOMP_RET_KILL_PROCESS);
    let administrator = default_capabilities().into_iter().chain([oci::Capability::SysAdmin]).collect();
    let filter = compile(&default_seccomp(&administrator).unwrap()).unwrap();
    assert_eq!(interpret(&filter.program, native(libc::SYS_mount, 0)), allow);
    assert_eq!(interpret(&filter.program, native(libc::SYS_clone3, 0)), allow);
    assert_eq!(interpret(&filter.program, native(libc::SYS_keyctl, 0)), refused);
}

/// What a deny-list says of `socket` must hold for i386's `socketcall` as well.
#[cfg(target_arch = "x86_64")]
#[test]
fn calls_through_socketcall_and_ipc_are_filtered_too() {
    let profile = |default, action, argument: Option<LinuxSeccompArg>| {
        let names = vec!["socket".to_string(), "shmat".to_string()];
        let rule = LinuxSyscallBuilder::default().names(names).action(action);
        let mut profile = LinuxSeccomp::default();
        profile.set_default_action(default).set_architectures(Some(vec![Arch::ScmpArchX86]));
        let rule = rule.args(argument.into_iter().collect::<Vec<_>>()).build().unwrap();
        compile(profile.set_syscalls(Some(vec![rule]))).unwrap()
    };
    let through = |filter: &Filter, number: u32, call: u64| {
        let call = Call { number, audit: 0x4000_0003, arguments: [call, 0, 0, 0, 0, 0] };
        interpret(&filter.program, call)
    };
    let (allow, refused) = (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_ERRNO | 1);
    let (socketcall, ipc) = (102, 117);
    let argument = LinuxSeccompArgBuilder::default().op(LinuxSeccompOperator::ScmpCmpEq).value(16_u64).build().unwrap();
    for argument in [None, Some(argument)] {
        let denied = profile(LinuxSeccompAction::ScmpActAllow, LinuxSeccompAction::ScmpActErrno, argument);
        assert_eq!(through(&denied, socketcall, 1), refused);
        assert_eq!(through(&denied, socketcall, 2), allow);
        assert_eq!([through(&denied, ipc, 21), through(&denied, ipc, 0x1_0015)], [refused; 2]);
    }
    let allowed = profile(LinuxSeccompAction::ScmpActErrno, LinuxSeccompAction::ScmpActAllow, None);
    assert_eq!([through(&allowed, socketcall, 1), through(&allowed, socketcall, 2)], [allow, refused]);
    let in_part = profile(LinuxSeccompAction::ScmpActErrno, LinuxSeccompAction::ScmpActAllow, Some(argument));
    assert_ne!(through(&in_part, socketcall, 1), allow);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn numbers_are_those_of_the_kernels_headers() {
    let listed = architectures(&COMPATIBLE);
    let numbers = |name| listed.iter().map(|it| (it.number)(name)).collect::<Vec<_>>();
    assert_eq!(numbers("execve"), [Some(59), Some(11), Some(0x4000_0208)]);
    assert_eq!(numbers("pwritev2"), [Some(328), Some(379), Some(0x4000_0223)]);
    assert_eq!(numbers("mmap2"), [None, Some(192), None]);
    assert_eq!(numbers("read"), [Some(0), Some(3), Some(0x4000_0000)]);
}

#[test]
fn another_machine_s_architecture_changes_nothing() {
    let mut profile = LinuxSeccomp::default();
    let native = compile(&profile).unwrap();
    profile.set_architectures(Some(vec![Arch::ScmpArchS390x]));
    assert_eq!(compile(&profile).unwrap().program, native.program);
}

#[test]
fn a_flag_that_cannot_be_is_told() {
    let flag = LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv;
    let error = compile(LinuxSeccomp::default().set_flags(Some(vec![flag]))).unwrap_err().to_string();
    assert!(error.starts_with("linux.seccomp.flags: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule"), "{error}");
}

#[test]
fn a_listener_that_could_not_be_handed_over_is_told() {
    let rule = |names: &[&str], action| {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        LinuxSyscallBuilder::default().names(names).action(action).build().unwrap()
    };
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActErrno);
    profile.set_listener_path(Some("/run/agent.sock".into()));
    profile.set_syscalls(Some(vec![rule(&["mkdir"], LinuxSeccompAction::ScmpActNotify)]));
    assert!(matches!(compile(&profile), Err(SeccompError::Handover)));
    profile.set_syscalls(Some(vec![
        rule(&["mkdir"], LinuxSeccompAction::ScmpActNotify),
        rule(&["sendmsg"], LinuxSeccompAction::ScmpActAllow),
    ]));
    assert!(compile(&profile).unwrap().notifies());
}

#[test]
fn a_filter_that_the_kernel_would_not_take_is_told() {
    let rule = |value: u64| {
        let argument = LinuxSeccompArgBuilder::default().op(LinuxSeccompOperator::ScmpCmpEq).value(value).build();
        let rule = LinuxSyscallBuilder::default().names(vec!["read".to_string()]).args(vec![argument.unwrap()]);
        rule.action(LinuxSeccompAction::ScmpActLog).build().unwrap()
    };
    let mut profile = LinuxSeccomp::default();
    profile.set_syscalls(Some((0..1000).map(|value| rule(value << 20)).collect()));
    assert!(compile(&profile).is_ok());
    profile.set_syscalls(Some((0..1100).map(|value| rule(value << 20)).collect()));
    assert!(matches!(compile(&profile), Err(SeccompError::Length(_))));
}

#[test]
fn a_compiled_profile_is_remembered() {
    let profile = default_seccomp(&default_capabilities()).unwrap();
    assert!(Arc::ptr_eq(&compile(&profile).unwrap(), &compile(&profile).unwrap()));
}

#[test]
fn every_name_of_the_profile_is_known() {
    let profile: Profile = serde_json::from_str(include_str!("../../profiles/default-seccomp.json")).unwrap();
    let native = architectures(&[])[0].number;
    for name in profile.groups.iter().flat_map(|group| group.rule.names()) {
        // Every name of aarch64 is one of x86_64's too.
        assert!(native(name).is_some() || cfg!(not(target_arch = "x86_64")), "{name}");
    }
}
