//! Which addresses a pod has: leases, kept in the pod's folder and written only when they change.
//!
//! Owns the device's ranges, the choice of addresses and its memory. Must not touch the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use skeg_protocol::Uid;
use skeg_protocol::manifest::{Attachment, Network};

use super::NetworkError;
use crate::config::PodNetwork;
use crate::journal::{make_folder, replace_file};
use crate::netlink::route::Range;

/// Addresses of the network that pods are in by default, before those of services.
const PODS: u32 = 1 << 12;
/// Where the ranges of named networks begin, in the device's range.
const NAMED: u32 = 1 << 13;
/// Addresses of a named network whose range the device chooses.
const OF_NAMED: u32 = 1 << 8;

/// A network of pods on this device; the empty one is the device's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId {
    /// Its namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_default() { f.write_str("default") } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

impl NetworkId {
    /// Whether it is the one that pods are in by default.
    pub fn is_default(&self) -> bool {
        self.name.is_empty()
    }

    /// The name of its bridge: an interface's name has at most 15 bytes.
    pub fn bridge(&self) -> String {
        if self.is_default() { "skeg0".to_owned() } else { format!("skeg{:010x}", hash(self) & 0xff_ffff_ffff) }
    }
}

/// A number that stays the same over versions and boots (FNV-1a).
pub fn hash(what: &impl fmt::Display) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    what.to_string().bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Ranges and own addresses of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// The IPv4 range; its address is the device's own in it.
    pub v4: Range,
    /// The same of IPv6, where the kernel has it.
    pub v6: Option<Range>,
}

impl Plan {
    /// Both ranges.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + use<> {
        [Some(self.v4), self.v6].into_iter().flatten()
    }
}

/// A pod's addresses in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The network.
    pub network: NetworkId,
    /// IPv4.
    pub v4: Ipv4Addr,
    /// IPv6, where the kernel has it.
    pub v6: Option<Ipv6Addr>,
}

impl Lease {
    /// Both addresses, IPv4 first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        [Some(IpAddr::V4(self.v4)), self.v6.map(IpAddr::V6)].into_iter().flatten()
    }
}

/// The addresses of all pods of a device.
#[derive(Debug)]
pub struct Addresses {
    config: PodNetwork,
    /// Whether the kernel has IPv6.
    v6: bool,
    /// Folder of the pods' folders.
    folder: PathBuf,
    leases: BTreeMap<Uid, Vec<Lease>>,
    /// Where the next search begins: an address that was just given back rests as long as possible.
    next: u32,
}

