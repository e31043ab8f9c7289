//! The agent's loop: takes events one at a time, lets the core decide, and hands actions to the pods' workers.
//!
//! Owns the node's state, the clock and the take-over from an earlier agent. Does nothing slow itself.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use skeg_protocol::message::{LocalPod, NodeStatus, PullSecrets, StreamRequest};
use skeg_protocol::{Label, Manifest, PodStatus, Uid};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{spawn_blocking, spawn_local};

use crate::alone::{Project, Projects, boot, merge};
use crate::apply::{
    self, Adopted, Folders, HeldData, Host, Images, Key, Ranges, Registries, Worker, chain, health_key, network_key,
    remove_file, remove_parent_cgroup,
};
use crate::ask::clear_left_over;
use crate::config::Config;
use crate::core::{
    Action, ContainerEvent, Event, Found, Known, Node, Now, Order, Outcome, PodRecord, RecordedPhase, Step, Trial,
    Verdict,
};
use crate::events::{Events, of_device};
use crate::hold::{Exit, Exited, Held, Holder};
use crate::journal::{Journal, make_folder};
use crate::logs::{Pipes, Scratch};
use crate::network::{self, Networks};
use crate::peer::Stream;
use crate::trial::{Standing, State};
use crate::{appliance, eviction, link, local, streams};

/// Longest wait for containers when the agent is told to end.
const HALT_GRACE: Duration = Duration::from_secs(30);

/// The moment.
pub fn now() -> Now {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let monotonic = Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0));
    let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Now { monotonic, wall: wall.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX)) }
}

/// The random id of this boot.
pub fn boot_id() -> anyhow::Result<Uid> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    text.trim().parse().with_context(|| format!("reading {path}"))
}

/// The agent of a device.
pub struct Agent {
    /// What workers share.
    pub host: Rc<Host>,
    /// The node's state.
    pub node: RefCell<Node>,
    /// The manifest that is durable.
    pub held: RefCell<Manifest>,
    /// The device's own projects.
    pub projects: RefCell<Projects>,
    /// State of the link, for people.
    pub link: RefCell<String>,
    /// How that manifest stands.
    standing: RefCell<Standing>,
    workers: RefCell<BTreeMap<Uid, mpsc::UnboundedSender<Action>>>,
    changed: watch::Sender<u64>,
}

impl Agent {
    /// Takes an event and has its actions done. Only for the loop and what comes before it.
    fn step(&self, event: Event) {
        if let Event::Manifest { manifest, .. } = &event {
            self.host.networks.want(manifest);
            let networks = Arc::clone(&self.host.networks);
            drop(spawn_blocking(move || {
                // A failure is said in the log.
                networks.settle().ok();
                networks.sweep();
            }));
        }
        let freed = matches!(event, Event::PodRemoved(_));
        let matters = freed || matches!(event, Event::Manifest { .. });
        if let Event::PodRemoved(uid) = &event {
            self.workers.borrow_mut().remove(uid);
        }
        let (orders, version) = {
            let mut node = self.node.borrow_mut();
            (node.step(event, now()), node.version())
        };
        for order in orders {
            self.obey(order);
        }
        if matters {
            self.want_images();
        }
        if freed {
            self.collect_images();
        }
        if self.changed.send_if_modified(|told| std::mem::replace(told, version) != version) {
            self.tell_networks();
        }
    }

    fn obey(&self, order: Order) {
        match order {
            Order::Pod(uid, action) => {
                if let Action::Admit(pod) = &action {
                    let worker = Worker::spawn(Rc::clone(&self.host), Arc::clone(pod), None, false);
                    self.workers.borrow_mut().insert(uid, worker);
                }
                if let Some(worker) = self.workers.borrow().get(&uid) {
                    // A worker ends only after the removal that the core asked it for.
                    worker.send(action).ok();
                }
            }
            Order::Fetch(pod, name) => {
                let host = Rc::clone(&self.host);
                spawn_local(async move {
                    let Some(container) = pod.container(&name) else { return };
                    let result = host.images.ensure(&pod, container).await.map(drop);
                    host.events.send(Event::Fetched { pod: Arc::clone(&pod), container: name, result }).ok();
                });
            }
            Order::Tell(happening) => self.host.happenings.tell(happening, now()),
            Order::Judge(verdict) => self.judge(&verdict),
        }
    }

