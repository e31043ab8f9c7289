//! The floor of the start benchmark: a container's start as nothing but its system calls.
//!
//! Owns one fixed container (the default specification over an overlay), written down by hand: no specification is
//! read, no path inside the root is checked, no error is told but its number. It is what [`crate::Plan`] is measured
//! against, built with the feature `floor` only, and never fit to start anybody's program.

use crate::cgroup::devices;
use crate::oci;
use crate::plan::{Started, above_standard};
use crate::seccomp::{self, Filter};
use crate::spec;
use crate::sys::{self, CloneRequest, Errno, MountAttributes, StringList};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// `nosuid,nodev,noexec`, as most of the container's own filesystems are mounted.
const QUIET: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// The fixed container, with every string prepared.
#[derive(Debug)]
pub struct Floor {
    overlay: CString,
    root: CString,
    read_only: Vec<CString>,
    masked_files: Vec<CString>,
    masked_folders: Vec<CString>,
    capabilities: u64,
    filter: Arc<Filter>,
    device_program: Vec<devices::Instruction>,
    program: CString,
    arguments: StringList,
    environment: StringList,
    null: OwnedFd,
}

/// What another made for a start.
#[derive(Clone, Copy, Debug)]
pub struct Handed<'a> {
    /// A cgroup v2 folder to be born in.
    pub cgroup: BorrowedFd<'a>,
    /// A network namespace to join instead of a new one.
    pub network: Option<BorrowedFd<'a>>,
}

impl Floor {
    /// Prepares `/bin/true` of an image's folder. `upper` and `work` must exist at each start.
    ///
    /// # Errors
    /// A path with a NUL, or a missing `/dev/null`.
    pub fn new(lower: &Path, upper: &Path, work: &Path) -> io::Result<Floor> {
        let filter = seccomp::compile(&default_profile()).map_err(io::Error::other)?;
        let data = [b"lowerdir=", bytes(lower), b",upperdir=", bytes(upper), b",workdir=", bytes(work)].concat();
        let relative =
            |paths: &[&str]| paths.iter().map(|path| CString::new(&path[1..])).collect::<Result<Vec<_>, _>>();
        // Which masks are files, and which paths this kernel has, is known before: the floor asks nothing twice.
        let there: Vec<&str> = spec::MASKED.into_iter().filter(|path| Path::new(path).exists()).collect();
        let (folders, files): (Vec<&str>, Vec<&str>) = there.into_iter().partition(|path| Path::new(path).is_dir());
        let read_only: Vec<&str> = spec::READ_ONLY.into_iter().filter(|path| Path::new(path).exists()).collect();
        let rules = devices::rules(&[]).map_err(io::Error::other)?;
        let device_program = devices::program(&rules).unwrap_or_default();
        let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
        Ok(Floor {
            overlay: CString::new(data)?,
            root: CString::new(bytes(upper))?,
            read_only: relative(&read_only)?,
            masked_files: relative(&files)?,
            masked_folders: relative(&folders)?,
            capabilities: crate::capabilities::bits(Some(&crate::capabilities::DEFAULT.into_iter().collect())),
            filter,
            device_program,
            program: c"/bin/true".into(),
            arguments: StringList::new(vec![c"/bin/true".into()]),
            environment: StringList::new(vec![c"PATH=/bin".into()]),
            null: above_standard(null.into()).map_err(io::Error::other)?,
        })
    }

    /// Makes a cgroup of version 2 with the default devices.
    ///
    /// # Errors
    /// The number of whichever system call failed first.
    pub fn make_cgroup(&self, folder: &Path) -> io::Result<OwnedFd> {
        std::fs::create_dir(folder)?;
        let folder = OwnedFd::from(std::fs::File::open(folder)?);
        let program = sys::load_device_program(&self.device_program)?;
        sys::attach_device_program(folder.as_raw_fd(), program.as_raw_fd())?;
        Ok(folder)
    }

