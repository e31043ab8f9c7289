//! The steps that give a container its filesystem: root, mounts, devices, masks and sysctls.
//!
//! Owns how a place inside the root is found, made and mounted on by descriptor. Must not allocate, lock or log while
//! running, and must not leave the root: whatever the image says, a path is resolved inside it.

use super::text;
use crate::sys::{self, Errno, MountAttributes};
use std::ffi::{CStr, CString};
use std::fmt;

/// Mount points and masks never follow magic links such as `/proc/self/fd/3`, and never leave the root.
const INSIDE: u64 = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
/// fstatfs(2)'s magic number of procfs.
const PROC_MAGIC: i64 = 0x9fa0;
/// How often a lookup is repeated that the kernel could not finish because of a concurrent rename (openat2(2), EAGAIN).
const LOOKUP_TRIES: usize = 64;

/// A place inside the container's root. It is created if it is not there, looked up without ever leaving the root,
/// and used by descriptor only.
#[derive(Debug)]
pub(crate) struct Target {
    /// The whole path, relative to the root; for people.
    pub(crate) path: CString,
    /// Each leading part of the path with its last name: `a`/`a`, `a/b`/`b`, …
    pub(crate) parts: Vec<(CString, CString)>,
    /// The last part is a file, not a folder.
    pub(crate) file: bool,
    /// Refuses symbolic links on the way, as for everything under `/proc`, `/sys` and `/dev`.
    pub(crate) strict: bool,
}

/// What is mounted at a target.
#[derive(Debug)]
pub(crate) struct Filesystem {
    pub(crate) kind: CString,
    pub(crate) source: CString,
    pub(crate) flags: u64,
    pub(crate) data: Option<CString>,
}

/// A bind mount.
#[derive(Debug)]
pub(crate) struct Bind {
    pub(crate) source: CString,
    pub(crate) recursive: bool,
    pub(crate) attributes: MountAttributes,
    pub(crate) recursive_attributes: MountAttributes,
}

/// A device node of the container's `/dev`.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) target: Target,
    pub(crate) host_path: CString,
    pub(crate) mode: u32,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// One prepared step on the filesystem.
#[derive(Debug)]
pub(crate) enum FilesystemStep {
    Propagation { flags: u64, name: &'static str },
    OpenLayer { path: CString, slot: i32 },
    MountOverlay { data: CString, target: CString, layers: usize, upper: CString },
    BindRoot { path: CString },
    OpenRoot { path: CString, slot: i32 },
    MakeFolder { root: i32, target: Target },
    Mount { root: i32, target: Target, filesystem: Filesystem },
    BindMount { root: i32, target: Target, bind: Bind },
    MakeDevice { root: i32, device: Device },
    MakeSymlink { root: i32, folder: Target, name: CString, points_to: CString },
    Mask { root: i32, path: CString },
    ReadOnlyPath { root: i32, path: CString },
    Sysctl { path: CString, value: String },
}

impl FilesystemStep {
    /// Carries the step out. Runs in the child: system calls only.
    pub(crate) fn run(&self) -> sys::Result<()> {
        match self {
            FilesystemStep::Propagation { flags, .. } => sys::mount(None, c"/", None, *flags, None),
            FilesystemStep::OpenLayer { path, slot } => open_at_slot(path, *slot),
            FilesystemStep::MountOverlay { data, target, .. } => mount_overlay(data, target),
            FilesystemStep::BindRoot { path } => bind_root(path),
            FilesystemStep::OpenRoot { path, slot } => open_at_slot(path, *slot),
            FilesystemStep::MakeFolder { root, target } => target.open(*root).map(sys::close),
            FilesystemStep::Mount { root, target, filesystem } => filesystem.mount(*root, target),
            FilesystemStep::BindMount { root, target, bind } => bind.mount(*root, target),
            FilesystemStep::MakeDevice { root, device } => device.make(*root),
            FilesystemStep::MakeSymlink { root, folder, name, points_to } => {
                make_symlink(*root, folder, name, points_to)
            }
            FilesystemStep::Mask { root, path } => mask(*root, path),
            FilesystemStep::ReadOnlyPath { root, path } => make_path_read_only(*root, path),
            FilesystemStep::Sysctl { path, value } => write_sysctl(path, value.as_bytes()),
        }
    }
}

/// Repeats a lookup inside the root while the kernel says that it raced with a rename.
fn open_inside(root: i32, path: &CStr, resolve: u64) -> sys::Result<i32> {
    let mut result = Err(Errno(libc::EAGAIN));
    for _ in 0..LOOKUP_TRIES {
        result = sys::open_resolved(root, path, libc::O_PATH, resolve);
        if result != Err(Errno(libc::EAGAIN)) {
            break;
        }
    }
    result
}

impl Target {
    /// Opens the place, creating what is missing. Each part is looked up again from the root, so a symbolic link in
    /// the image is followed inside the root or, when strict, refused.
    fn open(&self, root: i32) -> sys::Result<i32> {
        let resolve = if self.strict { INSIDE | libc::RESOLVE_NO_SYMLINKS } else { INSIDE };
        match open_inside(root, &self.path, resolve) {
            Err(Errno(libc::ENOENT)) => {}
            result => return result,
        }
        let mut parent = root;
        for (index, (leading, name)) in self.parts.iter().enumerate() {
            let last = index + 1 == self.parts.len();
            let opened = match open_inside(root, leading, resolve) {
                Err(Errno(libc::ENOENT)) => {
                    if last && self.file {
                        sys::make_node(parent, name, libc::S_IFREG | 0o644, 0)?;
                    } else {
                        sys::make_folder(parent, name, 0o755)?;
                    }
                    open_inside(root, leading, resolve)?
                }
                result => result?,
            };
            if parent != root {
                sys::close(parent);
            }
            parent = opened;
        }
        Ok(parent)
    }

