//! `skegd image …`: what people do with the images of a device.
//!
//! The agent has the store for itself, so it carries the commands out while it runs; without an agent the command
//! does, by the same code. Owns no image: that is the store's.

mod command;
mod serve;
mod show;

pub use command::{Command, Output, ask, run};
pub use serve::serve;
pub use show::size;
