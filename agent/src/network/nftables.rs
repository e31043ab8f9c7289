//! The packet rules in the kernel's words: one nf_tables table of our own.
//!
//! Owns the table `skeg` and nothing else of netfilter: whatever other tables hold is read at most. The rules are always
//! the same; what changes with pods and services are elements of sets and maps. That is what lets connections begin at
//! every moment of a change: a table that is replaced is, for one packet in many thousands, neither the old one nor the
//! new one. Written after the kernel's `nf_tables.h`; in comments the rules stand as nft(8) shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use skeg_protocol::manifest::Protocol;

use super::rules::{Front, Rules, Spread};
use crate::netlink::route::bytes;
use crate::netlink::{ACK, APPEND, CREATE, DUMP, Message, Socket, attribute, attributes};

/// Our table's name.
pub const TABLE: &str = "skeg";
/// Begins the name of every bridge of ours.
const BRIDGES: &[u8] = b"skeg";
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// Most elements in one message: an attribute ends at 64 KiB.
const CHUNK: usize = 400;

const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
const DELETE_ELEMENT: u16 = 14;
/// An attribute of a table that is its maker's own.
const TABLE_DATA: u16 = 6;
/// A comment as nft(8) shows it; its digit grows with every change of the rules.
const VERSION: [u8; 9] = *b"\x00\x07rules1\x00";

const HOOK_PREROUTING: u32 = 0;
const HOOK_FORWARD: u32 = 2;
const HOOK_OUTPUT: u32 = 3;
const HOOK_POSTROUTING: u32 = 4;

const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const JUMP: i32 = -3;
const GOTO: i32 = -4;

/// The first four-byte register; the others follow.
const R: u32 = 8;
/// Where a looked up value goes: clear of the keys.
const RESULT: u32 = R + 8;

const TYPE_IPV4: u32 = 7;
const TYPE_IPV6: u32 = 8;
const TYPE_PROTOCOL: u32 = 12;
const TYPE_SERVICE: u32 = 13;
const TYPE_MARK: u32 = 19;
const TYPE_NAME: u32 = 41;
const TYPE_VERDICT: u32 = 0xffff_ff00;

/// Two of a family's many numbers.
#[derive(Clone, Copy)]
struct Family {
    number: u8,
    /// Distance of the source address in the packet; the other follows.
    source: u32,
    /// Bytes of an address.
    size: u32,
    kind: u32,
    /// Part of names.
    name: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family { number: IPV4, source: 12, size: 4, kind: TYPE_IPV4, name: "ipv4" },
    Family { number: IPV6, source: 8, size: 16, kind: TYPE_IPV6, name: "ipv6" },
];

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { FAMILIES[0] } else { FAMILIES[1] }
}

