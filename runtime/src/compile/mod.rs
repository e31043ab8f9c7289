//! From a request to a plan: the order of the steps of a container's first process.
//!
//! Owns the checks of the specification and everything that can be computed before the clone. Must not change the
//! system: what is opened here is only read or entered later.

mod devices;
mod filesystem;
mod mounts;
mod namespaces;

pub(crate) use namespaces::name_of;

use crate::cgroup::{Cgroup, CgroupError, HostCgroups};
use crate::config;
use crate::handshake::Channel;
use crate::hooks::{CreateHooks, HookState};
use crate::oci;
use crate::plan::{Plan, Reaper, StartError, Stdio, above_standard};
use crate::process::{self, Ending};
use crate::seccomp::Agent;
use crate::step::Step;
use crate::sys::CloneRequest;
use crate::terminal;
use oci::LinuxNamespaceType as Kind;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// What becomes the container's root.
#[derive(Clone, Debug)]
pub enum Root {
    /// An overlay; writes go to `upper`. In a user namespace the lower folders show its ids, whoever owns their files on
    /// the disk (Linux 5.19, see mount_setattr(2)); `upper` must belong to its root, and lie beside `work`.
    Overlay {
        /// Read-only folders, the top one first; at most 500.
        lower: Vec<PathBuf>,
        /// Where changes are kept. Must exist.
        upper: PathBuf,
        /// The overlay's own folder on the filesystem of `upper`. Must exist.
        work: PathBuf,
    },
    /// A folder, used as it is.
    Folder(PathBuf),
}

/// What a plan is made from.
#[derive(Debug)]
pub struct Request<'a> {
    /// The specification. Its `root.path`, `linux.resources` and `linux.cgroupsPath` are the caller's business.
    pub spec: &'a oci::Spec,
    /// The root.
    pub root: &'a Root,
    /// The cgroup to run in; the caller's own if `None`.
    pub cgroup: Option<&'a Cgroup>,
    /// A network namespace to join instead of a new one; counts only if the specification asks for a network namespace.
    pub network: Option<BorrowedFd<'a>>,
    /// A user namespace to join instead of a new one, from [`crate::new_user_namespace`]; counts only if the
    /// specification asks for a user namespace.
    pub user: Option<BorrowedFd<'a>>,
    /// The standard streams.
    pub stdio: Stdio,
    /// Who reaps it.
    pub reaper: Reaper,
    /// What a command line asks for.
    pub extras: Extras<'a>,
}

/// What an OCI command line asks for beyond the specification. A resident caller leaves it at its default.
#[derive(Debug, Default)]
pub struct Extras<'a> {
    /// From [`crate::bind_start_socket`]: the process then waits there, as its last act before its program, for
    /// [`crate::start_waiting`], and [`Plan::start`] returns when it does.
    pub start_socket: Option<OwnedFd>,
    /// What hooks are told. Needed if the specification has hooks around creation and start.
    pub hooks: Option<&'a HookState>,
    /// A connected socket that gets the master of the process's terminal; the standard streams are then the terminal's,
    /// not the request's. See [`crate::terminal_pair`].
    pub console: Option<OwnedFd>,
    /// So many open descriptors of the caller from 3 on go to the process.
    pub preserve_fds: u32,
    /// Moves the root over the old one instead of pivot_root(2), which an initramfs refuses.
    pub no_pivot: bool,
    /// The name of a session keyring for the container; keyrings(7). Without one it has the caller's.
    pub keyring: Option<String>,
}

