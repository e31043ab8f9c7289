//! Turns a pod's container and its image into an OCI runtime spec. The only place that knows both.
//!
//! It reads the image's passwd and group files and looks at host paths; it changes nothing and starts nothing.
//! Every error names the field of the pod, as Kubernetes writes it, or of the image.

mod beyond;
mod env;
mod resources;
pub(crate) mod users;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use skeg_protocol::manifest::{Security, VolumeMount};
use skeg_protocol::{Container, Label, Pod};
use skeg_runtime::oci;
use thiserror::Error;

use crate::reaper;
use crate::volumes::facts::Facts;
use crate::volumes::{Ids, Place};
use env::Variables;
pub use resources::{Node, Qos, of_all_pods, of_pod, qos, requested_memory};

/// Every capability of Linux, without `CAP_`: what `ALL` means. See capabilities(7).
const ALL_CAPABILITIES: &str = "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN \
    DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE \
    MKNOD NET_ADMIN NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETGID SETFCAP SETPCAP SETUID SYS_ADMIN SYS_BOOT \
    SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG SYSLOG \
    WAKE_ALARM";

/// How many users and groups a pod of its own users has: what images and Kubernetes count on.
pub(crate) const USERS: u32 = 65_536;

/// Why a container can't be put into a spec.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConvertError {
    /// A field can't be satisfied.
    #[error("{field}: {problem}")]
    Field {
        /// Field of the pod or the image.
        field: String,
        /// What is wrong and with which value.
        problem: String,
    },
    /// A config map or secret is not there, in Kubernetes' words.
    #[error("{0}")]
    Missing(String),
}

impl ConvertError {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        ConvertError::Field { field: field.into(), problem: problem.into() }
    }
}

/// What a spec is made of.
pub struct Inputs<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// One of its containers.
    pub container: &'a Container,
    /// The image's configuration.
    pub image: &'a ImageConfiguration,
    /// The image's layers, lowest first.
    pub layers: &'a [PathBuf],
    /// Host name that the pod sees.
    pub hostname: &'a str,
    /// Folder with `hosts`, `hostname` and `resolv.conf` for this pod.
    pub etc: &'a Path,
    /// Where each of the pod's volumes lies on the device.
    pub volumes: &'a BTreeMap<Label, Place>,
    /// Whether the pod has users of its own.
    pub own_users: bool,
    /// What the pod may be told.
    pub facts: &'a Facts,
    /// Folder in which its device nodes will be.
    pub devices: &'a Path,
    /// A copy of this program, for containers that ask for an init.
    pub init: &'a Path,
}

/// A spec, and what is to be done before it is used.
#[derive(Debug, Clone)]
pub struct Converted {
    /// The spec, with the cgroup's resources.
    pub spec: oci::Spec,
    /// Mounts whose source is to be opened inside a volume.
    pub sub_paths: Vec<SubPath>,
    /// Device nodes that are to be made in [`Inputs::devices`].
    pub nodes: Vec<Node>,
}

/// A part of a volume that is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubPath {
    /// Index of the spec's mount whose source it becomes.
    pub mount: usize,
    /// The volume's folder.
    pub volume: PathBuf,
    /// Relative, inside the volume.
    pub path: String,
    /// Whether a folder is made where nothing is.
    pub make: bool,
}

/// Makes the spec.
///
/// # Errors
/// The field that can't be satisfied, and why.
pub fn spec(inputs: &Inputs<'_>) -> Result<Converted, ConvertError> {
    beyond::check(inputs.pod, inputs.container)?;
    let mut spec = skeg_runtime::default_spec();
    let mut process = spec.process().clone().unwrap_or_default();
    let variables = env::own(inputs.pod, inputs.container, inputs.facts)?;
    fill_process(&mut process, inputs, &variables)?;
    let security = &inputs.container.security;
    if let Some(set) = process.capabilities() {
        process.set_capabilities(Some(capabilities(set, security)?));
    }
    spec.set_process(Some(process));
    spec.set_hostname(Some(inputs.hostname.to_owned()));
    let mut root = spec.root().clone().unwrap_or_default();
    root.set_readonly(Some(security.read_only_root));
    spec.set_root(Some(root));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    if let Some(bytes) = inputs.container.limits.shm_bytes {
        size_shared_memory(&mut mounts, bytes);
    }
    let mut sub_paths = Vec::new();
    add_mounts(inputs, &variables, &mut mounts, &mut sub_paths)?;
    spec.set_mounts(Some(mounts));
    let nodes = resources::nodes(&inputs.container.devices)?;
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    if inputs.pod.host_network {
        namespaces.retain(|namespace| namespace.typ() != oci::LinuxNamespaceType::Network);
    }
    if inputs.own_users {
        let mut users = oci::LinuxNamespace::default();
        users.set_typ(oci::LinuxNamespaceType::User);
        namespaces.push(users);
    }
    linux.set_namespaces(Some(namespaces));
    if security.seccomp_unconfined {
        linux.set_seccomp(None);
    }
    linux.set_sysctl(Some(inputs.pod.sysctls.iter().cloned().collect()));
    linux.set_resources(Some(resources::of_container(inputs.container, &nodes)?));
    spec.set_linux(Some(linux));
    Ok(Converted { spec, sub_paths, nodes })
}

