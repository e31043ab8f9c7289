//! The filesystem part of a plan: root, hidden paths, working folder and sysctls.
//!
//! Owns what the specification says about files and turns it into [`FilesystemStep`]s. Must not change what anybody else
//! can see: a bind mount is cloned here, but waits detached.

use super::{Compiler, PlanError, Root};
use crate::mounts;
use crate::oci::LinuxNamespaceType as Kind;
use crate::plan::StartError;
use crate::process::c_string;
use crate::step::{Covers, FilesystemStep, Step, Target};
use crate::sys::{self, MountAttributes};
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path};

/// The kernel's bound on overlay layers.
const LAYERS_MAXIMUM: usize = 500;
/// mount(2) takes one page of options, with its final NUL.
const MOUNT_DATA_MAXIMUM: usize = 4095;
/// What lxcfs and others emulate, and runc lets be mounted over: the only mount points on procfs.
const ON_PROC: [&str; 10] = [
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/loadavg",
    "proc/meminfo",
    "proc/slabinfo",
    "proc/stat",
    "proc/swaps",
    "proc/sys/crypto/fips_enabled",
    "proc/sys/kernel/ns_last_pid",
    "proc/uptime",
];
/// The sysctls of an ipc namespace, beside `fs.mqueue.*`.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

impl Compiler<'_> {
    pub(super) fn step(&mut self, step: FilesystemStep) {
        self.steps.push(Step::Filesystem(step));
    }

    /// Keeps a descriptor for the child, at a number that is none of the slots.
    pub(super) fn hold(&mut self, fd: OwnedFd) -> Result<i32, PlanError> {
        let fd = match fd.as_raw_fd() >= self.slots.next {
            true => fd,
            false => rustix::io::fcntl_dupfd_cloexec(&fd, self.slots.next.max(3))
                .map_err(|source| StartError::Caller { call: "fcntl(F_DUPFD_CLOEXEC)", source: source.into() })?,
        };
        let number = fd.as_raw_fd();
        self.slots.taken.push(number);
        self.held.push(fd);
        Ok(number)
    }

    /// How mounts of the host reach the container's root. Bind mounts have a say of their own.
    pub(super) fn propagation(&mut self) -> Result<(), PlanError> {
        let (flag, _) = self.root_propagation_word()?;
        self.step(match flag {
            libc::MS_SLAVE => FilesystemStep::Propagation { flags: libc::MS_SLAVE | libc::MS_REC, name: "slave" },
            _ => FilesystemStep::Propagation { flags: libc::MS_PRIVATE | libc::MS_REC, name: "private" },
        });
        Ok(())
    }

    /// Lets the root be shared or unbindable once it is the root: never with the host.
    pub(super) fn root_propagation(&mut self) -> Result<(), PlanError> {
        let (propagation, recursive) = self.root_propagation_word()?;
        if matches!(propagation, libc::MS_SHARED | libc::MS_UNBINDABLE) {
            let name = if propagation == libc::MS_SHARED { "shared" } else { "unbindable" };
            let attributes = MountAttributes { propagation, ..MountAttributes::default() };
            self.step(FilesystemStep::RootPropagation { attributes, recursive, name: name.into() });
        }
        Ok(())
    }

    fn root_propagation_word(&self) -> Result<(u64, bool), PlanError> {
        let word = self.linux().and_then(|linux| linux.rootfs_propagation().as_deref()).unwrap_or_default();
        let word = if word.is_empty() { "private" } else { word };
        let reason = "must be shared, slave, private or unbindable, or one of these with an r before";
        mounts::propagation(word).ok_or_else(|| PlanError::invalid("linux.rootfsPropagation", word, reason))
    }

    /// Adds the way to the root, and in a user namespace the step to its ids: before a root that is there and may be
    /// theirs alone, but after an overlay, whose upper folder may lie where only the caller's ids get.
    pub(super) fn root(&mut self, root: &Root) -> Result<(), PlanError> {
        let become_root = self.user_namespace.map(|_| Step::BecomeRoot);
        let (before, after) = match root {
            Root::Folder(_) => (become_root, None),
            Root::Overlay { .. } => (None, become_root),
        };
        self.steps.extend(before);
        let place = match root {
            Root::Folder(path) => self.bind_root(absolute("root", path)?),
            // The entrance has mounted it, with the rights that ids of another mapping take.
            Root::Overlay { upper, .. } if self.user_namespace.is_some() => {
                self.bind_root(absolute("root.upper", upper)?)
            }
            Root::Overlay { lower, upper, work } => {
                let mut layers = Vec::new();
                for (index, path) in lower.iter().enumerate() {
                    layers.push(self.open_layer(absolute(&format!("root.lower[{index}]"), path)?));
                }
                let place = absolute("root.upper", upper)?;
                let upper = self.open_layer(place.clone()).to_string();
                let work = self.open_layer(absolute("root.work", work)?).to_string();
                self.mount_overlay(&layers, &upper, &work, place.clone())?;
                place
            }
        };
        self.root = self.slots.take();
        self.step(FilesystemStep::OpenRoot { path: place, slot: self.root });
        self.steps.extend(after);
        Ok(())
    }

    /// Mounts the overlay for a container with a user namespace: a step of the entrance, before it gives its rights away.
    /// The layers show the namespace's ids; nothing on the disk is changed. What the container writes belongs to the
    /// host's ids that its own stand for, and so must `upper`.
    pub(super) fn overlay_with_ids(&mut self, root: &Root, user_namespace: i32) -> Result<(), PlanError> {
        let Root::Overlay { lower, upper, work } = root else { return Ok(()) };
        self.steps.push(Step::Unshare { kinds: libc::CLONE_NEWNS, name: "mount" });
        self.propagation()?;
        let ids = MountAttributes {
            set: libc::MOUNT_ATTR_IDMAP,
            user_namespace: user_namespace as u64,
            ..MountAttributes::default()
        };
        let mut layers = Vec::new();
        for (index, path) in lower.iter().enumerate() {
            layers.push(self.attach_layer(&format!("root.lower[{index}]"), path, ids)?);
        }
        // Both must be on one mount.
        let (Some(parent), Some(upper_name), Some(work_name)) = (upper.parent(), upper.file_name(), work.file_name())
        else {
            return Err(PlanError::invalid("root.upper", upper.display().to_string(), "must be a folder in a folder"));
        };
        if work.parent() != Some(parent) {
            let reason = "must be in the same folder as the upper one";
            return Err(PlanError::invalid("root.work", work.display().to_string(), reason));
        }
        let parent = self.attach_layer("root.upper", parent, MountAttributes::default())?;
        let name = |name: &std::ffi::OsStr| format!("{parent}/{}", name.display());
        self.mount_overlay(&layers, &name(upper_name), &name(work_name), absolute("root.upper", upper)?)
    }

    fn bind_root(&mut self, path: CString) -> CString {
        self.step(FilesystemStep::BindRoot { path: path.clone() });
        path
    }

    /// Clones the mount of a layer, which the child then attaches over the layer: overlayfs wants it attached.
    fn attach_layer(&mut self, at: &str, path: &Path, attributes: MountAttributes) -> Result<i32, PlanError> {
        let text = absolute(at, path)?;
        let failed = |errno: sys::Errno| PlanError::Path { at: at.into(), path: path.into(), source: errno.into() };
        let mount = sys::own(sys::open_tree(libc::AT_FDCWD, &text, libc::OPEN_TREE_CLONE).map_err(failed)?);
        if attributes != MountAttributes::default() {
            sys::set_mount_attributes(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH, &attributes).map_err(failed)?;
        }
        let mount = self.hold(mount)?;
        self.step(FilesystemStep::AttachLayer { mount, path: text, attributes });
        Ok(mount)
    }

    /// The last step to an overlay: the layers are named by the numbers of their descriptors.
    fn mount_overlay(&mut self, layers: &[i32], upper: &str, work: &str, place: CString) -> Result<(), PlanError> {
        let count = || format!("{} layers", layers.len());
        if layers.is_empty() || layers.len() > LAYERS_MAXIMUM {
            return Err(PlanError::invalid("root.lower", count(), "must be between 1 and 500"));
        }
        let layers: Vec<_> = layers.iter().map(ToString::to_string).collect();
        let data = format!("lowerdir={},upperdir={upper},workdir={work}", layers.join(":"));
        if data.len() > MOUNT_DATA_MAXIMUM {
            return Err(PlanError::invalid("root.lower", count(), "are more than mount(2) takes"));
        }
        let data = c_string("root", data)?;
        // The overlay covers its own upper folder, in the child's mount namespace only: a place that is always there and
        // that nobody else sees change.
        let target = c_string("root.upper", upper)?;
        self.step(FilesystemStep::MountOverlay { data, target, layers: layers.len(), upper: place });
        Ok(())
    }

    fn open_layer(&mut self, path: CString) -> i32 {
        let slot = self.slots.take();
        self.step(FilesystemStep::OpenLayer { path, slot });
        slot
    }

    /// Makes the working folder if the image has none.
    pub(super) fn working_folder(&mut self, path: &Path) -> Result<(), PlanError> {
        if path.is_absolute() && path != Path::new("/") {
            let target = target("process.cwd", path, false)?;
            self.step(FilesystemStep::MakeFolder { root: self.root, target });
        }
        Ok(())
    }

    pub(super) fn hidden_paths(&mut self) -> Result<(), PlanError> {
        let Some(linux) = self.spec.linux() else { return Ok(()) };
        // Read-only first: a mask inside a read-only path must stay on top.
        for (index, path) in linux.readonly_paths().iter().flatten().enumerate() {
            let path = target(&format!("linux.readonlyPaths[{index}]"), Path::new(path), false)?.path;
            self.step(FilesystemStep::ReadOnlyPath { root: self.root, path });
        }
        let masked = linux.masked_paths().as_deref().unwrap_or_default();
        if masked.is_empty() {
            return Ok(());
        }
        let covers = Covers { null: self.slots.take(), folder: self.slots.take() };
        self.step(FilesystemStep::PrepareMasks { covers });
        for (index, path) in masked.iter().enumerate() {
            let path = target(&format!("linux.maskedPaths[{index}]"), Path::new(path), false)?.path;
            self.step(FilesystemStep::Mask { root: self.root, covers, path });
        }
        Ok(())
    }

    pub(super) fn sysctls(&mut self) -> Result<(), PlanError> {
        let mut sysctls: Vec<_> = self.linux().and_then(|linux| linux.sysctl().clone()).into_iter().flatten().collect();
        if sysctls.is_empty() {
            return Ok(());
        }
        sysctls.sort();
        let proc = self.slots.take();
        self.step(FilesystemStep::OpenSysctls { slot: proc });
        for (name, value) in sysctls {
            let at = format!("linux.sysctl.{name}");
            let name = with_dots(&name);
            if let Some(reason) = self.sysctl_refused(&name)? {
                return Err(PlanError::invalid(at, value, reason));
            }
            // Back from dots to slashes; what was a slash between dots is a dot in a name, as in `eth0.1`.
            let path: String = name.chars().map(|letter| swap(letter, '.', '/')).collect();
            if !path.split('/').all(|part| !matches!(part, "" | "." | "..")) {
                return Err(PlanError::invalid(at, value, "is not the name of a sysctl"));
            }
            self.step(FilesystemStep::Sysctl { proc, path: c_string(&at, format!("sys/{path}"))?, value });
        }
        Ok(())
    }

    /// Allows only what belongs to a namespace of the container's own.
    fn sysctl_refused(&self, name: &str) -> Result<Option<&'static str>, PlanError> {
        let (kind, reason) = if name.starts_with("net.") {
            (Kind::Network, "needs a network namespace that is not the host's")
        } else if IPC_SYSCTLS.contains(&name) || name.starts_with("fs.mqueue.") {
            (Kind::Ipc, "needs an ipc namespace that is not the host's")
        } else if name == "kernel.domainname" {
            (Kind::Uts, "needs a uts namespace that is not the host's")
        } else if name == "kernel.hostname" {
            return Ok(Some("is what the field \"hostname\" is for"));
        } else if name.starts_with("user.") {
            (Kind::User, "needs a user namespace that is not the host's")
        } else {
            return Ok(Some("does not belong to a namespace of this container"));
        };
        Ok((!self.has_own(kind)?).then_some(reason))
    }
}

