//! `skegd`: init, agent and local commands of a device.

#![forbid(unsafe_code)]
// Until the commands call them.
#![allow(dead_code)]

pub mod appliance;
pub mod async_fd;
pub mod config;
pub mod hold;
pub mod init;
pub mod logs;

fn main() {}
