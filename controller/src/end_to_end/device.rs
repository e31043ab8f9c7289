//! A device as the tests play it: a key, a TLS client with raw public keys, and the device's end of the protocol.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::ServerName;
use skeg_protocol::message::{Held, Hello, NodeInfo, StatusUpdate, VERSIONS};
use skeg_protocol::status::{ConditionKind, PodCondition, reason};
use skeg_protocol::sync::{Answer, Intake};
use skeg_protocol::{Connection, ContainerState, ContainerStatus, LinkError, Message, Phase, Pod, PodStatus, Uid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::bench::config;
use crate::tls::Identity;

/// A new key.
pub(super) fn identity() -> Identity {
    let random = ring::rand::SystemRandom::new();
    let document = ring::signature::Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    Identity::from_pkcs8(document.as_ref().to_vec()).unwrap()
}

/// A TLS connection as a device.
pub(super) async fn connect(
    address: SocketAddr,
    controller: [u8; 32],
    identity: &Identity,
    alpn: &[u8],
) -> TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = config(&provider, controller, identity, alpn).unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("skeg").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// What a device says first.
pub(super) fn hello(name: &str, join: Option<&str>, held: Held) -> Hello {
    let text = |text: &str| heapless::String::try_from(text).unwrap();
    Hello {
        versions: VERSIONS,
        join: join.map(|join| heapless::String::try_from(join).unwrap()),
        node: NodeInfo {
            name: heapless::String::try_from(name).unwrap(),
            arch: heapless::String::try_from("amd64").unwrap(),
            kernel: text("6.1.0"),
            os: text("Debian 12"),
            agent: heapless::String::try_from("0.1.0").unwrap(),
            cpus: 4,
            memory_bytes: 1 << 30,
            boot: Uid([5; 16]),
            address: None,
            user_namespaces: true,
        },
        held,
        partial: None,
    }
}

/// Holds nothing.
pub(super) const NOTHING: Held = Held::NOTHING;

/// A connected device.
pub(super) struct Device {
    pub(super) connection: Connection,
    stream: TlsStream<TcpStream>,
    began: Instant,
    pub(super) intake: Intake,
    pub(super) pods: BTreeMap<Uid, Pod>,
}

impl Device {
    /// Connects and says Hello; nothing is read yet.
    pub(super) async fn open(address: SocketAddr, controller: [u8; 32], identity: &Identity, hello: Hello) -> Self {
        let stream = connect(address, controller, identity, b"skeg/1").await;
        let began = Instant::now();
        let connection = Connection::device(hello, began.elapsed()).unwrap();
        Device { connection, stream, began, intake: Intake::default(), pods: BTreeMap::new() }
    }

    /// Waits for the next message; `None` when the controller has closed.
    pub(super) async fn next(&mut self) -> Result<Option<Message>, LinkError> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            self.flush().await;
            if let Some(message) = self.connection.next()? {
                return Ok(Some(message));
            }
            match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return Ok(None),
                Ok(count) => self.connection.receive(&buffer[..count], self.began.elapsed()),
            }
        }
    }

    /// Waits for the next message, which must come.
    pub(super) async fn expect(&mut self) -> Message {
        self.next().await.unwrap().unwrap()
    }

    pub(super) async fn flush(&mut self) {
        while self.connection.has_output() {
            let output = self.connection.output(self.began.elapsed());
            // The controller may have closed.
            let _ = self.stream.write_all(&output).await;
        }
        let _ = self.stream.flush().await;
    }

    pub(super) async fn send(&mut self, message: impl Into<Message>) {
        self.connection.send(message).unwrap();
        self.flush().await;
    }

    /// Sends bytes past the protocol.
    pub(super) async fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Takes a manifest as a device does and says that it is held. Gives the revision that was held before.
    pub(super) async fn take_manifest(&mut self) -> u64 {
        let before = self.intake.held().revision;
        loop {
            let answer = match self.expect().await {
                Message::ManifestBegin(begin) => self.intake.begin(begin),
                Message::ManifestPiece(piece) => self.intake.piece(&piece),
                Message::GetItems(_) => Answer::Say(self.intake.items().into()),
                other => panic!("{other:?} within a manifest"),
            };
            match answer {
                Answer::Wait => {}
                Answer::Say(message) => self.send(message).await,
                Answer::Take(whole) => {
                    self.pods = whole.manifest.pods.iter().map(|pod| (pod.uid, pod.clone())).collect();
                    let held = self.intake.stored(*whole);
                    self.send(held).await;
                    return before;
                }
            }
        }
    }

    /// Reports that all pods run.
    pub(super) async fn report(&mut self, full: bool, removed: Vec<Uid>) {
        let pods = self.pods.values().map(running).collect();
        self.send(StatusUpdate { full, pods, removed }).await;
    }
}

/// The status of a pod that runs.
pub(super) fn running(pod: &Pod) -> PodStatus {
    let containers = pod.containers.iter().map(|container| ContainerStatus {
        name: container.name.clone(),
        state: ContainerState::Running { started_at: 1_700_000_000_000 },
        last: None,
        restarts: 0,
        image: Some(container.image.digest),
        started: true,
        ready: true,
    });
    use ConditionKind as Kind;
    let conditions = [Kind::PodScheduled, Kind::Initialized, Kind::ContainersReady, Kind::Ready];
    let conditions = conditions.map(|kind| PodCondition {
        kind,
        holds: true,
        since: 1_700_000_000_000,
        reason: reason(""),
        message: String::new(),
    });
    PodStatus {
        ips: vec![[10, 42, 0, 2].into()],
        uid: pod.uid,
        phase: Phase::Running,
        reason: reason(""),
        message: String::new(),
        started_at: 1_700_000_000_000,
        conditions: conditions.to_vec(),
        init_containers: Vec::new(),
        containers: containers.collect(),
    }
}
