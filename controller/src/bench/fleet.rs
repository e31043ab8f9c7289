//! `skeg bench fleet`: thousands of devices on one controller. Each device is a task with the real device's end of the
//! protocol and a key and an address (of 127.0.0.0/8) of its own; the controller is a process of its own.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;
use rustls::pki_types::ServerName;
use skeg_protocol::message::StatusUpdate;
use skeg_protocol::pace::{Ended, Pace};
use skeg_protocol::sync::{Answer, Intake};
use skeg_protocol::{Connection, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::client::{Access, config, hello, identity};
use super::process::Controller;
use super::{Figure, Folder, print};
use crate::tls::ALPN_LINK;

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
    access: Access,
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

    /// One connection; says whether the controller had let the device in.
    async fn connect(&mut self, shared: &Shared) -> Result<bool> {
        let room = shared.room.acquire().await?;
        let socket = TcpSocket::new_v4()?;
        socket.bind((self.own, 0).into())?;
        let stream = socket.connect(shared.access.address).await?;
        stream.set_nodelay(true)?;
        let mut stream = self.tls.connect(ServerName::try_from("controller.skeg")?, stream).await?;
        let began = Instant::now();
        let secret = (!self.enrolled).then(|| shared.access.secret.clone());
        let hello = hello(&self.name, self.own, secret, &self.intake);
        let mut connection = Connection::device(hello, Duration::ZERO)?;
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

/// Measures and prints.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let folder = Folder::make()?;
    let figures = measure(options, &folder.path).await?;
    print("fleet", options.json, &figures);
    Ok(())
}

async fn measure(options: &Options, data: &std::path::Path) -> Result<Vec<Figure>> {
    let mut controller = Controller::start(data, "127.0.0.1:0", options.heartbeat)?;
    let access = Access::ask(&controller, data, options.devices).await?;
    let shared = Arc::new(Shared { access, connected: AtomicUsize::new(0), room: Semaphore::new(AT_ONCE) });
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
    let address = shared.access.address.to_string();
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

fn spawn(devices: usize, shared: &Arc<Shared>) -> Result<()> {
    let access = &shared.access;
    for number in 0..devices {
        let tls = config(&access.provider, access.controller, &identity()?, ALPN_LINK)?;
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