    /// Opens the place as a mount point: never on procfs, where a mount could hide or fake what others trust.
    fn open_for_mount(&self, root: i32) -> sys::Result<i32> {
        let fd = self.open(root)?;
        if sys::filesystem_kind(fd)? == PROC_MAGIC {
            return Err(Errno(libc::EPERM));
        }
        Ok(fd)
    }
}

/// The path `/proc/self/fd/N` of a descriptor, built without allocation.
struct DescriptorPath([u8; 32]);

impl DescriptorPath {
    fn new(fd: i32) -> DescriptorPath {
        let mut bytes = [0_u8; 32];
        let prefix = b"/proc/self/fd/";
        bytes[..prefix.len()].copy_from_slice(prefix);
        let mut digits = [0_u8; 10];
        let mut count = 0;
        let mut rest = fd.unsigned_abs();
        loop {
            digits[count] = b'0' + (rest % 10) as u8;
            count += 1;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        for index in 0..count {
            bytes[prefix.len() + index] = digits[count - 1 - index];
        }
        DescriptorPath(bytes)
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"/proc/self/fd/-1")
    }
}

impl Filesystem {
    fn mount(&self, root: i32, target: &Target) -> sys::Result<()> {
        let fd = target.open_for_mount(root)?;
        let path = DescriptorPath::new(fd);
        sys::mount(Some(&self.source), path.as_c_str(), Some(&self.kind), self.flags, self.data.as_deref())?;
        sys::close(fd);
        Ok(())
    }
}

impl Bind {
    fn mount(&self, root: i32, target: &Target) -> sys::Result<()> {
        let recursive = if self.recursive { libc::AT_RECURSIVE as u32 } else { 0 };
        let mount = sys::open_tree(libc::AT_FDCWD, &self.source, libc::OPEN_TREE_CLONE | recursive)?;
        // Read-only and the like hold before anybody can see the mount.
        for (attributes, flags) in [(&self.attributes, 0), (&self.recursive_attributes, libc::AT_RECURSIVE)] {
            if *attributes != MountAttributes::default() {
                sys::set_mount_attributes(mount, c"", libc::AT_EMPTY_PATH | flags, attributes)?;
            }
        }
        let fd = target.open_for_mount(root)?;
        sys::attach_mount(mount, fd)?;
        sys::close(fd);
        sys::close(mount);
        Ok(())
    }
}

impl Device {
    /// Makes the node in the container's `/dev`, or binds the host's where the kernel refuses to make one.
    fn make(&self, root: i32) -> sys::Result<()> {
        let Some(((_, name), folders)) = self.target.parts.split_last() else { return Err(Errno(libc::EINVAL)) };
        let parent = match folders.last() {
            None => return Err(Errno(libc::EINVAL)),
            Some((path, _)) => open_inside(root, path, INSIDE | libc::RESOLVE_NO_SYMLINKS)?,
        };
        let number = libc::makedev(self.major, self.minor);
        match sys::make_node(parent, name, self.mode, number) {
            Ok(()) => sys::change_owner(parent, name, self.user, self.group)?,
            Err(Errno(libc::EPERM)) => self.bind_from_host(root)?,
            Err(errno) => return Err(errno),
        }
        sys::close(parent);
        Ok(())
    }

