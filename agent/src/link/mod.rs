//! The link to the controller: one outgoing connection, made again for ever.
//!
//! Owns enrolment, manifests as they come in and status as it goes out. Its loss changes nothing on the device:
//! nothing here stops or starts a pod but a manifest that was made durable.

mod clock;
mod dial;
mod facts;
pub mod identity;
mod session;
pub mod tls;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::Context;
use ring::rand::{SecureRandom, SystemRandom};
use skeg_images::Endpoint;
use skeg_protocol::message::{Message, RejectCode};
use skeg_protocol::pace::{Ended, Pace};
use skeg_protocol::sync::{Intake, Whole};
use thiserror::Error;

use crate::agent::Agent;
use crate::config::{Config, Controller};
use crate::peer::Peer;
use clock::Floor;
use dial::Proxy;
use identity::{Identity, IdentityError, JoinToken};
use session::End;

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
    /// The proxy is none.
    #[error("configuration controller.proxy {0}")]
    Proxy(&'static str),
}

/// Everything that the link needs to know.
pub struct Settings {
    addresses: Vec<String>,
    proxy: Option<Proxy>,
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
        let proxy = controller.proxy.as_deref().map(Proxy::parse).transpose().map_err(NoLink::Proxy)?;
        Ok(Settings {
            addresses: [std::slice::from_ref(&controller.address), &controller.more_addresses].concat(),
            proxy,
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
        Endpoint::with_tls("the controller", &self.addresses[0], Arc::clone(&self.registry))
            .context("configuration controller.address")
    }
}

/// What outlives a connection.
struct Link {
    agent: Rc<Agent>,
    settings: Settings,
    intake: RefCell<Intake>,
    /// The connection, while there is one.
    peer: RefCell<Option<Rc<Peer>>>,
    /// Held while a manifest is being made durable: a Hello before its end would tell what is about to be wrong.
    storing: Arc<tokio::sync::Mutex<()>>,
    /// Of a board; `None` where the machine has a time service of its own.
    floor: RefCell<Option<Floor>>,
}

impl Link {
    /// Makes a manifest durable and tells the controller.
    fn take(self: &Rc<Self>, whole: Whole) {
        let (link, revision) = (Rc::clone(self), whole.held.revision);
        let Ok(storing) = Arc::clone(&self.storing).try_lock_owned() else {
            return self.say(self.intake.borrow().not_stored(revision, "another revision is being made durable"));
        };
        // Not a part of the connection: what has begun is finished when that ends.
        tokio::task::spawn_local(async move {
            let answer = match link.agent.accept(whole.manifest.clone()).await {
                Ok(()) => link.intake.borrow_mut().stored(whole),
                Err(problem) => link.intake.borrow().not_stored(revision, &problem),
            };
            link.say(answer);
            drop(storing);
        });
    }

    /// Sends a message, if there is a connection; a new one begins with all that is to be known.
    fn say(&self, message: Message) {
        if let Message::ManifestRefused(refusal) = &message {
            log::error!("revision {} is refused: {}", refusal.revision, refusal.message);
        }
        if let Some(peer) = self.peer.borrow().as_ref()
            && let Err(error) = peer.send(message)
        {
            log::error!("telling the controller: {error}");
        }
    }
}

/// Keeps the link up for ever.
pub async fn follow(agent: Rc<Agent>, settings: Settings) {
    let mut pace = Pace::default();
    let mut said = String::new();
    // The controller may have forgotten this device on purpose, or its own memory: a token may let it in again.
    let mut join = settings.identity.enrolled_as().is_none();
    let floor = crate::appliance::is_board().then(|| Floor::open(&agent.host.config.state_dir));
    if let Some(floor) = &floor {
        floor.hold();
    }
    let intake = Intake::new(&agent.held.borrow());
    let link = Rc::new(Link {
        intake: RefCell::new(intake),
        peer: RefCell::default(),
        storing: Arc::default(),
        floor: RefCell::new(floor),
        agent,
        settings,
    });
    let name = link.settings.addresses.join(", ");
    loop {
        drop(link.storing.lock().await);
        let End { reason, spread, ended, refused } = session::run(&link, join).await;
        link.peer.replace(None);
        if let Some(spread) = spread {
            pace.spread(spread);
            join = false;
        }
        if refused == Some(RejectCode::UnknownKey) {
            join = link.settings.token.is_some();
        }
        let text = format!("{reason:#}");
        // One line for each new reason: a controller that is away for a year must not fill the log.
        if text != said {
            log::warn!("the link to {name}: {text}");
            said.clone_from(&text);
        }
        link.agent.link.replace(format!("{name}: not connected: {text}"));
        let pause = match (ended, refused) {
            // With the token that it has, it may be let in at once.
            (_, Some(RejectCode::UnknownKey)) if join => pace.next(Ended::Failed, chance()),
            (ended, _) => pace.next(ended, chance()),
        };
        tokio::time::sleep(pause).await;
    }
}

/// A number from 0 to 1, each alike.
fn chance() -> f64 {
    let mut bytes = [0; 2];
    // Without random numbers the whole pause is as good.
    let part = SystemRandom::new().fill(&mut bytes).map_or(u16::MAX, |()| u16::from_le_bytes(bytes));
    f64::from(part) / f64::from(u16::MAX)
}