/// A message, and the kernel's option that it needs beyond nf_tables itself.
type Step = (Message, &'static str);

/// How a kernel's answer to rules is to be understood.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The kernel lacks a part.
    #[error("this kernel's packet rules lack a part: it needs {option}")]
    Lacks {
        /// Its configuration option.
        option: &'static str,
        /// What it says.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("the packet rules can't be changed")]
    Refused(#[source] io::Error),
}

fn message(kind: u16, flags: u16) -> Message {
    Message::new(10 << 8 | kind, flags, &[INET, 0, 0, 0])
}

fn batch_mark(kind: u16) -> Message {
    Message::new(kind, 0, &[0, 0, 0, 10])
}

/// What the table holds beside its rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The chains that draw a backend; a chain's name says what its one rule is.
    chains: BTreeSet<String>,
    /// The elements of each set and map.
    sets: BTreeMap<String, BTreeMap<Vec<u8>, Value>>,
}

impl Contents {
    /// What the table is to hold for these rules.
    pub fn of(rules: &Rules) -> Self {
        let fronts: Vec<_> = rules.fronts.iter().map(|(front, spread)| (front, spread, spread.slots())).collect();
        let drawn = fronts.iter().filter(|(.., slots)| !slots.is_empty());
        let chains = drawn.map(|(front, spread, slots)| chain_of(front, spread, slots.len())).collect();
        Contents { chains, sets: elements(rules, &fronts) }
    }

    fn fill_steps(&self) -> Vec<Step> {
        self.sets.iter().flat_map(|(set, elements)| fill(NEW_ELEMENT, set, elements.iter().collect())).collect()
    }
}

/// Puts our table in the place of one that nobody knows, as one change.
///
/// # Errors
/// Nothing was changed then.
pub fn replace(socket: &Socket, contents: &Contents) -> Result<(), RulesError> {
    let mut steps = fresh_table();
    steps.extend(frame());
    steps.extend(draw_chains(contents.chains.iter()));
    steps.extend(contents.fill_steps());
    send(socket, steps)
}

/// Changes what our table holds. Chains stay, for the next time. On return no new connection goes where only `old` led.
///
/// # Errors
/// The table holds what it held, or both.
pub fn update(socket: &Socket, old: &Contents, new: &mut Contents) -> Result<(), RulesError> {
    let mut steps = draw_chains(new.chains.difference(&old.chains));
    let mut rest = Vec::new();
    let nothing = BTreeMap::new();
    for (set, elements) in &new.sets {
        let before = old.sets.get(set).unwrap_or(&nothing);
        let differs: Vec<_> = elements.iter().filter(|(key, value)| before.get(*key) != Some(value)).collect();
        let changed = differs.iter().filter_map(|(key, _)| before.get_key_value(*key)).collect();
        steps.extend(fill(DELETE_ELEMENT, set, changed));
        steps.extend(fill(NEW_ELEMENT, set, differs));
        let gone = before.iter().filter(|(key, _)| !elements.contains_key(*key)).collect();
        rest.extend(fill(DELETE_ELEMENT, set, gone));
    }
    new.chains.extend(old.chains.iter().cloned());
    // A packet may have drawn a number of the old ones already: its backend goes only when no new one can.
    for steps in [steps, rest].into_iter().filter(|steps| !steps.is_empty()) {
        send(socket, steps)?;
    }
    Ok(())
}

/// What our table holds, where there is one with the rules of this version.
///
/// # Errors
/// As netlink(7).
pub fn read(socket: &Socket) -> io::Result<Option<Contents>> {
    match table(socket) {
        Ok(attributes) if attribute(&attributes, TABLE_DATA) == Some(&VERSION) => {}
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut contents = Contents::of(&Rules::default());
    let mut question = message(GET_CHAIN, DUMP);
    question.put_text(1, TABLE);
    for answer in socket.ask(question)? {
        let rest = answer.body.get(4..).unwrap_or_default();
        let ours = attribute(rest, 1).is_some_and(|name| name == b"skeg\0");
        let name = attribute(rest, 3).map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
        contents.chains.extend(name.filter(|name| ours && draw_rule(name).is_some()));
    }
    for (set, elements) in &mut contents.sets {
        let mut question = message(GET_ELEMENT, DUMP);
        question.put_text(1, TABLE).put_text(2, set);
        for answer in socket.ask(question)? {
            let list = answer.body.get(4..).and_then(|rest| attribute(rest, 3)).unwrap_or_default();
            elements.extend(attributes(list).filter_map(|(_, element)| element_of(element)));
        }
    }
    Ok(Some(contents))
}

fn element_of(element: &[u8]) -> Option<(Vec<u8>, Value)> {
    let key = attribute(attribute(element, 1)?, 1)?.to_vec();
    let Some(data) = attribute(element, 2) else { return Some((key, Value::None)) };
    if let Some(bytes) = attribute(data, 1) {
        return Some((key, Value::Bytes(bytes.to_vec())));
    }
    let verdict = attribute(data, 2)?;
    let code = i32::from_be_bytes(attribute(verdict, 1)?.try_into().ok()?);
    let chain = attribute(verdict, 2).map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
    Some((key, Value::Verdict(code, chain)))
}

/// Removes our table.
///
/// # Errors
/// It is still there.
pub fn remove(socket: &Socket) -> Result<(), RulesError> {
    let mut steps = fresh_table();
    steps.truncate(2);
    send(socket, steps)
}

/// Has the steps done together or not at all.
fn send(socket: &Socket, mut steps: Vec<Step>) -> Result<(), RulesError> {
    steps.insert(0, (batch_mark(0x10), "CONFIG_NF_TABLES"));
    steps.push((batch_mark(0x11), ""));
    let (messages, options): (Vec<Message>, Vec<&'static str>) = steps.into_iter().unzip();
    socket.carry_out_as_one(messages).map_err(|refused| {
        let missing = [rustix::io::Errno::NOENT, rustix::io::Errno::OPNOTSUPP, rustix::io::Errno::AFNOSUPPORT];
        let errno = rustix::io::Errno::from_io_error(&refused.source);
        match options.get(refused.index) {
            Some(option) if errno.is_some_and(|errno| missing.contains(&errno)) && !option.is_empty() => {
                RulesError::Lacks { option, source: refused.source }
            }
            _ => RulesError::Refused(refused.source),
        }
    })
}

/// A table is removed only where it is, so it is made before and after.
fn fresh_table() -> Vec<Step> {
    let table = |kind, flags| {
        let mut table = message(kind, flags);
        table.put_text(1, TABLE);
        if kind == NEW_TABLE {
            table.put(TABLE_DATA, &VERSION);
        }
        (table, "CONFIG_NF_TABLES_INET")
    };
    vec![table(NEW_TABLE, CREATE), table(DELETE_TABLE, 0), table(NEW_TABLE, CREATE)]
}

/// The name of the chain that draws a backend: the same for all fronts with as many slots.
fn chain_of(front: &Front, spread: &Spread, slots: usize) -> String {
    let kind = if spread.sticky { "stick" } else { "spread" };
    let any = if front.address.is_unspecified() { "any-" } else { "" };
    format!("{kind}-{any}{}-{slots}", family_of(front.address).name)
}

/// Sets, chains and rules: all that is the same for every device.
fn frame() -> Vec<Step> {
    let mut steps = Vec::new();
    for family in FAMILIES {
        let Family { kind, size, name, .. } = family;
        let front = [TYPE_PROTOCOL, kind, TYPE_SERVICE];
        let length = 4 + size + 4;
        steps.push(set(&format!("fronts-{name}"), (&front, length), Some((TYPE_VERDICT, 0))));
        let backend = (kind << 6 | TYPE_SERVICE, size + 4);
        let drawn = [TYPE_PROTOCOL, kind, TYPE_SERVICE, TYPE_MARK];
        steps.push(set(&format!("backends-{name}"), (&drawn, length + 4), Some(backend)));
        steps.push(set(&format!("itself-{name}"), (&[kind, kind], size * 2), None));
        steps.push(set(&format!("virtuals-{name}"), (&[kind], size), None));
        steps.push(set(&format!("outward-{name}"), (&[kind], size), None));
    }
    steps.push(set("together", (&[TYPE_NAME, TYPE_NAME], 32), None));
    steps.push(set("internal", (&[TYPE_NAME], 16), None));
    steps.push(chain("dispatch", None));
    for (name, hook) in [("guard", HOOK_PREROUTING), ("forward", HOOK_FORWARD), ("output", HOOK_OUTPUT)] {
        steps.push(chain(name, Some(("filter", hook, if name == "guard" { -300 } else { 0 }))));
    }
    let nat = [("arriving", HOOK_PREROUTING, -100), ("own", HOOK_OUTPUT, -100), ("leaving", HOOK_POSTROUTING, 100)];
    for (name, hook, priority) in nat {
        steps.push(chain(name, Some(("nat", hook, priority))));
    }
    steps.extend(dispatch_rules());
    steps.extend(filter_rules());
    steps.extend(leaving_rules());
    steps
}

/// The chains that draw a backend, with their rules.
fn draw_chains<'a>(names: impl Iterator<Item = &'a String> + Clone) -> Vec<Step> {
    let chains = names.clone().map(|name| chain(name, None));
    chains.chain(names.filter_map(|name| draw_rule(name))).collect()
}

/// The rule of a chain that draws a backend, by the chain's name.
fn draw_rule(name: &str) -> Option<Step> {
    let mut words = name.split('-');
    let sticky = match words.next()? {
        "stick" => true,
        "spread" => false,
        _ => return None,
    };
    let mut family = words.next()?;
    let any = family == "any";
    if any {
        family = words.next()?;
    }
    let family = FAMILIES.into_iter().find(|one| one.name == family)?;
    let slots = words.next()?.parse().ok()?;
    let number = R + 2 + family.size / 4;
    let option = if sticky { "CONFIG_NFT_HASH and CONFIG_NFT_NAT" } else { "CONFIG_NFT_NUMGEN and CONFIG_NFT_NAT" };
    // dnat to meta l4proto . ip daddr . th dport . numgen random mod N map @backends
    Some(rule(name, option, |rule| {
        front_key(rule, family, any);
        if sticky {
            rule.payload(1, family.source, family.size, RESULT).hash(RESULT, family.size, slots, number);
        } else {
            rule.draw(slots, number);
        }
        rule.look_up(&format!("backends-{}", family.name), R, Some(RESULT));
        rule.dnat(family.number, RESULT, RESULT + family.size / 4);
    }))
}

/// Puts transport, address and port of where a packet goes into the registers from the first on.
fn front_key(rule: &mut Rule<'_>, family: Family, any: bool) {
    rule.meta(META_L4_PROTOCOL, R);
    if any {
        rule.load(R + 1, &vec![0; family.size as usize]);
    } else {
        rule.payload(1, family.source + family.size, family.size, R + 1);
    }
    rule.payload(2, 2, 2, R + 1 + family.size / 4);
}

fn dispatch_rules() -> Vec<Step> {
    let mut rules = Vec::new();
    for chain in ["arriving", "own"] {
        rules.push(rule(chain, "", |rule| {
            rule.verdict(JUMP, Some("dispatch"));
        }));
    }
    for any in [false, true] {
        for family in FAMILIES {
            let option = if any { "CONFIG_NFT_FIB_INET, CONFIG_NFT_FIB_IPV4 and CONFIG_NFT_FIB_IPV6" } else { "" };
            // [fib daddr type local] meta l4proto . ip daddr . th dport vmap @fronts
            rules.push(rule("dispatch", option, |rule| {
                rule.meta(META_FAMILY, R).equals(R, &[family.number]);
                if any {
                    rule.fib_type(R).equals(R, &2u32.to_ne_bytes());
                }
                front_key(rule, family, any);
                rule.look_up(&format!("fronts-{}", family.name), R, Some(0));
            }));
        }
    }
    rules
}

fn filter_rules() -> Vec<Step> {
    let mut rules = Vec::new();
    let ours = |rule: &mut Rule<'_>, key, wanted| {
        rule.meta(key, R).compare(R, wanted, BRIDGES);
    };
    // A pod must not reach the device's loopback, which the bridges let in for the device's own connections.
    rules.push(rule("guard", "", |rule| {
        ours(rule, META_IN_NAME, EQUAL);
        rule.meta(META_FAMILY, R).equals(R, &[IPV4]).payload(1, 16, 1, R).equals(R, &[127]).verdict(DROP, None);
    }));
    // ct state established,related accept
    rules.push(rule("forward", "CONFIG_NFT_CT", |rule| {
        rule.ct(CT_STATE, R).mask(R, 4, &6u32.to_ne_bytes()).compare(R, DIFFERENT, &[0; 4]).verdict(ACCEPT, None);
    }));
    for chain in ["forward", "output"] {
        for family in FAMILIES {
            // A service without a pod that is ready: whoever asks hears so at once.
            for tcp in [true, false] {
                rules.push(rule(chain, "CONFIG_NFT_REJECT_INET", |rule| {
                    rule.meta(META_FAMILY, R).equals(R, &[family.number]);
                    rule.payload(1, family.source + family.size, family.size, R);
                    rule.look_up(&format!("virtuals-{}", family.name), R, None);
                    if tcp {
                        rule.meta(META_L4_PROTOCOL, R).equals(R, &[6]);
                    }
                    rule.reject(tcp);
                }));
            }
        }
    }
    // Pods send everything by way of the device, so it must not advise them to do otherwise (ICMP redirects).
    for (protocol, kind) in [(1, 5), (58, 137)] {
        rules.push(rule("output", "", |rule| {
            ours(rule, META_OUT_NAME, EQUAL);
            rule.meta(META_L4_PROTOCOL, R)
                .equals(R, &[protocol])
                .payload(2, 0, 1, R)
                .equals(R, &[kind])
                .verdict(DROP, None);
        }));
    }
    rules.push(rule("forward", "", |rule| {
        rule.meta(META_IN_NAME, R).meta(META_OUT_NAME, R + 4).look_up("together", R, None).verdict(ACCEPT, None);
    }));
    rules.push(rule("forward", "", |rule| {
        rule.meta(META_IN_NAME, R).look_up("internal", R, None).verdict(DROP, None);
    }));
    // From network to network by a published port, but not by a service's address.
    for family in FAMILIES {
        rules.push(rule("forward", "CONFIG_NFT_CT", |rule| {
            ours(rule, META_IN_NAME, EQUAL);
            ours(rule, META_OUT_NAME, EQUAL);
            rule.meta(META_FAMILY, R).equals(R, &[family.number]);
            rule.ct_original_destination(family, R)
                .look_up(&format!("virtuals-{}", family.name), R, None)
                .verdict(DROP, None);
        }));
    }
    // ct status dnat accept
    rules.push(rule("forward", "CONFIG_NFT_CT", |rule| {
        ours(rule, META_OUT_NAME, EQUAL);
        rule.ct(CT_STATUS, R).mask(R, 4, &0x20u32.to_ne_bytes()).compare(R, DIFFERENT, &[0; 4]).verdict(ACCEPT, None);
    }));
    rules.push(rule("forward", "", |rule| {
        ours(rule, META_OUT_NAME, EQUAL);
        rule.verdict(DROP, None);
    }));
    rules
}

fn leaving_rules() -> Vec<Step> {
    let mut steps = Vec::new();
    for family in FAMILIES {
        // A pod that reaches itself by a service would answer itself past us.
        steps.push(rule("leaving", "CONFIG_NFT_MASQ", |rule| {
            rule.meta(META_FAMILY, R).equals(R, &[family.number]).payload(1, family.source, family.size * 2, R);
            rule.look_up(&format!("itself-{}", family.name), R, None).masquerade();
        }));
    }
    // The device's own connection to a published port by its loopback: the pod must see an address that it can answer.
    steps.push(rule("leaving", "CONFIG_NFT_MASQ", |rule| {
        rule.meta(META_FAMILY, R).equals(R, &[IPV4]).payload(1, 12, 1, R).equals(R, &[127]);
        rule.meta(META_OUT_NAME, R).compare(R, EQUAL, BRIDGES).masquerade();
    }));
    for family in FAMILIES {
        // ip saddr @outward oifname != "skeg*" masquerade
        steps.push(rule("leaving", "CONFIG_NFT_MASQ", |rule| {
            rule.meta(META_FAMILY, R).equals(R, &[family.number]).payload(1, family.source, family.size, R);
            rule.look_up(&format!("outward-{}", family.name), R, None);
            rule.meta(META_OUT_NAME, R).compare(R, DIFFERENT, BRIDGES).masquerade();
        }));
    }
    steps
}

/// What stands at an element's key.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    None,
    Verdict(i32, Option<String>),
    Bytes(Vec<u8>),
}

