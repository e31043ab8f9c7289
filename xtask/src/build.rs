//! Building: static musl binaries and other cargo runs with their progress. It owns target names and where the
//! results lie.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::root;
use crate::ui::Ui;

/// The targets that are shipped.
pub(crate) const TARGETS: [&str; 2] = ["x86_64-unknown-linux-musl", "aarch64-unknown-linux-musl"];

/// The static target of this machine.
pub(crate) fn host_target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

/// A cargo command in the workspace, with the toolchain that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // Variables of the cargo that started us would make the inner one see a changed environment and build anew.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command
}

/// Turns cargo's lines into progress: how many crates, which one now.
pub(crate) fn cargo_progress() -> impl FnMut(&str) -> Option<String> {
    let mut count = 0;
    move |line| {
        let line = line.trim_start();
        let (verb, what) = line.split_once(' ')?;
        match verb {
            "Compiling" | "Checking" | "Documenting" | "Downloaded" => {
                count += 1;
                Some(format!("{verb} {} ({count})", what.split(" (").next()?))
            }
            "Running" | "Doc-tests" | "Finished" => Some(line.to_owned()),
            "test" => Some(line.chars().take(100).collect()),
            _ => None,
        }
    }
}

/// Where a release binary of a target lies.
pub(crate) fn binary(target: &str, name: &str) -> PathBuf {
    root().join("target").join(target).join("release").join(name)
}

/// Builds static release binaries of packages.
pub(crate) fn release(ui: &mut Ui, target: &str, packages: &[&str]) -> Result<()> {
    let mut command = cargo();
    command.args(["build", "--locked", "--release", "--target", target]);
    for package in packages {
        command.args(["--package", package]);
    }
    // A tree without history builds, too; its version then says so.
    if let Ok(commit) = process::capture(Command::new("git").current_dir(root()).args(["rev-parse", "HEAD"])) {
        command.env("SKEG_COMMIT", commit.trim());
    }
    process::succeed(ui, &mut command, cargo_progress())?;
    Ok(())
}

/// Builds the static program with a package's unit tests and puts it beside the target's other results, as
/// `debug/NAME-tests`.
pub(crate) fn unit_tests(ui: &mut Ui, target: &str, package: &str, name: &str) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--locked", "--no-run", "--lib", "--target", target, "--package", package]);
    // It goes into the memory of a guest.
    command.env("CARGO_PROFILE_DEV_STRIP", "symbols");
    let finished = process::succeed(ui, &mut command, cargo_progress())?;
    let line = finished.lines.iter().find_map(|line| line.trim_start().strip_prefix("Executable "));
    let program = line.and_then(|line| line.rsplit_once('(')?.1.strip_suffix(')'));
    let program = root().join(program.with_context(|| format!("cargo named no program:\n{}", finished.tail()))?);
    let place = root().join("target").join(target).join("debug").join(format!("{name}-tests"));
    std::fs::copy(&program, &place).with_context(|| format!("cannot copy {}", program.display()))?;
    Ok(())
}
