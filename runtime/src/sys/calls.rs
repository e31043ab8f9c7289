//! Thin wrappers of system calls, each argument typed, each error an [`Errno`].
//!
//! Owns the crossing into the kernel. Must not hold state, allocate, lock or log: children call it after clone.

use std::ffi::{CStr, c_char};
use std::os::fd::{FromRawFd, OwnedFd};

/// A system call's error number; see errno(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        std::io::Error::from_raw_os_error(errno.0)
    }
}

/// The result of a system call.
pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// `MOUNT_ATTR_*` request of mount_setattr(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountAttributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
    pub(crate) user_namespace: u64,
}

/// One `struct __user_cap_data_struct` half of capset(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct CapabilityHalf {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Header of capset(2).
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

/// What a path turned out to be; the part of stat(2) that is needed here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    /// `st_mode`.
    pub(crate) mode: u32,
    /// `st_rdev`.
    pub(crate) device: u64,
    /// `st_uid`.
    pub(crate) user: u32,
    /// `st_gid`.
    pub(crate) group: u32,
}

impl Stat {
    /// Tells whether it is a folder.
    pub(crate) fn is_folder(self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }

    /// Tells whether it is a regular file.
    pub(crate) fn is_file(self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFREG
    }

    /// Tells whether it is a character device of these numbers.
    pub(crate) fn is_character_device(self, major: u32, minor: u32) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFCHR && self.device == libc::makedev(major, minor)
    }
}

/// Takes over a descriptor that a wrapper of this module has just returned.
pub(crate) fn own(fd: i32) -> OwnedFd {
    // SAFETY: wrappers return only new descriptors, and the caller has just received this one.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Turns libc's `-1` into the error number.
pub(super) fn check(value: libc::c_long) -> Result<usize> {
    if value < 0 {
        // SAFETY: the C library's errno location is always valid for the calling thread.
        return Err(Errno(unsafe { *libc::__errno_location() }));
    }
    Ok(value as usize)
}

/// Ends the calling process without running any handler.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions and does not return.
    unsafe { libc::_exit(code) }
}

/// pidfd_send_signal(2)
pub(crate) fn send_signal(process: i32, number: i32) -> Result<()> {
    let info = std::ptr::null::<u8>();
    // SAFETY: the kernel fills in the signal's information by itself when none is given; the rest are numbers.
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process, number, info, 0) }).map(drop)
}

/// openat2(2) with the given resolve flags.
pub(crate) fn open_resolved(folder: i32, path: &CStr, flags: i32, resolve: u64) -> Result<i32> {
    let how: [u64; 3] = [(flags | libc::O_CLOEXEC) as u64, 0, resolve];
    // SAFETY: `path` is NUL-terminated and `how` has the size and layout of struct open_how; both outlive the call.
    let value = unsafe { libc::syscall(libc::SYS_openat2, folder, path.as_ptr(), how.as_ptr(), size_of_val(&how)) };
    Ok(check(value)? as i32)
}

/// openat(2); always close-on-exec.
pub(crate) fn open(folder: i32, path: &CStr, flags: i32) -> Result<i32> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    let value = unsafe { libc::syscall(libc::SYS_openat, folder, path.as_ptr(), flags | libc::O_CLOEXEC, 0) };
    Ok(check(value)? as i32)
}

/// close(2). Its error says nothing that could be acted on.
pub(crate) fn close(fd: i32) {
    // SAFETY: the caller gives up a descriptor number of its own (a child's copy).
    unsafe { libc::syscall(libc::SYS_close, fd) };
}

/// write(2).
pub(crate) fn write(fd: i32, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the pointer and the length describe a live slice.
    check(unsafe { libc::syscall(libc::SYS_write, fd, bytes.as_ptr(), bytes.len()) })
}

/// read(2), again after a signal.
pub(crate) fn read(fd: i32, buffer: &mut [u8]) -> Result<usize> {
    loop {
        // SAFETY: the pointer and the length describe a live, writable slice.
        match check(unsafe { libc::syscall(libc::SYS_read, fd, buffer.as_mut_ptr(), buffer.len()) }) {
            Err(Errno(libc::EINTR)) => {}
            result => return result,
        }
    }
}

