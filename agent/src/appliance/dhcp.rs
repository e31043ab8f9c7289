//! A DHCP client (RFC 2131) for one interface.
//!
//! Owns the lease and its renewal. What to do with a lease is the caller's: it changes nothing itself.
//!
//! ```text
//!  address found ─▶ Reboot ──ack──▶ Bound ──T1──▶ Renewing ──T2──▶ Rebinding
//!                     │ silence, nak   ▲  ◀──ack──────┴────────────────┤
//!  no address ────▶ Discover ─offer─▶ Request ──ack──▶ Bound           │ lease over, nak
//!                     ▲─────────────────────────────────────────────────┘
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Flags, HType, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use crate::config::Prefix;

use super::netlink;

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;
/// First wait for an answer; doubled each time (RFC 2131, 4.1, which begins at 4 s for slower networks).
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// Longest wait for an answer. Shorter than the RFC's 64 s: a cable may be plugged in at any time.
const LONGEST_WAIT: Duration = Duration::from_secs(32);
/// Requests for an offered or former address before starting over.
const REQUESTS: u32 = 3;
/// Shortest lease that is believed; a server that says less would keep the board busy.
const SHORTEST_LEASE: Duration = Duration::from_secs(60);
/// Longest message that is looked at.
const MAX_MESSAGE: usize = 1500;
/// Most name servers taken from a lease (resolv.conf(5), MAXNS).
const MAX_NAMESERVERS: usize = 3;

/// What a server granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) prefix: Prefix,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) nameservers: Vec<Ipv4Addr>,
    server: Ipv4Addr,
    renew: Duration,
    rebind: Duration,
    length: Duration,
}

/// What to do with an interface.
#[derive(Debug)]
pub(super) enum Setting<'a> {
    /// Give it this lease's address; asked again, harmlessly, after each renewal.
    Take(&'a Lease),
    /// Take this address away: its lease is over.
    Drop(Prefix),
}

