//! The folders of pods: where everything lies, and the files that name the pod to itself.
//!
//! Nothing here follows a link that a container could have put: contents of containers are only ever removed.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};
use skeg_protocol::{Label, Pod, Uid};

use super::Key;
use crate::journal::make_folder;
use crate::volumes::facts::Facts;
use crate::volumes::persistent::Persistent;
use crate::volumes::{self, Place};

/// Where things lie on this device.
#[derive(Debug, Clone)]
pub struct Folders {
    /// Survives reboots.
    pub state: PathBuf,
    /// Does not.
    pub run: PathBuf,
    /// Name of the device, as pods on its network see it.
    pub node_name: String,
}

impl Folders {
    /// Where each pod's folder lies.
    pub fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    fn pod(&self, uid: Uid) -> PathBuf {
        self.pods().join(uid.to_string())
    }

    fn pod_run(&self, uid: Uid) -> PathBuf {
        self.run.join("pods").join(uid.to_string())
    }

    /// The writable part of an attempt's root: holds `upper` and `work`.
    pub fn attempt(&self, uid: Uid, container: &str, attempt: u32) -> PathBuf {
        self.container(uid, container).join(attempt.to_string())
    }

    /// A volume of a pod on disk.
    pub fn volume(&self, uid: Uid, name: &str) -> PathBuf {
        self.pod(uid).join("volumes").join(name)
    }

    /// A volume of a pod in memory.
    pub fn memory_volume(&self, uid: Uid, name: &str) -> PathBuf {
        self.pod_run(uid).join("volumes").join(name)
    }

    /// Device nodes of a pod's container, in memory.
    pub fn devices(&self, uid: Uid, container: &str) -> PathBuf {
        self.pod_run(uid).join("devices").join(container)
    }

    /// A copy of this program for containers that ask for an init, in memory.
    pub fn init(&self) -> PathBuf {
        self.run.join("init")
    }

    /// The folder of a container's attempts.
    pub fn container(&self, uid: Uid, container: &str) -> PathBuf {
        self.pod(uid).join("containers").join(container)
    }

    /// The folder of a container's logs.
    pub fn container_log(&self, pod: &Pod, container: &str) -> PathBuf {
        self.logs(pod).join(container)
    }

    /// The volumes that outlive pods.
    pub fn persistent(&self) -> Persistent {
        Persistent::new(self.state.join("volumes"))
    }

    /// Files that the pod sees in its `/etc`.
    pub fn etc(&self, uid: Uid) -> PathBuf {
        self.pod_run(uid).join("etc")
    }

    fn logs(&self, pod: &Pod) -> PathBuf {
        self.state.join("logs").join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
    }

    /// The log of an attempt.
    pub fn log(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
        self.container_log(pod, container).join(format!("{attempt}.log"))
    }

    /// The note beside a log, in memory.
    pub fn intent(&self, key: &Key) -> PathBuf {
        self.pod_run(key.pod).join("logs").join(format!("{}.{}", key.container, key.attempt))
    }

    /// Uids of pods that have a folder.
    pub fn uids(&self) -> Vec<Uid> {
        let names = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten();
        let all = names(self.pods()).chain(names(self.run.join("pods")));
        let mut uids: Vec<Uid> = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        uids.sort_unstable();
        uids.dedup();
        uids
    }

