//! Which names there are, and who may know them: pods, their aliases, services, and the names of addresses.
//!
//! Pure: reads the networks' state, asks nobody. A pod finds what it shares a network with; everything else has no name
//! for it. Follows Kubernetes' DNS specification and Docker's names within networks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use skeg_protocol::Pod;
use skeg_protocol::manifest::{Protocol, Service, ServiceKind};

use super::super::addresses::Lease;
use super::super::services::{members, target, virtuals};
use super::super::{Member, State};

/// Ends the names of services and pods.
pub const DOMAIN: &str = "cluster.local";

/// What a name means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// These addresses; it may have none now.
    Addresses(Vec<IpAddr>),
    /// What another name means.
    Alias(String),
    /// These ports at these hosts.
    Ports(Vec<(u16, String)>),
    /// The address of this name.
    Name(String),
    /// There is no such name.
    Nothing,
    /// It is not for us to say.
    Foreign,
}

/// A pod's name as itself sees it.
pub fn hostname(pod: &Pod) -> &str {
    pod.hostname.as_ref().map_or(pod.name.as_str(), |name| name.as_str())
}

/// Somebody who asks.
pub struct Asker<'a> {
    state: &'a State,
    /// The pod, where it is one.
    member: Option<&'a Member>,
}

impl<'a> Asker<'a> {
    /// Whoever has this address.
    pub(in crate::network) fn new(state: &'a State, address: IpAddr) -> Self {
        let has = |member: &&Member| member.leases.iter().flat_map(Lease::addresses).any(|own| own == address);
        Asker { state, member: state.pods.values().find(has) }
    }

    /// What a name in small letters means.
    pub fn look_up(&self, name: &str) -> Found {
        let labels: Vec<&str> = name.split('.').collect();
        if let Some(address) = reverse(&labels) {
            return self.name_of(address);
        }
        match name.strip_suffix(DOMAIN).and_then(|rest| rest.strip_suffix('.')) {
            Some(rest) => self.in_domain(&rest.split('.').collect::<Vec<_>>()),
            None if name == DOMAIN => Found::Addresses(Vec::new()),
            None => self.in_networks(name),
        }
    }

    fn in_domain(&self, labels: &[&str]) -> Found {
        match *labels {
            ["svc" | "pod"] => Found::Addresses(Vec::new()),
            [name, namespace, "svc"] => match self.service(namespace, name) {
                Some(service) => self.of_service(service),
                // What a pod calls by a short name comes with its search domain first.
                None if self.member.is_some_and(|member| member.pod.namespace == namespace) => {
                    Some(self.in_networks(name)).filter(|found| *found != Found::Foreign).unwrap_or(Found::Nothing)
                }
                None => Found::Nothing,
            },
            [port, protocol, name, namespace, "svc"] => self.of_port(port, protocol, namespace, name),
            [host, name, namespace, "svc"] => {
                let pods = self.state.pods.values().filter(|member| member.pod.namespace == namespace);
                let named = |member: &&Member| {
                    let subdomain = member.pod.subdomain.as_deref();
                    subdomain == Some(name) && hostname(&member.pod).eq_ignore_ascii_case(host)
                };
                let found: Vec<IpAddr> = pods.clone().filter(named).flat_map(|pod| self.seen(pod)).collect();
                let chosen = self.service(namespace, name).into_iter();
                let dashed_of = chosen.flat_map(|service| members(self.state, service)).flat_map(|pod| self.seen(pod));
                some(found.into_iter().chain(dashed_of.filter(|address| dashed(*address) == host)).collect())
            }
            [host, namespace, "pod"] => {
                let pods = self.state.pods.values().filter(|member| member.pod.namespace == namespace);
                some(pods.flat_map(|pod| self.seen(pod)).filter(|address| dashed(*address) == host).collect())
            }
            _ => Found::Nothing,
        }
    }

    /// What Docker's networks know: pods by their names and aliases.
    fn in_networks(&self, name: &str) -> Found {
        let Some(asker) = self.member else { return Found::Foreign };
        let mut found = Vec::new();
        for member in self.state.pods.values().filter(|member| member.pod.namespace == asker.pod.namespace) {
            let shared = member.leases.iter().zip(0..).filter(|(lease, _)| shares(asker, lease));
            for (lease, place) in shared {
                let aliases = member.pod.networks.get(place).map_or(&[][..], |attachment| &attachment.aliases);
                let named = [member.pod.name.as_str(), hostname(&member.pod)].contains(&name);
                if named || aliases.iter().any(|alias| alias.eq_ignore_ascii_case(name)) {
                    found.extend(lease.addresses());
                }
            }
        }
        match self.service(&asker.pod.namespace, name) {
            _ if !found.is_empty() => Found::Addresses(found),
            Some(service) => self.of_service(service),
            None => Found::Foreign,
        }
    }

