//! The last part of every plan: from a process inside its namespaces to the program that it was made for.
//!
//! Owns the order of limits, user, capabilities and seccomp, the same for a container's first process and for exec.
//! Must not touch mounts or namespaces.

use crate::attributes::attributes;
use crate::capabilities::{self, Sets};
use crate::compile::PlanError;
use crate::oci;
use crate::plan::{Stdio, above_standard};
use crate::seccomp;
use crate::spec::DEFAULT_PATH;
use crate::step::{Command, Step};
use crate::sys::{self, StringList};
use std::borrow::Cow;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// Makes a C string, or says where in the specification the NUL byte is.
pub(crate) fn c_string(at: impl Into<String>, text: impl Into<Vec<u8>>) -> Result<CString, PlanError> {
    CString::new(text).map_err(|error| {
        let value = String::from_utf8_lossy(&error.into_vec()).into_owned();
        PlanError::invalid(at, value, "must not contain a NUL byte")
    })
}

/// Steps that give the standard streams.
pub(crate) fn streams(stdio: Stdio, steps: &mut Vec<Step>, held: &mut Vec<OwnedFd>) -> Result<(), PlanError> {
    for (onto, fd) in (0..).zip([stdio.stdin, stdio.stdout, stdio.stderr]) {
        let fd = above_standard(fd).map_err(|error| PlanError::Descriptor(Box::new(error)))?;
        steps.push(Step::StandardStream { from: fd.as_raw_fd(), onto });
        held.push(fd);
    }
    Ok(())
}

/// Makes sure that the descriptors from 3 on that go to the program are there; returns their number.
pub(crate) fn preserved(count: u32) -> Result<i32, PlanError> {
    let refuse = |reason| PlanError::invalid("preserve_fds", count.to_string(), reason);
    let count = i32::try_from(count).ok().filter(|count| *count < 1 << 16).ok_or_else(|| refuse("are too many"))?;
    if (3..3 + count).all(sys::is_open) { Ok(count) } else { Err(refuse("are not all open from 3 on")) }
}

/// The last of a process before its program.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    /// Descriptors that the steps after the closing still need, in order.
    pub(crate) keep: Vec<i32>,
    /// So many descriptors from 3 on go to the program.
    pub(crate) preserve: u32,
    /// Waits for somebody, as late as system calls are still free.
    pub(crate) wait: Vec<Step>,
}

/// The process of a specification. "This property is REQUIRED when start is called" (config.md, "Process"), and not
/// before: a container that waits may do so for a start that cannot come.
pub(crate) fn or_nothing(spec: &oci::Spec, waits: bool) -> Result<Cow<'_, oci::Process>, PlanError> {
    match spec.process() {
        Some(process) => Ok(Cow::Borrowed(process)),
        None if waits => {
            let mut nothing = oci::Process::default();
            nothing.set_args(None).set_capabilities(None).set_rlimits(None);
            Ok(Cow::Owned(nothing))
        }
        None => Err(missing()),
    }
}

/// What a start without a process is told.
pub(crate) fn missing() -> PlanError {
    PlanError::invalid("process", "nothing", "must be given before the container is started")
}

/// Steps from a closed-off process to its program, if it has one. Everything before runs with the caller's rights.
pub(crate) fn finish(
    process: &oci::Process,
    linux: Option<&oci::Linux>,
    ending: Ending,
    steps: &mut Vec<Step>,
) -> Result<(), PlanError> {
    if process.terminal() == Some(true) {
        steps.push(Step::TakeTerminal);
    }
    let Ending { mut keep, preserve, wait } = ending;
    keep.sort_unstable();
    steps.push(Step::CloseDescriptors { first: 3 + preserve as i32, keep });
    if process.user().uid() != 0 {
        steps.push(Step::OwnStreams { user: process.user().uid() });
    }
    limits(process, steps);
    attributes(process, linux, steps)?;
    let cwd = process.cwd();
    steps.push(Step::WorkingFolder { path: c_string("process.cwd", cwd.as_os_str().as_encoded_bytes())? });

    let seccomp = linux.and_then(|linux| linux.seccomp().as_ref());
    let filter = seccomp.map(seccomp::compile).transpose()?.map(|filter| Step::Seccomp { filter });
    let no_new_privileges = process.no_new_privileges() == Some(true);
    let command = process.args().as_ref().map(|arguments| command(process, arguments).map(Arc::new)).transpose()?;
    // A wait comes before the filter, which may then refuse what a wait needs, but not before an agent's, who is there
    // when a container is created and maybe not when it is started.
    let notifies = matches!(&filter, Some(Step::Seccomp { filter }) if filter.notifies());
    let mut filter = filter.into_iter();
    let mut wait = wait.into_iter().peekable();
    if wait.peek().is_some() {
        // Whoever waits would tell a missing program late, and to somebody else.
        steps.extend(command.clone().map(|command| Step::FindCommand { command }));
    }
    if !no_new_privileges {
        if !notifies {
            steps.extend(wait.by_ref());
        }
        // Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before the capabilities go.
        steps.extend(filter.by_ref());
    }
    credentials(process, steps)?;
    steps.push(Step::Umask { mask: process.user().umask().unwrap_or(0o022) & 0o777 });
    steps.push(Step::ResetSignals);
    if !notifies {
        steps.extend(wait.by_ref());
    }
    if no_new_privileges {
        steps.push(Step::NoNewPrivileges);
        // As late as possible: the fewer system calls follow, the fewer must be allowed.
        steps.extend(filter);
    }
    steps.extend(wait);
    steps.extend(command.map(|command| Step::Execute { command }));
    Ok(())
}