fn front_bytes(front: &Front) -> Vec<u8> {
    let mut key = vec![number(front.protocol), 0, 0, 0];
    key.extend(bytes(front.address));
    key.extend(front.port.to_be_bytes());
    key.extend([0, 0]);
    key
}

/// The protocol's number in packets.
pub fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(16, 0);
    bytes
}

/// A front with what it is spread by, and the slots that come of it.
type Drawn<'a> = (&'a Front, &'a Spread, Vec<SocketAddr>);

fn elements(rules: &Rules, fronts: &[Drawn<'_>]) -> BTreeMap<String, BTreeMap<Vec<u8>, Value>> {
    let mut sets = BTreeMap::new();
    for family in FAMILIES {
        let of_family = |address: &IpAddr| address.is_ipv4() == (family.number == IPV4);
        let (mut goals, mut backends) = (BTreeMap::new(), BTreeMap::new());
        for (front, spread, slots) in fronts.iter().filter(|(front, ..)| of_family(&front.address)) {
            // Without a backend nobody else may have it, not even a published port for every address.
            let verdict = match slots.len() {
                0 => Value::Verdict(ACCEPT, None),
                slots => Value::Verdict(GOTO, Some(chain_of(front, spread, slots))),
            };
            goals.insert(front_bytes(front), verdict);
            for (slot, backend) in (0u32..).zip(slots) {
                let key = [front_bytes(front), slot.to_ne_bytes().to_vec()].concat();
                let port = backend.port().to_be_bytes();
                backends.insert(key, Value::Bytes([bytes(backend.ip()), vec![port[0], port[1], 0, 0]].concat()));
            }
        }
        let of = |addresses: &BTreeSet<IpAddr>, times: usize| {
            let addresses = addresses.iter().filter(|address| of_family(address));
            addresses.map(|address| (bytes(*address).repeat(times), Value::None)).collect()
        };
        let (virtuals, outward) = (of(&rules.virtuals, 1), of(&rules.outward, 1));
        let lists = [("fronts", goals), ("backends", backends), ("itself", of(&rules.pods, 2))];
        for (set, list) in lists.into_iter().chain([("virtuals", virtuals), ("outward", outward)]) {
            sets.insert(format!("{set}-{}", family.name), list);
        }
    }
    let together = rules.networks.iter().map(|network| (interface(&network.bridge).repeat(2), Value::None));
    sets.insert("together".to_owned(), together.collect());
    let internal = rules.networks.iter().filter(|network| network.internal);
    sets.insert("internal".to_owned(), internal.map(|network| (interface(&network.bridge), Value::None)).collect());
    sets
}

/// Puts elements into a set or map, or takes them out, in as many messages as it takes.
fn fill(kind: u16, set: &str, elements: Vec<(&Vec<u8>, &Value)>) -> Vec<Step> {
    let some = |elements: &[(&Vec<u8>, &Value)]| {
        let mut message = message(kind, if kind == NEW_ELEMENT { CREATE } else { 0 });
        message.put_text(1, TABLE).put_text(2, set).nest(3, |list| {
            for (key, value) in elements {
                list.nest(1, |element| put_element(element, key, value));
            }
        });
        (message, "")
    };
    elements.chunks(CHUNK).map(some).collect()
}

fn put_element(element: &mut Message, key: &[u8], value: &Value) {
    element.nest(1, |data| {
        data.put(1, key);
    });
    match value {
        Value::None => {}
        Value::Bytes(value) => {
            element.nest(2, |data| {
                data.put(1, value);
            });
        }
        Value::Verdict(code, chain) => {
            element.nest(2, |data| put_verdict(data, *code, chain.as_deref()));
        }
    }
}

fn put_verdict(data: &mut Message, code: i32, chain: Option<&str>) {
    data.nest(2, |verdict| {
        verdict.put(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            verdict.put_text(2, chain);
        }
    });
}

fn set(name: &str, (kinds, length): (&[u32], u32), value: Option<(u32, u32)>) -> Step {
    const MAP: u32 = 8;
    let mut message = message(NEW_SET, CREATE);
    message.put_text(1, TABLE).put_text(2, name).put_be32(3, if value.is_some() { MAP } else { 0 });
    message.put_be32(4, kinds.iter().fold(0, |all, kind| all << 6 | kind)).put_be32(5, length).put_be32(10, 1);
    if let Some((kind, length)) = value {
        message.put_be32(6, kind).put_be32(7, length);
    }
    (message, "")
}

fn chain(name: &str, base: Option<(&str, u32, i32)>) -> Step {
    let mut message = message(NEW_CHAIN, CREATE);
    message.put_text(1, TABLE).put_text(3, name);
    if let Some((kind, hook, priority)) = base {
        message.nest(4, |data| {
            data.put_be32(1, hook).put(2, &priority.to_be_bytes());
        });
        message.put_be32(5, ACCEPT.unsigned_abs()).put_text(7, kind);
    }
    (message, "CONFIG_NFT_NAT and CONFIG_NF_NAT")
}

fn rule(chain: &str, option: &'static str, fill: impl FnOnce(&mut Rule<'_>)) -> Step {
    let mut message = message(NEW_RULE, CREATE | APPEND);
    message.put_text(1, TABLE).put_text(2, chain).nest(4, |list| fill(&mut Rule(list)));
    (message, option)
}

