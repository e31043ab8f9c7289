//! The handful of rtnetlink(7) messages that a board needs: a link up, an address, the default route.
//!
//! Owns the exchange with the kernel. The kernel answers within the call, so nothing here waits for a network.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::net::if_::{InterfaceFlags, if_nametoindex};

use crate::config::Prefix;

/// The first interface that is not the loopback, in the kernel's order, on which hardware or a hypervisor hangs:
/// bridges and the host ends of containers come later.
pub(super) fn first_interface() -> io::Result<Option<String>> {
    let mut names: Vec<(u32, String)> = Vec::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        if !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK) {
            names.push((index(&interface.interface_name)?, interface.interface_name));
        }
    }
    Ok(names.into_iter().min().map(|(_, name)| name))
}

/// The kernel's number of an interface.
pub(super) fn index(name: &str) -> io::Result<u32> {
    Ok(if_nametoindex(name)?)
}

/// Brings an interface up.
pub(super) fn set_up(name: &str) -> io::Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index(name)?;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    ask(RouteNetlinkMessage::SetLink(link), NLM_F_ACK).map(drop)
}

/// The hardware address of an interface.
pub(super) fn hardware_address(name: &str) -> io::Result<Vec<u8>> {
    let mut link = LinkMessage::default();
    link.header.index = index(name)?;
    let answer = ask(RouteNetlinkMessage::GetLink(link), 0)?;
    let attributes = answer.into_iter().flat_map(|message| match message {
        RouteNetlinkMessage::NewLink(link) => link.attributes,
        _ => Vec::new(),
    });
    let mut addresses = attributes.filter_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address),
        _ => None,
    });
    addresses.next().ok_or_else(|| io::Error::other(format!("{name} has no hardware address")))
}

/// The IPv4 addresses of an interface.
pub(super) fn addresses(name: &str) -> io::Result<Vec<Prefix>> {
    let index = index(name)?;
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    let answer = ask(RouteNetlinkMessage::GetAddress(message), NLM_F_DUMP)?;
    let of_interface = answer.into_iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(address) if address.header.index == index => Some(address),
        _ => None,
    });
    let local = |address: AddressMessage| {
        let length = address.header.prefix_len;
        address.attributes.into_iter().find_map(move |attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(Prefix { address, length }),
            _ => None,
        })
    };
    Ok(of_interface.filter_map(local).collect())
}

/// Gives an interface an address. One that it has already is fine.
pub(super) fn add_address(name: &str, prefix: Prefix) -> io::Result<()> {
    let message = RouteNetlinkMessage::NewAddress(address_message(name, prefix)?);
    ask(message, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).map(drop)
}

/// Takes an address away.
pub(super) fn remove_address(name: &str, prefix: Prefix) -> io::Result<()> {
    ask(RouteNetlinkMessage::DelAddress(address_message(name, prefix)?), NLM_F_ACK).map(drop)
}

fn address_message(name: &str, prefix: Prefix) -> io::Result<AddressMessage> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix.length;
    message.header.index = index(name)?;
    let address = IpAddr::V4(prefix.address);
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    if prefix.length < 31 {
        let host_bits = u32::MAX >> prefix.length;
        message.attributes.push(AddressAttribute::Broadcast((u32::from(prefix.address) | host_bits).into()));
    }
    Ok(message)
}

/// Points the default route at a gateway, in place of an earlier one.
pub(super) fn set_default_route(name: &str, gateway: Ipv4Addr) -> io::Result<()> {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Dhcp,
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway)), RouteAttribute::Oif(index(name)?)];
    ask(RouteNetlinkMessage::NewRoute(message), NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).map(drop)
}

/// Sends one request and gives all answers.
fn ask(request: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::new(Default::default(), NetlinkPayload::from(request));
    message.header.flags = NLM_F_REQUEST | flags;
    message.header.sequence_number = 1;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(answer.header.length).map_err(io::Error::other)?.next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            match answer.payload {
                NetlinkPayload::Done(_) => return Ok(answers),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(inner) => {
                    answers.push(inner);
                    // Neither a list nor a receipt was asked for: this was all.
                    if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
                        return Ok(answers);
                    }
                }
                _ => {}
            }
        }
    }
}
