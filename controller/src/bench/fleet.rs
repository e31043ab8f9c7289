//! `skeg bench fleet`: thousands of devices on one controller. Each device is a task with the real device's end of the
//! protocol and a key and an address (of 127.0.0.0/8) of its own; the controller is a process of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Args;
use hyper::Method;
use rustls::pki_types::ServerName;
use serde_json::json;
use skeg_protocol::message::{Hello, NodeInfo, StatusUpdate, VERSIONS};
use skeg_protocol::pace::{Ended, Pace};
use skeg_protocol::sync::{Answer, Intake};
use skeg_protocol::{Connection, Message, Uid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::client::config;
use super::process::Controller;
use crate::commands::{Client, Target};
use crate::store::Key32;
use crate::tls::{ALPN_LINK, Identity};

/// Handshakes that the clients have under way at the same time: both ends share the machine's processors.
const AT_ONCE: usize = 64;
/// Patience with a fleet that connects.
const PATIENCE: Duration = Duration::from_secs(600);

/// What to measure with.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// How many devices
    #[arg(long, default_value_t = 10_000)]
    devices: usize,
    /// Seconds between heartbeats
    #[arg(long, default_value_t = 60)]
    heartbeat: u16,
    /// Seconds that the fleet is watched while it is idle
    #[arg(long, default_value_t = 60)]
    idle: u64,
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// What the devices share.
struct Shared {
    address: SocketAddr,
    controller: Key32,
    secret: heapless::String<64>,
    connected: AtomicUsize,
    room: Semaphore,
}

/// One device.
struct Device {
    name: String,
    own: Ipv4Addr,
    tls: TlsConnector,
    enrolled: bool,
    intake: Intake,
    pace: Pace,
}

fn identity() -> Result<Identity> {
    let document = ring::signature::Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new());
    Identity::from_pkcs8(document.ok().context("no random bytes")?.as_ref().to_vec())
}

impl Device {
    async fn live(mut self, shared: Arc<Shared>) {
        loop {
            let ended = match self.connect(&shared).await {
                Ok(true) => Ended::Lost,
                Ok(false) | Err(_) => Ended::Failed,
            };
            let chance = f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255.0;
            tokio::time::sleep(self.pace.next(ended, chance)).await;
        }
    }

    fn hello(&self, shared: &Shared) -> Hello {
        Hello {
            versions: VERSIONS,
            join: (!self.enrolled).then(|| shared.secret.clone()),
            node: NodeInfo {
                name: self.name.as_str().try_into().unwrap_or_default(),
                arch: "amd64".try_into().unwrap_or_default(),
                kernel: "6.1.0".try_into().unwrap_or_default(),
                os: "Debian GNU/Linux 12 (bookworm)".try_into().unwrap_or_default(),
                agent: env!("CARGO_PKG_VERSION").try_into().unwrap_or_default(),
                cpus: 4,
                memory_bytes: 1 << 30,
                boot: Uid::default(),
                address: Some(self.own.into()),
                user_namespaces: true,
            },
            held: self.intake.held(),
            partial: self.intake.partial(),
        }
    }

    /// One connection; says whether the controller had let the device in.
    async fn connect(&mut self, shared: &Shared) -> Result<bool> {
        let room = shared.room.acquire().await?;
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.own, 0).into())?;
        let stream = socket.connect(shared.address).await?;
        stream.set_nodelay(true)?;
        let mut stream = self.tls.connect(ServerName::try_from("controller.skeg")?, stream).await?;
        let began = Instant::now();
        let mut connection = Connection::device(self.hello(shared), Duration::ZERO)?;
        let (mut room, mut welcomed) = (Some(room), false);
        let mut buffer = [0; 2048];
        loop {
            while let Some(message) = connection.next()? {
                if let Message::Welcome(welcome) = &message {
                    self.pace.spread(welcome.retry_seconds);
                    (self.enrolled, welcomed) = (true, true);
                    connection.send(StatusUpdate { full: true, pods: Vec::new(), removed: Vec::new() })?;
                    shared.connected.fetch_add(1, Ordering::Relaxed);
                    drop(room.take());
                }
                self.take(&mut connection, message)?;
            }
            while connection.has_output() {
                stream.write_all(&connection.output(began.elapsed())).await?;
                stream.flush().await?;
            }
            let deadline = connection.deadline().unwrap_or(Duration::MAX).saturating_sub(began.elapsed());
            let read = tokio::time::timeout(deadline, stream.read(&mut buffer)).await;
            match read {
                Err(_) => connection.tick(began.elapsed())?,
                Ok(Ok(count)) if count > 0 => connection.receive(&buffer[..count], began.elapsed()),
                Ok(_) => {
                    if welcomed {
                        shared.connected.fetch_sub(1, Ordering::Relaxed);
                    }
                    return Ok(welcomed);
                }
            }
        }
    }

    fn take(&mut self, connection: &mut Connection, message: Message) -> Result<()> {
        let answer = match message {
            Message::ManifestBegin(begin) => self.intake.begin(begin),
            Message::ManifestPiece(piece) => self.intake.piece(&piece),
            Message::GetItems(_) => Answer::Say(self.intake.items().into()),
            _ => return Ok(()),
        };
        match answer {
            Answer::Wait => Ok(()),
            Answer::Say(message) => Ok(connection.send(message)?),
            Answer::Take(whole) => Ok(connection.send(self.intake.stored(*whole))?),
        }
    }
}

