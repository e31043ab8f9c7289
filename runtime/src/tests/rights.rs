//! What a container may not do: capabilities, seccomp, privileges.

use super::support::{Ground, cannot_run, change_linux, change_process, shell};
use crate::{Exit, capabilities, oci};
use std::collections::HashSet;

/// Changes the capability sets so that they hold exactly these.
fn with_capabilities(spec: oci::Spec, capabilities: &[oci::Capability], ambient: bool) -> oci::Spec {
    let set: HashSet<_> = capabilities.iter().copied().collect();
    let empty = HashSet::new();
    let inherited = if ambient { set.clone() } else { empty };
    let sets = oci::LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .inheritable(inherited.clone())
        .ambient(inherited);
    change_process(spec, |process| {
        process.set_capabilities(Some(sets.build().unwrap()));
    })
}

#[test]
fn capabilities_are_exactly_the_default_set() {
    if cannot_run() {
        return;
    }
    let bits = capabilities::bits(Some(&capabilities::DEFAULT.into_iter().collect()));
    let output = Ground::new().run("busybox grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status").output;
    let expected = format!(
        "CapInh:\t{0:016x}\nCapPrm:\t{bits:016x}\nCapEff:\t{bits:016x}\nCapBnd:\t{bits:016x}\nCapAmb:\t{0:016x}\n\
         NoNewPrivs:\t1\nSeccomp:\t2\n",
        0
    );
    assert_eq!(output, expected);
}

#[test]
fn another_user_has_only_ambient_capabilities() {
    if cannot_run() {
        return;
    }
    let spec =
        with_capabilities(shell("busybox grep CapEff /proc/self/status"), &[oci::Capability::NetBindService], true);
    let spec = change_process(spec, |process| {
        process.set_user(oci::UserBuilder::default().uid(1000_u32).gid(1000_u32).build().unwrap());
    });
    assert_eq!(Ground::new().run_spec(&spec).unwrap().output, "CapEff:\t0000000000000400\n");
    let without = with_capabilities(spec, &[oci::Capability::NetBindService], false);
    assert_eq!(Ground::new().run_spec(&without).unwrap().output, "CapEff:\t0000000000000000\n");
}

/// The profile, not a missing capability: the container holds `CAP_SYS_ADMIN`, but under a profile for those without.
#[test]
fn seccomp_refuses_mount_with_eperm() {
    if cannot_run() {
        return;
    }
    let line = "busybox mount -t tmpfs x /etc 2>&1; echo $?; busybox unshare -u true 2>&1; echo $?";
    let held: Vec<_> = capabilities::DEFAULT.into_iter().chain([oci::Capability::SysAdmin]).collect();
    let spec = with_capabilities(shell(line), &held, false);
    let output = Ground::new().run_spec(&spec).unwrap().output;
    assert_eq!(
        output.matches("Operation not permitted").count() + output.matches("permission denied").count(),
        2,
        "{output}"
    );
    let open = change_linux(spec, |linux| {
        linux.set_seccomp(Some(crate::default_seccomp(&held.into_iter().collect()).unwrap()));
    });
    assert_eq!(Ground::new().run_spec(&open).unwrap().output.lines().next(), Some("0"));
}

#[test]
fn seccomp_works_without_no_new_privileges() {
    if cannot_run() {
        return;
    }
    let spec = change_process(shell("busybox grep -E '^(NoNewPrivs|Seccomp:)' /proc/self/status"), |process| {
        process.set_no_new_privileges(Some(false));
        process.set_user(oci::UserBuilder::default().uid(1000_u32).gid(1000_u32).build().unwrap());
    });
    assert_eq!(Ground::new().run_spec(&spec).unwrap().output, "NoNewPrivs:\t0\nSeccomp:\t2\n");
}

