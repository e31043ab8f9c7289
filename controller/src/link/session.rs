//! One device's connection, from Hello to its end.
//!
//! ```text
//! Hello ─▶ admission ─▶ Welcome ─▶ difference of manifests ─▶ Held
//!                                  StatusUpdate ─▶ pods' status in the store
//!                                  streams ◀─▶ pipes
//! ```
//! A writer task of its own keeps a slow device from holding up what it says itself; what waits for it is bounded.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use skeg_protocol::limits::{MAX_CONTAINERS, MAX_PODS, MAX_TEXT};
use skeg_protocol::message::{
    Channel, Goodbye, Hello, PullSecrets, StatusUpdate, StreamData, StreamEnd, StreamRequest, StreamResize, Welcome,
};
use skeg_protocol::sync::{Offer, Shelf as _};
use skeg_protocol::{Connection, LinkError, Message, PodStatus, Uid};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{mpsc, oneshot};

use super::admission::{Admitted, admit};
use super::hub::{Command, Mailbox, Opened};
use super::node;
use super::pipe::Pipe;
use crate::app::App;
use crate::manager::Nudge;
use crate::pods::from_device;
use crate::pull_secrets;
use crate::store::{Key32, MAX_REVISION, Store, StoreError, update};
use crate::time;

/// Bytes that may wait for a slow device before nothing more is read from it.
const MAX_BACKLOG: usize = 512 * 1024;
/// Pieces of a manifest are sent only while fewer bytes wait.
const SMALL_BACKLOG: usize = 32 * 1024;

/// Why a session ended.
#[derive(Debug, Error)]
enum End {
    #[error("the device closed the connection")]
    Closed,
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("{0}")]
    Asked(&'static str),
    #[error("refused: {0}")]
    Refused(String),
    #[error("the device broke a rule: {0}")]
    Rule(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Serves a device that has proved to hold `key` until the connection ends, and says once why it did. A device that is
/// let in gets its place from `settle`, if there is one.
pub(crate) async fn serve<S, P>(app: Arc<App>, key: Key32, peer: IpAddr, stream: S, settle: impl FnOnce() -> Option<P>)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (reader, writer) = tokio::io::split(stream);
    let (output, queue) = mpsc::channel(1);
    let writer = tokio::spawn(write(writer, queue));
    let mut link = Link {
        reader,
        output: Some(output),
        connection: Connection::controller(Duration::ZERO),
        began: Instant::now(),
    };
    let end = match link.hello(&app, &key).await {
        Err(end) => {
            log::warn!("device at {peer}: {end}");
            end
        }
        Ok((admitted, hello)) => match settle() {
            Some(_place) => attend(&app, &mut link, &key, admitted, hello, peer).await,
            None => {
                log::warn!("device at {peer}: no place is left for another device");
                End::Asked("no place is left")
            }
        },
    };
    link.flush().await;
    // The writer ends when its queue does. A device that does not read is cut off by the timeout.
    link.output = None;
    let abort = writer.abort_handle();
    if tokio::time::timeout(Duration::from_secs(5), writer).await.is_err() {
        abort.abort();
    }
    drop(end);
}

async fn write(mut writer: impl AsyncWrite + Unpin, mut queue: mpsc::Receiver<Vec<u8>>) -> std::io::Result<()> {
    while let Some(bytes) = queue.recv().await {
        writer.write_all(&bytes).await?;
        writer.flush().await?;
    }
    writer.shutdown().await
}

/// The session of an admitted device, in its node's name.
async fn attend<R: AsyncRead + Unpin>(
    app: &Arc<App>,
    link: &mut Link<R>,
    key: &Key32,
    admitted: Admitted,
    hello: Box<Hello>,
    peer: IpAddr,
) -> End {
    let node = admitted.node;
    let (id, mailbox) = app.hub.join(&node);
    let how = if admitted.new { "enrolled and connected" } else { "connected" };
    log::info!("node {node} {how} from {peer}, holding revision {}", hello.held.revision);
    let host_ip = hello.node.address.unwrap_or(peer).to_string();
    let mut session = Session {
        app: app.clone(),
        node: node.clone(),
        id,
        host_ip,
        offer: Offer::new(hello.held, hello.partial),
        secrets: None,
        reported: None,
        pipes: HashMap::new(),
        inputs: HashMap::new(),
    };
    let end = match session.begin(key, &hello, &admitted.labels, peer) {
        Ok(()) => {
            // A session is long, and what was said at its beginning is noted.
            drop(hello);
            session.run(link, &mailbox).await.err().unwrap_or(End::Closed)
        }
        Err(end) => end,
    };
    for pipe in session.pipes.into_values() {
        pipe.end(StreamEnd::Failed(format!("the link to node {node} ended: {end}")));
    }
    if app.hub.leave(&node, id)
        && let Err(error) = node::disconnected(app.store.as_ref(), &node, &end.to_string())
    {
        log::error!("node {node}: cannot note that it left: {error}");
    }
    match end {
        End::Closed | End::Asked(_) => log::info!("node {node} left: {end}"),
        _ => log::warn!("node {node} left: {end}"),
    }
    end
}

/// The bytes' side of a session.
struct Link<R> {
    reader: R,
    output: Option<mpsc::Sender<Vec<u8>>>,
    connection: Connection,
    began: Instant,
}

thread_local! {
    /// What is read at once. One for all connections of a thread: most of them are silent most of the time.
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; 16 * 1024].into());
}