/// Sets the size of `/dev/shm`.
fn size_shared_memory(mounts: &mut [oci::Mount], bytes: u64) {
    for mount in mounts.iter_mut().filter(|mount| mount.destination() == Path::new("/dev/shm")) {
        let mut options = mount.options().clone().unwrap_or_default();
        options.retain(|option| !option.starts_with("size="));
        options.push(format!("size={bytes}"));
        mount.set_options(Some(options));
    }
}

fn fill_process(process: &mut oci::Process, inputs: &Inputs<'_>, own: &Variables) -> Result<(), ConvertError> {
    let Inputs { pod, container, image, .. } = inputs;
    let empty = oci_spec::image::Config::default();
    let config = image.config().as_ref().unwrap_or(&empty);
    let identity = identity(inputs, config.user().as_deref().unwrap_or_default())?;
    let home = identity.home.as_deref().unwrap_or("/");
    let variables = env::merge(config.env().as_deref().unwrap_or_default(), own, inputs.hostname, home);
    let expand = |words: &[String]| words.iter().map(|word| env::expand(word, own)).collect::<Vec<_>>();
    let arguments = arguments(
        config.entrypoint().as_deref().unwrap_or_default(),
        config.cmd().as_deref().unwrap_or_default(),
        &expand(&container.command),
        &expand(&container.args),
    );
    if arguments.first().is_none_or(String::is_empty) {
        return Err(ConvertError::new("command", "is empty, and the image has neither entrypoint nor command"));
    }
    let arguments = if container.init { with_init(arguments) } else { arguments };
    let folder = container.working_dir.as_deref().or(config.working_dir().as_deref()).unwrap_or_default();
    let folder = if folder.is_empty() { "/" } else { folder };
    if !folder.starts_with('/') {
        return Err(ConvertError::new("image config.WorkingDir", format!("{folder:?} is not absolute")));
    }
    let mut user = oci::User::default();
    user.set_uid(identity.uid);
    user.set_gid(identity.gid);
    user.set_additional_gids(Some(identity.groups));
    process.set_user(user);
    process.set_args(Some(arguments));
    process.set_env(Some(variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()));
    process.set_cwd(folder.into());
    process.set_rlimits(Some(resources::ulimits(container)?));
    let score = resources::oom_score_adj(pod, container, inputs.facts.device.memory);
    process.set_oom_score_adj(Some(score.max(inputs.facts.device.least_score)));
    Ok(())
}

/// Puts the small init before a program.
fn with_init(arguments: Vec<String>) -> Vec<String> {
    [reaper::PATH, reaper::WORD, "--"].map(str::to_owned).into_iter().chain(arguments).collect()
}

/// Who a container runs as, with the groups of its pod.
fn identity(inputs: &Inputs<'_>, image_user: &str) -> Result<users::Identity, ConvertError> {
    let (passwd, group) = (users::read(inputs.layers, "etc/passwd"), users::read(inputs.layers, "etc/group"));
    let Security { user, group: gid, user_name, run_as_non_root, .. } = &inputs.container.security;
    let image_user = user_name.as_deref().unwrap_or(image_user);
    let mut identity = users::resolve(image_user, *user, *gid, &passwd, &group)?;
    identity.groups.extend(inputs.pod.supplemental_groups.iter().chain(&inputs.pod.fs_group));
    identity.groups.sort_unstable();
    identity.groups.dedup();
    let highest = identity.groups.iter().chain([&identity.uid, &identity.gid]).copied().max();
    if inputs.own_users
        && let Some(id) = highest.filter(|id| *id >= USERS)
    {
        let problem =
            format!("user or group {id} is not one of the pod's own {USERS}; set hostUsers: true in the spec");
        return Err(ConvertError::new("securityContext.runAsUser", problem));
    }
    if *run_as_non_root && identity.uid == 0 {
        let problem = "is set, and the container would run as user 0; set runAsUser";
        return Err(ConvertError::new("securityContext.runAsNonRoot", problem));
    }
    Ok(identity)
}

/// Joins the image's and the container's words as Kubernetes does: a command replaces the image's entrypoint and
/// its arguments; arguments alone replace the image's arguments.
fn arguments(entrypoint: &[String], image_args: &[String], command: &[String], args: &[String]) -> Vec<String> {
    let (first, rest) = match (command.is_empty(), args.is_empty()) {
        (false, _) => (command, args),
        (true, false) => (entrypoint, args),
        (true, true) => (entrypoint, image_args),
    };
    [first, rest].concat()
}

