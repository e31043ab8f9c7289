//! Carries out what the core decides: images, folders, namespaces, cgroups, processes, logs, init's memory.
//!
//! One worker task a pod does its pod's actions one after the other; only pulls run beside. What happens comes
//! back as events. Nothing here decides: a failure is an event like any other.

mod files;
mod images;
mod sources;
mod start;
mod users;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;

use skeg_protocol::manifest::{Data, Handler};
use skeg_protocol::{Label, Pod, Uid};
use skeg_runtime::oci;
use tokio::sync::{mpsc, watch};
use tokio::task::{spawn_blocking, spawn_local};

use crate::ask::{self, Asked};
use crate::cgroups;
use crate::config::Config;
use crate::convert::{USERS, of_pod};
use crate::core::{Action, ContainerEvent, Event, HookKind, Known, NotStarted, PodRecord, ProbeKind, Step};
use crate::events::Events;
use crate::hold::Holder;
use crate::journal::Journal;
use crate::logs::{Log, Scratch};
use crate::network::Networks;
use crate::volumes::facts::{Device, Facts};
use crate::volumes::{self, Place};

pub use files::{Folders, remove_file, remove_parent_cgroup};
pub use images::{Images, STORE, wanted};
pub use sources::Registries;
pub use start::{Adopted, HeldData, give_streams};
pub use users::Ranges;

/// An attempt of a container; in text the key under which init holds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its pod.
    pub pod: Uid,
    /// Its name.
    pub container: Label,
    /// Which attempt.
    pub attempt: u32,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.pod, self.container, self.attempt)
    }
}

impl FromStr for Key {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('/');
        let (Some(pod), Some(container), Some(attempt), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(());
        };
        Ok(Key {
            pod: pod.parse().map_err(drop)?,
            container: container.try_into().map_err(drop)?,
            attempt: attempt.parse().map_err(drop)?,
        })
    }
}

/// The key under which init holds what is known of an attempt's health.
pub fn health_key(key: &Key) -> String {
    format!("{key}/health")
}

/// The key under which init holds a pod's network namespace.
pub fn network_key(pod: Uid) -> String {
    format!("{pod}/net")
}

/// An error with all its causes in one line, each said once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// A started container.
pub struct Live {
    /// Always means its first process.
    pub pidfd: OwnedFd,
    /// Its log; taken when the container is finished.
    pub log: RefCell<Option<Log>>,
    /// Whether its users are its pod's own.
    pub own_users: bool,
    /// What further processes of it are made from, once there was one for a probe.
    spec: RefCell<Option<Arc<oci::Spec>>>,
}

impl Live {
    /// What further processes of it are made from; made once.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn spec(&self, make: impl FnOnce() -> Result<oci::Spec, String>) -> Result<Arc<oci::Spec>, String> {
        if let Some(spec) = self.spec.borrow().as_ref() {
            return Ok(Arc::clone(spec));
        }
        let spec = Arc::new(make()?);
        self.spec.replace(Some(Arc::clone(&spec)));
        Ok(spec)
    }
}

/// What all workers share.
pub struct Host {
    /// As the file says.
    pub config: Config,
    /// Where things lie.
    pub folders: Folders,
    /// What must not be forgotten.
    pub journal: Journal,
    /// Whose ids are whose, where pods can have users of their own.
    pub ranges: Option<Ranges>,
    /// The pods' networks.
    pub networks: Arc<Networks>,
    /// Init's memory.
    pub holder: Holder,
    /// Images.
    pub images: Images,
    /// Buffers of the logs.
    pub scratch: Scratch,
    /// Where news goes.
    pub events: mpsc::UnboundedSender<Event>,
    /// What happened, for people.
    pub happenings: Events,
    /// Config maps and secrets that pods name.
    pub data: watch::Sender<Arc<Vec<Data>>>,
    /// What pods may be told of the device.
    pub device: Arc<Device>,
    /// What runs.
    pub live: RefCell<BTreeMap<Key, Rc<Live>>>,
}

impl Host {
    /// The cgroup's name of a pod's container.
    pub fn cgroup(&self, pod: Uid, container: &str) -> String {
        format!("{}/{pod}/{container}", self.config.cgroup)
    }

    /// What a pod may be told.
    pub fn facts(&self, pod: &Pod) -> Facts {
        let host_addresses = volumes::host_addresses();
        let addresses = if pod.host_network { host_addresses.clone() } else { Vec::new() };
        let (data, device) = (Arc::clone(&self.data.borrow()), Arc::clone(&self.device));
        Facts { data, device, host_addresses, addresses, forgiving: false }
    }

