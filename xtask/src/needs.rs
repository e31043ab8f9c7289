//! What the developer's commands need from the machine, and how it gets there: Debian packages by apt, targets and
//! components by rustup. It installs only what is missing, and says exactly what to do where it may not.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{capture, succeed};
use crate::ui::Ui;

/// Something that a Debian package brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    package: &'static str,
    /// A program name, or an absolute path of a file, that shows that the need is met.
    proof: &'static str,
}

const fn need(package: &'static str, proof: &'static str) -> Need {
    Need { package, proof }
}

/// For static builds for this machine.
pub(crate) const BUILD: &[Need] = &[need("musl-tools", "musl-gcc"), need("gcc", "cc")];
/// For static builds for 64-bit ARM.
pub(crate) const CROSS: &[Need] = &[
    need("gcc-aarch64-linux-gnu", "aarch64-linux-gnu-gcc"),
    need("libc6-dev-arm64-cross", "/usr/aarch64-linux-gnu/include/stdio.h"),
];
/// For the demo.
pub(crate) const DEMO: &[Need] = &[need("skopeo", "skopeo")];
/// For the fuzzer.
pub(crate) const FUZZ: &[Need] = &[need("g++", "g++")];
/// For the peers of the start benchmark.
pub(crate) const PEERS: &[Need] = &[
    need("crun", "crun"),
    need("runc", "runc"),
    need("busybox-static", "/bin/busybox"),
    need("util-linux", "unshare"),
];
/// For the tests of a whole fleet and for the QEMU boots.
pub(crate) const BOARDS: &[Need] = &[
    need("busybox-static", "busybox"),
    need("cpio", "cpio"),
    need("e2fsprogs", "mke2fs"),
    need("file", "file"),
    need("iproute2", "ip"),
    need("kmod", "modinfo"),
    need("mmdebstrap", "mmdebstrap"),
    need("qemu-system-arm", "qemu-system-aarch64"),
    need("qemu-system-x86", "qemu-system-x86_64"),
    need("umoci", "umoci"),
];

/// Whether a program is on the path or a file exists.
fn present(proof: &str) -> bool {
    if proof.starts_with('/') {
        return Path::new(proof).exists();
    }
    let own = std::env::var("PATH").unwrap_or_default();
    own.split(':').chain(["/usr/sbin", "/sbin"]).any(|folder| Path::new(folder).join(proof).is_file())
}

/// The packages that are missing, each once.
pub(crate) fn missing(needs: &[&[Need]]) -> Vec<&'static str> {
    let mut packages: Vec<&str> =
        needs.iter().copied().flatten().filter(|need| !present(need.proof)).map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Whether this process may do what root may.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// apt refuses qemu packages beside a newer qemu-utils: gives `qemu-utils=VERSION` to go back to, if so.
fn qemu_utils(packages: &[&str]) -> Option<String> {
    packages.iter().any(|package| package.starts_with("qemu-system")).then_some(())?;
    let policy = capture(Command::new("apt-cache").args(["policy", "qemu-utils", "qemu-system-x86"])).ok()?;
    let mut sections = policy.split("qemu-system-x86:");
    let field = |section: &str, name: &str| {
        section.lines().find_map(|line| line.trim().strip_prefix(name).map(|value| value.trim().to_owned()))
    };
    let installed = field(sections.next()?, "Installed:")?;
    let wanted = field(sections.next()?, "Candidate:")?;
    (installed != "(none)" && installed != wanted).then(|| format!("qemu-utils={wanted}"))
}

fn apt(ui: &mut Ui, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.args(["-o", "DPkg::Lock::Timeout=300"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    succeed(ui, &mut command, |line| (!line.is_empty()).then(|| line.chars().take(100).collect()))?;
    Ok(())
}

/// Installs the packages that are missing.
///
/// # Errors
/// Not root, or apt fails: the message holds the command to type.
pub(crate) fn packages(ui: &mut Ui, needs: &[&[Need]]) -> Result<()> {
    let packages = missing(needs);
    if packages.is_empty() {
        return Ok(());
    }
    let by_hand = format!("sudo apt-get install --no-install-recommends {}", packages.join(" "));
    if !is_root() || !present("apt-get") {
        bail!("these Debian packages are missing: {}\ninstall them with: {by_hand}", packages.join(", "));
    }
    let lists = std::fs::read_dir("/var/lib/apt/lists").map(Iterator::count).unwrap_or_default();
    // A fresh image has only the folders `lock` and `partial`.
    if lists < 3 {
        ui.lines("apt-get update");
        apt(ui, &["update"])?;
    }
    let downgrade = qemu_utils(&packages);
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    if let Some(utils) = &downgrade {
        arguments.extend(["--allow-downgrades", utils]);
    }
    arguments.extend(&packages);
    ui.lines(&format!("apt-get {}", arguments.join(" ")));
    apt(ui, &arguments).with_context(|| format!("install them by hand: {by_hand}"))?;
    let left = missing(needs);
    if !left.is_empty() {
        bail!("apt-get installed {} but what they should bring is not there", left.join(", "));
    }
    Ok(())
}

/// Adds rustup targets that are missing.
///
/// # Errors
/// No rustup, or it fails: the message holds the command to type.
pub(crate) fn targets(ui: &mut Ui, targets: &[&str]) -> Result<()> {
    rustup(ui, "target", targets)
}

/// Adds rustup components that are missing.
///
/// # Errors
/// No rustup, or it fails: the message holds the command to type.
pub(crate) fn components(ui: &mut Ui, components: &[&str]) -> Result<()> {
    rustup(ui, "component", components)
}

fn rustup(ui: &mut Ui, kind: &str, names: &[&str]) -> Result<()> {
    let by_hand = || format!("rustup {kind} add {}", names.join(" "));
    let list = capture(Command::new("rustup").args([kind, "list", "--installed"]))
        .with_context(|| format!("these must be installed: {} (with rustup: {})", names.join(", "), by_hand()))?;
    let wanted: Vec<&&str> = names.iter().filter(|name| !list.lines().any(|line| line.starts_with(**name))).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("rustup");
    command.args([kind, "add"]).args(wanted);
    ui.lines(&process_text(&command));
    succeed(ui, &mut command, |line| Some(line.to_owned())).with_context(|| format!("by hand: {}", by_hand()))?;
    Ok(())
}

fn process_text(command: &Command) -> String {
    crate::process::shown(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_missing_is_named_and_each_once() {
        let there = need("coreutils", "ls");
        let gone = need("no-such-package", "no-such-program");
        let file = need("another", "/no/such/file");
        assert_eq!(missing(&[&[there, gone], &[gone, file]]), ["another", "no-such-package"]);
    }
}
