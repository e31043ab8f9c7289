//! The local commands `ps`, `logs` and `exec`: clients of the agent's socket.
//!
//! Owns what is printed and the terminal while exec has it. Decides nothing about pods.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, bail};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use skeg_protocol::message::{Channel, GetStatus, LocalPod, NodeStatus, StreamEnd, StreamRequest};
use skeg_protocol::{Connection, ContainerState, ContainerStatus, Label, Manifest, Message, Phase, Termination, Uid};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use crate::journal::Journal;
use crate::local::SOCKET;
use crate::peer::{Peer, Sender, Stream, StreamEvent};
use crate::trial::{Standing, State};

/// Which container is meant.
#[derive(Debug, clap::Args)]
pub struct Target {
    /// Pod: NAME or NAMESPACE/NAME
    pub pod: String,
    /// Container; may be left out where the pod has only one
    #[arg(short, long)]
    pub container: Option<String>,
}

/// A connection to the agent.
pub struct Client {
    peer: Rc<Peer>,
    messages: mpsc::UnboundedReceiver<Message>,
}

impl Client {
    /// Connects to the agent of a device.
    ///
    /// # Errors
    /// There is no agent, or it may not be asked.
    pub async fn connect(run_dir: &Path) -> anyhow::Result<Client> {
        let path = run_dir.join(SOCKET);
        let socket = UnixStream::connect(&path).await.with_context(|| {
            format!("connecting to the agent at {}: does it run, and are you root?", path.display())
        })?;
        Client::over(socket)
    }

    /// Speaks over a connected socket.
    ///
    /// # Errors
    /// None that a local connection has.
    pub fn over(socket: UnixStream) -> anyhow::Result<Client> {
        let peer = Peer::new(|now| Ok(Connection::local(now)))?;
        let (sender, messages) = mpsc::unbounded_channel();
        let running = Rc::clone(&peer);
        spawn_local(async move { running.run(socket, |message| drop(sender.send(message))).await });
        Ok(Client { peer, messages })
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// The request exceeds a frame.
    pub fn open(&self, request: StreamRequest) -> anyhow::Result<Stream> {
        Ok(self.peer.open(request)?)
    }

    /// Asks how the device is.
    ///
    /// # Errors
    /// The agent does not answer.
    pub async fn status(&mut self) -> anyhow::Result<NodeStatus> {
        self.peer.send(GetStatus)?;
        loop {
            match self.messages.recv().await {
                Some(Message::NodeStatus(status)) => return Ok(status),
                Some(_) => {}
                None => bail!("the agent closed the connection"),
            }
        }
    }

    /// Finds a pod by NAME or NAMESPACE/NAME.
    ///
    /// # Errors
    /// There is none, or several could be meant.
    pub async fn find_pod(&mut self, what: &str) -> anyhow::Result<Uid> {
        let status = self.status().await?;
        let matches = |pod: &&LocalPod| match what.split_once('/') {
            Some((namespace, name)) => pod.namespace == namespace && pod.name == name,
            None => pod.name == what,
        };
        let found: Vec<&LocalPod> = status.pods.iter().filter(matches).collect();
        match found.as_slice() {
            [pod] => Ok(pod.status.uid),
            [] => bail!("there is no pod {what:?} on this device; `skegd ps` lists them"),
            several => {
                let names: Vec<String> = several.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
                bail!("{what:?} could be any of {}", names.join(", "))
            }
        }
    }

    /// Finds the container that is meant.
    async fn find(&mut self, target: &Target) -> anyhow::Result<(Uid, Label)> {
        let container = target.container.as_deref().unwrap_or_default();
        let container =
            container.try_into().map_err(|_| anyhow::anyhow!("container name {container:?} is too long"))?;
        Ok((self.find_pod(&target.pod).await?, container))
    }
}

/// Prints the pods, as a table or as JSON. Says the exit code.
///
/// # Errors
/// The agent does not answer.
pub async fn ps(run_dir: &Path, json: bool) -> anyhow::Result<i32> {
    let status = Client::connect(run_dir).await?.status().await?;
    let text = if json { format!("{:#}\n", as_json(&status)) } else { table(&status) };
    print(text.as_bytes())?;
    Ok(0)
}

/// Writes to standard output.
///
/// # Errors
/// It takes no more.
pub fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("writing to standard output")
}

/// The revisions that a device keeps, the newest first, as a table. It needs no agent that runs.
///
/// # Errors
/// The state can't be opened.
pub fn history(state_dir: &Path) -> anyhow::Result<String> {
    let journal = Journal::open(state_dir)?;
    let (held, previous) = (journal.manifest(), journal.previous_manifest());
    let standing = journal.standing().filter(|known| known.revision == held.revision);
    let standing = standing.unwrap_or_else(|| Standing::good(held.revision));
    let back = standing.state == State::RolledBack;
    let mut rows = vec![["REVISION", "PODS", "STATE", "REASON"].map(str::to_owned)];
    let row = |manifest: &Manifest, state: &str, reason: &str| {
        [manifest.revision.to_string(), manifest.pods.len().to_string(), state.to_owned(), reason.to_owned()]
    };
    rows.push(row(&held, standing.state.word(), &standing.reason));
    if previous.revision != 0 {
        rows.push(row(&previous, if back { "followed again" } else { "before" }, ""));
    }
    Ok(columns(&rows))
}

