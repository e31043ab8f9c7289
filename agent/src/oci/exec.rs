//! `exec`: another process in a container.
//!
//! Owns how options change the container's own process into the new one. Must not know how it is started.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail};
use skeg_runtime::{Cgroup, ExecRequest, Reaper, host_cgroups, oci, read_process};

use super::arguments::Exec;
use super::console::Console;
use super::container::Container;
use super::foreground::{Signals, attend};
use super::home;
use super::start::{own_streams, pass_listening, write_pid_file};
use super::state::Status;

/// Reads UID or UID:GID. Names are refused: they would mean what a file of the image says (CVE-2026-30892).
pub(crate) fn user(text: &str) -> Result<(u32, Option<u32>), String> {
    let number = |part: &str| match part.parse::<u32>() {
        Ok(id) if id != u32::MAX && part.bytes().all(|byte| byte.is_ascii_digit()) => Ok(id),
        _ => Err(format!("{part:?} is not an id between 0 and 4294967294")),
    };
    match text.split_once(':') {
        Some((user, group)) => Ok((number(user)?, Some(number(group)?))),
        None => Ok((number(text)?, None)),
    }
}

/// `exec`; says the process's exit code, or 0 once a detached one runs.
pub(crate) fn exec(root: &Path, options: &Exec) -> anyhow::Result<i32> {
    let container = Container::find(root, &options.id)?;
    match container.status()? {
        Status::Created | Status::Running => {}
        Status::Paused if options.ignore_paused => {}
        Status::Paused => bail!("cannot exec in a paused container; resume it or use --ignore-paused"),
        status @ (Status::Creating | Status::Stopped) => bail!("cannot exec in a container that is {status}"),
    }
    let Some(target) = container.init()? else { bail!("cannot exec in a container that is stopped") };
    let spec = container.spec()?;
    let mut process = match &options.process {
        Some(path) => read_process(path)?,
        None => changed(&spec, options)?,
    };
    pass_listening(Some(&mut process));
    if let Some(init) = &container.record.init {
        // As the container sees it now, with all that is mounted there.
        home::add(&mut process, Path::new(&format!("/proc/{}/root", init.pid)), &[]);
    }
    let console = Console::new(process.terminal() == Some(true), options.console_socket.as_deref(), options.detach)?;
    // Before the clone: no signal and no end of a child is lost.
    let signals = if options.detach { None } else { Some(Signals::catch()?) };
    let cgroup = match container.record.init {
        Some(init) if options.cgroup.is_empty() => container.cgroup()?.beside(init.pid)?,
        _ => cgroup(&container, &options.cgroup)?,
    };
    let started = skeg_runtime::exec(ExecRequest {
        target: target.as_fd(),
        process: &process,
        spec: &spec,
        state: Some(&container.record.hook_state()),
        cgroup: Some(&cgroup),
        stdio: own_streams()?,
        reaper: Reaper::Caller,
        console: console.end()?,
        preserve_fds: options.preserve_fds,
        keyring: container.record.keyring.clone(),
        patience: None,
    })?;
    if let Some(path) = &options.pid_file {
        write_pid_file(path, started.pid)?;
    }
    match signals {
        Some(signals) => attend(&started, &signals, console.receive()?, None),
        None => Ok(0),
    }
}