    fn send(&self, pod: Uid, container: &Label, event: ContainerEvent) {
        // Without a receiver the agent is ending.
        self.events.send(Event::Container { pod, container: container.clone(), event }).ok();
    }

    /// Makes a running attempt known and writes its log.
    pub async fn adopt(&self, pod: &Pod, adopted: Adopted) {
        let Adopted { key, pidfd, pipes, own_users } = adopted;
        let log = self.folders.log(pod, &key.container, key.attempt);
        let log = match Log::start(pipes, &log, &self.folders.intent(&key), &self.scratch).await {
            Ok(log) => Some(log),
            Err(error) => {
                log::error!("the log of {key}: {}", chain(&error));
                None
            }
        };
        self.live
            .borrow_mut()
            .insert(key, Rc::new(Live { pidfd, log: RefCell::new(log), own_users, spec: RefCell::default() }));
    }

    /// Kills what runs in a container's cgroup and removes it. Says whether there was a process.
    pub fn clear_cgroup(&self, pod: Uid, container: &str) -> bool {
        let name = self.cgroup(pod, container);
        let Ok(cgroup) = cgroups::open(&name) else { return false };
        let alive = cgroup.processes().is_ok_and(|processes| !processes.is_empty());
        for (what, done) in [("killing", cgroup.kill()), ("removing", cgroup.remove())] {
            if let Err(error) = done {
                log::error!("{what} cgroup {name}: {}", chain(&error));
            }
        }
        alive
    }
}

/// The users of a pod that has its own.
#[derive(Clone)]
struct Users {
    namespace: Arc<OwnedFd>,
    /// The host's id of the pod's root.
    root: u32,
}

/// What a pod needs before its first container.
struct Prepared {
    /// Its network namespace; `None` with the device's network.
    network: Option<Arc<OwnedFd>>,
    /// Its own users; `None` with the device's.
    users: Option<Users>,
    /// Where its volumes lie.
    volumes: BTreeMap<Label, Place>,
}

/// Does one pod's actions.
pub struct Worker {
    host: Rc<Host>,
    pod: Arc<Pod>,
    network: Option<Arc<OwnedFd>>,
    prepared: Option<Prepared>,
}

impl Worker {
    /// Begins a worker; what is sent to it is done in order. `network` is what init held of an earlier agent,
    /// `running` says that containers of the pod run already.
    pub fn spawn(
        host: Rc<Host>,
        pod: Arc<Pod>,
        network: Option<OwnedFd>,
        running: bool,
    ) -> mpsc::UnboundedSender<Action> {
        // Unbounded, yet small: the core has at most a few actions under way for each container.
        let (sender, receiver) = mpsc::unbounded_channel();
        let worker = Worker { host, pod, network: network.map(Arc::new), prepared: None };
        spawn_local(worker.run(receiver, running));
        sender
    }

    async fn run(mut self, mut actions: mpsc::UnboundedReceiver<Action>, running: bool) {
        if running && let Err(failure) = self.prepare().await {
            // The containers run on; the next start will say it again.
            log::error!("pod {}/{}: {failure:?}", self.pod.namespace, self.pod.name);
        }
        let mut data = self.host.data.subscribe();
        loop {
            let action = tokio::select! {
                biased;
                action = actions.recv() => action,
                Ok(()) = data.changed() => {
                    self.refresh().await;
                    continue;
                }
            };
            let Some(action) = action else { return };
            match action {
                Action::Admit(_) => {}
                Action::Record(record) => self.record(*record).await,
                Action::Container(name, step) => self.step(&name, step).await,
                Action::Remove { keep } => {
                    self.remove(keep).await;
                    self.host.events.send(Event::PodRemoved(self.pod.uid)).ok();
                    return;
                }
            }
        }
    }

    async fn record(&self, record: PodRecord) {
        let journal = self.host.journal.clone();
        match spawn_blocking(move || journal.store_record(&record)).await {
            Ok(Ok(())) => {}
            // The pod goes on: what is lost is only what a sudden end of the agent would need to know.
            Ok(Err(error)) => log::error!("the record of pod {}: {error}", self.pod.uid),
            Err(error) => log::error!("the record of pod {}: {error}", self.pod.uid),
        }
    }

