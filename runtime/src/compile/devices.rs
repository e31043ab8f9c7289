//! The devices of a plan.
//!
//! Owns the default devices and links of the specification (config-linux.md, "Default Devices") and `linux.devices`. Must
//! not put anything into a `/dev` that the user has bound.

use super::filesystem::target;
use super::{Compiler, PlanError};
use crate::oci;
use crate::process::c_string;
use crate::step::{Device, FilesystemStep};
use crate::sys::{self, MountAttributes};
use std::ffi::{CStr, OsStr};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Path, major and minor number.
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// Path and what it points to.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// Where a device goes and what it is.
struct Node<'a> {
    path: &'a Path,
    mode: u32,
    numbers: (u32, u32),
    owner: (u32, u32),
}

impl Compiler<'_> {
    pub(super) fn devices(&mut self) -> Result<(), PlanError> {
        if !self.devices {
            return Ok(());
        }
        let folder = self.slots.take();
        let target = target("/dev", Path::new("/dev"), false)?;
        self.step(FilesystemStep::OpenFolder { root: self.root, target, slot: folder });
        let asked = self.linux().and_then(|linux| linux.devices().clone()).unwrap_or_default();
        for (path, major, minor) in DEFAULTS {
            let path = Path::new(path);
            // The specification may ask for the same one with another mode or owner.
            if !asked.iter().any(|device| device.path() == path) {
                let node = Node { path, mode: libc::S_IFCHR | 0o666, numbers: (major, minor), owner: (0, 0) };
                self.device("linux.devices", folder, &node)?;
            }
        }
        for (index, device) in asked.iter().enumerate() {
            self.asked_device(&format!("linux.devices[{index}]"), folder, device)?;
        }
        for (path, points_to) in LINKS {
            let name = c_string("/dev", path.trim_start_matches("/dev/"))?;
            let points_to = c_string("/dev", points_to)?;
            self.step(FilesystemStep::MakeSymlink { folder, path: path.into(), name, points_to });
        }
        Ok(())
    }

    fn asked_device(&mut self, at: &str, folder: i32, device: &oci::LinuxDevice) -> Result<(), PlanError> {
        // This one is the devpts's own.
        if device.path() == Path::new("/dev/ptmx") {
            return Ok(());
        }
        let kind = match device.typ() {
            oci::LinuxDeviceType::C | oci::LinuxDeviceType::U => libc::S_IFCHR,
            oci::LinuxDeviceType::B => libc::S_IFBLK,
            oci::LinuxDeviceType::P => libc::S_IFIFO,
            oci::LinuxDeviceType::A => {
                return Err(PlanError::invalid(format!("{at}.type"), "a", "is not the type of one device"));
            }
        };
        let number = |name: &str, value: i64| {
            let number = if kind == libc::S_IFIFO { Ok(0) } else { u32::try_from(value) };
            number.map_err(|_| PlanError::invalid(format!("{at}.{name}"), value.to_string(), "is not a device number"))
        };
        let node = Node {
            path: device.path(),
            mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
            numbers: (number("major", device.major())?, number("minor", device.minor())?),
            owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
        };
        self.device(&format!("{at}.path"), folder, &node)
    }

    fn device(&mut self, at: &str, dev: i32, node: &Node<'_>) -> Result<(), PlanError> {
        let path = target(at, node.path, true)?.path;
        let (parent, name) = match path.to_bytes().iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&path.to_bytes()[..slash], &path.to_bytes()[slash + 1..]),
            None => (&b""[..], path.to_bytes()),
        };
        let folder = match parent {
            b"dev" => dev,
            b"" => self.root,
            parent => {
                let slot = *self.device_folder.get_or_insert_with(|| self.slots.take());
                let target = target(at, Path::new(OsStr::from_bytes(parent)), false)?;
                self.step(FilesystemStep::OpenFolder { root: self.root, target, slot });
                slot
            }
        };
        let name = c_string(at, name)?;
        let mount = match self.user_namespace {
            Some(namespace) => self.made_ahead(at, &name, node, namespace)?,
            None => None,
        };
        let device = Device {
            name,
            mount,
            path: c_string(at, [b"/", path.to_bytes()].concat())?,
            mode: node.mode,
            major: node.numbers.0,
            minor: node.numbers.1,
            user: node.owner.0,
            group: node.owner.1,
        };
        self.step(FilesystemStep::MakeDevice { folder, device });
        Ok(())
    }

    /// Makes a node for a container that may not make it, on a filesystem of its own that nobody sees, and shows it with
    /// the ids of the user namespace. Before Linux 6.15 nothing could be cloned from there: the child then binds the
    /// host's node.
    fn made_ahead(
        &mut self,
        at: &str,
        name: &CStr,
        node: &Node<'_>,
        user_namespace: i32,
    ) -> Result<Option<i32>, PlanError> {
        let failed =
            |errno: sys::Errno| PlanError::Path { at: at.into(), path: node.path.into(), source: errno.into() };
        let context = sys::own(sys::open_filesystem(c"tmpfs").map_err(failed)?);
        sys::create_filesystem(context.as_raw_fd()).map_err(failed)?;
        let folder = sys::own(sys::mount_filesystem(context.as_raw_fd(), 0).map_err(failed)?);
        let folder = folder.as_raw_fd();
        match sys::make_node(folder, name, node.mode, libc::makedev(node.numbers.0, node.numbers.1)) {
            // The caller is in a user namespace itself.
            Err(sys::Errno(libc::EPERM)) => return Ok(None),
            result => result.map_err(failed)?,
        }
        // The caller's umask has a say in a new node's mode.
        sys::change_mode_at(folder, name, node.mode & 0o7777).map_err(failed)?;
        sys::change_owner(folder, name, node.owner.0, node.owner.1).map_err(failed)?;
        let mount = match sys::open_tree(folder, name, libc::OPEN_TREE_CLONE) {
            Err(sys::Errno(libc::EINVAL)) => return Ok(None),
            mount => sys::own(mount.map_err(failed)?),
        };
        let attributes = MountAttributes {
            set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_IDMAP,
            user_namespace: user_namespace as u64,
            ..MountAttributes::default()
        };
        sys::set_mount_attributes(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH, &attributes).map_err(failed)?;
        self.hold(mount).map(Some)
    }
}