/// Gets and keeps a lease, for ever. The interface must be up.
pub(super) async fn run(interface: &str, hostname: &str, apply: &dyn Fn(Setting<'_>)) {
    let mut told = String::new();
    loop {
        if let Err(error) = keep(interface, hostname, apply).await {
            // The same trouble every few seconds is told once.
            let trouble = error.to_string();
            if trouble != told {
                log::warn!("network: DHCP on {interface}: {trouble}");
                told = trouble;
            }
        }
        tokio::time::sleep(jittered(FIRST_WAIT)).await;
    }
}

/// Holds a lease until it is lost.
async fn keep(interface: &str, hostname: &str, apply: &dyn Fn(Setting<'_>)) -> io::Result<()> {
    let client = Client::open(interface, hostname).await?;
    let found = netlink::addresses(interface)?.into_iter().next();
    let mut lease = match found {
        None => client.acquire().await?,
        // An earlier agent's. It stays in use while it is asked for.
        Some(prefix) => match client.reboot(prefix.address).await? {
            Answer::Ack(lease) => lease,
            Answer::Silence => client.acquire().await?,
            Answer::Nak => {
                apply(Setting::Drop(prefix));
                client.acquire().await?
            }
        },
    };
    loop {
        let since = Instant::now();
        log::info!("network: {interface} has {}/{} by DHCP", lease.prefix.address, lease.prefix.length);
        apply(Setting::Take(&lease));
        tokio::time::sleep_until(since + lease.renew).await;
        match client.extend(&lease, since).await? {
            Answer::Ack(new) => lease = new,
            Answer::Nak | Answer::Silence => {
                apply(Setting::Drop(lease.prefix));
                return Err(io::Error::other(format!("the lease of {} is over", lease.prefix.address)));
            }
        }
    }
}

enum Answer {
    Ack(Lease),
    Nak,
    Silence,
}

struct Client {
    socket: UdpSocket,
    hardware: Vec<u8>,
    hostname: String,
}

impl Client {
    async fn open(interface: &str, hostname: &str) -> io::Result<Client> {
        let hardware = netlink::hardware_address(interface)?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, CLIENT_PORT)).await?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_broadcast(true)?;
        Ok(Client { socket, hardware, hostname: hostname.into() })
    }

    /// Discovers servers until one grants an address.
    async fn acquire(&self) -> io::Result<Lease> {
        let mut wait = FIRST_WAIT;
        loop {
            let id = random();
            let discover = self.message(MessageType::Discover, id, Ipv4Addr::UNSPECIFIED);
            self.send(&discover, Ipv4Addr::BROADCAST).await?;
            let until = Instant::now() + jittered(wait);
            if let Some(offer) = self.receive(id, until, &[MessageType::Offer]).await?
                && let Some(lease) = lease(&offer)
            {
                match self.request(lease.prefix.address, Some(lease.server)).await? {
                    Answer::Ack(lease) => return Ok(lease),
                    Answer::Nak | Answer::Silence => {}
                }
            }
            tokio::time::sleep_until(until).await;
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    /// Asks for the address that this board has already (RFC 2131, INIT-REBOOT).
    async fn reboot(&self, address: Ipv4Addr) -> io::Result<Answer> {
        self.request(address, None).await
    }

    async fn request(&self, address: Ipv4Addr, server: Option<Ipv4Addr>) -> io::Result<Answer> {
        let id = random();
        let mut message = self.message(MessageType::Request, id, Ipv4Addr::UNSPECIFIED);
        message.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        if let Some(server) = server {
            message.opts_mut().insert(DhcpOption::ServerIdentifier(server));
        }
        for _ in 0..REQUESTS {
            self.send(&message, Ipv4Addr::BROADCAST).await?;
            match self.answer(id, Instant::now() + jittered(FIRST_WAIT)).await? {
                Answer::Silence => {}
                answer => return Ok(answer),
            }
        }
        Ok(Answer::Silence)
    }

    /// Asks for more time: first the server alone, then everybody, until the lease is over.
    async fn extend(&self, lease: &Lease, since: Instant) -> io::Result<Answer> {
        let id = random();
        let message = self.message(MessageType::Request, id, lease.prefix.address);
        for (target, end) in [(lease.server, since + lease.rebind), (Ipv4Addr::BROADCAST, since + lease.length)] {
            while Instant::now() < end {
                // A network that is down for the moment is silence, too.
                if let Err(error) = self.send(&message, target).await {
                    log::debug!("network: DHCP request to {target} fails: {error}");
                }
                // Half of what is left, and not more than once a minute (RFC 2131, 4.4.5).
                let left = end.saturating_duration_since(Instant::now());
                let wait = (left / 2).max(Duration::from_secs(60)).min(left);
                match self.answer(id, Instant::now() + wait).await? {
                    Answer::Silence => {}
                    answer => return Ok(answer),
                }
            }
        }
        Ok(Answer::Silence)
    }

    async fn answer(&self, id: u32, until: Instant) -> io::Result<Answer> {
        let Some(message) = self.receive(id, until, &[MessageType::Ack, MessageType::Nak]).await? else {
            return Ok(Answer::Silence);
        };
        match (message.opts().msg_type(), lease(&message)) {
            (Some(MessageType::Nak), _) => Ok(Answer::Nak),
            (_, Some(lease)) => Ok(Answer::Ack(lease)),
            (_, None) => Ok(Answer::Silence),
        }
    }

    fn message(&self, kind: MessageType, id: u32, own: Ipv4Addr) -> Message {
        let mut message = Message::default();
        message
            .set_opcode(Opcode::BootRequest)
            .set_htype(HType::Eth)
            .set_xid(id)
            .set_ciaddr(own)
            .set_chaddr(&self.hardware);
        if own.is_unspecified() {
            // Without an address only a broadcast can reach this socket.
            message.set_flags(Flags::default().set_broadcast());
        }
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ClientIdentifier([&[1], self.hardware.as_slice()].concat()));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::DomainNameServer,
        ]));
        if !self.hostname.is_empty() {
            options.insert(DhcpOption::Hostname(self.hostname.clone()));
        }
        message
    }

    async fn send(&self, message: &Message, to: Ipv4Addr) -> io::Result<()> {
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).map_err(io::Error::other)?;
        self.socket.send_to(&bytes, SocketAddr::from((to, SERVER_PORT))).await.map(drop)
    }

    /// Waits for an answer of one of some kinds to a message of ours; everything else is passed over.
    async fn receive(&self, id: u32, until: Instant, kinds: &[MessageType]) -> io::Result<Option<Message>> {
        let mut buffer = [0; MAX_MESSAGE];
        loop {
            let Ok(received) = timeout_at(until, self.socket.recv_from(&mut buffer)).await else { return Ok(None) };
            let (length, _) = received?;
            let Ok(message) = Message::decode(&mut Decoder::new(&buffer[..length])) else { continue };
            let ours =
                message.opcode() == Opcode::BootReply && message.xid() == id && message.chaddr() == self.hardware;
            if ours && message.opts().msg_type().is_some_and(|kind| kinds.contains(&kind)) {
                return Ok(Some(message));
            }
        }
    }
}

