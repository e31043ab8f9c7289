//! From a Pod as Kubernetes writes it to a pod as a device obeys it. Everything that the manifest has no word for is
//! refused here, by name.

mod capabilities;
mod container;
mod env;
mod network;
mod probe;
mod resources;
mod security;
#[cfg(test)]
mod tests;
mod volume;

use serde_json::{Value, json};
use skeg_protocol::limits::MAX_FRAME;
use skeg_protocol::manifest::{Image, Pod, RestartPolicy, Security};
use skeg_protocol::{Invalid, Label, Name, Uid};

use crate::cursor::{Cursor, Fault, Fields};
use container::Place;

pub(crate) use capabilities::read as capability;
pub(crate) use network::port_protocol;

const TOP: Fields =
    Fields { read: &["metadata", "spec"], ignored: &["apiVersion", "kind", "status"], unsupported: &[] };
const TEMPLATE: Fields = Fields { read: &["metadata", "spec"], ignored: &[], unsupported: &[] };
/// Fields of `metadata`, of any kind of object.
pub(crate) const METADATA: Fields = Fields {
    read: &["name", "namespace", "uid", "labels", "annotations"],
    ignored: &[
        "generateName",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
    ],
    unsupported: &[],
};
const SPEC: Fields = Fields {
    read: &[
        "activeDeadlineSeconds",
        "containers",
        "dnsConfig",
        "dnsPolicy",
        "hostAliases",
        "hostIPC",
        "hostNetwork",
        "hostPID",
        "hostUsers",
        "hostname",
        "imagePullSecrets",
        "initContainers",
        "nodeSelector",
        "os",
        "priority",
        "priorityClassName",
        "restartPolicy",
        "securityContext",
        "serviceAccount",
        "serviceAccountName",
        "setHostnameAsFQDN",
        "shareProcessNamespace",
        "subdomain",
        "terminationGracePeriodSeconds",
        "volumes",
    ],
    // What these say is for whoever chooses the node, is how it is on a device anyway, or has nothing there that it could
    // apply to.
    ignored: &[
        "affinity",
        "automountServiceAccountToken",
        "enableServiceLinks",
        "nodeName",
        "preemptionPolicy",
        "schedulerName",
        "tolerations",
        "topologySpreadConstraints",
    ],
    unsupported: &[
        "ephemeralContainers",
        "hostnameOverride",
        "overhead",
        "readinessGates",
        "resourceClaims",
        "resources",
        "runtimeClassName",
        "schedulingGates",
        "workloadRef",
    ],
};

/// The containers of a pod as they are written: the init containers first, in the order of [`Pod::all_containers`].
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    let list = |name: &str| pod["spec"][name].as_array().map(Vec::as_slice).unwrap_or_default();
    list("initContainers").iter().chain(list("containers"))
}

