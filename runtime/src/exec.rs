//! Another process in a running container.
//!
//! Owns the way into its namespaces. Must not change anything of the container itself.

use crate::attributes;
use crate::cgroup::Cgroup;
use crate::compile::{PlanError, Slots};
use crate::config;
use crate::hooks::HookState;
use crate::oci;
use crate::plan::{Plan, Reaper, StartError, Started, Stdio, above_standard};
use crate::process::{self, Ending};
use crate::seccomp::Agent;
use crate::step::{AttributeStep, Step};
use crate::sys;
use crate::terminal;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// All but pid, which counts only for children and is joined by the caller, and those that only some containers have.
const NAMESPACES: i32 = libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWNET | libc::CLONE_NEWCGROUP;

/// What [`exec`] is asked for.
#[derive(Debug)]
pub struct ExecRequest<'a> {
    /// A pidfd of the container's first process, as [`Started::pidfd`].
    pub target: BorrowedFd<'a>,
    /// The process to start. It never gets inheritable or ambient capabilities (CVE-2022-29162).
    pub process: &'a oci::Process,
    /// The container's specification, for its seccomp profile.
    pub spec: &'a oci::Spec,
    /// What the agent of a profile that notifies is told of the container; needed if there is one.
    pub state: Option<&'a HookState>,
    /// The container's cgroup.
    pub cgroup: Option<&'a Cgroup>,
    /// The streams, unless there is a console.
    pub stdio: Stdio,
    /// Who reaps it.
    pub reaper: Reaper,
    /// As [`crate::Extras::console`].
    pub console: Option<OwnedFd>,
    /// As [`crate::Extras::preserve_fds`].
    pub preserve_fds: u32,
    /// As [`crate::Extras::keyring`]; the container's, to share it.
    pub keyring: Option<String>,
    /// How long the process may take to come to its program; for ever if `None`. What runs in the container sees it there
    /// already, and can stop it.
    pub patience: Option<Duration>,
}

/// Starts a process in a running container: in all its namespaces, its cgroup and its root, under the same seccomp
/// profile. Blocks until it runs its program or has failed.
///
/// # Errors
/// [`StartError`] names the step, its path and the kernel's reason, and [`StartError::Gone`] that the container has ended.
pub fn exec(request: ExecRequest<'_>) -> Result<Started, StartError> {
    let target = duplicate(request.target)?;
    let (initial, _) = attributes::affinity(request.process);
    start_inside(compile(request, &target)?, &target, initial)
}

/// Copies a pidfd.
pub(crate) fn duplicate(pidfd: BorrowedFd<'_>) -> Result<OwnedFd, StartError> {
    pidfd.try_clone_to_owned().map_err(failed("dup"))
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Caller { call, source }
}

/// Starts a plan in the pid namespace of a container, if given on these CPUs until a step says otherwise.
pub(crate) fn start_inside(plan: Plan, target: &OwnedFd, affinity: Option<Vec<u64>>) -> Result<Started, StartError> {
    // The pid namespace counts for a thread's future children only, so a thread of its own joins it and starts one.
    // The thread ends right after; nothing of the caller has moved.
    std::thread::scope(|scope| {
        let starter = std::thread::Builder::new().name("exec".into()).spawn_scoped(scope, move || {
            if let Some(mask) = affinity {
                // For the thread alone, and inherited: the child starts there, before it is in its cgroup.
                sys::set_affinity(&mask).map_err(|errno| failed("sched_setaffinity")(errno.into()))?;
            }
            let joined = sys::join_namespace(target.as_raw_fd(), libc::CLONE_NEWPID);
            joined.map_err(|errno| match errno.0 {
                libc::ESRCH => StartError::Gone,
                _ => failed("setns(CLONE_NEWPID)")(errno.into()),
            })?;
            plan.start()
        });
        let joined = starter.map_err(failed("starting a thread"))?.join();
        joined.unwrap_or_else(|_| Err(failed("a thread")(io::Error::other("it panicked"))))
    })
}

/// Adds the step into a container's namespaces. Its pid namespace is joined by [`start_inside`].
pub(crate) fn enter(target: &OwnedFd, spec: &oci::Spec, steps: &mut Vec<Step>) {
    let list = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    let kinds = list.iter().fold(NAMESPACES, |kinds, namespace| match namespace.typ() {
        // The kernel refuses the caller's own again.
        oci::LinuxNamespaceType::User => kinds | libc::CLONE_NEWUSER,
        // Not every kernel knows these.
        oci::LinuxNamespaceType::Time => kinds | libc::CLONE_NEWTIME,
        // Who joins the caller's own is at the host's root afterwards.
        oci::LinuxNamespaceType::Mount => kinds | libc::CLONE_NEWNS,
        _ => kinds,
    });
    let name = "the container's namespaces".to_string();
    steps.push(Step::JoinNamespace { fd: target.as_raw_fd(), kinds, name });
}