/// Reads what has come and gives it to the connection; gives its length, 0 at the end.
async fn read(
    reader: &mut (impl AsyncRead + Unpin),
    connection: &mut Connection,
    began: Instant,
) -> std::io::Result<usize> {
    std::future::poll_fn(|context| {
        READ.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            std::task::ready!(Pin::new(&mut *reader).poll_read(context, &mut buffer))?;
            connection.receive(buffer.filled(), began.elapsed());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    })
    .await
}

/// What a session wakes up for.
enum Wake {
    Received,
    Command(Command),
    Tick,
    Stop,
    Sent,
}

impl<R: AsyncRead + Unpin> Link<R> {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Waits for bytes, room to write, a command or the deadline.
    async fn wait(&mut self, app: &App, mailbox: Option<&Mailbox>) -> Result<Wake, End> {
        let deadline = self.connection.deadline().unwrap_or(Duration::MAX);
        let sleep = tokio::time::sleep(deadline.saturating_sub(self.now()));
        let (backlog, output) = (self.connection.backlog(), self.output.as_ref());
        let has_output = self.connection.has_output();
        let command = async {
            match mailbox {
                Some(mailbox) => mailbox.take().await,
                None => std::future::pending().await,
            }
        };
        let room = async {
            match output {
                Some(output) => output.reserve().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            command = command => Ok(Wake::Command(command)),
            permit = room, if has_output => {
                let permit = permit.map_err(|_| std::io::Error::from(std::io::ErrorKind::BrokenPipe))?;
                let now = self.began.elapsed();
                permit.send(self.connection.output(now));
                Ok(Wake::Sent)
            }
            count = read(&mut self.reader, &mut self.connection, self.began), if backlog < MAX_BACKLOG => {
                if count? == 0 { Err(End::Closed) } else { Ok(Wake::Received) }
            }
            () = sleep => {
                let now = self.began.elapsed();
                self.connection.tick(now)?;
                Ok(Wake::Tick)
            }
            () = app.stopped() => Ok(Wake::Stop),
        }
    }

    /// Waits for the Hello and answers it.
    async fn hello(&mut self, app: &App, key: &Key32) -> Result<(Admitted, Box<Hello>), End> {
        loop {
            if let Some(Message::Hello(hello)) = self.connection.next()? {
                return match admit(&app.store, key, &hello)? {
                    Ok(admitted) => {
                        self.connection.welcome(Welcome {
                            version: admitted.version,
                            heartbeat_seconds: app.heartbeat_seconds,
                            time: time::now().as_millisecond(),
                            retry_seconds: app.hub.retry_seconds(),
                        })?;
                        Ok((admitted, Box::new(hello)))
                    }
                    Err(reject) => {
                        let end = End::Refused(format!("node {:?}: {}", hello.node.name, reject.message));
                        self.connection.reject(reject)?;
                        Err(end)
                    }
                };
            }
            if let Wake::Stop = self.wait(app, None).await? {
                return Err(End::Asked("the controller stops"));
            }
        }
    }

    /// Hands what is left to the writer.
    async fn flush(&mut self) {
        while self.connection.has_output() {
            let now = self.now();
            let rest = self.connection.output(now);
            let Some(output) = &self.output else { return };
            // The writer may have failed; then nobody is there to read it either.
            if !tokio::time::timeout(Duration::from_secs(5), output.send(rest)).await.is_ok_and(|sent| sent.is_ok()) {
                return;
            }
        }
    }
}

/// The meaning's side of a session.
struct Session {
    app: Arc<App>,
    node: String,
    id: u64,
    host_ip: String,
    offer: Offer,
    /// The secrets that the device was sent; `None` when it was sent none yet.
    secrets: Option<PullSecrets>,
    /// Pods that the device says it has; `None` until its first full report.
    reported: Option<BTreeSet<Uid>>,
    pipes: HashMap<u32, Arc<Pipe>>,
    /// Input of streams that waits for credit.
    inputs: HashMap<u32, Input>,
}

/// Bytes towards a process, and who waits for their departure.
struct Input {
    bytes: Vec<u8>,
    done: oneshot::Sender<()>,
}

impl Session {
    /// Notes the connection in the store, and looks at what the device holds.
    fn begin(
        &mut self,
        key: &Key32,
        hello: &Hello,
        labels: &BTreeMap<String, String>,
        peer: IpAddr,
    ) -> Result<(), End> {
        // The node may have been deleted since the key was looked up; from here on its deletion closes this session.
        let store = self.app.store.as_ref();
        if store.node_of_key(key)?.as_deref() != Some(&self.node) {
            return Err(End::Asked("the node was deleted and its key forgotten"));
        }
        let held = hello.held;
        if held.revision > MAX_REVISION {
            return Err(End::Rule(format!("it holds revision {}, which nobody made", held.revision)));
        }
        if !labels.is_empty() {
            node::label(store, &self.node, labels)?;
        }
        node::connected(store, &self.node, &hello.node, peer)?;
        let shelf = store.shelf(&self.node);
        let (newest, known) = (shelf.newest()?, shelf.knows(&held)?);
        let deleted = known && held.revision > newest.revision;
        // Made by somebody else, but it is what this controller wants, too: nothing goes back.
        let same = !known && held.digest == newest.digest;
        if deleted || same {
            store.take_over(&self.node, &held)?;
        }
        self.app.nudge(Nudge::Look);
        Ok(())
    }