/// The images that a pod's containers name, in the order of [`containers`].
pub fn image_references(pod: &Value) -> Vec<String> {
    containers(pod).map(|container| container["image"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The names of the secrets for a pod's pulls.
pub fn pull_secret_names(pod: &Value) -> impl Iterator<Item = &str> {
    let names = pod["spec"]["imagePullSecrets"].as_array().map(Vec::as_slice).unwrap_or_default();
    names.iter().filter_map(|entry| entry["name"].as_str())
}

/// Converts a Pod. `image` says what a container's image reference means, by the container's index among
/// [`containers`], or why it is none.
///
/// # Errors
/// The first field that is unknown, unsupported or breaks a rule.
pub fn convert(pod: &Value, image: impl Fn(usize, &str) -> Result<Image, String>) -> Result<Pod, Fault> {
    let top = Cursor::new(pod, "");
    top.fields(&TOP)?;
    let metadata = top.need("metadata")?;
    let uid = match metadata.get("uid")? {
        Some(uid) => uid.text()?.parse().map_err(|_| uid.invalid("must be a UUID"))?,
        None => Uid::default(),
    };
    let (namespace, name) = (metadata.need("namespace")?.bounded()?, metadata.need("name")?.bounded()?);
    read(&top, Identity { uid, namespace, name }, &image)
}

/// Who a pod is.
pub(crate) struct Identity {
    pub(crate) uid: Uid,
    pub(crate) namespace: Label,
    pub(crate) name: Name,
}

/// Reads a pod template, whose pods have the names that are given here.
pub(crate) fn read_template(
    at: &Cursor<'_>,
    who: Identity,
    image: &dyn Fn(usize, &str) -> Result<Image, String>,
) -> Result<Pod, Fault> {
    at.fields(&TEMPLATE)?;
    read(at, who, image)
}

fn read(at: &Cursor<'_>, who: Identity, image: &dyn Fn(usize, &str) -> Result<Image, String>) -> Result<Pod, Fault> {
    let spec = at.need("spec")?;
    spec.fields(&SPEC)?;
    let mut pod = Pod { uid: who.uid, namespace: who.namespace, name: who.name, ..Pod::default() };
    if let Some(metadata) = at.get("metadata")? {
        metadata.fields(&METADATA)?;
        pod.labels = metadata.text_map("labels")?;
        pod.annotations = metadata.text_map("annotations")?;
    }
    read_spec(&spec, &mut pod)?;
    let shared = security::of_pod(&spec, &mut pod)?;
    pod.volumes = spec.each("volumes", volume::read)?;
    read_containers(&spec, &mut pod, &shared, image)?;
    let prefix = if at.path().is_empty() { String::new() } else { format!("{}.", at.path()) };
    pod.validate().map_err(|invalid| Invalid { field: format!("{prefix}{}", invalid.field), ..invalid })?;
    let size = postcard::to_allocvec(&pod).map_or(usize::MAX, |bytes| bytes.len());
    if size > MAX_FRAME {
        return Err(spec.wrong(format!("{size} bytes on the wire, at most {MAX_FRAME} are possible")));
    }
    Ok(pod)
}

/// Reads what stands beside containers and volumes.
fn read_spec(spec: &Cursor<'_>, pod: &mut Pod) -> Result<(), Fault> {
    spec.only("hostPID", &[json!(false)])?;
    spec.only("hostIPC", &[json!(false)])?;
    spec.only("setHostnameAsFQDN", &[json!(false)])?;
    spec.only("os", &[json!({"name": "linux"}), json!({})])?;
    spec.text_map("nodeSelector")?;
    pod.host_network = spec.flag("hostNetwork")?;
    pod.host_users = spec.flag("hostUsers")?;
    if pod.host_network
        && let Some(users) = spec.get("hostUsers")?.filter(|_| !pod.host_users)
    {
        return Err(users.invalid("must be true or left out when hostNetwork is true"));
    }
    pod.share_processes = spec.flag("shareProcessNamespace")?;
    pod.restart_policy = restart_policy(spec)?.unwrap_or_default();
    if let Some(seconds) = spec.number("terminationGracePeriodSeconds")? {
        pod.termination_grace_seconds = seconds;
    }
    if let Some(seconds) = spec.get("activeDeadlineSeconds")? {
        let number: u32 = seconds.integer()?;
        pod.active_deadline_seconds = Some(number).filter(|number| *number > 0);
        pod.active_deadline_seconds.ok_or_else(|| seconds.invalid("must be at least 1"))?;
    }
    pod.image_pull_secrets = spec.each("imagePullSecrets", |at| {
        at.fields(&Fields { read: &["name"], ignored: &[], unsupported: &[] })?;
        at.need("name")?.bounded()
    })?;
    let text = |name| spec.get(name).map(|field| field.filter(|field| field.value().as_str() != Some("")));
    pod.hostname = text("hostname")?.map(|name| name.bounded()).transpose()?;
    pod.subdomain = text("subdomain")?.map(|name| name.bounded()).transpose()?;
    // The old name of the field, which Kubernetes writes beside the new one.
    let account = text("serviceAccountName")?.or(text("serviceAccount")?);
    pod.service_account = account.map(|name| name.bounded()).transpose()?.unwrap_or_default();
    pod.priority = priority(spec)?;
    pod.dns = network::dns(spec, pod.host_network)?;
    pod.host_aliases = spec.each("hostAliases", network::host_alias)?;
    Ok(())
}

/// The number, which a controller has looked up; else that of the two classes that every cluster has.
fn priority(spec: &Cursor<'_>) -> Result<i32, Fault> {
    let class = spec.word("priorityClassName")?;
    if let Some(number) = spec.number("priority")? {
        return Ok(number);
    }
    Ok(match class {
        "system-node-critical" => 2_000_001_000,
        "system-cluster-critical" => 2_000_000_000,
        _ => 0,
    })
}

/// The policy of a pod or of a container, where it has one.
fn restart_policy(at: &Cursor<'_>) -> Result<Option<RestartPolicy>, Fault> {
    let Some(policy) = at.get("restartPolicy")? else { return Ok(None) };
    match policy.text()? {
        "Always" => Ok(Some(RestartPolicy::Always)),
        "OnFailure" => Ok(Some(RestartPolicy::OnFailure)),
        "Never" => Ok(Some(RestartPolicy::Never)),
        _ => Err(policy.invalid("must be Always, OnFailure or Never")),
    }
}

fn read_containers(
    spec: &Cursor<'_>,
    pod: &mut Pod,
    shared: &Security,
    image: &dyn Fn(usize, &str) -> Result<Image, String>,
) -> Result<(), Fault> {
    let init = spec.items("initContainers")?;
    for (index, at) in init.iter().chain(&spec.items("containers")?).enumerate() {
        let image = |reference: &str| image(index, reference);
        let place = Place { init: index < init.len(), host_network: pod.host_network, shared, image: &image };
        let list = if place.init { &mut pod.init_containers } else { &mut pod.containers };
        list.push(container::read(at, &place)?);
    }
    Ok(())
}
