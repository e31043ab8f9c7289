//! Hooks: programs of the host's or the image's owner that run at fixed points of a container's life.
//!
//! Owns their environment, their state on standard input, their time limit and their order; runtime-spec config.md,
//! "POSIX-platform Hooks". Must not decide what a failure means for the container: the start does.

use crate::cgroup::Cgroup;
use crate::compile::PlanError;
use crate::exec::{self, ExecRequest};
use crate::oci;
use crate::plan::{Exit, Plan, Reaper, StartError, Started, Stdio, wait};
use crate::process::{self, c_string};
use crate::step::{Command, Step};
use crate::sys::StringList;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How much of a failed hook's output an error tells, from its end.
const OUTPUT_MAXIMUM: usize = 2048;
/// How much is read at a time; what a pipe of the kernel's default size holds.
const READ_MAXIMUM: usize = 65536;

/// Why a hook stopped what it belongs to.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be run.
    #[error("hook {at}: cannot run {}", path.display())]
    Start {
        /// Its place in the specification, as `hooks.createRuntime[0]`.
        at: String,
        /// The program.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<StartError>,
    },
    /// It ended with anything but exit code 0.
    #[error("hook {at}: {} ended with {exit:?}{output}", path.display())]
    Failed {
        /// Its place in the specification.
        at: String,
        /// The program.
        path: PathBuf,
        /// How it ended.
        exit: Exit,
        /// The last of what it printed, after a colon; empty if nothing.
        output: String,
    },
    /// It ran longer than it may, and was killed.
    #[error("hook {at}: {} was killed after its timeout of {seconds} s", path.display())]
    Timeout {
        /// Its place in the specification.
        at: String,
        /// The program.
        path: PathBuf,
        /// The limit.
        seconds: u64,
    },
    /// The caller could not prepare or watch it.
    #[error("hook {at}: {call} failed")]
    Caller {
        /// Its place in the specification.
        at: String,
        /// The system call.
        call: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// What hooks are told of their container; runtime-spec runtime.md, "State".
#[derive(Clone, Debug, Default)]
pub struct HookState {
    /// The version of the specification that the container's follows.
    pub version: String,
    /// The container's identifier.
    pub id: String,
    /// The absolute path of its bundle.
    pub bundle: PathBuf,
    /// The specification's annotations.
    pub annotations: HashMap<String, String>,
}

impl HookState {
    /// Writes the state as JSON. `pid` is the container's first process, as whoever reads it sees it.
    pub fn json(&self, pid: Option<i32>, status: oci::ContainerState) -> Vec<u8> {
        serde_json::to_vec(&self.at(pid, status)).expect("texts, numbers and maps of texts have a JSON form")
    }

    pub(crate) fn at(&self, pid: Option<i32>, status: oci::ContainerState) -> oci::State {
        let mut state = oci::State::default();
        state
            .set_version(self.version.clone())
            .set_id(self.id.clone())
            .set_status(status)
            .set_pid(pid)
            .set_bundle(self.bundle.clone())
            .set_annotations(Some(self.annotations.clone()));
        state
    }
}

/// Runs hooks in the caller's namespaces, one after the other; for `poststart` and `poststop`, which are the command line's.
///
/// # Errors
/// The first [`HookError`]; the hooks after it have not run.
pub fn run_hooks(name: &str, hooks: &[oci::Hook], state: &[u8]) -> Result<(), HookError> {
    each(name, hooks, state, |hook, stdio| {
        let mut plan = Plan::empty()?;
        end(&mut plan, hook, stdio)?;
        plan.start()
    })
}

/// The hooks around a container's creation, and what they are told.
#[derive(Debug)]
pub(crate) struct CreateHooks {
    pub(crate) spec: oci::Spec,
    pub(crate) state: HookState,
}

impl CreateHooks {
    /// Runs what belongs between the container's mounts and its new root: `prestart` and `createRuntime` in the caller's
    /// namespaces, then `createContainer` in the container's, where the host's files are still in sight.
    pub(crate) fn run(&self, container: &Started) -> Result<(), HookError> {
        let state = |pid| self.state.json(Some(pid), oci::ContainerState::Created);
        let outside = state(container.pid);
        let Some(hooks) = self.spec.hooks() else { return Ok(()) };
        #[allow(deprecated)] // The specification deprecates it, and engines use it all the same.
        let prestart = hooks.prestart().as_deref().unwrap_or_default();
        run_hooks("prestart", prestart, &outside)?;
        run_hooks("createRuntime", hooks.create_runtime().as_deref().unwrap_or_default(), &outside)?;
        let inside = hooks.create_container().as_deref().unwrap_or_default();
        if inside.is_empty() {
            return Ok(());
        }
        each("createContainer", inside, &state(pid_inside(container.pid)), |hook, stdio| {
            let target = exec::duplicate(container.pidfd.as_fd())?;
            let mut plan = Plan::empty()?;
            exec::enter(&target, &self.spec, &mut plan.steps);
            // The namespace's root took the place of the working folder, and hooks are at home in the bundle.
            let path = c_string("bundle", self.state.bundle.as_os_str().as_encoded_bytes())?;
            plan.steps.push(Step::WorkingFolder { path });
            end(&mut plan, hook, stdio)?;
            exec::start_inside(plan, &target, None)
        })
    }
}

/// What [`start_hooks`] needs of a container that waits for its start.
#[derive(Clone, Copy)]
pub(crate) struct Waiting<'a> {
    pub(crate) pid: i32,
    pub(crate) pidfd: BorrowedFd<'a>,
    pub(crate) spec: &'a oci::Spec,
    pub(crate) cgroup: Option<&'a Cgroup>,
}

