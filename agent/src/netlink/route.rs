//! The handful of rtnetlink(7) messages that the agent needs: links, addresses, routes, neighbours.
//!
//! Makes messages and reads answers; who sends them, and in which network namespace, is the caller's.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use super::{ACK, Answer, CREATE, DUMP, EXCLUSIVE, Message, REPLACE, ROUTE, Socket, attribute, attributes};

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
const NEW_NEIGHBOUR: u16 = 28;
const DELETE_NEIGHBOUR: u16 = 29;

const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const LINK_NAMESPACE: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const INFO_SLAVE_KIND: u16 = 4;
const INFO_SLAVE_DATA: u16 = 5;
const VETH_PEER: u16 = 1;
const PORT_HAIRPIN: u16 = 4;
const UP: u32 = 1;

const UNIVERSE: u8 = 0;
const LINK: u8 = 253;
const MAIN_TABLE: u8 = 254;
const UNICAST: u8 = 1;
const ON_LINK: u32 = 4;

/// A range of addresses, or an address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// The address.
    pub address: IpAddr,
    /// Bits of the network.
    pub length: u8,
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Range {
    /// This one address.
    pub fn single(address: IpAddr) -> Self {
        Range { address, length: bits(address) }
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let shift = |length: u8| 128 - u32::from(length);
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (u32::from(own) ^ u32::from(other)).checked_shr(32 - u32::from(self.length)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (u128::from(own) ^ u128::from(other)).checked_shr(shift(self.length)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Range) -> bool {
        self.contains(other.address) || other.contains(self.address)
    }
}

/// Bits of an address of this family.
fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

/// The bytes of an address in the network's order.
pub fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    let four: Result<[u8; 4], _> = bytes.try_into();
    let sixteen: Result<[u8; 16], _> = bytes.try_into();
    four.map(IpAddr::from).or(sixteen.map(IpAddr::from)).ok()
}

fn link_header(index: u32, up: bool) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let flags = if up { UP } else { 0 };
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// Asks for a link to be brought up.
pub fn set_up(index: u32) -> Message {
    Message::new(SET_LINK, ACK, &link_header(index, true))
}

/// Asks for a bridge that is up.
pub fn new_bridge(name: &str, mac: [u8; 6], mtu: u32) -> Message {
    let mut message = Message::new(NEW_LINK, ACK | CREATE | EXCLUSIVE, &link_header(0, true));
    message.put_text(LINK_NAME, name).put(LINK_ADDRESS, &mac).put_u32(LINK_MTU, mtu);
    message.nest(LINK_INFO, |info| {
        info.put_text(INFO_KIND, "bridge");
    });
    message
}

/// One end of a pair of virtual cards, and where the other is to be.
#[derive(Debug, Clone)]
pub struct Veth<'a> {
    /// Name of the end on the device.
    pub name: &'a str,
    /// The bridge that it hangs on.
    pub bridge: u32,
    /// Name of the end in the pod.
    pub peer: &'a str,
    /// Number of an open descriptor of the pod's network namespace.
    pub network: i32,
    /// Hardware address of the end in the pod.
    pub mac: [u8; 6],
    /// Of both ends.
    pub mtu: u32,
}

/// Asks for a pair of virtual cards, one end up on a bridge and the other, not up yet, in a pod.
pub fn new_veth(veth: &Veth<'_>) -> Message {
    let mut message = Message::new(NEW_LINK, ACK | CREATE | EXCLUSIVE, &link_header(0, true));
    message.put_text(LINK_NAME, veth.name).put_u32(LINK_MTU, veth.mtu).put_u32(LINK_MASTER, veth.bridge);
    message.nest(LINK_INFO, |info| {
        info.put_text(INFO_KIND, "veth").nest(INFO_DATA, |data| {
            data.nest(VETH_PEER, |peer| {
                peer.raw(&link_header(0, false)).put_text(LINK_NAME, veth.peer).put(LINK_ADDRESS, &veth.mac);
                peer.put_u32(LINK_MTU, veth.mtu).put(LINK_NAMESPACE, &veth.network.to_ne_bytes());
            });
        });
    });
    message
}

/// Asks that what comes in by a bridge's port may leave by it again.
pub fn hairpin(index: u32) -> Message {
    // What belongs to a kind of link is changed by this message only, even where the link is there.
    let mut message = Message::new(NEW_LINK, ACK, &link_header(index, false));
    message.nest(LINK_INFO, |info| {
        info.put_text(INFO_SLAVE_KIND, "bridge").nest(INFO_SLAVE_DATA, |data| {
            data.put(PORT_HAIRPIN, &[1]);
        });
    });
    message
}

/// Asks for the removal of a link.
pub fn delete_link(index: u32) -> Message {
    Message::new(DELETE_LINK, ACK, &link_header(index, false))
}

fn address_message(kind: u16, flags: u16, index: u32, range: Range) -> Message {
    // Nobody else can have it: IPv6 need not ask around first (IFA_F_NODAD).
    let now = if range.address.is_ipv4() { 0 } else { 0x2 };
    let [a, b, c, d] = index.to_ne_bytes();
    let mut message = Message::new(kind, flags, &[family(range.address), range.length, now, UNIVERSE, a, b, c, d]);
    message.put(2, &bytes(range.address)).put(1, &bytes(range.address));
    if let IpAddr::V4(address) = range.address
        && range.length < 31
    {
        let host_bits = u32::MAX >> range.length;
        message.put(4, &Ipv4Addr::from(u32::from(address) | host_bits).octets());
    }
    message
}

/// Asks for an address on a link. One that it has already is fine.
pub fn add_address(index: u32, range: Range) -> Message {
    address_message(NEW_ADDRESS, ACK | CREATE | REPLACE, index, range)
}

