//! The name server of pods: answers at the device's own address in each network.
//!
//! Owns its sockets, which init holds: a question that comes while the agent is being replaced waits for the next one.
//! What a name means is [`names`]', what is not ours is [`upstream`]'s.

pub mod files;
pub mod names;
pub mod packet;
mod upstream;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::timeout;

use super::Networks;
use crate::apply::chain;
use crate::hold::{Held, Holder};
use names::Found;
use packet::{A, AAAA, ANY, CNAME, Data, NO_ERROR, NO_NAME, Own, PTR, Query, SERVER_FAILURE, SRV};
use upstream::Upstream;

/// Begins the keys under which init holds the sockets.
pub const KEY: &str = "dns/";
/// The port of name servers.
const PORT: u16 = 53;
/// Seconds for which a client may keep an answer of ours: pods come and go.
const TTL: u32 = 5;
/// Most clients that ask by a stream at one time; more wait in the kernel's queue.
const STREAMS: usize = 64;
/// How long such a client may be silent.
const SILENCE: Duration = Duration::from_secs(10);

/// What all servers of a device share.
struct Shared {
    networks: Arc<Networks>,
    upstream: Upstream,
    streams: Semaphore,
}

/// Serves names in every network for as long as the agent runs. `held` is what init held of an earlier agent.
pub async fn serve(networks: Arc<Networks>, holder: Holder, held: Vec<Held>) {
    let mut changes = networks.changes();
    let mut held: BTreeMap<String, Held> = held.into_iter().map(|item| (item.key.clone(), item)).collect();
    let upstream = Upstream::new(Path::new("/etc/resolv.conf"), PORT);
    let shared = Rc::new(Shared { networks, upstream, streams: Semaphore::new(STREAMS) });
    let mut servers: BTreeMap<IpAddr, [JoinHandle<()>; 2]> = BTreeMap::new();
    loop {
        changes.borrow_and_update();
        let wanted = shared.networks.gateways();
        let gone: Vec<IpAddr> = servers.keys().copied().filter(|address| !wanted.contains(address)).collect();
        for address in gone {
            servers.remove(&address).into_iter().flatten().for_each(|server| server.abort());
            if let Err(error) = holder.forget(&format!("{KEY}{address}")).await {
                log::error!("init could not forget the name server at {address}: {}", chain(&error));
            }
        }
        for address in wanted {
            let Entry::Vacant(place) = servers.entry(address) else { continue };
            match open(&holder, held.remove(&format!("{KEY}{address}")), address).await {
                Ok(sockets) => drop(place.insert(begin(&shared, sockets))),
                Err(error) => log::error!("pods can't ask for names at {address}: {error}"),
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// The sockets of an earlier agent, or new ones, which init holds on return.
async fn open(holder: &Holder, held: Option<Held>, address: IpAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut old = held.into_iter().flat_map(|held| held.fds);
    let (udp, tcp) = match (old.next(), old.next()) {
        (Some(udp), Some(tcp)) => (std::net::UdpSocket::from(udp), std::net::TcpListener::from(tcp)),
        _ => {
            let (udp, tcp) =
                (std::net::UdpSocket::bind((address, PORT))?, std::net::TcpListener::bind((address, PORT))?);
            let key = format!("{KEY}{address}");
            let given = holder.hold(&key, None, &[udp.as_fd(), tcp.as_fd()], &[]).await;
            given.map_err(|error| io::Error::other(chain(&error)))?;
            (udp, tcp)
        }
    };
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))
}

fn begin(shared: &Rc<Shared>, (udp, tcp): (UdpSocket, TcpListener)) -> [JoinHandle<()>; 2] {
    let (by_datagram, by_stream) = (Rc::clone(shared), Rc::clone(shared));
    [spawn_local(datagrams(by_datagram, Rc::new(udp))), spawn_local(streams(by_stream, tcp))]
}

async fn datagrams(shared: Rc<Shared>, socket: Rc<UdpSocket>) {
    let mut buffer = [0; 1500];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            // A client that is gone shows as an error of the next call.
            tokio::task::yield_now().await;
            continue;
        };
        match shared.at_once(&buffer[..length], client, false) {
            Answer::Ready(answer) => drop(socket.try_send_to(&answer, client)),
            Answer::Never => {}
            Answer::Elsewhere(query, alias) => {
                let (shared, socket) = (Rc::clone(&shared), Rc::clone(&socket));
                spawn_local(async move {
                    // A client that is gone does not matter.
                    socket.send_to(&shared.elsewhere(&query, alias, false).await, client).await.ok();
                });
            }
        }
    }
}

