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

/// Turns names into the kernel's bits. A capability that the running kernel cannot give has no bit in the crate's
/// table and is told.
pub(crate) fn bits(set: Option<&HashSet<oci::Capability>>) -> Result<u64, String> {
    let mut bits = 0;
    for capability in set.into_iter().flatten() {
        let name = format!("CAP_{capability}");
        bits |= caps::Capability::from_str(&name).map_err(|_| name)?.bitmask();
    }
    Ok(bits)
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
