//! What is special about pods: defaults, what may change later, and a deletion that waits for the device.

use serde_json::{Value, json};

use super::defaults;
use crate::api::ApiError;
use crate::api::delete::Outcome;
use crate::api::error::Cause;
use crate::app::App;
use crate::manager::unresolved;
use crate::pods::convert;
use crate::store::{Key, Store, update};
use crate::time;

fn check(pod: &Value) -> Result<(), ApiError> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    convert(pod, |_, reference| unresolved(reference)).map(drop).map_err(|fault| ApiError::fault(name, &fault))
}

/// Checks a new pod and fills in what its author left out.
pub(super) fn prepare(pod: &mut Value) -> Result<(), ApiError> {
    check(pod)?;
    defaults::pod_spec(&mut pod["spec"]);
    pod["status"] = json!({"phase": "Pending", "qosClass": quality(&pod["spec"])});
    Ok(())
}

/// The quality of service that Kubernetes derives from requests and limits.
fn quality(spec: &Value) -> &'static str {
    let containers = || spec["containers"].as_array().into_iter().flatten();
    let has = |container: &Value, part: &str, name: &str| !container["resources"][part][name].is_null();
    let names = ["cpu", "memory"];
    let any = |part: &str| containers().any(|container| names.iter().any(|name| has(container, part, name)));
    let same = |container: &Value| {
        let (limits, requests) = (&container["resources"]["limits"], &container["resources"]["requests"]);
        names.iter().all(|name| !limits[*name].is_null() && limits[*name] == requests[*name])
    };
    match () {
        () if !any("limits") && !any("requests") => "BestEffort",
        () if containers().all(same) => "Guaranteed",
        () => "Burstable",
    }
}

/// Checks that a change touches only what may change in a pod's life: metadata and images.
pub(super) fn check_change(old: &Value, new: &Value) -> Result<(), ApiError> {
    check(new)?;
    let mut allowed = old["spec"].clone();
    let images = new["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (container, new) in
        allowed.get_mut("containers").and_then(Value::as_array_mut).into_iter().flatten().zip(images)
    {
        container["image"] = new["image"].clone();
    }
    for field in ["tolerations", "activeDeadlineSeconds", "terminationGracePeriodSeconds"] {
        allowed[field] = new["spec"][field].clone();
        if allowed[field].is_null() {
            allowed.as_object_mut().map(|spec| spec.remove(field));
        }
    }
    // The scheduler may have bound the pod since the client read it.
    let mut wanted = new["spec"].clone();
    if wanted["nodeName"].is_null() && !old["spec"]["nodeName"].is_null() {
        wanted["nodeName"] = old["spec"]["nodeName"].clone();
    }
    if allowed != wanted {
        let name = new["metadata"]["name"].as_str().unwrap_or_default();
        let why = "pod updates may not change fields other than `spec.containers[*].image`, \
                   `spec.activeDeadlineSeconds`, `spec.tolerations` and `spec.terminationGracePeriodSeconds`";
        return Err(ApiError::causes("Pod", name, &[Cause::forbidden("spec", why)]));
    }
    Ok(())
}

/// Marks a pod as deleted; its object goes when the device has let go of it, or at once when forced.
pub(in crate::api) fn delete(app: &App, key: &Key, pod: &Value, grace: Option<i64>) -> Result<Outcome, ApiError> {
    let unbound = pod["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
    if grace == Some(0) || unbound {
        return Ok(Outcome::Gone(app.store.remove(key)?));
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
    marked.map(Outcome::Leaving).ok_or_else(|| ApiError::not_found(&key.kind, &key.name))
}
