//! From a request to a plan: the order of the steps of a container's first process.
//!
//! Owns the checks of the specification and everything that can be computed before the clone. Must not change the
//! system: what is opened here is only read or entered later.

use crate::cgroup::{Cgroup, CgroupError, HostCgroups, host_cgroups};
use crate::config;
use crate::mounts::Options;
use crate::oci;
use crate::plan::{Plan, Reaper, Report, StartError, Stdio, above_standard};
use crate::process::{self, c_string};
use crate::step::{Bind, Device, Filesystem, Step, Target};
use crate::sys::CloneRequest;
use oci::LinuxNamespaceType as Kind;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The kernel's bound on overlay layers.
const LAYERS_MAXIMUM: usize = 500;
/// mount(2) takes one page of options, with its final NUL.
const MOUNT_DATA_MAXIMUM: usize = 4095;

/// What becomes the container's root.
#[derive(Clone, Debug)]
pub enum Root {
    /// An overlay; writes go to `upper`.
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
    /// The standard streams.
    pub stdio: Stdio,
    /// Who reaps it.
    pub reaper: Reaper,
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
    /// The cgroup cannot be entered.
    #[error("cannot use the cgroup")]
    Cgroup(#[from] CgroupError),
    /// The seccomp profile is not usable.
    #[error("linux.seccomp")]
    Seccomp(#[from] crate::SeccompError),
    /// The caller's own capabilities cannot be read.
    #[error("cannot read the capabilities of this process")]
    Capabilities(#[from] caps::errors::CapsError),
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
        let Request { spec, root, cgroup, network, stdio, reaper } = request;
        config::check(spec)?;
        let Some(process) = spec.process() else {
            return Err(PlanError::invalid("process", "nothing", "must be given"));
        };
        unsupported(spec, process)?;
        let report = Report::new().map_err(|error| PlanError::Descriptor(Box::new(error)))?;
        let mut compiler = Compiler {
            spec,
            steps: vec![Step::ClearUmask],
            clone: CloneRequest { namespaces: 0, sibling: reaper == Reaper::CallersParent, cgroup: None },
            held: Vec::new(),
            slots: Slots { taken: vec![report.write.as_raw_fd()], next: 3 },
            root: -1,
            devices: true,
            host,
        };
        compiler.namespaces(cgroup, network)?;
        compiler.steps.push(Step::NewSession);
        compiler.score(process);
        process::streams(stdio, &mut compiler.steps, &mut compiler.held)?;
        compiler.slots.taken.extend(compiler.held.iter().map(AsRawFd::as_raw_fd));
        compiler.root(root)?;
        compiler.mounts()?;
        compiler.devices()?;
        compiler.hidden_paths()?;
        compiler.names_and_sysctls()?;
        let cwd = process.cwd();
        if cwd.is_absolute() && cwd != Path::new("/") {
            let target = target("process.cwd", cwd, false)?;
            compiler.steps.push(Step::MakeFolder { root: compiler.root, target });
        }
        compiler.steps.push(Step::PivotRoot { root: compiler.root });
        if spec.root().as_ref().and_then(oci::Root::readonly) == Some(true) {
            compiler.steps.push(Step::ReadOnlyRoot);
        }
        let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        process::finish(process, seccomp, &report, &mut compiler.steps)?;
        let Compiler { steps, clone, held, .. } = compiler;
        Ok(Plan { steps, clone, held, report })
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
struct Slots {
    taken: Vec<i32>,
    next: i32,
}

impl Slots {
    fn take(&mut self) -> i32 {
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
    /// Whether `/dev` is the container's own.
    devices: bool,
    /// How the host mounts its cgroups, once somebody has asked.
    host: Option<HostCgroups>,
}

impl Compiler<'_> {
    fn linux(&self) -> Option<&oci::Linux> {
        self.spec.linux().as_ref()
    }

    fn namespaces(&mut self, cgroup: Option<&Cgroup>, network: Option<BorrowedFd<'_>>) -> Result<(), PlanError> {
        if let Some(cgroup) = cgroup {
            enter_cgroup(cgroup, &mut self.clone, &mut self.steps, &mut self.held)?;
        }
        let list = self.linux().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
        let mut seen: Vec<Kind> = Vec::new();
        for (index, namespace) in list.iter().enumerate() {
            let at = format!("linux.namespaces[{index}]");
            seen.push(namespace.typ());
            self.namespace(&at, namespace, network)?;
        }
        if !seen.contains(&Kind::Mount) {
            return Err(PlanError::invalid("linux.namespaces", "without mount", "must have a mount namespace"));
        }
        let propagation = self.linux().and_then(|linux| linux.rootfs_propagation().clone());
        let propagation = propagation.as_deref().unwrap_or("private");
        if !matches!(propagation, "" | "private" | "rprivate" | "slave" | "rslave") {
            return Err(PlanError::invalid("linux.rootfsPropagation", propagation, "must be private or slave"));
        }
        let is_slave = |option: &String| matches!(option.as_str(), "slave" | "rslave");
        let options = self.spec.mounts().iter().flatten().flat_map(|mount| mount.options().iter().flatten());
        let slave = propagation.ends_with("slave") || options.into_iter().any(is_slave);
        self.steps.push(if slave {
            Step::Propagation { flags: libc::MS_SLAVE | libc::MS_REC, name: "slave" }
        } else {
            Step::Propagation { flags: libc::MS_PRIVATE | libc::MS_REC, name: "private" }
        });
        Ok(())
    }

    fn namespace(
        &mut self,
        at: &str,
        namespace: &oci::LinuxNamespace,
        network: Option<BorrowedFd<'_>>,
    ) -> Result<(), PlanError> {
        let (name, flag) = match namespace.typ() {
            Kind::Mount => ("mount", libc::CLONE_NEWNS),
            Kind::Pid => ("pid", libc::CLONE_NEWPID),
            Kind::Uts => ("uts", libc::CLONE_NEWUTS),
            Kind::Ipc => ("ipc", libc::CLONE_NEWIPC),
            Kind::Network => ("network", libc::CLONE_NEWNET),
            // A cgroup namespace is rooted where its maker is: it is made after the child has joined its cgroup.
            Kind::Cgroup => ("cgroup", libc::CLONE_NEWCGROUP),
            kind @ (Kind::User | Kind::Time) => {
                return Err(PlanError::invalid(format!("{at}.type"), kind.to_string(), "namespaces are not supported"));
            }
        };
        let given = network.filter(|_| namespace.typ() == Kind::Network);
        let handle = match (given, namespace.path()) {
            (Some(fd), _) => Some(fd.try_clone_to_owned().map_err(|source| PlanError::Path {
                at: "network".into(),
                path: "the given descriptor".into(),
                source,
            })?),
            (None, Some(path)) if matches!(namespace.typ(), Kind::Pid | Kind::Mount) => {
                let reason = "cannot be joined by path; use exec to enter a container";
                return Err(PlanError::invalid(format!("{at}.path"), path.display().to_string(), reason));
            }
            (None, Some(path)) => Some(OwnedFd::from(std::fs::File::open(path).map_err(|source| PlanError::Path {
                at: format!("{at}.path"),
                path: path.clone(),
                source,
            })?)),
            (None, None) => None,
        };
        if let Some(handle) = handle {
            let handle = above_standard(handle).map_err(|error| PlanError::Descriptor(Box::new(error)))?;
            let name = format!("the given {name} namespace");
            self.steps.push(Step::JoinNamespace { fd: handle.as_raw_fd(), kinds: flag, name });
            self.held.push(handle);
        } else if flag == libc::CLONE_NEWCGROUP {
            self.steps.push(Step::Unshare { kinds: flag, name });
        } else {
            self.clone.namespaces |= flag as u64;
            if flag == libc::CLONE_NEWNET {
                self.steps.push(Step::LoopbackUp);
            }
        }
        Ok(())
    }

    fn score(&mut self, process: &oci::Process) {
        if let Some(value) = process.oom_score_adj() {
            self.steps.push(Step::OutOfMemoryScore { value: value.to_string() });
        }
    }

    fn root(&mut self, root: &Root) -> Result<(), PlanError> {
        let path_string = |at: &str, path: &Path| {
            if !path.is_absolute() {
                return Err(PlanError::invalid(at, path.display().to_string(), "must be an absolute path"));
            }
            c_string(at, path.as_os_str().as_encoded_bytes())
        };
        let place = match root {
            Root::Folder(path) => {
                let path = path_string("root", path)?;
                self.steps.push(Step::BindRoot { path: path.clone() });
                path
            }
            Root::Overlay { lower, upper, work } => {
                if lower.is_empty() || lower.len() > LAYERS_MAXIMUM {
                    let value = format!("{} layers", lower.len());
                    return Err(PlanError::invalid("root.lower", value, "must be between 1 and 500"));
                }
                let mut data = String::from("lowerdir=");
                for (index, path) in lower.iter().enumerate() {
                    let slot = self.open_layer(path_string(&format!("root.lower[{index}]"), path)?);
                    data.push_str(&format!("{}{slot}", if index == 0 { "" } else { ":" }));
                }
                let place = path_string("root.upper", upper)?;
                let upper = self.open_layer(place.clone());
                let work = self.open_layer(path_string("root.work", work)?);
                data.push_str(&format!(",upperdir={upper},workdir={work}"));
                if data.len() > MOUNT_DATA_MAXIMUM {
                    let value = format!("{} layers", lower.len());
                    return Err(PlanError::invalid("root.lower", value, "are more than mount(2) takes"));
                }
                let data = c_string("root", data)?;
                // The overlay covers its own upper folder, in the child's mount namespace only: a place that is always
                // there and that nobody else sees change.
                let target = c_string("root.upper", upper.to_string())?;
                self.steps.push(Step::MountOverlay { data, target, layers: lower.len(), upper: place.clone() });
                place
            }
        };
        self.root = self.slots.take();
        self.steps.push(Step::OpenRoot { path: place, slot: self.root });
        Ok(())
    }

    fn open_layer(&mut self, path: CString) -> i32 {
        let slot = self.slots.take();
        self.steps.push(Step::OpenLayer { path, slot });
        slot
    }

    fn mounts(&mut self) -> Result<(), PlanError> {
        let mounts = self.spec.mounts().clone().unwrap_or_default();
        for (index, mount) in mounts.iter().enumerate() {
            self.mount(&format!("mounts[{index}]"), mount)?;
        }
        Ok(())
    }

    fn mount(&mut self, at: &str, mount: &oci::Mount) -> Result<(), PlanError> {
        let options = Options::parse(mount.options().iter().flatten().map(String::as_str));
        let kind = mount.typ().as_deref().unwrap_or("none");
        let destination = mount.destination();
        let is_bind = options.bind.is_some() || kind == "bind";
        if options.propagation & libc::MS_SHARED != 0 {
            let reason = "cannot be shared: mounts of a container never spread to the host";
            return Err(PlanError::invalid(format!("{at}.options"), "shared", reason));
        }
        if is_bind {
            self.devices &= destination != Path::new("/dev");
            return self.bind(at, mount, options);
        }
        let target = target(&format!("{at}.destination"), destination, false)?;
        if kind == "cgroup" || kind == "cgroup2" {
            return self.cgroup_mount(at, destination, &options);
        }
        let filesystem = Filesystem {
            kind: c_string(format!("{at}.type"), kind)?,
            source: c_string(format!("{at}.source"), source_text(mount, kind))?,
            flags: options.flags,
            data: data(at, &options)?,
        };
        self.steps.push(Step::Mount { root: self.root, target, filesystem });
        Ok(())
    }

    fn bind(&mut self, at: &str, mount: &oci::Mount, mut options: Options) -> Result<(), PlanError> {
        let at_source = format!("{at}.source");
        let Some(source) = mount.source().as_ref().filter(|source| source.is_absolute()) else {
            let value = mount.source().clone().unwrap_or_default().display().to_string();
            return Err(PlanError::invalid(at_source, value, "must be an absolute path"));
        };
        if let Some(unknown) = options.data.first() {
            return Err(PlanError::invalid(format!("{at}.options"), unknown, "is not an option of a bind mount"));
        }
        let metadata = std::fs::metadata(source).map_err(|error| PlanError::Path {
            at: at_source.clone(),
            path: source.clone(),
            source: error,
        })?;
        let propagation = if options.propagation == 0 { libc::MS_PRIVATE | libc::MS_REC } else { options.propagation };
        let kind = propagation & !libc::MS_REC;
        if propagation & libc::MS_REC == 0 {
            options.attributes.propagation = kind;
        } else {
            options.recursive_attributes.propagation = kind;
        }
        let bind = Bind {
            source: c_string(at_source, source.as_os_str().as_encoded_bytes())?,
            recursive: options.bind == Some(true),
            attributes: options.attributes,
            recursive_attributes: options.recursive_attributes,
        };
        let target = target(&format!("{at}.destination"), mount.destination(), !metadata.is_dir())?;
        self.steps.push(Step::BindMount { root: self.root, target, bind });
        Ok(())
    }

    /// The container's view of its cgroup: the one hierarchy of version 2, or each of version 1, always read-only.
    fn cgroup_mount(&mut self, at: &str, destination: &Path, options: &Options) -> Result<(), PlanError> {
        let host = self.host.take().map_or_else(host_cgroups, Ok)?;
        let flags = options.flags | libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let at = format!("{at}.destination");
        let mut push = |place: &Path, kind: &str, flags: u64, data: Option<String>| {
            let filesystem = Filesystem {
                kind: c_string(&at, kind)?,
                source: c_string(&at, kind)?,
                flags,
                data: data.map(|data| c_string(&at, data)).transpose()?,
            };
            self.steps.push(Step::Mount { root: self.root, target: target(&at, place, false)?, filesystem });
            Ok::<(), PlanError>(())
        };
        let version_one: Vec<String> = host.version_one().collect();
        if version_one.is_empty() {
            return push(destination, "cgroup2", flags, None);
        }
        push(destination, "tmpfs", flags & !libc::MS_RDONLY, Some("mode=755,size=64k".into()))?;
        for controllers in version_one {
            let folder = controllers.strip_prefix("name=").unwrap_or(&controllers).to_string();
            push(&destination.join(folder), "cgroup", flags, Some(controllers))?;
        }
        let path = target(&at, destination, false)?.path;
        self.steps.push(Step::ReadOnlyPath { root: self.root, path });
        Ok(())
    }

    /// The default devices and links of the OCI runtime specification, and those that the specification adds.
    fn devices(&mut self) -> Result<(), PlanError> {
        if !self.devices {
            return Ok(());
        }
        let folder = target("/dev", Path::new("/dev"), false)?;
        self.steps.push(Step::MakeFolder { root: self.root, target: folder });
        let defaults =
            [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
        for (name, major, minor) in defaults {
            let path = PathBuf::from(format!("/dev/{name}"));
            self.device("linux.devices", &path, libc::S_IFCHR | 0o666, (major, minor), (0, 0))?;
        }
        let extra = self.linux().and_then(|linux| linux.devices().clone()).unwrap_or_default();
        for (index, device) in extra.iter().enumerate() {
            if defaults.iter().any(|(name, ..)| device.path() == &Path::new("/dev").join(name)) {
                continue;
            }
            let at = format!("linux.devices[{index}]");
            let kind = match device.typ() {
                oci::LinuxDeviceType::C | oci::LinuxDeviceType::U => libc::S_IFCHR,
                oci::LinuxDeviceType::B => libc::S_IFBLK,
                oci::LinuxDeviceType::P => libc::S_IFIFO,
                oci::LinuxDeviceType::A => {
                    return Err(PlanError::invalid(format!("{at}.type"), "a", "is not the type of one device"));
                }
            };
            let number = |name: &str, value: i64| {
                u32::try_from(value).map_err(|_| {
                    PlanError::invalid(format!("{at}.{name}"), value.to_string(), "is not a device number")
                })
            };
            let numbers = (number("major", device.major())?, number("minor", device.minor())?);
            let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
            let mode = kind | device.file_mode().unwrap_or(0o666) & 0o7777;
            self.device(&format!("{at}.path"), device.path(), mode, numbers, owner)?;
        }
        let links = [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1")];
        for (name, points_to) in links.into_iter().chain([("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx")]) {
            let folder = target("/dev", Path::new("/dev"), false)?;
            let (name, points_to) = (c_string("/dev", name)?, c_string("/dev", points_to)?);
            self.steps.push(Step::MakeSymlink { root: self.root, folder, name, points_to });
        }
        Ok(())
    }

    fn device(
        &mut self,
        at: &str,
        path: &Path,
        mode: u32,
        (major, minor): (u32, u32),
        (user, group): (u32, u32),
    ) -> Result<(), PlanError> {
        if !path.starts_with("/dev") {
            return Err(PlanError::invalid(at, path.display().to_string(), "must be below /dev"));
        }
        let target = target(at, path, true)?;
        if let Some(folder) = path.parent().filter(|folder| *folder != Path::new("/dev")) {
            let target = self::target(at, folder, false)?;
            self.steps.push(Step::MakeFolder { root: self.root, target });
        }
        let host_path = c_string(at, path.as_os_str().as_encoded_bytes())?;
        let device = Device { target, host_path, mode, major, minor, user, group };
        self.steps.push(Step::MakeDevice { root: self.root, device });
        Ok(())
    }

    fn hidden_paths(&mut self) -> Result<(), PlanError> {
        let Some(linux) = self.spec.linux() else { return Ok(()) };
        // Read-only first: a mask inside a read-only path must stay on top.
        for (index, path) in linux.readonly_paths().iter().flatten().enumerate() {
            let at = format!("linux.readonlyPaths[{index}]");
            let path = target(&at, Path::new(path), false)?.path;
            self.steps.push(Step::ReadOnlyPath { root: self.root, path });
        }
        for (index, path) in linux.masked_paths().iter().flatten().enumerate() {
            let at = format!("linux.maskedPaths[{index}]");
            let path = target(&at, Path::new(path), false)?.path;
            self.steps.push(Step::Mask { root: self.root, path });
        }
        Ok(())
    }

    fn names_and_sysctls(&mut self) -> Result<(), PlanError> {
        let own_uts = self.clone.namespaces & libc::CLONE_NEWUTS as u64 != 0;
        let names = [("hostname", self.spec.hostname()), ("domainname", self.spec.domainname())];
        for (at, name) in names {
            let Some(name) = name.clone().filter(|name| !name.is_empty()) else { continue };
            if !own_uts {
                return Err(PlanError::invalid(at, name, "needs a new uts namespace"));
            }
            if name.len() > 64 {
                return Err(PlanError::invalid(at, name, "is longer than 64 bytes"));
            }
            self.steps.push(if at == "hostname" { Step::HostName { name } } else { Step::DomainName { name } });
        }
        let sysctls = self.linux().and_then(|linux| linux.sysctl().clone()).unwrap_or_default();
        let mut sysctls: Vec<_> = sysctls.into_iter().collect();
        sysctls.sort();
        for (name, value) in sysctls {
            self.sysctl(&name, value)?;
        }
        Ok(())
    }

    /// Allows only what belongs to a namespace of the container's own.
    fn sysctl(&mut self, name: &str, value: String) -> Result<(), PlanError> {
        let at = format!("linux.sysctl.{name}");
        let list = self.linux().and_then(|linux| linux.namespaces().clone()).unwrap_or_default();
        let own = |kind: Kind| list.iter().any(|namespace| namespace.typ() == kind);
        let path = name.replace('.', "/");
        let plain = path.split('/').all(|part| !part.is_empty() && part != "..");
        let message_queues = ["kernel.msg", "kernel.sem", "kernel.shm", "fs.mqueue."];
        let allowed = (name.starts_with("net.") && own(Kind::Network))
            || (message_queues.iter().any(|prefix| name.starts_with(prefix)) && own(Kind::Ipc));
        if !plain || !allowed {
            return Err(PlanError::invalid(at, value, "does not belong to a namespace of this container"));
        }
        self.steps.push(Step::Sysctl { path: c_string(&at, format!("sys/{path}"))?, value });
        Ok(())
    }
}

/// The first argument of mount(2); many filesystems only show it.
fn source_text(mount: &oci::Mount, kind: &str) -> String {
    mount.source().as_ref().map_or_else(|| kind.to_string(), |source| source.display().to_string())
}

fn data(at: &str, options: &Options) -> Result<Option<CString>, PlanError> {
    if options.data.is_empty() {
        return Ok(None);
    }
    let data = options.data.join(",");
    if data.len() > MOUNT_DATA_MAXIMUM {
        return Err(PlanError::invalid(format!("{at}.options"), data, "are more than mount(2) takes"));
    }
    c_string(format!("{at}.options"), data).map(Some)
}

/// Prepares a place in the root: absolute, without `..`, never the root itself.
fn target(at: &str, path: &Path, file: bool) -> Result<Target, PlanError> {
    use std::path::Component;
    let refuse = |reason| Err(PlanError::invalid(at, path.display().to_string(), reason));
    if !path.is_absolute() {
        return refuse("must be an absolute path");
    }
    let mut parts = Vec::new();
    let mut leading = Vec::new();
    for component in path.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return refuse("must not contain \"..\""),
            Component::Normal(name) => {
                if !leading.is_empty() {
                    leading.push(b'/');
                }
                leading.extend_from_slice(name.as_encoded_bytes());
                parts.push((c_string(at, leading.clone())?, c_string(at, name.as_encoded_bytes())?));
            }
        }
    }
    let Some((whole, _)) = parts.last() else { return refuse("must not be the root itself") };
    let strict = ["/proc", "/sys", "/dev"].iter().any(|tree| path.starts_with(tree));
    Ok(Target { path: whole.clone(), parts, file, strict })
}

/// Refuses what would silently make a container less confined, or other, than its specification says.
fn unsupported(spec: &oci::Spec, process: &oci::Process) -> Result<(), PlanError> {
    let default = oci::Linux::default();
    let linux = spec.linux().as_ref().unwrap_or(&default);
    let hooks = spec.hooks().as_ref().is_some_and(|hooks| *hooks != oci::Hooks::default());
    let text = |value: &Option<String>| value.as_ref().is_some_and(|value| !value.is_empty());
    let mappings = |list: &Option<Vec<oci::LinuxIdMapping>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let asked = [
        ("process.apparmorProfile", text(process.apparmor_profile())),
        ("process.selinuxLabel", text(process.selinux_label())),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
        ("linux.mountLabel", text(linux.mount_label())),
        ("linux.uidMappings", mappings(linux.uid_mappings())),
        ("linux.gidMappings", mappings(linux.gid_mappings())),
        ("linux.personality", linux.personality().is_some()),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|map| !map.is_empty())),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|map| !map.is_empty())),
        ("hooks", hooks),
    ];
    match asked.iter().find(|(_, asked)| *asked) {
        Some((at, _)) => Err(PlanError::invalid(*at, "a value", "is not supported; leave it out")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_target_never_climbs(path in "[/.a]{0,24}") {
            if let Ok(target) = target("test", Path::new(&path), false) {
                prop_assert!(path.starts_with('/'));
                for (leading, name) in &target.parts {
                    let (leading, name) = (leading.to_str().unwrap(), name.to_str().unwrap());
                    prop_assert!(!matches!(name, "" | "." | "..") && !name.contains('/'));
                    prop_assert!(!leading.starts_with('/') && leading.ends_with(name));
                }
            }
        }
    }

    #[test]
    fn slots_meet_no_descriptor_in_use() {
        let mut slots = Slots { taken: vec![4, 5, 7], next: 3 };
        assert_eq!([slots.take(), slots.take(), slots.take()], [3, 6, 8]);
    }
}
