//! Asks containers how they are and runs their hooks: by a program inside, by HTTP, TCP or gRPC.
//!
//! Owns each question from its begin to its end: when the time is over, nothing of it is left, neither a process nor
//! a descriptor. Each question has its own task and, while a program is started, its own thread, so that none waits
//! for another pod's. What an answer means is the core's.

mod exec;
mod grpc;
mod http;
mod tls;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use skeg_protocol::Pod;
use skeg_protocol::manifest::{Handler, HttpGet, Probe};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::apply::{Host, Key, Live};
use crate::core::{ContainerEvent, Event};

pub use exec::clear_left_over;

/// Most bytes of an answer that people are shown.
const SHOWN: usize = 512;

/// Whom a question is for.
pub struct Asked {
    /// What all share.
    pub host: Rc<Host>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// Its network; `None` where it has the device's.
    pub network: Option<Arc<OwnedFd>>,
    /// The container's attempt.
    pub key: Key,
    /// Its process.
    pub live: Rc<Live>,
}

impl Asked {
    /// Tells what came of it, unless the container is no more: a later one may have its name and number.
    pub fn tell(&self, event: ContainerEvent) {
        let same = self.host.live.borrow().get(&self.key).is_some_and(|live| Rc::ptr_eq(live, &self.live));
        if same {
            let (pod, container) = (self.key.pod, self.key.container.clone());
            // Without a receiver the agent is ending.
            self.host.events.send(Event::Container { pod, container, event }).ok();
        }
    }
}

/// Does what a probe or a hook says, within `limit`.
///
/// # Errors
/// What was wrong, for people.
pub async fn ask(asked: &Asked, handler: &Handler, limit: Duration) -> Result<(), String> {
    let work = async {
        match handler {
            // It takes its processes back itself, so it must see the end of its time.
            Handler::Exec { command } => exec::run(asked, command, limit).await,
            Handler::HttpGet(get) => http::get(connect(asked, get.host.as_deref(), get.port).await?, get).await,
            Handler::TcpSocket { host, port } => connect(asked, host.as_deref(), *port).await.map(drop),
            Handler::Grpc { port, service } => grpc::check(connect(asked, None, *port).await?, service).await,
            Handler::Sleep { seconds } => {
                tokio::time::sleep(Duration::from_secs((*seconds).into())).await;
                Ok(())
            }
        }
    };
    if matches!(handler, Handler::Exec { .. }) || limit == Duration::MAX {
        return work.await;
    }
    match timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} s", limit.as_secs_f32())),
    }
}

/// Connects to a port of the pod, or of a host that is named.
async fn connect(asked: &Asked, host: Option<&str>, port: u16) -> Result<TcpStream, String> {
    let refused = |error: std::io::Error| format!("connecting to port {port}: {error}");
    let host = host.filter(|host| !host.is_empty());
    match (host, &asked.network) {
        (None, Some(network)) => crate::ports::connect(network, port).await.map_err(refused),
        (None, None) => TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map_err(refused),
        // As Kubernetes' nodes do it: a host that is named is asked from the device.
        (Some(host), _) => match host.parse::<IpAddr>() {
            Ok(address) => TcpStream::connect(SocketAddr::new(address, port)).await.map_err(refused),
            Err(_) => TcpStream::connect((host, port)).await.map_err(refused),
        },
    }
}

/// The health check of an image as a probe, where it has one that asks something.
pub fn image_check(check: &skeg_images::Healthcheck) -> Option<Probe> {
    let millis = |nanos: i64, default: u32| match u32::try_from(nanos / 1_000_000) {
        Ok(0) | Err(_) => default,
        Ok(millis) => millis,
    };
    let mut words = check.test.iter();
    let command: Vec<String> = match words.next().map(String::as_str) {
        Some("CMD") => words.cloned().collect(),
        Some("CMD-SHELL") => ["/bin/sh", "-c"].into_iter().map(str::to_owned).chain(words.cloned()).collect(),
        _ => return None,
    };
    (!command.is_empty()).then(|| Probe {
        action: Handler::Exec { command },
        // Docker asks for the first time after one interval; as readiness an earlier answer is as good.
        initial_delay_ms: 0,
        period_ms: millis(check.interval, 30_000),
        timeout_ms: millis(check.timeout, 30_000),
        success_threshold: 1,
        failure_threshold: u32::try_from(check.retries).ok().filter(|count| *count > 0).unwrap_or(3),
        termination_grace_seconds: None,
    })
}

/// What a question for a URL is asked of, for the field `Host`.
fn authority(get: &HttpGet) -> String {
    let host = get.host.as_deref().filter(|host| !host.is_empty()).unwrap_or("127.0.0.1");
    format!("{host}:{}", get.port)
}

/// The begin of an answer, in one line.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
    text.trim().replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_s_health_check_keeps_docker_s_defaults() {
        let check = |test: &[&str]| skeg_images::Healthcheck {
            test: test.iter().map(|word| (*word).to_owned()).collect(),
            interval: 5_000_000_000,
            ..Default::default()
        };
        let probe = image_check(&check(&["CMD-SHELL", "curl -f localhost"])).unwrap();
        let command = ["/bin/sh", "-c", "curl -f localhost"].map(str::to_owned).to_vec();
        assert_eq!(probe.action, Handler::Exec { command });
        assert_eq!((probe.period_ms, probe.timeout_ms, probe.failure_threshold), (5_000, 30_000, 3));
        for none in [&["NONE"][..], &[], &["CMD"]] {
            assert_eq!(image_check(&check(none)), None);
        }
    }
}
