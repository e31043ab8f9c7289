//! Questions and answers of the domain name system as bytes; RFC 1035, RFC 2782 (SRV), RFC 6891 (larger datagrams).
//!
//! Every byte comes from outside. Pure: no socket, no clock. Reads no more than it needs: one question of a client, and
//! of another server's answer where each record lies, so that its age can be set.

use std::net::IpAddr;

/// Address of IPv4.
pub const A: u16 = 1;
/// Another name.
pub const CNAME: u16 = 5;
/// The name of an address.
pub const PTR: u16 = 12;
/// Address of IPv6.
pub const AAAA: u16 = 28;
/// Host and port of a service.
pub const SRV: u16 = 33;
/// Everything.
pub const ANY: u16 = 255;
const SOA: u16 = 6;
const OPT: u16 = 41;
const INTERNET: u16 = 1;

/// All is well.
pub const NO_ERROR: u8 = 0;
/// The question is garbled.
pub const FORMAT_ERROR: u8 = 1;
/// No server could be asked.
pub const SERVER_FAILURE: u8 = 2;
/// There is no such name.
pub const NO_NAME: u8 = 3;
/// What is asked is no question.
pub const NOT_IMPLEMENTED: u8 = 4;

/// Bytes before the question.
const HEADER: usize = 12;
/// Largest name in bytes, with the lengths of its labels.
const MAX_NAME: usize = 255;
/// What every client takes by datagram.
const SMALL: usize = 512;
/// What we ask other servers for: it passes every network in one piece.
const DATAGRAM: u16 = 1232;
const RESPONSE: u16 = 1 << 15;
const AUTHORITATIVE: u16 = 1 << 10;
const TRUNCATED: u16 = 1 << 9;
const RECURSION_DESIRED: u16 = 1 << 8;
const RECURSION_AVAILABLE: u16 = 1 << 7;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    /// Its number, for the answer.
    pub id: u16,
    /// The name in small letters, without a final dot.
    pub name: String,
    /// Type of the records.
    pub kind: u16,
    /// The question as it came.
    question: Vec<u8>,
    /// Whether it may be passed on.
    recursion: bool,
    /// Bytes that the client takes by datagram, where it speaks RFC 6891.
    size: Option<u16>,
}

/// A question that gets an error for an answer, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bad {
    /// Its number, where it has one.
    pub id: Option<u16>,
    /// What to say.
    pub code: u8,
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

impl Query {
    /// Reads a question.
    ///
    /// # Errors
    /// It breaks a rule. What is itself an answer has no number: answering it could go on for ever.
    pub fn parse(bytes: &[u8]) -> Result<Query, Bad> {
        let id = number(bytes, 0).filter(|_| bytes.len() >= HEADER);
        let flags = number(bytes, 2).unwrap_or(RESPONSE);
        if flags & RESPONSE != 0 {
            return Err(Bad { id: None, code: FORMAT_ERROR });
        }
        if flags >> 11 & 0xf != 0 {
            return Err(Bad { id, code: NOT_IMPLEMENTED });
        }
        Query::read(bytes, flags).ok_or(Bad { id, code: FORMAT_ERROR })
    }

    fn read(bytes: &[u8], flags: u16) -> Option<Query> {
        let counts = [4, 6, 8, 10].map(|at| number(bytes, at).unwrap_or(u16::MAX));
        let (end, name) = plain_name(bytes, HEADER)?;
        let (kind, class) = (number(bytes, end)?, number(bytes, end + 2)?);
        if counts[..3] != [1, 0, 0] || counts[3] > 1 || class != INTERNET {
            return None;
        }
        let (mut rest, mut size) = (end + 4, None);
        if counts[3] == 1 {
            let record = Record::read(bytes, rest)?;
            (rest, size) = (record.end, (record.kind == OPT).then_some(record.class));
        }
        let question = bytes.get(HEADER..end + 4)?.to_vec();
        let recursion = flags & RECURSION_DESIRED != 0;
        (rest == bytes.len()).then_some(Query { id: number(bytes, 0)?, name, kind, question, recursion, size })
    }

    /// The same question about another name.
    pub fn about(&self, name: &str) -> Option<Query> {
        let mut question = name_bytes(name)?;
        question.extend(self.kind.to_be_bytes());
        question.extend(INTERNET.to_be_bytes());
        Some(Query { name: name.to_ascii_lowercase(), question, ..self.clone() })
    }