/// Asks for an address to be taken away.
pub fn remove_address(index: u32, range: Range) -> Message {
    address_message(DELETE_ADDRESS, ACK, index, range)
}

/// Asks for a route by a link, through a gateway or, without one, straight to who is there. `protocol` says whose it is.
pub fn route(range: Range, index: u32, gateway: Option<IpAddr>, protocol: u8) -> Message {
    let scope = if gateway.is_some() || range.address.is_ipv6() { UNIVERSE } else { LINK };
    let mut header = vec![family(range.address), range.length, 0, 0, MAIN_TABLE, protocol, scope, UNICAST];
    // The pod's address alone says nothing of where the gateway is.
    let flags = if gateway.is_some() && protocol == STATIC { ON_LINK } else { 0 };
    header.extend(flags.to_ne_bytes());
    let mut message = Message::new(NEW_ROUTE, ACK | CREATE | REPLACE, &header);
    if range.length > 0 {
        message.put(1, &bytes(range.address));
    }
    if let Some(gateway) = gateway {
        message.put(5, &bytes(gateway));
    }
    message.put_u32(4, index);
    message
}

/// A route that the agent made (`RTPROT_STATIC`).
pub const STATIC: u8 = 4;
/// A route that came by DHCP (`RTPROT_DHCP`).
pub const DHCP: u8 = 16;

/// Says, or no longer says, for ever which card an address is at, so that nobody else can claim it.
pub fn neighbour(index: u32, address: IpAddr, mac: Option<[u8; 6]>) -> Message {
    const PERMANENT: u8 = 0x80;
    let [a, b, c, d] = index.to_ne_bytes();
    let header = [family(address), 0, 0, 0, a, b, c, d, PERMANENT, 0, 0, 0];
    let mut message = match mac {
        Some(_) => Message::new(NEW_NEIGHBOUR, ACK | CREATE | REPLACE, &header),
        None => Message::new(DELETE_NEIGHBOUR, ACK, &header),
    };
    message.put(1, &bytes(address));
    if let Some(mac) = mac {
        message.put(2, &mac);
    }
    message
}

/// A link as the kernel tells it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Hardware address.
    pub hardware: Vec<u8>,
    /// Largest packet in bytes.
    pub mtu: u32,
}

/// Every link of the socket's namespace.
pub fn links(socket: &Socket) -> io::Result<Vec<Link>> {
    let answers = socket.ask(Message::new(GET_LINK, DUMP, &link_header(0, false)))?;
    Ok(answers.iter().filter_map(link_of).collect())
}

fn link_of(answer: &Answer) -> Option<Link> {
    let index = u32::from_ne_bytes(answer.body.get(4..8)?.try_into().ok()?);
    let mut link = Link { index, ..Link::default() };
    for (kind, value) in attributes(answer.body.get(16..)?) {
        match kind {
            LINK_NAME => link.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned(),
            LINK_ADDRESS => link.hardware = value.to_vec(),
            LINK_MTU => link.mtu = u32::from_ne_bytes(value.try_into().ok()?),
            _ => {}
        }
    }
    Some(link)
}

/// Every address of the socket's namespace, with its link.
pub fn addresses(socket: &Socket) -> io::Result<Vec<(u32, Range)>> {
    let answers = socket.ask(Message::new(GET_ADDRESS, DUMP, &[0; 8]))?;
    let of_answer = |answer: &Answer| {
        let index = u32::from_ne_bytes(answer.body.get(4..8)?.try_into().ok()?);
        let attributes = answer.body.get(8..)?;
        let own = attribute(attributes, 2).or_else(|| attribute(attributes, 1))?;
        Some((index, Range { address: address_of(own)?, length: *answer.body.get(1)? }))
    };
    Ok(answers.iter().filter_map(of_answer).collect())
}

/// Every unicast route of the main table, with its link.
pub fn routes(socket: &Socket) -> io::Result<Vec<(Range, u32)>> {
    let answers = socket.ask(Message::new(GET_ROUTE, DUMP, &[0; 12]))?;
    let of_answer = |answer: &Answer| {
        let [family, length, .., table, _, _, kind] = *answer.body.get(..8)? else { return None };
        let attributes = answer.body.get(12..)?;
        let zero = if family == 2 { [0; 4].into() } else { IpAddr::from([0; 16]) };
        let address = attribute(attributes, 1).map_or(Some(zero), address_of)?;
        let index = u32::from_ne_bytes(attribute(attributes, 4)?.try_into().ok()?);
        (table == MAIN_TABLE && kind == UNICAST).then_some((Range { address, length }, index))
    };
    Ok(answers.iter().filter_map(of_answer).collect())
}

/// The kernel's number of an interface of the thread's namespace.
pub fn index(name: &str) -> io::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// Sends one request in the thread's namespace.
pub fn ask(message: Message) -> io::Result<()> {
    Socket::open(ROUTE, 0)?.ask(message).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        let (address, length) = text.split_once('/').unwrap();
        Range { address: address.parse().unwrap(), length: length.parse().unwrap() }
    }

    #[test]
    fn ranges_know_what_they_hold() {
        for (a, b, wanted) in [
            ("10.0.0.0/8", "10.223.0.0/16", true),
            ("10.223.0.0/16", "10.0.0.0/8", true),
            ("10.222.0.0/16", "10.223.0.0/16", false),
            ("0.0.0.0/0", "192.0.2.1/32", true),
            ("fd00::/8", "fd73::/48", true),
            ("::/0", "10.0.0.0/8", false),
        ] {
            assert_eq!(range(a).overlaps(&range(b)), wanted, "{a} {b}");
        }
    }
}