    /// Tells the networks which pods may get connections.
    fn tell_networks(&self) {
        let ready = {
            let node = self.node.borrow();
            node.pods().filter(|(_, status)| network::receives(status)).map(|(pod, _)| pod.uid).collect()
        };
        if self.host.networks.observe(ready) {
            let networks = Arc::clone(&self.host.networks);
            // A failure is said in the log.
            drop(spawn_blocking(move || networks.settle().ok()));
        }
    }

    /// Tells the store which images a kept revision or a pod needs.
    fn want_images(&self) {
        let (node, projects) = (self.node.borrow(), self.projects.borrow());
        let previous = self.host.journal.previous_manifest();
        let held = self.held.borrow();
        let pods = node.pods().map(|(pod, _)| pod.as_ref()).chain(node.coming().map(Arc::as_ref));
        let own = projects.all().values().flat_map(Project::pods);
        let pods = pods.chain(&held.pods).chain(&previous.pods).chain(own);
        self.host.images.store.want(apply::wanted(pods));
    }

    /// Removes images that nothing needs, where the limits say so.
    fn collect_images(&self) {
        let store = self.host.images.store.clone();
        spawn_local(async move {
            match store.collect(skeg_images::Goal::Limits).await {
                Ok(removed) if removed.is_empty() => {}
                Ok(removed) => log::info!("removed {} images that nothing needs", removed.len()),
                Err(error) => log::error!("removing images that nothing needs: {}", chain(&error)),
            }
        });
    }

    /// Tells when something about the pods may have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// State of every pod.
    pub fn pods(&self) -> Vec<PodStatus> {
        self.node.borrow().pods().map(|(_, status)| self.with_ips(status)).collect()
    }

    fn with_ips(&self, status: PodStatus) -> PodStatus {
        PodStatus { ips: self.host.networks.ips(status.uid), ..status }
    }

