//! The filesystem part of a plan: root, mounts, devices, hidden paths and sysctls.
//!
//! Owns what the specification says about files and turns it into [`FilesystemStep`]s. Must not change the system.

use super::{Compiler, PlanError, Root};
use crate::cgroup::host_cgroups;
use crate::mounts::Options;
use crate::oci;
use crate::process::c_string;
use crate::step::{Bind, Device, Filesystem, FilesystemStep, Step, Target};
use oci::LinuxNamespaceType as Kind;
use std::ffi::CString;
use std::path::{Path, PathBuf};

/// The kernel's bound on overlay layers.
const LAYERS_MAXIMUM: usize = 500;
/// mount(2) takes one page of options, with its final NUL.
const MOUNT_DATA_MAXIMUM: usize = 4095;

impl Compiler<'_> {
    fn step(&mut self, step: FilesystemStep) {
        self.steps.push(Step::Filesystem(step));
    }

    /// How mounts of the host reach the container.
    pub(super) fn propagation(&mut self) -> Result<(), PlanError> {
        let propagation = self.linux().and_then(|linux| linux.rootfs_propagation().clone());
        let propagation = propagation.as_deref().unwrap_or("private");
        if !matches!(propagation, "" | "private" | "rprivate" | "slave" | "rslave") {
            return Err(PlanError::invalid("linux.rootfsPropagation", propagation, "must be private or slave"));
        }
        let is_slave = |option: &String| matches!(option.as_str(), "slave" | "rslave");
        let options = self.spec.mounts().iter().flatten().flat_map(|mount| mount.options().iter().flatten());
        let slave = propagation.ends_with("slave") || options.into_iter().any(is_slave);
        self.step(if slave {
            FilesystemStep::Propagation { flags: libc::MS_SLAVE | libc::MS_REC, name: "slave" }
        } else {
            FilesystemStep::Propagation { flags: libc::MS_PRIVATE | libc::MS_REC, name: "private" }
        });
        Ok(())
    }

    pub(super) fn root(&mut self, root: &Root) -> Result<(), PlanError> {
        let path_string = |at: &str, path: &Path| {
            if !path.is_absolute() {
                return Err(PlanError::invalid(at, path.display().to_string(), "must be an absolute path"));
            }
            c_string(at, path.as_os_str().as_encoded_bytes())
        };
        let place = match root {
            Root::Folder(path) => {
                let path = path_string("root", path)?;
                self.step(FilesystemStep::BindRoot { path: path.clone() });
                path
            }
            Root::Overlay { lower, upper, work } => {
                if lower.is_empty() || lower.len() > LAYERS_MAXIMUM {
                    let value = format!("{} layers", lower.len());
                    return Err(PlanError::invalid("root.lower", value, "must be between 1 and 500"));
                }
                let mut data = String::from("lowerdir=");
                for (index, path) in lower.iter().enumerate() {
                    let slot = self.open_layer(path_string(&format!("root.lower[{index}]"), path)?);
                    data.push_str(&format!("{}{slot}", if index == 0 { "" } else { ":" }));
                }
                let place = path_string("root.upper", upper)?;
                let upper = self.open_layer(place.clone());
                let work = self.open_layer(path_string("root.work", work)?);
                data.push_str(&format!(",upperdir={upper},workdir={work}"));
                if data.len() > MOUNT_DATA_MAXIMUM {
                    let value = format!("{} layers", lower.len());
                    return Err(PlanError::invalid("root.lower", value, "are more than mount(2) takes"));
                }
                let data = c_string("root", data)?;
                // The overlay covers its own upper folder, in the child's mount namespace only: a place that is always
                // there and that nobody else sees change.
                let target = c_string("root.upper", upper.to_string())?;
                self.step(FilesystemStep::MountOverlay { data, target, layers: lower.len(), upper: place.clone() });
                place
            }
        };
        self.root = self.slots.take();
        self.step(FilesystemStep::OpenRoot { path: place, slot: self.root });
        Ok(())
    }

    fn open_layer(&mut self, path: CString) -> i32 {
        let slot = self.slots.take();
        self.step(FilesystemStep::OpenLayer { path, slot });
        slot
    }

    pub(super) fn mounts(&mut self) -> Result<(), PlanError> {
        let mounts = self.spec.mounts().clone().unwrap_or_default();
        for (index, mount) in mounts.iter().enumerate() {
            self.mount(&format!("mounts[{index}]"), mount)?;
        }
        Ok(())
    }

    fn mount(&mut self, at: &str, mount: &oci::Mount) -> Result<(), PlanError> {
        let options = Options::parse(mount.options().iter().flatten().map(String::as_str));
        let kind = mount.typ().as_deref().unwrap_or("none");
        let destination = mount.destination();
        let is_bind = options.bind.is_some() || kind == "bind";
        if options.propagation & libc::MS_SHARED != 0 {
            let reason = "cannot be shared: mounts of a container never spread to the host";
            return Err(PlanError::invalid(format!("{at}.options"), "shared", reason));
        }
        if is_bind {
            self.devices &= destination != Path::new("/dev");
            return self.bind(at, mount, options);
        }
        let target = target(&format!("{at}.destination"), destination, false)?;
        if kind == "cgroup" || kind == "cgroup2" {
            return self.cgroup_mount(at, destination, &options);
        }
        let filesystem = Filesystem {
            kind: c_string(format!("{at}.type"), kind)?,
            source: c_string(format!("{at}.source"), source_text(mount, kind))?,
            flags: options.flags,
            data: data(at, &options)?,
        };
        self.step(FilesystemStep::Mount { root: self.root, target, filesystem });
        Ok(())
    }

    fn bind(&mut self, at: &str, mount: &oci::Mount, mut options: Options) -> Result<(), PlanError> {
        let at_source = format!("{at}.source");
        let Some(source) = mount.source().as_ref().filter(|source| source.is_absolute()) else {
            let value = mount.source().clone().unwrap_or_default().display().to_string();
            return Err(PlanError::invalid(at_source, value, "must be an absolute path"));
        };
        if let Some(unknown) = options.data.first() {
            return Err(PlanError::invalid(format!("{at}.options"), unknown, "is not an option of a bind mount"));
        }
        let metadata = std::fs::metadata(source).map_err(|error| PlanError::Path {
            at: at_source.clone(),
            path: source.clone(),
            source: error,
        })?;
        let propagation = if options.propagation == 0 { libc::MS_PRIVATE | libc::MS_REC } else { options.propagation };
        let kind = propagation & !libc::MS_REC;
        if propagation & libc::MS_REC == 0 {
            options.attributes.propagation = kind;
        } else {
            options.recursive_attributes.propagation = kind;
        }
        let bind = Bind {
            source: c_string(at_source, source.as_os_str().as_encoded_bytes())?,
            recursive: options.bind == Some(true),
            attributes: options.attributes,
            recursive_attributes: options.recursive_attributes,
        };
        let target = target(&format!("{at}.destination"), mount.destination(), !metadata.is_dir())?;
        self.step(FilesystemStep::BindMount { root: self.root, target, bind });
        Ok(())
    }

    /// The container's view of its cgroup: the one hierarchy of version 2, or each of version 1, always read-only.
    fn cgroup_mount(&mut self, at: &str, destination: &Path, options: &Options) -> Result<(), PlanError> {
        let host = self.host.take().map_or_else(host_cgroups, Ok)?;
        let flags = options.flags | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let at = format!("{at}.destination");
        let mut push = |place: &Path, kind: &str, flags: u64, data: Option<String>| {
            let filesystem = Filesystem {
                kind: c_string(&at, kind)?,
                source: c_string(&at, kind)?,
                flags,
                data: data.map(|data| c_string(&at, data)).transpose()?,
            };
            self.step(FilesystemStep::Mount { root: self.root, target: target(&at, place, false)?, filesystem });
            Ok::<(), PlanError>(())
        };
        let version_one: Vec<String> = host.version_one().collect();
        if version_one.is_empty() {
            return push(destination, "cgroup2", flags, None);
        }
        push(destination, "tmpfs", flags & !libc::MS_RDONLY, Some("mode=755,size=64k".into()))?;
        for controllers in version_one {
            let folder = controllers.strip_prefix("name=").unwrap_or(&controllers).to_string();
            push(&destination.join(folder), "cgroup", flags, Some(controllers))?;
        }
        let path = target(&at, destination, false)?.path;
        self.step(FilesystemStep::ReadOnlyPath { root: self.root, path });
        Ok(())
    }

    /// The default devices and links of the OCI runtime specification, and those that the specification adds.
    pub(super) fn devices(&mut self) -> Result<(), PlanError> {
        if !self.devices {
            return Ok(());
        }
        let folder = target("/dev", Path::new("/dev"), false)?;
        self.step(FilesystemStep::MakeFolder { root: self.root, target: folder });
        let defaults =
            [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
        for (name, major, minor) in defaults {
            let path = PathBuf::from(format!("/dev/{name}"));
            self.device("linux.devices", &path, libc::S_IFCHR | 0o666, (major, minor), (0, 0))?;
        }
        let extra = self.linux().and_then(|linux| linux.devices().clone()).unwrap_or_default();
        for (index, device) in extra.iter().enumerate() {
            if defaults.iter().any(|(name, ..)| device.path() == &Path::new("/dev").join(name)) {
                continue;
            }
            let at = format!("linux.devices[{index}]");
            let kind = match device.typ() {
                oci::LinuxDeviceType::C | oci::LinuxDeviceType::U => libc::S_IFCHR,
                oci::LinuxDeviceType::B => libc::S_IFBLK,
                oci::LinuxDeviceType::P => libc::S_IFIFO,
                oci::LinuxDeviceType::A => {
                    return Err(PlanError::invalid(format!("{at}.type"), "a", "is not the type of one device"));
                }
            };
            let number = |name: &str, value: i64| {
                u32::try_from(value).map_err(|_| {
                    PlanError::invalid(format!("{at}.{name}"), value.to_string(), "is not a device number")
                })
            };
            let numbers = (number("major", device.major())?, number("minor", device.minor())?);
            let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
            let mode = kind | device.file_mode().unwrap_or(0o666) & 0o7777;
            self.device(&format!("{at}.path"), device.path(), mode, numbers, owner)?;
        }
        let links = [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1")];
        for (name, points_to) in links.into_iter().chain([("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx")]) {
            let folder = target("/dev", Path::new("/dev"), false)?;
            let (name, points_to) = (c_string("/dev", name)?, c_string("/dev", points_to)?);
            self.step(FilesystemStep::MakeSymlink { root: self.root, folder, name, points_to });
        }
        Ok(())
    }

    fn device(
        &mut self,
        at: &str,
        path: &Path,
        mode: u32,
        (major, minor): (u32, u32),
        (user, group): (u32, u32),
    ) -> Result<(), PlanError> {
        if !path.starts_with("/dev") {
            return Err(PlanError::invalid(at, path.display().to_string(), "must be below /dev"));
        }
        let target = target(at, path, true)?;
        if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("/dev")) {
            let target = self::target(at, folder, false)?;
            self.step(FilesystemStep::MakeFolder { root: self.root, target });
        }
        let host_path = c_string(at, path.as_os_str().as_encoded_bytes())?;
        let device = Device { target, host_path, mode, major, minor, user, group };
        self.step(FilesystemStep::MakeDevice { root: self.root, device });
        Ok(())
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
            let at = format!("linux.readonlyPaths[{index}]");
            let path = target(&at, Path::new(path), false)?.path;
            self.step(FilesystemStep::ReadOnlyPath { root: self.root, path });
        }
        for (index, path) in linux.masked_paths().iter().flatten().enumerate() {
            let at = format!("linux.maskedPaths[{index}]");
            let path = target(&at, Path::new(path), false)?.path;
            self.step(FilesystemStep::Mask { root: self.root, path });
        }
        Ok(())
    }

    pub(super) fn sysctls(&mut self) -> Result<(), PlanError> {
        let sysctls = self.linux().and_then(|linux| linux.sysctl().clone()).unwrap_or_default();
        let mut sysctls: Vec<_> = sysctls.into_iter().collect();
        sysctls.sort();
        for (name, value) in sysctls {
            self.sysctl(&name, value)?;
        }
        Ok(())
    }

    /// Allows only what belongs to a namespace of the container's own.
    fn sysctl(&mut self, name: &str, value: String) -> Result<(), PlanError> {
        let at = format!("linux.sysctl.{name}");
        let list = self.linux().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
        let own = |kind: Kind| list.iter().any(|namespace| namespace.typ() == kind);
        let path = name.replace('.', "/");
        let plain = path.split('/').all(|part| !part.is_empty() && part != "..");
        let message_queues = ["kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue."];
        let allowed = (name.starts_with("net.") && own(Kind::Network))
            || (message_queues.iter().any(|prefix| name.starts_with(prefix)) && own(Kind::Ipc));
        if !plain || !allowed {
            return Err(PlanError::invalid(at, value, "does not belong to a namespace of this container"));
        }
        self.step(FilesystemStep::Sysctl { path: c_string(&at, format!("sys/{path}"))?, value });
        Ok(())
    }
}

