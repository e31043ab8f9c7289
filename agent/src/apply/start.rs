//! The start of one attempt, from an image that is here to a process that init holds.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::fchown;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use skeg_protocol::manifest::VolumeSource;
use skeg_protocol::{Container, Label, Pod};
use skeg_runtime::{Extras, Plan, PlanError, Reaper, Request, Root, StartError, Started, Stdio, oci};
use tokio::task::spawn_blocking;

use super::{Key, Prepared, Users, Worker, chain, files, not_created, refused};
use crate::convert;
use crate::core::NotStarted;
use crate::journal::make_folder;
use crate::logs::Pipes;
use crate::volumes::persistent::Persistent;
use crate::volumes::{self, Place};

/// What init keeps beside an attempt's descriptors, so that a later agent knows since when it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct HeldData {
    /// Monotonic time of the start in nanoseconds since boot.
    pub since: u64,
    /// Wall clock of the start in milliseconds since 1970.
    pub started_at: i64,
}

/// A running attempt that init holds.
pub struct Adopted {
    /// Which.
    pub key: Key,
    /// Always means its first process.
    pub pidfd: OwnedFd,
    /// Its log's pipes.
    pub pipes: Pipes,
    /// Whether its users are its pod's own.
    pub own_users: bool,
}

/// Everything that the blocking part of a start needs.
struct Order {
    converted: convert::Converted,
    root: Root,
    /// Where the container's device nodes are made.
    devices: PathBuf,
    /// Volumes that take after a folder of the image while they are empty.
    like_image: Vec<(PathBuf, PathBuf)>,
    /// Where a copy of this program is to be, if the container asks for an init.
    init: Option<PathBuf>,
    folders: [PathBuf; 2],
    cgroup: String,
    network: Option<Arc<OwnedFd>>,
    users: Option<Users>,
}

impl Worker {
    /// Starts an attempt; when it returns well, init holds it and its log is being written.
    pub(super) async fn start(&mut self, name: &Label, attempt: u32) -> Result<(), NotStarted> {
        self.prepare().await?;
        let (Some(prepared), Some(container)) = (&self.prepared, self.pod.container(name)) else {
            let message = format!("the pod has no container {name:?}");
            return Err(NotStarted::NotCreated { reason: "CreateContainerError", message });
        };
        let key = self.key(name, attempt);
        let order = self.order(container, attempt, prepared)?;
        let (own_users, keeps_open) = (order.users.is_some(), container.stdin);
        let (pipes, writers) = Pipes::new().map_err(|error| not_created(&error))?;
        let started = spawn_blocking(move || {
            let stdin = if keeps_open { endless_input() } else { File::open("/dev/null").map(OwnedFd::from) };
            let stdin = stdin.map_err(|error| not_created(&error))?;
            launch(order, Stdio { stdin, stdout: writers.stdout, stderr: writers.stderr })
        });
        let started = started.await.map_err(|error| not_created(&error))??;
        let now = crate::agent::now();
        let data =
            HeldData { since: u64::try_from(now.monotonic.as_nanos()).unwrap_or(u64::MAX), started_at: now.wall };
        let data = postcard::to_allocvec(&data).map_err(|error| not_created(&error))?;
        let [stdout, stderr, staging_read, staging_write] = pipes.fds();
        let fds = [started.pidfd.as_fd(), stdout, stderr, staging_read, staging_write];
        let held = self.host.holder.hold(&key.to_string(), Some(started.pid), &fds, &data).await;
        if let Err(error) = held {
            // Nobody would tell its end: better none than one that nobody watches. Finish clears the cgroup.
            rustix::process::pidfd_send_signal(&started.pidfd, rustix::process::Signal::KILL).ok();
            return Err(not_created(&error));
        }
        self.host.adopt(&self.pod, Adopted { key, pidfd: started.pidfd, pipes, own_users }).await;
        Ok(())
    }

    fn order(&self, container: &Container, attempt: u32, prepared: &Prepared) -> Result<Order, NotStarted> {
        let (host, pod) = (&self.host, &self.pod);
        let image = host
            .images
            .here(&container.image)
            .map_err(|message| NotStarted::NotCreated { reason: "CreateContainerError", message })?;
        let devices = host.folders.devices(pod.uid, &container.name);
        let converted = convert::spec(&convert::Inputs {
            pod,
            container,
            image: &image.config,
            layers: &image.layers,
            hostname: host.folders.hostname(pod),
            etc: &host.folders.etc(pod.uid),
            volumes: &prepared.volumes,
            own_users: prepared.users.is_some(),
            facts: &host.facts(pod),
            devices: &devices,
            init: &host.folders.init(),
        })
        .map_err(|error| NotStarted::NotCreated { reason: "CreateContainerConfigError", message: error.to_string() })?;
        let folder = host.folders.attempt(pod.uid, &container.name, attempt);
        let (upper, work) = (folder.join("upper"), folder.join("work"));
        let lower = image.layers.into_iter().rev().collect();
        Ok(Order {
            converted,
            devices,
            like_image: like_image(pod, container, &prepared.volumes),
            init: container.init.then(|| host.folders.init()),
            root: Root::Overlay { lower, upper: upper.clone(), work: work.clone() },
            folders: [upper, work],
            cgroup: host.cgroup(pod.uid, &container.name),
            network: prepared.network.clone(),
            users: prepared.users.clone(),
        })
    }
}

