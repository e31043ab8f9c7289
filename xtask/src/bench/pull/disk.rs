//! A file system of one pull: ext4 in a file in memory, fresh each time, that tells how much was written to it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::capture;

/// Size of the disk in bytes; the file that holds it is sparse.
const SIZE: u64 = 6 << 30;

/// A mounted disk; unmounted and given back when it is dropped.
pub(super) struct Disk {
    device: String,
    pub(super) path: PathBuf,
}

impl Disk {
    /// Makes the file system and mounts it below a folder, which lies in memory.
    pub(super) fn mount(folder: &Path) -> Result<Disk> {
        let (file, path) = (folder.join("disk.img"), folder.join("disk"));
        fs::create_dir_all(&path)?;
        File::create(&file)?.set_len(SIZE)?;
        capture(Command::new("mkfs.ext4").args(["-q", "-F", "-E", "lazy_itable_init=1,nodiscard"]).arg(&file))?;
        let device = capture(Command::new("losetup").args(["--find", "--show"]).arg(&file))?.trim().to_owned();
        let disk = Disk { device, path };
        // Otherwise the kernel fills the tables of inodes meanwhile: 100 MB that no puller wrote.
        capture(Command::new("mount").args(["-o", "noinit_itable"]).arg(&disk.device).arg(&disk.path))?;
        Ok(disk)
    }

    /// Tells the bytes that were written to the device so far, everything that waits included.
    pub(super) fn written(&self) -> Result<u64> {
        capture(Command::new("sync").arg("--file-system").arg(&self.path))?;
        let name = self.device.trim_start_matches("/dev/");
        let path = format!("/sys/block/{name}/stat");
        let text = fs::read_to_string(&path).context(path)?;
        // Documentation/block/stat.rst: the seventh field counts sectors of 512 bytes.
        let sectors: u64 = text.split_whitespace().nth(6).context("the device's counters")?.parse()?;
        Ok(sectors * 512)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for command in
            [Command::new("umount").arg(&self.path), Command::new("losetup").arg("--detach").arg(&self.device)]
        {
            if let Err(error) = capture(command) {
                eprintln!("clean-up: {error:#}");
            }
        }
    }
}
