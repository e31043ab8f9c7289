//! What pods mount: where it lies, what is in it, and who owns it.
//!
//! Owns every folder that becomes a volume. Must not start anything; what of it a container sees is `convert`'s.

mod command;
pub mod facts;
mod group;
mod host_path;
pub mod persistent;
mod projected;
mod serve;
pub mod sub_path;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, mknodat};
use rustix::mount::{MountFlags, mount};
use skeg_protocol::manifest::{EmptyDir, Projection, Volume, VolumeSource};
use skeg_protocol::{Label, Pod};

use crate::apply::Folders;
use crate::convert::{Node, USERS};
use crate::journal::make_folder;
use facts::{Device, Facts};

pub use command::{Command, run};
pub use serve::serve;

/// Where a volume lies and how it is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// On the device.
    pub path: PathBuf,
    /// Whose ids its files have.
    pub ids: Ids,
    /// For every container.
    pub read_only: bool,
}

/// Whose ids the files of a volume have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// Those that the pod has on the device.
    Own,
    /// Those that the pod sees: a mount must map them.
    Seen,
    /// The kernel's own files, such as those of `/proc`, which no mount can map. Who only reads sees them as they are.
    Kernel,
}

/// Learns of the device what pods may ask for.
pub fn device(folders: &Folders) -> Device {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory =
        memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    let disk = rustix::fs::statvfs(&folders.state).map_or(0, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
    Device {
        name: folders.node_name.clone(),
        cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
        memory: memory.map_or(0, |kib: u64| kib.saturating_mul(1024)),
        disk,
        least_score: least_score(),
    }
}

/// Without CAP_SYS_RESOURCE nobody may become less likely to be killed; see proc_pid_oom_score_adj(5).
fn least_score() -> i32 {
    const SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    if effective.is_some_and(|set| set & (1 << SYS_RESOURCE) != 0) {
        return -1000;
    }
    fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|score| score.trim().parse().ok()).unwrap_or(0)
}

/// The device's addresses that others see: those of its default routes. Nothing is sent.
pub fn host_addresses() -> Vec<IpAddr> {
    // Addresses that are for documentation: everybody reaches them by the default route, and nobody is there.
    let outside = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")];
    let seen = outside.into_iter().filter_map(|(own, other)| {
        let socket = UdpSocket::bind(own).ok()?;
        socket.connect(other).ok()?;
        Some(socket.local_addr().ok()?.ip())
    });
    seen.collect()
}

/// Makes a pod's volumes and says where each lies. `root` is the host's id of the pod's root.
///
/// # Errors
/// What could not be made or found, in Kubernetes' words.
pub fn prepare(folders: &Folders, pod: &Pod, root: u32, facts: &Facts) -> Result<BTreeMap<Label, Place>, String> {
    let failed = |volume: &Volume, why: String| {
        format!("MountVolume.SetUp failed for volume {:?} : {why}", volume.name.as_str())
    };
    let mut places = BTreeMap::new();
    for volume in &pod.volumes {
        let place = place(folders, pod, root, facts, volume).map_err(|why| failed(volume, why))?;
        places.insert(volume.name.clone(), place);
    }
    Ok(places)
}

fn place(folders: &Folders, pod: &Pod, root: u32, facts: &Facts, volume: &Volume) -> Result<Place, String> {
    let on_disk = folders.volume(pod.uid, &volume.name);
    let in_memory = folders.memory_volume(pod.uid, &volume.name);
    let told = |path: &Path| {
        let path = path.display().to_string();
        move |error: io::Error| format!("{path}: {error}")
    };
    match &volume.source {
        VolumeSource::EmptyDir(wanted) => {
            let path = if wanted.memory { in_memory } else { on_disk };
            empty_dir(&path, *wanted, pod, root).map_err(told(&path))?;
            Ok(Place { path, ids: Ids::Own, read_only: false })
        }
        VolumeSource::HostPath { path, kind } => {
            let path = host_path::find(path, *kind)?;
            let ids = if host_path::is_of_kernel(&path).map_err(told(&path))? { Ids::Kernel } else { Ids::Seen };
            Ok(Place { path, ids, read_only: false })
        }
        VolumeSource::Persistent { name, read_only, .. } => {
            let path = folders.persistent().make(&pod.namespace, name).map_err(told(Path::new(name)))?;
            if let Some(group) = pod.fs_group {
                group::give(&path, group).map_err(told(&path))?;
            }
            Ok(Place { path, ids: Ids::Seen, read_only: *read_only })
        }
        VolumeSource::Projected { sources, default_mode } => {
            make_folder(&in_memory).and_then(|()| mount_memory(&in_memory, 0o755, None)).map_err(told(&in_memory))?;
            publish(&in_memory, pod, root, (sources, *default_mode), facts)?;
            Ok(Place { path: in_memory, ids: Ids::Own, read_only: true })
        }
    }
}

