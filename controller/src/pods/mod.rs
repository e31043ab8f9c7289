//! Pods between two shapes: Kubernetes' JSON, which people write, and the protocol's typed form, which devices
//! obey. Pure: no store, no clock, no network.

mod cursor;
mod quantity;
mod spec;
mod status;

pub(crate) use cursor::Fault;
pub(crate) use spec::{convert, image_references, pull_secret_names};
pub(crate) use status::{conditions, failed_images, from_device, unschedulable};
