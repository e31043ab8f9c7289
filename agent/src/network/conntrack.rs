//! Connections that the kernel remembers: those of UDP are forgotten when their pod no longer gets any, and those of TCP
//! tell whether somebody is still on the way to a pod.
//!
//! UDP has no end, so a client that goes on sending would be sent to a pod that is gone for as long as it sends. Speaks
//! ctnetlink after the kernel's `nfnetlink_conntrack.h`. Connections of TCP are not touched before their pod is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use super::nftables::number;
use super::rules::{Front, Spread};
use crate::netlink::{ACK, DUMP, Message, Socket, attribute};

const GET: u16 = 1 << 8 | 1;
const DELETE: u16 = 1 << 8 | 2;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    source: IpAddr,
    goal: IpAddr,
    source_port: u16,
    port: u16,
}

/// Forgets what is remembered of the fronts' clients, except with the backends that they have now.
///
/// # Errors
/// As netlink(7).
pub fn forget_clients(socket: &Socket, changed: &BTreeMap<Front, Spread>) -> io::Result<()> {
    forget(socket, |first, back| {
        way(first, UDP).zip(way(back, UDP)).is_some_and(|(first, back)| is_stale(first, back, changed))
    })
}

/// Forgets everything about addresses that are nobody's any more: a client that used the same port again would be sent
/// to them.
///
/// # Errors
/// As netlink(7).
pub fn forget_addresses(socket: &Socket, gone: &BTreeSet<IpAddr>) -> io::Result<()> {
    let to_gone = |back: &[u8]| [TCP, UDP].into_iter().find_map(|protocol| way(back, protocol));
    forget(socket, |_, back| to_gone(back).is_some_and(|back| gone.contains(&back.source)))
}

/// Forgets the connections of which this holds, said of the way there and the way back.
fn forget(socket: &Socket, stale: impl Fn(&[u8], &[u8]) -> bool) -> io::Result<()> {
    for family in [2, 10] {
        for answer in socket.ask(Message::new(GET, DUMP, &[family, 0, 0, 0]))? {
            let Some(rest) = answer.body.get(4..) else { continue };
            let (Some(first), Some(back)) = (attribute(rest, 1), attribute(rest, 2)) else { continue };
            if stale(first, back) {
                let mut message = Message::new(DELETE, ACK, &[family, 0, 0, 0]);
                message.put(1 | 0x8000, first);
                // It may have ended by itself.
                socket.ask(message).ok();
            }
        }
    }
    Ok(())
}

/// Whether a connection to one of these addresses has been sent there and is not open yet.
///
/// # Errors
/// As netlink(7).
pub fn is_opening(socket: &Socket, goals: &BTreeSet<IpAddr>) -> io::Result<bool> {
    /// The kernel's numbers of the states before a connection is open.
    const OPENING: [u8; 2] = [1, 2];
    for family in [2, 10] {
        let answers = socket.ask(Message::new(GET, DUMP, &[family, 0, 0, 0]))?;
        let opening = |rest: &[u8]| {
            let back = way(attribute(rest, 2)?, TCP)?;
            let state = *attribute(attribute(attribute(rest, 4)?, 1)?, 1)?.first()?;
            Some(goals.contains(&back.source) && OPENING.contains(&state))
        };
        if answers.iter().filter_map(|answer| opening(answer.body.get(4..)?)).any(|opening| opening) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_stale(first: Way, back: Way, changed: &BTreeMap<Front, Spread>) -> bool {
    let of = |front: &&Front| {
        let any = front.address.is_unspecified() && front.address.is_ipv4() == first.goal.is_ipv4();
        number(front.protocol) == UDP && front.port == first.port && (any || front.address == first.goal)
    };
    let served = (back.source, back.source_port).into();
    changed.iter().find(|(front, _)| of(front)).is_some_and(|(_, spread)| !spread.backends.contains(&served))
}

fn way(tuple: &[u8], protocol: u8) -> Option<Way> {
    let (addresses, ports) = (attribute(tuple, 1)?, attribute(tuple, 2)?);
    if attribute(ports, 1)? != [protocol] {
        return None;
    }
    let address = |four: u16, sixteen: u16| {
        let four = attribute(addresses, four).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(IpAddr::from);
        four.or_else(|| Some(IpAddr::from(<[u8; 16]>::try_from(attribute(addresses, sixteen)?).ok()?)))
    };
    let port = |kind| Some(u16::from_be_bytes(attribute(ports, kind)?.try_into().ok()?));
    Some(Way { source: address(1, 3)?, goal: address(2, 4)?, source_port: port(2)?, port: port(3)? })
}