/// `struct cmsghdr` with one descriptor, padded as the kernel pads it.
#[repr(C, align(8))]
struct Attached {
    header: libc::cmsghdr,
    descriptor: i32,
}

/// sendmsg(2) of a message with one descriptor attached; unix(7), `SCM_RIGHTS`.
pub(crate) fn send_descriptor(socket: i32, bytes: &[u8], descriptor: i32) -> Result<()> {
    // SAFETY: all-zero bytes are a valid cmsghdr and a valid i32.
    let mut attached: Attached = unsafe { std::mem::zeroed() };
    attached.header.cmsg_level = libc::SOL_SOCKET;
    attached.header.cmsg_type = libc::SCM_RIGHTS;
    // SAFETY: CMSG_LEN only computes.
    attached.header.cmsg_len = unsafe { libc::CMSG_LEN(size_of::<i32>() as u32) } as _;
    attached.descriptor = descriptor;
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: all-zero bytes are a valid struct msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut attached).cast();
    message.msg_controllen = size_of::<Attached>() as _;
    // SAFETY: the message's parts are alive for the call and of the lengths given; sending changes none of them.
    check(unsafe { libc::syscall(libc::SYS_sendmsg, socket, &raw const message, libc::MSG_NOSIGNAL) }).map(drop)
}

/// recvmsg(2) of a one-byte message with one descriptor attached; close-on-exec. `ECANCELED` if there is none: the other
/// side is gone.
pub(crate) fn receive_descriptor(socket: i32) -> Result<i32> {
    let mut byte = 0_u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: all-zero bytes are a valid cmsghdr and a valid i32.
    let mut attached: Attached = unsafe { std::mem::zeroed() };
    // SAFETY: all-zero bytes are a valid struct msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut attached).cast();
    message.msg_controllen = size_of::<Attached>() as _;
    loop {
        // SAFETY: the message's parts are alive and writable for the call, and of the lengths given.
        match check(unsafe { libc::syscall(libc::SYS_recvmsg, socket, &raw mut message, libc::MSG_CMSG_CLOEXEC) }) {
            Err(Errno(libc::EINTR)) => {}
            received => {
                let whole = received? == 1 && attached.header.cmsg_type == libc::SCM_RIGHTS;
                return if whole { Ok(attached.descriptor) } else { Err(Errno(libc::ECANCELED)) };
            }
        }
    }
}

/// The kind of a namespace as its `CLONE_NEW*` flag; ioctl_ns(2), `NS_GET_NSTYPE`. `ENOTTY` if it is none.
pub(crate) fn namespace_kind(fd: i32) -> Result<i32> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: this ioctl takes no argument.
    Ok(check(unsafe { libc::syscall(libc::SYS_ioctl, fd, NS_GET_NSTYPE) })? as i32)
}

/// The user namespace that another namespace belongs to; ioctl_ns(2), `NS_GET_USERNS`. Close-on-exec.
pub(crate) fn owning_user_namespace(fd: i32) -> Result<i32> {
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    // SAFETY: this ioctl takes no argument.
    Ok(check(unsafe { libc::syscall(libc::SYS_ioctl, fd, NS_GET_USERNS) })? as i32)
}

/// chroot(2).
pub(crate) fn change_root(path: &CStr) -> Result<()> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_chroot, path.as_ptr()) }).map(drop)
}

/// accept4(2), again after a signal; close-on-exec.
pub(crate) fn accept(listener: i32) -> Result<i32> {
    let null = std::ptr::null_mut::<libc::c_void>();
    loop {
        // SAFETY: a null address is allowed.
        match check(unsafe { libc::syscall(libc::SYS_accept4, listener, null, null, libc::SOCK_CLOEXEC) }) {
            Err(Errno(libc::EINTR)) => {}
            result => return result.map(|fd| fd as i32),
        }
    }
}

/// shutdown(2) of both directions; a listening socket refuses connections from then on.
pub(crate) fn shut_down(socket: i32) -> Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_shutdown, socket, libc::SHUT_RDWR) }).map(drop)
}

/// dup3(2). `close_on_exec` is kept off for standard streams.
pub(crate) fn duplicate_onto(from: i32, onto: i32, close_on_exec: bool) -> Result<()> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: plain integers; the caller owns the number `onto`.
    check(unsafe { libc::syscall(libc::SYS_dup3, from, onto, flags) }).map(drop)
}

