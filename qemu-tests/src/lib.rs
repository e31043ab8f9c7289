//! Whole boards under QEMU: fetches Debian's kernels, makes disks, starts virtual machines, and lets a test
//! look at a console and act inside a guest.
//!
//! Knows `skegd` and `skeg` as binaries only. Everything that it starts ends with the value that stands for it.

#![forbid(unsafe_code)]

pub mod debian;
pub mod machine;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Returns the root of the repository.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Runs a command to its end and returns what it printed; an exit code other than 0 is an error that holds what
/// it complained about.
pub fn succeed(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{program} does not start"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("{program} printed something that is not UTF-8"))
}
