//! Starting a child: clone3, and the signal state around it.
//!
//! Owns the moment of the clone. The child is a copy (like fork): it shares no memory with the agent. Sharing it
//! (`CLONE_VM|CLONE_VFORK`) would be faster, but the kernel's out-of-memory killer ends every process that shares the
//! victim's memory, and the child works inside the container's memory limit: a tiny limit could kill the agent. A
//! container's process of the same user could also trace the half-started child and with it read the agent.

use super::calls::{Errno, Result, exit_now};
use std::os::fd::{FromRawFd, OwnedFd};

/// `struct clone_args` of clone3(2).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// What clone3 is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CloneRequest {
    /// `CLONE_NEW*` namespaces.
    pub(crate) namespaces: u64,
    /// Makes the child a sibling of the caller (`CLONE_PARENT`).
    pub(crate) sibling: bool,
    /// A cgroup v2 folder to be born in (`CLONE_INTO_CGROUP`).
    pub(crate) cgroup: Option<i32>,
}

/// Clones; the child runs `child` and never returns. Returns the child's pid and pidfd.
///
/// All signals are blocked in the calling thread during the clone, so that no handler of the caller ever runs in the
/// child; `child` must reset them by [`reset_signals`].
pub(crate) fn clone_child(request: CloneRequest, child: impl FnOnce()) -> Result<(i32, OwnedFd)> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: i32 = -1;
    let mut arguments = CloneArguments {
        flags: request.namespaces | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArguments::default()
    };
    if request.sibling {
        // clone3 refuses a signal here: a sibling's exit is told with the signal of the caller's own.
        arguments.flags |= libc::CLONE_PARENT as u64;
        arguments.exit_signal = 0;
    }
    if let Some(cgroup) = request.cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup as u64;
    }
    let before = block_signals(!0)?;
    // SAFETY: the arguments have the kernel's layout and size and no stack is given, so this behaves as fork: the child
    // continues on its own copy of this thread's stack. It runs `child`, which by this module's contract makes only
    // system calls, and then exits without returning into the caller's frames.
    let value = unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArguments>()) };
    if value == 0 {
        child();
        exit_now(127);
    }
    // SAFETY: errno is valid for this thread, and nothing was called since the system call.
    let errno = Errno(unsafe { *libc::__errno_location() });
    block_signals(before)?;
    if value < 0 {
        return Err(errno);
    }
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so `pidfd` is a new descriptor that nobody else owns.
    Ok((value as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Sets the calling thread's signal mask (bit N-1 = signal N) and returns the one before.
fn block_signals(mask: u64) -> Result<u64> {
    let mut before: u64 = 0;
    // SAFETY: both pointers lead to the kernel's 8-byte sigset.
    let value = unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, &raw mut before, size_of::<u64>())
    };
    if value < 0 {
        // SAFETY: errno is valid for this thread.
        return Err(Errno(unsafe { *libc::__errno_location() }));
    }
    Ok(before)
}

/// Gives every signal its default disposition and unblocks all. Only for a child that is about to exec.
pub(crate) fn reset_signals() -> Result<()> {
    // The kernel's struct sigaction: all-zero is SIG_DFL with no flags and an empty mask.
    let action = [0_u64; 4];
    let null = std::ptr::null_mut::<u64>();
    for signal in 1..=64 {
        // SIGKILL and SIGSTOP refuse with EINVAL, which is their right; no other error is possible.
        // SAFETY: the kernel reads one struct sigaction, which is no longer than `action`; a null old action is allowed.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), null, size_of::<u64>()) };
    }
    block_signals(0).map(drop)
}