    /// Names of containers that have a folder in a pod's.
    pub fn containers(&self, uid: Uid) -> Vec<String> {
        let entries = fs::read_dir(self.pod(uid).join("containers")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// The host name that a pod sees: its own, or the device's on the device's network.
    pub fn hostname<'a>(&'a self, pod: &'a Pod) -> &'a str {
        let own = pod.hostname.as_ref().map_or(pod.name.as_str(), |name| name.as_str());
        let name = if pod.host_network { &self.node_name } else { own };
        // HOST_NAME_MAX is 64 with the final NUL; names are ASCII.
        name.get(..63).unwrap_or(name).trim_end_matches(['-', '.'])
    }

    /// Makes a pod's folders, volumes and files, and says where each volume lies. `root` is the host's id of the pod's
    /// root, `names` its `hosts` and `resolv.conf`.
    ///
    /// # Errors
    /// What could not be made or found, with the field where it is the pod's.
    pub fn prepare(
        &self,
        pod: &Pod,
        root: u32,
        names: [String; 2],
        facts: &Facts,
    ) -> Result<BTreeMap<Label, Place>, String> {
        for folder in [self.pod(pod.uid), self.etc(pod.uid)] {
            make_folder(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        self.write_etc(pod, root, names)?;
        volumes::prepare(self, pod, root, facts)
    }

    fn write_etc(&self, pod: &Pod, root: u32, [hosts, resolver]: [String; 2]) -> Result<(), String> {
        let files = [("hosts", hosts), ("hostname", format!("{}\n", self.hostname(pod))), ("resolv.conf", resolver)];
        for (file, content) in files {
            let path = self.etc(pod.uid).join(file);
            // What is there may be mounted in a running container, which may have changed it.
            if !path.exists() {
                fs::write(&path, content)
                    .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o644)))
                    .map_err(|error| format!("{}: {error}", path.display()))?;
            }
            give(&path, root).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }

    /// Lets go of what a pod has in memory.
    pub fn release(&self, pod: &Pod) {
        self.release_uid(pod.uid);
    }

    fn release_uid(&self, uid: Uid) {
        let run = self.pod_run(uid);
        let folders = ["volumes", "devices"].map(|folder| run.join(folder));
        for entry in folders.iter().flat_map(fs::read_dir).flatten().flatten() {
            let path = entry.path();
            match unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(error) => log::error!("unmounting {}: {error}", path.display()),
            }
        }
        remove_folder(&run);
    }

    /// Removes everything of a pod but its record.
    pub fn remove(&self, pod: &Pod) {
        remove_folder(&self.pod(pod.uid));
        remove_folder(&self.logs(pod));
    }

    /// Removes what is left of a pod that nobody knows.
    pub fn remove_unknown(&self, uid: Uid) {
        self.release_uid(uid);
        remove_folder(&self.pod(uid));
        let suffix = format!("_{uid}");
        for entry in fs::read_dir(self.state.join("logs")).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.ends_with(&suffix)) {
                remove_folder(&entry.path());
            }
        }
    }
}

/// Gives a file or folder of the host's root to a pod's; the pod may have given it on since.
pub(super) fn give(path: &Path, root: u32) -> io::Result<()> {
    match fs::symlink_metadata(path)?.uid() {
        0 => lchown(path, Some(root), Some(root)),
        _ => Ok(()),
    }
}

/// Removes the parent cgroup of all pods from every hierarchy, where nothing is in it. Others may use it too, so
/// only an empty one goes, and what stays is no error.
pub fn remove_parent_cgroup(name: &str) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in table.lines() {
        // proc_pid_mountinfo(5): the fifth field is the mount point, the first after " - " the kind.
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
        if let (Some("cgroup" | "cgroup2"), Some(mount)) = (kind, line.split(' ').nth(4)) {
            fs::remove_dir(Path::new(mount).join(name)).ok();
        }
    }
}

fn said(what: &str, path: &Path, done: io::Result<()>) {
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => log::error!("{what} {}: {error}", path.display()),
        _ => {}
    }
}

/// Removes a folder with everything in it; a failure is said in the log.
pub fn remove_folder(path: &Path) {
    said("removing", path, fs::remove_dir_all(path));
}

/// Removes a file; a failure is said in the log.
pub fn remove_file(path: &Path) {
    said("removing", path, fs::remove_file(path));
}

/// Removes a log with its full parts.
pub fn remove_log(path: &Path) {
    crate::logs::files(path).iter().for_each(|file| remove_file(file));
}