    async fn run<R: AsyncRead + Unpin>(&mut self, link: &mut Link<R>, mailbox: &Mailbox) -> Result<(), End> {
        self.share(&mut link.connection)?;
        loop {
            while let Some(message) = link.connection.next()? {
                self.take(&mut link.connection, message)?;
            }
            self.offer(&mut link.connection)?;
            match link.wait(&self.app, Some(mailbox)).await? {
                Wake::Command(command) => self.obey(&mut link.connection, command)?,
                Wake::Stop => {
                    let retry_seconds = self.app.hub.retry_seconds();
                    link.connection.send(Goodbye { retry_seconds })?;
                    return Err(End::Asked("the controller stops"));
                }
                Wake::Received | Wake::Tick | Wake::Sent => {}
            }
        }
    }

    /// Sends what brings the device to the newest manifest, as far as there is room.
    fn offer(&mut self, connection: &mut Connection) -> Result<(), End> {
        let before = self.offer.is_stranger();
        while connection.backlog() < SMALL_BACKLOG
            && let Some(message) = self.offer.next(&self.app.store.shelf(&self.node))?
        {
            connection.send(message)?;
        }
        if self.offer.is_stranger() != before {
            let held = self.offer.held().revision;
            node::strange(self.app.store.as_ref(), &self.node, self.offer.is_stranger().then_some(held))?;
        }
        Ok(())
    }