const META_IN_NAME: u32 = 6;
const META_OUT_NAME: u32 = 7;
const META_FAMILY: u32 = 15;
const META_L4_PROTOCOL: u32 = 16;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const EQUAL: u32 = 0;
const DIFFERENT: u32 = 1;

/// The expressions of a rule, in the order in which a packet meets them.
struct Rule<'a>(&'a mut Message);

impl Rule<'_> {
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Message)) -> &mut Self {
        self.0.nest(1, |expression| {
            expression.put_text(1, name).nest(2, fill);
        });
        self
    }

    fn meta(&mut self, key: u32, register: u32) -> &mut Self {
        self.expression("meta", |data| {
            data.put_be32(2, key).put_be32(1, register);
        })
    }

    fn ct(&mut self, key: u32, register: u32) -> &mut Self {
        self.expression("ct", |data| {
            data.put_be32(2, key).put_be32(1, register);
        })
    }

    /// The address that the connection's first packet was sent to.
    fn ct_original_destination(&mut self, family: Family, register: u32) -> &mut Self {
        let key = if family.number == IPV4 { 20 } else { 22 };
        self.expression("ct", |data| {
            data.put_be32(2, key).put_be32(1, register).put(3, &[0]);
        })
    }

    /// Bytes of the network's header (1) or the transport's (2).
    fn payload(&mut self, base: u32, offset: u32, length: u32, register: u32) -> &mut Self {
        self.expression("payload", |data| {
            data.put_be32(1, register).put_be32(2, base).put_be32(3, offset).put_be32(4, length);
        })
    }

    fn compare(&mut self, register: u32, how: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |data| {
            data.put_be32(1, register).put_be32(2, how).nest(3, |data| {
                data.put(1, value);
            });
        })
    }

    fn equals(&mut self, register: u32, value: &[u8]) -> &mut Self {
        self.compare(register, EQUAL, value)
    }

    fn mask(&mut self, register: u32, length: u32, mask: &[u8]) -> &mut Self {
        self.expression("bitwise", |data| {
            data.put_be32(1, register).put_be32(2, register).put_be32(3, length);
            data.nest(4, |data| {
                data.put(1, mask);
            })
            .nest(5, |data| {
                data.put(1, &vec![0; mask.len()]);
            });
        })
    }

    fn load(&mut self, register: u32, value: &[u8]) -> &mut Self {
        self.expression("immediate", |data| {
            data.put_be32(1, register).nest(2, |data| {
                data.put(1, value);
            });
        })
    }

    fn verdict(&mut self, code: i32, chain: Option<&str>) -> &mut Self {
        self.expression("immediate", |data| {
            data.put_be32(1, 0).nest(2, |data| put_verdict(data, code, chain));
        })
    }

    /// Goes on where the key is in the set; of a map the value goes into a register.
    fn look_up(&mut self, set: &str, key: u32, value: Option<u32>) -> &mut Self {
        self.expression("lookup", |data| {
            data.put_text(1, set).put_be32(2, key);
            if let Some(register) = value {
                data.put_be32(3, register);
            }
        })
    }

    /// What kind of address the packet goes to, for the device's routes.
    fn fib_type(&mut self, register: u32) -> &mut Self {
        self.expression("fib", |data| {
            data.put_be32(1, register).put_be32(2, 3).put_be32(3, 2);
        })
    }

    fn draw(&mut self, below: u32, register: u32) -> &mut Self {
        self.expression("numgen", |data| {
            data.put_be32(1, register).put_be32(2, below).put_be32(3, 1);
        })
    }

    fn hash(&mut self, source: u32, length: u32, below: u32, register: u32) -> &mut Self {
        // A seed of our own, or the kernel would draw one and each replaced table would move everybody.
        self.expression("hash", |data| {
            data.put_be32(1, source)
                .put_be32(2, register)
                .put_be32(3, length)
                .put_be32(4, below)
                .put_be32(5, 0x736b_6567);
            data.put_be32(7, 0);
        })
    }

    fn dnat(&mut self, family: u8, address: u32, port: u32) -> &mut Self {
        self.expression("nat", |data| {
            data.put_be32(1, 1).put_be32(2, family.into()).put_be32(3, address).put_be32(5, port);
        })
    }

    fn masquerade(&mut self) -> &mut Self {
        self.expression("masq", |_| {})
    }

    /// Answers with a reset, or that the port is closed.
    fn reject(&mut self, tcp: bool) -> &mut Self {
        self.expression("reject", |data| {
            if tcp {
                data.put_be32(1, 1)
            } else {
                data.put_be32(1, 2).put(2, &[1])
            };
        })
    }
}