/// Tells whether a number is an open descriptor's, by fcntl(2).
pub(crate) fn is_open(fd: i32) -> bool {
    // SAFETY: plain integers; F_GETFD changes nothing.
    check(unsafe { libc::syscall(libc::SYS_fcntl, fd, libc::F_GETFD) }).is_ok()
}

/// keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`; returns the keyring's serial number.
pub(crate) fn join_session_keyring(name: &CStr) -> Result<i32> {
    const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: `name` is NUL-terminated and outlives the call.
    let value = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    Ok(check(value)? as i32)
}

/// keyctl(2), `KEYCTL_SETPERM`: all for its possessor; view, read, search and link for its user.
pub(crate) fn let_user_search_keyring(keyring: i32) -> Result<()> {
    const KEYCTL_SETPERM: i32 = 5;
    const PERMISSIONS: u32 = 0x3f1b_0000;
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, keyring, PERMISSIONS) }).map(drop)
}

/// close_range(2).
pub(crate) fn close_range(first: u32, last: u32) -> Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: plain integers; only called in a child, whose descriptor table is its own.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }).map(drop)
}

/// setns(2).
pub(crate) fn join_namespace(fd: i32, kinds: i32) -> Result<()> {
    // SAFETY: plain integers; the kernel checks both.
    check(unsafe { libc::syscall(libc::SYS_setns, fd, kinds) }).map(drop)
}

/// unshare(2).
pub(crate) fn unshare(flags: i32) -> Result<()> {
    // SAFETY: plain integer; changes only the calling thread's kernel state.
    check(unsafe { libc::syscall(libc::SYS_unshare, flags) }).map(drop)
}

/// mount(2).
pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null, where mount(2) allows it, or NUL-terminated and alive for the call.
    let value = unsafe {
        libc::syscall(libc::SYS_mount, pointer(source), target.as_ptr(), pointer(kind), flags, pointer(data))
    };
    check(value).map(drop)
}

/// umount2(2).
pub(crate) fn unmount(target: &CStr, flags: i32) -> Result<()> {
    // SAFETY: `target` is NUL-terminated and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_umount2, target.as_ptr(), flags) }).map(drop)
}

/// open_tree(2); always close-on-exec.
pub(crate) fn open_tree(folder: i32, path: &CStr, flags: u32) -> Result<i32> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    let value = unsafe { libc::syscall(libc::SYS_open_tree, folder, path.as_ptr(), flags | libc::OPEN_TREE_CLOEXEC) };
    Ok(check(value)? as i32)
}

/// move_mount(2) of a detached mount onto a place, both by descriptor.
pub(crate) fn attach_mount(mount: i32, target: i32) -> Result<()> {
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are the static empty string; the rest are integers.
    let value = unsafe { libc::syscall(libc::SYS_move_mount, mount, c"".as_ptr(), target, c"".as_ptr(), flags) };
    check(value).map(drop)
}

/// mount_setattr(2).
pub(crate) fn set_mount_attributes(folder: i32, path: &CStr, flags: i32, attributes: &MountAttributes) -> Result<()> {
    // SAFETY: `attributes` has the layout of struct mount_attr and its size is given; the path is NUL-terminated.
    let value = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            folder,
            path.as_ptr(),
            flags,
            attributes as *const MountAttributes,
            size_of::<MountAttributes>(),
        )
    };
    check(value).map(drop)
}

/// fsopen(2); always close-on-exec.
pub(crate) fn open_filesystem(kind: &CStr) -> Result<i32> {
    const FSOPEN_CLOEXEC: u32 = 1;
    // SAFETY: `kind` is NUL-terminated and outlives the call.
    Ok(check(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })? as i32)
}

/// fsconfig(2) with `FSCONFIG_CMD_CREATE`.
pub(crate) fn create_filesystem(context: i32) -> Result<()> {
    const FSCONFIG_CMD_CREATE: u32 = 6;
    let null = std::ptr::null::<c_char>();
    // SAFETY: this command takes null key and value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_CMD_CREATE, null, null, 0) }).map(drop)
}

