//! The architectures that a process of this machine can call the kernel by, and their system call numbers.
//!
//! Owns names into numbers. Must not say what is allowed.

use crate::oci::Arch;
use syscalls as table;

/// The bit that tells x32 from x86_64: both have one audit architecture (arch/x86/include/uapi/asm/unistd.h).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// From here on numbers are private to ARM and say nothing of a kernel's age (arch/arm/include/uapi/asm/unistd.h).
pub(super) const PRIVATE: u32 = 0x000f_0000;

/// One way to call the kernel.
pub(super) struct Architecture {
    /// `AUDIT_ARCH_*` of linux/audit.h, as a filter sees it.
    pub(super) audit: u32,
    /// The least number.
    pub(super) first: u32,
    /// Finds a system call's number.
    pub(super) number: fn(&str) -> Option<u32>,
    /// Calls that can be made through another one as well: name, the other's name, its first argument and the mask
    /// under which the kernel reads it.
    pub(super) multiplexed: &'static [(&'static str, &'static str, u64, u64)],
}

#[cfg(target_arch = "x86_64")]
static NATIVE: Architecture = Architecture {
    audit: 0xc000_003e,
    first: 0,
    number: |name| name.parse().ok().map(|call: table::x86_64::Sysno| call.id().unsigned_abs()),
    multiplexed: &[],
};
#[cfg(target_arch = "x86_64")]
static OTHERS: [(Arch, Architecture); 2] = [
    (
        Arch::ScmpArchX86,
        Architecture {
            audit: 0x4000_0003,
            first: 0,
            number: |name| name.parse().ok().map(|call: table::x86::Sysno| call.id().unsigned_abs()),
            multiplexed: &MULTIPLEXED,
        },
    ),
    (Arch::ScmpArchX32, Architecture { audit: 0xc000_003e, first: X32_BIT, number: x32, multiplexed: &[] }),
];

#[cfg(target_arch = "aarch64")]
static NATIVE: Architecture = Architecture { audit: 0xc000_00b7, first: 0, number: aarch64, multiplexed: &[] };
#[cfg(target_arch = "aarch64")]
static OTHERS: [(Arch, Architecture); 1] = [(
    Arch::ScmpArchArm,
    Architecture {
        audit: 0x4000_0028,
        first: 0,
        number: |name| name.parse().ok().map(|call: table::arm::Sysno| call.id().unsigned_abs()),
        multiplexed: &[],
    },
)];

/// The architectures of a profile: always the machine's own, first, and those that are listed. No process of this machine
/// can call by another machine's, which are left out: profiles are written for many.
pub(super) fn architectures(listed: &[Arch]) -> Vec<&'static Architecture> {
    let mut found = vec![&NATIVE];
    for (_, other) in listed.iter().filter_map(|name| OTHERS.iter().find(|(known, _)| known == name)) {
        if !found.iter().any(|known| std::ptr::eq(*known, other)) {
            found.push(other);
        }
    }
    found
}

/// The table has one call by its name in the C library; profiles say the kernel's (asm-generic/unistd.h).
#[cfg(target_arch = "aarch64")]
fn aarch64(name: &str) -> Option<u32> {
    let name = if name == "newfstatat" { "fstatat" } else { name };
    name.parse().ok().map(|call: table::aarch64::Sysno| call.id().unsigned_abs())
}

/// x32 has the numbers of x86_64 but for calls whose arguments lie in memory (syscall_64.tbl, "x32").
#[cfg(target_arch = "x86_64")]
fn x32(name: &str) -> Option<u32> {
    let own = [
        "rt_sigaction",
        "rt_sigreturn",
        "ioctl",
        "readv",
        "writev",
        "recvfrom",
        "sendmsg",
        "recvmsg",
        "execve",
        "ptrace",
        "rt_sigpending",
        "rt_sigtimedwait",
        "rt_sigqueueinfo",
        "sigaltstack",
        "timer_create",
        "mq_notify",
        "kexec_load",
        "waitid",
        "set_robust_list",
        "get_robust_list",
        "vmsplice",
        "move_pages",
        "preadv",
        "pwritev",
        "rt_tgsigqueueinfo",
        "recvmmsg",
        "sendmmsg",
        "process_vm_readv",
        "process_vm_writev",
        "setsockopt",
        "getsockopt",
        "io_setup",
        "io_submit",
        "execveat",
        "preadv2",
        "pwritev2",
    ];
    let own = own.iter().position(|known| *known == name).map(|index| 512 + index as u32);
    own.or_else(|| (NATIVE.number)(name)).map(|number| number | X32_BIT)
}

/// socketcall(2) and ipc(2) of i386 (linux/net.h, linux/ipc.h; ipc keeps a version in the upper half).
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
static MULTIPLEXED: [(&str, &str, u64, u64); 32] = {
    const WHOLE: u64 = u64::MAX;
    [
        ("socket", "socketcall", 1, WHOLE), ("bind", "socketcall", 2, WHOLE), ("connect", "socketcall", 3, WHOLE),
        ("listen", "socketcall", 4, WHOLE), ("accept", "socketcall", 5, WHOLE),
        ("getsockname", "socketcall", 6, WHOLE), ("getpeername", "socketcall", 7, WHOLE),
        ("socketpair", "socketcall", 8, WHOLE), ("send", "socketcall", 9, WHOLE), ("recv", "socketcall", 10, WHOLE),
        ("sendto", "socketcall", 11, WHOLE), ("recvfrom", "socketcall", 12, WHOLE),
        ("shutdown", "socketcall", 13, WHOLE), ("setsockopt", "socketcall", 14, WHOLE),
        ("getsockopt", "socketcall", 15, WHOLE), ("sendmsg", "socketcall", 16, WHOLE),
        ("recvmsg", "socketcall", 17, WHOLE), ("accept4", "socketcall", 18, WHOLE),
        ("recvmmsg", "socketcall", 19, WHOLE), ("sendmmsg", "socketcall", 20, WHOLE),
        ("semop", "ipc", 1, 0xffff), ("semget", "ipc", 2, 0xffff), ("semctl", "ipc", 3, 0xffff),
        ("semtimedop", "ipc", 4, 0xffff), ("msgsnd", "ipc", 11, 0xffff), ("msgrcv", "ipc", 12, 0xffff),
        ("msgget", "ipc", 13, 0xffff), ("msgctl", "ipc", 14, 0xffff), ("shmat", "ipc", 21, 0xffff),
        ("shmdt", "ipc", 22, 0xffff), ("shmget", "ipc", 23, 0xffff), ("shmctl", "ipc", 24, 0xffff),
    ]
};
