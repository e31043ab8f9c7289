//! The steps that give a container its filesystem: root, mounts, devices, masks and sysctls.
//!
//! Owns the list of these steps, and the root. Must not allocate, lock or log while running, and must not leave the
//! root: whatever the image says, a path is resolved inside it.

use super::device::{Device, make_link};
use super::hide::{Covers, make_path_read_only};
use super::mount::{Bind, Filesystem};
use super::target::{Target, move_to_slot};
use super::text;
use crate::sys::{self, Errno, MountAttributes};
use std::ffi::{CStr, CString};
use std::fmt;

/// One prepared step on the filesystem.
#[derive(Debug)]
pub(crate) enum FilesystemStep {
    Propagation {
        flags: u64,
        name: &'static str,
    },
    OpenLayer {
        path: CString,
        slot: i32,
    },
    /// Attaches a layer's clone, which shows other ids, over the layer.
    AttachLayer {
        mount: i32,
        path: CString,
        attributes: MountAttributes,
    },
    MountOverlay {
        data: CString,
        target: CString,
        layers: usize,
        upper: CString,
    },
    BindRoot {
        path: CString,
    },
    OpenRoot {
        path: CString,
        slot: i32,
    },
    MakeFolder {
        root: i32,
        target: Target,
    },
    Mount {
        root: i32,
        target: Target,
        filesystem: Filesystem,
    },
    Remount {
        root: i32,
        target: Target,
        filesystem: Filesystem,
    },
    BindMount {
        root: i32,
        target: Target,
        bind: Bind,
    },
    /// Gives other attributes to a mount that is there.
    ChangeMount {
        root: i32,
        target: Target,
        attributes: MountAttributes,
    },
    /// Opens a folder, in which devices and links are then made.
    OpenFolder {
        root: i32,
        target: Target,
        slot: i32,
    },
    MakeDevice {
        folder: i32,
        device: Device,
    },
    MakeSymlink {
        folder: i32,
        path: String,
        name: CString,
        points_to: CString,
    },
    /// A mount that had to be written to is made read-only at last, by the descriptor that made it.
    MakeMountReadOnly {
        slot: i32,
        path: CString,
    },
    PrepareMasks {
        covers: Covers,
    },
    Mask {
        root: i32,
        covers: Covers,
        path: CString,
    },
    ReadOnlyPath {
        root: i32,
        path: CString,
    },
    /// Mounts a procfs that nobody else can see or cover.
    OpenSysctls {
        slot: i32,
    },
    Sysctl {
        proc: i32,
        path: CString,
        value: String,
    },
    /// How the root's mounts spread, once it is the root.
    RootPropagation {
        attributes: MountAttributes,
        recursive: bool,
        name: String,
    },
}

impl FilesystemStep {
    /// Carries the step out. Runs in the child: system calls only.
    pub(crate) fn run(&self) -> sys::Result<()> {
        match self {
            FilesystemStep::Propagation { flags, .. } => sys::mount(None, c"/", None, *flags, None),
            FilesystemStep::OpenLayer { path, slot } => open_at_slot(path, *slot),
            FilesystemStep::AttachLayer { mount, path, .. } => {
                let place = sys::open(libc::AT_FDCWD, path, libc::O_PATH | libc::O_DIRECTORY)?;
                sys::attach_mount(*mount, place)?;
                sys::close(place);
                Ok(())
            }
            FilesystemStep::MountOverlay { data, target, .. } => mount_overlay(data, target),
            FilesystemStep::BindRoot { path } => bind_root(path),
            FilesystemStep::OpenRoot { path, slot } => open_at_slot(path, *slot),
            FilesystemStep::MakeFolder { root, target } => target.open(*root).map(sys::close),
            FilesystemStep::Mount { root, target, filesystem } => filesystem.mount(*root, target),
            FilesystemStep::Remount { root, target, filesystem } => filesystem.remount(*root, target),
            // The walk does this with the caller's help.
            FilesystemStep::BindMount { .. } => Err(Errno(libc::ENOSYS)),
            FilesystemStep::ChangeMount { root, target, attributes } => {
                let place = target.open_for_mount(*root)?;
                sys::set_mount_attributes(place, c"", libc::AT_EMPTY_PATH, attributes)?;
                sys::close(place);
                Ok(())
            }
            FilesystemStep::OpenFolder { root, target, slot } => move_to_slot(target.open(*root)?, *slot),
            FilesystemStep::MakeDevice { folder, device } => device.make(*folder),
            FilesystemStep::MakeSymlink { folder, name, points_to, .. } => make_link(*folder, name, points_to),
            FilesystemStep::MakeMountReadOnly { slot, .. } => {
                let attributes = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
                sys::set_mount_attributes(*slot, c"", libc::AT_EMPTY_PATH, &attributes)
            }
            FilesystemStep::PrepareMasks { covers } => covers.prepare(),
            FilesystemStep::Mask { root, covers, path } => covers.mask(*root, path),
            FilesystemStep::ReadOnlyPath { root, path } => make_path_read_only(*root, path),
            FilesystemStep::OpenSysctls { slot } => open_private_proc(*slot),
            FilesystemStep::Sysctl { proc, path, value } => write_sysctl(*proc, path, value.as_bytes()),
            FilesystemStep::RootPropagation { attributes, recursive, .. } => {
                let flags = if *recursive { libc::AT_RECURSIVE } else { 0 };
                sys::set_mount_attributes(libc::AT_FDCWD, c"/", flags, attributes)
            }
        }
    }
}