/// fsmount(2); always close-on-exec.
pub(crate) fn mount_filesystem(context: i32, attributes: u32) -> Result<i32> {
    const FSMOUNT_CLOEXEC: u32 = 1;
    // SAFETY: plain integers.
    Ok(check(unsafe { libc::syscall(libc::SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes) })? as i32)
}

/// pivot_root(2).
pub(crate) fn pivot_root(new_root: &CStr, old_root: &CStr) -> Result<()> {
    // SAFETY: both paths are NUL-terminated and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, new_root.as_ptr(), old_root.as_ptr()) }).map(drop)
}

/// chdir(2).
pub(crate) fn change_folder(path: &CStr) -> Result<()> {
    // SAFETY: `path` is NUL-terminated and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_chdir, path.as_ptr()) }).map(drop)
}

/// fchdir(2).
pub(crate) fn change_folder_to(fd: i32) -> Result<()> {
    // SAFETY: plain integer.
    check(unsafe { libc::syscall(libc::SYS_fchdir, fd) }).map(drop)
}

/// getcwd(2) into a buffer; returns the length with the final NUL.
pub(crate) fn current_folder(buffer: &mut [u8]) -> Result<usize> {
    // SAFETY: the pointer and the length describe a live, writable slice.
    check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })
}

/// mkdirat(2).
pub(crate) fn make_folder(folder: i32, name: &CStr, mode: u32) -> Result<()> {
    // SAFETY: `name` is NUL-terminated and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_mkdirat, folder, name.as_ptr(), mode) }).map(drop)
}

/// mknodat(2); also makes empty files.
pub(crate) fn make_node(folder: i32, name: &CStr, mode: u32, device: u64) -> Result<()> {
    // SAFETY: `name` is NUL-terminated and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_mknodat, folder, name.as_ptr(), mode, device) }).map(drop)
}

/// symlinkat(2).
pub(crate) fn make_symlink(target: &CStr, folder: i32, name: &CStr) -> Result<()> {
    // SAFETY: both strings are NUL-terminated and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_symlinkat, target.as_ptr(), folder, name.as_ptr()) }).map(drop)
}

/// fchownat(2) that never follows a symbolic link.
pub(crate) fn change_owner(folder: i32, name: &CStr, user: u32, group: u32) -> Result<()> {
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: `name` is NUL-terminated and outlives the call.
    check(unsafe { libc::syscall(libc::SYS_fchownat, folder, name.as_ptr(), user, group, flags) }).map(drop)
}

/// fstat(2); works on `O_PATH` descriptors.
pub(crate) fn stat(fd: i32) -> Result<Stat> {
    let mut buffer = std::mem::MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: the buffer is a writable struct stat.
    check(libc::c_long::from(unsafe { libc::fstat(fd, buffer.as_mut_ptr()) }))?;
    // SAFETY: all-zero bytes are a valid struct stat, and fstat has filled it.
    let stat = unsafe { buffer.assume_init() };
    Ok(Stat { mode: stat.st_mode, device: stat.st_rdev, user: stat.st_uid, group: stat.st_gid })
}

/// Asks whether the caller may execute an open file, by faccessat2(2).
pub(crate) fn may_execute(fd: i32) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
    // SAFETY: the empty path is static; the rest are integers.
    check(unsafe { libc::syscall(libc::SYS_faccessat2, fd, c"".as_ptr(), libc::X_OK, flags) }).map(drop)
}

/// The filesystem's magic number by fstatfs(2).
pub(crate) fn filesystem_kind(fd: i32) -> Result<i64> {
    let mut buffer = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the buffer is a writable struct statfs.
    check(libc::c_long::from(unsafe { libc::fstatfs(fd, buffer.as_mut_ptr()) }))?;
    // SAFETY: all-zero bytes are a valid struct statfs, and fstatfs has filled it.
    #[allow(clippy::unnecessary_cast)]
    Ok(unsafe { buffer.assume_init() }.f_type as i64)
}

/// sethostname(2).
pub(crate) fn set_host_name(name: &[u8]) -> Result<()> {
    // SAFETY: the pointer and the length describe a live slice.
    check(unsafe { libc::syscall(libc::SYS_sethostname, name.as_ptr(), name.len()) }).map(drop)
}