/// The volumes that take after the folder of the image that a container mounts them over, and that folder.
fn like_image(pod: &Pod, container: &Container, places: &BTreeMap<Label, Place>) -> Vec<(PathBuf, PathBuf)> {
    let whole = container.mounts.iter().filter(|mount| mount.sub_path.is_none());
    let wanted = whole.filter(|mount| {
        let mut volumes = pod.volumes.iter().filter(|volume| volume.name == mount.volume);
        volumes.any(|volume| matches!(volume.source, VolumeSource::Persistent { like_image: true, .. }))
    });
    wanted.filter_map(|mount| Some((places.get(&mount.volume)?.path.clone(), PathBuf::from(&mount.path)))).collect()
}

/// The blocking part: folders, cgroup, plan, process.
fn launch(order: Order, stdio: Stdio) -> Result<Started, NotStarted> {
    for folder in &order.folders {
        make_folder(folder).map_err(|error| NotStarted::NotCreated {
            reason: "CreateContainerError",
            message: format!("{}: {error}", folder.display()),
        })?;
    }
    // The root of the container takes the mode of its upper folder.
    open_root(&order.folders[0]).map_err(|error| not_created(&error))?;
    if let Some(users) = &order.users {
        let given = files::give(&order.folders[0], users.root).and_then(|()| give_streams(&stdio, users.root));
        given.map_err(|error| not_created(&error))?;
    }
    // What the attempt before left behind ends before this one begins; its files may go later.
    if let Ok(old) = crate::cgroups::open(&order.cgroup) {
        old.kill().and_then(|()| old.remove()).map_err(|error| not_created(&error))?;
    }
    if let Root::Overlay { lower, .. } = &order.root {
        for (volume, inside) in &order.like_image {
            let taken = Persistent::take_after(volume, lower, inside);
            taken.map_err(|error| refused(format!("{}: {error}", volume.display())))?;
        }
    }
    let root = order.users.as_ref().map_or(0, |users| users.root);
    let made = volumes::make_nodes(&order.devices, &order.converted.nodes, root);
    made.map_err(|error| refused(format!("{}: {error}", order.devices.display())))?;
    if let Some(path) = &order.init {
        copy_program(path).map_err(|error| refused(format!("{}: {error}", path.display())))?;
    }
    let convert::Converted { mut spec, sub_paths, .. } = order.converted;
    let _opened = open_sub_paths(&mut spec, &sub_paths)?;
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let cgroup = crate::cgroups::create(&order.cgroup, &resources).map_err(|error| not_created(&error))?;
    let request = Request {
        spec: &spec,
        root: &order.root,
        cgroup: Some(&cgroup),
        network: order.network.as_ref().map(|network| network.as_fd()),
        user: order.users.as_ref().map(|users| users.namespace.as_fd()),
        stdio,
        reaper: Reaper::CallersParent,
        extras: Extras::default(),
    };
    let plan = Plan::compile(request).map_err(|error| not_created(&error))?;
    plan.start().map_err(|error| start_failed(&error))
}

/// An input that has nothing and never ends: the container itself holds the other end.
fn endless_input() -> std::io::Result<OwnedFd> {
    let (reader, _writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let both = File::options().read(true).write(true).open(format!("/proc/self/fd/{}", reader.as_raw_fd()))?;
    Ok(both.into())
}

/// Copies this program to where containers get their init from. Its own file may lie on a mount that older kernels can't
/// clone, and the copy keeps the original out of every container.
fn copy_program(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    // One start at a time: a copy that is replaced while another start mounts it is gone.
    static COPYING: Mutex<()> = Mutex::new(());
    let _copying = COPYING.lock().unwrap_or_else(PoisonError::into_inner);
    if path.exists() {
        return Ok(());
    }
    let fresh = path.with_extension("new");
    std::fs::copy("/proc/self/exe", &fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o555))?;
    std::fs::rename(&fresh, path)
}

/// Opens the parts of volumes that are to be mounted, and mounts just what was opened. Keep the descriptors until the
/// plan is made.
fn open_sub_paths(spec: &mut oci::Spec, sub_paths: &[convert::SubPath]) -> Result<Vec<OwnedFd>, NotStarted> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let mut opened = Vec::new();
    for one in sub_paths {
        let found = volumes::sub_path::open(&one.volume, &one.path, one.make).map_err(|error| {
            let message = format!("failed to prepare subPath {:?} of {}: {error}", one.path, one.volume.display());
            NotStarted::NotCreated { reason: "CreateContainerConfigError", message }
        })?;
        if let Some(mount) = mounts.get_mut(one.mount) {
            mount.set_source(Some(format!("/proc/self/fd/{}", found.as_raw_fd()).into()));
        }
        opened.push(found);
    }
    spec.set_mounts(Some(mounts));
    Ok(opened)
}

/// Gives the log's pipes to the root of a pod, who can then open them by name, as `/dev/stdout`, and give them
/// on.
///
/// # Errors
/// As fchown(2).
pub fn give_streams(stdio: &Stdio, root: u32) -> std::io::Result<()> {
    [&stdio.stdout, &stdio.stderr].into_iter().try_for_each(|pipe| fchown(pipe, Some(root), Some(root)))
}

fn open_root(upper: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(upper, std::fs::Permissions::from_mode(0o755))
}

/// Tells a program that can't be run from everything that is not the program's fault.
fn start_failed(error: &StartError) -> NotStarted {
    match error {
        StartError::Command { source, .. } => {
            let code = match source.kind() {
                std::io::ErrorKind::NotFound => 127,
                _ => 126,
            };
            NotStarted::CannotRun { code, message: chain(error) }
        }
        StartError::Plan(PlanError::Ids { .. }) => {
            refused(format!("{}; set hostUsers: true in the spec", chain(error)))
        }
        other => not_created(other),
    }
}