    async fn step(&mut self, name: &Label, step: Step) {
        let uid = self.pod.uid;
        match step {
            // Turned into `Action::Record` by the core.
            Step::Record => {}
            Step::Pull => self.pull(name),
            Step::Start(attempt) => {
                let event = match self.start(name, attempt).await {
                    Ok(()) => ContainerEvent::Started { attempt },
                    Err(failure) => ContainerEvent::NotStarted { attempt, failure },
                };
                self.host.send(uid, name, event);
            }
            Step::Probe(attempt, kind) => self.probe(name, attempt, kind),
            Step::Hook(attempt, hook, limit) => self.hook(name, attempt, hook, limit),
            Step::Note(attempt, known) => self.note(name, attempt, known).await,
            Step::Signal(attempt) => self.signal(name, attempt).await,
            Step::Kill(attempt) => self.kill(name, attempt).await,
            Step::Finish(attempt) => self.finish(name, attempt).await,
            // Turned into `Order::Tell` by the core.
            Step::Tell(..) => {}
        }
    }

    /// Somebody to ask; nothing where the container has ended meanwhile.
    fn asked(&self, name: &Label, attempt: u32) -> Option<Asked> {
        let (host, pod, key) = (Rc::clone(&self.host), Arc::clone(&self.pod), self.key(name, attempt));
        let live = host.live.borrow().get(&key).cloned()?;
        Some(Asked { host, pod, network: self.network.clone(), key, live })
    }

    fn probe(&self, name: &Label, attempt: u32, kind: ProbeKind) {
        let Some(asked) = self.asked(name, attempt) else { return };
        spawn_local(async move {
            let Asked { host, pod, key, .. } = &asked;
            let probes = pod.container(&key.container).map(|container| &container.probes);
            let own = probes.and_then(|probes| match kind {
                ProbeKind::Startup => probes.startup.clone(),
                ProbeKind::Liveness => probes.liveness.clone(),
                ProbeKind::Readiness => probes.readiness.clone(),
            });
            let probe = own.or_else(|| pod.container(&key.container).and_then(|one| host.images.check(&one.image)));
            let answer = match probe {
                Some(probe) => {
                    let limit = std::time::Duration::from_millis(probe.timeout_ms.into());
                    ask::ask(&asked, &probe.action, limit).await
                }
                None => Err("the image that says how to ask is no longer on this device".to_owned()),
            };
            asked.tell(ContainerEvent::Probed { attempt, kind, answer });
        });
    }

    fn hook(&self, name: &Label, attempt: u32, hook: HookKind, limit: std::time::Duration) {
        let Some(asked) = self.asked(name, attempt) else { return };
        spawn_local(async move {
            let Asked { pod, key, .. } = &asked;
            let lifecycle = pod.container(&key.container).map(|container| &container.lifecycle);
            let handler: Option<&Handler> = lifecycle.and_then(|lifecycle| match hook {
                HookKind::PostStart => lifecycle.post_start.as_ref(),
                HookKind::PreStop => lifecycle.pre_stop.as_ref(),
            });
            let result = match handler {
                Some(handler) => ask::ask(&asked, handler, limit).await,
                None => Ok(()),
            };
            asked.tell(ContainerEvent::HookDone { attempt, hook, result });
        });
    }

    /// Has init keep what is known of an attempt's health: in memory only, as it changes with every cloud.
    async fn note(&self, name: &Label, attempt: u32, known: Known) {
        let key = health_key(&self.key(name, attempt));
        let data = postcard::to_allocvec(&known).unwrap_or_default();
        if let Err(error) = self.host.holder.hold(&key, None, &[], &data).await {
            log::error!("init could not keep {key}: {}", chain(&error));
        }
    }

