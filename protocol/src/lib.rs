//! The words that a device and its controller share: the manifest of a node, the status that comes back, and
//! the frames that carry both.
//!
//! This crate owns the wire format, its limits and its version rules. It does no I/O and reads no clock: bytes
//! and time are handed in, bytes and messages come out (see [`connection`]).

#![forbid(unsafe_code)]

mod bulk;
pub mod codec;
pub mod connection;
pub mod id;
pub mod limits;
pub mod manifest;
pub mod message;
pub mod pace;
pub mod status;
pub mod sync;
pub mod traffic;

pub use codec::{CodecError, Decoder};
pub use connection::{Connection, LinkError, Role};
pub use id::{Digest, DigestError, Label, Name, Uid, UidError};
pub use manifest::{Container, Invalid, Manifest, Pod};
pub use message::Message;
pub use status::{ContainerState, ContainerStatus, Phase, PodStatus, Termination};
pub use traffic::{Purpose, Traffic};
