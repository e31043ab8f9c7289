//! What Kubernetes fills into a pod's specification, in a Pod and in the template of a workload alike.

use serde_json::{Value, json};

use super::default;

/// Fills in a pod's specification.
pub(super) fn pod_spec(spec: &mut Value) {
    default(spec, "restartPolicy", json!("Always"));
    default(spec, "terminationGracePeriodSeconds", json!(30));
    default(spec, "dnsPolicy", json!("ClusterFirst"));
    default(spec, "schedulerName", json!("default-scheduler"));
    default(spec, "securityContext", json!({}));
    if let Some(account) = spec["serviceAccountName"].as_str().filter(|account| !account.is_empty()) {
        spec["serviceAccount"] = json!(account);
    } else if let Some(account) = spec["serviceAccount"].as_str().map(str::to_owned) {
        spec["serviceAccountName"] = json!(account);
    }
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            self::container(container);
        }
    }
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        self::volume(volume);
    }
}

fn container(container: &mut Value) {
    let policy = pull_policy(container["image"].as_str().unwrap_or_default());
    default(container, "imagePullPolicy", json!(policy));
    default(container, "terminationMessagePath", json!("/dev/termination-log"));
    default(container, "terminationMessagePolicy", json!("File"));
    default(container, "resources", json!({}));
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        default(port, "protocol", json!("TCP"));
    }
    for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if variable["valueFrom"]["fieldRef"].is_object() {
            default(&mut variable["valueFrom"]["fieldRef"], "apiVersion", json!("v1"));
        }
    }
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        if !container[probe].is_object() {
            continue;
        }
        let probe = &mut container[probe];
        for (field, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            default(probe, field, json!(value));
        }
        if probe["httpGet"].is_object() {
            default(&mut probe["httpGet"], "path", json!("/"));
            default(&mut probe["httpGet"], "scheme", json!("HTTP"));
        }
    }
    // What may be used at most is also asked for, unless less is asked for.
    let limits = container["resources"]["limits"].as_object().cloned().unwrap_or_default();
    for (name, limit) in limits {
        default(&mut container["resources"]["requests"], &name, limit);
    }
}

fn volume(volume: &mut Value) {
    const SOURCES: [&str; 3] = ["configMap", "secret", "downwardAPI"];
    for source in SOURCES.into_iter().filter(|source| volume[*source].is_object()).collect::<Vec<_>>() {
        default(&mut volume[source], "defaultMode", json!(0o644));
    }
    if volume["hostPath"].is_object() {
        default(&mut volume["hostPath"], "type", json!(""));
    }
    for item in volume.pointer_mut("/downwardAPI/items").and_then(Value::as_array_mut).into_iter().flatten() {
        if item["fieldRef"].is_object() {
            default(&mut item["fieldRef"], "apiVersion", json!("v1"));
        }
    }
}

/// Kubernetes' rule: what is called `latest`, by word or by default, may mean something else tomorrow.
fn pull_policy(image: &str) -> &'static str {
    match image.parse::<skeg_images::Reference>() {
        Ok(reference) if reference.digest().is_none() && reference.tag().unwrap_or("latest") == "latest" => "Always",
        _ => "IfNotPresent",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A template is filled in once in its Deployment and again in its ReplicaSet and Pod: a second time that changed
    /// anything made a new ReplicaSet for ever.
    #[test]
    fn what_is_filled_in_stays_as_it_is_and_nothing_else_appears() {
        let mut spec = json!({
            "containers": [{"name": "c", "image": "a:1", "readinessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "s", "secret": {"secretName": "s"}}, {"name": "e", "emptyDir": {}}],
        });
        pod_spec(&mut spec);
        let once = spec.clone();
        pod_spec(&mut spec);
        assert_eq!(spec, once);
        assert_eq!(
            once["volumes"],
            json!([{"name": "s", "secret": {"secretName": "s", "defaultMode": 420}}, {"name": "e", "emptyDir": {}}])
        );
        assert!(!once.to_string().contains("null"), "{once}");
    }
}