    /// The question for another server, under a number that strangers don't know.
    pub fn forward(&self, id: u16) -> Vec<u8> {
        let mut bytes = header(id, RECURSION_DESIRED, [1, 0, 0, 1]);
        bytes.extend(&self.question);
        opt(&mut bytes);
        bytes
    }

    /// Bytes that an answer may have by datagram.
    fn limit(&self, stream: bool) -> usize {
        if stream { usize::from(u16::MAX) } else { usize::from(self.size.unwrap_or(0).min(DATAGRAM)).max(SMALL) }
    }

    /// An answer out of our own knowledge.
    pub fn answer(&self, code: u8, records: &[Own], stream: bool) -> Vec<u8> {
        let mut body = Vec::new();
        for record in records {
            record.write(&mut body);
        }
        let count = u16::try_from(records.len()).unwrap_or(u16::MAX);
        self.assemble(AUTHORITATIVE | u16::from(code), [count, 0], &body, stream)
    }

    fn assemble(&self, flags: u16, [answers, authorities]: [u16; 2], body: &[u8], stream: bool) -> Vec<u8> {
        let extra = u16::from(self.size.is_some());
        let desired = if self.recursion { RECURSION_DESIRED } else { 0 };
        let flags = flags | RESPONSE | RECURSION_AVAILABLE | desired;
        let fits = HEADER + self.question.len() + body.len() + 11 <= self.limit(stream);
        let mut bytes = match fits {
            true => header(self.id, flags, [1, answers, authorities, extra]),
            false => header(self.id, flags | TRUNCATED, [1, 0, 0, extra]),
        };
        bytes.extend(&self.question);
        if fits {
            bytes.extend(body);
        }
        if self.size.is_some() {
            opt(&mut bytes);
        }
        bytes
    }
}

/// The answer to what could not be understood.
pub fn refusal(bad: Bad) -> Option<Vec<u8>> {
    Some(header(bad.id?, RESPONSE | u16::from(bad.code), [0; 4]))
}

fn header(id: u16, flags: u16, counts: [u16; 4]) -> Vec<u8> {
    let numbers = [[id, flags].as_slice(), &counts].concat();
    numbers.into_iter().flat_map(u16::to_be_bytes).collect()
}

fn opt(bytes: &mut Vec<u8>) {
    bytes.push(0);
    bytes.extend(OPT.to_be_bytes());
    bytes.extend(DATAGRAM.to_be_bytes());
    bytes.extend([0; 6]);
}

/// A record that we make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// Whose; `None` is the name that was asked for.
    pub name: Option<String>,
    /// Seconds that it may be kept.
    pub ttl: u32,
    /// What it says.
    pub data: Data,
}

/// What a record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// A or AAAA.
    Address(IpAddr),
    /// CNAME.
    Alias(String),
    /// PTR.
    Pointer(String),
    /// SRV with priority and weight 0.
    Service(u16, String),
}

impl Own {
    fn write(&self, bytes: &mut Vec<u8>) {
        // A name of ours is one that was read or checked before; the root stands for any other.
        let name = |name: &str| name_bytes(name).unwrap_or_else(|| vec![0]);
        match &self.name {
            None => bytes.extend([0xc0, 12]),
            Some(own) => bytes.extend(name(own)),
        }
        let (kind, data) = match &self.data {
            Data::Address(IpAddr::V4(address)) => (A, address.octets().to_vec()),
            Data::Address(IpAddr::V6(address)) => (AAAA, address.octets().to_vec()),
            Data::Alias(goal) => (CNAME, name(goal)),
            Data::Pointer(goal) => (PTR, name(goal)),
            Data::Service(port, goal) => (SRV, [&[0; 4], port.to_be_bytes().as_slice(), &name(goal)].concat()),
        };
        bytes.extend(kind.to_be_bytes());
        bytes.extend(INTERNET.to_be_bytes());
        bytes.extend(self.ttl.to_be_bytes());
        bytes.extend(u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
        bytes.extend(data);
    }
}

/// A name in small letters that stands at a place, and where it ends. Letters that are no part of a host's name, and
/// references to other places, are refused.
fn plain_name(bytes: &[u8], mut at: usize) -> Option<(usize, String)> {
    let mut name = String::new();
    loop {
        let length = usize::from(*bytes.get(at)?);
        let label = bytes.get(at + 1..at + 1 + length).filter(|_| length < 64)?;
        at += 1 + length;
        if length == 0 {
            return Some((at, name));
        }
        if !label.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'.') || name.len() + length + 2 > MAX_NAME {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
}

/// A name as bytes, where it is one.
fn name_bytes(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length))?;
        bytes.push(length);
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= MAX_NAME).then_some(bytes)
}