async fn streams(shared: Rc<Shared>, listener: TcpListener) {
    loop {
        // The semaphore is never closed.
        let Ok(permit) = shared.streams.acquire().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                permit.forget();
                let shared = Rc::clone(&shared);
                spawn_local(async move {
                    converse(&shared, stream, client).await.ok();
                    shared.streams.add_permits(1);
                });
            }
            // Out of descriptors: accepting again at once would only spin.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn converse(shared: &Shared, mut stream: TcpStream, client: SocketAddr) -> io::Result<()> {
    loop {
        let Ok(length) = timeout(SILENCE, stream.read_u16()).await else { return Ok(()) };
        let mut question = vec![0; length?.into()];
        timeout(SILENCE, stream.read_exact(&mut question)).await??;
        let answer = match shared.at_once(&question, client, true) {
            Answer::Ready(answer) => answer,
            Answer::Never => return Ok(()),
            Answer::Elsewhere(query, alias) => shared.elsewhere(&query, alias, true).await,
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        timeout(SILENCE, stream.write_all(&[&length.to_be_bytes(), answer.as_slice()].concat())).await??;
    }
}

/// How a question is answered.
enum Answer {
    /// With this.
    Ready(Vec<u8>),
    /// Not at all.
    Never,
    /// By other servers; with what the name is another one for.
    Elsewhere(Query, Option<String>),
}

impl Shared {
    /// Answers what is known here.
    fn at_once(&self, question: &[u8], client: SocketAddr, stream: bool) -> Answer {
        let query = match Query::parse(question) {
            Ok(query) => query,
            Err(bad) => return packet::refusal(bad).map_or(Answer::Never, Answer::Ready),
        };
        let found = self.networks.look_up(client.ip().to_canonical(), &query.name);
        match found {
            Found::Alias(goal) => Answer::Elsewhere(query, Some(goal)),
            Found::Foreign => match self.upstream.kept(&query, stream) {
                Some(answer) => Answer::Ready(answer),
                None => Answer::Elsewhere(query, None),
            },
            found => {
                let (code, records) = own(&query, found);
                Answer::Ready(query.answer(code, &records, stream))
            }
        }
    }

    /// Answers by other servers' word.
    async fn elsewhere(&self, query: &Query, alias: Option<String>, stream: bool) -> Vec<u8> {
        let ours = self.networks.gateways();
        // The client wants to know what it comes to.
        if let Some(goal) = alias {
            let alias = Own { name: None, ttl: TTL, data: Data::Alias(goal.clone()) };
            let mut records = vec![alias];
            if let Some(further) = query.about(&goal).filter(|_| query.kind != CNAME) {
                let reply = self.upstream.ask(&further, &ours).await;
                let of_kind = |address: &IpAddr| query.kind == if address.is_ipv4() { A } else { AAAA };
                let addresses = reply.into_iter().flat_map(|reply| reply.addresses).filter(of_kind);
                let record = |address| Own { name: Some(goal.clone()), ttl: TTL, data: Data::Address(address) };
                records.extend(addresses.map(record));
            }
            return query.answer(NO_ERROR, &records, stream);
        }
        match self.upstream.ask(query, &ours).await {
            Some(reply) => reply.answer(query, 0, stream),
            None => query.answer(SERVER_FAILURE, &[], stream),
        }
    }
}

/// The answer's word and records for what was found.
fn own(query: &Query, found: Found) -> (u8, Vec<Own>) {
    let wants = |kind: u16| query.kind == kind || query.kind == ANY;
    let record = |data: Data| Own { name: None, ttl: TTL, data };
    let records = match found {
        Found::Foreign | Found::Alias(_) | Found::Nothing => return (NO_NAME, Vec::new()),
        Found::Addresses(addresses) => {
            let fits = |address: &IpAddr| wants(if address.is_ipv4() { A } else { AAAA });
            addresses.into_iter().filter(fits).map(|address| record(Data::Address(address))).collect()
        }
        Found::Name(name) if wants(PTR) => vec![record(Data::Pointer(name))],
        Found::Ports(ports) if wants(SRV) => {
            ports.into_iter().map(|(port, host)| record(Data::Service(port, host))).collect()
        }
        Found::Name(_) | Found::Ports(_) => Vec::new(),
    };
    (NO_ERROR, records)
}

#[cfg(test)]
mod tests {
    use super::packet::tests::{question, read};
    use super::*;
    use crate::network::tests::{Device, alone, network, pod};
    use skeg_protocol::Manifest;

    /// What the server says to a client at an address, waiting for other servers where it must.
    async fn ask(shared: &Shared, client: IpAddr, name: &str, kind: u16) -> (u8, Vec<IpAddr>) {
        let bytes = question(name, kind);
        let answer = match shared.at_once(&bytes, (client, 9).into(), false) {
            Answer::Ready(answer) => answer,
            Answer::Elsewhere(query, alias) => shared.elsewhere(&query, alias, false).await,
            Answer::Never => panic!("no answer"),
        };
        read(&answer, &bytes)
    }

    /// A name server that answers each datagram twice: first with a lie under another number.
    async fn liar(socket: UdpSocket, truth: IpAddr) {
        let mut buffer = [0; 512];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let query = Query::parse(&buffer[..length]).unwrap();
            let answer = |id: u16, address: IpAddr| {
                let data = Data::Address(address);
                let mut query = query.clone();
                query.id = id;
                query.answer(NO_ERROR, &[Own { name: None, ttl: 60, data }], false)
            };
            socket.send_to(&answer(query.id ^ 1, "203.0.113.66".parse().unwrap()), client).await.unwrap();
            socket.send_to(&answer(query.id, truth), client).await.unwrap();
        }
    }

    #[test]
    fn foreign_names_are_asked_for_once_and_a_dead_server_is_said_at_once() {
        if !alone() {
            return;
        }
        let mut device = Device::new(&Manifest { networks: vec![network("front", false)], ..Manifest::default() });
        let web = device.add(pod(1, "web", &["front"]));
        let (folder, networks) = (tempfile::tempdir().unwrap(), Arc::new(device.networks));
        let file = folder.path().join("resolv.conf");
        std::fs::write(&file, "# ours\nnameserver 127.0.0.1\n").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let upstream = Upstream::new(&file, server.local_addr().unwrap().port());
            let shared = Shared { networks, upstream, streams: Semaphore::new(STREAMS) };
            let truth: IpAddr = "192.0.2.7".parse().unwrap();
            let running = spawn_local(liar(server, truth));
            assert_eq!(ask(&shared, web, "www.example.com", A).await, (NO_ERROR, vec![truth]));
            running.abort();
            assert!(running.await.unwrap_err().is_cancelled());
            assert_eq!(ask(&shared, web, "WWW.example.com", A).await, (NO_ERROR, vec![truth]), "kept");
            assert_eq!(ask(&shared, web, "other.example.com", A).await.0, SERVER_FAILURE);
            assert_eq!(ask(&shared, web, "web", A).await, (NO_ERROR, vec![web]), "our own names go on");
        });
    }
}
