//! One container of a pod.

use serde_json::json;
use skeg_protocol::Invalid;
use skeg_protocol::manifest::{Container, Image, PullPolicy, RestartPolicy, Security};

use super::{env, network, probe, resources, restart_policy, security, volume};
use crate::cursor::{Cursor, Fault, Fields};

const CONTAINER: Fields = Fields {
    read: &[
        "args",
        "command",
        "env",
        "envFrom",
        "image",
        "imagePullPolicy",
        "lifecycle",
        "livenessProbe",
        "name",
        "ports",
        "readinessProbe",
        "resources",
        "restartPolicy",
        "securityContext",
        "startupProbe",
        "stdin",
        "stdinOnce",
        "tty",
        "volumeMounts",
        "workingDir",
    ],
    ignored: &["resizePolicy", "terminationMessagePath", "terminationMessagePolicy"],
    unsupported: &["restartPolicyRules", "volumeDevices"],
};

/// What a container's reading depends on.
pub(super) struct Place<'a> {
    /// It is an init container.
    pub(super) init: bool,
    /// The pod has the device's network.
    pub(super) host_network: bool,
    /// What it inherits.
    pub(super) shared: &'a Security,
    /// What an image reference means.
    pub(super) image: &'a dyn Fn(&str) -> Result<Image, String>,
}

pub(super) fn read(at: &Cursor<'_>, place: &Place<'_>) -> Result<Container, Fault> {
    at.fields(&CONTAINER)?;
    at.only("stdinOnce", &[json!(false)])?;
    let reference = at.need("image")?;
    let image =
        (place.image)(reference.text()?).map_err(|problem| Invalid { field: reference.path().to_owned(), problem })?;
    let ports = at.each("ports", |port| network::port(port, place.host_network))?;
    let restart_policy = restart_policy(at)?;
    let sidecar = restart_policy == Some(RestartPolicy::Always);
    if place.init && !sidecar {
        // Nobody asks a container that has ended before the others begin.
        for name in ["startupProbe", "livenessProbe", "readinessProbe", "lifecycle"] {
            if let Some(field) = at.get(name)? {
                return Err(field.wrong("is only for containers and for init containers with restartPolicy: Always"));
            }
        }
    }
    let resources = resources::read(at)?;
    Ok(Container {
        name: at.need("name")?.bounded()?,
        image,
        pull_policy: pull_policy(at)?,
        command: at.texts("command")?,
        args: at.texts("args")?,
        env_from: at.each("envFrom", env::read_from)?,
        env: at.each("env", env::read)?,
        working_dir: Some(at.word("workingDir")?.to_owned()).filter(|path| !path.is_empty()),
        security: security::of_container(at, place.shared)?,
        limits: resources.limits,
        requests: resources.requests,
        mounts: at.each("volumeMounts", volume::mount)?,
        devices: resources.devices,
        probes: probe::probes(at, &ports)?,
        lifecycle: probe::lifecycle(at, &ports)?,
        ports,
        restart_policy,
        stdin: at.flag("stdin")?,
        tty: at.flag("tty")?,
        ..Container::default()
    })
}

/// Whether the reference is asked for anew is the sender's; the device keeps to the content that it is told.
fn pull_policy(at: &Cursor<'_>) -> Result<PullPolicy, Fault> {
    let Some(policy) = at.get("imagePullPolicy")? else { return Ok(PullPolicy::IfNotPresent) };
    match policy.text()? {
        "" | "Always" | "IfNotPresent" => Ok(PullPolicy::IfNotPresent),
        "Never" => Ok(PullPolicy::Never),
        _ => Err(policy.invalid("must be Always, IfNotPresent or Never")),
    }
}