/// setdomainname(2).
pub(crate) fn set_domain_name(name: &[u8]) -> Result<()> {
    // SAFETY: the pointer and the length describe a live slice.
    check(unsafe { libc::syscall(libc::SYS_setdomainname, name.as_ptr(), name.len()) }).map(drop)
}

/// prlimit64(2) on the caller.
pub(crate) fn set_resource_limit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let limit: [u64; 2] = [soft, hard];
    let null = std::ptr::null_mut::<u64>();
    // SAFETY: `limit` has the layout of struct rlimit64; a null old limit is allowed.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, limit.as_ptr(), null) }).map(drop)
}

/// umask(2); cannot fail.
pub(crate) fn set_umask(mask: u32) {
    // SAFETY: plain integer.
    unsafe { libc::syscall(libc::SYS_umask, mask) };
}

/// setsid(2).
pub(crate) fn new_session() -> Result<()> {
    // SAFETY: no arguments.
    check(unsafe { libc::syscall(libc::SYS_setsid) }).map(drop)
}

/// Makes the terminal the session's controlling one; see tty_ioctl(4), `TIOCSCTTY`.
pub(crate) fn take_terminal(fd: i32) -> Result<()> {
    // SAFETY: this ioctl takes an integer argument.
    check(unsafe { libc::syscall(libc::SYS_ioctl, fd, libc::TIOCSCTTY, 0) }).map(drop)
}

/// Opens the terminal that belongs to a master; see ioctl_tty(2), `TIOCGPTPEER`.
pub(crate) fn open_terminal_peer(master: i32) -> Result<i32> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: this ioctl takes an integer argument and returns a new descriptor.
    Ok(check(unsafe { libc::syscall(libc::SYS_ioctl, master, libc::TIOCGPTPEER, flags) })? as i32)
}

/// Unlocks a pseudo-terminal; see ioctl_tty(2), `TIOCSPTLCK`.
pub(crate) fn unlock_terminal(master: i32) -> Result<()> {
    let unlocked: i32 = 0;
    // SAFETY: this ioctl reads one int through the pointer.
    check(unsafe { libc::syscall(libc::SYS_ioctl, master, libc::TIOCSPTLCK, &raw const unlocked) }).map(drop)
}

/// Gives a terminal its size; see ioctl_tty(2), `TIOCSWINSZ`.
pub(crate) fn set_terminal_size(fd: i32, rows: u16, columns: u16) -> Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: this ioctl reads one struct winsize through the pointer.
    check(unsafe { libc::syscall(libc::SYS_ioctl, fd, libc::TIOCSWINSZ, &raw const size) }).map(drop)
}

/// Brings the loopback interface of the caller's network namespace up; see netdevice(7), `SIOCSIFFLAGS`.
pub(crate) fn bring_loopback_up() -> Result<()> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: plain integers.
    let socket = check(unsafe { libc::syscall(libc::SYS_socket, libc::AF_INET, kind, 0) })? as i32;
    // SAFETY: all-zero bytes are a valid struct ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: this ioctl reads one struct ifreq through the pointer.
    let done = check(unsafe { libc::syscall(libc::SYS_ioctl, socket, libc::SIOCSIFFLAGS, &raw const request) });
    close(socket);
    done.map(drop)
}

/// setgroups(2) of the calling thread.
pub(crate) fn set_groups(groups: &[u32]) -> Result<()> {
    // SAFETY: the pointer and the length describe a live slice of gid_t.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

/// setresgid(2) of the calling thread.
pub(crate) fn set_group(group: u32) -> Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, group, group, group) }).map(drop)
}

/// setresuid(2) of the calling thread.
pub(crate) fn set_user(user: u32) -> Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) }).map(drop)
}

/// prctl(2) with integer arguments.
pub(crate) fn process_control(option: i32, first: u64, second: u64) -> Result<usize> {
    // SAFETY: callers pass only options that take integers.
    check(unsafe { libc::syscall(libc::SYS_prctl, option, first, second, 0_u64, 0_u64) })
}

