//! What the developer's commands need from the machine, and how it gets there: Debian packages by apt, targets and
//! components by rustup. It installs only what is missing, and says exactly what to do where it may not.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{capture, shown, succeed};
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
/// For the comparison with another reader of Compose files.
pub(crate) const COMPOSE: &[Need] = &[need("docker-compose", "docker-compose")];
/// For the tests of the OCI command line with an engine.
pub(crate) const ENGINES: &[Need] = &[
    need("busybox-static", "/bin/busybox"),
    need("containerd", "containerd"),
    need("iproute2", "ip"),
    need("podman", "podman"),
    need("util-linux", "unshare"),
];
/// For the tests of pulls from a registry.
pub(crate) const REGISTRY: &[Need] = &[
    need("buildah", "buildah"),
    need("docker-registry", "docker-registry"),
    need("podman", "podman"),
    need("skopeo", "skopeo"),
    need("umoci", "umoci"),
];
/// For the pull benchmark.
pub(crate) const PULLERS: &[Need] = &[
    need("containerd", "containerd"),
    need("curl", "curl"),
    need("docker-registry", "docker-registry"),
    need("e2fsprogs", "mkfs.ext4"),
    need("iproute2", "ip"),
    need("podman", "podman"),
    need("skopeo", "skopeo"),
    need("time", "/usr/bin/time"),
    need("util-linux", "unshare"),
    need("zstd", "zstd"),
];
/// For the tests of a whole fleet, for those against a real registry, and for the QEMU boots.
pub(crate) const BOARDS: &[Need] = &[
    need("busybox-static", "busybox"),
    need("docker-registry", "docker-registry"),
    need("e2fsprogs", "mke2fs"),
    need("file", "file"),
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

/// apt refuses Debian's qemu packages beside a newer qemu-utils: gives `qemu-utils=VERSION` to go back to, if so.
fn older_qemu_utils(packages: &[&str]) -> Option<String> {
    packages.iter().any(|package| package.starts_with("qemu-system")).then_some(())?;
    let policy = |package: &str| capture(Command::new("apt-cache").args(["policy", package])).ok();
    go_back(&policy("qemu-utils")?, &policy("qemu-system-x86")?)
}

/// Compares what `apt-cache policy` says of what is installed and of what is to be.
fn go_back(utils: &str, system: &str) -> Option<String> {
    let field = |policy: &str, name: &str| {
        policy.lines().find_map(|line| line.trim().strip_prefix(name).map(|value| value.trim().to_owned()))
    };
    let (installed, wanted) = (field(utils, "Installed:")?, field(system, "Candidate:")?);
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
    let downgrade = older_qemu_utils(&packages);
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
    ui.lines(&shown(&command));
    succeed(ui, &mut command, |line| Some(line.to_owned())).with_context(|| format!("by hand: {}", by_hand()))?;
    Ok(())
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

    #[test]
    fn a_newer_qemu_utils_goes_back() {
        let policy = |installed: &str, candidate: &str| {
            format!("qemu:\n  Installed: {installed}\n  Candidate: {candidate}\n  Version table:\n")
        };
        let system = policy("(none)", "1:7.2+dfsg-7");
        let newer = policy("1:10.0.2~bpo12", "1:10.0.2~bpo12");
        assert_eq!(go_back(&newer, &system).as_deref(), Some("qemu-utils=1:7.2+dfsg-7"));
        assert_eq!(go_back(&policy("1:7.2+dfsg-7", "1:7.2+dfsg-7"), &system), None);
        assert_eq!(go_back(&policy("(none)", "1:7.2+dfsg-7"), &system), None);
    }
}