    fn bind_from_host(&self, root: i32) -> sys::Result<()> {
        let source = sys::open(libc::AT_FDCWD, &self.host_path, libc::O_PATH | libc::O_NOFOLLOW)?;
        // Whatever the host has under that name, only the very device may enter the container.
        if !sys::stat(source)?.is_character_device(self.major, self.minor) {
            return Err(Errno(libc::ENODEV));
        }
        bind_descriptor(source, self.target.open(root)?)
    }
}

/// Binds what one descriptor shows onto another.
fn bind_descriptor(source: i32, target: i32) -> sys::Result<()> {
    let mount = sys::open_tree(source, c"", libc::OPEN_TREE_CLONE | libc::AT_EMPTY_PATH as u32)?;
    sys::attach_mount(mount, target)?;
    sys::close(mount);
    sys::close(target);
    sys::close(source);
    Ok(())
}

/// Opens a path of the host at a descriptor number that the plan has chosen.
fn open_at_slot(path: &CStr, slot: i32) -> sys::Result<()> {
    let fd = sys::open(libc::AT_FDCWD, path, libc::O_PATH | libc::O_DIRECTORY)?;
    if fd != slot {
        sys::duplicate_onto(fd, slot, true)?;
        sys::close(fd);
    }
    Ok(())
}

/// Mounts the overlay. The layers are named by descriptor, relative to `/proc/self/fd`: a hundred layers fit into the
/// one page that mount(2) takes, and no character of a path needs escaping.
fn mount_overlay(data: &CStr, target: &CStr) -> sys::Result<()> {
    sys::change_folder(c"/proc/self/fd")?;
    sys::mount(Some(c"overlay"), target, Some(c"overlay"), libc::MS_NODEV, Some(data))
}

/// Makes a folder a mount of its own, as pivot_root(2) wants it.
fn bind_root(path: &CStr) -> sys::Result<()> {
    let mount = sys::open_tree(libc::AT_FDCWD, path, libc::OPEN_TREE_CLONE | libc::AT_RECURSIVE as u32)?;
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_NODEV, ..MountAttributes::default() };
    sys::set_mount_attributes(mount, c"", libc::AT_EMPTY_PATH, &attributes)?;
    let target = sys::open(libc::AT_FDCWD, path, libc::O_PATH | libc::O_DIRECTORY)?;
    sys::attach_mount(mount, target)?;
    sys::close(target);
    sys::close(mount);
    Ok(())
}

fn make_symlink(root: i32, folder: &Target, name: &CStr, points_to: &CStr) -> sys::Result<()> {
    let fd = folder.open(root)?;
    match sys::make_symlink(points_to, fd, name) {
        Ok(()) | Err(Errno(libc::EEXIST)) => {}
        Err(errno) => return Err(errno),
    }
    sys::close(fd);
    Ok(())
}