    /// State of the node for local commands.
    pub fn status(&self) -> NodeStatus {
        let node = self.node.borrow();
        let pods = node.pods().map(|(pod, status)| LocalPod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            status: self.with_ips(status),
        });
        NodeStatus {
            name: self.host.folders.node_name.as_str().try_into().unwrap_or_default(),
            revision: self.held.borrow().revision,
            link: self.link.borrow().clone(),
            pods: pods.collect(),
        }
    }

    /// Takes the secrets for its pods' pulls; whoever waits for an image tries at once.
    pub fn learn(&self, secrets: PullSecrets) {
        self.host.images.registries.learn(secrets);
        // Without the loop the agent is ending.
        self.host.events.send(Event::NewImages).ok();
    }

    /// Serves a stream in a task of its own.
    pub fn serve_stream(self: &Rc<Self>, stream: Stream, request: StreamRequest) {
        spawn_local(streams::serve(Rc::clone(self), stream, request));
    }

    /// Makes a manifest durable, then follows it.
    ///
    /// # Errors
    /// It could not be made durable; what was held before is followed on.
    pub async fn accept(&self, manifest: Manifest) -> Result<(), String> {
        let journal = self.host.journal.clone();
        let boot = boot_id().map_err(|error| error.to_string())?;
        let stored = spawn_blocking(move || {
            journal.store_manifest(&manifest)?;
            Standing::of(&journal, &manifest, boot, now()).map(|standing| (manifest, standing))
        });
        let stored = stored.await.map_err(|error| error.to_string())?;
        let (manifest, standing) = stored.map_err(|error| error.to_string())?;
        log::info!("revision {} with {} pods is wanted from now on", manifest.revision, manifest.pods.len());
        self.held.replace(manifest);
        self.standing.replace(standing);
        self.want();
        Ok(())
    }

    /// Follows what is durable: the controller's revision, or the one before it, and the device's own projects.
    pub fn want(&self) {
        let (manifest, trial) = self.wanted();
        self.host.data.send_replace(Arc::new(manifest.data.clone()));
        // By way of the loop, which then knows of new deadlines; without it the agent is ending.
        self.host.events.send(Event::Manifest { manifest: Arc::new(manifest), trial }).ok();
    }

    /// All that is wanted of this device, and what of it is on trial.
    pub fn wanted(&self) -> (Manifest, Option<Trial>) {
        let (followed, trial) = self.standing.borrow().followed(&self.host.journal, &self.held.borrow());
        let (manifest, left) = merge(&followed, self.projects.borrow().all().iter());
        for problem in left {
            log::error!("left out: {problem}");
        }
        (manifest, trial)
    }

    /// Ends a trial.
    fn judge(&self, verdict: &Verdict) {
        let standing = self.standing.borrow().judged(verdict);
        if standing.revision != verdict.revision {
            return;
        }
        let told = match &verdict.result {
            Ok(()) => of_device("RevisionGood", format!("revision {}: its pods are ready", verdict.revision)),
            Err(why) => of_device("RolledBack", format!("revision {}: {why}", verdict.revision)),
        };
        self.host.happenings.tell(told, now());
        self.standing.replace(standing.clone());
        if standing.state == State::RolledBack {
            self.want();
        }
        let journal = self.host.journal.clone();
        spawn_local(async move {
            match spawn_blocking(move || journal.store_standing(&standing)).await {
                Ok(Ok(())) => {}
                // A later agent puts the revision on trial once more.
                Ok(Err(error)) => log::error!("the verdict: {error}"),
                Err(error) => log::error!("the verdict: {error}"),
            }
        });
    }

    /// Turns an exit that init tells into an event.
    fn exited(&self, exited: &Exited) {
        let known = exited.key.parse::<Key>().ok().filter(|key| {
            let node = self.node.borrow();
            node.container(key.pod, &key.container).is_some_and(|one| one.restarts == key.attempt && one.spent)
        });
        let Some(key) = known else {
            let (holder, key) = (self.host.holder.clone(), exited.key.clone());
            spawn_local(async move {
                if let Err(error) = holder.forget(&key).await {
                    log::error!("init could not forget {key}: {}", chain(&error));
                }
            });
            return;
        };
        let cgroup = self.host.cgroup(key.pod, &key.container);
        let kills = crate::cgroups::open(&cgroup).and_then(|cgroup| cgroup.oom_kills());
        let outcome = outcome(exited.exit, kills.is_ok_and(|count| count > 0));
        log::info!("{}: {}", exited.key, outcome.message);
        let live = self.host.live.borrow().get(&key).cloned();
        let host = Rc::clone(&self.host);
        spawn_local(async move {
            // Whoever hears of the end may read the whole log.
            let log = live.and_then(|live| live.log.borrow_mut().take());
            if let Some(log) = log {
                log.finish().await;
            }
            let Key { pod, container, attempt } = key;
            let event = ContainerEvent::Exited { attempt, outcome };
            // Without the loop the agent is ending; init will tell the exit again.
            host.events.send(Event::Container { pod, container, event }).ok();
        });
    }
}

fn outcome(exit: Exit, memory_ran_out: bool) -> Outcome {
    let (code, signal, mut message) = match exit {
        Exit::Code(code) => (code, 0, format!("it exited with code {code}")),
        Exit::Signal(number) => {
            let name = nix::sys::signal::Signal::try_from(number).map_or("unknown", |signal| signal.as_str());
            (128 + number, u8::try_from(number).unwrap_or(u8::MAX), format!("signal {number} ({name}) ended it"))
        }
        Exit::Lost => (255, 0, "nobody saw how it ended".to_owned()),
    };
    let out_of_memory = memory_ran_out && code != 0;
    if out_of_memory {
        message.push_str("; the kernel killed a process of it that went over the memory limit");
    }
    Outcome { code, signal, out_of_memory, message }
}