/// Lets the projected volumes of a pod follow what it can be told now. A volume whose sources are gone stays as it is.
pub fn refresh(folders: &Folders, pod: &Pod, root: u32, facts: &Facts) {
    for volume in &pod.volumes {
        let VolumeSource::Projected { sources, default_mode } = &volume.source else { continue };
        let path = folders.memory_volume(pod.uid, &volume.name);
        match publish(&path, pod, root, (sources, *default_mode), facts) {
            Ok(true) => log::info!("volume {} of pod {}/{} has new files", volume.name, pod.namespace, pod.name),
            Ok(false) => {}
            Err(why) => log::warn!("volume {} of pod {}/{}: {why}", volume.name, pod.namespace, pod.name),
        }
    }
}

fn publish(
    path: &Path,
    pod: &Pod,
    root: u32,
    (sources, default_mode): (&[Projection], u16),
    facts: &Facts,
) -> Result<bool, String> {
    let files = projected::files(pod, sources, default_mode, facts)?;
    let owner = projected::Owner { user: root, group: pod.fs_group.map(|group| root.saturating_add(group)) };
    projected::publish(path, &files, owner).map_err(|error| format!("{}: {error}", path.display()))
}

/// An empty folder that every user of a container may write to, unless it says otherwise. One that is there already is
/// left alone: the pod may have changed it since.
fn empty_dir(path: &Path, wanted: EmptyDir, pod: &Pod, root: u32) -> io::Result<()> {
    let mode = u32::from(wanted.mode.unwrap_or(0o777));
    let fresh = match wanted.memory {
        true => {
            make_folder(path)?;
            mount_memory(path, mode, memory_size(wanted, pod))?
        }
        false => {
            make_folder(path.parent().unwrap_or(path))?;
            match fs::create_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                made => made.map(|()| true)?,
            }
        }
    };
    if fresh {
        let group = pod.fs_group.map_or(root, |group| root.saturating_add(group));
        chown(path, Some(root), Some(group))?;
        let inherit = if pod.fs_group.is_some() { 0o2000 } else { 0 };
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777 | inherit))?;
    }
    Ok(())
}

/// Size of a volume in memory: what it says, and never more than the pod's containers may have together (Kubernetes'
/// SizeMemoryBackedVolumes).
fn memory_size(wanted: EmptyDir, pod: &Pod) -> Option<u64> {
    let limits: Option<Vec<u64>> = pod.containers.iter().map(|one| one.limits.memory_bytes).collect();
    let most = limits.map(|limits| limits.iter().fold(0, |sum: u64, limit| sum.saturating_add(*limit)));
    [wanted.size_limit.filter(|size| *size > 0), most].into_iter().flatten().min()
}

/// Mounts a tmpfs where none is yet. Says whether it did.
fn mount_memory(path: &Path, mode: u32, size: Option<u64>) -> io::Result<bool> {
    if is_mounted(path)? {
        return Ok(false);
    }
    let size = size.map(|size| format!(",size={size}")).unwrap_or_default();
    let options = std::ffi::CString::new(format!("mode={mode:o}{size}"))?;
    mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?;
    Ok(true)
}

fn is_mounted(path: &Path) -> io::Result<bool> {
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev());
    Ok(device(path)? != device(path.parent().unwrap_or(path))?)
}

/// Makes the device nodes of a container, in memory and with the owners and modes that they have on the device, as far
/// as the pod has those ids. A container's user namespace may open a device, but not make one.
///
/// # Errors
/// As of mount(2) and mknod(2).
pub fn make_nodes(folder: &Path, nodes: &[Node], root: u32) -> io::Result<()> {
    if nodes.is_empty() {
        return Ok(());
    }
    make_folder(folder)?;
    if !is_mounted(folder)? {
        // Without MS_NODEV: these are the only devices there.
        mount("tmpfs", folder, "tmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=0700,size=64k")?;
    }
    let owned = |id: u32| if id < USERS { root.saturating_add(id) } else { root };
    for node in nodes {
        let path = folder.join(&node.name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let kind = if node.block { FileType::BlockDevice } else { FileType::CharacterDevice };
        mknodat(rustix::fs::CWD, &path, kind, Mode::RUSR, node.device)?;
        chown(&path, Some(owned(node.user)), Some(owned(node.group)))?;
        fs::set_permissions(&path, Permissions::from_mode(node.mode & 0o777))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::pod;

    #[test]
    fn a_volume_in_memory_is_never_larger_than_the_pods_memory() {
        let mut pod = pod(1, "web", &["main", "side"]);
        let of = |size_limit, pod: &Pod| memory_size(EmptyDir { memory: true, size_limit, mode: None }, pod);
        assert_eq!((of(None, &pod), of(Some(0), &pod), of(Some(5), &pod)), (None, None, Some(5)));
        pod.containers[0].limits.memory_bytes = Some(100);
        assert_eq!(of(None, &pod), None);
        pod.containers[1].limits.memory_bytes = Some(50);
        assert_eq!((of(None, &pod), of(Some(5), &pod), of(Some(500), &pod)), (Some(150), Some(5), Some(150)));
    }
}
