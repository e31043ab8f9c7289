//! `skeg bench link`: what one device costs on the wire, headers of TCP and IP included. Run it where nothing else uses
//! the loopback: `unshare --net sh -c 'ip link set lo mtu 1500 up; skeg bench link'`. The kernel counts each packet of the
//! loopback once, without a link header.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use rustls::pki_types::ServerName;
use skeg_protocol::manifest::{Container, Image};
use skeg_protocol::message::{Heartbeat, Held, Hello};
use skeg_protocol::sync::{Answer, Intake, Offer, Shelf, body};
use skeg_protocol::{Connection, Digest, Manifest, Message, Pod, Uid, codec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::{Access, config, hello, identity};
use super::process::Controller;
use super::{Figure, print};
use crate::tls::{ALPN_LINK, Identity};

/// After so long nothing more of a step is under way: delayed acknowledgements take 40 ms.
const QUIET: Duration = Duration::from_millis(500);
/// Heartbeats of a month at five minutes.
const MONTH: f64 = 30.0 * 24.0 * 12.0;
/// Every so many heartbeats of an idle device ask for an answer.
const ASKED: f64 = 9.0;

/// How to print.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Prints one JSON object
    #[arg(long)]
    json: bool,
}

/// IP bytes of the loopback so far (/proc/net/dev, proc(5)).
fn counted() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/net/dev").context("reading /proc/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("there is no loopback")?;
    line.split_whitespace().next().and_then(|bytes| bytes.parse().ok()).context("/proc/net/dev has no bytes")
}

/// Bytes of what `work` does, until nothing more comes of it.
async fn cost<T>(work: impl Future<Output = Result<T>>) -> Result<(T, f64)> {
    let before = counted()?;
    let done = work.await?;
    tokio::time::sleep(QUIET).await;
    Ok((done, (counted()? - before) as f64))
}

async fn handshake(access: &Access, identity: &Identity) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(access.address).await?;
    stream.set_nodelay(true)?;
    let tls =
        TlsConnector::from(std::sync::Arc::new(config(&access.provider, access.controller, identity, ALPN_LINK)?));
    Ok(tls.connect(ServerName::try_from("controller.skeg")?, stream).await?)
}

/// Sends what the connection has to say.
async fn write(stream: &mut TlsStream<TcpStream>, connection: &mut Connection) -> Result<()> {
    while connection.has_output() {
        stream.write_all(&connection.output(Duration::ZERO)).await?;
    }
    Ok(stream.flush().await?)
}

/// Says Hello and waits for the Welcome.
async fn greet(stream: &mut TlsStream<TcpStream>, hello: Hello) -> Result<Connection> {
    let mut connection = Connection::device(hello, Duration::ZERO)?;
    write(stream, &mut connection).await?;
    let mut buffer = [0; 4096];
    loop {
        match connection.next()? {
            Some(Message::Welcome(_)) => return Ok(connection),
            Some(_) => {}
            None => {
                let count = stream.read(&mut buffer).await?;
                anyhow::ensure!(count > 0, "the controller closed the connection");
                connection.receive(&buffer[..count], Duration::ZERO);
            }
        }
    }
}

/// Measures and prints.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let folder = super::Folder::make()?;
    let controller = Controller::start(&folder.path, "127.0.0.1:0", 300)?;
    let access = Access::ask(&controller, &folder.path, 1).await?;
    let identity = identity()?;
    let own = std::net::Ipv4Addr::LOCALHOST;
    let name = "bench-0";
    let secret = Some(access.secret.clone());
    let mut stream = handshake(&access, &identity).await?;
    greet(&mut stream, hello(name, own, secret, &Intake::default())).await?;
    drop(stream);
    tokio::time::sleep(QUIET).await;

    let (mut stream, tls) = cost(handshake(&access, &identity)).await?;
    let (mut connection, greeting) = cost(greet(&mut stream, hello(name, own, None, &Intake::default()))).await?;
    let mut beat = async |answer| -> Result<f64> {
        connection.send(Heartbeat { answer })?;
        Ok(cost(write(&mut stream, &mut connection)).await?.1)
    };
    let (silent, answered) = (beat(false).await?, beat(true).await?);
    let month = MONTH * (silent * (ASKED - 1.0) + answered) / ASKED / 1e6;
    print(
        "link",
        options.json,
        &[
            Figure("TCP and TLS handshake, full", tls, "B", 1500.0),
            Figure("Hello and Welcome", greeting, "B", 600.0),
            Figure("heartbeat", silent, "B", 170.0),
            Figure("idle month at five minutes", month, "MB", 2.0),
            Figure("new image of one of 20 pods, frames both ways", change()?, "B", 400.0),
        ],
    );
    Ok(())
}

/// Two revisions of a node.
struct Revisions([Vec<u8>; 2], usize);

impl Shelf for Revisions {
    type Error = std::convert::Infallible;

    fn newest(&self) -> Result<Held, Self::Error> {
        Ok(body::name(self.1 as u64 + 1, [1; 8], &self.0[self.1]))
    }

    fn body(&self, revision: u64) -> Result<Option<Vec<u8>>, Self::Error> {
        Ok(self.0.get(revision as usize - 1).cloned())
    }

    fn kept(&self) -> Result<Vec<u64>, Self::Error> {
        Ok(vec![1, 2])
    }

    fn knows(&self, _: &Held) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// Bytes of frames that a new image of one of twenty pods takes, both ways.
fn change() -> Result<f64> {
    let pods = |tag: &str| -> Result<Vec<u8>> {
        let pods = (1..=20_u8).map(|number| {
            let tag = if number == 12 { tag } else { "1.4.2" };
            let reference = format!("registry.example/team/service-{number}:{tag}");
            let image = Image { digest: Digest::of(reference.as_bytes()), reference, ..Image::default() };
            let container = Container { name: "main".try_into().unwrap_or_default(), image, ..Container::default() };
            Pod {
                uid: Uid([number; 16]),
                namespace: "default".try_into().unwrap_or_default(),
                name: format!("service-{number}").as_str().try_into().unwrap_or_default(),
                containers: vec![container],
                ..Pod::default()
            }
        });
        Ok(body::encode(&Manifest { pods: pods.collect(), ..Manifest::default() })?)
    };
    let mut shelf = Revisions([pods("1.4.2")?, pods("1.4.3")?], 0);
    let (mut offer, mut intake) = (Offer::new(Held::NOTHING, None), Intake::default());
    settle(&mut offer, &shelf, &mut intake)?;
    shelf.1 = 1;
    offer.look();
    Ok(settle(&mut offer, &shelf, &mut intake)? as f64)
}

fn settle(offer: &mut Offer, shelf: &Revisions, intake: &mut Intake) -> Result<usize> {
    let mut frames = Vec::new();
    while let Ok(Some(message)) = offer.next(shelf) {
        codec::encode(&message, &mut frames)?;
        let answer = match message {
            Message::ManifestBegin(begin) => intake.begin(begin),
            Message::ManifestPiece(piece) => intake.piece(&piece),
            _ => anyhow::bail!("nothing else is needed"),
        };
        if let Answer::Take(whole) = answer {
            let held = intake.stored(*whole);
            codec::encode(&held, &mut frames)?;
            offer.answered(intake.held())?;
        }
    }
    Ok(frames.len())
}
