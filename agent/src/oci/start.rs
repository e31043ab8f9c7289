//! `create`, `start` and `run`: from a bundle to a container.
//!
//! Owns the order in which a container's parts are made, and that a failure leaves none of them. Must not know how a
//! process is started: that is the runtime's.
//!
//! ```text
//!   config.json is read and checked      nothing is made of a bad one
//!   the folder is made and locked        of several callers, one wins
//!   state.json names the cgroup          from here on `delete --force` finds what is made
//!   the cgroup is made, or was empty     one that is in use is somebody else's
//!   state.json says that it is ours      from here on `delete --force` ends what runs in it
//!   the process is cloned                in its cgroup; `create` leaves it waiting at start.sock
//!   state.json names the process
//!   the pid file is written              engines wait for it
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use rustix::process::{getpid, set_child_subreaper};
use skeg_runtime::{
    Cgroup, CgroupPath, Extras, Plan, Reaper, Request, Root, StartRequest, Started, Stdio, bind_start_socket,
    host_cgroups, oci, read_config, run_hooks, start_waiting,
};

use super::arguments::{Create, Run};
use super::console::Console;
use super::container::{CONFIG, Container, START_SOCKET};
use super::end;
use super::foreground::{Signals, attend};
use super::home;
use super::notify::{self, Notify};
use super::state::{Init, Record, Status};
use super::store::{Folder, Locked, Missing};
use crate::logs;

/// A bundle that was read.
struct Bundle {
    path: PathBuf,
    rootfs: PathBuf,
    spec: oci::Spec,
}

impl Bundle {
    /// Reads and checks a bundle. Nothing is made of it.
    fn read(path: &Path, config: Option<&Path>) -> anyhow::Result<Bundle> {
        let path = fs::canonicalize(path).with_context(|| format!("cannot use the bundle {path:?}"))?;
        let spec = match config {
            Some(config) => read_config(config)?,
            None => read_config(&path.join(CONFIG))?,
        };
        let root = spec.root().as_ref().map(oci::Root::path).context("config.json: root must be given")?;
        let rootfs = path.join(root);
        let rootfs = fs::canonicalize(&rootfs).with_context(|| format!("root.path: cannot use {rootfs:?}"))?;
        Ok(Bundle { path, rootfs, spec })
    }

    fn record(&self, id: &str, cgroup: BTreeMap<String, PathBuf>) -> Record {
        Record {
            oci_version: self.spec.version().clone(),
            id: id.into(),
            bundle: self.path.clone(),
            rootfs: self.rootfs.clone(),
            created: logs::timestamp(SystemTime::now()),
            annotations: self.spec.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
            cgroup,
            owns_cgroup: false,
            keyring: None,
            init: None,
        }
    }
}

/// `plan`
pub(crate) fn plan(bundle: &Path) -> anyhow::Result<()> {
    let bundle = Bundle::read(bundle, None)?;
    let root = Root::Folder(bundle.rootfs.clone());
    let request = Request {
        spec: &bundle.spec,
        root: &root,
        cgroup: None,
        network: None,
        user: None,
        stdio: own_streams()?,
        reaper: Reaper::Caller,
        extras: Extras::default(),
    };
    super::show::print(Plan::compile(request)?.to_string().as_bytes())
}

/// A container whose process was started.
struct Made {
    locked: Locked,
    record: Record,
    spec: oci::Spec,
    started: Started,
    /// It waits at its start socket.
    waits: bool,
    console: Console,
}

/// For what a container is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// To wait for `start`.
    Create,
    /// To run at once, without anybody who waits for it.
    Detach,
    /// To run at once, with this process in front of it.
    Foreground,
}

/// Makes a container. A failure leaves nothing of it.
fn make(root: &Path, options: &Create, purpose: Purpose) -> anyhow::Result<Made> {
    let bundle = Bundle::read(&options.bundle, options.config.as_deref())?;
    let path = bundle.spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_deref());
    let path = CgroupPath::new(path, &options.id)?;
    let terminal = bundle.spec.process().as_ref().and_then(oci::Process::terminal) == Some(true);
    let console = Console::new(terminal, options.console_socket.as_deref(), purpose != Purpose::Foreground)?;
    let host = host_cgroups()?;
    let locked = Folder::new(root, &options.id)?.create(root)?;
    let mut record = bundle.record(&options.id, Cgroup::place(&host, &path)?.folders());
    let mut spec = bundle.spec;
    let last_hooks = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().as_ref());
    let waits = purpose == Purpose::Create || last_hooks.is_some_and(|hooks| !hooks.is_empty());
    pass_listening(spec.process_mut().as_mut());
    let made = locked.write(&record).and_then(|()| {
        let cgroup = Cgroup::prepare(&host, &path)?;
        record.owns_cgroup = true;
        locked.write(&record)?;
        let config = locked.file(CONFIG);
        let copy = serde_json::to_vec(&spec).context("config.json cannot be written as JSON")?;
        fs::write(&config, copy).with_context(|| format!("cannot write {config:?}"))?;
        notify::prepare(&locked, &mut spec)?;
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
        cgroup.limit(&resources.unwrap_or_else(no_limits))?;
        start_process(&locked, &mut record, &mut spec, &cgroup, &console, options, waits)
    });
    match made {
        Ok(started) => Ok(Made { locked, record, spec, started, waits, console }),
        Err(error) => {
            undo(locked, &record, &spec);
            Err(error)
        }
    }
}

