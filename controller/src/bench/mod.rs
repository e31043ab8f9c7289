//! `skeg bench`: what a controller costs, measured on one that runs beside, with clients that speak the real protocol.

mod client;
mod fleet;
mod process;

use anyhow::Result;
use clap::{Args, Subcommand};

#[cfg(test)]
pub(crate) use client::config;

/// Measures.
#[derive(Debug, Clone, Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, Subcommand)]
enum What {
    /// Memory, processor time and reconnects of many devices
    Fleet(fleet::Options),
}

/// Runs a bench.
pub(crate) async fn run(options: &Bench) -> Result<()> {
    match &options.what {
        What::Fleet(options) => fleet::run(options).await,
    }
}