/// Hides a path: a file under the real `/dev/null`, a folder under an empty read-only one. A path that the kernel does
/// not have needs no mask.
fn mask(root: i32, path: &CStr) -> sys::Result<()> {
    let target = match open_inside(root, path, INSIDE) {
        Err(Errno(libc::ENOENT | libc::ENOTDIR)) => return Ok(()),
        result => result?,
    };
    if sys::stat(target)?.is_folder() {
        let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let target_path = DescriptorPath::new(target);
        let data = Some(c"nr_blocks=1,nr_inodes=1");
        sys::mount(Some(c"tmpfs"), target_path.as_c_str(), Some(c"tmpfs"), flags, data)?;
        sys::close(target);
        return Ok(());
    }
    let null = sys::open(libc::AT_FDCWD, c"/dev/null", libc::O_PATH | libc::O_NOFOLLOW)?;
    // CVE-2025-31133: what covers a secret must be the null device itself.
    if !sys::stat(null)?.is_character_device(1, 3) {
        return Err(Errno(libc::ENODEV));
    }
    bind_descriptor(null, target)
}

/// Binds a path onto itself, read-only. A path that the kernel does not have needs none.
fn make_path_read_only(root: i32, path: &CStr) -> sys::Result<()> {
    let target = match open_inside(root, path, INSIDE) {
        Err(Errno(libc::ENOENT | libc::ENOTDIR)) => return Ok(()),
        result => result?,
    };
    let flags = libc::OPEN_TREE_CLONE | (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE) as u32;
    let mount = sys::open_tree(target, c"", flags)?;
    let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
    sys::set_mount_attributes(mount, c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, &attributes)?;
    sys::attach_mount(mount, target)?;
    sys::close(mount);
    sys::close(target);
    Ok(())
}

/// Writes a sysctl through a procfs that nobody else can see or cover.
fn write_sysctl(path: &CStr, value: &[u8]) -> sys::Result<()> {
    let context = sys::open_filesystem(c"proc")?;
    sys::create_filesystem(context)?;
    let private = sys::mount_filesystem(context, 0)?;
    let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV;
    let file = sys::open_resolved(private, path, libc::O_WRONLY, resolve)?;
    sys::write(file, value)?;
    for fd in [file, private, context] {
        sys::close(fd);
    }
    Ok(())
}

impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "/{}", text(&self.path))
    }
}

impl fmt::Display for FilesystemStep {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FilesystemStep::Propagation { name, .. } => write!(out, "make all mounts {name}"),
            FilesystemStep::OpenLayer { path, .. } => write!(out, "open layer {}", text(path)),
            FilesystemStep::MountOverlay { layers, upper, .. } => {
                write!(out, "mount overlay of {layers} lower layers, writing to {}", text(upper))
            }
            FilesystemStep::BindRoot { path } => write!(out, "bind root {}", text(path)),
            FilesystemStep::OpenRoot { path, .. } => write!(out, "open root {}", text(path)),
            FilesystemStep::MakeFolder { target, .. } => write!(out, "make folder {target}"),
            FilesystemStep::Mount { target, filesystem, .. } => write!(out, "mount {filesystem} on {target}"),
            FilesystemStep::BindMount { target, bind, .. } => write!(out, "bind {bind} on {target}"),
            FilesystemStep::MakeDevice { device, .. } => write!(out, "make device {device}"),
            FilesystemStep::MakeSymlink { folder, name, points_to, .. } => {
                write!(out, "link {folder}/{} to {}", text(name), text(points_to))
            }
            FilesystemStep::Mask { path, .. } => write!(out, "mask /{}", text(path)),
            FilesystemStep::ReadOnlyPath { path, .. } => write!(out, "make /{} read-only", text(path)),
            FilesystemStep::Sysctl { path, value } => write!(out, "set sysctl {} to {value}", text(path)),
        }
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} flags {:#x}", text(&self.kind), self.flags)?;
        self.data.as_ref().map_or(Ok(()), |data| write!(out, " options {}", text(data)))
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", text(&self.source))?;
        if self.recursive {
            write!(out, " recursively")?;
        }
        for (attributes, below) in [(&self.attributes, ""), (&self.recursive_attributes, " and below")] {
            if attributes.set | attributes.clear != 0 {
                write!(out, " set {:#x} clear {:#x}{below}", attributes.set, attributes.clear)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}:{} mode {:o}", self.target, self.major, self.minor, self.mode & 0o7777)?;
        write!(out, " owner {}:{}", self.user, self.group)
    }
}