/// Whether a change that the kernel told of is of our table and not by `port`.
pub fn is_foreign(answer: &crate::netlink::Answer, port: u32) -> bool {
    // In all these messages the first attribute is the table's name.
    let of_table = |name: &[u8]| name.strip_suffix(&[0]).unwrap_or(name) == TABLE.as_bytes();
    let kind = answer.kind & 0xff;
    let tells = answer.kind >> 8 == 10 && kind <= DELETE_ELEMENT;
    tells && answer.port != port && answer.body.get(4..).and_then(|rest| attribute(rest, 1)).is_some_and(of_table)
}

/// The attributes of our table.
fn table(socket: &Socket) -> io::Result<Vec<u8>> {
    let mut question = message(GET_TABLE, ACK);
    question.put_text(1, TABLE);
    let answers = socket.ask(question)?;
    let attributes = answers.first().and_then(|answer| answer.body.get(4..));
    attributes.map(<[u8]>::to_vec).ok_or_else(|| io::Error::other("the kernel says nothing of the table"))
}

/// The kernel's number of our table, which no other table will ever have.
///
/// # Errors
/// There is no such table.
pub fn handle(socket: &Socket) -> io::Result<u64> {
    let table = table(socket)?;
    let handle = attribute(&table, 4).and_then(|bytes| bytes.try_into().ok());
    handle.map(u64::from_be_bytes).ok_or_else(|| io::Error::other("the table has no handle"))
}

/// Tables of others whose chains drop what is forwarded unless a rule of theirs allows it: nothing of ours can overrule
/// them.
///
/// # Errors
/// As netlink(7).
pub fn dropping_forward(socket: &Socket) -> io::Result<Vec<String>> {
    let answers = socket.ask(Message::new(10 << 8 | GET_CHAIN, DUMP, &[0, 0, 0, 0]))?;
    let text = |value: &[u8]| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
    let of_answer = |answer: &crate::netlink::Answer| {
        let rest = answer.body.get(4..)?;
        let hook = attribute(attribute(rest, 4)?, 1)?;
        let drops = attribute(rest, 5)? == 0u32.to_be_bytes() && hook == HOOK_FORWARD.to_be_bytes();
        let (table, chain) = (text(attribute(rest, 1)?), text(attribute(rest, 3)?));
        let family = matches!(*answer.body.first()?, 1 | IPV4 | IPV6);
        (drops && family && table != TABLE).then(|| format!("{table} {chain}"))
    };
    Ok(answers.iter().filter_map(of_answer).collect())
}
