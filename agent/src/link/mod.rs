//! The link to the controller: one outgoing connection, made again for ever.
//!
//! Owns enrolment, manifests as they come in and status as it goes out. Its loss changes nothing on the device:
//! nothing here stops or starts a pod but a manifest that was made durable.

pub mod identity;
pub mod sync;
pub mod tls;

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::ServerName;
use skeg_images::Endpoint;
use skeg_protocol::message::{Held, Hello, ManifestEnd, ManifestRefused, NodeInfo, RejectCode, VERSIONS};
use skeg_protocol::{Connection, Digest, LinkError, Manifest, Message};
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::agent::{Agent, boot_id};
use crate::apply::Host;
use crate::config::{Config, Controller};
use crate::journal::manifest_digest;
use crate::peer::{Peer, PeerError};
use identity::{Identity, IdentityError, JoinToken};
use sync::{Assembly, Told};

/// First pause between two tries.
const RETRY_FIRST: Duration = Duration::from_secs(1);
/// Longest pause, and the one after a refusal.
const RETRY_MOST: Duration = Duration::from_secs(60);
/// How long a connection may take to stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Changes of status within this time go out together.
const STATUS_PAUSE: Duration = Duration::from_millis(200);

/// Why there is no link.
#[derive(Debug, Error)]
pub enum NoLink {
    /// The configuration has no controller.
    #[error("no controller is configured")]
    NotConfigured,
    /// The device can't prove itself or does not know whom to trust.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// TLS can't be set up.
    #[error("TLS can't be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// Everything that the link needs to know.
pub struct Settings {
    address: String,
    identity: Identity,
    token: Option<JoinToken>,
    link: Arc<rustls::ClientConfig>,
    registry: Arc<rustls::ClientConfig>,
}

fn join_token(controller: &Controller) -> Result<Option<JoinToken>, IdentityError> {
    if let Some(text) = &controller.join_token {
        return JoinToken::parse(text, "controller.join_token").map(Some);
    }
    let Some(path) = &controller.join_token_file else { return Ok(None) };
    match std::fs::read_to_string(path) {
        Ok(text) => JoinToken::parse(&text, &path.display().to_string()).map(Some),
        // It may be taken away once the device is enrolled.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(IdentityError::Io { path: path.clone(), source }),
    }
}

impl Settings {
    /// Reads the identity and the join token; the first controller is pinned thereby.
    ///
    /// # Errors
    /// As [`NoLink`].
    pub fn new(config: &Config) -> Result<Self, NoLink> {
        let controller = config.controller.as_ref().ok_or(NoLink::NotConfigured)?;
        let identity = Identity::open(&config.state_dir)?;
        let token = join_token(controller)?;
        let key = identity.controller(token.as_ref())?;
        Ok(Settings {
            address: controller.address.clone(),
            link: tls::client_config(&identity, &key, tls::LINK)?,
            registry: tls::client_config(&identity, &key, tls::REGISTRY)?,
            identity,
            token,
        })
    }

    /// The controller's own registry.
    ///
    /// # Errors
    /// The address is none.
    pub fn registry(&self) -> anyhow::Result<Endpoint> {
        Endpoint::with_tls("the controller", &self.address, Arc::clone(&self.registry))
            .context("configuration controller.address")
    }
}

/// Keeps the link up for ever.
pub async fn follow(agent: Rc<Agent>, settings: Settings) {
    let mut pause = RETRY_FIRST;
    let mut said = String::new();
    // The controller may have forgotten this device on purpose, or its own memory: a token may let it in again.
    let mut join = settings.identity.enrolled_as().is_none();
    loop {
        let session = Session::new(&agent, &settings, join);
        let error = session.run().await;
        let refused = error.downcast_ref::<PeerError>().and_then(|error| match error {
            PeerError::Link(LinkError::Rejected(reject)) => Some(reject.code),
            _ => None,
        });
        if session.opened.take() {
            (pause, join) = (RETRY_FIRST, false);
        }
        if refused == Some(RejectCode::UnknownKey) {
            join = settings.token.is_some();
        }
        let text = format!("{error:#}");
        // One line for each new reason: a controller that is away for a year must not fill the log.
        if text != said {
            log::warn!("the link to {}: {text}", settings.address);
            said.clone_from(&text);
        }
        agent.link.replace(format!("{}: not connected: {text}", settings.address));
        tokio::time::sleep(if refused.is_some() { jitter(RETRY_MOST) } else { jitter(pause) }).await;
        pause = (pause * 2).min(RETRY_MOST);
    }
}

/// Between half of a pause and all of it, so that a fleet does not come back in step.
fn jitter(pause: Duration) -> Duration {
    let mut byte = [0; 2];
    // Without random numbers the whole pause is as good.
    let part = SystemRandom::new().fill(&mut byte).map_or(u16::MAX, |()| u16::from_le_bytes(byte));
    pause / 2 + (pause / 2).mul_f64(f64::from(part) / f64::from(u16::MAX))
}

/// One connection's worth of link.
struct Session<'a> {
    agent: &'a Rc<Agent>,
    settings: &'a Settings,
    join: bool,
    opened: std::cell::Cell<bool>,
}

impl<'a> Session<'a> {
    fn new(agent: &'a Rc<Agent>, settings: &'a Settings, join: bool) -> Self {
        Session { agent, settings, join, opened: std::cell::Cell::new(false) }
    }

