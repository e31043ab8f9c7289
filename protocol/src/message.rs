//! Every message of the wire and its kind number. A number, once released, means the same for ever; a message
//! grows only at its end. The local socket of `skegd` speaks the same messages.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{Digest, Label, Name, Uid};
use crate::status::PodStatus;

/// The oldest and newest version of the protocol that this crate speaks.
pub const VERSIONS: Versions = Versions { oldest: 1, newest: 1 };

/// A closed range of protocol versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Oldest that the peer speaks.
    pub oldest: u16,
    /// Newest that the peer speaks.
    pub newest: u16,
}

impl Versions {
    /// The newest version that both speak.
    pub fn common(self, other: Versions) -> Option<u16> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

/// First message of a device: who it is and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// What it speaks.
    pub versions: Versions,
    /// Secret part of a join token, when the controller does not know the device's key yet.
    pub join: Option<heapless::String<64>>,
    /// Facts about the device.
    pub node: NodeInfo,
    /// The manifest that it holds.
    pub held: Held,
    /// How far it came with another one, before an earlier connection ended.
    pub partial: Option<Partial>,
}

/// How much of a manifest's difference a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partial {
    /// As in its [`ManifestBegin`].
    pub revision: u64,
    /// As in its [`ManifestBegin`].
    pub check: Check,
    /// Bytes that it has.
    pub received: u32,
}

/// The first bytes of a SHA-256: enough to tell what one end has sent from what it sends now.
pub type Check = [u8; 8];

/// A random number that a controller picks whenever it starts. With it a revision names its maker: a controller whose
/// memory is older than a device's sees that the revision is none of those that it remembers.
pub type Epoch = [u8; 8];

/// Facts about a device that do not change while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// The name that it wants or has.
    pub name: Name,
    /// CPU architecture in OCI's words: `amd64`, `arm64`.
    pub arch: heapless::String<16>,
    /// Kernel release, as `uname -r`.
    pub kernel: heapless::String<64>,
    /// Operating system for people, from os-release.
    pub os: heapless::String<64>,
    /// Version of `skegd`.
    pub agent: heapless::String<32>,
    /// CPUs.
    pub cpus: u16,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Random id of this boot (`/proc/sys/kernel/random/boot_id`).
    pub boot: Uid,
    /// Address by which the device reaches the controller, where known.
    pub address: Option<std::net::IpAddr>,
    /// Pods can have users of their own.
    pub user_namespaces: bool,
}

/// Which manifest a device has made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its revision; 0 for none.
    pub revision: u64,
    /// SHA-256 over its body ([`crate::sync::body`]); zeros for none.
    pub digest: Digest,
    /// Of the controller that made it; zeros for none.
    pub epoch: Epoch,
}

impl Held {
    /// What a device holds at first.
    pub const NOTHING: Held = Held { revision: 0, digest: Digest([0; 32]), epoch: [0; 8] };
}

/// The controller's answer to a [`Hello`] that it accepts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that both speak from here on.
    pub version: u16,
    /// Seconds between heartbeats.
    pub heartbeat_seconds: u16,
    /// The controller's clock, in milliseconds since 1970.
    pub time: i64,
    /// When this connection is lost, the device comes back at a random moment within so many seconds, so that a fleet
    /// does not come back at once.
    pub retry_seconds: u16,
}

/// The controller's answer to a [`Hello`] that it does not accept; it closes the connection after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    /// For programs.
    pub code: RejectCode,
    /// For people: what is wrong and what to do.
    pub message: String,
    /// The device comes back after about so many seconds.
    pub retry_seconds: u16,
}

/// The controller ends the connection on purpose, and the device is to come back within so many seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// A random moment within them.
    pub retry_seconds: u16,
}

/// Why a device was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RejectCode {
    /// No version in common.
    Version,
    /// The key is not enrolled and no token came with it.
    UnknownKey,
    /// The token is wrong, used up or expired.
    Token,
    /// The name belongs to another key.
    NameTaken,
    /// The controller forgot this key on purpose.
    Revoked,
    /// The Hello breaks a rule, such as a name that is no DNS name.
    Invalid,
    /// Somebody has to consent first; the device asks again.
    Pending,
}

/// Begins a new manifest. Its body is the difference to bytes that both ends have; the difference follows in
/// [`ManifestPiece`]s, whose last one the device answers with [`Held`] or [`ManifestRefused`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestBegin {
    /// The revision that it leads to; higher than any before.
    pub revision: u64,
    /// Of the controller that made it.
    pub epoch: Epoch,
    /// What the difference is to.
    pub base: Base,
    /// Length of the new body in bytes.
    pub size: u32,
    /// SHA-256 over the new body.
    pub digest: Digest,
    /// Length of the difference in bytes.
    pub length: u32,
    /// Of the difference: a device that has a part of just this one is sent the rest.
    pub check: Check,
    /// Where in the difference the first piece begins.
    pub from: u32,
}