/// A specification without resources bounds nothing; the type's own default would deny all devices.
fn no_limits() -> oci::LinuxResources {
    let mut resources = oci::LinuxResources::default();
    resources.set_devices(None);
    resources
}

/// Starts the process of a container whose other parts are there.
fn start_process(
    locked: &Locked,
    record: &mut Record,
    spec: &mut oci::Spec,
    cgroup: &Cgroup,
    console: &Console,
    options: &Create,
    waits: bool,
) -> anyhow::Result<Started> {
    let root = Root::Folder(record.rootfs.clone());
    let hooks = record.hook_state();
    let mounts = spec.mounts().clone().unwrap_or_default();
    if let Some(process) = spec.process_mut() {
        home::add(process, &record.rootfs, &mounts);
    }
    let socket = locked.file(START_SOCKET);
    let start_socket = waits.then(|| bind_start_socket(&socket).with_context(|| format!("cannot make {socket:?}")));
    record.keyring = (!options.no_new_keyring).then(|| format!("_ses.{}", options.id));
    let keyring = record.keyring.clone();
    let pid_file = options.pid_file.as_deref().map(std::path::absolute).transpose().context("--pid-file")?;
    // Relative sources of bind mounts count from the bundle (config.md, "Mounts").
    std::env::set_current_dir(&record.bundle).with_context(|| format!("cannot enter {:?}", record.bundle))?;
    let request = Request {
        spec,
        root: &root,
        cgroup: Some(cgroup),
        network: None,
        user: None,
        stdio: own_streams()?,
        reaper: Reaper::Caller,
        extras: Extras {
            start_socket: start_socket.transpose()?,
            hooks: Some(&hooks),
            console: console.end()?,
            preserve_fds: options.preserve_fds,
            no_pivot: options.no_pivot,
            keyring,
        },
    };
    let started = Plan::compile(request)?.start()?;
    record.init = Some(Init::of(started.pid).context("cannot look at the new process")?);
    locked.write(record)?;
    if let Some(path) = pid_file {
        write_pid_file(&path, started.pid)?;
    }
    Ok(started)
}

/// Copies of this process's standard streams.
pub(crate) fn own_streams() -> anyhow::Result<Stdio> {
    let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().context("cannot copy a standard stream");
    Ok(Stdio {
        stdin: copy(rustix::stdio::stdin())?,
        stdout: copy(rustix::stdio::stdout())?,
        stderr: copy(rustix::stdio::stderr())?,
    })
}

/// The number of descriptors that socket activation gave to this process, see sd_listen_fds(3).
pub(crate) fn listening() -> u32 {
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u32>().ok());
    // Engines that pass their own on leave the process's number out.
    let ours = number("LISTEN_PID").is_none_or(|pid| pid == std::process::id());
    number("LISTEN_FDS").filter(|_| ours).unwrap_or(0)
}

/// Tells a process of the descriptors of socket activation.
pub(crate) fn pass_listening(process: Option<&mut oci::Process>) {
    let count = listening();
    if let Some(process) = process.filter(|_| count > 0) {
        process.env_mut().get_or_insert_default().extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".into()]);
    }
}

/// Writes a pid file; a reader sees it whole or not at all.
pub(crate) fn write_pid_file(path: &Path, pid: i32) -> anyhow::Result<()> {
    let named = || format!("cannot write the pid file {path:?}");
    let name = path.file_name().with_context(named)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    let new = path.with_file_name(hidden);
    // What was left there goes; a link that somebody else has put there is not followed.
    match fs::remove_file(&new) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        removed => removed.with_context(named)?,
    }
    let mut file = fs::File::create_new(&new).with_context(named)?;
    file.write_all(pid.to_string().as_bytes()).with_context(named)?;
    fs::rename(&new, path).with_context(named)
}