fn limits(process: &oci::Process, steps: &mut Vec<Step>) {
    for limit in process.rlimits().iter().flatten() {
        steps.push(Step::ResourceLimit {
            name: limit.typ().to_string(),
            resource: resource(limit.typ()),
            soft: limit.soft(),
            hard: limit.hard(),
        });
    }
}

fn resource(kind: oci::PosixRlimitType) -> u32 {
    use oci::PosixRlimitType as Kind;
    // The type of libc's constants differs between C libraries.
    #[allow(clippy::unnecessary_cast)]
    (match kind {
        Kind::RlimitCpu => libc::RLIMIT_CPU as u32,
        Kind::RlimitFsize => libc::RLIMIT_FSIZE as u32,
        Kind::RlimitData => libc::RLIMIT_DATA as u32,
        Kind::RlimitStack => libc::RLIMIT_STACK as u32,
        Kind::RlimitCore => libc::RLIMIT_CORE as u32,
        Kind::RlimitRss => libc::RLIMIT_RSS as u32,
        Kind::RlimitNproc => libc::RLIMIT_NPROC as u32,
        Kind::RlimitNofile => libc::RLIMIT_NOFILE as u32,
        Kind::RlimitMemlock => libc::RLIMIT_MEMLOCK as u32,
        Kind::RlimitAs => libc::RLIMIT_AS as u32,
        Kind::RlimitLocks => libc::RLIMIT_LOCKS as u32,
        Kind::RlimitSigpending => libc::RLIMIT_SIGPENDING as u32,
        Kind::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE as u32,
        Kind::RlimitNice => libc::RLIMIT_NICE as u32,
        Kind::RlimitRtprio => libc::RLIMIT_RTPRIO as u32,
        Kind::RlimitRttime => libc::RLIMIT_RTTIME as u32,
    })
}

fn credentials(process: &oci::Process, steps: &mut Vec<Step>) -> Result<(), PlanError> {
    let Sets { bounding, effective, permitted, inheritable, ambient } =
        capabilities::sets(process.capabilities().as_ref(), capabilities::available()?);
    steps.push(Step::BoundingSet { keep: bounding });
    let user = process.user();
    let groups = user.additional_gids().clone().unwrap_or_default();
    steps.push(Step::User { user: user.uid(), group: user.gid(), groups });
    steps.push(Step::Capabilities { effective, permitted, inheritable, ambient });
    Ok(())
}

/// Prepares the program with every place where it may be.
fn command(process: &oci::Process, arguments: &[String]) -> Result<Command, PlanError> {
    let Some(name) = arguments.first().filter(|name| !name.is_empty()) else {
        return Err(PlanError::invalid("process.args", "nothing", "must begin with the program to run"));
    };
    c_string("process.args[0]", name.as_str())?;
    let environment = process.env().as_deref().unwrap_or_default();
    let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    let mut candidates = Vec::new();
    if name.contains('/') {
        candidates.push(c_string("process.args[0]", name.as_str())?);
    } else {
        for folder in path.split(':') {
            // An empty part of PATH means the working folder.
            let folder = if folder.is_empty() { "." } else { folder };
            candidates.push(c_string("process.env PATH", format!("{}/{name}", folder.trim_end_matches('/')))?);
        }
    }
    let strings = |at: &str, list: &[String]| {
        let each = list.iter().enumerate().map(|(index, text)| c_string(format!("{at}[{index}]"), text.as_str()));
        Ok::<StringList, PlanError>(StringList::new(each.collect::<Result<_, _>>()?))
    };
    Ok(Command {
        name: name.clone(),
        search: if name.contains('/') { String::new() } else { path.into() },
        candidates,
        arguments: strings("process.args", arguments)?,
        environment: strings("process.env", environment)?,
    })
}
