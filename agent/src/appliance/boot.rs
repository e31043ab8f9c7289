//! From the kernel's bare root to a board that can run containers, and back down.
//!
//! Owns mounts, modules and the host's name. Starts no process.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_move, mount_remount, unmount};
use rustix::system::RebootCommand;

use crate::config::{Appliance, Config};

use super::netlink;

/// Where the kernel's modules lie, as plain `NAME.ko`.
const MODULES: &str = "/lib/modules";
/// The folder on which the root is bound so that it can be moved.
const NEW_ROOT: &str = "/.root";
/// How long the state device may take to appear: SD cards and USB disks are found late.
const DEVICE_PATIENCE: Duration = Duration::from_secs(15);
const DEVICE_PERIOD: Duration = Duration::from_millis(50);

/// Makes standard output and error the console, also where the kernel found none.
pub fn console() {
    if !Path::new("/dev/console").exists() {
        // Nobody could read of a failure here.
        let _ = std::fs::create_dir_all("/dev");
        let _ = mount("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID, None);
    }
    let Ok(console) = OpenOptions::new().read(true).write(true).open("/dev/console") else { return };
    let _ = rustix::stdio::dup2_stdin(&console);
    let _ = rustix::stdio::dup2_stdout(&console);
    let _ = rustix::stdio::dup2_stderr(&console);
}

/// Sets the board up. Every failure is logged with what it means, and the boot goes on.
pub fn boot(config: &Config, board: &Appliance) {
    console();
    step("the root can't be made movable; containers will not start", free_the_root());
    mount_all();
    // The devices' file system was mounted again, above the first console.
    console();
    step("Ctrl-Alt-Del can't be taken", rustix::system::reboot(RebootCommand::CadOff).map_err(Into::into));
    step("a kernel panic will not restart the board", std::fs::write("/proc/sys/kernel/panic", "10"));
    for name in &board.modules {
        let path = Path::new(MODULES).join(format!("{name}.ko"));
        step(&format!("module {} can't be loaded", path.display()), load_module(&path));
    }
    step("the loopback can't be brought up", netlink::set_up("lo"));
    step("the host's name can't be set", set_name(config));
    if let Some(device) = &board.state_device {
        let what = format!(
            "{} can't be mounted on {}; the board keeps nothing over a restart",
            device.display(),
            config.state_dir.display()
        );
        step(&what, mount_state(device, &config.state_dir));
    }
}

/// Restarts, halts or switches the board off, after everything was written. Only returns if the kernel refuses.
pub fn end(config: &Config, command: RebootCommand) -> anyhow::Result<()> {
    if let Err(error) = unmount(&config.state_dir, UnmountFlags::empty())
        && error != rustix::io::Errno::INVAL
    {
        log::warn!("{} can't be unmounted ({error}), it is made read-only", config.state_dir.display());
        let read_only = mount_remount(&config.state_dir, MountFlags::RDONLY, "");
        step("the state can't be made read-only", read_only.map_err(Into::into));
    }
    rustix::fs::sync();
    rustix::system::reboot(command).context("the kernel does not restart the board (reboot)")
}

fn step(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        log::error!("boot: {what}: {error}");
    }
}

/// Makes `/` a mount that has a parent. Containers leave their old root by pivot_root(2), which refuses the
/// kernel's first root file system.
fn free_the_root() -> io::Result<()> {
    const RAMFS: i64 = 0x8584_58f6;
    const TMPFS: i64 = 0x0102_1994;
    if !matches!(rustix::fs::statfs("/")?.f_type, RAMFS | TMPFS) {
        return Ok(());
    }
    std::fs::create_dir_all(NEW_ROOT)?;
    mount_bind("/", NEW_ROOT)?;
    std::env::set_current_dir(NEW_ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}

fn mount_all() {
    let safe = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let memory = MountFlags::NOSUID | MountFlags::NODEV;
    for (kind, target, flags, data) in [
        ("proc", "/proc", safe, c""),
        ("sysfs", "/sys", safe, c""),
        ("devtmpfs", "/dev", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=755"),
        ("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, c"gid=5,mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", memory, c"mode=1777"),
        ("tmpfs", "/run", memory, c"mode=755,size=25%"),
        ("tmpfs", "/tmp", memory, c"mode=1777,size=25%"),
        ("cgroup2", "/sys/fs/cgroup", safe, c"nsdelegate"),
    ] {
        let mounted = std::fs::create_dir_all(target).and_then(|()| Ok(mount(kind, target, kind, flags, data)?));
        step(&format!("{kind} can't be mounted on {target}"), mounted);
    }
}

fn load_module(path: &Path) -> io::Result<()> {
    match rustix::system::finit_module(File::open(path)?, c"", 0) {
        // Loaded already, or a part of this kernel.
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => Ok(other?),
    }
}

/// Names the host: the configured name, else `/etc/hostname`, else one from the first network card's address, so
/// that boards flashed from one image differ.
fn set_name(config: &Config) -> io::Result<()> {
    let of_file = || std::fs::read_to_string("/etc/hostname").ok().map(|name| name.trim().to_owned());
    let of_card = || {
        let card = netlink::first_interface().ok().flatten()?;
        let address = std::fs::read_to_string(format!("/sys/class/net/{card}/address")).ok()?;
        let digits: String = address.chars().filter(char::is_ascii_hexdigit).collect();
        Some(format!("skeg-{}", digits.get(6..)?))
    };
    let name = config.node_name.clone().or_else(|| of_file().filter(|name| !name.is_empty())).or_else(of_card);
    Ok(rustix::system::sethostname(name.as_deref().unwrap_or("skeg").as_bytes())?)
}

fn mount_state(device: &Path, target: &Path) -> io::Result<()> {
    let start = Instant::now();
    while !device.exists() {
        if start.elapsed() >= DEVICE_PATIENCE {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no such device after {DEVICE_PATIENCE:?}")));
        }
        std::thread::sleep(DEVICE_PERIOD);
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(target)?;
    Ok(mount(device, target, "ext4", MountFlags::NODEV | MountFlags::NOATIME, None)?)
}