    /// Connects and serves; ends with the reason.
    async fn run(&self) -> anyhow::Error {
        let address = &self.settings.address;
        let connected = timeout(CONNECT_TIMEOUT, self.connect()).await;
        let (io, local) = match connected {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => return error,
            Err(_) => return anyhow::anyhow!("connecting took longer than {} s", CONNECT_TIMEOUT.as_secs()),
        };
        let hello = match self.hello(local) {
            Ok(hello) => hello,
            Err(error) => return error,
        };
        let peer = match Peer::new(|now| Connection::device(hello, now)) {
            Ok(peer) => peer,
            Err(error) => return error.into(),
        };
        // Dropped at the end of the session, it ends what belongs to it.
        let mut tasks = JoinSet::new();
        let (ends, manifests) = mpsc::unbounded_channel();
        tasks.spawn_local(take_manifests(Rc::clone(self.agent), Rc::clone(&peer), manifests));
        let assembly = RefCell::new(Assembly::default());
        let handle = |message| match message {
            Message::Welcome(_) => {
                self.opened.set(true);
                if let Err(error) = self.settings.identity.enrolled(&self.agent.host.folders.node_name) {
                    log::error!("noting the enrolment: {error}");
                }
                log::info!("connected to the controller at {address}");
                self.agent.link.replace(format!("{address}: connected"));
                tasks.spawn_local(tell_status(Rc::clone(self.agent), Rc::clone(&peer)));
            }
            Message::ManifestBegin(begin) => assembly.borrow_mut().begin(begin),
            Message::ManifestPod(pod) => assembly.borrow_mut().pod(pod),
            Message::ManifestEnd(end) => {
                // The task lives as long as the session.
                ends.send((std::mem::take(&mut *assembly.borrow_mut()), end)).ok();
            }
            Message::PullSecrets(secrets) => self.agent.learn(secrets),
            Message::StreamOpen(open) => self.agent.serve_stream(peer.stream(open.id), open.request),
            other => log::warn!("the controller sent a message of kind {}, which has no use here", other.kind()),
        };
        peer.run(io, handle).await.into()
    }

    async fn connect(&self) -> anyhow::Result<(tokio_rustls::client::TlsStream<TcpStream>, Option<IpAddr>)> {
        let address = &self.settings.address;
        let tcp = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        tcp.set_nodelay(true).context("setting TCP_NODELAY")?;
        let local = tcp.local_addr().ok().map(|address| address.ip());
        // The pinned key is the proof; the name is none and is not sent.
        let name = ServerName::try_from("controller.skeg").context("making a name")?;
        let connector = TlsConnector::from(Arc::clone(&self.settings.link));
        let tls = connector.connect(name, tcp).await.context("TLS with the controller")?;
        anyhow::ensure!(
            tls.get_ref().1.alpn_protocol() == Some(tls::LINK),
            "{address} does not speak skeg/1: is it a skeg controller?"
        );
        Ok((tls, local))
    }

    fn hello(&self, address: Option<IpAddr>) -> anyhow::Result<Hello> {
        let token = self.settings.token.as_ref().filter(|_| self.join);
        Ok(Hello {
            versions: VERSIONS,
            join: token.map(|token| token.secret.clone()),
            node: node_info(&self.agent.host, address)?,
            held: held(&self.agent.held.borrow()),
        })
    }
}

/// What a manifest is called on the wire.
fn held(manifest: &Manifest) -> Held {
    let none = Held { revision: 0, digest: Digest([0; 32]) };
    if manifest.revision == 0 {
        return none;
    }
    // A manifest that came over the wire encodes; one that does not is asked for again.
    manifest_digest(manifest).map_or(none, |digest| Held { revision: manifest.revision, digest })
}

async fn take_manifests(agent: Rc<Agent>, peer: Rc<Peer>, mut ends: mpsc::UnboundedReceiver<(Assembly, ManifestEnd)>) {
    while let Some((mut assembly, end)) = ends.recv().await {
        let built = assembly.end(end, &agent.held.borrow());
        let taken = match built {
            Ok(manifest) => agent.accept(manifest).await,
            Err(problem) => Err(problem),
        };
        let held = held(&agent.held.borrow());
        let answer: Message = match taken {
            Ok(()) => held.into(),
            Err(message) => {
                log::error!("revision {} is refused: {message}", end.revision);
                let message = skeg_protocol::status::text(message);
                ManifestRefused { revision: end.revision, held, message }.into()
            }
        };
        // The connection's own end is told by whoever runs it.
        peer.send(answer).ok();
    }
}

async fn tell_status(agent: Rc<Agent>, peer: Rc<Peer>) {
    let mut changes = agent.changes();
    let mut told = Told::default();
    loop {
        for update in told.updates(agent.pods().into_iter()) {
            if let Err(error) = peer.send(update) {
                log::error!("a status does not fit into a frame: {error}");
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(STATUS_PAUSE).await;
        changes.mark_unchanged();
    }
}

/// Cuts a text to what fits.
fn fit<const N: usize>(text: &str) -> heapless::String<N> {
    let mut out = heapless::String::new();
    text.chars().take_while(|c| out.push(*c).is_ok()).for_each(drop);
    out
}

fn node_info(host: &Host, address: Option<IpAddr>) -> anyhow::Result<NodeInfo> {
    let name = host.folders.node_name.as_str();
    let uname = rustix::system::uname();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let os = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    let memory = rustix::system::sysinfo();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Ok(NodeInfo {
        name: name.try_into().map_err(|_| anyhow::anyhow!("node name {name:?} is too long"))?,
        arch: fit(&skeg_images::Platform::host().architecture),
        kernel: fit(&uname.release().to_string_lossy()),
        os: fit(os.trim_matches('"')),
        agent: fit(env!("CARGO_PKG_VERSION")),
        cpus: u16::try_from(cpus).unwrap_or(u16::MAX),
        memory_bytes: memory.totalram * u64::from(memory.mem_unit),
        boot: boot_id()?,
        address,
        user_namespaces: host.ranges.is_some(),
    })
}
