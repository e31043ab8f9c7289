//! Kernels and busybox from Debian's archive, for any architecture, in `target/skeg-cache/`.
//!
//! Works on package lists of its own, so that this machine's configuration and installed packages stay as they
//! are. Delete the folder to get newer packages.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use skeg_disk::board::Board;

use crate::{repository, succeed};

/// What Debian has for one architecture, unpacked.
#[derive(Debug)]
pub struct Debian {
    /// Folder with `boot/` and `lib/modules/` of the board's kernel.
    pub kernel: PathBuf,
    /// A static busybox for the board's processor.
    pub busybox: PathBuf,
}

/// Returns what `board` needs from Debian, downloading it unless it is there.
pub fn fetch(board: &Board) -> Result<Debian> {
    let architecture = board.architecture.debian_name();
    let folder = repository().join("target/skeg-cache").join(architecture);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    // One test at a time: the lock is let go when the file is closed.
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    let kernel = folder.join(&board.kernel.package);
    let busybox = folder.join("busybox-static");
    let missing: Vec<(&str, &Path)> =
        [(board.kernel.package.as_str(), kernel.as_path()), ("busybox-static", busybox.as_path())]
            .into_iter()
            .filter(|(_, unpacked)| !unpacked.exists())
            .collect();
    if !missing.is_empty() {
        let apt = Apt::new(&folder.join("apt"), architecture)?;
        for (package, unpacked) in missing {
            apt.unpack(package, unpacked)
                .with_context(|| format!("{package} of {architecture} does not come from Debian's archive"))?;
        }
    }
    Ok(Debian { kernel, busybox: busybox.join("bin/busybox") })
}

/// apt with state of its own and this machine's list of archives.
struct Apt {
    folder: PathBuf,
    configuration: PathBuf,
}

impl Apt {
    fn new(folder: &Path, architecture: &str) -> Result<Apt> {
        fs::create_dir_all(folder.join("lists/partial"))?;
        fs::create_dir_all(folder.join("cache/archives/partial"))?;
        fs::write(folder.join("status"), "")?;
        let here = folder.display();
        let configuration = folder.join("apt.conf");
        fs::write(
            &configuration,
            format!(
                "APT::Architecture \"{architecture}\";\n#clear APT::Architectures;\n\
                 APT::Architectures {{ \"{architecture}\"; }};\nAPT::Sandbox::User \"root\";\n\
                 Dir::State \"{here}\";\nDir::State::status \"{here}/status\";\nDir::Cache \"{here}/cache\";\n\
                 Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n"
            ),
        )?;
        let apt = Apt { folder: folder.to_owned(), configuration };
        succeed(apt.command("apt-get").args(["--quiet", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.configuration);
        command
    }

    /// Downloads `package`, or the kernel that it stands for, and unpacks it as `target`.
    fn unpack(&self, package: &str, target: &Path) -> Result<()> {
        let real = self.real_package(package)?;
        let partial = target.with_extension("partial");
        if partial.exists() {
            fs::remove_dir_all(&partial)?;
        }
        let downloads = tempfile::tempdir_in(&self.folder)?;
        succeed(self.command("apt-get").args(["--quiet", "download", &real]).current_dir(downloads.path()))?;
        let archive = fs::read_dir(downloads.path())?.next().context("apt-get downloaded nothing")??.path();
        succeed(Command::new("dpkg-deb").arg("-x").args([&archive, &partial]))?;
        fs::rename(&partial, target)?;
        Ok(())
    }

    /// Follows a metapackage such as `linux-image-cloud-arm64` to the versioned kernel that it depends on.
    /// Any other package stands for itself.
    fn real_package(&self, package: &str) -> Result<String> {
        let text = succeed(self.command("apt-cache").args(["depends", "--important", package]))?;
        let mut needs = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(needs.find(|name| name.starts_with("linux-image-")).unwrap_or(package).to_owned())
    }
}