/// Opens a path of the host at a descriptor number that the plan has chosen.
fn open_at_slot(path: &CStr, slot: i32) -> sys::Result<()> {
    move_to_slot(sys::open(libc::AT_FDCWD, path, libc::O_PATH | libc::O_DIRECTORY)?, slot)
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
    let target = sys::open(libc::AT_FDCWD, path, libc::O_PATH | libc::O_DIRECTORY)?;
    sys::attach_mount(mount, target)?;
    sys::close(target);
    sys::close(mount);
    Ok(())
}

fn open_private_proc(slot: i32) -> sys::Result<()> {
    let context = sys::open_filesystem(c"proc")?;
    sys::create_filesystem(context)?;
    let private = sys::mount_filesystem(context, 0)?;
    sys::close(context);
    move_to_slot(private, slot)
}

fn write_sysctl(proc: i32, path: &CStr, value: &[u8]) -> sys::Result<()> {
    let resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_XDEV;
    let file = sys::open_resolved(proc, path, libc::O_WRONLY, resolve)?;
    sys::write(file, value)?;
    sys::close(file);
    Ok(())
}

/// Prints one step without any descriptor number, so that equal plans print equally.
impl fmt::Display for FilesystemStep {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FilesystemStep::Propagation { name, .. } => write!(out, "make all mounts {name}"),
            FilesystemStep::OpenLayer { path, .. } => write!(out, "open layer {}", text(path)),
            FilesystemStep::AttachLayer { path, attributes, .. } => {
                write!(out, "attach layer {}{attributes}", text(path))
            }
            FilesystemStep::MountOverlay { layers, upper, .. } => {
                write!(out, "mount overlay of {layers} lower layers, writing to {}", text(upper))
            }
            FilesystemStep::BindRoot { path } => write!(out, "bind root {}", text(path)),
            FilesystemStep::OpenRoot { path, .. } => write!(out, "open root {}", text(path)),
            FilesystemStep::MakeFolder { target, .. } => write!(out, "make folder {target}"),
            FilesystemStep::Mount { target, filesystem, .. } => write!(out, "mount {filesystem} on {target}"),
            FilesystemStep::Remount { target, filesystem, .. } => write!(out, "remount {filesystem} on {target}"),
            FilesystemStep::BindMount { target, bind, .. } => write!(out, "bind {bind} on {target}"),
            FilesystemStep::ChangeMount { target, attributes, .. } => {
                write!(out, "change mount{attributes} on {target}")
            }
            FilesystemStep::OpenFolder { target, .. } => write!(out, "open folder {target}"),
            FilesystemStep::MakeDevice { device, .. } => write!(out, "make device {device}"),
            FilesystemStep::MakeSymlink { path, points_to, .. } => write!(out, "link {path} to {}", text(points_to)),
            FilesystemStep::MakeMountReadOnly { path, .. } => write!(out, "make mount /{} read-only", text(path)),
            FilesystemStep::PrepareMasks { .. } => write!(out, "open /dev/null for masks"),
            FilesystemStep::Mask { path, .. } => write!(out, "mask /{}", text(path)),
            FilesystemStep::ReadOnlyPath { path, .. } => write!(out, "make /{} read-only", text(path)),
            FilesystemStep::OpenSysctls { .. } => write!(out, "open a procfs for sysctls"),
            FilesystemStep::Sysctl { path, value, .. } => write!(out, "set sysctl {} to {value}", text(path)),
            FilesystemStep::RootPropagation { name, .. } => write!(out, "make the root {name}"),
        }
    }
}

/// What is set, what is cleared, and how the mount spreads; nothing if nothing is said.
impl fmt::Display for MountAttributes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, bits) in [("set", self.set), ("clear", self.clear), ("propagation", self.propagation)] {
            if bits != 0 {
                write!(out, " {name} {bits:#x}")?;
            }
        }
        if self.user_namespace == 0 { Ok(()) } else { write!(out, " with other ids") }
    }
}