impl Addresses {
    /// Reads what was kept below `folder`, a folder for each pod.
    ///
    /// # Errors
    /// A lease that can't be read: two pods must not get the same address.
    pub fn open(config: PodNetwork, v6: bool, folder: PathBuf) -> Result<Self, NetworkError> {
        let mut leases = BTreeMap::new();
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (path, uid) = (entry.path().join("addresses"), entry.file_name());
            let Some(uid) = uid.to_str().and_then(|uid| uid.parse::<Uid>().ok()) else { continue };
            let text = match std::fs::read_to_string(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                text => {
                    text.map_err(|source| NetworkError::Lease { path: path.clone(), problem: source.to_string() })?
                }
            };
            let problem = || "is no list of addresses; delete the pod of this folder".to_owned();
            let read = text.lines().map(lease).collect::<Option<Vec<Lease>>>();
            leases.insert(uid, read.ok_or_else(|| NetworkError::Lease { path, problem: problem() })?);
        }
        Ok(Addresses { config, v6, folder, leases, next: 0 })
    }

    /// The ranges of a network. `manifest` is `None` for the device's own.
    ///
    /// # Errors
    /// No range is free for one more network.
    pub fn plan(&self, id: &NetworkId, manifest: Option<&Network>, used: &[Plan]) -> Result<Plan, NetworkError> {
        let Some(manifest) = manifest else {
            return Ok(self.own(0, PODS, 0));
        };
        let given = |v4: bool| {
            let subnet = manifest.subnets.iter().find(|subnet| subnet.address.is_ipv4() == v4)?;
            let first = match subnet.address {
                IpAddr::V4(address) => IpAddr::V4(add4(mask4(address, subnet.prefix), 1)),
                IpAddr::V6(address) => IpAddr::V6(add6(mask6(address, subnet.prefix), 1)),
            };
            Some(Range { address: subnet.gateway.unwrap_or(first), length: subnet.prefix })
        };
        let (v4, v6) = (given(true), given(false).filter(|_| self.v6));
        if let Some(v4) = v4 {
            let block = u16::try_from(hash(id) & 0x7fff).unwrap_or(0) | 0x8000;
            return Ok(Plan { v4, v6: v6.or_else(|| self.own(0, PODS, block).v6) });
        }
        let blocks = ((1u32 << (32 - self.config.ipv4.length)) - NAMED) / OF_NAMED;
        let blocks = (0..blocks).map(|block| {
            let number = u16::try_from(block + 2).unwrap_or(u16::MAX);
            self.own(NAMED + block * OF_NAMED, OF_NAMED, number)
        });
        // What its pods have been given says which range is its own.
        let known = self.leases.values().flatten().filter(|lease| lease.network == *id).map(|lease| lease.v4).next();
        let taken = |plan: &Plan| {
            used.iter().any(|used| used.v4.overlaps(&plan.v4))
                || self.leases.values().flatten().any(|lease| plan.v4.contains(lease.v4.into()))
        };
        let mut plan = match known {
            Some(known) => blocks.clone().find(|plan| plan.v4.contains(known.into())),
            None => blocks.clone().find(|plan| !taken(plan)),
        }
        .ok_or_else(|| NetworkError::Exhausted {
            what: "named networks".into(),
            range: self.config.ipv4.to_string(),
        })?;
        plan.v6 = v6.or(plan.v6);
        Ok(plan)
    }

    /// A part of the device's ranges: `size` addresses from `first` on, and the IPv6 network with a number.
    fn own(&self, first: u32, size: u32, number: u16) -> Plan {
        let length = u8::try_from(32 - size.trailing_zeros()).unwrap_or(32);
        let v4 = Range { address: add4(self.config.ipv4.address, first + 1).into(), length };
        let v6 = add6(self.config.ipv6, (u128::from(number) << 64) + 1);
        Plan { v4, v6: self.v6.then_some(Range { address: v6.into(), length: 64 }) }
    }

    /// The range from which services get addresses where nobody gave them one.
    pub fn services(&self) -> Range {
        Range { address: add4(self.config.ipv4.address, PODS).into(), length: 20 }
    }

    /// The pod's lease in a network: the kept one, else a new one that is durable on return.
    ///
    /// # Errors
    /// The range is exhausted, a wanted address is taken or lies outside, or the lease can't be written.
    pub fn lease(
        &mut self,
        pod: Uid,
        network: &NetworkId,
        plan: Plan,
        wish: Option<&Attachment>,
    ) -> Result<Lease, NetworkError> {
        if let Some(kept) = self.leases.get(&pod).into_iter().flatten().find(|lease| lease.network == *network) {
            return Ok(kept.clone());
        }
        let lease = self.choose(network, plan, wish)?;
        let leases = self.leases.entry(pod).or_default();
        leases.push(lease.clone());
        let text: String = leases.iter().map(line).collect();
        let folder = self.folder.join(pod.to_string());
        let path = folder.join("addresses");
        let written = make_folder(&folder)
            .map_err(|error| error.to_string())
            .and_then(|()| replace_file(&path, text.as_bytes()).map_err(|error| crate::apply::chain(&error)));
        written.map_err(|problem| {
            leases.retain(|kept| kept != &lease);
            NetworkError::Lease { path, problem }
        })?;
        Ok(lease)
    }

    fn choose(&mut self, network: &NetworkId, plan: Plan, wish: Option<&Attachment>) -> Result<Lease, NetworkError> {
        let mut taken: BTreeSet<IpAddr> = self.leases.values().flatten().flat_map(Lease::addresses).collect();
        taken.extend(plan.ranges().map(|range| range.address));
        let (wish4, wish6) = (wish.and_then(|wish| wish.ipv4), wish.and_then(|wish| wish.ipv6));
        for (wanted, range) in [(wish4.map(IpAddr::V4), Some(plan.v4)), (wish6.map(IpAddr::V6), plan.v6)] {
            let Some(address) = wanted else { continue };
            if range.is_some_and(|range| !range.contains(address)) {
                return Err(NetworkError::Outside {
                    address,
                    network: network.clone(),
                    range: range.map(|r| r.to_string()),
                });
            }
            if taken.contains(&address) {
                let holder = self.holder(address);
                return Err(NetworkError::Taken { address, network: network.clone(), holder });
            }
        }
        let IpAddr::V4(own) = plan.v4.address else {
            return Err(NetworkError::Exhausted { what: "IPv4".into(), range: plan.v4.to_string() });
        };
        let base = mask4(own, plan.v4.length);
        let size = 1u32.checked_shl(32 - u32::from(plan.v4.length)).unwrap_or(u32::MAX).min(1 << 16);
        let of6 = |offset: u32| {
            let IpAddr::V6(own) = plan.v6?.address else { return None };
            Some(add6(mask6(own, plan.v6?.length), offset.into()))
        };
        // The first is the network's, the last the broadcast address.
        let offsets = (0..size.saturating_sub(2)).map(|step| 1 + (self.next + step) % (size - 2));
        let free = |offset: &u32| {
            let free4 = wish4.is_some() || !taken.contains(&IpAddr::V4(add4(base, *offset)));
            let free6 = wish6.is_some() || of6(*offset).is_none_or(|address| !taken.contains(&IpAddr::V6(address)));
            free4 && free6
        };
        let offset = { offsets }.find(free).ok_or_else(|| NetworkError::Exhausted {
            what: format!("network {network}"),
            range: plan.v4.to_string(),
        })?;
        self.next = offset % (size - 2);
        let v4 = wish4.unwrap_or(add4(base, offset));
        Ok(Lease { network: network.clone(), v4, v6: wish6.filter(|_| self.v6).or_else(|| of6(offset)) })
    }

    fn holder(&self, address: IpAddr) -> String {
        let mut leases = self.leases.iter();
        let holder = leases.find(|(_, leases)| leases.iter().any(|lease| lease.addresses().any(|own| own == address)));
        holder.map_or("the device".to_owned(), |(uid, _)| format!("pod {uid}"))
    }

    /// Forgets a pod; its folder is the caller's to remove.
    pub fn forget(&mut self, pod: Uid) {
        self.leases.remove(&pod);
    }
}

