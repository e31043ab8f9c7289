//! Capabilities: names into bit sets, and the default set.
//!
//! Owns the meaning of `process.capabilities`. Must not change any process: children do that with the computed sets.

use crate::oci;
use std::collections::HashSet;
use std::str::FromStr;

/// What a container gets by default: the set of containerd and Docker without `CAP_MKNOD`. `/dev` is made for the
/// container, and a node made anywhere else would open the host's disk.
pub(crate) const DEFAULT: [oci::Capability; 13] = [
    oci::Capability::AuditWrite,
    oci::Capability::Chown,
    oci::Capability::DacOverride,
    oci::Capability::Fowner,
    oci::Capability::Fsetid,
    oci::Capability::Kill,
    oci::Capability::NetBindService,
    oci::Capability::NetRaw,
    oci::Capability::Setfcap,
    oci::Capability::Setgid,
    oci::Capability::Setpcap,
    oci::Capability::Setuid,
    oci::Capability::SysChroot,
];

/// The five sets of a process, as the kernel's bits; capabilities(7), "Thread capability sets".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

/// Works out what a process gets: what it asks for, less what cannot be granted. That is logged and is no error
/// (config.md, "Linux Process"). A process that asks for nothing gets nothing.
pub(crate) fn sets(asked: Option<&oci::LinuxCapabilities>, available: u64) -> Sets {
    let Some(asked) = asked else { return Sets::default() };
    let granted = |name: &str, set: &Option<oci::Capabilities>, limit: u64, reason: &str| {
        let wanted = bits(set.as_ref());
        if wanted & !limit != 0 {
            log::warn!("process.capabilities.{name}: {:#x} is left out: {reason}", wanted & !limit);
        }
        wanted & limit
    };
    let bounding = granted("bounding", asked.bounding(), available, "not available here");
    let permitted = granted("permitted", asked.permitted(), available, "not available here");
    let effective = granted("effective", asked.effective(), permitted, "not permitted");
    let inheritable = granted("inheritable", asked.inheritable(), available & bounding, "out of bounds");
    let ambient = granted("ambient", asked.ambient(), permitted & inheritable, "not permitted and inheritable");
    Sets { bounding, effective, permitted, inheritable, ambient }
}

/// Turns names into the kernel's bits.
pub(crate) fn bits(set: Option<&HashSet<oci::Capability>>) -> u64 {
    let known = |capability: &oci::Capability| {
        let capability = caps::Capability::from_str(&format!("CAP_{capability}"));
        // Both crates know the 41 capabilities of Linux 5.9 to 6.18, which a test holds.
        capability.map_or(0, |capability| capability.bitmask())
    };
    set.into_iter().flatten().map(known).fold(0, |bits, bit| bits | bit)
}

/// The names of all known capabilities, sorted.
pub(crate) fn names() -> Vec<String> {
    let mut names: Vec<_> = caps::all().iter().map(ToString::to_string).collect();
    names.sort();
    names
}

/// The bits that this process may hand on at all: what it does not hold, no child of it can be given.
pub(crate) fn available() -> Result<u64, caps::errors::CapsError> {
    let held = caps::read(None, caps::CapSet::Permitted)?;
    Ok(held.iter().fold(0, |bits, capability| bits | capability.bitmask()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci::Capability::{AuditWrite, Chown, Kill, NetBindService};

    fn some(list: &[oci::Capability]) -> Option<oci::Capabilities> {
        Some(list.iter().copied().collect())
    }

    #[test]
    fn every_capability_has_a_bit() {
        let all: HashSet<oci::Capability> =
            caps::all().iter().map(|it| serde_json::from_value(it.to_string().into()).unwrap()).collect();
        assert_eq!(bits(Some(&all)), (1 << 41) - 1);
    }

    #[test]
    fn what_cannot_be_granted_is_left_out() {
        let mut asked = oci::LinuxCapabilities::default();
        asked
            .set_bounding(some(&[Chown, Kill]))
            .set_permitted(some(&[Chown, Kill]))
            .set_effective(some(&[Kill, AuditWrite]));
        asked.set_inheritable(some(&[Kill, AuditWrite])).set_ambient(some(&[Chown, Kill]));
        let (chown, kill) = (1 << 0, 1 << 5);
        let expected =
            Sets { bounding: chown | kill, effective: kill, permitted: chown | kill, inheritable: kill, ambient: kill };
        assert_eq!(sets(Some(&asked), u64::MAX), expected);
        assert_eq!(sets(Some(&asked), chown), Sets { bounding: chown, permitted: chown, ..Sets::default() });
        assert_eq!(sets(None, u64::MAX), Sets::default());
    }

    /// oci-spec's default sets are not empty; who asked for exactly these once got none.
    #[test]
    fn the_default_sets_of_runc_spec_are_granted() {
        let all = (1 << 29) | (1 << 5) | (1 << 10);
        assert_eq!(bits(some(&[AuditWrite, Kill, NetBindService]).as_ref()), all);
        let granted = sets(Some(&oci::LinuxCapabilities::default()), u64::MAX);
        let expected = Sets { bounding: all, effective: all, permitted: all, inheritable: all, ambient: all };
        assert_eq!(granted, expected);
    }
}