/// One figure of the result.
struct Figure(&'static str, f64, &'static str, f64);

/// Measures and prints.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("skeg-bench-{}", std::process::id()));
    let measured = measure(options, &folder).await;
    // A folder that stays is said by nobody else.
    if let Err(error) = std::fs::remove_dir_all(&folder) {
        log::warn!("removing {}: {error}", folder.display());
    }
    print(options, &measured?);
    Ok(())
}

async fn measure(options: &Options, data: &std::path::Path) -> Result<Vec<Figure>> {
    std::fs::create_dir(data).with_context(|| format!("making {}", data.display()))?;
    let mut controller = Controller::start(data, "127.0.0.1:0", options.heartbeat)?;
    let shared = share(&controller, data, options.devices).await?;
    let before = controller.memory()?;
    let began = Instant::now();
    spawn(options.devices, &shared)?;
    until(&shared, options.devices).await?;
    let enrolled = began.elapsed();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (processor, watched) = (controller.processor()?, Instant::now());
    tokio::time::sleep(Duration::from_secs(options.idle)).await;
    let busy = (controller.processor()? - processor) as f64 / watched.elapsed().as_millis() as f64;
    let memory = controller.memory()?.saturating_sub(before) as f64 / options.devices as f64;
    let address = shared.address.to_string();
    controller.kill()?;
    // Every device must have noticed, or the rest of the time is not a return.
    while shared.connected.load(Ordering::Relaxed) > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let began = Instant::now();
    let _controller = Controller::start(data, &address, options.heartbeat)?;
    let started = began.elapsed();
    until(&shared, options.devices).await?;
    Ok(vec![
        Figure("memory of a connected idle device", memory, "KiB", 16.0),
        Figure("processor while idle", busy * 100.0, "% of one", 5.0),
        Figure("return of the fleet to a killed controller", began.elapsed().as_secs_f64(), "s", 30.0),
        Figure("of that, the controller's start", started.as_secs_f64(), "s", 30.0),
        Figure("first connection of the fleet, with enrolment", enrolled.as_secs_f64(), "s", 60.0),
    ])
}

/// Makes a join token for the whole fleet.
async fn share(controller: &Controller, data: &std::path::Path, devices: usize) -> Result<Arc<Shared>> {
    let client = Client::open(&Target { kubeconfig: Some(data.join("admin.kubeconfig")) })?;
    let body = json!({"spec": {"uses": devices, "ttlSeconds": 3600}});
    let made = client.json(Method::POST, "/apis/skeg.dev/v1/jointokens", Some(&body)).await?;
    let token = made["status"]["token"].as_str().context("the controller gave no token")?;
    let mut parts = token.split('.').skip(1);
    let key = parts.next().and_then(|key| URL_SAFE_NO_PAD.decode(key).ok()).and_then(|key| key.try_into().ok());
    let secret = parts.next().and_then(|secret| secret.try_into().ok());
    Ok(Arc::new(Shared {
        address: controller.address,
        controller: key.context("the token has no key")?,
        secret: secret.context("the token has no secret")?,
        connected: AtomicUsize::new(0),
        room: Semaphore::new(AT_ONCE),
    }))
}

fn spawn(devices: usize, shared: &Arc<Shared>) -> Result<()> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    for number in 0..devices {
        let tls = config(&provider, shared.controller, &identity()?, ALPN_LINK)?;
        let [_, high, middle, low] = (number as u32 + 2).to_be_bytes();
        let device = Device {
            name: format!("bench-{number}"),
            own: Ipv4Addr::new(127, high.wrapping_add(1), middle, low),
            tls: TlsConnector::from(Arc::new(tls)),
            enrolled: false,
            intake: Intake::default(),
            pace: Pace::default(),
        };
        tokio::spawn(device.live(shared.clone()));
    }
    Ok(())
}

/// Waits until so many devices are connected.
async fn until(shared: &Shared, devices: usize) -> Result<()> {
    let began = Instant::now();
    while shared.connected.load(Ordering::Relaxed) < devices {
        let connected = shared.connected.load(Ordering::Relaxed);
        anyhow::ensure!(began.elapsed() < PATIENCE, "only {connected} of {devices} devices are connected");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

fn print(options: &Options, figures: &[Figure]) {
    if options.json {
        let figures = figures.iter().map(|Figure(name, value, unit, goal)| {
            json!({"name": name, "value": value, "unit": unit, "goal": goal, "lower_is_better": true, "holds": value <= goal})
        });
        let figures: Vec<_> = figures.collect();
        println!("{}", json!({"bench": "fleet", "devices": options.devices, "figures": figures}));
        return;
    }
    for Figure(name, value, unit, goal) in figures {
        let verdict = if value <= goal { "holds" } else { "MISSED" };
        println!("{name:<48} {value:>9.2} {unit:<8} goal {goal:>5} {verdict}");
    }
}