    /// Sends the secrets that the newest manifest's pods name, unless the device has just these. They come before the
    /// manifest, so that the first pull has them.
    fn share(&mut self, connection: &mut Connection) -> Result<(), End> {
        let pods = self.app.store.newest_manifest(&self.node)?.pods;
        if self.secrets.is_none() && pods.iter().all(|pod| pod.image_pull_secrets.is_empty()) {
            return Ok(());
        }
        let wanted = pull_secrets::of_node(&self.app.store, &self.node, &pods)?;
        if self.secrets.as_ref() != Some(&wanted) {
            connection.send(wanted.clone())?;
            self.secrets = Some(wanted);
        }
        Ok(())
    }

    fn take(&mut self, connection: &mut Connection, message: Message) -> Result<(), End> {
        match message {
            Message::Held(held) => {
                self.offer.answered(held).map_err(|error| End::Rule(error.to_string()))?;
                self.let_go()?;
            }
            Message::ManifestRefused(refusal) => {
                log::warn!("node {} refused revision {}: {:?}", self.node, refusal.revision, refusal.message);
                self.offer.refused(&refusal);
            }
            Message::Items(items) => self.offer.items(items).map_err(|error| End::Rule(error.to_string()))?,
            Message::StatusUpdate(update) => self.status(update)?,
            Message::StreamData(StreamData { id, channel, bytes }) => match self.pipes.get(&id) {
                Some(pipe) => pipe.push(channel, &bytes),
                None => connection.consumed(id, bytes.len())?,
            },
            Message::StreamClose(close) => {
                self.inputs.remove(&close.id);
                if let Some(pipe) = self.pipes.remove(&close.id) {
                    pipe.end(close.end);
                }
            }
            Message::StreamCredit(credit) => self.feed(connection, credit.id)?,
            other => return Err(End::Rule(format!("a message of kind {} has no place here", other.kind()))),
        }
        Ok(())
    }

    fn obey(&mut self, connection: &mut Connection, command: Command) -> Result<(), End> {
        match command {
            Command::Manifest => {
                self.share(connection)?;
                self.offer.look();
                self.let_go()?;
            }
            Command::Overwrite(answer) => {
                let taken = self.app.store.take_over(&self.node, &self.offer.held());
                self.offer.look();
                // Whoever asked may have gone.
                let _ = answer.send(taken.map_err(|error| error.to_string()));
            }
            Command::Open(request, answer) => self.open(connection, request, answer),
            Command::Consumed(id, bytes) => connection.consumed(id, bytes)?,
            Command::Input(id, bytes, done) => {
                self.inputs.insert(id, Input { bytes, done });
                self.feed(connection, id)?;
            }
            Command::Resize(id, columns, rows) => {
                if self.pipes.contains_key(&id) {
                    connection.send(StreamResize { id, columns, rows })?;
                }
            }
            Command::Cancel(id) => {
                self.inputs.remove(&id);
                self.pipes.remove(&id);
                connection.close_stream(id, StreamEnd::Cancelled)?;
            }
            Command::Close(why) => return Err(End::Asked(why)),
        }
        Ok(())
    }

    /// Sends what waits for a stream's credit, as far as that goes.
    fn feed(&mut self, connection: &mut Connection, id: u32) -> Result<(), End> {
        let Some(mut input) = self.inputs.remove(&id) else { return Ok(()) };
        if connection.stream_credit(id).is_none() {
            return Ok(());
        }
        if input.bytes.is_empty() {
            connection.end_stdin(id)?;
        } else {
            let sent = connection.send_stream(id, Channel::Stdin, &input.bytes)?;
            input.bytes.drain(..sent);
            if !input.bytes.is_empty() {
                self.inputs.insert(id, input);
                return Ok(());
            }
        }
        // Whoever waited may have gone.
        let _ = input.done.send(());
        Ok(())
    }

