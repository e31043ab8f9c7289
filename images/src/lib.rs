//! OCI images on a device: references, a registry client, and a store of verified blobs and unpacked layers.
//!
//! Owns everything between an image's name and a list of folders that an overlay can be mounted from. It knows
//! neither containers nor skeg's protocol, and it never mounts anything.

#![forbid(unsafe_code)]

pub mod blobs;
mod bundle;
pub mod client;
mod digest;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod healthcheck;
pub mod platform;
pub mod reference;
mod split;
pub mod store;
mod tar;
#[cfg(test)]
mod testing;
pub mod unpack;

pub use bundle::BundleError;
pub use client::{Client, ClientError, Endpoint, Login, Logins, Sources};
pub use digest::{Digest, DigestError};
pub use healthcheck::Healthcheck;
pub use platform::{NoPlatform, Platform};
pub use reference::{Reference, ReferenceError};
pub use store::{
    ExportError, Goal, Image, ImportError, Limits, Listed, NameError, Progress, PullError, Store, StoreError, Target,
    Usage, Verified,
};