/// The container's own process with what the options say.
fn changed(spec: &oci::Spec, options: &Exec) -> anyhow::Result<oci::Process> {
    let mut process = spec.process().clone().context("the container's config.json has no process")?;
    if options.command.is_empty() {
        bail!("no command is given; name one, or a file by --process");
    }
    process.set_args(Some(options.command.clone())).set_terminal(Some(options.tty));
    if let Some(cwd) = &options.cwd {
        process.set_cwd(cwd.clone());
    }
    let environment = process.env_mut().get_or_insert_default();
    for entry in &options.env {
        let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        // Of two entries of one name programs take the first.
        environment.retain(|known| name(known) != name(entry));
        environment.push(entry.clone());
    }
    if let Some((user, group)) = options.user {
        process.user_mut().set_uid(user);
        if let Some(group) = group {
            process.user_mut().set_gid(group);
        }
    }
    if !options.additional_gids.is_empty() {
        let mut groups = process.user().additional_gids().clone().unwrap_or_default();
        groups.extend(&options.additional_gids);
        process.user_mut().set_additional_gids(Some(groups));
    }
    if options.apparmor.is_some() {
        process.set_apparmor_profile(options.apparmor.clone());
    }
    if options.process_label.is_some() {
        process.set_selinux_label(options.process_label.clone());
    }
    if options.no_new_privs.is_some() {
        process.set_no_new_privileges(options.no_new_privs);
    }
    add_capabilities(&mut process, &options.cap)?;
    Ok(process)
}

/// Adds to what a process may have and has, but never to what it hands on.
fn add_capabilities(process: &mut oci::Process, names: &[String]) -> anyhow::Result<()> {
    let added = names.iter().map(|name| {
        let known = name.strip_prefix("CAP_").and_then(|name| name.parse::<oci::Capability>().ok());
        known.with_context(|| format!("--cap: {name:?} is not a capability such as CAP_KILL"))
    });
    let added: Vec<oci::Capability> = added.collect::<anyhow::Result<_>>()?;
    if added.is_empty() {
        return Ok(());
    }
    let mut capabilities = process.capabilities().clone().unwrap_or_else(no_capabilities);
    let with = |set: &Option<HashSet<oci::Capability>>| Some(set.iter().flatten().chain(&added).copied().collect());
    let [bounding, effective, permitted] =
        [capabilities.bounding(), capabilities.effective(), capabilities.permitted()].map(with);
    capabilities.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
    process.set_capabilities(Some(capabilities));
    Ok(())
}

/// The type's own default has some in every set.
fn no_capabilities() -> oci::LinuxCapabilities {
    let mut none = oci::LinuxCapabilities::default();
    none.set_bounding(None).set_effective(None).set_permitted(None).set_inheritable(None).set_ambient(None);
    none
}

/// The container's cgroup, or existing ones below it: `[CONTROLLER[,CONTROLLER]:]PATH`.
fn cgroup(container: &Container, below: &[String]) -> anyhow::Result<Cgroup> {
    let mut folders = container.record.cgroup.clone();
    for text in below {
        let (controllers, path) = match text.split_once(':') {
            Some((controllers, path)) => (Some(controllers), path),
            None => (None, text.as_str()),
        };
        let path = Path::new(path.trim_start_matches('/'));
        if !path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            bail!("--cgroup: {text:?} leads out of the container's cgroup");
        }
        enter(&mut folders, controllers, path).with_context(|| format!("--cgroup: {text:?}"))?;
    }
    Ok(Cgroup::restore(&host_cgroups()?, &folders)?)
}

fn enter(folders: &mut BTreeMap<String, PathBuf>, controllers: Option<&str>, path: &Path) -> anyhow::Result<()> {
    let wanted = |list: &str, name: &str| list.split(',').any(|controller| controller == name);
    for name in controllers.iter().flat_map(|names| names.split(',')) {
        if !folders.keys().any(|list| wanted(list, name)) {
            bail!("the container has no controller {name:?}");
        }
    }
    for (list, folder) in folders {
        if controllers.is_none_or(|names| names.split(',').any(|name| wanted(list, name))) {
            folder.push(path);
            std::fs::metadata(&folder).with_context(|| format!("cannot use {folder:?}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cve_2026_30892_exec_takes_no_user_but_by_number() {
        assert_eq!(user("1000"), Ok((1000, None)));
        assert_eq!(user("0:7"), Ok((0, Some(7))));
        for text in
            ["", "root", "1:", ":1", "1:2:3", "-1", "+1", "0x1", " 1", "1 ", "4294967295", "4294967296", "1:root"]
        {
            assert!(user(text).is_err(), "{text:?}");
        }
    }
}