/// The part of an address that its network has in common.
fn mask4(address: Ipv4Addr, length: u8) -> Ipv4Addr {
    (u32::from(address) & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)).into()
}

fn mask6(address: Ipv6Addr, length: u8) -> Ipv6Addr {
    (u128::from(address) & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)).into()
}

fn add4(address: Ipv4Addr, offset: u32) -> Ipv4Addr {
    u32::from(address).wrapping_add(offset).into()
}

fn add6(address: Ipv6Addr, offset: u128) -> Ipv6Addr {
    u128::from(address).wrapping_add(offset).into()
}

fn line(lease: &Lease) -> String {
    let v6 = lease.v6.map_or(String::new(), |address| format!(" {address}"));
    format!("{} {}{v6}\n", lease.network, lease.v4)
}

fn lease(line: &str) -> Option<Lease> {
    let mut words = line.split(' ');
    let network = match words.next()? {
        "default" => NetworkId::default(),
        full => {
            let (namespace, name) = full.split_once('/')?;
            NetworkId { namespace: namespace.to_owned(), name: name.to_owned() }
        }
    };
    let v4 = words.next()?.parse().ok()?;
    let v6 = words.next().map(str::parse).transpose().ok()?;
    Some(Lease { network, v4, v6 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> NetworkId {
        NetworkId { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    fn pod(number: u8) -> Uid {
        Uid([number; 16])
    }

    #[test]
    fn leases_outlive_the_agent_and_are_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Addresses::open(PodNetwork::default(), true, folder.path().to_owned()).unwrap();
        let mut first = open();
        let own = first.plan(&NetworkId::default(), None, &[]).unwrap();
        assert_eq!(own.v4.to_string(), "10.223.0.1/20");
        let lease = first.lease(pod(1), &NetworkId::default(), own, None).unwrap();
        assert_eq!(
            (lease.v4.to_string(), lease.v6.unwrap().to_string()),
            ("10.223.0.2".into(), "fd73:6b65:6700::2".into())
        );
        let back = first.plan(&named("back"), Some(&Network::default()), &[]).unwrap();
        assert_eq!(back.v4.to_string(), "10.223.32.1/24");
        first.lease(pod(1), &named("back"), back, None).unwrap();
        let mut second = open();
        assert_eq!(second.lease(pod(1), &NetworkId::default(), own, None).unwrap(), lease);
        assert_eq!(second.plan(&named("back"), Some(&Network::default()), &[]).unwrap(), back);
        assert_eq!(
            second.plan(&named("front"), Some(&Network::default()), &[]).unwrap().v4.to_string(),
            "10.223.33.1/24"
        );
        assert_eq!(second.lease(pod(2), &NetworkId::default(), own, None).unwrap().v4.to_string(), "10.223.0.3");
        second.forget(pod(1));
        let next = second.lease(pod(3), &NetworkId::default(), own, None).unwrap();
        assert_eq!(next.v4.to_string(), "10.223.0.4", "an address rests before it is given again");
        std::fs::write(folder.path().join(pod(3).to_string()).join("addresses"), "rubbish").unwrap();
        let broken = Addresses::open(PodNetwork::default(), true, folder.path().to_owned());
        assert!(matches!(broken, Err(NetworkError::Lease { .. })));
    }

    #[test]
    fn wished_addresses_are_given_once_and_only_inside() {
        let folder = tempfile::tempdir().unwrap();
        let mut all = Addresses::open(PodNetwork::default(), false, folder.path().to_owned()).unwrap();
        let plan = Plan { v4: Range { address: "172.29.7.1".parse().unwrap(), length: 24 }, v6: None };
        let wish = |address: &str| Attachment { ipv4: Some(address.parse().unwrap()), ..Attachment::default() };
        let back = named("back");
        let given = all.lease(pod(1), &back, plan, Some(&wish("172.29.7.9"))).unwrap();
        assert_eq!((given.v4.to_string(), given.v6), ("172.29.7.9".to_owned(), None));
        let taken = all.lease(pod(2), &back, plan, Some(&wish("172.29.7.9"))).unwrap_err();
        assert!(taken.to_string().contains(&format!("pod {}", pod(1))), "{taken}");
        let own = all.lease(pod(2), &back, plan, Some(&wish("172.29.7.1"))).unwrap_err();
        assert!(own.to_string().contains("the device"), "{own}");
        let outside = all.lease(pod(2), &back, plan, Some(&wish("172.29.8.9"))).unwrap_err();
        assert!(outside.to_string().contains("172.29.7.1/24"), "{outside}");
    }

    #[test]
    fn an_exhausted_range_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let mut all = Addresses::open(PodNetwork::default(), false, folder.path().to_owned()).unwrap();
        let plan = Plan { v4: Range { address: "192.0.2.1".parse().unwrap(), length: 29 }, v6: None };
        for number in 1..=5 {
            all.lease(pod(number), &named("small"), plan, None).unwrap();
        }
        let error = all.lease(pod(6), &named("small"), plan, None).unwrap_err();
        assert!(
            matches!(&error, NetworkError::Exhausted { .. }) && error.to_string().contains("192.0.2.1/29"),
            "{error}"
        );
    }
}