/// Runs the `startContainer` hooks inside the container, confined as its process will be.
pub(crate) fn start_hooks(container: Waiting<'_>, hook_state: &HookState) -> Result<(), HookError> {
    let Waiting { pid, pidfd, spec, cgroup } = container;
    let hooks = spec.hooks().as_ref().and_then(|hooks| hooks.start_container().as_deref()).unwrap_or_default();
    if hooks.is_empty() {
        return Ok(());
    }
    let state = hook_state.json(Some(pid_inside(pid)), oci::ContainerState::Created);
    each("startContainer", hooks, &state, |hook, stdio| {
        let mut process = spec.process().clone().unwrap_or_default();
        process.set_terminal(None);
        let target = exec::duplicate(pidfd)?;
        let request = ExecRequest {
            target: pidfd,
            process: &process,
            spec,
            state: Some(hook_state),
            cgroup,
            stdio,
            reaper: Reaper::Caller,
            console: None,
            preserve_fds: 0,
            keyring: None,
            patience: None,
        };
        let mut plan = exec::compile(request, &target)?;
        plan.steps.pop();
        plan.steps.push(Step::Execute { command: command(hook, process.env().as_deref())? });
        exec::start_inside(plan, &target, None)
    })
}

/// The process's number in its own pid namespace; see proc_pid_status(5), `NSpid`.
fn pid_inside(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    line.and_then(|pids| pids.split_whitespace().last()).and_then(|pid| pid.parse().ok()).unwrap_or(pid)
}

/// Adds the last part of a hook's plan.
fn end(plan: &mut Plan, hook: &oci::Hook, stdio: Stdio) -> Result<(), StartError> {
    process::streams(stdio, &mut plan.steps, &mut plan.held)?;
    plan.steps.push(Step::CloseDescriptors { first: 3, keep: vec![plan.channel.child.as_raw_fd()] });
    plan.steps.push(Step::ResetSignals);
    plan.steps.push(Step::Execute { command: command(hook, None)? });
    Ok(())
}

/// The hook's program. Without an environment of its own it gets that of whoever it runs beside: the container's process,
/// else the caller.
fn command(hook: &oci::Hook, beside: Option<&[String]>) -> Result<Arc<Command>, PlanError> {
    let path = c_string("hook.path", hook.path().as_os_str().as_encoded_bytes())?;
    let list = |at: &str, texts: &[String]| {
        texts.iter().map(|text| c_string(at, text.as_str())).collect::<Result<Vec<_>, _>>()
    };
    let environment = match hook.env().as_deref().or(beside) {
        Some(texts) => list("hook.env", texts)?,
        None => own_environment()?,
    };
    let mut arguments = list("hook.args", hook.args().as_deref().unwrap_or_default())?;
    if arguments.is_empty() {
        arguments.push(path.clone());
    }
    Ok(Arc::new(Command {
        name: hook.path().display().to_string(),
        search: String::new(),
        candidates: vec![path],
        arguments: StringList::new(arguments),
        environment: StringList::new(environment),
    }))
}

