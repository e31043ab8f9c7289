//! Pods as the controller sees them: what their images mean, and their status from a device's report to Kubernetes'
//! JSON. Pure: no store, no clock, no network.

mod status;

use serde_json::Value;
use skeg_kube::Fault;
use skeg_protocol::Pod;
use skeg_protocol::manifest::Image;

pub(crate) use status::{conditions, failed_images, from_device, unschedulable};

/// Converts a Pod. `image` says what a container's image reference means, by the container's index.
///
/// # Errors
/// The first field that is unknown, unsupported or breaks a rule.
pub(crate) fn convert(pod: &Value, image: impl Fn(usize, &str) -> Image) -> Result<Pod, Fault> {
    skeg_kube::convert(&for_device(pod), |index, reference| match reference.parse::<skeg_images::Reference>() {
        Ok(_) => Ok(image(index, reference)),
        Err(error) => Err(error.to_string()),
    })
}

/// A pod without what is the controller's alone: who owns it, and where it may be.
fn for_device(pod: &Value) -> Value {
    let mut pod = pod.clone();
    for (part, fields) in
        [("metadata", &["ownerReferences", "finalizers"][..]), ("spec", &["affinity", "topologySpreadConstraints"])]
    {
        if let Some(map) = pod[part].as_object_mut() {
            map.retain(|name, _| !fields.contains(&name.as_str()));
        }
    }
    pod
}
