//! The networks of pods: cards and bridges, addresses, packet rules, services and names.
//!
//! Owns everything of the kernel's network that is named after skeg, and the answers to names. Nothing here decides
//! what runs: the agent tells which pods there are and which are ready. What is running is found again by a new agent
//! and left as it is, so no packet is lost. Ingress, policies and limits are not here.

mod addresses;
mod conntrack;
pub mod dns;
mod links;
mod nftables;
mod rules;
mod services;
mod taken;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use skeg_protocol::manifest::{self, Attachment, Protocol, Service};
use skeg_protocol::status::ConditionKind;
use skeg_protocol::{Label, Manifest, Pod, PodStatus, Uid};
use thiserror::Error;
use tokio::io::Interest;

use crate::apply::chain;
use crate::async_fd;
use crate::config::PodNetwork;
use crate::netlink::{self, NETFILTER, ROUTE, Socket, route};
use addresses::{Addresses, Lease, NetworkId, Plan};
use links::{Bridge, Card};
use nftables::{Contents, RulesError};
use rules::Rules;

/// The kernel's group of listeners to changes of packet rules (`NFNLGRP_NFTABLES`), as a bit.
const RULE_NEWS: u32 = 1 << 6;
/// Between two repairs of rules that somebody else changes again and again.
const REPAIR_PERIOD: std::time::Duration = std::time::Duration::from_secs(1);

/// How long a packet may be under way within the device after its goal was chosen.
const UNDER_WAY: std::time::Duration = std::time::Duration::from_millis(20);

/// Longest wait for connections that were sent to a pod and are not open yet; one that is never answered stays so.
const OPENING: std::time::Duration = std::time::Duration::from_secs(2);