    /// Kills everything of a container, whatever it has started and wherever that hides.
    async fn kill(&self, name: &Label, attempt: u32) {
        let key = self.key(name, attempt);
        let Some(live) = self.host.live.borrow().get(&key).cloned() else { return };
        match rustix::process::pidfd_send_signal(&live.pidfd, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => log::error!("killing {key}: {error}"),
        }
        let cgroup = self.host.cgroup(key.pod, &key.container);
        let killed = spawn_blocking(move || cgroups::open(&cgroup).and_then(|cgroup| cgroup.kill()));
        match killed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::error!("killing {key}: {}", chain(&error)),
            Err(error) => log::error!("killing {key}: {error}"),
        }
    }

    fn key(&self, name: &Label, attempt: u32) -> Key {
        Key { pod: self.pod.uid, container: name.clone(), attempt }
    }

    fn pull(&self, name: &Label) {
        let (host, pod, name) = (Rc::clone(&self.host), Arc::clone(&self.pod), name.clone());
        spawn_local(async move {
            let Some(container) = pod.container(&name) else { return };
            let event = match host.images.ensure(&pod, container).await {
                Ok(image) => ContainerEvent::ImageReady {
                    check: image.healthcheck.as_ref().and_then(ask::image_check).map(Box::new),
                },
                Err(failure) => ContainerEvent::ImageFailed(failure),
            };
            host.send(pod.uid, &name, event);
        });
    }

    async fn signal(&self, name: &Label, attempt: u32) {
        // What ends gets no new connection any more.
        let (networks, uid) = (Arc::clone(&self.host.networks), self.pod.uid);
        if let Err(error) = spawn_blocking(move || networks.drain(uid)).await {
            log::error!("taking pod {uid} out of its services: {error}");
        }
        let key = self.key(name, attempt);
        let Some(live) = self.host.live.borrow().get(&key).cloned() else { return };
        let container = self.pod.container(name);
        let own = container.and_then(|container| container.lifecycle.stop_signal);
        let own = own.and_then(|number| rustix::process::Signal::from_named_raw(number.into()));
        let signal = own.or_else(|| self.host.images.stop_signal(&container?.image));
        let signal = signal.unwrap_or(rustix::process::Signal::TERM);
        match rustix::process::pidfd_send_signal(&live.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => log::error!("stopping {key}: {error}"),
        }
    }

    /// Takes an attempt's last output and removes what is left of it. Init forgets it only here, after the
    /// record is durable and the log whole.
    async fn finish(&self, name: &Label, attempt: u32) {
        let key = self.key(name, attempt);
        let live = self.host.live.borrow_mut().remove(&key);
        let (host, uid, container) = (Rc::clone(&self.host), self.pod.uid, name.clone());
        // The next attempt, where there is one already, has taken the cgroup over and cleared it.
        let newer =
            host.live.borrow().keys().any(|one| one.pod == uid && one.container == container && one.attempt > attempt);
        let cgroup = (!newer).then(|| host.cgroup(uid, &container));
        let folder = host.folders.attempt(uid, &container, attempt);
        let old_log = attempt.checked_sub(2).map(|old| host.folders.log(&self.pod, &container, old));
        let cleared = spawn_blocking(move || {
            // Whatever is still in the cgroup holds the pipes open.
            if let Some(Ok(cgroup)) = cgroup.as_deref().map(cgroups::open) {
                let ended = cgroup.kill().and_then(|()| cgroup.remove());
                if let Err(error) = ended {
                    log::error!("removing cgroup {cgroup:?}: {}", chain(&error));
                }
            }
            files::remove_folder(&folder);
            if let Some(log) = old_log {
                files::remove_log(&log);
            }
        });
        if let Err(error) = cleared.await {
            log::error!("cleaning up after {key}: {error}");
        }
        if let Some(log) = live.and_then(|live| live.log.borrow_mut().take()) {
            log.finish().await;
        }
        files::remove_file(&self.host.folders.intent(&key));
        for key in [health_key(&key), key.to_string()] {
            if let Err(error) = self.host.holder.forget(&key).await {
                log::error!("init could not forget {key}: {}", chain(&error));
            }
        }
    }

    async fn prepare(&mut self) -> Result<(), NotStarted> {
        if self.prepared.is_none() {
            let network = self.prepare_network().await?;
            let (networks, pod, namespace) = (Arc::clone(&self.host.networks), Arc::clone(&self.pod), network.clone());
            let plugged =
                spawn_blocking(move || networks.plug(&pod, namespace.as_ref().map(|network| network.as_fd())));
            plugged
                .await
                .map_err(|error| not_created(&error))?
                .map_err(|error| NotStarted::NotCreated { reason: error.reason(), message: chain(&error) })?;
            let users = match &network {
                Some(network) => self.users(network).await?,
                None => None,
            };
            let (folders, pod) = (self.host.folders.clone(), Arc::clone(&self.pod));
            let root = users.as_ref().map_or(0, |users| users.root);
            let (facts, cgroup) = (self.host.facts(&pod), format!("{}/{}", self.host.config.cgroup, pod.uid));
            let networks = Arc::clone(&self.host.networks);
            let volumes = spawn_blocking(move || {
                let failed = |message| NotStarted::NotCreated { reason: "FailedMount", message };
                let device =
                    ["/etc/hosts", "/etc/resolv.conf"].map(|file| std::fs::read_to_string(file).unwrap_or_default());
                let names = networks.etc(&pod, device);
                let volumes = folders.prepare(&pod, root, names, &facts).map_err(failed)?;
                cgroups::weigh(&cgroup, &of_pod(&pod)).map_err(|error| not_created(&error))?;
                Ok(volumes)
            });
            let volumes = volumes.await.map_err(|error| not_created(&error))??;
            self.prepared = Some(Prepared { network, users, volumes });
        }
        Ok(())
    }

    /// Lets the pod's volumes follow config maps and secrets.
    async fn refresh(&self) {
        let Some(prepared) = &self.prepared else { return };
        let root = prepared.users.as_ref().map_or(0, |users| users.root);
        let (folders, pod) = (self.host.folders.clone(), Arc::clone(&self.pod));
        let facts = self.host.facts(&pod);
        if let Err(error) = spawn_blocking(move || volumes::refresh(&folders, &pod, root, &facts)).await {
            log::error!("volumes of pod {}: {error}", self.pod.uid);
        }
    }

    async fn prepare_network(&mut self) -> Result<Option<Arc<OwnedFd>>, NotStarted> {
        if self.pod.host_network {
            return Ok(None);
        }
        if self.network.is_none() {
            let own = self.host.ranges.clone().filter(|_| !self.pod.host_users);
            let uid = self.pod.uid;
            let made = spawn_blocking(move || match own {
                Some(ranges) => {
                    let root = ranges.root_of(uid).map_err(refused)?;
                    skeg_runtime::new_network_with_users(root, USERS).map_err(|error| not_created(&error))
                }
                None => skeg_runtime::new_network().map_err(|error| not_created(&error)),
            });
            let network = made.await.map_err(|error| not_created(&error))??;
            let key = network_key(self.pod.uid);
            self.host.holder.hold(&key, None, &[network.as_fd()], &[]).await.map_err(|error| not_created(&error))?;
            self.network = Some(Arc::new(network));
        }
        Ok(self.network.clone())
    }

    /// The users of a pod, by the network that init holds: whatever made that is what runs.
    async fn users(&self, network: &Arc<OwnedFd>) -> Result<Option<Users>, NotStarted> {
        let namespace = skeg_runtime::user_namespace_of(network.as_fd()).map_err(|error| not_created(&error))?;
        let (Some(namespace), Some(ranges)) = (namespace, self.host.ranges.clone()) else { return Ok(None) };
        let uid = self.pod.uid;
        let root = spawn_blocking(move || ranges.root_of(uid)).await.map_err(|error| not_created(&error))?;
        Ok(Some(Users { namespace: Arc::new(namespace), root: root.map_err(refused)? }))
    }

    async fn remove(&mut self, keep: bool) {
        self.prepared = None;
        self.network = None;
        if let Err(error) = self.host.holder.forget(&network_key(self.pod.uid)).await {
            log::error!("init could not forget the network of pod {}: {}", self.pod.uid, chain(&error));
        }
        let (host, pod) = (Rc::clone(&self.host), Arc::clone(&self.pod));
        let (folders, journal, cgroup) =
            (host.folders.clone(), host.journal.clone(), format!("{}/{}", host.config.cgroup, pod.uid));
        let networks = Arc::clone(&host.networks);
        let removed = spawn_blocking(move || {
            networks.unplug(pod.uid, keep);
            folders.release(&pod);
            if let Ok(found) = cgroups::open(&cgroup)
                && let Err(error) = found.remove()
            {
                log::error!("removing cgroup {cgroup}: {}", chain(&error));
            }
            if !keep {
                folders.remove(&pod);
                // Last, so that a sudden end before this only means doing it again.
                if let Err(error) = journal.remove_record(pod.uid) {
                    log::error!("forgetting pod {}: {error}", pod.uid);
                }
            }
        });
        if let Err(error) = removed.await {
            log::error!("removing pod {}: {error}", self.pod.uid);
        }
    }
}

fn refused(message: String) -> NotStarted {
    NotStarted::NotCreated { reason: "CreateContainerError", message }
}

fn not_created(error: &dyn Error) -> NotStarted {
    refused(chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_round_trip_and_others_are_refused() {
        let key = Key { pod: Uid([3; 16]), container: "main".try_into().unwrap(), attempt: 12 };
        assert_eq!(key.to_string().parse(), Ok(key.clone()));
        for bad in ["", "x/main/1", &network_key(key.pod), &format!("{key}/1"), &format!("{}/main/x", key.pod)] {
            assert_eq!(bad.parse::<Key>(), Err(()), "{bad}");
        }
    }
}
