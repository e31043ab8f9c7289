//! What a board asks of the kernel for its own network, in the thread's namespace: see [`crate::netlink::route`].

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use crate::config::Prefix;
use crate::netlink::route::{self, Range};
use crate::netlink::{ROUTE, Socket};

pub(super) use crate::netlink::route::index;

/// The first interface that is not the loopback, in the kernel's order, on which hardware or a hypervisor hangs:
/// bridges and the host ends of containers come later.
pub(super) fn first_interface() -> io::Result<Option<String>> {
    let links = route::links(&Socket::open(ROUTE, 0)?)?;
    let others = links.into_iter().filter(|link| link.name != "lo");
    Ok(others.min_by_key(|link| link.index).map(|link| link.name))
}

/// Brings an interface up.
pub(super) fn set_up(name: &str) -> io::Result<()> {
    route::ask(route::set_up(index(name)?))
}

/// The hardware address of an interface.
pub(super) fn hardware_address(name: &str) -> io::Result<Vec<u8>> {
    let links = route::links(&Socket::open(ROUTE, 0)?)?;
    let link = links.into_iter().find(|link| link.name == name && !link.hardware.is_empty());
    link.map(|link| link.hardware).ok_or_else(|| io::Error::other(format!("{name} has no hardware address")))
}

/// The IPv4 addresses of an interface.
pub(super) fn addresses(name: &str) -> io::Result<Vec<Prefix>> {
    let index = index(name)?;
    let all = route::addresses(&Socket::open(ROUTE, 0)?)?.into_iter();
    let of_interface = all.filter_map(|(link, range)| match range.address {
        IpAddr::V4(address) if link == index => Some(Prefix { address, length: range.length }),
        _ => None,
    });
    Ok(of_interface.collect())
}

fn range(prefix: Prefix) -> Range {
    Range { address: prefix.address.into(), length: prefix.length }
}

/// Gives an interface an address. One that it has already is fine.
pub(super) fn add_address(name: &str, prefix: Prefix) -> io::Result<()> {
    route::ask(route::add_address(index(name)?, range(prefix)))
}

/// Takes an address away.
pub(super) fn remove_address(name: &str, prefix: Prefix) -> io::Result<()> {
    route::ask(route::remove_address(index(name)?, range(prefix)))
}

/// Points the default route at a gateway, in place of an earlier one.
pub(super) fn set_default_route(name: &str, gateway: Ipv4Addr) -> io::Result<()> {
    let everything = Range { address: Ipv4Addr::UNSPECIFIED.into(), length: 0 };
    route::ask(route::route(everything, index(name)?, Some(gateway.into()), route::DHCP))
}
