//! Bringing the two ends of a link to the same state, without I/O: a device's manifest goes down as a difference
//! ([`Offer`] at the controller, [`Intake`] on the device), the state of its pods comes up as one ([`Told`]).
//!
//! ```text
//! device                                controller
//!   Hello: held, partial ───────────────▶  Offer
//!                      ◀─────────────────  GetItems           only where the held revision is not kept any more
//!   Items ──────────────────────────────▶
//!   Intake ◀──────────────────────────────  ManifestBegin, ManifestPiece …
//!   made durable, then Held ────────────▶
//! ```
//! What is durable and when is the caller's; nothing here forgets a promise because a connection ends.

pub mod body;
pub mod delta;
mod intake;
mod offer;
mod told;

pub use body::BodyError;
pub use delta::DeltaError;
pub use intake::{Answer, Intake, Whole};
pub use offer::{Misplaced, Offer, Shelf};
pub use told::Told;
