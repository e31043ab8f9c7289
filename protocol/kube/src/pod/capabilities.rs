//! Capabilities by name (capabilities(7)).

use crate::cursor::{Cursor, Fault};

/// Reads a name with or without `CAP_`.
pub(crate) fn read(at: &Cursor<'_>) -> Result<heapless::String<32>, Fault> {
    let text = at.text()?.to_ascii_uppercase();
    let plain = text.strip_prefix("CAP_").unwrap_or(&text);
    let known = plain == "ALL" || CAPABILITIES.contains(&plain);
    let bounded = heapless::String::try_from(plain);
    bounded.ok().filter(|_| known).ok_or_else(|| at.invalid("is no capability (capabilities(7))"))
}

/// Every capability of Linux (capabilities(7)).
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];