/// capset(2) of the calling thread.
pub(crate) fn set_capabilities(effective: u64, permitted: u64, inheritable: u64) -> Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = CapabilityHeader { version: VERSION_3, pid: 0 };
    let half = |shift: u32| CapabilityHalf {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads a header and two data halves; both are alive and laid out as the kernel's.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

/// One instruction of classic BPF, `struct sock_filter` of linux/filter.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    /// Instructions to skip if the comparison holds.
    pub(crate) if_true: u8,
    /// Instructions to skip if it does not.
    pub(crate) if_false: u8,
    pub(crate) value: u32,
}

/// seccomp(2), `SECCOMP_SET_MODE_FILTER`. Returns the listener's descriptor if the flags ask for one, else 0.
pub(crate) fn install_filter(program: &[Instruction], flags: u64) -> Result<i32> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const Instruction,
    }
    let length = u16::try_from(program.len()).map_err(|_| Errno(libc::E2BIG))?;
    let program = Program { length, filter: program.as_ptr() };
    // SAFETY: `program` has the layout of struct sock_fprog and points to `length` instructions.
    let value = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    Ok(check(value)? as i32)
}

/// `struct sched_attr` of sched_setattr(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SchedulerAttributes {
    /// Filled in by [`set_scheduler`].
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

/// sched_setattr(2) of the calling thread.
pub(crate) fn set_scheduler(attributes: &SchedulerAttributes) -> Result<()> {
    let attributes = SchedulerAttributes { size: size_of::<SchedulerAttributes>() as u32, ..*attributes };
    // SAFETY: `attributes` has the layout of struct sched_attr's first version and tells its size.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) }).map(drop)
}

/// sched_setaffinity(2) of the calling thread; 64 CPUs a word.
pub(crate) fn set_affinity(mask: &[u64]) -> Result<()> {
    // SAFETY: the pointer and the length describe a live slice.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(mask), mask.as_ptr()) }).map(drop)
}

/// ioprio_set(2) of the caller's process group.
pub(crate) fn set_io_priority(priority: i32) -> Result<()> {
    const IOPRIO_WHO_PGRP: i32 = 2;
    // SAFETY: plain integers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PGRP, 0, priority) }).map(drop)
}

/// personality(2).
pub(crate) fn set_personality(domain: u64) -> Result<()> {
    // SAFETY: plain integer.
    check(unsafe { libc::syscall(libc::SYS_personality, domain) }).map(drop)
}

/// set_mempolicy(2); 64 nodes a word.
pub(crate) fn set_memory_policy(mode: i32, nodes: &[u64]) -> Result<()> {
    // The kernel reads one bit less than it is told, and takes a mask of no length for one that is too long.
    let (mask, bits) = if nodes.is_empty() { (std::ptr::null(), 0) } else { (nodes.as_ptr(), nodes.len() * 64 + 1) };
    // SAFETY: the mask has at least `bits - 1` bits; null is allowed, for none.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) }).map(drop)
}

/// A NULL-terminated list of strings as execve(2) wants it; made before the clone.
#[derive(Debug)]
pub(crate) struct StringList {
    _strings: Vec<std::ffi::CString>,
    pointers: Vec<*const c_char>,
}

// SAFETY: the pointers lead into `_strings`, which the list owns and never changes.
unsafe impl Send for StringList {}
// SAFETY: nothing is ever written through the pointers.
unsafe impl Sync for StringList {}

impl StringList {
    /// Prepares the list.
    pub(crate) fn new(strings: Vec<std::ffi::CString>) -> StringList {
        let pointers = strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
        StringList { _strings: strings, pointers }
    }
}

/// execve(2). Returns only on failure.
pub(crate) fn execute(path: &CStr, arguments: &StringList, environment: &StringList) -> Errno {
    // SAFETY: the path is NUL-terminated; both lists are NULL-terminated arrays of strings that they own.
    let value = unsafe {
        libc::syscall(libc::SYS_execve, path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr())
    };
    check(value).err().unwrap_or(Errno(libc::EINVAL))
}

/// execveat(2) of an open file. Returns only on failure.
pub(crate) fn execute_file(file: i32, arguments: &StringList, environment: &StringList) -> Errno {
    // SAFETY: the empty path is static; both lists are NULL-terminated arrays of strings that they own.
    let value = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file,
            c"".as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    check(value).err().unwrap_or(Errno(libc::EINVAL))
}
