//! What people write, as what a device obeys: documents of Kubernetes and Compose files become the protocol's typed
//! manifest.
//!
//! The controller uses it for its objects, the device's commands for files on the device; both say the same about the
//! same file. Everything here is pure: no files, no clock, no network. Every complaint names the field as Kubernetes
//! writes it; a field that a device would not follow is refused by name.

#![forbid(unsafe_code)]

mod bundle;
mod compose;
mod cursor;
mod data;
mod pod;
pub mod quantity;
mod service;
mod show;
mod signal;
mod workload;
pub mod yaml;

pub use bundle::Bundle;
pub use compose::{ComposeFault, Composed, Files, MAX_FILE, Request, convert_compose};
pub use cursor::{Cursor, Fault, Fields};
pub use data::convert_data;
pub use pod::{containers, convert, image_references, pull_secret_names};
pub use service::convert_service;
pub use show::show;
pub use workload::{DocumentFault, ImageOf, Node, convert_documents};
