//! The wire from outside the crate: golden bytes, round trips of any message, and whole connections driven by a
//! scripted clock.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod connection;
mod golden;
mod round_trip;
mod samples;
mod sync;
