//! Ctrl-C and SIGTERM: noted, never obeyed on the spot, so that every guard runs its clean-up. It owns one flag;
//! whoever waits asks it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// Notes SIGINT, SIGTERM and SIGHUP from now on. A second one ends the process at once.
pub(crate) fn install() -> Result<()> {
    let flag = FLAG.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // In this order: the first signal finds the flag clear and only sets it.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(flag)).context("signal handler")?;
        signal_hook::flag::register(signal, Arc::clone(flag)).context("signal handler")?;
    }
    Ok(())
}

/// Whether somebody asked to stop.
pub(crate) fn noted() -> bool {
    FLAG.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Fails when somebody asked to stop.
pub(crate) fn check() -> Result<()> {
    if noted() {
        bail!("interrupted");
    }
    Ok(())
}