fn lists(spec: &oci::Spec, kind: oci::LinuxNamespaceType) -> bool {
    let list = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    list.iter().any(|namespace| namespace.typ() == kind)
}

/// The number of the process that a pidfd means, as this process sees it.
fn number_of(target: &OwnedFd) -> Result<i32, StartError> {
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", target.as_raw_fd()));
    let told = told.map_err(failed("reading /proc/self/fdinfo"))?;
    // A process that has ended has the number -1; pidfd_open(2).
    let number = told.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    number.filter(|number| *number > 0).ok_or(StartError::Gone)
}

/// The root of a process that has changed its root only, and shares the caller's mounts.
fn root_of(target: &OwnedFd) -> Result<OwnedFd, StartError> {
    let pid = number_of(target)?;
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    let root = File::options().read(true).custom_flags(flags).open(format!("/proc/{pid}/root"));
    let root = root.map_err(failed("opening /proc/PID/root"))?;
    // The number was still the container's when its root was opened.
    match sys::send_signal(target.as_raw_fd(), 0) {
        Ok(()) => Ok(root.into()),
        Err(_) => Err(StartError::Gone),
    }
}

pub(crate) fn compile(request: ExecRequest<'_>, target: &OwnedFd) -> Result<Plan, StartError> {
    config::process("process.", request.process).map_err(PlanError::Rule)?;
    let mut plan = Plan::empty()?;
    plan.agent = Agent::of(request.spec, request.state, Some(number_of(target)?))?;
    plan.patience = request.patience;
    let Plan { steps, clone, held, channel, .. } = &mut plan;
    steps.extend([Step::ClearUmask, Step::Undumpable]);
    clone.sibling = request.reaper == Reaper::CallersParent;
    if let Some(cgroup) = request.cgroup {
        crate::compile::enter_cgroup(cgroup, clone, steps, held)?;
    }
    enter(target, request.spec, steps);
    if !lists(request.spec, oci::LinuxNamespaceType::Mount) {
        let root = above_standard(root_of(target)?)?;
        steps.push(Step::ChangeRoot { root: root.as_raw_fd() });
        held.push(root);
    }
    if lists(request.spec, oci::LinuxNamespaceType::User) {
        // What it makes, as a terminal, belongs to an id of the namespace.
        steps.push(Step::BecomeRoot);
    }
    if let (_, Some(mask)) = attributes::affinity(request.process) {
        steps.push(Step::Attribute(AttributeStep::Affinity { mask }));
    }
    steps.push(Step::NewSession);
    if let Some(name) = request.keyring {
        steps.push(Step::SessionKeyring { name: process::c_string("keyring", name)? });
    }
    let preserve = request.preserve_fds;
    let next = 3 + process::preserved(preserve)?;
    match request.console {
        None => process::streams(request.stdio, steps, held)?,
        Some(console) => {
            let console = above_standard(console)?;
            let mut taken: Vec<_> = held.iter().map(AsRawFd::as_raw_fd).collect();
            taken.extend([channel.child.as_raw_fd(), target.as_raw_fd(), console.as_raw_fd()]);
            let (number, mut slots) = (console.as_raw_fd(), Slots { taken, next });
            held.push(console);
            // The working folder is the container's root since its mount namespace was entered.
            let place = (libc::AT_FDCWD, None);
            terminal::terminal(request.process, number, place, &mut slots, steps)?;
        }
    }
    let mut process = request.process.clone();
    if let Some(mut capabilities) = process.capabilities().clone() {
        capabilities.set_inheritable(None).set_ambient(None);
        process.set_capabilities(Some(capabilities));
    }
    let ending = Ending { keep: vec![channel.child.as_raw_fd()], preserve, wait: Vec::new() };
    process::finish(&process, request.spec.linux().as_ref(), ending, steps)?;
    Ok(plan)
}

impl From<crate::CgroupError> for StartError {
    fn from(error: crate::CgroupError) -> StartError {
        StartError::Plan(PlanError::Cgroup(error))
    }
}