/// Reads what an offer or an acknowledgement grants. None: it makes no sense.
fn lease(message: &Message) -> Option<Lease> {
    let options = message.opts();
    let address = message.yiaddr();
    let unusable = address.is_unspecified() || address.is_broadcast() || address.is_loopback();
    if unusable || address.is_multicast() {
        return None;
    }
    let Some(DhcpOption::ServerIdentifier(server)) = options.get(OptionCode::ServerIdentifier) else { return None };
    let Some(DhcpOption::AddressLeaseTime(seconds)) = options.get(OptionCode::AddressLeaseTime) else { return None };
    let mask = match options.get(OptionCode::SubnetMask) {
        Some(DhcpOption::SubnetMask(mask)) => u32::from(*mask),
        _ => 0xffff_ff00,
    };
    // Ones, then zeros; anything else is no mask.
    let ones = u8::try_from(mask.leading_ones()).ok().filter(|ones| mask.count_ones() == u32::from(*ones))?;
    let gateway = match options.get(OptionCode::Router) {
        Some(DhcpOption::Router(routers)) => routers.first().copied(),
        _ => None,
    };
    let nameservers = match options.get(OptionCode::DomainNameServer) {
        Some(DhcpOption::DomainNameServer(servers)) => servers.iter().copied().take(MAX_NAMESERVERS).collect(),
        _ => Vec::new(),
    };
    let length = Duration::from_secs(u64::from(*seconds)).max(SHORTEST_LEASE);
    let rebind = match options.get(OptionCode::Rebinding) {
        Some(DhcpOption::Rebinding(seconds)) => Duration::from_secs(u64::from(*seconds)).min(length),
        _ => length * 7 / 8,
    };
    let renew = match options.get(OptionCode::Renewal) {
        Some(DhcpOption::Renewal(seconds)) => Duration::from_secs(u64::from(*seconds)).min(rebind),
        _ => length / 2,
    };
    let renew = renew.max(SHORTEST_LEASE / 2).min(rebind);
    Some(Lease {
        prefix: Prefix { address, length: ones },
        gateway,
        nameservers,
        server: *server,
        renew,
        rebind,
        length,
    })
}

fn random() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness a fixed number still works on a network with one board.
    let _ = SystemRandom::new().fill(&mut bytes);
    u32::from_ne_bytes(bytes)
}

/// Up to a quarter longer, so that a hall of boards does not ask in step after a power cut.
fn jittered(wait: Duration) -> Duration {
    wait + wait / 4 * (random() % 256) / 256
}

#[cfg(test)]
#[path = "dhcp_tests.rs"]
mod tests;
