//! Which pods a service has, and the rules that follow from services and published ports.
//!
//! Pure. Only this device's pods are known here: a manifest holds nobody else's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use skeg_protocol::manifest::{Protocol, Service, ServiceKind, ServicePort, TargetPort};
use skeg_protocol::{Label, Pod};

use super::addresses::{Lease, hash};
use super::rules::{Front, Rules, Spread};
use super::{Member, State};
use crate::netlink::route::Range;

/// Whether a service's selector chooses a pod.
pub fn selects(service: &Service, pod: &Pod) -> bool {
    let has = |wanted: &(String, String)| pod.labels.contains(wanted);
    service.namespace == pod.namespace && !service.selector.is_empty() && service.selector.iter().all(has)
}

/// The pods of a service that get connections or, for `publish_not_ready`, have names.
pub fn members<'a>(state: &'a State, service: &'a Service) -> impl Iterator<Item = &'a Member> {
    let chosen = move |member: &&Member| selects(service, &member.pod);
    state.pods.values().filter(chosen).filter(|member| member.ready || service.publish_not_ready)
}

/// The port of a pod that a service's port means.
pub fn target(port: &ServicePort, pod: &Pod) -> Option<u16> {
    let named = |name: &Label| {
        let mut ports = pod.containers.iter().flat_map(|container| &container.ports);
        ports.find(|port_of| port_of.name == *name && port_of.protocol == port.protocol).map(|port| port.container_port)
    };
    match &port.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => named(name),
    }
}

/// Gives an address to every service that should have one and was not given any. What was chosen before stays.
pub fn choose_virtuals(
    services: &[Service],
    range: Range,
    before: &BTreeMap<(Label, String), Ipv4Addr>,
) -> BTreeMap<(Label, String), Ipv4Addr> {
    let IpAddr::V4(first) = range.address else { return BTreeMap::new() };
    let size = (1u64 << (32 - u32::from(range.length))) - 2;
    let given = services.iter().filter_map(|service| match &service.kind {
        ServiceKind::ClusterIp(given) => Some(given.iter().filter_map(as_v4)),
        _ => None,
    });
    let mut taken: BTreeSet<Ipv4Addr> = given.flatten().collect();
    let mut chosen = BTreeMap::new();
    let nameless = || services.iter().filter(|service| service.kind == ServiceKind::ClusterIp(Vec::new()));
    let key = |service: &Service| (service.namespace.clone(), service.name.to_string());
    for service in nameless() {
        if let Some(kept) = before.get(&key(service)).filter(|kept| taken.insert(**kept)) {
            chosen.insert(key(service), *kept);
        }
    }
    for service in nameless() {
        let begin = hash(&format_args!("{}/{}", service.namespace, service.name));
        let address = |step: u64| u32::try_from((begin.wrapping_add(step)) % size).unwrap_or(0);
        let candidates = (0..size).map(|step| Ipv4Addr::from(u32::from(first) + 1 + address(step)));
        if !chosen.contains_key(&key(service))
            && let Some(free) = { candidates }.find(|address| !taken.contains(address))
        {
            taken.insert(free);
            chosen.insert(key(service), free);
        }
    }
    chosen
}

fn as_v4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    }
}

/// The addresses of a service itself.
pub fn virtuals(state: &State, service: &Service) -> Vec<IpAddr> {
    match &service.kind {
        ServiceKind::ClusterIp(given) if !given.is_empty() => given.clone(),
        ServiceKind::ClusterIp(_) => {
            let chosen = state.virtuals.get(&(service.namespace.clone(), service.name.to_string()));
            chosen.map(|address| IpAddr::V4(*address)).into_iter().collect()
        }
        ServiceKind::Headless | ServiceKind::ExternalName(_) => Vec::new(),
    }
}

/// The unspecified addresses: every address of the device, one family after the other.
pub fn every() -> [IpAddr; 2] {
    [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
}

/// The rules for the state as it is.
pub fn rules(state: &State) -> Rules {
    let mut rules = Rules::default();
    for segment in state.segments.values() {
        rules.networks.push(super::rules::NetworkRule { bridge: segment.id.bridge(), internal: segment.internal });
        // Names are asked for there, whoever publishes that port everywhere.
        for gateway in segment.plan.ranges() {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                rules.fronts.insert(Front { protocol, address: gateway.address, port: 53 }, Spread::default());
            }
        }
    }
    for service in &state.services {
        let addresses = virtuals(state, service);
        rules.virtuals.extend(&addresses);
        for port in &service.ports {
            let every = every().into_iter().filter(|_| port.node_port.is_some());
            let node = every.map(|address| (address, port.node_port.unwrap_or(0)));
            for (address, number) in addresses.iter().map(|address| (*address, port.port)).chain(node) {
                let backends = members(state, service).filter_map(|member| backend(member, port, address));
                let spread = Spread { backends: backends.collect(), sticky: service.affinity_seconds.is_some() };
                add(&mut rules, Front { protocol: port.protocol, address, port: number }, spread);
            }
        }
    }
    for member in state.pods.values() {
        let internal = |lease: &&Lease| state.segments.get(&lease.network).is_some_and(|segment| segment.internal);
        let leases = member.leases.iter().filter(|lease| !internal(lease));
        rules.outward.extend(leases.flat_map(Lease::addresses));
        for (front, backend) in published(member) {
            add(&mut rules, front, Spread { backends: vec![backend], sticky: false });
        }
    }
    rules
}

fn add(rules: &mut Rules, front: Front, spread: Spread) {
    rules.pods.extend(spread.backends.iter().map(SocketAddr::ip));
    if spread.backends.is_empty() && front.address.is_unspecified() {
        return;
    }
    rules.fronts.insert(front, spread);
}

fn backend(member: &Member, port: &ServicePort, front: IpAddr) -> Option<SocketAddr> {
    let address = member.address(front.is_ipv4())?;
    Some((address, target(port, &member.pod)?).into())
}

/// A pod's published ports, each with where it leads.
pub fn published(member: &Member) -> impl Iterator<Item = (Front, SocketAddr)> {
    let ports = member.pod.containers.iter().flat_map(|container| &container.ports);
    ports.flat_map(move |port| {
        let given = port.host_ip.filter(|address| !address.is_unspecified());
        // 0.0.0.0 stands for IPv4 only, as it does for a program that listens.
        let addresses: Vec<IpAddr> = match (given, port.host_ip) {
            (Some(address), _) | (None, Some(address)) => vec![address],
            (None, None) => every().to_vec(),
        };
        addresses.into_iter().filter_map(move |address| {
            let front = Front { protocol: port.protocol, address, port: port.host_port? };
            Some((front, (member.address(address.is_ipv4())?, port.container_port).into()))
        })
    })
}
