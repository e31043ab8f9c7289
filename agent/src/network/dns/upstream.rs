//! Names that are not ours: asked of the device's own name servers, and kept for as long as their records say.
//!
//! A stranger who wants to lie has to guess a random number and a random port at once, for a question that is under way.
//! A server that does not answer is left alone for a moment, so that a dead one delays nobody: who asks hears of the
//! failure at once, and the device's own names go on.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::packet::{Query, Reply, SERVER_FAILURE};

/// How long a server may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// For how long one that did not answer is not asked.
const REST: Duration = Duration::from_secs(5);
/// Most questions under way.
const MOST: usize = 256;
/// Most bytes of answers that are kept.
const MOST_BYTES: usize = 256 * 1024;
/// Longest that an answer is kept, in seconds.
const LONGEST: u32 = 3600;
/// Longest that "there is none" is kept, in seconds.
const LONGEST_NOTHING: u32 = 60;

/// An answer that is kept.
struct Kept {
    since: Instant,
    seconds: u32,
    reply: Reply,
}

/// The device's own name servers, as its file says.
#[derive(Default)]
struct Servers {
    read: Option<SystemTime>,
    all: Vec<IpAddr>,
    resting: BTreeMap<IpAddr, Instant>,
}

/// What asks other servers.
pub struct Upstream {
    cache: RefCell<BTreeMap<(String, u16), Kept>>,
    bytes: RefCell<usize>,
    servers: RefCell<Servers>,
    room: Semaphore,
    random: SystemRandom,
    /// The port on which name servers listen.
    port: u16,
    file: std::path::PathBuf,
}

impl Upstream {
    /// Asks the servers that a file in the manner of resolv.conf(5) names.
    pub fn new(file: &Path, port: u16) -> Self {
        Upstream {
            cache: RefCell::default(),
            bytes: RefCell::default(),
            servers: RefCell::default(),
            room: Semaphore::new(MOST),
            random: SystemRandom::new(),
            port,
            file: file.to_owned(),
        }
    }

    /// A kept answer to this question.
    pub fn kept(&self, query: &Query, stream: bool) -> Option<Vec<u8>> {
        let cache = self.cache.borrow();
        let kept = cache.get(&(query.name.clone(), query.kind))?;
        let age = u32::try_from(kept.since.elapsed().as_secs()).ok().filter(|age| *age < kept.seconds)?;
        Some(kept.reply.answer(query, age, stream))
    }

    /// An answer of another server; `ours` are addresses at which we ourselves are asked.
    pub async fn ask(&self, query: &Query, ours: &[IpAddr]) -> Option<Reply> {
        // Beyond this a client had better ask again later.
        let _permit = self.room.try_acquire().ok()?;
        for server in self.servers(ours) {
            match self.ask_one(query, server).await {
                Ok(reply) if reply.code != SERVER_FAILURE => {
                    self.keep(query, &reply);
                    return Some(reply);
                }
                Ok(_) => {}
                Err(error) => {
                    log::debug!("name server {server}: {error}");
                    self.servers.borrow_mut().resting.insert(server, Instant::now());
                }
            }
        }
        None
    }

    /// The servers that may be asked now.
    fn servers(&self, ours: &[IpAddr]) -> Vec<IpAddr> {
        let mut servers = self.servers.borrow_mut();
        let changed = std::fs::metadata(&self.file).and_then(|file| file.modified()).ok();
        if changed != servers.read {
            servers.read = changed;
            let text = std::fs::read_to_string(&self.file).unwrap_or_default();
            servers.all = nameservers(&text);
            servers.resting.clear();
        }
        servers.resting.retain(|_, since| since.elapsed() < REST);
        let awake = |server: &&IpAddr| !ours.contains(server) && !servers.resting.contains_key(server);
        servers.all.iter().filter(awake).copied().collect()
    }

    async fn ask_one(&self, query: &Query, server: IpAddr) -> io::Result<Reply> {
        let mut id = [0; 2];
        self.random.fill(&mut id).map_err(|_| io::Error::other("no random numbers"))?;
        let (id, goal) = (u16::from_be_bytes(id), SocketAddr::from((server, self.port)));
        let late = |_| io::Error::from(io::ErrorKind::TimedOut);
        let reply = timeout(PATIENCE, by_datagram(query, id, goal)).await.map_err(late)??;
        if reply.truncated { timeout(PATIENCE, by_stream(query, id, goal)).await.map_err(late)? } else { Ok(reply) }
    }

    fn keep(&self, query: &Query, reply: &Reply) {
        let longest = if reply.addresses.is_empty() { LONGEST_NOTHING } else { LONGEST };
        let seconds = reply.ttl.unwrap_or(0).min(longest);
        let (mut cache, mut bytes) = (self.cache.borrow_mut(), self.bytes.borrow_mut());
        if let Some(old) = cache.remove(&(query.name.clone(), query.kind)) {
            *bytes -= old.reply.size();
        }
        if seconds == 0 || reply.truncated || reply.size() > MOST_BYTES / 16 {
            return;
        }
        if *bytes + reply.size() > MOST_BYTES {
            cache.retain(|_, kept| kept.since.elapsed().as_secs() < kept.seconds.into());
            *bytes = cache.values().map(|kept| kept.reply.size()).sum();
        }
        while *bytes + reply.size() > MOST_BYTES
            && let Some((_, old)) = cache.pop_first()
        {
            *bytes -= old.reply.size();
        }
        *bytes += reply.size();
        let kept = Kept { since: Instant::now(), seconds, reply: reply.clone() };
        cache.insert((query.name.clone(), query.kind), kept);
    }
}

async fn by_datagram(query: &Query, id: u16, goal: SocketAddr) -> io::Result<Reply> {
    let any: IpAddr = if goal.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A port that the kernel draws, for this question alone.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(goal).await?;
    socket.send(&query.forward(id)).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else is a lie or late, and the right one may still come.
        if let Some(reply) = Reply::parse(&buffer[..length], query, id) {
            return Ok(reply);
        }
    }
}

async fn by_stream(query: &Query, id: u16, goal: SocketAddr) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(goal).await?;
    let question = query.forward(id);
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question.as_slice()].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Reply::parse(&answer, query, id).ok_or_else(|| io::Error::other("its answer is garbled"))
}

/// The servers that a file names; resolv.conf(5).
pub fn nameservers(text: &str) -> Vec<IpAddr> {
    let of_line = |line: &str| {
        let (word, rest) = line.trim().split_once([' ', '\t'])?;
        (word == "nameserver").then(|| rest.trim().parse().ok())?
    };
    text.lines().filter_map(of_line).collect()
}
