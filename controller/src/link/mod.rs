//! The link to devices: who may come in, one session a connection, and what others may ask of it. What a device
//! sends is hostile until checked; whatever it does ends its own connection and nothing else.

mod admission;
mod hub;
mod node;
mod pipe;
mod session;

pub(crate) use hub::{Command, Hub, Opened};
pub(crate) use node::{forget, label, mark_all_unknown};
pub(crate) use pipe::Piece;
pub(crate) use session::serve;
