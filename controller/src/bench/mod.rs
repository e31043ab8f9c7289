//! `skeg bench`: what a controller costs, measured on one that runs beside, with clients that speak the real protocol.

mod client;
mod fleet;
mod link;
mod process;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::json;

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
    /// Bytes of one device on the wire, headers included
    Link(link::Options),
}

/// Runs a bench.
pub(crate) async fn run(options: &Bench) -> Result<()> {
    match &options.what {
        What::Fleet(options) => fleet::run(options).await,
        What::Link(options) => link::run(options).await,
    }
}

/// A figure: name, value, unit, and the most that is promised.
struct Figure(&'static str, f64, &'static str, f64);

/// Prints figures for people, or one JSON object.
fn print(bench: &str, as_json: bool, figures: &[Figure]) {
    if as_json {
        let figures = figures.iter().map(|Figure(name, value, unit, goal)| {
            json!({"name": name, "value": value, "unit": unit, "goal": goal, "lower_is_better": true, "holds": value <= goal})
        });
        println!("{}", json!({"bench": bench, "figures": figures.collect::<Vec<_>>()}));
        return;
    }
    for Figure(name, value, unit, goal) in figures {
        let verdict = if value <= goal { "holds" } else { "MISSED" };
        println!("{name:<48} {value:>9.2} {unit:<8} goal {goal:>5} {verdict}");
    }
}

/// A folder for a controller, gone when this is dropped.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn make() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("skeg-bench-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Folder { path })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            log::warn!("removing {}: {error}", self.path.display());
        }
    }
}
