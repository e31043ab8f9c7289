//! Bridges and virtual cards: what makes a pod's network namespace a part of a network.
//!
//! Owns the interfaces whose names begin with `skeg` (bridges) and `sk-` (the device's ends of pods' cards). A pod's
//! address stands alone in its namespace and everything else is behind the device: so the device sees every packet
//! between pods, connections to services come back the way they went, and no pod can speak in another one's name.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use super::NetworkError;
use super::addresses::{Lease, NetworkId, Plan, hash};
use crate::netlink::route::{self, Link, Range, STATIC, Veth};
use crate::netlink::{Message, ROUTE, Refused, Socket, inside};

/// Largest packet where nobody says otherwise and no way out is known.
const MTU: u32 = 1500;

/// Whether the kernel has IPv6.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

/// A bridge that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bridge {
    /// The kernel's number.
    pub index: u32,
    /// Largest packet in bytes.
    pub mtu: u32,
}

/// A hardware address that is nobody's, always the same for the same thing.
pub fn made_up_mac(of: &impl std::fmt::Display) -> [u8; 6] {
    let [_, _, a, b, c, d, e, _] = hash(of).to_be_bytes();
    [0x02, a, b, c, d, e]
}

/// Names of the two ends of a pod's card.
fn names(pod: skeg_protocol::Uid, place: usize) -> (String, String) {
    let name = format!("sk-{:010x}{}", hash(&pod) & 0xff_ffff_ffff, u8::try_from(place % 36).map_or('z', letter));
    (name, format!("eth{place}"))
}

fn letter(number: u8) -> char {
    char::from_digit(number.into(), 36).unwrap_or('z')
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    let what = what.into();
    move |source| NetworkError::Kernel { what, source }
}

/// Finds the bridge of a network or makes it, with the device's addresses in it.
///
/// # Errors
/// Its range is in use elsewhere, or the kernel refuses.
pub fn bridge(socket: &Socket, id: &NetworkId, plan: Plan, mtu: Option<u16>) -> Result<Bridge, NetworkError> {
    let name = id.bridge();
    let links = route::links(socket).map_err(failed("reading the interfaces"))?;
    let link = match links.iter().find(|link| link.name == name) {
        Some(link) => link.clone(),
        None => {
            conflicts(socket, &links, id, plan)?;
            let mtu = mtu.map_or_else(|| way_out(socket, &links).map_or(MTU, |(_, mtu)| mtu), u32::from);
            socket.ask(route::new_bridge(&name, made_up_mac(id), mtu)).map_err(|source| {
                match source.raw_os_error() {
                    Some(95) => NetworkError::Lacks { option: "CONFIG_BRIDGE", source },
                    _ => failed(format!("making bridge {name}"))(source),
                }
            })?;
            Link {
                index: route::index(&name).map_err(failed(format!("looking for {name}")))?,
                name,
                mtu,
                ..Link::default()
            }
        }
    };
    // All of this again for a bridge of an agent that was killed half way.
    set_switches(&link.name)?;
    let addresses = plan.ranges().map(|range| route::add_address(link.index, range)).collect();
    carry_out(socket, addresses, &format!("giving {} its addresses", link.name))?;
    Ok(Bridge { index: link.index, mtu: link.mtu })
}

fn carry_out(socket: &Socket, messages: Vec<Message>, what: &str) -> Result<(), NetworkError> {
    socket.carry_out(messages).map_err(|Refused { source, .. }| failed(what)(source))
}

/// Refuses ranges in which the device has an address or a route of somebody else's: pods would hide who is there.
fn conflicts(socket: &Socket, links: &[Link], id: &NetworkId, plan: Plan) -> Result<(), NetworkError> {
    let routes = route::routes(socket).map_err(failed("reading the routes"))?;
    let addresses = route::addresses(socket).map_err(failed("reading the addresses"))?;
    let of_links = addresses.into_iter().map(|(link, range)| (range, link));
    for (other, index) in routes.into_iter().chain(of_links).filter(|(other, _)| other.length > 0) {
        if let Some(range) = plan.ranges().find(|range| range.overlaps(&other)) {
            let link = links.iter().find(|link| link.index == index).map_or("?", |link| &link.name);
            let (range, other) = (range.to_string(), format!("{other} on {link}"));
            return Err(NetworkError::Conflict { network: id.clone(), range, other });
        }
    }
    Ok(())
}

/// The link of the default route and its largest packet.
pub fn way_out(socket: &Socket, links: &[Link]) -> Option<(u32, u32)> {
    let routes = route::routes(socket).ok()?;
    let (_, index) = routes.into_iter().find(|(range, _)| range.length == 0)?;
    links.iter().find(|link| link.index == index).map(|link| (index, link.mtu))
}

