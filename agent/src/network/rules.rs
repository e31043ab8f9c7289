//! What the packet rules are to do, as data: networks, published ports, services and their pods.
//!
//! Owns the spread of connections over backends. Pure: the words of the kernel are [`super::nftables`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use skeg_protocol::manifest::Protocol;

use super::addresses::hash;

/// Numbers that a client's address can give, whatever the backends: else one more of them would move everybody.
const SLOTS: usize = 64;

/// Everything that the rules are made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// The networks of pods.
    pub networks: Vec<NetworkRule>,
    /// Addresses of services.
    pub virtuals: BTreeSet<IpAddr>,
    /// Where connections to an address and port go.
    pub fronts: BTreeMap<Front, Spread>,
    /// Addresses to which connections are sent on.
    pub pods: BTreeSet<IpAddr>,
    /// Addresses of pods that may leave the device, in its name.
    pub outward: BTreeSet<IpAddr>,
}

/// A network of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRule {
    /// The name of its bridge.
    pub bridge: String,
    /// Nothing leaves it.
    pub internal: bool,
}

/// Where clients connect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Front {
    /// Transport.
    pub protocol: Protocol,
    /// An address; the unspecified one stands for all of the device's own of its family.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

/// Who gets the connections.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spread {
    /// Addresses and ports of pods; of one family.
    pub backends: Vec<SocketAddr>,
    /// A client keeps its backend.
    pub sticky: bool,
}

impl Spread {
    /// A backend for each number that a connection can draw. Without stickiness the numbers are drawn at random; with
    /// it they come from the client's address, and a backend that goes or comes takes as few clients along as it can
    /// (rendezvous hashing).
    pub fn slots(&self) -> Vec<SocketAddr> {
        if !self.sticky || self.backends.len() < 2 {
            return self.backends.clone();
        }
        let weight = |slot: usize, backend: &SocketAddr| mix(hash(&format_args!("{slot} {backend}")));
        let best = |slot: usize| self.backends.iter().copied().max_by_key(|backend| weight(slot, backend));
        (0..self.backends.len().next_power_of_two().max(SLOTS)).filter_map(best).collect()
    }
}

/// Spreads what differs in few bits over all of them (the finish of MurmurHash3).
fn mix(mut bits: u64) -> u64 {
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        bits = (bits ^ (bits >> 33)).wrapping_mul(factor);
    }
    bits ^ (bits >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaving_backend_moves_only_its_own_clients() {
        let backends: Vec<SocketAddr> = (1..=5).map(|last| SocketAddr::from(([10, 0, 0, last], 80))).collect();
        let before = Spread { backends: backends.clone(), sticky: true }.slots();
        let after = Spread { backends: [&backends[..2], &backends[3..]].concat(), sticky: true }.slots();
        assert_eq!((before.len(), after.len()), (64, 64));
        assert!(backends.iter().all(|backend| before.contains(backend)), "{before:?}");
        for (before, after) in before.iter().zip(&after).filter(|(before, _)| **before != backends[2]) {
            assert_eq!(before, after);
        }
    }
}
