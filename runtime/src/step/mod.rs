//! The steps of a plan, and how a child walks them.
//!
//! Owns what each step does with system calls and how it prints. Must not allocate, lock or log while running, and must
//! not read the specification: whoever compiles a plan has computed every path, number and string.

mod attributes;
mod copy_up;
mod device;
mod filesystem;
mod hide;
mod mount;
mod target;
mod terminal;

pub(crate) use attributes::AttributeStep;
pub(crate) use device::Device;
pub(crate) use filesystem::FilesystemStep;
pub(crate) use hide::Covers;
pub(crate) use mount::{Bind, Filesystem, attach};
pub(crate) use target::{PROC_MAGIC, Target};

use crate::seccomp::Filter;
use crate::sys::{self, CloneRequest, Errno, MountAttributes, StringList};
use std::ffi::{CStr, CString};
use std::fmt;
use std::sync::Arc;

/// The program to run, ready for execve(2).
pub(crate) struct Command {
    pub(crate) name: String,
    pub(crate) search: String,
    pub(crate) candidates: Vec<CString>,
    pub(crate) arguments: StringList,
    pub(crate) environment: StringList,
}

impl fmt::Debug for Command {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Command({})", self.name)
    }
}

/// One prepared step. The child runs them in order and stops at the first that fails.
#[derive(Debug)]
pub(crate) enum Step {
    ClearUmask,
    JoinCgroup {
        tasks: i32,
        path: String,
    },
    Unshare {
        kinds: i32,
        name: &'static str,
    },
    JoinNamespace {
        fd: i32,
        kinds: i32,
        name: String,
    },
    /// Clones the rest of the plan into a child and ends; see [`crate::compile`].
    Clone {
        request: CloneRequest,
    },
    TimeOffsets {
        value: String,
    },
    /// Nobody whom the process meets may trace it, or read the memory that it has copied from its caller.
    Undumpable,
    /// Takes the user namespace's own root for the rest of the steps.
    BecomeRoot,
    LoopbackUp,
    NewSession,
    OpenTerminal {
        root: i32,
        master: i32,
        slave: i32,
        size: Option<(u16, u16)>,
    },
    BindConsole {
        root: i32,
        target: Target,
        slave: i32,
    },
    SendTerminal {
        console: i32,
        master: i32,
    },
    TakeTerminal,
    /// Lets the process's user open its streams again by name, as `/dev/stdout`.
    OwnStreams {
        user: u32,
    },
    SessionKeyring {
        name: CString,
    },
    OutOfMemoryScore {
        value: String,
    },
    Filesystem(FilesystemStep),
    Attribute(AttributeStep),
    HostName {
        name: String,
    },
    DomainName {
        name: String,
    },
    StandardStream {
        from: i32,
        onto: i32,
    },
    PivotRoot {
        root: i32,
    },
    ChangeRoot {
        root: i32,
    },
    /// Takes a kernel's filesystem of the host out of sight, which [`Step::MoveRoot`] would leave within reach.
    Hide {
        path: CString,
    },
    MoveRoot {
        root: i32,
    },
    CloseDescriptors {
        first: i32,
        keep: Vec<i32>,
    },
    /// Waits until the caller has done its part; see [`crate::handshake`].
    AwaitCaller,
    /// Waits for the container's start; see [`crate::handshake`].
    AwaitStart {
        listener: i32,
        later: Vec<String>,
    },
    ReadOnlyRoot,
    ResourceLimit {
        name: String,
        resource: u32,
        soft: u64,
        hard: u64,
    },
    WorkingFolder {
        path: CString,
    },
    BoundingSet {
        keep: u64,
    },
    User {
        user: u32,
        group: u32,
        groups: Vec<u32>,
    },
    Capabilities {
        effective: u64,
        permitted: u64,
        inheritable: u64,
        ambient: u64,
    },
    Umask {
        mask: u32,
    },
    NoNewPrivileges,
    ResetSignals,
    Seccomp {
        filter: Arc<Filter>,
    },
    /// Looks whether there is a program to run, while somebody still listens.
    FindCommand {
        command: Arc<Command>,
    },
    Execute {
        command: Arc<Command>,
    },
    /// A step that always fails; tests put it anywhere to see what is left behind.
    #[cfg(test)]
    Fail,
    /// What a neighbour in the pid namespace can do to the child at any step.
    #[cfg(test)]
    Stop,
}

