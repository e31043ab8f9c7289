//! Whole boards under QEMU: fetches Debian's kernels, makes disks, starts virtual machines, and lets a test
//! look at a console and act inside a guest.
//!
//! Knows `skegd` and `skeg` as binaries only. Everything that it starts ends with the value that stands for it.

#![forbid(unsafe_code)]

pub mod controller;
pub mod debian;
pub mod image;
pub mod machine;
pub mod volatile;

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

/// Returns where a static release binary lies; an error that says how to build it if it does not.
pub fn binary(package: &str, name: &str, architecture: &str) -> Result<PathBuf> {
    let target = format!("{architecture}-unknown-linux-musl");
    let path = repository().join("target").join(&target).join("release").join(name);
    if !path.exists() {
        bail!("{} is missing; build it: cargo build --release --target {target} --package {package}", path.display());
    }
    Ok(path)
}

/// Says which program that the tests call is not installed, if any.
pub fn missing_program() -> Option<String> {
    let programs = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("qemu-system-aarch64", "qemu-system-arm"),
        ("mke2fs", "e2fsprogs"),
        ("apt-get", "apt"),
        ("dpkg-deb", "dpkg"),
        ("umoci", "umoci"),
        ("skopeo", "skopeo"),
        ("busybox", "busybox-static"),
    ];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let missing = |program: &str| !folders.iter().any(|folder| folder.join(program).exists());
    let (program, package) = programs.into_iter().find(|(program, _)| missing(program))?;
    Some(format!("{program} is not installed (Debian: apt-get install {package}; cargo xtask test does it)"))
}