/// Reason, details and restarts of a container for one line.
fn summary(container: &ContainerStatus) -> (String, String) {
    let end = |end: &Termination| match end.message.as_str() {
        "" => format!("exit code {}", end.exit_code),
        message => format!("exit code {}: {message}", end.exit_code),
    };
    match &container.state {
        ContainerState::Waiting { reason, message } => (reason.to_string(), message.clone()),
        ContainerState::Running { .. } => {
            let last = container.last.as_ref().map(|last| format!("last: {}, {}", last.reason, end(last)));
            ("Running".to_owned(), last.unwrap_or_default())
        }
        ContainerState::Terminated(last) => (last.reason.to_string(), end(last)),
    }
}

fn table(status: &NodeStatus) -> String {
    let head = ["NAMESPACE", "POD", "CONTAINER", "STATE", "RESTARTS", "MESSAGE"].map(str::to_owned);
    let mut rows = vec![head];
    for pod in &status.pods {
        for container in &pod.status.containers {
            let (mut state, message) = summary(container);
            if pod.status.reason == "Terminating" {
                state = "Terminating".to_owned();
            }
            // One line a container, whatever is in the message.
            let message = message.replace(|c: char| c.is_control(), " ");
            let (namespace, name) = (pod.namespace.to_string(), pod.name.to_string());
            rows.push([namespace, name, container.name.to_string(), state, container.restarts.to_string(), message]);
        }
    }
    columns(&rows)
}