/// Runs the agent until it is told to end and every pod has stopped.
///
/// # Errors
/// The agent can't begin its work, or lost init.
pub async fn run(config: Config) -> anyhow::Result<()> {
    for folder in [&config.state_dir, &config.run_dir] {
        make_folder(folder).with_context(|| format!("making folder {}", folder.display()))?;
    }
    let listen = |kind| signal(kind).context("listening for signals");
    let signals = [listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?];
    let (holder, held) = Holder::from_env().context("asking init what it holds")?;
    let (events, mut incoming) = mpsc::unbounded_channel();
    let link = link::Settings::new(&config);
    if let Some(board) = config.appliance.clone().filter(|_| appliance::is_board()) {
        drop(spawn_local(appliance::network(board, config.node_name())));
    }
    let host = Rc::new(make_host(config, holder, events, &link)?);
    let projects = host.journal.projects().context("reading the device's own projects")?;
    let agent = Rc::new(Agent {
        projects: RefCell::new(projects),
        node: RefCell::new(Node::new(boot_id()?)),
        held: RefCell::default(),
        link: RefCell::new(link.as_ref().map_or_else(|error| error.to_string(), |_| "connecting".to_owned())),
        standing: RefCell::new(Standing::good(0)),
        workers: RefCell::default(),
        changed: watch::Sender::new(0),
        host,
    });
    let manifest = agent.host.journal.manifest();
    let standing = Standing::of(&agent.host.journal, &manifest, boot_id()?, now()).unwrap_or_else(|error| {
        // It goes on as if it were good: a full disk must not keep the pods from running.
        log::error!("the standing of revision {}: {error}", manifest.revision);
        Standing::good(manifest.revision)
    });
    agent.held.replace(manifest);
    agent.standing.replace(standing);
    // Pods of the revision before may still be there, in its networks.
    agent.host.networks.want(&agent.host.journal.previous_manifest());
    let (wanted, trial) = agent.wanted();
    agent.host.networks.want(&wanted);
    agent.host.data.send_replace(Arc::new(wanted.data.clone()));
    // Of the program before this one; who uses it keeps it.
    remove_file(&agent.host.folders.init());
    reserve(&agent.host);
    let (servers, held) = held.into_iter().partition(|item| item.key.starts_with(network::dns::KEY));
    let names = network::dns::serve(Arc::clone(&agent.host.networks), agent.host.holder.clone(), servers);
    drop(spawn_local(names));
    take_over(&agent, held).await?;
    drop(spawn_local(network::watch_rules(Arc::clone(&agent.host.networks))));
    agent.step(Event::Manifest { manifest: Arc::new(wanted), trial });
    let volumes = agent.host.folders.persistent();
    drop(spawn_blocking(move || volumes.sweep()));
    spawn_local(eviction::watch(Rc::clone(&agent)));
    agent.collect_images();
    spawn_local(local::serve(Rc::clone(&agent), local::bind(&agent.host.folders.run)?));
    boot(&agent);
    match link {
        Ok(settings) => drop(spawn_local(link::follow(Rc::clone(&agent), settings))),
        Err(link::NoLink::NotConfigured) => {}
        Err(error) => log::error!("no link to a controller: {error}"),
    }
    turn(&agent, &mut incoming, signals).await
}

/// Keeps a part of the memory for init and the agent, whatever pods take.
fn reserve(host: &Host) {
    let resources = crate::convert::of_all_pods(host.device.memory);
    if let Err(error) = crate::cgroups::weigh(&host.config.cgroup, &resources) {
        log::warn!("pods may take all of the memory: {}", chain(&error));
    }
}

