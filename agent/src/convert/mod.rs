//! Turns a pod's container and its image into an OCI runtime spec. The only place that knows both.
//!
//! It reads the image's passwd and group files and looks at host paths; it changes nothing and starts nothing.
//! Every error names the field of the pod, as Kubernetes writes it, or of the image.

mod beyond;
mod env;
pub(crate) mod users;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use skeg_protocol::manifest::{Security, Volume, VolumeSource};
use skeg_protocol::{Container, Label, Pod};
use skeg_runtime::oci;
use thiserror::Error;

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
#[error("{field}: {problem}")]
pub struct ConvertError {
    /// Field of the pod or the image.
    field: String,
    /// What is wrong and with which value.
    problem: String,
}

impl ConvertError {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        ConvertError { field: field.into(), problem: problem.into() }
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
    pub volumes: &'a BTreeMap<Label, PathBuf>,
    /// Whether the pod has users of its own.
    pub own_users: bool,
}

/// Makes the spec.
///
/// # Errors
/// The field that can't be satisfied, and why.
pub fn spec(inputs: &Inputs<'_>) -> Result<oci::Spec, ConvertError> {
    beyond::check(inputs.pod, inputs.container)?;
    let mut spec = skeg_runtime::default_spec();
    let mut process = spec.process().clone().unwrap_or_default();
    fill_process(&mut process, inputs)?;
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
    mounts.extend(own_mounts(inputs)?);
    spec.set_mounts(Some(mounts));
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
    spec.set_linux(Some(linux));
    Ok(spec)
}

fn fill_process(process: &mut oci::Process, inputs: &Inputs<'_>) -> Result<(), ConvertError> {
    let Inputs { container, image, .. } = inputs;
    let empty = oci_spec::image::Config::default();
    let config = image.config().as_ref().unwrap_or(&empty);
    let (passwd, group) = (users::read(inputs.layers, "etc/passwd"), users::read(inputs.layers, "etc/group"));
    let Security { user, group: gid, run_as_non_root, .. } = &container.security;
    let named = container.security.user_name.as_deref().or(config.user().as_deref()).unwrap_or_default();
    let identity = users::resolve(named, *user, *gid, &passwd, &group)?;
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
    let variables = env::merge(
        config.env().as_deref().unwrap_or_default(),
        &container.env,
        inputs.hostname,
        identity.home.as_deref().unwrap_or("/"),
    )?;
    let expand = |words: &[String]| words.iter().map(|word| env::expand(word, &variables)).collect::<Vec<_>>();
    let arguments = arguments(
        config.entrypoint().as_deref().unwrap_or_default(),
        config.cmd().as_deref().unwrap_or_default(),
        &expand(&container.command),
        &expand(&container.args),
    );
    if arguments.first().is_none_or(String::is_empty) {
        return Err(ConvertError::new("command", "is empty, and the image has neither entrypoint nor command"));
    }
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
    Ok(())
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

/// The pod's own files and the container's volumes, in the order in which they are mounted.
fn own_mounts(inputs: &Inputs<'_>) -> Result<Vec<oci::Mount>, ConvertError> {
    let mut mounts = Vec::new();
    let wanted = &inputs.container.mounts;
    for file in ["hosts", "hostname", "resolv.conf"] {
        let destination = format!("/etc/{file}");
        if wanted.iter().all(|mount| mount.path != destination) {
            mounts.push(bind(&inputs.etc.join(file), &destination, false, false));
        }
    }
    for (index, mount) in wanted.iter().enumerate() {
        let at = |part: &str| format!("volumeMounts[{index}].{part}");
        let source = inputs
            .volumes
            .get(&mount.volume)
            .ok_or_else(|| ConvertError::new(at("name"), format!("the pod has no volume {:?}", mount.volume)))?;
        if mount.path.trim_matches('/').is_empty() {
            return Err(ConvertError::new(at("mountPath"), "a volume can't take the place of the root"));
        }
        // What was made for the pod belongs to its users; what was there before belongs to the host's.
        let of_host =
            |volume: &Volume| volume.name == mount.volume && matches!(volume.source, VolumeSource::HostPath { .. });
        let map_ids = inputs.own_users && inputs.pod.volumes.iter().any(of_host);
        mounts.push(bind(source, &mount.path, mount.read_only, map_ids));
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests;