/// The first argument of mount(2); many filesystems only show it.
fn source_text(mount: &oci::Mount, kind: &str) -> String {
    mount.source().as_ref().map_or_else(|| kind.to_string(), |source| source.display().to_string())
}

fn data(at: &str, options: &Options) -> Result<Option<CString>, PlanError> {
    if options.data.is_empty() {
        return Ok(None);
    }
    let data = options.data.join(",");
    if data.len() > MOUNT_DATA_MAXIMUM {
        return Err(PlanError::invalid(format!("{at}.options"), data, "are more than mount(2) takes"));
    }
    c_string(format!("{at}.options"), data).map(Some)
}

/// Prepares a place in the root: absolute, without `..`, never the root itself.
fn target(at: &str, path: &Path, file: bool) -> Result<Target, PlanError> {
    use std::path::Component;
    let refuse = |reason| Err(PlanError::invalid(at, path.display().to_string(), reason));
    if !path.is_absolute() {
        return refuse("must be an absolute path");
    }
    let mut parts = Vec::new();
    let mut leading = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return refuse("must not contain \"..\""),
            Component::Normal(name) => {
                if !leading.is_empty() {
                    leading.push(b'/');
                }
                leading.extend_from_slice(name.as_encoded_bytes());
                parts.push((c_string(at, leading.clone())?, c_string(at, name.as_encoded_bytes())?));
            }
        }
    }
    let Some((whole, _)) = parts.last() else { return refuse("must not be the root itself") };
    let strict = ["/proc", "/sys", "/dev"].iter().any(|tree| path.starts_with(tree));
    Ok(Target { path: whole.clone(), parts, file, strict })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_target_never_climbs(path in "[/.a]{0,24}") {
            if let Ok(target) = target("test", Path::new(&path), false) {
                prop_assert!(path.starts_with('/'));
                for (leading, name) in &target.parts {
                    let (leading, name) = (leading.to_str().unwrap(), name.to_str().unwrap());
                    prop_assert!(!matches!(name, "" | "." | "..") && !name.contains('/'));
                    prop_assert!(!leading.starts_with('/') && leading.ends_with(name));
                }
            }
        }
    }
}
