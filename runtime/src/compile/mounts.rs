//! The mounts of a plan: filesystems, bind mounts and the container's view of its cgroup.
//!
//! Owns `mounts` of the specification (config.md, "Mounts"). Must not attach anything: what is bound is opened here, and
//! cloned by the caller with the caller's rights, when the child comes to it. The kernel lists mounts in the order in
//! which they were made, so none may be made ahead.

use super::filesystem::target;
use super::{Compiler, PlanError};
use crate::cgroup::host_cgroups;
use crate::mounts::Options;
use crate::oci;
use crate::process::c_string;
use crate::step::{Bind, Filesystem, FilesystemStep, PROC_MAGIC};
use crate::sys::{self, Errno, MountAttributes};
use crate::user_namespace::new_user_namespace;
use oci::LinuxNamespaceType as Kind;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

/// fsconfig(2) takes a value of at most 255 bytes.
const VALUE_MAXIMUM: usize = 255;
/// Filesystems that have no files of their own to label.
const WITHOUT_LABEL: [&str; 5] = ["proc", "sysfs", "mqueue", "cgroup", "cgroup2"];

impl Compiler<'_> {
    pub(super) fn mounts(&mut self) -> Result<(), PlanError> {
        let mounts = self.spec.mounts().as_deref().unwrap_or_default();
        for (index, mount) in mounts.iter().enumerate() {
            self.mount(&format!("mounts[{index}]"), mount)?;
        }
        Ok(())
    }

    /// The last of all steps on mounts: those that had to be written to become read-only.
    pub(super) fn make_mounts_read_only(&mut self) {
        for (slot, path) in std::mem::take(&mut self.read_only_later) {
            self.step(FilesystemStep::MakeMountReadOnly { slot, path });
        }
    }

    fn mount(&mut self, at: &str, mount: &oci::Mount) -> Result<(), PlanError> {
        let options = Options::parse(mount.options().iter().flatten().map(String::as_str));
        let kind = mount.typ().as_deref().unwrap_or("none");
        let destination = mount.destination();
        if options.bind.is_some() || kind == "bind" {
            return self.bind(at, mount, &options);
        }
        if options.idmap.is_some() || mount.uid_mappings().is_some() {
            return Err(PlanError::invalid(at, kind, "cannot have id mappings; only bind mounts can"));
        }
        // Without a namespace of its own, what a user namespace may not mount is taken from the host as it is.
        let host = match kind {
            "proc" => (!self.lists(Kind::Pid)).then_some("/proc"),
            "sysfs" => (!self.lists(Kind::Network)).then_some("/sys"),
            "cgroup" | "cgroup2" => (!self.lists(Kind::Cgroup)).then_some("/sys/fs/cgroup"),
            _ => None,
        };
        if let Some(source) = host.filter(|_| self.lists(Kind::User)) {
            let mut options = options;
            options.filesystem.clear();
            options.bind = Some(true);
            if kind != "proc" {
                options.recursive_attributes.set |= libc::MOUNT_ATTR_RDONLY;
            }
            return self.bind_source(at, Path::new(source), destination, &options, None);
        }
        if kind == "cgroup" || kind == "cgroup2" {
            return self.cgroup_mount(at, destination, options);
        }
        let source = mount.source().as_ref().map_or_else(|| kind.into(), |source| source.display().to_string());
        self.filesystem(at, destination, kind, &source, options)
    }

    fn filesystem(
        &mut self,
        at: &str,
        destination: &Path,
        kind: &str,
        source: &str,
        mut options: Options,
    ) -> Result<(), PlanError> {
        let target = target(&format!("{at}.destination"), destination, false)?;
        if *target.path == *c"proc" && kind != "proc" {
            return Err(PlanError::invalid(format!("{at}.type"), kind, "must be proc: others trust what /proc says"));
        }
        let takes_mode = kind == "tmpfs" && !options.filesystem.iter().any(|option| option.starts_with("mode="));
        // Devices and mount points are still to be made in these.
        let later = options.read_only() && !options.remount && (kind == "tmpfs" || *target.path == *c"dev");
        let mut slot = None;
        if later {
            options.attributes.set &= !libc::MOUNT_ATTR_RDONLY;
            slot = Some(self.slots.take());
            self.read_only_later.extend(slot.map(|slot| (slot, target.path.clone())));
        } else if options.read_only() {
            options.filesystem.insert(0, "ro".into());
        }
        if options.copies_up && kind != "tmpfs" {
            return Err(PlanError::invalid(format!("{at}.options"), "tmpcopyup", "is for tmpfs only"));
        }
        if let Some(label) = self.mount_label()?.filter(|_| !WITHOUT_LABEL.contains(&kind)) {
            options.filesystem.push(format!("context={label}"));
        }
        // A new filesystem has nothing below it: recursive words mean the same as the others.
        let MountAttributes { set, clear, .. } = options.recursive_attributes;
        options.attributes.set = options.attributes.set & !clear | set;
        options.attributes.propagation = options.propagation.map_or(0, |(flag, _)| flag);
        let filesystem = Filesystem {
            kind: c_string(format!("{at}.type"), kind)?,
            source: value(&format!("{at}.source"), source)?,
            options: keys(&format!("{at}.options"), &options.filesystem)?,
            attributes: options.attributes,
            takes_mode: takes_mode && !options.remount,
            copies_up: options.copies_up,
            slot,
        };
        let root = self.root;
        self.step(match options.remount {
            true => FilesystemStep::Remount { root, target, filesystem },
            false => FilesystemStep::Mount { root, target, filesystem },
        });
        Ok(())
    }

    fn bind(&mut self, at: &str, mount: &oci::Mount, options: &Options) -> Result<(), PlanError> {
        let destination = mount.destination();
        // A bind mount shows a filesystem that is mounted already: its options are set elsewhere.
        if !options.filesystem.is_empty() {
            log::warn!("{at}.options: {:?} mean nothing to a bind mount", options.filesystem);
        }
        if options.remount {
            let target = target(&format!("{at}.destination"), destination, false)?;
            let mut attributes = options.attributes;
            attributes.propagation = options.propagation.map_or(0, |(flag, _)| flag);
            self.step(FilesystemStep::ChangeMount { root: self.root, target, attributes });
            return Ok(());
        }
        let Some(source) = mount.source().as_ref().filter(|source| !source.as_os_str().is_empty()) else {
            return Err(PlanError::invalid(format!("{at}.source"), "", "must name what is bound"));
        };
        let ids = self.mount_ids(at, mount, options)?;
        self.bind_source(at, source, destination, options, ids)
    }

    /// The user namespace whose mapping the mount gets, and whether what is below gets it too.
    fn mount_ids(&mut self, at: &str, mount: &oci::Mount, options: &Options) -> Result<Option<(i32, bool)>, PlanError> {
        let users = mount.uid_mappings().as_deref().unwrap_or_default();
        let groups = mount.gid_mappings().as_deref().unwrap_or_default();
        if !users.is_empty() && !groups.is_empty() {
            let namespace = new_user_namespace(users, groups)?;
            return Ok(Some((self.hold(namespace)?, options.idmap == Some(true))));
        }
        match (options.idmap, self.user_namespace) {
            (None, _) => Ok(None),
            (Some(recursive), Some(namespace)) => Ok(Some((namespace, recursive))),
            (Some(_), None) => {
                let reason = "needs uidMappings and gidMappings, here or of a user namespace";
                Err(PlanError::invalid(format!("{at}.options"), "idmap", reason))
            }
        }
    }

    /// Opens the source, a path of the host; a relative one counts from the caller's working folder.
    fn bind_source(
        &mut self,
        at: &str,
        source: &Path,
        destination: &Path,
        options: &Options,
        ids: Option<(i32, bool)>,
    ) -> Result<(), PlanError> {
        let at_source = format!("{at}.source");
        let failed =
            |errno: Errno| PlanError::Path { at: at_source.clone(), path: source.into(), source: errno.into() };
        let text = c_string(&at_source, source.as_os_str().as_encoded_bytes())?;
        // Not open(2), which would not mount what is mounted on demand.
        let opened = sys::own(sys::open_tree(libc::AT_FDCWD, &text, 0).map_err(failed)?);
        let is_file = !sys::stat(opened.as_raw_fd()).map_err(failed)?.is_folder();
        let target = target(&format!("{at}.destination"), destination, is_file)?;
        if *target.path == *c"proc" && sys::filesystem_kind(opened.as_raw_fd()).map_err(failed)? != PROC_MAGIC {
            let value = source.display().to_string();
            return Err(PlanError::invalid(at_source, value, "must be a procfs: others trust what /proc says"));
        }
        self.devices &= *target.path != *c"dev";
        let mut own = options.attributes;
        let mut below = options.recursive_attributes;
        match options.propagation.unwrap_or((libc::MS_PRIVATE, true)) {
            (flag, true) => below.propagation = flag,
            (flag, false) => own.propagation = flag,
        }
        if let Some((user_namespace, recursive)) = ids {
            let attributes = if recursive { &mut below } else { &mut own };
            attributes.set |= libc::MOUNT_ATTR_IDMAP;
            attributes.user_namespace = user_namespace as u64;
        }
        let recursive = options.bind == Some(true);
        let opened = self.hold(opened)?;
        let bind = Bind { source: opened, recursive, own, below, at: at_source, path: source.into() };
        self.step(FilesystemStep::BindMount { root: self.root, target, bind });
        Ok(())
    }

    /// The container's view of its cgroup: the one hierarchy of version 2, or each of version 1. It is read-only without
    /// a cgroup namespace, where it would show the host's (CVE-2023-25809).
    fn cgroup_mount(&mut self, at: &str, destination: &Path, mut options: Options) -> Result<(), PlanError> {
        let host = self.host.take().map_or_else(host_cgroups, Ok)?;
        options.attributes.set |= libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        let own_namespace = self.lists(Kind::Cgroup);
        if !own_namespace {
            options.attributes.set |= libc::MOUNT_ATTR_RDONLY;
        }
        let with = |filesystem: &[&str]| Options {
            attributes: options.attributes,
            propagation: options.propagation,
            filesystem: filesystem.iter().map(ToString::to_string).collect(),
            ..Options::default()
        };
        let version_one: Vec<String> = host.version_one().collect();
        if version_one.is_empty() {
            return self.filesystem(at, destination, "cgroup2", "cgroup", with(&[]));
        }
        self.filesystem(at, destination, "tmpfs", "tmpfs", with(&["mode=755", "size=64k"]))?;
        let parent = self.slots.take();
        let target = target(&format!("{at}.destination"), destination, false)?;
        self.step(FilesystemStep::OpenFolder { root: self.root, target, slot: parent });
        for controllers in version_one {
            let folder = controllers.strip_prefix("name=").unwrap_or(&controllers).to_string();
            let words: Vec<&str> = controllers.split(',').collect();
            // Without a namespace the hierarchy would be the host's whole one: only its own part is shown.
            match self.cgroup_folders.get(&controllers).filter(|_| !own_namespace).cloned() {
                Some(own) => {
                    let options = Options { bind: Some(false), ..with(&[]) };
                    self.bind_source(at, &own, &destination.join(&folder), &options, None)?;
                }
                None => self.filesystem(at, &destination.join(&folder), "cgroup", "cgroup", with(&words))?,
            }
            // Programs look for `cpu`, wherever it is mounted.
            for word in words.iter().filter(|_| words.len() > 1) {
                let path = destination.join(word).display().to_string();
                let (name, points_to) = (c_string(at, *word)?, c_string(at, folder.as_str())?);
                self.step(FilesystemStep::MakeSymlink { folder: parent, path, name, points_to });
            }
        }
        Ok(())
    }

    /// The SELinux label for the files of new filesystems.
    fn mount_label(&self) -> Result<Option<String>, PlanError> {
        let label = self.linux().and_then(|linux| linux.mount_label().clone()).filter(|label| !label.is_empty());
        match label {
            Some(label) if !Path::new("/sys/fs/selinux/enforce").exists() => {
                Err(PlanError::invalid("linux.mountLabel", label, "needs SELinux, which this kernel does not run"))
            }
            label => Ok(label),
        }
    }
}