    fn open(
        &mut self,
        connection: &mut Connection,
        request: StreamRequest,
        answer: oneshot::Sender<Result<Opened, String>>,
    ) {
        let opened = connection.open_stream(request).map(|id| {
            let pipe = Arc::new(Pipe::default());
            self.pipes.insert(id, pipe.clone());
            Opened { session: self.id, stream: id, pipe }
        });
        let id = opened.as_ref().ok().map(|opened| opened.stream);
        if answer.send(opened.map_err(|error| error.to_string())).is_err()
            && let Some(id) = id
        {
            // Whoever asked has gone.
            self.pipes.remove(&id);
            let _ = connection.close_stream(id, StreamEnd::Cancelled);
        }
    }

    /// Writes what the device reports to its own pods; it has no say about others.
    fn status(&mut self, report: StatusUpdate) -> Result<(), End> {
        if report.pods.len() > MAX_PODS || report.removed.len() > 2 * MAX_PODS {
            return Err(End::Rule(format!("a status of more than {MAX_PODS} pods")));
        }
        report.pods.iter().try_for_each(check)?;
        // A connection that was replaced must not overwrite what the newer one says.
        if !self.app.hub.is_current(&self.node, self.id) {
            return Ok(());
        }
        if report.full {
            self.reported = Some(BTreeSet::new());
        }
        let Some(reported) = &mut self.reported else {
            return Err(End::Rule("a first status that is not full".to_owned()));
        };
        reported.extend(report.pods.iter().map(|pod| pod.uid));
        reported.retain(|uid| !report.removed.contains(uid));
        if reported.len() > 2 * MAX_PODS {
            return Err(End::Rule(format!("a device with more than {} pods", 2 * MAX_PODS)));
        }
        let by_uid: HashMap<String, &PodStatus> = report.pods.iter().map(|pod| (pod.uid.to_string(), pod)).collect();
        let now = time::now();
        for (key, pod) in self.app.store.pods_of(&self.node)? {
            let Some(status) = pod["metadata"]["uid"].as_str().and_then(|uid| by_uid.get(uid)) else { continue };
            update(self.app.store.as_ref(), &key, |current| {
                if current["metadata"]["uid"] == pod["metadata"]["uid"] {
                    current["status"] = from_device(current, status, Some(&self.host_ip), now);
                }
            })?;
        }
        self.let_go()
    }

    /// Removes the objects of deleted pods that the device has neither in its manifest nor in its hands.
    fn let_go(&mut self) -> Result<(), End> {
        let Some(reported) = &self.reported else { return Ok(()) };
        let newest = self.app.store.newest_manifest(&self.node)?;
        if self.offer.held().revision != newest.revision {
            return Ok(());
        }
        for (key, pod) in self.app.store.pods_of(&self.node)? {
            let uid = pod["metadata"]["uid"].as_str().and_then(|uid| uid.parse::<Uid>().ok()).unwrap_or_default();
            let deleted = !pod["metadata"]["deletionTimestamp"].is_null();
            if deleted && newest.pod(uid).is_none() && !reported.contains(&uid) {
                match self.app.store.remove(&key) {
                    Ok(_) | Err(StoreError::NotFound(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

/// Checks the bounds of one pod's report.
fn check(pod: &PodStatus) -> Result<(), End> {
    let long = |text: &str| text.len() > MAX_TEXT;
    let texts = pod.containers.iter().any(|container| {
        let state = match &container.state {
            skeg_protocol::ContainerState::Waiting { message, .. } => long(message),
            skeg_protocol::ContainerState::Terminated(end) => long(&end.message),
            skeg_protocol::ContainerState::Running { .. } => false,
        };
        state || container.last.as_ref().is_some_and(|last| long(&last.message))
    });
    if pod.containers.len() > MAX_CONTAINERS || long(&pod.message) || texts {
        return Err(End::Rule(format!("the status of pod {} is larger than a status may be", pod.uid)));
    }
    Ok(())
}