    fn service(&self, namespace: &str, name: &str) -> Option<&'a Service> {
        let services = self.state.services.iter();
        { services }.find(|service| service.namespace == namespace && service.name == name)
    }

    fn of_service(&self, service: &Service) -> Found {
        match &service.kind {
            ServiceKind::ExternalName(name) => Found::Alias(name.to_ascii_lowercase()),
            ServiceKind::Headless => {
                Found::Addresses(members(self.state, service).flat_map(|member| self.seen(member)).collect())
            }
            ServiceKind::ClusterIp(_) => Found::Addresses(virtuals(self.state, service)),
        }
    }

    fn of_port(&self, port: &str, protocol: &str, namespace: &str, name: &str) -> Found {
        let (Some(port), Some(service)) = (port.strip_prefix('_'), self.service(namespace, name)) else {
            return Found::Nothing;
        };
        let protocol = match protocol {
            "_tcp" => Protocol::Tcp,
            "_udp" => Protocol::Udp,
            "_sctp" => Protocol::Sctp,
            _ => return Found::Nothing,
        };
        let mut ports = service.ports.iter().filter(|one| one.name == port && one.protocol == protocol);
        let Some(found) = ports.next() else { return Found::Nothing };
        let full = format!("{name}.{namespace}.svc.{DOMAIN}");
        if service.kind != ServiceKind::Headless {
            return Found::Ports(vec![(found.port, full)]);
        }
        let of_member = |member: &Member| {
            let address = self.seen(member).into_iter().next()?;
            let of_subdomain = member.pod.subdomain.as_deref() == Some(name);
            let host = if of_subdomain { hostname(&member.pod).to_owned() } else { dashed(address) };
            Some((target(found, &member.pod)?, format!("{host}.{full}")))
        };
        Found::Ports(members(self.state, service).filter_map(of_member).collect())
    }

    /// The addresses by which the asker reaches a pod.
    fn seen(&self, member: &Member) -> Vec<IpAddr> {
        let leases = member.leases.iter().filter(|lease| self.member.is_none_or(|asker| shares(asker, lease)));
        leases.flat_map(Lease::addresses).chain(member.device.iter().copied()).collect()
    }

    fn name_of(&self, address: IpAddr) -> Found {
        let pods = self.state.pods.values().filter(|member| !member.leases.is_empty());
        if let Some(member) = { pods }.find(|member| self.seen(member).contains(&address)) {
            let (pod, namespace) = (&member.pod, &member.pod.namespace);
            let name = match &pod.subdomain {
                Some(subdomain) => format!("{}.{subdomain}.{namespace}.svc.{DOMAIN}", hostname(pod)),
                None if !pod.networks.is_empty() => format!("{}.{namespace}.svc.{DOMAIN}", pod.name),
                None => format!("{}.{namespace}.pod.{DOMAIN}", dashed(address)),
            };
            return Found::Name(name);
        }
        let mut services = self.state.services.iter();
        if let Some(service) = services.find(|service| virtuals(self.state, service).contains(&address)) {
            return Found::Name(format!("{}.{}.svc.{DOMAIN}", service.name, service.namespace));
        }
        let mut ranges = self.state.segments.values().flat_map(|segment| segment.plan.ranges());
        if ranges.any(|range| range.contains(address)) { Found::Nothing } else { Found::Foreign }
    }
}

fn some(addresses: Vec<IpAddr>) -> Found {
    if addresses.is_empty() { Found::Nothing } else { Found::Addresses(addresses) }
}

fn shares(asker: &Member, lease: &Lease) -> bool {
    asker.leases.is_empty() || asker.leases.iter().any(|own| own.network == lease.network)
}

/// An address as a label: `10-0-0-7`.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address whose name is asked for by `7.0.0.10.in-addr.arpa` and its kind.
fn reverse(labels: &[&str]) -> Option<IpAddr> {
    match labels {
        [numbers @ .., "in-addr", "arpa"] => {
            let bytes: Vec<u8> = numbers.iter().rev().map(|number| number.parse().ok()).collect::<Option<_>>()?;
            Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into())
        }
        [digits @ .., "ip6", "arpa"] if digits.len() == 32 => {
            let text: String = digits.iter().rev().copied().collect();
            Some(Ipv6Addr::from(u128::from_str_radix(&text, 16).ok().filter(|_| text.len() == 32)?).into())
        }
        _ => None,
    }
}