fn capabilities(default: &oci::LinuxCapabilities, security: &Security) -> Result<oci::LinuxCapabilities, ConvertError> {
    let parse = |name: &str, field: &'static str| {
        let plain = name.strip_prefix("CAP_").unwrap_or(name).to_ascii_uppercase();
        plain.parse::<oci::Capability>().map_err(|_| {
            ConvertError::new(format!("securityContext.capabilities.{field}"), format!("{name:?} is no capability"))
        })
    };
    let mut set = default.bounding().clone().unwrap_or_default();
    // Dropping comes first, so that `drop: [ALL], add: [CHOWN]` leaves CHOWN.
    for name in &security.drop_capabilities {
        if name.eq_ignore_ascii_case("ALL") {
            set.clear();
        } else {
            set.remove(&parse(name, "drop")?);
        }
    }
    for name in &security.add_capabilities {
        if name.eq_ignore_ascii_case("ALL") {
            for name in ALL_CAPABILITIES.split_whitespace() {
                set.insert(parse(name, "add")?);
            }
        } else {
            set.insert(parse(name, "add")?);
        }
    }
    let mut out = oci::LinuxCapabilities::default();
    out.set_bounding(Some(set.clone()));
    out.set_effective(Some(set.clone()));
    out.set_permitted(Some(set));
    // Never inheritable or ambient: CVE-2022-29162.
    out.set_inheritable(None);
    out.set_ambient(None);
    Ok(out)
}

/// A bind mount. With `map_ids` whoever owns a file of the host owns it in the pod, too, also on what is mounted below.
fn bind(source: &Path, destination: &str, read_only: bool, map_ids: bool) -> oci::Mount {
    let mut mount = oci::Mount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(source.to_owned()));
    let access = if read_only { "ro" } else { "rw" };
    let words = ["rbind", "rprivate", access].into_iter().chain(map_ids.then_some("ridmap"));
    mount.set_options(Some(words.map(str::to_owned).collect()));
    mount
}

/// Adds the pod's own files, the container's volumes and its devices, in the order in which they are mounted.
fn add_mounts(
    inputs: &Inputs<'_>,
    own: &Variables,
    mounts: &mut Vec<oci::Mount>,
    sub_paths: &mut Vec<SubPath>,
) -> Result<(), ConvertError> {
    let wanted = &inputs.container.mounts;
    for file in ["hosts", "hostname", "resolv.conf"] {
        let destination = format!("/etc/{file}");
        if wanted.iter().all(|mount| mount.path != destination) {
            mounts.push(bind(&inputs.etc.join(file), &destination, false, false));
        }
    }
    for (index, mount) in wanted.iter().enumerate() {
        let at = |part: &str| format!("volumeMounts[{index}].{part}");
        let place = inputs
            .volumes
            .get(&mount.volume)
            .ok_or_else(|| ConvertError::new(at("name"), format!("the pod has no volume {:?}", mount.volume)))?;
        if mount.path.trim_matches('/').is_empty() {
            return Err(ConvertError::new(at("mountPath"), "a volume can't take the place of the root"));
        }
        if let Some(path) = sub_path(mount, own).map_err(|problem| ConvertError::new(at("subPath"), problem))? {
            let (volume, make) = (place.path.clone(), !place.read_only);
            sub_paths.push(SubPath { mount: mounts.len(), volume, path, make });
        }
        let read_only = mount.read_only || place.read_only;
        let map_ids = match place.ids {
            Ids::Own => false,
            Ids::Seen => true,
            Ids::Kernel => !read_only,
        };
        mounts.push(bind(&place.path, &mount.path, read_only, map_ids && inputs.own_users));
    }
    if inputs.container.init {
        mounts.push(bind(inputs.init, reaper::PATH, true, false));
    }
    for (index, device) in inputs.container.devices.iter().enumerate() {
        mounts.push(bind(&inputs.devices.join(index.to_string()), &device.container_path, false, false));
    }
    Ok(())
}

/// The part of a volume that a mount shows, with its variables replaced; `None` is all of it.
fn sub_path(mount: &VolumeMount, own: &Variables) -> Result<Option<String>, String> {
    let Some(path) = &mount.sub_path else { return Ok(None) };
    let (path, unknown) = env::expand_all(path, own);
    if let Some(name) = unknown {
        return Err(format!("missing value for {name:?}"));
    }
    let inside = !path.starts_with('/') && path.split('/').all(|part| part != "..") && !path.contains('\0');
    if inside { Ok(Some(path)) } else { Err(format!("{path:?} must be relative and must not hold `..`")) }
}

#[cfg(test)]
mod tests;
