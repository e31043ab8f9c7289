//! A site for one board: a controller on this machine, a disk, an initramfs, and the board when it is on.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use skeg_disk::board::{Architecture, Board};
use skeg_disk::config::{Device, Network};
use skeg_disk::initramfs::Initramfs;
use skeg_disk::kernel::KernelPackage;
use skeg_qemu_tests::controller::Controller;
use skeg_qemu_tests::image::Image;
use skeg_qemu_tests::machine::{Hardware, Machine, make_disk, with_back_door};
use skeg_qemu_tests::{binary, debian, repository};
use tempfile::TempDir;

/// Size of the board's disk. The file is sparse.
const DISK: u64 = 256 << 20;
/// Where a guest finds this machine's loopback (QEMU's user network).
const HOST: &str = "10.0.2.2";

/// Everything around one board.
pub struct Site {
    board: Board,
    kernel: KernelPackage,
    /// Its controller.
    pub controller: Controller,
    folder: TempDir,
}

impl Site {
    /// Builds the site of the board in `board-configs/FILE`; its node is called `node`.
    pub fn new(file: &str, node: &str, network: Network) -> Result<Site> {
        let board = Board::load(&repository().join("board-configs").join(file))?;
        let skegd = binary("skeg-agent", "skegd", board.architecture.kernel_name())?;
        let skeg = binary("skeg-controller", "skeg", std::env::consts::ARCH)?;
        let debian = debian::fetch(&board)?;
        let kernel = KernelPackage::open(&debian.kernel, board.architecture)?;
        let folder = tempfile::tempdir()?;
        let controller = Controller::start(&skeg, &folder.path().join("controller"))?;

        let token = controller.skeg(&["token", "create"])?;
        let address = format!("{HOST}:{}", controller.port()?);
        let device = Device { node_name: node.to_owned(), controller: Some(address), network };
        let skegd = fs::read(&skegd).with_context(|| format!("cannot read {}", skegd.display()))?;
        let mut archive = Initramfs::appliance(&board, &kernel, &device, skegd, Some(token.trim()))?;
        with_back_door(&mut archive, &board, fs::read(&debian.busybox)?)?;
        fs::write(folder.path().join("initramfs"), archive.finish()?)?;
        let site = Site { board, kernel, controller, folder };
        make_disk(&site.disk(), DISK)?;
        Ok(site)
    }

    /// Path of the image of the board's disk.
    pub fn disk(&self) -> PathBuf {
        self.path("disk")
    }

    /// Path of something in the site's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Switches the board on. The same disk is in it every time.
    pub fn switch_on(&self, network: bool, clock: &str) -> Result<Machine> {
        self.switch_on_with(&self.disk().to_string_lossy(), network, clock)
    }

    /// Switches the board on with a disk that QEMU knows as `disk`.
    pub fn switch_on_with(&self, disk: &str, network: bool, clock: &str) -> Result<Machine> {
        let hardware =
            Hardware { kernel: self.kernel.image(), initramfs: &self.path("initramfs"), disk, network, clock };
        let mut machine = Machine::start(&self.board, &hardware, self.folder.path())?;
        machine.wait_for_back_door().with_context(|| self.evidence("switched on", &machine))?;
        Ok(machine)
    }

    /// Pushes busybox for this board only, with one more layer for each folder; returns the image's digest.
    pub fn push_with_layers(&self, name: &str, folders: &[PathBuf]) -> Result<String> {
        let programs = BTreeMap::from([(self.board.architecture, debian::fetch(&self.board)?.busybox)]);
        let image = Image::with_layers(&programs, folders)?;
        self.controller.push(&image.reference(), name)?;
        image.digest()
    }

    /// What a failure has to show: the end of the board's console and what the controller logged.
    pub fn evidence(&self, when: &str, machine: &Machine) -> String {
        format!("{when}\n---- controller\n{}\n---- console\n{}\n---- failure", self.controller.log(), machine.tail())
    }

    /// Pushes busybox for every architecture that boards have.
    pub fn push_busybox(&self, name: &str) -> Result<()> {
        let mut programs = BTreeMap::new();
        for file in ["qemu-x86_64.toml", "qemu-aarch64.toml"] {
            let board = Board::load(&repository().join("board-configs").join(file))?;
            programs.insert(board.architecture, debian::fetch(&board)?.busybox);
        }
        self.controller.push(&Image::busybox(&programs)?.reference(), name)
    }

    /// The board's processor.
    pub fn architecture(&self) -> Architecture {
        self.board.architecture
    }

    /// Checks the file system of a board that is off; its journal is replayed first.
    pub fn check_disk(&self) -> Result<()> {
        let output = std::process::Command::new("e2fsck").arg("-fp").arg(self.disk()).output()?;
        // 1 says that something was mended, which is what replaying a journal counts as.
        let whole = matches!(output.status.code(), Some(0 | 1));
        anyhow::ensure!(whole, "e2fsck: {}\n{}", output.status, String::from_utf8_lossy(&output.stdout));
        Ok(())
    }
}
