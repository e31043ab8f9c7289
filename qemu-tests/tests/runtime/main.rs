//! The runtime's own tests as root of a Debian kernel, on both architectures: there every cgroup is of version 2, which
//! the machine of a developer may lack. What they print is printed, so that whoever counts tests counts theirs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use skeg_disk::board::{Architecture, Board};
use skeg_disk::initramfs::Initramfs;
use skeg_disk::kernel::KernelPackage;
use skeg_qemu_tests::machine::{Hardware, Machine, make_disk, with_back_door};
use skeg_qemu_tests::{debian, repository};

const INIT: &str = include_str!("init.sh");
/// Folders that the guest mounts something on or writes into.
const FOLDERS: [&str; 6] = ["/dev", "/proc", "/sys", "/run", "/tmp", "/etc"];
/// Busybox' init starts nothing of its own.
const INITTAB: &str = "::ctrlaltdel:/bin/reboot\n";
/// Size of the disk that the tests work on: Linux 6.1 maps ids on ext4, not on tmpfs. The file is sparse.
const DISK: u64 = 256 << 20;
/// What holds for every machine alike is tested on this one.
const SKIPPED: [&str; 3] = ["config::", "seccomp::tests", "cgroup::version"];

#[test]
fn the_runtime_s_tests_pass_on_version_two_on_x86() {
    test("qemu-x86_64.toml");
}

#[test]
fn the_runtime_s_tests_pass_on_version_two_on_arm() {
    test("qemu-aarch64.toml");
}

fn test(board: &str) {
    if let Some(missing) = skeg_qemu_tests::missing_program() {
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        println!("skipped: {missing}");
        return;
    }
    if let Err(error) = run(board) {
        panic!("{board}: {error:#}");
    }
}

fn run(board: &str) -> Result<()> {
    let board = Board::load(&repository().join("board-configs").join(board))?;
    let debian = debian::fetch(&board)?;
    let kernel = KernelPackage::open(&debian.kernel, board.architecture)?;
    let folder = tempfile::tempdir()?;
    let (initramfs, disk) = (folder.path().join("initramfs"), folder.path().join("disk"));
    fs::write(&initramfs, system(&board, &kernel, &debian.busybox)?)?;
    make_disk(&disk, DISK)?;
    let hardware = Hardware {
        kernel: kernel.image(),
        initramfs: &initramfs,
        disk: &disk.to_string_lossy(),
        network: false,
        clock: "utc",
    };
    let mut machine = Machine::start(&board, &hardware, folder.path())?;
    let done = run_tests(&mut machine);
    done.with_context(|| format!("---- console\n{}\n---- failure", machine.tail()))?;
    println!("{}: {:.1?}", board.description, machine.age());
    machine.cut_power()
}

fn run_tests(machine: &mut Machine) -> Result<()> {
    machine.wait_for_back_door()?;
    machine.wait_for("test -e /run/ready")?;
    let skipped: String = SKIPPED.iter().map(|name| format!(" --skip {name}")).collect();
    let tests = machine.run(&format!("cd /tmp && RUST_BACKTRACE=0 /runtime-tests --show-output{skipped}"))?;
    println!("{}", tests.text);
    ensure!(tests.code == 0, "the tests ended with {}", tests.code);
    // They may leave nothing behind.
    let left = machine.succeed("find /sys/fs/cgroup -mindepth 1 -type d")?;
    ensure!(left.is_empty(), "cgroups are left:\n{left}");
    Ok(())
}

/// A system with the tests as `/runtime-tests`.
fn system(board: &Board, kernel: &KernelPackage, busybox: &Path) -> Result<Vec<u8>> {
    let mut archive = Initramfs::new();
    for folder in FOLDERS {
        archive.folder(folder, 0o755)?;
    }
    let wanted = ["virtio_pci", "virtio_blk", "overlay"].map(String::from);
    for (index, module) in kernel.modules(&wanted)?.into_iter().enumerate() {
        // In the order in which they need each other.
        archive.file(&format!("/lib/modules/{index:02}-{}.ko", module.name), 0o644, module.bytes)?;
    }
    let program = test_program(board.architecture)?;
    let bytes = fs::read(&program)
        .with_context(|| format!("cannot read {}; cargo xtask test builds it in its step qemu", program.display()))?;
    archive.file("/runtime-tests", 0o755, bytes)?;
    // The tests find these where the sources were when they were built.
    let golden = repository().canonicalize()?.join("runtime/tests/golden");
    for entry in fs::read_dir(&golden)? {
        let path = entry?.path();
        archive.file(path.to_str().context("the repository's path is UTF-8")?, 0o644, fs::read(&path)?)?;
    }
    archive.file("/etc/inittab", 0o644, INITTAB.into())?;
    archive.file("/init", 0o755, INIT.into())?;
    with_back_door(&mut archive, board, fs::read(busybox)?)?;
    Ok(archive.finish()?)
}

/// Where the static program with the runtime's tests lies.
fn test_program(architecture: Architecture) -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-musl", architecture.kernel_name());
    Ok(repository().canonicalize()?.join("target").join(target).join("debug/runtime-tests"))
}