/// Why a pod can't have its network.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// A kept list of addresses can't be read or written.
    #[error("{}: {problem}", path.display())]
    Lease {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Every address is given away.
    #[error("no address is left for {what} in {range}")]
    Exhausted {
        /// For whom.
        what: String,
        /// In which range.
        range: String,
    },
    /// A pod wants an address that its network does not have.
    #[error("address {address} is not in network {network}{}", range.as_ref().map_or(String::new(), |r| format!(", which is {r}")))]
    Outside {
        /// The address.
        address: IpAddr,
        /// The network.
        network: NetworkId,
        /// Its range.
        range: Option<String>,
    },
    /// A pod wants an address that somebody has.
    #[error("address {address} in network {network} is taken by {holder}")]
    Taken {
        /// The address.
        address: IpAddr,
        /// The network.
        network: NetworkId,
        /// By whom.
        holder: String,
    },
    /// A network's range is in use elsewhere.
    #[error(
        "network {network} can't have {range}: the device has {other} already; choose another range ([network] in skegd.toml, or the network's subnet)"
    )]
    Conflict {
        /// The network.
        network: NetworkId,
        /// Its range.
        range: String,
        /// The device's route or address, and on which interface.
        other: String,
    },
    /// A pod wants to be in a network that nobody described.
    #[error("there is no network {0}")]
    Unknown(NetworkId),
    /// A published port is in use.
    #[error("host port {port} on {address} is taken by {by}")]
    PortTaken {
        /// Which port.
        port: u16,
        /// On which address; the unspecified one is every address.
        address: IpAddr,
        /// A program or a pod.
        by: String,
    },
    /// A port is to be published on an address of somebody else.
    #[error("host port {port} can't be published on {address}: no interface of the device has that address")]
    NotOurs {
        /// Which port.
        port: u16,
        /// On which address.
        address: IpAddr,
    },
    /// The kernel lacks a part.
    #[error("this kernel can't connect pods: it needs {option}")]
    Lacks {
        /// Its configuration option.
        option: &'static str,
        /// What it says.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a step.
    #[error("{what}")]
    Kernel {
        /// The step.
        what: String,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// Ports can't be published.
    #[error("its ports can't be published")]
    Rules(#[source] Arc<RulesError>),
}

impl NetworkError {
    /// Whether another time it may go well without any change: a word for the pod's state.
    pub fn reason(&self) -> &'static str {
        match self {
            NetworkError::PortTaken { .. } | NetworkError::NotOurs { .. } => "HostPortConflict",
            _ => "FailedCreatePodSandBox",
        }
    }
}

/// A network that is there.
#[derive(Debug, Clone)]
struct Segment {
    id: NetworkId,
    plan: Plan,
    bridge: Bridge,
    internal: bool,
}

/// A pod that is there.
#[derive(Debug, Clone)]
struct Member {
    pod: Arc<Pod>,
    /// In the order of its cards; none on the device's network.
    leases: Vec<Lease>,
    /// Where a pod on the device's network is reached.
    device: Vec<IpAddr>,
    ready: bool,
}

impl Member {
    /// Its first address of a family.
    fn address(&self, v4: bool) -> Option<IpAddr> {
        let own = self.leases.iter().flat_map(Lease::addresses).chain(self.device.iter().copied());
        { own }.find(|address| address.is_ipv4() == v4)
    }
}

/// What the rules and names are made of. Locked for moments only.
#[derive(Debug, Default)]
struct State {
    described: BTreeMap<NetworkId, manifest::Network>,
    /// Networks of the present manifest, which stay without a pod.
    wanted: BTreeSet<NetworkId>,
    segments: BTreeMap<NetworkId, Segment>,
    pods: BTreeMap<Uid, Member>,
    /// Pods that get connections, whether they are plugged in already or not.
    ready: BTreeSet<Uid>,
    services: Vec<Service>,
    /// Addresses that the device chose for services.
    virtuals: BTreeMap<(Label, String), Ipv4Addr>,
    /// Pods of an earlier agent that are not known again yet: until then the rules stay as they are.
    awaited: BTreeSet<Uid>,
}

/// What talks to the kernel. Locked for as long as the kernel takes.
struct Kernel {
    route: Socket,
    netfilter: Option<Socket>,
    addresses: Addresses,
    /// The rules that are in force, where they are those of this agent.
    rules: Option<Rules>,
    /// What the table holds; `None` before anybody looked.
    held: Option<Holds>,
    /// Why the rules are not as they should be.
    broken: Option<Arc<RulesError>>,
    /// The number of our table.
    handle: Option<u64>,
}

/// What is known of our table.
enum Holds {
    /// There is none, or one that must not stay.
    Unknown,
    /// This.
    Known(Contents),
}

impl Kernel {
    /// Brings the table to these rules.
    fn change(&mut self, rules: &Rules) -> Result<(), RulesError> {
        let Some(socket) = &self.netfilter else {
            let source = rustix::io::Errno::PROTONOSUPPORT.into();
            return Err(RulesError::Lacks { option: "CONFIG_NF_TABLES", source });
        };
        let first = self.held.is_none();
        let held = self.held.take().unwrap_or_else(|| match nftables::read(socket) {
            Ok(Some(contents)) => Holds::Known(contents),
            _ => Holds::Unknown,
        });
        let mut wanted = Contents::of(rules);
        let changed = match &held {
            Holds::Known(old) => nftables::update(socket, old, &mut wanted),
            // A device without pods has no table.
            Holds::Unknown if *rules == Rules::default() => return Ok(()),
            Holds::Unknown => nftables::replace(socket, &wanted),
        };
        if let Err(error) = changed {
            self.held = Some(Holds::Unknown);
            return Err(error);
        }
        if first {
            tell_of_others(socket);
        }
        self.handle = nftables::handle(socket).ok();
        self.held = Some(Holds::Known(wanted));
        Ok(())
    }

    /// Forgets the UDP connections of backends that are no more.
    fn forget_udp(&self, rules: &Rules) {
        let changed = changed_udp(self.rules.as_ref(), rules);
        let Some(socket) = self.netfilter.as_ref().filter(|_| !changed.is_empty()) else { return };
        if let Err(error) = conntrack::forget_clients(socket, &changed) {
            log::warn!("old UDP connections may go on to pods that are gone (CONFIG_NF_CT_NETLINK): {error}");
        }
    }
}

/// The networks of a device. Its calls block on the kernel: for threads that may.
pub struct Networks {
    state: Mutex<State>,
    kernel: Mutex<Kernel>,
    services: route::Range,
    /// Tells when a network was made or removed.
    changed: tokio::sync::watch::Sender<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic could leave is the same as what a sudden end leaves: the next change mends it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Networks {
    /// The networks of the thread's network namespace. Leases lie below `pods`, a folder for each pod.
    ///
    /// # Errors
    /// A kept lease can't be read, or the kernel has no rtnetlink.
    pub fn open(config: &PodNetwork, pods: PathBuf) -> Result<Self, NetworkError> {
        let kernel = |what: &str| {
            let what = what.to_owned();
            move |source| NetworkError::Kernel { what, source }
        };
        let addresses = Addresses::open(config.clone(), links::has_ipv6(), pods)?;
        let services = addresses.services();
        let netfilter = Socket::open(NETFILTER, 0).inspect_err(|error| {
            log::warn!(
                "this kernel has no packet rules (CONFIG_NF_TABLES): pods reach each other and nobody else: {error}"
            );
        });
        let kernel = Kernel {
            route: Socket::open(ROUTE, 0).map_err(kernel("asking the kernel about its network"))?,
            netfilter: netfilter.ok(),
            addresses,
            rules: None,
            held: None,
            broken: None,
            handle: None,
        };
        if !links::has_ipv6() {
            log::info!("this kernel has no IPv6: pods have IPv4 addresses only");
        }
        let changed = tokio::sync::watch::Sender::new(());
        Ok(Networks { state: Mutex::default(), kernel: Mutex::new(kernel), services, changed })
    }

    /// Takes networks and services of a manifest; those of an earlier one stay known for the pods that it left.
    pub fn want(&self, manifest: &Manifest) {
        let mut state = lock(&self.state);
        state.wanted.clear();
        for network in &manifest.networks {
            let id = NetworkId { namespace: network.namespace.to_string(), name: network.name.to_string() };
            state.wanted.insert(id.clone());
            state.described.insert(id, network.clone());
        }
        state.virtuals = services::choose_virtuals(&manifest.services, self.services, &state.virtuals);
        state.services.clone_from(&manifest.services);
    }

    /// Takes which pods get connections. Whether that changed: then [`Networks::settle`] is due.
    pub fn observe(&self, ready: BTreeSet<Uid>) -> bool {
        let mut state = lock(&self.state);
        let changed = state.ready != ready;
        if changed {
            for (uid, member) in &mut state.pods {
                member.ready = ready.contains(uid);
            }
            state.ready = ready;
        }
        changed
    }

    /// Says that a pod of an earlier agent will be plugged in again.
    pub fn expect(&self, pod: Uid) {
        lock(&self.state).awaited.insert(pod);
    }

    /// Plugs a pod in: its network namespace gets its cards and addresses, its ports are published. A pod that is
    /// plugged in already, by this agent or an earlier one, stays as it is.
    ///
    /// # Errors
    /// [`NetworkError`] says what stands in the way; addresses that the pod got stay its own.
    pub fn plug(&self, pod: &Arc<Pod>, namespace: Option<BorrowedFd<'_>>) -> Result<(), NetworkError> {
        let done = self.plug_cards(pod, namespace).and_then(|member| self.publish(member));
        lock(&self.state).awaited.remove(&pod.uid);
        let settled = self.settle();
        done?;
        let publishes =
            pod.containers.iter().flat_map(|container| &container.ports).any(|port| port.host_port.is_some());
        match settled {
            Err(error) if publishes && namespace.is_some() => Err(NetworkError::Rules(error)),
            _ => Ok(()),
        }
    }

    fn plug_cards(&self, pod: &Arc<Pod>, namespace: Option<BorrowedFd<'_>>) -> Result<Member, NetworkError> {
        let mut kernel = lock(&self.kernel);
        let mut member = Member { pod: Arc::clone(pod), leases: Vec::new(), device: Vec::new(), ready: false };
        let Some(namespace) = namespace else {
            member.device = device_addresses(&kernel.route);
            return Ok(member);
        };
        if pod.no_network {
            return Ok(member);
        }
        let own = [Attachment::default()];
        let places = if pod.networks.is_empty() { &own[..] } else { &pod.networks };
        let mut segments = Vec::new();
        for attachment in places {
            segments.push(self.segment(&mut kernel, pod, attachment)?);
        }
        let inside = links::enter(namespace)
            .map_err(|source| NetworkError::Kernel { what: "entering the pod's network".to_owned(), source })?;
        let out = segments.iter().position(|segment| !segment.internal);
        for (place, (segment, attachment)) in segments.iter().zip(places).enumerate() {
            let lease = kernel.addresses.lease(pod.uid, &segment.id, segment.plan, Some(attachment))?;
            let mac = attachment.mac.unwrap_or_else(|| links::made_up_mac(&format_args!("{} {}", pod.uid, segment.id)));
            let (plan, bridge) = (segment.plan, segment.bridge);
            let card = Card { pod: pod.uid, place, way_out: out == Some(place), lease: &lease, plan, bridge, mac };
            links::plug(&kernel.route, &inside, namespace, &card)?;
            member.leases.push(lease);
        }
        Ok(member)
    }

    /// Finds a network or makes it.
    fn segment(&self, kernel: &mut Kernel, pod: &Pod, attachment: &Attachment) -> Result<Segment, NetworkError> {
        let mut id = NetworkId::default();
        if !attachment.network.is_empty() {
            id = NetworkId { namespace: pod.namespace.to_string(), name: attachment.network.to_string() };
        }
        let (known, described, used) = {
            let state = lock(&self.state);
            let used: Vec<Plan> = state.segments.values().map(|segment| segment.plan).collect();
            (state.segments.get(&id).cloned(), state.described.get(&id).cloned(), used)
        };
        if let Some(known) = known {
            return Ok(known);
        }
        if described.is_none() && !id.is_default() {
            return Err(NetworkError::Unknown(id));
        }
        let plan = kernel.addresses.plan(&id, described.as_ref(), &used)?;
        let mtu = described.as_ref().and_then(|network| network.mtu);
        let bridge = links::bridge(&kernel.route, &id, plan, mtu)?;
        if id.is_default() {
            links::route_services(&kernel.route, bridge, self.services)?;
        }
        let internal = described.is_some_and(|network| network.internal);
        let segment = Segment { id: id.clone(), plan, bridge, internal };
        lock(&self.state).segments.insert(id, segment.clone());
        self.changed.send_replace(());
        Ok(segment)
    }

    /// Makes a pod known, where nobody else has its ports.
    fn publish(&self, mut member: Member) -> Result<(), NetworkError> {
        let mut state = lock(&self.state);
        let uid = member.pod.uid;
        for (front, _) in services::published(&member).filter(|_| !member.leases.is_empty()) {
            let (address, port) = (front.address, front.port);
            let clash = |other: &rules::Front| {
                let everywhere = other.address.is_unspecified() || address.is_unspecified();
                let families = other.address.is_ipv4() == address.is_ipv4();
                let one = (other.port, other.protocol) == (port, front.protocol) && families;
                one && (everywhere || other.address == address)
            };
            // One that is on its way out gives way.
            let others =
                state.pods.values().filter(|other| other.pod.uid != uid && state.ready.contains(&other.pod.uid));
            let holder = { others }.find(|other| services::published(other).any(|(other, _)| clash(&other)));
            let by = holder.map(|other| format!("pod {}/{}", other.pod.namespace, other.pod.name));
            if let Some(by) = by.or_else(|| taken::by(front.protocol, address, port)) {
                return Err(NetworkError::PortTaken { port, address, by });
            }
            if !address.is_unspecified() && !is_ours(address) {
                return Err(NetworkError::NotOurs { port, address });
            }
        }
        member.ready = state.ready.contains(&uid);
        state.pods.insert(uid, member);
        Ok(())
    }

    /// Forgets a pod whose containers are gone. Its addresses stay its own where it will come back.
    pub fn unplug(&self, pod: Uid, comes_back: bool) {
        let mut kernel = lock(&self.kernel);
        let member = {
            let mut state = lock(&self.state);
            state.awaited.remove(&pod);
            let member = state.pods.remove(&pod);
            let leases = member.as_ref().map_or(&[][..], |member| &member.leases);
            let bridges = leases.iter().filter_map(|lease| Some((state.segments.get(&lease.network)?.bridge, lease)));
            bridges.map(|(bridge, lease)| (bridge, lease.clone())).collect::<Vec<_>>()
        };
        for (bridge, lease) in &member {
            links::unplug(&kernel.route, *bridge, lease);
        }
        let gone: BTreeSet<IpAddr> = member.iter().flat_map(|(_, lease)| lease.addresses()).collect();
        if !gone.is_empty()
            && let Some(socket) = &kernel.netfilter
            && let Err(error) = conntrack::forget_addresses(socket, &gone)
        {
            log::warn!("old connections of pod {pod} stay known (CONFIG_NF_CT_NETLINK): {error}");
        }
        if !comes_back {
            kernel.addresses.forget(pod);
        }
        drop(kernel);
        // Said in the log already.
        self.settle().ok();
        self.sweep();
    }

    /// Removes networks that nobody wants and no pod is in.
    pub fn sweep(&self) {
        let kernel = lock(&self.kernel);
        let needed: BTreeSet<String> = {
            let mut state = lock(&self.state);
            if !state.awaited.is_empty() {
                return;
            }
            let State { segments, pods, wanted, .. } = &mut *state;
            let before = segments.len();
            segments.retain(|id, _| {
                let lives = |member: &Member| member.leases.iter().any(|lease| lease.network == *id);
                id.is_default() || wanted.contains(id) || pods.values().any(lives)
            });
            if segments.len() < before {
                self.changed.send_replace(());
            }
            segments.keys().map(NetworkId::bridge).collect()
        };
        if let Err(error) = links::remove_bridges(&kernel.route, |bridge| needed.contains(bridge)) {
            log::error!("removing networks without pods: {}", chain(&error));
        }
    }

    /// Takes everything of ours away: the device has no pod any more.
    pub fn close(&self) {
        let State { segments, .. } = std::mem::take(&mut *lock(&self.state));
        let ours: BTreeSet<String> = segments.keys().map(NetworkId::bridge).collect();
        let mut kernel = lock(&self.kernel);
        if let Err(error) = links::remove_bridges(&kernel.route, |bridge| !ours.contains(bridge)) {
            log::error!("removing the networks: {}", chain(&error));
        }
        if let (Some(socket), Some(Holds::Known(_))) = (&kernel.netfilter, &kernel.held)
            && let Err(error) = nftables::remove(socket)
        {
            log::error!("removing the packet rules: {}", chain(&error));
        }
        (kernel.held, kernel.rules) = (None, None);
    }

    /// Brings the packet rules up to what was told; returns when new connections follow them. A failure is said in the
    /// log, once.
    ///
    /// # Errors
    /// The rules are as before, or there are none.
    pub fn settle(&self) -> Result<(), Arc<RulesError>> {
        let mut kernel = lock(&self.kernel);
        let rules = {
            let state = lock(&self.state);
            if !state.awaited.is_empty() {
                return Ok(());
            }
            services::rules(&state)
        };
        if kernel.rules.as_ref() == Some(&rules) {
            return Ok(());
        }
        match kernel.change(&rules) {
            Ok(()) => {
                kernel.forget_udp(&rules);
                kernel.rules = Some(rules);
                kernel.broken = None;
                Ok(())
            }
            Err(error) => {
                let error = Arc::new(error);
                if kernel.broken.as_ref().is_none_or(|old| old.to_string() != error.to_string()) {
                    log::error!("published ports, services and the way out of pods do not work: {}", chain(&*error));
                }
                kernel.broken = Some(Arc::clone(&error));
                Err(error)
            }
        }
    }

    /// Waits until nothing new can reach a pod that no longer gets connections: the rules are changed, and what was on
    /// its way when they were has come. To be called before the pod is told to end.
    pub fn drain(&self, pod: Uid) {
        let own: BTreeSet<IpAddr> = self.ips(pod).into_iter().collect();
        let had = lock(&self.kernel).rules.iter().any(|rules| own.iter().any(|address| rules.pods.contains(address)));
        // A failure is said in the log.
        if self.settle().is_err() || !had {
            return;
        }
        let begin = std::time::Instant::now();
        loop {
            std::thread::sleep(UNDER_WAY);
            let kernel = lock(&self.kernel);
            let opening = kernel.netfilter.as_ref().map(|socket| conntrack::is_opening(socket, &own));
            if !matches!(opening, Some(Ok(true))) || begin.elapsed() > OPENING {
                return;
            }
        }
    }

    /// Puts everything anew, where there is something; says whether it was so.
    fn repair(&self) -> bool {
        {
            let mut kernel = lock(&self.kernel);
            if kernel.held.is_none() {
                return false;
            }
            (kernel.held, kernel.rules) = (Some(Holds::Unknown), None);
        }
        // Said in the log.
        self.settle().ok();
        true
    }

    /// Whether our table is not the one that was put there.
    fn lost_table(&self) -> bool {
        let kernel = lock(&self.kernel);
        let handle = kernel.netfilter.as_ref().and_then(|socket| nftables::handle(socket).ok());
        matches!(kernel.held, Some(Holds::Known(_))) && handle != kernel.handle
    }

    /// The number of the socket that changes the rules.
    fn rules_port(&self) -> Option<u32> {
        lock(&self.kernel).netfilter.as_ref()?.port().ok()
    }

    /// Tells when a network was made or removed.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// The device's own addresses in its networks.
    pub fn gateways(&self) -> Vec<IpAddr> {
        let state = lock(&self.state);
        let ranges = state.segments.values().flat_map(|segment| segment.plan.ranges());
        ranges.map(|range| range.address).collect()
    }

    /// What a name in small letters means to whoever has an address.
    fn look_up(&self, client: IpAddr, name: &str) -> dns::names::Found {
        dns::names::Asker::new(&lock(&self.state), client).look_up(name)
    }

    /// What a pod that is plugged in finds in its `/etc`: `hosts` and `resolv.conf`. `device` are the device's own.
    pub fn etc(&self, pod: &Pod, [hosts, resolver]: [String; 2]) -> [String; 2] {
        let state = lock(&self.state);
        let leases = state.pods.get(&pod.uid).map_or(&[][..], |member| &member.leases);
        let plans = leases.iter().filter_map(|lease| Some(state.segments.get(&lease.network)?.plan));
        let gateways: Vec<IpAddr> = plans.map(|plan| plan.v4.address).collect();
        let own: Vec<IpAddr> = leases.iter().flat_map(Lease::addresses).collect();
        let servers = &gateways[..gateways.len().min(1)];
        let gateway = gateways.first().copied();
        let hosts = match pod.host_network {
            true => hosts + &dns::files::aliases(pod, Some(Ipv4Addr::LOCALHOST.into())),
            false => dns::files::hosts(pod, &own, gateway),
        };
        [hosts, dns::files::resolver(pod, servers, &resolver)]
    }

    /// The addresses of a pod, the first of each family first.
    pub fn ips(&self, pod: Uid) -> Vec<IpAddr> {
        let state = lock(&self.state);
        let Some(member) = state.pods.get(&pod) else { return Vec::new() };
        let first: Vec<IpAddr> = [true, false].into_iter().filter_map(|v4| member.address(v4)).collect();
        let others = member.leases.iter().flat_map(Lease::addresses).filter(|address| !first.contains(address));
        first.iter().copied().chain(others).collect()
    }
}

/// Whether a pod gets connections: it is ready, and not on its way out.
pub fn receives(pod: &PodStatus) -> bool {
    pod.is(ConditionKind::Ready) && pod.reason != "Terminating"
}

/// The fronts of UDP whose backends are not what they were.
fn changed_udp(before: Option<&Rules>, now: &Rules) -> BTreeMap<rules::Front, rules::Spread> {
    let old = before.map(|rules| &rules.fronts);
    let gone = old.into_iter().flatten().filter(|(front, _)| !now.fronts.contains_key(front));
    let gone = gone.map(|(front, _)| (*front, rules::Spread::default()));
    let differs = now.fronts.iter().filter(|(front, spread)| old.and_then(|old| old.get(front)) != Some(spread));
    let changed = differs.map(|(front, spread)| (*front, spread.clone())).chain(gone);
    changed.filter(|(front, _)| front.protocol == Protocol::Udp && front.port != 53).collect()
}

fn tell_of_others(socket: &Socket) {
    for chain in nftables::dropping_forward(socket).unwrap_or_default() {
        log::warn!(
            "nftables chain {chain:?} drops what is forwarded unless it is allowed there: pods reach nothing outside and \
             nothing reaches published ports until it accepts iifname and oifname \"skeg*\""
        );
    }
}

/// The addresses of the interface that leads out.
fn device_addresses(socket: &Socket) -> Vec<IpAddr> {
    let links = route::links(socket).unwrap_or_default();
    let Some((out, _)) = links::way_out(socket, &links) else { return Vec::new() };
    let addresses = route::addresses(socket).unwrap_or_default().into_iter();
    let global = |address: &IpAddr| !matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    addresses.filter(|(link, _)| *link == out).map(|(_, range)| range.address).filter(global).collect()
}

fn is_ours(address: IpAddr) -> bool {
    let addresses = Socket::open(ROUTE, 0).and_then(|socket| route::addresses(&socket)).unwrap_or_default();
    address.is_loopback() || addresses.iter().any(|(_, range)| range.address == address)
}

/// Mends the packet rules whenever somebody else changes them, for as long as the agent runs.
pub async fn watch_rules(networks: Arc<Networks>) {
    let watched = Socket::open(NETFILTER, RULE_NEWS).and_then(|socket| {
        // Our own large changes are told, too.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 4 << 20)?;
        async_fd::watch(socket.into(), Interest::READABLE)
    });
    let Ok(socket) = watched else { return };
    let Some(port) = networks.rules_port() else { return };
    loop {
        let Ok(mut news) = socket.readable().await else { return };
        let foreign = match netlink::told(socket.get_ref()) {
            Ok(Some(answers)) => answers.iter().any(|answer| nftables::is_foreign(answer, port)),
            Ok(None) => {
                news.clear_ready();
                continue;
            }
            // Too much at once to be kept for us.
            Err(_) => networks.lost_table(),
        };
        if foreign {
            while let Ok(Some(_)) = netlink::told(socket.get_ref()) {}
            let networks = Arc::clone(&networks);
            let repaired = tokio::task::spawn_blocking(move || networks.repair()).await;
            if repaired.is_ok_and(|repaired| repaired) {
                log::warn!("somebody else changed the nftables table {:?}: it is as it was again", nftables::TABLE);
            }
            tokio::time::sleep(REPAIR_PERIOD).await;
        }
    }
}