    /// Starts it; returns when its program runs.
    ///
    /// # Errors
    /// The number of whichever system call failed first.
    pub fn start(&self, handed: Handed<'_>) -> io::Result<Started> {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let own_network = if handed.network.is_none() { libc::CLONE_NEWNET } else { 0 };
        let kinds = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | own_network;
        let request =
            CloneRequest { namespaces: kinds as u64, sibling: false, cgroup: Some(handed.cgroup.as_raw_fd()) };
        let (network, report) = (handed.network.map(|fd| fd.as_raw_fd()), write.as_raw_fd());
        let child = || {
            if let Err(errno) = self.run(network) {
                let _ = sys::write(report, &errno.0.to_ne_bytes());
            }
        };
        let (pid, pidfd) = sys::clone_child(request, child)?;
        drop(write);
        let mut errno = [0_u8; 4];
        match rustix::io::read(&read, &mut errno)? {
            0 => Ok(Started { pid, pidfd }),
            _ => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno))),
        }
    }

    /// The child's way to its program.
    fn run(&self, network: Option<i32>) -> sys::Result<()> {
        match network {
            None => sys::bring_loopback_up()?,
            Some(fd) => sys::join_namespace(fd, libc::CLONE_NEWNET)?,
        }
        sys::unshare(libc::CLONE_NEWCGROUP)?;
        sys::new_session()?;
        for stream in 0..3 {
            sys::duplicate_onto(self.null.as_raw_fd(), stream, false)?;
        }
        sys::mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
        sys::mount(Some(c"overlay"), &self.root, Some(c"overlay"), libc::MS_NODEV, Some(&self.overlay))?;
        sys::change_folder(&self.root)?;
        filesystems()?;
        devices()?;
        self.hide()?;
        sys::pivot_root(c".", c".")?;
        sys::unmount(c".", libc::MNT_DETACH)?;
        sys::change_folder(c"/")?;
        self.become_contained()?;
        Err(sys::execute(&self.program, &self.arguments, &self.environment))
    }

    fn hide(&self) -> sys::Result<()> {
        let read_only = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
        for path in &self.read_only {
            let mount = sys::open_tree(libc::AT_FDCWD, path, libc::OPEN_TREE_CLONE | libc::AT_RECURSIVE as u32)?;
            sys::set_mount_attributes(mount, c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, &read_only)?;
            attach(mount, path)?;
        }
        for path in &self.masked_files {
            attach(sys::open_tree(libc::AT_FDCWD, c"dev/null", libc::OPEN_TREE_CLONE)?, path)?;
        }
        for path in &self.masked_folders {
            sys::mount(
                Some(c"tmpfs"),
                path,
                Some(c"tmpfs"),
                QUIET | libc::MS_RDONLY,
                Some(c"nr_blocks=1,nr_inodes=1"),
            )?;
        }
        Ok(())
    }

    fn become_contained(&self) -> sys::Result<()> {
        sys::close_range(3, u32::MAX)?;
        for number in (0..=40).filter(|number| self.capabilities & (1 << number) == 0) {
            sys::process_control(libc::PR_CAPBSET_DROP, number, 0)?;
        }
        sys::set_groups(&[])?;
        sys::set_capabilities(self.capabilities, self.capabilities, 0)?;
        sys::set_umask(0o022);
        sys::process_control(libc::PR_SET_NO_NEW_PRIVS, 1, 0)?;
        sys::install_filter(&self.filter.program, self.filter.flags).map(drop)
    }
}

fn default_profile() -> oci::LinuxSeccomp {
    spec::default_spec().linux().as_ref().and_then(|linux| linux.seccomp().clone()).unwrap_or_default()
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

fn attach(mount: i32, path: &CStr) -> sys::Result<()> {
    let target = sys::open(libc::AT_FDCWD, path, libc::O_PATH)?;
    sys::attach_mount(mount, target)
}

/// The filesystems of the default specification, below the working folder.
fn filesystems() -> sys::Result<()> {
    let mount = |kind: &CStr, target: &CStr, flags: u64, data: Option<&CStr>| {
        sys::mount(Some(kind), target, Some(kind), flags, data)
    };
    let make = |path: &CStr| match sys::make_folder(libc::AT_FDCWD, path, 0o755) {
        Ok(()) | Err(Errno(libc::EEXIST)) => Ok(()),
        Err(errno) => Err(errno),
    };
    mount(c"proc", c"proc", QUIET, None)?;
    mount(c"tmpfs", c"dev", libc::MS_NOSUID | libc::MS_STRICTATIME, Some(c"mode=755,size=65536k"))?;
    make(c"dev/pts")?;
    let terminals = c"newinstance,ptmxmode=0666,mode=0620,gid=5";
    mount(c"devpts", c"dev/pts", libc::MS_NOSUID | libc::MS_NOEXEC, Some(terminals))?;
    make(c"dev/shm")?;
    mount(c"tmpfs", c"dev/shm", QUIET, Some(c"mode=1777,size=65536k"))?;
    make(c"dev/mqueue")?;
    mount(c"mqueue", c"dev/mqueue", QUIET, None)?;
    mount(c"sysfs", c"sys", QUIET | libc::MS_RDONLY, None)?;
    mount(c"cgroup2", c"sys/fs/cgroup", QUIET | libc::MS_RDONLY | libc::MS_RELATIME, None)
}

/// The devices and links that every container has, below the working folder.
fn devices() -> sys::Result<()> {
    let nodes = [
        (c"dev/null", 1, 3),
        (c"dev/zero", 1, 5),
        (c"dev/full", 1, 7),
        (c"dev/random", 1, 8),
        (c"dev/urandom", 1, 9),
        (c"dev/tty", 5, 0),
    ];
    sys::set_umask(0);
    for (path, major, minor) in nodes {
        sys::make_node(libc::AT_FDCWD, path, libc::S_IFCHR | 0o666, libc::makedev(major, minor))?;
    }
    let links = [
        (c"/proc/self/fd", c"dev/fd"),
        (c"/proc/self/fd/0", c"dev/stdin"),
        (c"/proc/self/fd/1", c"dev/stdout"),
        (c"/proc/self/fd/2", c"dev/stderr"),
        (c"pts/ptmx", c"dev/ptmx"),
    ];
    links.into_iter().try_for_each(|(points_to, path)| sys::make_symlink(points_to, libc::AT_FDCWD, path))
}
