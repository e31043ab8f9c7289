//! The OCI command line: `skegd oci`, or the same program called `skeg-oci`.
//!
//! Owns containers that engines and people make one by one, apart from the agent's. It keeps no process running: each
//! call reads what is written below `--root`, asks the kernel, acts and ends. Must not use the agent or its loop.

mod arguments;
mod console;
mod container;
mod end;
mod exec;
mod foreground;
mod home;
mod log;
mod notify;
mod resources;
mod show;
mod start;
mod state;
mod store;

use anyhow::{Context as _, bail};

pub(crate) use arguments::Arguments;
use arguments::{Command, Global};

/// What runc's `exec` exits with when the process was not started.
const EXEC_FAILED: i32 = 255;

/// Whether this program's arguments name a command that starts a process. A container's name may look like one, too.
pub(crate) fn starts_something() -> bool {
    std::env::args_os().any(|word| ["create", "run", "exec"].iter().any(|command| word == *command))
}

/// Carries out one command; says the exit code.
pub(crate) fn main(arguments: &mut Arguments) -> i32 {
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            ::log::error!("{error:#}");
            if matches!(arguments.command, Command::Exec(_)) { EXEC_FAILED } else { 1 }
        }
    }
}

fn run(arguments: &mut Arguments) -> anyhow::Result<i32> {
    let Arguments { global, command } = arguments;
    // Before anything is opened: what is to be passed on must not be this program's own.
    count_inherited(command);
    log::start(global)?;
    refuse_other_managers(global)?;
    let root = std::path::absolute(&global.root).context("--root")?;
    let root = root.as_path();
    match command {
        // A start runs hooks in the container.
        Command::Create(_) | Command::Start { .. } | Command::Run(_) | Command::Exec(_) => {
            skeg_runtime::protect_executable().context("containers can't be kept from this program's file")?;
        }
        _ => {}
    }
    match command {
        Command::Create(options) => start::create(root, options)?,
        Command::Start { id } => start::start(root, id)?,
        Command::Run(options) => return start::run(root, options),
        Command::State { id } => show::state(root, id)?,
        Command::Kill { all, id, signal } => end::kill(root, id, signal, *all)?,
        Command::Delete { force, regex: true, id } => end::delete_matching(root, id, *force)?,
        Command::Delete { force, regex: false, id } => end::delete(root, id, *force)?,
        Command::Exec(options) => return exec::exec(root, options),
        Command::List { format, quiet } => show::list(root, *format, *quiet)?,
        Command::Ps { format, id, ps } => show::ps(root, id, *format, ps)?,
        Command::Pause { id } => end::pause(root, id)?,
        Command::Resume { id } => end::resume(root, id)?,
        Command::Update(options) => resources::update(root, options)?,
        Command::Events { stats, interval, id } => resources::events(root, id, *stats, *interval)?,
        Command::Features => show::print_json(&skeg_runtime::features(), true)?,
        Command::Spec { rootless: true, .. } => {
            bail!("containers without root are not supported; leave --rootless out")
        }
        Command::Spec { bundle, rootless: false } => show::spec(bundle)?,
        Command::Plan { bundle } => start::plan(bundle)?,
    }
    Ok(0)
}

fn refuse_other_managers(global: &Global) -> anyhow::Result<()> {
    if global.systemd_cgroup {
        bail!("cgroups by systemd are not supported; leave --systemd-cgroup out and use the engine's cgroupfs manager");
    }
    if global.cgroup_manager != "cgroupfs" {
        bail!("cgroup manager {:?} is not supported; use cgroupfs", global.cgroup_manager);
    }
    Ok(())
}

/// Counts the descriptors that a container is to get, those of LISTEN_FDS included: up to the first that is not open.
/// Behind it would stand this program's own.
fn count_inherited(command: &mut Command) {
    let asked = match command {
        Command::Create(options) => &mut options.preserve_fds,
        Command::Run(options) => &mut options.create.preserve_fds,
        Command::Exec(options) => &mut options.preserve_fds,
        _ => return,
    };
    let end = asked.saturating_add(start::listening()).saturating_add(3);
    let is_open = |fd: &u32| std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok();
    *asked = (3..end).take_while(is_open).count() as u32;
}
