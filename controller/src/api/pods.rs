//! What is special about pods: defaults, what may change later, and a deletion that waits for the device.

use serde_json::{Value, json};

use super::ApiError;
use crate::app::App;
use crate::manager::unresolved;
use crate::pods::convert;
use crate::store::{Key, Store, update};
use crate::time;

fn check(pod: &Value) -> Result<(), ApiError> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    convert(pod, |_, reference| unresolved(reference)).map(drop).map_err(|fault| ApiError::fault(name, &fault))
}

fn default(place: &mut Value, name: &str, value: Value) {
    if place[name].is_null() {
        place[name] = value;
    }
}

/// Checks a new pod and fills in what its author left out.
pub(super) fn prepare(pod: &mut Value) -> Result<(), ApiError> {
    check(pod)?;
    let spec = &mut pod["spec"];
    default(spec, "restartPolicy", json!("Always"));
    default(spec, "terminationGracePeriodSeconds", json!(30));
    default(spec, "dnsPolicy", json!("ClusterFirst"));
    default(spec, "schedulerName", json!("default-scheduler"));
    default(spec, "securityContext", json!({}));
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        let policy = default_pull_policy(container["image"].as_str().unwrap_or_default());
        default(container, "imagePullPolicy", json!(policy));
        default(container, "terminationMessagePath", json!("/dev/termination-log"));
        default(container, "terminationMessagePolicy", json!("File"));
        default(container, "resources", json!({}));
        for port in container["ports"].as_array_mut().into_iter().flatten() {
            default(port, "protocol", json!("TCP"));
        }
    }
    pod["status"] = json!({"phase": "Pending"});
    Ok(())
}

/// Kubernetes' rule: what is called `latest`, by word or by default, may mean something else tomorrow.
fn default_pull_policy(image: &str) -> &'static str {
    match image.parse::<skeg_images::Reference>() {
        Ok(reference) if reference.digest().is_none() && reference.tag().unwrap_or("latest") == "latest" => "Always",
        _ => "IfNotPresent",
    }
}

/// Checks that a change touches only what may change in a pod's life: metadata and images.
pub(super) fn check_change(old: &Value, new: &Value) -> Result<(), ApiError> {
    check(new)?;
    let mut allowed = old["spec"].clone();
    let images = new["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (container, new) in allowed["containers"].as_array_mut().into_iter().flatten().zip(images) {
        container["image"] = new["image"].clone();
    }
    // The scheduler may have bound the pod since the client read it.
    let mut wanted = new["spec"].clone();
    if wanted["nodeName"].is_null() && !old["spec"]["nodeName"].is_null() {
        wanted["nodeName"] = old["spec"]["nodeName"].clone();
    }
    if allowed != wanted {
        let name = new["metadata"]["name"].as_str().unwrap_or_default();
        let problem = "Forbidden: pod updates may not change fields other than `spec.containers[*].image`";
        return Err(ApiError::invalid("Pod", name, "spec", problem));
    }
    Ok(())
}

/// Marks a pod as deleted; its object goes when the device has let go of it, or at once when forced.
pub(super) fn delete(app: &App, key: &Key, pod: &Value, grace: Option<i64>) -> Result<Value, ApiError> {
    let unbound = pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
    if grace == Some(0) || unbound {
        return Ok(app.store.remove(key)?);
    }
    let default = pod["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    let grace = grace.unwrap_or(default).max(1);
    let now = time::now();
    let marked = update(app.store.as_ref(), key, |pod| {
        if pod["metadata"]["deletionTimestamp"].is_null() {
            pod["metadata"]["deletionTimestamp"] = json!(time::text(now));
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        }
    })?;
    marked.ok_or_else(|| ApiError::not_found(&key.kind, &key.name))
}
