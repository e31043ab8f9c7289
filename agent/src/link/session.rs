//! One connection to the controller, from the first address that answers to its end.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustls::pki_types::ServerName;
use skeg_protocol::connection::SILENT_INTERVALS;
use skeg_protocol::message::{Hello, Message, RejectCode, VERSIONS, Welcome};
use skeg_protocol::pace::Ended;
use skeg_protocol::sync::{Answer, Told};
use skeg_protocol::{Connection, LinkError};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dial::dial;
use super::facts::node_info;
use super::{Link, tls};
use crate::agent::Agent;
use crate::peer::{Peer, PeerError};

/// How long a connection may take to stand.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Changes of status within this time go out together.
const STATUS_PAUSE: Duration = Duration::from_millis(200);

/// How a connection ended.
pub struct End {
    /// For people.
    pub reason: anyhow::Error,
    /// The controller's wish of its Welcome, if it came to that: seconds.
    pub spread: Option<u16>,
    /// For the next try.
    pub ended: Ended,
    /// Why the controller did not let the device in.
    pub refused: Option<RejectCode>,
}

/// A connection that stands.
struct Connected {
    stream: TlsStream<TcpStream>,
    /// The socket once more, for its options.
    socket: OwnedFd,
    /// The device's own address.
    local: Option<IpAddr>,
    /// Which of the controller's addresses answered.
    address: String,
}

/// What the controller said during a connection about coming back, in seconds.
#[derive(Default)]
struct Wishes {
    welcome: Cell<Option<u16>>,
    goodbye: Cell<Option<u16>>,
}

/// Connects and serves; ends with the reason. `join` shows the join token.
pub async fn run(link: &Rc<Link>, join: bool) -> End {
    let wishes = Wishes::default();
    let reason = serve(link, join, &wishes).await;
    let reject = reason.downcast_ref::<PeerError>().and_then(|error| match error {
        PeerError::Link(LinkError::Rejected(reject)) => Some((reject.code, reject.retry_seconds)),
        _ => None,
    });
    let spread = wishes.welcome.get();
    let ended = match (reject, wishes.goodbye.get()) {
        (Some((_, seconds)), _) | (None, Some(seconds)) => Ended::Told(seconds),
        _ if spread.is_some() => Ended::Lost,
        _ => Ended::Failed,
    };
    End { reason, spread, ended, refused: reject.map(|(code, _)| code) }
}

async fn serve(link: &Rc<Link>, join: bool, wishes: &Wishes) -> anyhow::Error {
    let connected = match timeout(CONNECT_TIMEOUT, connect(link)).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(error)) => return error,
        Err(_) => return anyhow::anyhow!("connecting took longer than {} s", CONNECT_TIMEOUT.as_secs()),
    };
    let Connected { stream, socket, local, address } = connected;
    let peer = match hello(link, join, local).and_then(|hello| Ok(begin(link, hello)?)) {
        Ok(peer) => peer,
        Err(error) => return error,
    };
    link.peer.replace(Some(Rc::clone(&peer)));
    // Dropped at the end of the session, it ends what belongs to it.
    let tasks = RefCell::new(JoinSet::new());
    let handle = |message| match message {
        Message::Welcome(welcome) => {
            wishes.welcome.set(Some(welcome.retry_seconds));
            welcomed(link, &welcome, &address, &socket);
            tasks.borrow_mut().spawn_local(tell_status(Rc::clone(&link.agent), Rc::clone(&peer)));
        }
        Message::ManifestBegin(begin) => answer(link, |intake| intake.begin(begin)),
        Message::ManifestPiece(piece) => answer(link, |intake| intake.piece(&piece)),
        Message::GetItems(_) => answer(link, |intake| Answer::Say(intake.items().into())),
        Message::PullSecrets(secrets) => link.agent.learn(secrets),
        Message::StreamOpen(open) => link.agent.serve_stream(peer.stream(open.id), open.request),
        Message::Goodbye(goodbye) => wishes.goodbye.set(Some(goodbye.retry_seconds)),
        other => log::warn!("the controller sent a message of kind {}, which has no use here", other.kind()),
    };
    peer.run(stream, handle).await.into()
}

/// Has the intake deal with a message, and does what comes of it.
fn answer(link: &Rc<Link>, deal: impl FnOnce(&mut skeg_protocol::sync::Intake) -> Answer) {
    let answer = deal(&mut link.intake.borrow_mut());
    match answer {
        Answer::Wait => {}
        Answer::Take(whole) => link.take(*whole),
        Answer::Say(message) => link.say(message),
    }
}

async fn connect(link: &Link) -> anyhow::Result<Connected> {
    let settings = &link.settings;
    let (tcp, address) = dial(&settings.addresses, settings.proxy.as_ref()).await?;
    tcp.set_nodelay(true).context("setting TCP_NODELAY")?;
    let socket = rustix::io::fcntl_dupfd_cloexec(&tcp, 0).context("duplicating the socket")?;
    let local = tcp.local_addr().ok().map(|address| address.ip());
    // The pinned key is the proof; the name is none and is not sent.
    let name = ServerName::try_from("controller.skeg").context("making a name")?;
    let connector = TlsConnector::from(Arc::clone(&settings.link));
    let stream = connector.connect(name, tcp).await.map_err(|error| tls::explain(error, &address))?;
    anyhow::ensure!(
        stream.get_ref().1.alpn_protocol() == Some(tls::LINK),
        "{address} does not speak skeg/1: is it a skeg controller?"
    );
    Ok(Connected { stream, socket, local, address })
}

fn hello(link: &Link, join: bool, address: Option<IpAddr>) -> anyhow::Result<Hello> {
    let token = link.settings.token.as_ref().filter(|_| join);
    let intake = link.intake.borrow();
    Ok(Hello {
        versions: VERSIONS,
        join: token.map(|token| token.secret.clone()),
        node: node_info(&link.agent.host, address)?,
        held: intake.held(),
        partial: intake.partial(),
    })
}

fn begin(link: &Link, hello: Hello) -> Result<Rc<Peer>, LinkError> {
    Peer::new(|now| {
        let mut connection = Connection::device(hello, now)?;
        if link.settings.proxy.is_some() {
            connection.always_ask();
        }
        Ok(connection)
    })
}

/// Notes that the controller has let the device in.
fn welcomed(link: &Link, welcome: &Welcome, address: &str, socket: &OwnedFd) {
    if let Err(error) = link.settings.identity.enrolled(&link.agent.host.folders.node_name) {
        log::error!("noting the enrolment: {error}");
    }
    // What the peer does not acknowledge for so long is lost: the kernel finds a half-open connection without a word of
    // ours (tcp(7)).
    let patience = u32::from(welcome.heartbeat_seconds.max(1)) * SILENT_INTERVALS * 1000;
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(socket, patience) {
        log::warn!("setting TCP_USER_TIMEOUT: {error}");
    }
    if let Some(floor) = link.floor.borrow_mut().as_mut() {
        floor.told(welcome.time);
    }
    log::info!("connected to the controller at {address}");
    link.agent.link.replace(format!("{address}: connected"));
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