fn own_environment() -> Result<Vec<CString>, PlanError> {
    let entry = |(name, value): (OsString, OsString)| {
        c_string("hook.env", [name.as_encoded_bytes(), b"=", value.as_encoded_bytes()].concat())
    };
    std::env::vars_os().map(entry).collect()
}

/// Runs the hooks in order, each with the state as its standard input, until one fails.
fn each(
    name: &str,
    hooks: &[oci::Hook],
    state: &[u8],
    start: impl Fn(&oci::Hook, Stdio) -> Result<Started, StartError>,
) -> Result<(), HookError> {
    for (index, hook) in hooks.iter().enumerate() {
        let at = format!("hooks.{name}[{index}]");
        let failed = |call| {
            let at = at.clone();
            move |source: io::Error| HookError::Caller { at, call, source }
        };
        // A file in memory never blocks, whoever doesn't read it.
        let mut input = memory_file(c"hook-state").map_err(failed("memfd_create"))?;
        input.write_all(state).and_then(|()| input.rewind()).map_err(failed("write"))?;
        let (mut output, stdout) = Output::new().map_err(failed("pipe2"))?;
        let stderr = stdout.try_clone().map_err(failed("dup"))?;
        let stdio = Stdio { stdin: input.into(), stdout, stderr };
        let started = start(hook, stdio).map_err(|error| HookError::Start {
            at: at.clone(),
            path: hook.path().clone(),
            source: Box::new(error),
        })?;
        let limit = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok());
        let exit = attend(&started, limit.map(Duration::from_secs), &mut output).map_err(failed("waitid"))?;
        match (exit, limit) {
            (Some(Exit::Code(0)), _) => {}
            (None, Some(seconds)) => return Err(HookError::Timeout { at, path: hook.path().clone(), seconds }),
            (exit, _) => {
                let exit = exit.unwrap_or(Exit::Signal(libc::SIGKILL));
                return Err(HookError::Failed { at, path: hook.path().clone(), exit, output: output.text() });
            }
        }
    }
    Ok(())
}

fn memory_file(name: &std::ffi::CStr) -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?))
}

/// Waits for the end of a child and takes what it prints; kills it when its time is over and then returns `None`.
fn attend(started: &Started, limit: Option<Duration>, output: &mut Output) -> io::Result<Option<Exit>> {
    let end = limit.and_then(|limit| Instant::now().checked_add(limit));
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        // Asked for itself: whoever prints on and on is always ready.
        if left.is_some_and(|left| left.is_zero()) {
            rustix::process::pidfd_send_signal(&started.pidfd, rustix::process::Signal::KILL)?;
            wait(started)?;
            return Ok(None);
        }
        let timeout = left.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        let mut ready = [PollFd::new(&started.pidfd, PollFlags::IN), PollFd::new(&output.pipe, PollFlags::IN)];
        // A pipe that others have closed is ready for ever.
        let watched = if output.open { 2 } else { 1 };
        match poll(&mut ready[..watched], timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => continue,
            result => drop(result?),
        }
        let ended = !ready[0].revents().is_empty();
        output.take()?;
        if ended {
            return wait(started).map(Some);
        }
    }
}

/// The last of what a hook prints. The rest is thrown away as it comes: a hook can print for ever.
struct Output {
    pipe: File,
    open: bool,
    kept: Vec<u8>,
}

impl Output {
    /// Makes one, and the end that the hook writes to.
    fn new() -> io::Result<(Output, OwnedFd)> {
        let (pipe, written) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(&pipe, rustix::fs::OFlags::NONBLOCK)?;
        Ok((Output { pipe: pipe.into(), open: true, kept: Vec::new() }, written))
    }

    /// Takes what is there now.
    fn take(&mut self) -> io::Result<()> {
        let mut bytes = vec![0; READ_MAXIMUM];
        match self.pipe.read(&mut bytes) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            read => {
                let length = read?;
                self.open = length > 0;
                self.kept.extend(&bytes[..length]);
                self.kept.drain(..self.kept.len().saturating_sub(OUTPUT_MAXIMUM));
            }
        }
        Ok(())
    }

    /// Tells it after a colon; nothing if there is none.
    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        let text = text.trim_end();
        if text.is_empty() { String::new() } else { format!(": {text}") }
    }
}