/// Why a plan could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The specification asks for something impossible or unsafe.
    #[error("{at}: {value:?} {reason}")]
    Invalid {
        /// The place in the specification, as `mounts[3].source`.
        at: String,
        /// What stands there.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A rule of the runtime specification is broken.
    #[error(transparent)]
    Rule(#[from] crate::Violation),
    /// A path of the host that the specification needs cannot be used.
    #[error("{at}: cannot use {path}")]
    Path {
        /// The place in the specification or request.
        at: String,
        /// The path.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A bind mount cannot show its files with the ids that the container asks for.
    #[error("{at}: the filesystem of {path}, or one mounted below it, can't be mounted with other ids")]
    Ids {
        /// The place in the specification.
        at: String,
        /// What is bound.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The cgroup cannot be entered.
    #[error("cannot use the cgroup")]
    Cgroup(#[from] CgroupError),
    /// The seccomp profile is not usable.
    #[error("linux.seccomp")]
    Seccomp(#[from] crate::SeccompError),
    /// The caller's own capabilities cannot be read.
    #[error("cannot read the capabilities of this process")]
    Capabilities(#[from] caps::errors::CapsError),
    /// The user namespace could not be made.
    #[error("linux.uidMappings, linux.gidMappings")]
    UserNamespace(#[source] crate::UserNamespaceError),
    /// A descriptor could not be prepared.
    #[error("cannot prepare a descriptor")]
    Descriptor(#[source] Box<StartError>),
}

impl PlanError {
    pub(crate) fn invalid(at: impl Into<String>, value: impl Into<String>, reason: &'static str) -> PlanError {
        PlanError::Invalid { at: at.into(), value: value.into(), reason }
    }
}

impl Plan {
    /// Computes the plan for a request. Nothing of the system changes.
    ///
    /// # Errors
    /// [`PlanError`] names the place in the specification and the value.
    pub fn compile(request: Request<'_>) -> Result<Plan, PlanError> {
        Plan::compile_on(request, None)
    }

    /// The same for a host whose cgroups are known already.
    pub(crate) fn compile_on(request: Request<'_>, host: Option<HostCgroups>) -> Result<Plan, PlanError> {
        let Request { spec, root, cgroup, network, user, stdio, reaper, extras } = request;
        config::check(spec)?;
        let process = &process::or_nothing(spec, extras.start_socket.is_some())?;
        unsupported(spec)?;
        let channel = Channel::new().map_err(|error| PlanError::Descriptor(Box::new(error)))?;
        let mut compiler = Compiler {
            spec,
            steps: vec![Step::ClearUmask],
            clone: CloneRequest { namespaces: 0, sibling: reaper == Reaper::CallersParent, cgroup: None },
            held: Vec::new(),
            slots: Slots { taken: vec![channel.child.as_raw_fd()], next: 3 },
            root: -1,
            user_namespace: None,
            devices: true,
            device_folder: None,
            read_only_later: Vec::new(),
            cgroup_folders: cgroup.map(Cgroup::folders).unwrap_or_default(),
            // Reading the mount table takes longer than all the rest of this.
            host: host.or_else(|| cgroup.map(Cgroup::host).cloned()),
        };
        compiler.score(process);
        compiler.steps.push(Step::Undumpable);
        compiler.namespaces(cgroup, &namespaces::Given { network, user }, root)?;
        compiler.steps.push(Step::NewSession);
        let console = extras.console.map(above_standard).transpose()?;
        let console_number = console.as_ref().map(AsRawFd::as_raw_fd);
        match console {
            Some(console) => compiler.held.push(console),
            None => process::streams(stdio, &mut compiler.steps, &mut compiler.held)?,
        }
        let preserve = extras.preserve_fds;
        compiler.slots.next += process::preserved(preserve)?;
        let mut ending = Ending { keep: vec![channel.child.as_raw_fd()], preserve, wait: Vec::new() };
        compiler.wait(extras.start_socket, &mut ending)?;
        compiler.slots.taken.extend(compiler.held.iter().map(AsRawFd::as_raw_fd));
        if compiler.lists(Kind::Mount) {
            compiler.propagation()?;
        }
        compiler.root(root)?;
        if let Some(name) = extras.keyring {
            compiler.steps.push(Step::SessionKeyring { name: process::c_string("keyring", name)? });
        }
        compiler.mounts()?;
        compiler.devices()?;
        if let Some(console) = console_number {
            compiler.terminal(process, console)?;
        }
        compiler.hidden_paths()?;
        compiler.names()?;
        compiler.sysctls()?;
        compiler.working_folder(process.cwd())?;
        let hooks = compiler.create_hooks(extras.hooks)?;
        compiler.make_mounts_read_only();
        compiler.enter_root(extras.no_pivot)?;
        if spec.root().as_ref().and_then(oci::Root::readonly) == Some(true) {
            compiler.steps.push(Step::ReadOnlyRoot);
        }
        if compiler.lists(Kind::Mount) {
            compiler.root_propagation()?;
        }
        let agent = Agent::of(spec, extras.hooks, None)?;
        process::finish(process, spec.linux().as_ref(), ending, &mut compiler.steps)?;
        let Compiler { mut steps, clone, held, .. } = compiler;
        tell_later(&mut steps);
        Ok(Plan { steps, clone, held, channel, hooks, agent, patience: None })
    }
}

/// Gives the waiting step the texts of those after it: whoever starts the container doesn't have the plan.
fn tell_later(steps: &mut [Step]) {
    let Some(at) = steps.iter().position(|step| matches!(step, Step::AwaitStart { .. })) else { return };
    let texts = steps[at + 1..].iter().map(ToString::to_string).collect();
    if let Step::AwaitStart { later, .. } = &mut steps[at] {
        *later = texts;
    }
}

/// Puts a child into a cgroup: born there on version 2, by its `tasks` files on version 1.
pub(crate) fn enter_cgroup(
    cgroup: &Cgroup,
    clone: &mut CloneRequest,
    steps: &mut Vec<Step>,
    held: &mut Vec<OwnedFd>,
) -> Result<(), PlanError> {
    let entry = cgroup.entry()?;
    let fixed = |fd| above_standard(fd).map_err(|error| PlanError::Descriptor(Box::new(error)));
    if let Some(folder) = entry.born_in {
        let folder = fixed(folder)?;
        clone.cgroup = Some(folder.as_raw_fd());
        held.push(folder);
    }
    for (tasks, path) in entry.tasks {
        let tasks = fixed(tasks)?;
        steps.push(Step::JoinCgroup { tasks: tasks.as_raw_fd(), path: path.display().to_string() });
        held.push(tasks);
    }
    Ok(())
}

/// Descriptor numbers that the child opens at, chosen so that they meet none that the plan holds.
pub(crate) struct Slots {
    pub(crate) taken: Vec<i32>,
    pub(crate) next: i32,
}

impl Slots {
    pub(crate) fn take(&mut self) -> i32 {
        while self.taken.contains(&self.next) {
            self.next += 1;
        }
        self.next += 1;
        self.next - 1
    }
}

/// The state of one compilation.
struct Compiler<'a> {
    spec: &'a oci::Spec,
    steps: Vec<Step>,
    clone: CloneRequest,
    held: Vec<OwnedFd>,
    slots: Slots,
    /// The number at which the child holds the root.
    root: i32,
    /// The user namespace's descriptor; it is open already.
    user_namespace: Option<i32>,
    /// Whether `/dev` is the container's own.
    devices: bool,
    /// The number at which the child holds the folder of a device outside `/dev`.
    device_folder: Option<i32>,
    /// Mounts that are written to before they become read-only: the child's number and the path.
    read_only_later: Vec<(i32, CString)>,
    /// The container's own folder in each hierarchy, by its controllers.
    cgroup_folders: BTreeMap<String, PathBuf>,
    /// How the host mounts its cgroups, once somebody has asked.
    host: Option<HostCgroups>,
}

impl Compiler<'_> {
    fn linux(&self) -> Option<&oci::Linux> {
        self.spec.linux().as_ref()
    }

    /// Lets the process wait for its start, and for the hooks that come with it.
    fn wait(&mut self, socket: Option<OwnedFd>, ending: &mut Ending) -> Result<(), PlanError> {
        let hooks = self.spec.hooks().as_ref();
        let start_hooks = hooks.and_then(|hooks| hooks.start_container().as_ref()).is_some_and(|list| !list.is_empty());
        let Some(socket) = socket else {
            if start_hooks {
                let reason = "need a start socket: create the container, then start it";
                return Err(PlanError::invalid("hooks.startContainer", "hooks", reason));
            }
            return Ok(());
        };
        let socket = above_standard(socket).map_err(|error| PlanError::Descriptor(Box::new(error)))?;
        ending.keep.push(socket.as_raw_fd());
        ending.wait.push(Step::AwaitStart { listener: socket.as_raw_fd(), later: Vec::new() });
        if start_hooks {
            ending.wait.push(Step::AwaitCaller);
        }
        self.held.push(socket);
        Ok(())
    }

    /// Lets the process wait for the hooks that see both the host and the finished mounts.
    #[allow(deprecated)] // The specification deprecates prestart, and engines use it all the same.
    fn create_hooks(&mut self, state: Option<&HookState>) -> Result<Option<CreateHooks>, PlanError> {
        let Some(hooks) = self.spec.hooks() else { return Ok(None) };
        let lists = [hooks.prestart(), hooks.create_runtime(), hooks.create_container()];
        if lists.into_iter().flatten().all(Vec::is_empty) {
            return Ok(None);
        }
        let Some(state) = state else {
            return Err(PlanError::invalid(
                "hooks",
                "hooks",
                "need the container's state, which this caller has none of",
            ));
        };
        self.steps.push(Step::AwaitCaller);
        Ok(Some(CreateHooks { spec: self.spec.clone(), state: state.clone() }))
    }

    fn terminal(&mut self, process: &oci::Process, console: i32) -> Result<(), PlanError> {
        let target = filesystem::target("process.terminal", Path::new("/dev/console"), true)?;
        let place = (self.root, Some(target));
        terminal::terminal(process, console, place, &mut self.slots, &mut self.steps)
    }

    /// Without a mount namespace of its own a container only sees another root: the mounts are the caller's, and stay,
    /// as with runc and crun.
    fn enter_root(&mut self, no_pivot: bool) -> Result<(), PlanError> {
        let root = self.root;
        if !self.lists(Kind::Mount) {
            self.steps.push(Step::ChangeRoot { root });
        } else if no_pivot {
            let table = PathBuf::from("/proc/self/mountinfo");
            let read = std::fs::read_to_string(&table);
            let read =
                read.map_err(|source| PlanError::Path { at: "mounts of the host".into(), path: table, source })?;
            for path in kernel_mounts(&read) {
                self.steps.push(Step::Hide { path: process::c_string("mounts of the host", path)? });
            }
            self.steps.push(Step::MoveRoot { root });
        } else {
            self.steps.push(Step::PivotRoot { root });
        }
        Ok(())
    }

    fn score(&mut self, process: &oci::Process) {
        if let Some(value) = process.oom_score_adj() {
            self.steps.push(Step::OutOfMemoryScore { value: value.to_string() });
        }
    }

    fn names(&mut self) -> Result<(), PlanError> {
        let own_uts = self.has_own(Kind::Uts)?;
        let names = [("hostname", self.spec.hostname()), ("domainname", self.spec.domainname())];
        for (at, name) in names {
            let Some(name) = name.clone().filter(|name| !name.is_empty()) else { continue };
            if !own_uts {
                return Err(PlanError::invalid(at, name, "needs a uts namespace of the container's own"));
            }
            if name.len() > 64 {
                return Err(PlanError::invalid(at, name, "is longer than 64 bytes"));
            }
            self.steps.push(if at == "hostname" { Step::HostName { name } } else { Step::DomainName { name } });
        }
        Ok(())
    }
}

/// The places of every procfs and sysfs in a mount table, the last mounted first; proc_pid_mountinfo(5).
fn kernel_mounts(table: &str) -> Vec<Vec<u8>> {
    let place = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let kind = filesystem.split(' ').next()?;
        let place = mount.split(' ').nth(4)?;
        matches!(kind, "proc" | "sysfs").then(|| unescape(place))
    };
    table.lines().rev().filter_map(place).collect()
}

/// Reads the octal escapes of a mount table, as `\\040` for a space.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    while let [first, rest @ ..] = bytes {
        let escaped = rest.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        let value = escaped.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(value.unwrap_or(*first));
        bytes = if value.is_some() { &rest[3..] } else { rest };
    }
    plain
}

/// Refuses what would silently make a container less confined, or other, than its specification says.
fn unsupported(spec: &oci::Spec) -> Result<(), PlanError> {
    let default = oci::Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&default);
    let asked = [
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|map| !map.is_empty())),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((at, _)) => Err(PlanError::invalid(*at, "a value", "is not supported; leave it out")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_filesystems_are_found_in_a_mount_table() {
        let table = "22 1 0:4 / /proc rw - proc proc rw\n23 1 0:5 / /a\\040b rw shared:3 - sysfs s rw\n24 1 0:6 / /x rw - tmpfs proc rw\n";
        assert_eq!(kernel_mounts(table), [b"/a b".to_vec(), b"/proc".to_vec()]);
    }

    #[test]
    fn slots_meet_no_descriptor_in_use() {
        let mut slots = Slots { taken: vec![4, 5, 7], next: 3 };
        assert_eq!([slots.take(), slots.take(), slots.take()], [3, 6, 8]);
    }
}
