//! Placeholder.
#![forbid(unsafe_code)]
mod core;
mod journal;
fn main() {}
