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
    let bits = capabilities::bits(Some(&capabilities::DEFAULT.into_iter().collect())).unwrap();
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