/// What a manifest's difference is to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Base {
    /// Nothing.
    Nothing,
    /// The body of the revision that the device holds.
    Held,
    /// Those of its items that are named by a set bit, one after the other: the items in the order of [`Items`], the
    /// lowest bit of each byte first.
    Items(Vec<u8>),
}

/// The next bytes of a manifest's difference, at most [`crate::limits::MAX_STREAM_DATA`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestPiece {
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Asks a device for the [`Items`] that it holds: the controller does not know its revision any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetItems;

/// The items of the manifest that a device holds, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Items {
    /// Of each item with its head.
    pub checks: Vec<Check>,
}

/// The device could not take a manifest; it keeps what it has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestRefused {
    /// The revision that was refused.
    pub revision: u64,
    /// What the device still holds.
    pub held: Held,
    /// Why.
    pub message: String,
}

/// What changed in the state of a device's pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusUpdate {
    /// Everything that is not named here is gone: the first update of a connection.
    pub full: bool,
    /// New or changed.
    pub pods: Vec<PodStatus>,
    /// No longer on the device.
    pub removed: Vec<Uid>,
}

/// Opens a stream; the opener chooses an id that is free on this connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamOpen {
    /// Stream id.
    pub id: u32,
    /// What the stream is for.
    pub request: StreamRequest,
}

/// What a stream is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamRequest {
    /// A container's log.
    Logs {
        /// Pod.
        pod: Uid,
        /// Container; empty where the pod has only one.
        container: Label,
        /// Goes on with what comes.
        follow: bool,
        /// Only the last so many lines.
        tail: Option<u32>,
        /// Only what was written in the last so many seconds, by the device's clock.
        since_seconds: Option<u64>,
        /// Of the instance before the present one.
        previous: bool,
        /// Each line begins with its time (RFC 3339).
        timestamps: bool,
    },
    /// A further process in a container.
    Exec {
        /// Pod.
        pod: Uid,
        /// Container; empty where the pod has only one.
        container: Label,
        /// Program and arguments.
        command: Vec<String>,
        /// Gives it a terminal.
        tty: bool,
        /// Connects its standard input.
        stdin: bool,
    },
    /// Something with the device's images.
    Image(ImageRequest),
    /// One TCP connection into a pod, made by the device. What the opener sends on [`Channel::Stdin`] goes to the port, an
    /// empty piece ends that direction; what the port says comes on [`Channel::Stdout`]. [`StreamEnd::Done`] says that
    /// the port has closed, [`StreamEnd::Failed`] why there is no connection.
    PortForward {
        /// Pod.
        pod: Uid,
        /// TCP port on the pod's loopback address.
        port: u16,
    },
    /// Something with the volumes that outlive pods.
    Volume(VolumeRequest),
    /// Something with the projects of a device that is alone; local socket only.
    Project(ProjectRequest),
}

/// What is to be done with the volumes of a device that outlive pods. The answer is one JSON document on stdout. A
/// volume is named `namespace/name`, or by its name where only one namespace has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeRequest {
    /// Lists them with the pods that use them.
    List,
    /// The same, and what each holds.
    Usage,
    /// Shows all that is known of some.
    Inspect {
        /// Which.
        volumes: Vec<String>,
    },
    /// Removes some that no pod uses: all or none.
    Remove {
        /// Which.
        volumes: Vec<String>,
    },
}

/// What is to be done with a device's images. The answer is one JSON document on stdout; on stderr come lines that
/// say how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImageRequest {
    /// Lists them.
    List,
    /// Tells where the disk's space went.
    Usage,
    /// Shows all that is known of some.
    Inspect {
        /// Names, digests, or the first digits of digests or ids.
        images: Vec<String>,
    },
    /// Fetches one from its registry.
    Pull {
        /// As in a pod.
        reference: String,
    },
    /// Takes names away, and images that have none left.
    Remove {
        /// As for `Inspect`.
        images: Vec<String>,
    },
    /// Takes in what an OCI layout or a docker archive has.
    Import {
        /// Folder or file on the device; absolute.
        path: String,
        /// Name of a single image, in place of those in the archive.
        name: Option<String>,
    },
    /// Writes images into an OCI layout that is a docker archive, too.
    Export {
        /// As for `Inspect`.
        images: Vec<String>,
        /// On the device, absolute: a folder where it ends with a slash, else a tar.
        path: String,
    },
    /// Removes every image that nothing needs.
    Prune,
    /// Reads everything and compares it with its digests.
    Verify,
}

/// What is to be done with the projects of a device: manifests that were handed in on the device itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProjectRequest {
    /// Says what image references mean. The answer is a JSON list of digests in this order.
    Resolve(Vec<ImageQuestion>),
    /// Takes a manifest, in postcard on stdin, as all that a project wants from now on.
    Apply {
        /// Name of the project.
        project: Label,
    },
    /// Forgets a project and all that it wants.
    Remove {
        /// Name of the project.
        project: Label,
    },
    /// Lists the projects as JSON.
    List,
    /// Ends pods of projects, and leaves them ended until they are started.
    Stop(Vec<Uid>),
    /// Starts pods again that were stopped.
    Start(Vec<Uid>),
}