/// The kernel's switches that make the device pass packets on, and keep its pods honest.
fn set_switches(bridge: &str) -> Result<(), NetworkError> {
    let set = |path: &str, value: &str| {
        let path = format!("/proc/sys/net/{path}");
        match fs::read_to_string(&path) {
            Ok(now) if now.trim() == value => Ok(()),
            _ => fs::write(&path, value).map_err(failed(format!("writing {value} to {path}"))),
        }
    };
    set("ipv4/ip_forward", "1")?;
    // Its own connections by 127.0.0.1 to published ports; a rule keeps the pods out of there.
    set(&format!("ipv4/conf/{bridge}/route_localnet"), "1")?;
    if has_ipv6() {
        // A device that passes packets on would stop listening to its own router (accept_ra 2 listens on).
        for entry in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let listens = fs::read_to_string(entry.path().join("accept_ra")).is_ok_and(|now| now.trim() == "1");
            if listens && name != "all" && !name.starts_with("sk") {
                set(&format!("ipv6/conf/{name}/accept_ra"), "2")?;
            }
        }
        set(&format!("ipv6/conf/{bridge}/accept_ra"), "0")?;
        set("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// Where a pod's card goes.
pub struct Card<'a> {
    /// The pod.
    pub pod: skeg_protocol::Uid,
    /// Which of its cards, from 0.
    pub place: usize,
    /// Whether it has the default route.
    pub way_out: bool,
    /// Its addresses.
    pub lease: &'a Lease,
    /// The network's ranges.
    pub plan: Plan,
    /// The network's bridge.
    pub bridge: Bridge,
    /// Hardware address of its end.
    pub mac: [u8; 6],
}

/// Opens a socket in a pod's network, where no other pod can then play the router.
///
/// # Errors
/// As setns(2).
pub fn enter(namespace: BorrowedFd<'_>) -> io::Result<Socket> {
    inside(namespace, || {
        if has_ipv6() {
            fs::write("/proc/sys/net/ipv6/conf/default/accept_ra", "0")?;
        }
        Socket::open(ROUTE, 0)
    })?
}

/// Makes a pod's card with all that belongs to it. One that is there already stays as it is: connections go on.
///
/// # Errors
/// The kernel refuses.
pub fn plug(socket: &Socket, pod: &Socket, namespace: BorrowedFd<'_>, card: &Card<'_>) -> Result<(), NetworkError> {
    let (name, peer) = names(card.pod, card.place);
    let inside = route::links(pod).map_err(failed("reading the pod's interfaces"))?;
    let index = match inside.iter().find(|link| link.name == peer) {
        Some(link) => link.index,
        None => {
            // Left by an earlier namespace of the same pod that the kernel has not taken down yet.
            if let Ok(old) = route::index(&name) {
                socket.ask(route::delete_link(old)).map_err(failed(format!("removing the old {name}")))?;
            }
            let (bridge, mtu, network) = (card.bridge.index, card.bridge.mtu, namespace.as_raw_fd());
            let veth = Veth { name: &name, bridge, peer: &peer, network, mac: card.mac, mtu };
            socket.ask(route::new_veth(&veth)).map_err(|source| match source.raw_os_error() {
                Some(95) => NetworkError::Lacks { option: "CONFIG_VETH", source },
                _ => failed(format!("making {name}"))(source),
            })?;
            let links = route::links(pod).map_err(failed("reading the pod's interfaces"))?;
            let link = links.into_iter().find(|link| link.name == peer);
            link.ok_or_else(|| failed(format!("looking for the pod's {peer}"))(io::ErrorKind::NotFound.into()))?.index
        }
    };
    let port = route::index(&name).map_err(failed(format!("looking for {name}")))?;
    // Where the kernel applies packet rules within bridges, a pod that reaches itself by a service comes back that way.
    let mut outside = vec![route::hairpin(port)];
    outside.extend(card.lease.addresses().map(|ip| route::neighbour(card.bridge.index, ip, Some(card.mac))));
    carry_out(socket, outside, &format!("setting up {name}"))?;
    let mut messages = vec![route::set_up(index)];
    for address in card.lease.addresses() {
        messages.push(route::add_address(index, Range::single(address)));
        let gateway = card.plan.ranges().find(|range| range.address.is_ipv4() == address.is_ipv4());
        let Some(Range { address: gateway, .. }) = gateway else { continue };
        messages.push(route::route(Range::single(gateway), index, None, STATIC));
        messages.push(route::neighbour(index, gateway, Some(made_up_mac(&card.lease.network))));
        let goal = if card.way_out { everything(gateway) } else { network(card.plan, gateway) };
        messages.push(route::route(goal, index, Some(gateway), STATIC));
    }
    carry_out(pod, messages, &format!("giving the pod's {peer} its addresses"))
}

fn everything(of_family: IpAddr) -> Range {
    let address = if of_family.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    Range { address, length: 0 }
}

/// The range of a network itself, as a route wants it.
fn network(plan: Plan, gateway: IpAddr) -> Range {
    let length = plan.ranges().find(|range| range.address == gateway).map_or(0, |range| range.length);
    let address = match gateway {
        IpAddr::V4(ip) => {
            Ipv4Addr::from(u32::from(ip) & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)).into()
        }
        IpAddr::V6(ip) => {
            Ipv6Addr::from(u128::from(ip) & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)).into()
        }
    };
    Range { address, length }
}

/// Forgets at which card a pod's addresses are; its cards go with its namespace.
pub fn unplug(socket: &Socket, bridge: Bridge, lease: &Lease) {
    for address in lease.addresses() {
        // It may be gone already, with the bridge.
        socket.ask(route::neighbour(bridge.index, address, None)).ok();
    }
}

/// Sends what goes to services by way of a bridge, so that the device itself reaches them without a default route.
///
/// # Errors
/// The kernel refuses.
pub fn route_services(socket: &Socket, bridge: Bridge, range: Range) -> Result<(), NetworkError> {
    let message = route::route(range, bridge.index, None, STATIC);
    socket.ask(message).map(drop).map_err(failed(format!("routing {range}")))
}

/// Removes every bridge of ours but those that are needed.
///
/// # Errors
/// The kernel refuses.
pub fn remove_bridges(socket: &Socket, needed: impl Fn(&str) -> bool) -> Result<(), NetworkError> {
    for link in route::links(socket).map_err(failed("reading the interfaces"))? {
        let ours = link.name.strip_prefix("skeg").is_some_and(|rest| rest == "0" || rest.len() == 10);
        if ours && !needed(&link.name) {
            socket.ask(route::delete_link(link.index)).map_err(failed(format!("removing bridge {}", link.name)))?;
        }
    }
    Ok(())
}