impl Bind {
    /// Clones the source with all its attributes: read-only and the like hold before anybody can see the mount.
    pub(crate) fn clone_source(&self) -> Result<OwnedFd, PlanError> {
        let path = || (self.at.clone(), self.path.clone());
        let failed = |errno: Errno| {
            let (at, path) = path();
            PlanError::Path { at, path, source: errno.into() }
        };
        let recursive = if self.recursive { libc::AT_RECURSIVE as u32 } else { 0 };
        let flags = libc::OPEN_TREE_CLONE | libc::AT_EMPTY_PATH as u32 | recursive;
        let mount = sys::own(sys::open_tree(self.source, c"", flags).map_err(failed)?);
        for (attributes, flags) in [(self.own, 0), (self.below, libc::AT_RECURSIVE)] {
            if attributes != MountAttributes::default() {
                let set = sys::set_mount_attributes(mount.as_raw_fd(), c"", libc::AT_EMPTY_PATH | flags, &attributes);
                set.map_err(|errno| match attributes.set & libc::MOUNT_ATTR_IDMAP {
                    0 => failed(errno),
                    _ => {
                        let (at, path) = path();
                        PlanError::Ids { at, path, source: errno.into() }
                    }
                })?;
            }
        }
        Ok(mount)
    }
}

/// Cuts options into what fsconfig(2) takes.
fn keys(at: &str, options: &[String]) -> Result<Vec<(CString, Option<CString>)>, PlanError> {
    let cut = |option: &String| match option.split_once('=') {
        Some((key, text)) => Ok((c_string(at, key)?, Some(value(at, text)?))),
        None => Ok((c_string(at, option.as_str())?, None)),
    };
    options.iter().filter(|option| !option.is_empty()).map(cut).collect()
}

fn value(at: &str, text: &str) -> Result<CString, PlanError> {
    if text.len() > VALUE_MAXIMUM {
        return Err(PlanError::invalid(at, text, "is longer than the 255 bytes that fsconfig(2) takes"));
    }
    c_string(at, text)
}
