//! A device that is alone: projects, which are manifests handed in on the device itself.
//!
//! Two sides meet here over the local socket. The commands (`command`, `read`, `wait`) parse what people write and send
//! typed manifests; the agent (`serve`, `projects`, `merge`) keeps them and puts them beside the controller's. The agent
//! never sees a line of YAML.

mod command;
mod merge;
mod projects;
mod read;
mod serve;
mod wait;

pub use command::{Command, run};
pub use merge::merge;
pub use projects::{Project, Projects};
pub use serve::{boot, serve};
