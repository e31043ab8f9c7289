//! `skegd`: init, agent and local commands of a device.

#![forbid(unsafe_code)]

// Public, so that the compiler counts their items as reachable.
#[allow(dead_code)]
pub mod config;
mod core;
mod journal;
mod link;
mod peer;

fn main() {}