#[test]
fn a_privileged_container_gets_what_there_is() {
    if cannot_run() {
        return;
    }
    let all: Vec<oci::Capability> = caps::all()
        .into_iter()
        .map(|capability| serde_json::from_value(serde_json::Value::String(capability.to_string())).unwrap())
        .collect();
    let spec = with_capabilities(shell("busybox grep CapEff /proc/self/status"), &all, false);
    let spec = change_linux(spec, |linux| {
        linux.set_seccomp(None);
    });
    let outcome = Ground::new().run_spec(&spec).unwrap();
    assert_eq!(outcome.output, format!("CapEff:\t{:016x}\n", capabilities::available().unwrap()));
    assert_eq!(outcome.exit, Exit::Code(0));
}

/// A profile with one rule; everything else passes.
fn with_one_rule(
    line: &str,
    name: &str,
    action: oci::LinuxSeccompAction,
    errno: Option<u32>,
    argument: Option<u64>,
) -> oci::Spec {
    use oci::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder, LinuxSeccompOperator, LinuxSyscallBuilder};
    let argument = argument.map(|value| {
        let argument = LinuxSeccompArgBuilder::default().value(value);
        argument.op(LinuxSeccompOperator::ScmpCmpEq).build().unwrap()
    });
    let names = [name.to_string(), format!("{name}at")].to_vec();
    let rule = LinuxSyscallBuilder::default().names(names).action(action);
    let mut rule = rule.args(argument.into_iter().collect::<Vec<_>>()).build().unwrap();
    rule.set_errno_ret(errno);
    let mut profile = LinuxSeccomp::default();
    profile.set_default_action(LinuxSeccompAction::ScmpActAllow).set_syscalls(Some(vec![rule]));
    let flags = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"];
    let flags = flags.map(|flag| serde_json::from_value(flag.into()).unwrap()).to_vec();
    profile.set_flags(Some(flags)).set_architectures(Some(vec![oci::Arch::ScmpArchNative]));
    change_linux(shell(line), |linux| {
        linux.set_seccomp(Some(profile));
    })
}

#[test]
fn every_seccomp_action_does_what_it_says() {
    use oci::LinuxSeccompAction::*;
    if cannot_run() {
        return;
    }
    let line = "busybox mkdir /tmp-of-test; echo $?; exec busybox mkdir /tmp-of-test/inner";
    for (action, errno, told, exit) in [
        (ScmpActAllow, None, "0\n", Exit::Code(0)),
        (ScmpActLog, None, "0\n", Exit::Code(0)),
        (
            ScmpActErrno,
            None,
            "mkdir: can't create directory '/tmp-of-test': Operation not permitted\n1\n",
            Exit::Code(1),
        ),
        (
            ScmpActErrno,
            Some(28),
            "mkdir: can't create directory '/tmp-of-test': No space left on device\n1\n",
            Exit::Code(1),
        ),
        // Nobody traces the process.
        (
            ScmpActTrace,
            Some(5),
            "mkdir: can't create directory '/tmp-of-test': Function not implemented\n1\n",
            Exit::Code(1),
        ),
        (ScmpActTrap, None, "Bad system call", Exit::Signal(libc::SIGSYS)),
        (ScmpActKill, None, "Bad system call", Exit::Signal(libc::SIGSYS)),
        (ScmpActKillThread, None, "Bad system call", Exit::Signal(libc::SIGSYS)),
        (ScmpActKillProcess, None, "Bad system call", Exit::Signal(libc::SIGSYS)),
    ] {
        let outcome = Ground::new().run_spec(&with_one_rule(line, "mkdir", action, errno, None)).unwrap();
        assert!(outcome.output.starts_with(told), "{action}: {}", outcome.output);
        assert_eq!(outcome.exit, exit, "{action}");
    }
}

#[test]
fn seccomp_compares_arguments() {
    if cannot_run() {
        return;
    }
    let line = "umask 027; umask; umask 077; umask";
    let action = oci::LinuxSeccompAction::ScmpActErrno;
    let outcome = Ground::new().run_spec(&with_one_rule(line, "umask", action, None, Some(0o27))).unwrap();
    assert_eq!(outcome.output, "0022\n0077\n");
}