impl Step {
    /// Carries the step out. Runs in the child: system calls only.
    pub(crate) fn run(&self) -> sys::Result<()> {
        match self {
            Step::ClearUmask => {
                sys::set_umask(0);
                Ok(())
            }
            // A 0 written to `tasks` moves the writer; `cgroup.procs` would wait for an RCU grace period.
            Step::JoinCgroup { tasks, .. } => sys::write(*tasks, b"0").map(drop),
            Step::Unshare { kinds, .. } => sys::unshare(*kinds),
            Step::JoinNamespace { fd, kinds, .. } => sys::join_namespace(*fd, *kinds),
            Step::TimeOffsets { value } => write_host_file(c"/proc/self/timens_offsets", value.as_bytes()),
            Step::Undumpable => sys::process_control(libc::PR_SET_DUMPABLE, 0, 0).map(drop),
            Step::BecomeRoot => become_user(0, 0, &[]),
            Step::LoopbackUp => sys::bring_loopback_up(),
            Step::NewSession => sys::new_session(),
            Step::OpenTerminal { root, master, slave, size } => terminal::open(*root, *master, *slave, *size),
            Step::BindConsole { root, target, slave } => terminal::bind_console(*root, target, *slave),
            Step::SendTerminal { console, master } => sys::send_descriptor(*console, b"/dev/ptmx", *master),
            Step::OwnStreams { user } => (0..3).try_for_each(|stream| own_stream(stream, *user)),
            Step::SessionKeyring { name } => join_keyring(name),
            Step::TakeTerminal => sys::take_terminal(0),
            Step::OutOfMemoryScore { value } => write_host_file(c"/proc/self/oom_score_adj", value.as_bytes()),
            Step::Filesystem(step) => step.run(),
            Step::Attribute(step) => step.run(),
            Step::HostName { name } => sys::set_host_name(name.as_bytes()),
            Step::DomainName { name } => sys::set_domain_name(name.as_bytes()),
            Step::StandardStream { from, onto } => sys::duplicate_onto(*from, *onto, false),
            Step::PivotRoot { root } => pivot(*root),
            Step::ChangeRoot { root } => change_root(*root),
            Step::Hide { path } => hide(path),
            Step::MoveRoot { root } => move_root(*root),
            Step::CloseDescriptors { first, keep } => close_descriptors(*first, keep),
            // The walk does these: they are words of the handshake.
            Step::Clone { .. } | Step::AwaitCaller | Step::AwaitStart { .. } => Err(Errno(libc::ENOSYS)),
            Step::ReadOnlyRoot => {
                let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
                sys::set_mount_attributes(libc::AT_FDCWD, c"/", 0, &attributes)
            }
            Step::ResourceLimit { resource, soft, hard, .. } => sys::set_resource_limit(*resource, *soft, *hard),
            Step::WorkingFolder { path } => enter_working_folder(path),
            Step::BoundingSet { keep } => drop_bounding(*keep),
            Step::User { user, group, groups } => become_user(*user, *group, groups),
            Step::Capabilities { effective, permitted, inheritable, ambient } => {
                sys::set_capabilities(*effective, *permitted, *inheritable)?;
                raise_ambient(*ambient)
            }
            Step::Umask { mask } => {
                sys::set_umask(*mask);
                Ok(())
            }
            Step::NoNewPrivileges => sys::process_control(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map(drop),
            Step::ResetSignals => sys::reset_signals(),
            Step::Seccomp { filter } => sys::install_filter(&filter.program, filter.flags).map(drop),
            Step::FindCommand { command } => command.find(),
            Step::Execute { command } => Err(command.execute()),
            #[cfg(test)]
            Step::Fail => Err(Errno(libc::EDOTDOT)),
            #[cfg(test)]
            Step::Stop => {
                let itself = rustix::process::getpid();
                rustix::process::kill_process(itself, rustix::process::Signal::STOP)
                    .map_err(|errno| Errno(errno.raw_os_error()))
            }
        }
    }
}

fn write_host_file(path: &CStr, value: &[u8]) -> sys::Result<()> {
    let fd = sys::open(libc::AT_FDCWD, path, libc::O_WRONLY)?;
    sys::write(fd, value)?;
    sys::close(fd);
    Ok(())
}

/// Makes the folder the root and lets go of the old one; pivot_root(2), "pivot_root(".", ".")".
fn pivot(root: i32) -> sys::Result<()> {
    sys::change_folder_to(root)?;
    // The old root is now stacked on the new one, and "." leads to it: unmounting it leaves the new root alone.
    sys::pivot_root(c".", c".")?;
    sys::unmount(c".", libc::MNT_DETACH)?;
    sys::change_folder(c"/")
}

fn change_root(root: i32) -> sys::Result<()> {
    sys::change_folder_to(root)?;
    sys::change_root(c".")?;
    sys::change_folder(c"/")
}

/// Moves the root over the old one, where pivot_root(2) is impossible: the old root is an initramfs.
fn move_root(root: i32) -> sys::Result<()> {
    sys::change_folder_to(root)?;
    sys::mount(Some(c"."), c"/", None, libc::MS_MOVE, None)?;
    sys::change_root(c".")?;
    sys::change_folder(c"/")
}

/// Unmounts, or covers what a user namespace may not unmount.
fn hide(path: &CStr) -> sys::Result<()> {
    match sys::unmount(path, libc::MNT_DETACH) {
        Err(Errno(libc::EINVAL | libc::EPERM)) => {
            let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
            sys::mount(Some(c"tmpfs"), path, Some(c"tmpfs"), flags, Some(c"nr_blocks=1,nr_inodes=1"))
        }
        // Below one that is gone already.
        Err(Errno(libc::ENOENT)) => Ok(()),
        result => result,
    }
}

/// Pipes, sockets and terminals only: another file or device of the host keeps its owner.
fn own_stream(stream: i32, user: u32) -> sys::Result<()> {
    let own = match sys::stat(stream) {
        // The caller has given a closed stream, which is its right.
        Err(Errno(libc::EBADF)) => return Ok(()),
        stat => stat?.mode & libc::S_IFMT,
    };
    if own != libc::S_IFIFO && own != libc::S_IFSOCK && sys::filesystem_kind(stream)? != terminal::DEVPTS_MAGIC {
        return Ok(());
    }
    // The greatest number leaves the group as it is; chown(2).
    match sys::change_owner_of(stream, user, u32::MAX) {
        // It belongs to somebody outside of the user namespace, or to a read-only filesystem.
        Err(Errno(libc::EPERM | libc::EINVAL | libc::EROFS)) => Ok(()),
        result => result,
    }
}

/// Leaves the caller's session keyring for one of the container's own; keyrings(7). Whoever enters later may find it.
fn join_keyring(name: &CStr) -> sys::Result<()> {
    match sys::join_session_keyring(name) {
        // A kernel without keys has none to keep apart.
        Err(Errno(libc::ENOSYS)) => Ok(()),
        keyring => sys::let_user_search_keyring(keyring?),
    }
}

/// Closes all from the first on, but those that are kept, which are in order.
fn close_descriptors(first: i32, keep: &[i32]) -> sys::Result<()> {
    let mut next = first.unsigned_abs();
    for kept in keep.iter().map(|fd| fd.unsigned_abs()) {
        sys::close_range(next, kept.saturating_sub(1))?;
        next = kept.saturating_add(1);
    }
    sys::close_range(next, u32::MAX)
}

/// Enters the folder and makes sure that it lies inside the root (CVE-2024-21626): the kernel names a folder outside
/// without a leading slash.
fn enter_working_folder(path: &CStr) -> sys::Result<()> {
    sys::change_folder(path)?;
    let mut buffer = [0_u8; libc::PATH_MAX as usize];
    sys::current_folder(&mut buffer)?;
    if buffer[0] == b'/' { Ok(()) } else { Err(Errno(libc::EXDEV)) }
}

/// Drops every capability from the bounding set that is not kept, up to the last that the kernel knows.
fn drop_bounding(keep: u64) -> sys::Result<()> {
    for number in 0..64 {
        match sys::process_control(libc::PR_CAPBSET_READ, number, 0) {
            Err(Errno(libc::EINVAL)) => return Ok(()),
            Ok(0) => {}
            Ok(_) if keep & (1 << number) != 0 => {}
            Ok(_) => sys::process_control(libc::PR_CAPBSET_DROP, number, 0).map(drop)?,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn become_user(user: u32, group: u32, groups: &[u32]) -> sys::Result<()> {
    // Capabilities must survive the change, because the next step gives the process exactly its own.
    sys::process_control(libc::PR_SET_KEEPCAPS, 1, 0)?;
    sys::set_groups(groups)?;
    sys::set_group(group)?;
    sys::set_user(user)?;
    sys::process_control(libc::PR_SET_KEEPCAPS, 0, 0).map(drop)
}

fn raise_ambient(ambient: u64) -> sys::Result<()> {
    sys::process_control(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)?;
    for number in (0..64).filter(|number| ambient & (1 << number) != 0) {
        sys::process_control(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, number)?;
    }
    Ok(())
}

impl Command {
    /// Looks for a candidate that [`Command::execute`] could run; the same errors.
    fn find(&self) -> sys::Result<()> {
        let mut told = Errno(libc::ENOENT);
        for candidate in &self.candidates {
            match sys::open(libc::AT_FDCWD, candidate, libc::O_PATH) {
                Err(Errno(libc::ENOENT | libc::ENOTDIR)) => {}
                Err(Errno(libc::EACCES)) => told = Errno(libc::EACCES),
                Err(errno) => return Err(errno),
                Ok(file) => {
                    let runs = sys::stat(file)?.is_file() && sys::may_execute(file).is_ok();
                    sys::close(file);
                    if runs {
                        return Ok(());
                    }
                    told = Errno(libc::EACCES);
                }
            }
        }
        Err(told)
    }

    /// Tries each candidate as execvp(3) does: a file that may not be run is told only if no other could be.
    fn execute(&self) -> Errno {
        let mut told = Errno(libc::ENOENT);
        for candidate in &self.candidates {
            match sys::execute(candidate, &self.arguments, &self.environment) {
                Errno(libc::ENOENT | libc::ENOTDIR) => {}
                Errno(libc::EACCES) => told = Errno(libc::EACCES),
                errno => return errno,
            }
        }
        told
    }
}

/// Shows a C string as a path.
fn text(string: &CStr) -> std::borrow::Cow<'_, str> {
    string.to_string_lossy()
}

/// Prints one step without any descriptor number, so that equal plans print equally.
impl fmt::Display for Step {
    #[allow(clippy::too_many_lines)] // One line a step: a table, not a procedure.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::ClearUmask => write!(out, "clear the umask"),
            Step::JoinCgroup { path, .. } => write!(out, "join cgroup {path}"),
            Step::Unshare { name, .. } => write!(out, "new {name} namespace"),
            Step::JoinNamespace { name, .. } => write!(out, "join {name}"),
            Step::Clone { request } => write!(out, "{request}"),
            Step::TimeOffsets { value } => write!(out, "set clocks off by {:?}", value.trim_end()),
            Step::Undumpable => write!(out, "become untraceable"),
            Step::BecomeRoot => write!(out, "become root of the user namespace"),
            Step::LoopbackUp => write!(out, "bring loopback up"),
            Step::NewSession => write!(out, "start a session"),
            Step::OpenTerminal { size: None, .. } => write!(out, "open a terminal"),
            Step::OpenTerminal { size: Some((rows, columns)), .. } => {
                write!(out, "open a terminal of {rows} rows and {columns} columns")
            }
            Step::BindConsole { target, .. } => write!(out, "bind the terminal on {target}"),
            Step::SendTerminal { .. } => write!(out, "send the terminal to the console socket"),
            Step::OwnStreams { user } => write!(out, "give the streams to user {user}"),
            Step::SessionKeyring { name } => write!(out, "join session keyring {}", text(name)),
            Step::TakeTerminal => write!(out, "take the terminal"),
            Step::OutOfMemoryScore { value } => write!(out, "set oom_score_adj {value}"),
            Step::Filesystem(step) => write!(out, "{step}"),
            Step::Attribute(step) => write!(out, "{step}"),
            Step::HostName { name } => write!(out, "set host name {name}"),
            Step::DomainName { name } => write!(out, "set domain name {name}"),
            Step::StandardStream { onto, .. } => {
                write!(out, "give {}", ["stdin", "stdout", "stderr"].get(*onto as usize).unwrap_or(&"a stream"))
            }
            Step::PivotRoot { .. } => write!(out, "pivot into the root"),
            Step::CloseDescriptors { .. } => write!(out, "close all other descriptors"),
            Step::Hide { path } => write!(out, "unmount {}", text(path)),
            Step::MoveRoot { .. } => write!(out, "move the root over the old one"),
            Step::ChangeRoot { .. } => write!(out, "change into the root"),
            Step::AwaitCaller => write!(out, "wait for the caller"),
            Step::AwaitStart { .. } => write!(out, "wait for the start"),
            Step::ReadOnlyRoot => write!(out, "make the root read-only"),
            Step::ResourceLimit { name, soft, hard, .. } => write!(out, "limit {name} to {soft} (hard {hard})"),
            Step::WorkingFolder { path } => write!(out, "enter working folder {}", text(path)),
            Step::BoundingSet { keep } => write!(out, "bound capabilities to {keep:#x}"),
            Step::User { user, group, groups } => write!(out, "become user {user} group {group} groups {groups:?}"),
            Step::Capabilities { effective, permitted, inheritable, ambient } => write!(
                out,
                "set capabilities effective {effective:#x} permitted {permitted:#x} inheritable {inheritable:#x} \
                 ambient {ambient:#x}"
            ),
            Step::Umask { mask } => write!(out, "set umask {mask:04o}"),
            Step::NoNewPrivileges => write!(out, "gain no new privileges"),
            Step::ResetSignals => write!(out, "reset signals"),
            Step::Seccomp { filter } => write!(out, "install {filter}"),
            Step::FindCommand { command } => write!(out, "find {command}"),
            Step::Execute { command } => write!(out, "execute {command}"),
            #[cfg(test)]
            Step::Fail => write!(out, "fail"),
            #[cfg(test)]
            Step::Stop => write!(out, "stop"),
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.name)?;
        if self.search.is_empty() { Ok(()) } else { write!(out, " from {}", self.search) }
    }
}