/// A table whose columns, but the last, are as wide as their widest cells.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N.saturating_sub(1)).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let pad = |(at, cell): (usize, &String)| format!("{cell:<width$}", width = widths.get(at).unwrap_or(&0));
        let cells: Vec<String> = row.iter().enumerate().map(pad).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn as_json(status: &NodeStatus) -> serde_json::Value {
    use serde_json::json;
    let end = |end: &Termination| {
        json!({
            "exitCode": end.exit_code, "signal": end.signal, "reason": end.reason, "message": end.message,
            "startedAt": end.started_at, "finishedAt": end.finished_at,
        })
    };
    let container = |one: &ContainerStatus| {
        let state = match &one.state {
            ContainerState::Waiting { reason, message } => json!({"waiting": {"reason": reason, "message": message}}),
            ContainerState::Running { started_at } => json!({"running": {"startedAt": started_at}}),
            ContainerState::Terminated(last) => json!({"terminated": end(last)}),
        };
        json!({
            "name": one.name, "state": state, "lastState": one.last.as_ref().map(end),
            "restartCount": one.restarts, "imageDigest": one.image.map(|digest| digest.to_string()),
        })
    };
    let phase = |phase| match phase {
        Phase::Pending => "Pending",
        Phase::Running => "Running",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
    };
    let pods: Vec<_> = status
        .pods
        .iter()
        .map(|pod| {
            json!({
                "namespace": pod.namespace, "name": pod.name, "uid": pod.status.uid.to_string(),
                "phase": phase(pod.status.phase), "reason": pod.status.reason, "message": pod.status.message,
                "startedAt": pod.status.started_at,
                "containers": pod.status.containers.iter().map(container).collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({"node": status.name, "revision": status.revision, "link": status.link, "pods": pods})
}

/// Reads a time such as 30s, 5m, 2h or 7d as seconds.
///
/// # Errors
/// It is none.
pub fn seconds(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a time such as 30s, 5m, 2h or 7d");
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let (digits, unit) =
        units.iter().find_map(|(name, unit)| Some((text.strip_suffix(*name)?, unit))).ok_or_else(wrong)?;
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(*unit).ok_or_else(wrong)
}

/// Prints a container's log. Says the exit code.
///
/// # Errors
/// There is no such container or log.
pub async fn logs(
    run_dir: &Path,
    target: &Target,
    follow: bool,
    tail: Option<u32>,
    since_seconds: Option<u64>,
    previous: bool,
    timestamps: bool,
) -> anyhow::Result<i32> {
    let mut client = Client::connect(run_dir).await?;
    let (pod, container) = client.find(target).await?;
    let request = StreamRequest::Logs { pod, container, follow, tail, since_seconds, previous, timestamps };
    let mut stream = client.peer.open(request)?;
    receive(&mut stream).await
}

/// Prints what comes until the stream ends; says the exit code that it ends with.
async fn receive(stream: &mut Stream) -> anyhow::Result<i32> {
    loop {
        match stream.next().await {
            Some(StreamEvent::Data(Channel::Stderr, bytes)) => {
                let mut out = std::io::stderr().lock();
                out.write_all(&bytes).and_then(|()| out.flush()).context("writing to standard error")?;
            }
            Some(StreamEvent::Data(_, bytes)) => print(&bytes)?,
            Some(StreamEvent::Resize { .. }) => {}
            Some(StreamEvent::Closed(StreamEnd::Done | StreamEnd::Cancelled)) => return Ok(0),
            Some(StreamEvent::Closed(StreamEnd::Exited(code))) => return Ok(code),
            Some(StreamEvent::Closed(StreamEnd::Failed(message))) => bail!(message),
            None => bail!("the agent closed the connection"),
        }
    }
}

/// The terminal in raw mode; dropped, it is as before.
pub(crate) struct RawTerminal(Termios);

impl RawTerminal {
    pub(crate) fn enter() -> anyhow::Result<RawTerminal> {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).context("reading the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("setting the terminal's mode")?;
        Ok(RawTerminal(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing else can be done about it.
        tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0).ok();
    }
}

/// Runs a command in a container. Says its exit code.
///
/// # Errors
/// There is no such container, or the command can't be run.
pub async fn exec(
    run_dir: &Path,
    target: &Target,
    command: Vec<String>,
    stdin: bool,
    tty: bool,
) -> anyhow::Result<i32> {
    let mut client = Client::connect(run_dir).await?;
    let (pod, container) = client.find(target).await?;
    let mut stream = client.peer.open(StreamRequest::Exec { pod, container, command, tty, stdin })?;
    let raw = if tty && stdin && std::io::stdin().is_terminal() { Some(RawTerminal::enter()?) } else { None };
    if tty {
        spawn_local(resize(stream.sender()));
    }
    if stdin {
        spawn_local(send_stdin(stream.sender()));
    }
    let code = receive(&mut stream).await;
    drop(raw);
    code
}

async fn send_stdin(sender: Sender) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; skeg_protocol::limits::MAX_STREAM_DATA];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(length) if length > 0 => {
                if sender.send(Channel::Stdin, &buffer[..length]).await.is_err() {
                    return;
                }
            }
            Ok(_) | Err(_) => return sender.end_stdin(),
        }
    }
}

/// Tells the terminal's size, now and whenever it changes.
async fn resize(sender: Sender) {
    let Ok(mut changed) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change()) else { return };
    loop {
        if let Ok(size) = tcgetwinsize(std::io::stdout()) {
            sender.resize(size.ws_col, size.ws_row);
        }
        if changed.recv().await.is_none() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skeg_protocol::PodStatus;
    use skeg_protocol::status::reason;

    #[test]
    fn times_have_a_unit() {
        assert_eq!(["30s", "5m", "2h", "7d"].map(seconds), [30, 300, 7200, 604_800].map(Ok));
        for bad in ["", "5", "m", "-1s", "1.5h", "99999999999999999999d", "5 m"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_table_says_why_a_container_waits() {
        let last = Termination {
            exit_code: 137,
            signal: 9,
            reason: reason("OOMKilled"),
            message: "went over\nits limit".to_owned(),
            started_at: 0,
            finished_at: 1,
        };
        let container = |name: &str, state, last| ContainerStatus {
            name: name.try_into().unwrap(),
            state,
            last,
            restarts: 3,
            image: None,
            started: false,
            ready: false,
        };
        let waiting = ContainerState::Waiting { reason: reason("ErrImagePull"), message: "no such image".to_owned() };
        let running = ContainerState::Running { started_at: 0 };
        let status = NodeStatus {
            name: "kiln-7".try_into().unwrap(),
            revision: 4,
            link: String::new(),
            pods: vec![LocalPod {
                namespace: "default".try_into().unwrap(),
                name: "web".try_into().unwrap(),
                status: PodStatus {
                    ips: Vec::new(),
                    uid: Uid([1; 16]),
                    phase: Phase::Pending,
                    reason: reason(""),
                    message: String::new(),
                    started_at: 0,
                    conditions: Vec::new(),
                    init_containers: Vec::new(),
                    containers: vec![container("a", waiting, None), container("b", running, Some(last))],
                },
            }],
        };
        assert_eq!(
            table(&status),
            "NAMESPACE  POD  CONTAINER  STATE         RESTARTS  MESSAGE\n\
             default    web  a          ErrImagePull  3         no such image\n\
             default    web  b          Running       3         last: OOMKilled, exit code 137: went over its limit\n"
        );
        let json = as_json(&status);
        assert_eq!(json["pods"][0]["containers"][0]["state"]["waiting"]["reason"], "ErrImagePull");
        assert_eq!(json["pods"][0]["containers"][1]["lastState"]["exitCode"], 137);
    }
}
