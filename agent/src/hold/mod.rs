//! What init keeps for the agent: file descriptors, a few bytes, and how processes ended.
//!
//! Owns the words between the two ([`wire`]), init's side ([`table`], [`session`]) and the agent's side
//! ([`Holder`]). It never looks into a descriptor or into the agent's bytes.
//!
//! ```text
//!  agent                      init
//!    │ List ──────────────────▶ │   once, by a new agent
//!    │ ◀── Item … Item, ListEnd │   descriptors ride along (SCM_RIGHTS)
//!    │ Hold, Forget ──────────▶ │
//!    │ ◀───────── Done, Refused │   one each, by sequence number
//!    │ ◀──────────────── Exited │   a held process ended
//!    │ ◀────── Ping   Alive ──▶ │   only with a watchdog
//! ```

mod client;
pub(crate) mod session;
pub(crate) mod table;
mod wire;

pub use client::{Held, HoldError, Holder};
pub(crate) use wire::Ended;
pub use wire::{Exit, Exited, MAX_DATA, MAX_FDS, MAX_ITEMS, MAX_KEY, Refusal};

/// Environment variable that tells the agent that its standard input is the socket to init. Its value is `0`.
pub const SOCKET_VARIABLE: &str = "SKEGD_INIT_FD";

#[cfg(test)]
mod tests;