/// Where a name ends that may go on elsewhere.
fn skip_name(bytes: &[u8], mut at: usize) -> Option<usize> {
    let begin = at;
    loop {
        let length = *bytes.get(at)?;
        match length {
            0 => return Some(at + 1),
            0xc0.. => {
                let goal = usize::from(number(bytes, at)? & 0x3fff);
                // Only back, so that no chain of references goes round.
                return (goal < at).then_some(at + 2);
            }
            1..64 => at += 1 + usize::from(length),
            _ => return None,
        }
        if at - begin > MAX_NAME {
            return None;
        }
    }
}

/// A record in somebody's bytes.
struct Record {
    kind: u16,
    class: u16,
    /// Where its seconds stand.
    ttl_at: usize,
    data: std::ops::Range<usize>,
    end: usize,
}

impl Record {
    fn read(bytes: &[u8], at: usize) -> Option<Record> {
        let at = skip_name(bytes, at)?;
        let begin = at + 10;
        let end = begin + usize::from(number(bytes, at + 8)?);
        let record =
            Record { kind: number(bytes, at)?, class: number(bytes, at + 2)?, ttl_at: at + 4, data: begin..end, end };
        (end <= bytes.len()).then_some(record)
    }

    fn ttl(&self, bytes: &[u8]) -> u32 {
        let seconds = bytes.get(self.ttl_at..self.ttl_at + 4).and_then(|bytes| bytes.try_into().ok());
        u32::from_be_bytes(seconds.unwrap_or_default())
    }
}

/// Another server's answer, without its additional records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Its word on the whole.
    pub code: u8,
    /// Whether it is cut, so that it must be asked for by a stream.
    pub truncated: bool,
    /// Addresses in it.
    pub addresses: Vec<IpAddr>,
    /// Fewest seconds that a record of it may be kept; without any it is none.
    pub ttl: Option<u32>,
    counts: [u16; 2],
    body: Vec<u8>,
    /// Where seconds stand in the body.
    ttls: Vec<usize>,
}

impl Reply {
    /// Reads an answer to a question that was sent under a number. `None` is an answer to something else, or garbled.
    pub fn parse(bytes: &[u8], query: &Query, id: u16) -> Option<Reply> {
        let flags = number(bytes, 2)?;
        let begin = HEADER + query.question.len();
        let same = bytes.get(HEADER..begin)?.eq_ignore_ascii_case(&query.question);
        if number(bytes, 0)? != id || flags & RESPONSE == 0 || number(bytes, 4)? != 1 || !same {
            return None;
        }
        let counts = [number(bytes, 6)?, number(bytes, 8)?];
        let mut reply = Reply {
            code: (flags & 0xf) as u8,
            truncated: flags & TRUNCATED != 0,
            addresses: Vec::new(),
            ttl: None,
            counts,
            body: Vec::new(),
            ttls: Vec::new(),
        };
        let mut at = begin;
        if reply.truncated {
            return Some(reply);
        }
        for _ in 0..u32::from(counts[0]) + u32::from(counts[1]) {
            let record = Record::read(bytes, at)?;
            let mut ttl = record.ttl(bytes);
            if record.kind == SOA {
                // RFC 2308: the last number of it says how long "there is none" may be kept.
                let last = bytes.get(record.end.checked_sub(4)?..record.end)?;
                ttl = ttl.min(u32::from_be_bytes(last.try_into().ok()?));
            }
            let data = bytes.get(record.data.clone())?;
            let address = match record.kind {
                A => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
                AAAA => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
                _ => None,
            };
            reply.addresses.extend(address);
            reply.ttl = Some(reply.ttl.map_or(ttl, |least| least.min(ttl)));
            reply.ttls.push(record.ttl_at - begin);
            at = record.end;
        }
        reply.body = bytes.get(begin..at)?.to_vec();
        Some(reply)
    }

    /// Its size in memory, in bytes.
    pub fn size(&self) -> usize {
        self.body.len() + self.ttls.len() * 8 + 128
    }