/// What does an image reference mean?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageQuestion {
    /// As in a pod.
    pub reference: String,
    /// The registry is asked though the image is here.
    pub anew: bool,
    /// No registry is asked.
    pub here_only: bool,
}

/// Which of a stream's byte sequences a piece belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Channel {
    /// Towards the process.
    Stdin,
    /// From the process, or the log.
    Stdout,
    /// From the process.
    Stderr,
}

/// A piece of a stream, at most [`crate::limits::MAX_STREAM_DATA`] bytes; an empty piece on stdin ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamData {
    /// Stream id.
    pub id: u32,
    /// Sequence.
    pub channel: Channel,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Lets the stream's sender send so many bytes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamCredit {
    /// Stream id.
    pub id: u32,
    /// Bytes.
    pub bytes: u32,
}

/// New size of a stream's terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamResize {
    /// Stream id.
    pub id: u32,
    /// Columns.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// Ends a stream, from either side; nothing follows on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamClose {
    /// Stream id.
    pub id: u32,
    /// How it ended.
    pub end: StreamEnd,
}

/// How a stream ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamEnd {
    /// All was sent.
    Done,
    /// The process exited with this code (128 + N for signal N).
    Exited(i32),
    /// The opener wants no more.
    Cancelled,
    /// It could not be done: what, where, why.
    Failed(String),
}

/// What a device tells a local command about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: Name,
    /// Revision of the manifest that it holds.
    pub revision: u64,
    /// The controller's address and the state of the link, for people.
    pub link: String,
    /// Its pods.
    pub pods: Vec<LocalPod>,
}

/// A pod as a local command sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalPod {
    /// Kubernetes namespace.
    pub namespace: Label,
    /// Name.
    pub name: Name,
    /// State.
    pub status: PodStatus,
}

/// All secrets that the pods of a node name for their pulls and that exist; takes the place of those sent before. They
/// are kept in memory only. Together they fit into one frame.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullSecrets {
    /// Each namespace and name once.
    pub secrets: Vec<PullSecret>,
}

/// A secret for pulls.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullSecret {
    /// Kubernetes namespace.
    pub namespace: Label,
    /// Name.
    pub name: Name,
    /// Docker's `config.json`; at most [`crate::limits::MAX_PULL_SECRET`] bytes.
    pub config: String,
}

impl fmt::Debug for PullSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PullSecret({}/{})", self.namespace, self.name)
    }
}

/// A heartbeat: it says only that its sender lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Asks for a heartbeat in return. TCP's own acknowledgement says that a machine is there, not that the controller is.
    pub answer: bool,
}

/// Asks a device for its [`NodeStatus`]; local socket only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetStatus;

macro_rules! messages {
    ($($kind:literal $name:ident: $doc:literal,)*) => {
        /// A message of the wire.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[allow(clippy::large_enum_variant, reason = "a message lives for one step; boxes would cost more")]
        pub enum Message {
            $(#[doc = $doc] $name($name),)*
        }

        $(impl From<$name> for Message {
            fn from(body: $name) -> Self { Message::$name(body) }
        })*

        impl Message {
            /// The kind number on the wire.
            pub fn kind(&self) -> u8 {
                match self { $(Message::$name(_) => $kind,)* }
            }

            /// Appends the body's postcard encoding to `out`.
            pub(crate) fn encode_body(&self, out: Vec<u8>) -> postcard::Result<Vec<u8>> {
                match self { $(Message::$name(body) => postcard::to_extend(body, out),)* }
            }

            /// Decodes a body of this kind; `None` for a kind that this version does not know. Bytes after
            /// the fields that this version knows belong to newer ones and are passed over.
            pub(crate) fn decode_body(kind: u8, body: &[u8]) -> postcard::Result<Option<Message>> {
                Ok(Some(match kind {
                    $($kind => Message::$name(postcard::take_from_bytes(body)?.0),)*
                    _ => return Ok(None),
                }))
            }
        }
    };
}

messages! {
    1 Hello: "Device to controller, first.",
    2 Welcome: "Controller to device, answers Hello.",
    3 Reject: "Controller to device, answers Hello and ends the connection.",
    4 Heartbeat: "Device to controller; back only where it asks for that.",
    5 ManifestBegin: "Controller to device.",
    6 ManifestPiece: "Controller to device, after a begin.",
    7 GetItems: "Controller to device.",
    8 Held: "Device to controller, answers a whole manifest.",
    9 ManifestRefused: "Device to controller, answers a whole manifest.",
    10 StatusUpdate: "Device to controller.",
    11 StreamOpen: "From the side that asks.",
    12 StreamData: "Either way.",
    13 StreamCredit: "From the receiver of data.",
    14 StreamResize: "From the opener.",
    15 StreamClose: "Either way.",
    16 GetStatus: "Local command to agent.",
    17 NodeStatus: "Agent to local command.",
    18 PullSecrets: "Controller to device.",
    19 Items: "Device to controller, answers GetItems.",
    20 Goodbye: "Controller to device, last.",
}
