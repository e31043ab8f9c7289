//! What makes a board out of a kernel: mounts, modules, the state device, a name, the network.
//!
//! Owns the set-up and the last moments of a board. [`boot()`] and [`end`] run in init, [`network()`] in the agent.
//! Whatever fails is named on the console and the boot goes on: a board that can still be reached can be mended.

mod boot;
mod dhcp;
mod netlink;
mod network;

pub use boot::{boot, console, end};
pub use network::{is_board, network};