    /// The answer for a client, `age` seconds after it came. References in it stay right, as the question is as long.
    pub fn answer(&self, query: &Query, age: u32, stream: bool) -> Vec<u8> {
        let mut body = self.body.clone();
        for at in &self.ttls {
            if let Some(seconds) = body.get_mut(*at..at + 4) {
                let left = u32::from_be_bytes(seconds.try_into().unwrap_or_default()).saturating_sub(age);
                seconds.copy_from_slice(&left.to_be_bytes());
            }
        }
        query.assemble(self.code.into(), self.counts, &body, stream)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A question as a client sends it.
    pub fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut bytes = header(7, RECURSION_DESIRED, [1, 0, 0, 0]);
        bytes.extend(name_bytes(name).unwrap());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(INTERNET.to_be_bytes());
        bytes
    }

    /// Addresses in an answer to a question, and its word.
    pub fn read(answer: &[u8], question: &[u8]) -> (u8, Vec<IpAddr>) {
        let reply = Reply::parse(answer, &Query::parse(question).unwrap(), 7).unwrap();
        (reply.code, reply.addresses)
    }

    #[test]
    fn questions_are_read_and_answered() {
        let bytes = question("DB.shop.svc.Cluster.local", A);
        let query = Query::parse(&bytes).unwrap();
        assert_eq!((query.name.as_str(), query.kind, query.id), ("db.shop.svc.cluster.local", A, 7));
        let address: IpAddr = "10.0.0.7".parse().unwrap();
        let own = Own { name: None, ttl: 5, data: Data::Address(address) };
        let answer = query.answer(NO_ERROR, std::slice::from_ref(&own), false);
        assert_eq!(read(&answer, &bytes), (NO_ERROR, vec![address]));
        let many = vec![own; 100];
        assert!(Reply::parse(&query.answer(NO_ERROR, &many, false), &query, 7).unwrap().truncated);
        assert_eq!(read(&query.answer(NO_ERROR, &many, true), &bytes).1.len(), 100);
    }

    #[test]
    fn an_answer_grows_old_and_keeps_its_references() {
        let bytes = question("www.example.com", A);
        let query = Query::parse(&bytes).unwrap();
        let alias = Own { name: None, ttl: 300, data: Data::Alias("web.example.com".to_owned()) };
        let goal = Own {
            name: Some("web.example.com".to_owned()),
            ttl: 60,
            data: Data::Address("192.0.2.1".parse().unwrap()),
        };
        let sent = query.answer(NO_ERROR, &[alias, goal], false);
        let reply = Reply::parse(&sent, &query, 7).unwrap();
        assert_eq!((reply.ttl, reply.addresses.len()), (Some(60), 1));
        let later = Reply::parse(&reply.answer(&query, 20, false), &query, 7).unwrap();
        assert_eq!(later.ttl, Some(40));
        assert_eq!(Reply::parse(&sent, &query, 8), None, "another number");
        let other = Query::parse(&question("web.example.com", A)).unwrap();
        assert_eq!(Reply::parse(&sent, &other, 7), None, "another question");
    }

    #[test]
    fn garbled_questions_are_refused_and_answers_are_not_answered() {
        let good = question("a.example", A);
        for end in HEADER..good.len() {
            assert_eq!(Query::parse(&good[..end]).unwrap_err().code, FORMAT_ERROR, "{end}");
        }
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Query::parse(&bytes)
        };
        assert_eq!(with(2, 0x80).unwrap_err().id, None);
        assert_eq!(with(2, 0x28).unwrap_err().code, NOT_IMPLEMENTED);
        for (at, byte) in [(5, 2), (7, 1), (12, 0xc0), (12, 64), (13, 0), (13, b'.')] {
            assert_eq!(with(at, byte).unwrap_err().code, FORMAT_ERROR, "{at}");
        }
        assert!(Query::parse(&[good.clone(), vec![0]].concat()).is_err(), "something after the question");
        assert!(refusal(Bad { id: None, code: FORMAT_ERROR }).is_none());
    }

    #[test]
    fn references_that_go_forward_are_refused() {
        let bytes = question("a.example", A);
        let query = Query::parse(&bytes).unwrap();
        let mut answer = query.answer(NO_ERROR, &[], false);
        answer[7] = 1;
        let at = u8::try_from(answer.len()).unwrap();
        for goal in [at, at + 2] {
            let record = [&[0xc0, goal, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4][..], &[1; 4]].concat();
            assert_eq!(Reply::parse(&[answer.clone(), record].concat(), &query, 7), None);
        }
    }
}