fn absolute(at: &str, path: &Path) -> Result<CString, PlanError> {
    if !path.is_absolute() {
        return Err(PlanError::invalid(at, path.display().to_string(), "must be an absolute path"));
    }
    c_string(at, path.as_os_str().as_encoded_bytes())
}

/// Gives a sysctl's name dots for separators. A name whose first separator is a slash has slashes, and its dots are
/// letters; see sysctl.d(5).
fn with_dots(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes()[first] == b'/' => name.chars().map(|letter| swap(letter, '/', '.')).collect(),
        _ => name.into(),
    }
}

fn swap(letter: char, one: char, other: char) -> char {
    match letter {
        letter if letter == one => other,
        letter if letter == other => one,
        letter => letter,
    }
}

/// Prepares a place in the root, never the root itself. A relative path counts from the root (config.md, "Mounts").
pub(super) fn target(at: &str, path: &Path, file: bool) -> Result<Target, PlanError> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => drop(parts.pop()),
            Component::Normal(name) => parts.push(name.as_encoded_bytes()),
        }
    }
    if parts.is_empty() {
        return Err(PlanError::invalid(at, path.display().to_string(), "must not be the root itself"));
    }
    let path = parts.join(&b'/');
    let strict = matches!(parts[0], b"proc" | b"sys" | b"dev");
    let on_proc = ON_PROC.iter().any(|allowed| allowed.as_bytes() == path);
    Ok(Target { path: c_string(at, path)?, file, strict, on_proc })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_target_never_climbs(path in "[/.a]{0,24}") {
            if let Ok(target) = target("test", Path::new(&path), false) {
                let path = target.path.to_str().unwrap();
                prop_assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")));
            }
        }
    }

    #[test]
    fn sysctl_names_have_dots_or_slashes() {
        assert_eq!(with_dots("net/ipv4/conf/eno2.100/rp_filter"), "net.ipv4.conf.eno2/100.rp_filter");
        assert_eq!(with_dots("net.ipv4.conf.eno2/100.rp_filter"), "net.ipv4.conf.eno2/100.rp_filter");
        assert_eq!(with_dots("plain"), "plain");
    }
}