async fn turn(
    agent: &Rc<Agent>,
    incoming: &mut mpsc::UnboundedReceiver<Event>,
    [mut terminate, mut interrupt]: [Signal; 2],
) -> anyhow::Result<()> {
    loop {
        let deadline = agent.node.borrow().deadline();
        let timer = async {
            match deadline {
                Some(at) => tokio::time::sleep(at.saturating_sub(now().monotonic)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(event) = incoming.recv() => agent.step(event),
            exited = agent.host.holder.next_exit() => agent.exited(&exited.context("listening to init")?),
            () = timer => agent.step(Event::Timer),
            _ = terminate.recv() => halt(agent),
            _ = interrupt.recv() => halt(agent),
        }
        if agent.node.borrow().halted() {
            log::info!("every pod has stopped");
            let networks = Arc::clone(&agent.host.networks);
            spawn_blocking(move || networks.close()).await.context("taking the networks down")?;
            agent.host.happenings.tell(of_device("Shutdown", "every pod has stopped"), now());
            agent.host.happenings.finish().await;
            remove_parent_cgroup(&agent.host.config.cgroup);
            return Ok(());
        }
    }
}

fn halt(agent: &Agent) {
    log::info!("told to end: stopping every pod");
    agent.step(Event::Halt { grace: HALT_GRACE });
}

fn make_host(
    config: Config,
    holder: Holder,
    events: mpsc::UnboundedSender<Event>,
    link: &Result<link::Settings, link::NoLink>,
) -> anyhow::Result<Host> {
    let folders =
        Folders { state: config.state_dir.clone(), run: config.run_dir.clone(), node_name: config.node_name() };
    let controller = match link {
        Ok(settings) => Some(settings.registry()?),
        Err(_) => None,
    };
    let images = Images {
        store: skeg_images::Store::open(&config.state_dir.join(apply::STORE), config.images.limits())
            .context("opening the image store")?,
        platform: skeg_images::Platform::host(),
        registries: Registries::new(&config),
        controller,
    };
    Ok(Host {
        journal: Journal::open(&config.state_dir)?,
        ranges: ranges(&folders),
        data: watch::Sender::default(),
        device: Arc::new(crate::volumes::device(&folders)),
        networks: Arc::new(Networks::open(&config.network, folders.pods()).context("setting up the networks of pods")?),
        scratch: Scratch::new(config.logs.limits()).context("making the logs' buffers")?,
        happenings: Events::open(&config.state_dir, boot_id()?, now()),
        config,
        folders,
        holder,
        images,
        events,
        live: RefCell::default(),
    })
}

/// The ranges of pods' users, where the kernel can give pods users of their own.
fn ranges(folders: &Folders) -> Option<Ranges> {
    match skeg_runtime::check_other_ids(&folders.state.join(apply::STORE)) {
        Ok(()) => Some(Ranges::new(folders.pods())),
        Err(error) => {
            log::warn!("pods share the users of the device: {}", chain(&error));
            None
        }
    }
}

/// Takes over what an earlier agent has left: running containers, exits, and rubbish.
async fn take_over(agent: &Rc<Agent>, held: Vec<Held>) -> anyhow::Result<()> {
    let host = &agent.host;
    let mut held: BTreeMap<String, Held> = held.into_iter().map(|item| (item.key.clone(), item)).collect();
    let mut exits = Vec::new();
    let boot = boot_id()?;
    for record in host.journal.records()? {
        let (uid, pod) = (record.pod.uid, Arc::new(record.pod.clone()));
        let network = held.remove(&network_key(uid)).and_then(|item| item.fds.into_iter().next());
        let own_users = match &network {
            Some(network) => skeg_runtime::user_namespace_of(network.as_fd()).context("looking at a pod's network")?,
            None => None,
        };
        let own_users = own_users.is_some();
        let (mut running, mut ended) = (false, Vec::new());
        let mut found = BTreeMap::new();
        for container in &record.containers {
            let key = Key { pod: uid, container: container.name.clone(), attempt: container.restarts };
            let begun = container.phase == RecordedPhase::Begun && record.boot == boot;
            let mut told = Vec::new();
            let health = held.remove(&health_key(&key)).and_then(|item| postcard::from_bytes::<Known>(&item.data).ok());
            match held.remove(&key.to_string()).and_then(|item| take_up(&key, item, own_users, &mut told)) {
                Some((adopted, what)) => {
                    clear_left_over(&host.cgroup(uid, &container.name));
                    host.adopt(&pod, adopted).await;
                    if begun {
                        let check = pod.container(&container.name).and_then(|one| host.images.check(&one.image));
                        let (known, check) = (health.unwrap_or_default(), check.map(Box::new));
                        let HeldData { since, started_at } = what;
                        let since = Duration::from_nanos(since);
                        let what = Found::Held { since, started_at, known, check };
                        found.insert(container.name.clone(), what);
                        exits.append(&mut told);
                        running = true;
                    } else {
                        // Its end is in the record; the agent died before it had cleaned up.
                        ended.push(key);
                    }
                }
                None if host.clear_cgroup(uid, &container.name) => {
                    found.insert(container.name.clone(), Found::Lost);
                }
                None => {}
            }
        }
        adopt(agent, record, &found);
        if running {
            host.networks.expect(uid);
        }
        let worker = Worker::spawn(Rc::clone(host), pod, network, running);
        for Key { container, attempt, .. } in ended {
            // The worker waits for what it is told.
            worker.send(Action::Container(container, Step::Finish(attempt))).ok();
        }
        agent.workers.borrow_mut().insert(uid, worker);
    }
    drop_unknown(agent, held).await;
    for exited in exits {
        agent.exited(&exited);
    }
    Ok(())
}

/// Takes up a held attempt, noting its exit where it had one.
fn take_up(key: &Key, item: Held, own_users: bool, exits: &mut Vec<Exited>) -> Option<(Adopted, HeldData)> {
    let data: HeldData = match postcard::from_bytes(&item.data) {
        Ok(data) => data,
        Err(error) => {
            log::error!("{key}: what init holds was not put there by an agent of this version: {error}");
            return None;
        }
    };
    let mut fds = item.fds.into_iter();
    let pidfd: OwnedFd = fds.next()?;
    let pipes = match Pipes::from_fds(fds) {
        Ok(pipes) => pipes,
        Err(error) => {
            log::error!("{key}: {}", chain(&error));
            return None;
        }
    };
    exits.extend(item.exited);
    Some((Adopted { key: key.clone(), pidfd, pipes, own_users }, data))
}

fn adopt(agent: &Agent, record: PodRecord, found: &BTreeMap<Label, Found>) {
    let what = |name: &Label, _| found.get(name).cloned().unwrap_or(Found::Nothing);
    agent.node.borrow_mut().adopt(record, what, now());
}

/// Ends and removes everything that no record knows.
async fn drop_unknown(agent: &Agent, held: BTreeMap<String, Held>) {
    let host = &agent.host;
    for (key, item) in held {
        log::warn!("init holds {key}, which no record knows: ending it");
        if let (Some(_), Some(pidfd)) = (item.pid, item.fds.first()) {
            // It may have ended already.
            rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL).ok();
        }
        if let Err(error) = host.holder.forget(&key).await {
            log::error!("init could not forget {key}: {}", chain(&error));
        }
    }
    for uid in host.folders.uids() {
        if agent.node.borrow().pod(uid).is_none() {
            log::warn!("removing what is left of pod {uid}, which no record knows");
            for container in host.folders.containers(uid) {
                host.clear_cgroup(uid, &container);
            }
            host.folders.remove_unknown(uid);
        }
    }
}