/// `create`
pub(crate) fn create(root: &Path, options: &Create) -> anyhow::Result<()> {
    make(root, options, Purpose::Create).map(drop)
}

/// `start`
pub(crate) fn start(root: &Path, id: &str) -> anyhow::Result<()> {
    let locked = Folder::new(root, id)?.lock()?;
    let container = Container::open(locked.clone())?;
    let status = container.status()?;
    let init = container.init()?;
    let (Status::Created, Some(pidfd), Some(Init { pid, .. })) = (status, init, container.record.init) else {
        bail!("cannot start container {id:?}: it is {status}, not created");
    };
    let spec = container.spec()?;
    let notify = Notify::open(&locked)?;
    let started = Started { pid, pidfd };
    match let_run(&locked, &container.record, &spec, &started).and_then(|()| poststart(&spec, &container.record, pid)) {
        // It waits on, and can only be deleted.
        Err(error) if spec.process().is_none() => Err(error),
        Err(error) => {
            undo(locked, &container.record, &spec);
            Err(error)
        }
        Ok(()) => {
            drop(locked);
            notify.map_or(Ok(()), |notify| notify.wait(pid, &started.pidfd))
        }
    }
}

/// Lets a container that waits run its program.
fn let_run(locked: &Locked, record: &Record, spec: &oci::Spec, started: &Started) -> anyhow::Result<()> {
    let cgroup = record.cgroup()?;
    let request = StartRequest {
        socket: &locked.file(START_SOCKET),
        pid: started.pid,
        target: started.pidfd.as_fd(),
        spec,
        cgroup: cgroup.as_ref(),
        hooks: &record.hook_state(),
    };
    Ok(start_waiting(request)?)
}

/// Runs the poststart hooks.
fn poststart(spec: &oci::Spec, record: &Record, pid: i32) -> anyhow::Result<()> {
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.poststart().as_deref()).unwrap_or_default();
    if hooks.is_empty() {
        return Ok(());
    }
    Ok(run_hooks("poststart", hooks, &record.hook_state().json(Some(pid), oci::ContainerState::Running))?)
}

/// Removes a container that could not be made or started (runtime.md, "Lifecycle", steps 12 and 13). The error that
/// led here is the one to tell; one more is only logged.
fn undo(locked: Locked, record: &Record, spec: &oci::Spec) {
    if let Err(error) = end::remove(locked, record) {
        log::error!("container {:?} is not removed: {error:#}", record.id);
    }
    end::poststop(spec, record);
}

/// `run`; says the program's exit code.
pub(crate) fn run(root: &Path, options: &Run) -> anyhow::Result<i32> {
    if !options.detach && !options.no_subreaper {
        set_child_subreaper(Some(getpid())).context("cannot become the one to whom orphans fall")?;
    }
    // Before the clone: no signal and no end of a child is lost.
    let signals = if options.detach { None } else { Some(Signals::catch()?) };
    let purpose = if options.detach { Purpose::Detach } else { Purpose::Foreground };
    let Made { locked, record, spec, started, waits, console } = make(root, &options.create, purpose)?;
    let notify = Notify::open(&locked)?;
    let begun = if waits { let_run(&locked, &record, &spec, &started) } else { Ok(()) };
    if let Err(error) = begun.and_then(|()| poststart(&spec, &record, started.pid)) {
        undo(locked, &record, &spec);
        return Err(error);
    }
    let folder = locked.clone();
    drop(locked);
    let ended = match &signals {
        Some(signals) => console.receive().and_then(|master| attend(&started, signals, master, notify.as_ref())),
        None => notify.map_or(Ok(()), |notify| notify.wait(started.pid, &started.pidfd)).map(|()| 0),
    };
    if ended.is_ok() && (options.detach || options.keep) {
        return ended;
    }
    match folder.lock() {
        // Somebody else has deleted it.
        Err(error) if error.is::<Missing>() => return ended,
        locked => end::remove(locked?, &record)?,
    }
    end::poststop(&spec, &record);
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let (path, victim) = (folder.path().join("pid"), folder.path().join("victim"));
        fs::write(&victim, "whole").unwrap();
        for link in ["pid", ".pid"] {
            std::os::unix::fs::symlink(&victim, folder.path().join(link)).unwrap();
        }
        write_pid_file(&path, 7).unwrap();
        assert_eq!((fs::read(&path).unwrap(), fs::read(&victim).unwrap()), (b"7".to_vec(), b"whole".to_vec()));
    }
}
