//! `cargo xtask sim`: the link's two ends in a world that goes wrong in every way that the seed thinks of. A failing seed
//! is printed; the same seed fails in the same way everywhere.
//!
//! Checked: a device never goes back and applies nothing twice; nobody overwrites what he does not know unasked; what is
//! applied is what was made; waiting bytes are bounded; once nothing goes wrong any more, working links stay, every device
//! holds the newest manifest and every status has come through.

mod controller;
mod device;
mod random;
mod wire;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Result, bail};

use world::World;

/// What some runs came to.
#[derive(Debug, Default)]
struct Summary {
    connections: AtomicUsize,
    applied: AtomicUsize,
    /// Seeds that failed, each with what broke.
    failed: Mutex<Vec<(u64, String)>>,
}

/// Runs one seed; gives what broke.
fn one(seed: u64, summary: &Summary) -> Option<String> {
    let mut world = World::new(seed);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    summary.connections.fetch_add(world.connections, Ordering::Relaxed);
    summary.applied.fetch_add(world.applied, Ordering::Relaxed);
    let fault = ended.err()?;
    let text = fault.downcast_ref::<String>().cloned();
    Some(text.or_else(|| fault.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default())
}

/// Runs many seeds on all processors; gives a line about them.
pub(crate) fn many(first: u64, seeds: u64) -> Result<String> {
    let (summary, next) = (Summary::default(), AtomicU64::new(first));
    std::panic::set_hook(Box::new(|_| {}));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    if let Some(what) = one(seed, &summary)
                        && let Ok(mut failed) = summary.failed.lock()
                    {
                        failed.push((seed, what));
                    }
                }
            });
        }
    });
    drop(std::panic::take_hook());
    let mut failed = summary.failed.into_inner().unwrap_or_default();
    failed.sort();
    if let Some((seed, what)) = failed.first() {
        bail!(
            "{} of {seeds} seeds failed; seed {seed}: {what}\nagain: cargo xtask sim --first {seed} --seeds 1",
            failed.len()
        );
    }
    let (connections, applied) = (summary.connections.into_inner(), summary.applied.into_inner());
    Ok(format!("{seeds} seeds, {connections} connections, {applied} manifests applied, nothing broken"))
}

/// Seeds that found a fault once.
const FOUND: [u64; 2] = [11, 2173];

/// Some seeds, and those that found a fault once.
pub(crate) fn smoke() -> Result<String> {
    for seed in FOUND {
        many(seed, 1)?;
    }
    many(1, 200)
}

/// Runs seeds and says how it went.
pub(crate) fn run(first: u64, seeds: u64) -> Result<ExitCode> {
    println!("{}", many(first, seeds)?);
    Ok(ExitCode::SUCCESS)
}
