//! The Node objects of devices: made when a device comes in, changed only when the link's state or the device's
//! facts change, never by a heartbeat.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};
use skeg_protocol::message::NodeInfo;

use crate::app::App;
use crate::link::Command;
use crate::manager::Nudge;
use crate::pods::conditions;
use crate::store::{Guard, Key, Store, StoreError, update};
use crate::time;

/// Key of a node's object.
fn key(name: &str) -> Key {
    Key::new("Node", "", name)
}

fn ready(object: &Value, status: &str, reason: &str, message: &str) -> Value {
    let mut all = conditions(object, time::now(), &[("Ready", status == "True", reason, message)]);
    let mut condition = all.remove(0);
    if status == "Unknown" {
        // `conditions` knows true and false only: the time is kept when it was unknown before.
        let mut old = object["status"]["conditions"].as_array().into_iter().flatten();
        let old = old.find(|old| old["type"] == "Ready").cloned().unwrap_or_default();
        if old["status"] == "Unknown" {
            condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
        }
        condition["status"] = json!("Unknown");
    }
    let others = object["status"]["conditions"].as_array().into_iter().flatten();
    let others = others.filter(|other| other["type"] != "Ready").cloned();
    std::iter::once(condition).chain(others).collect()
}

/// The type of the condition that says that a device holds what this controller does not know.
const UNKNOWN_REVISION: &str = "HoldsUnknownRevision";

/// Notes that a device holds a revision that this controller does not know, or that it does not any more.
pub(super) fn strange(store: &dyn Store, name: &str, held: Option<u64>) -> Result<(), StoreError> {
    update(store, &key(name), |node| {
        let mut all = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        all.retain(|condition| condition["type"] != UNKNOWN_REVISION);
        if let Some(revision) = held {
            let message = format!(
                "the device holds revision {revision}, which this controller does not know: its database may be older than \
                 the device's state. The device goes on with what it holds until `skeg node overwrite {name}` gives it this \
                 controller's manifest"
            );
            let reason = "RevisionNotMadeHere";
            all.extend(conditions(node, time::now(), &[(UNKNOWN_REVISION, true, reason, &message)]));
            log::warn!("node {name}: {message}");
        }
        node["status"]["conditions"] = json!(all);
    })?;
    Ok(())
}

/// Gives a node labels, making its object where there is none yet.
pub(crate) fn label(store: &dyn Store, name: &str, labels: &BTreeMap<String, String>) -> Result<(), StoreError> {
    make(store, name)?;
    update(store, &key(name), |node| {
        if !node["metadata"]["labels"].is_object() {
            node["metadata"]["labels"] = json!({});
        }
        for (label, value) in labels {
            node["metadata"]["labels"][label] = json!(value);
        }
    })?;
    Ok(())
}

/// Makes a node's object where there is none yet.
fn make(store: &dyn Store, name: &str) -> Result<(), StoreError> {
    if store.get(&key(name))?.is_some() {
        return Ok(());
    }
    let fresh = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": time::text(time::now()),
            "labels": {},
        },
        "spec": {},
        "status": {},
    });
    match store.put(&key(name), fresh, Guard::Absent) {
        Ok(_) | Err(StoreError::Exists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Notes that a device is connected, and what it says about itself.
pub(super) fn connected(store: &dyn Store, name: &str, info: &NodeInfo, peer: IpAddr) -> Result<(), StoreError> {
    make(store, name)?;
    let address = info.address.unwrap_or(peer);
    let (cpu, memory) = (info.cpus.to_string(), format!("{}Ki", info.memory_bytes / 1024));
    let resources = json!({"cpu": cpu, "memory": memory, "pods": skeg_protocol::limits::MAX_PODS.to_string()});
    update(store, &key(name), |node| {
        if !node["metadata"]["labels"].is_object() {
            node["metadata"]["labels"] = json!({});
        }
        for (label, value) in [
            ("kubernetes.io/arch", info.arch.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/hostname", name),
        ] {
            node["metadata"]["labels"][label] = json!(value);
        }
        if let Some(all) = node["status"]["conditions"].as_array_mut() {
            // It is said anew when it still holds.
            all.retain(|condition| condition["type"] != UNKNOWN_REVISION);
        }
        let conditions = ready(node, "True", "DeviceConnected", "the device is connected");
        node["status"] = json!({
            "addresses": [
                {"type": "InternalIP", "address": address.to_string()},
                {"type": "Hostname", "address": name},
            ],
            "allocatable": resources.clone(),
            "capacity": resources.clone(),
            "conditions": conditions,
            "nodeInfo": {
                "architecture": info.arch.as_str(),
                "bootID": info.boot.to_string(),
                "containerRuntimeVersion": format!("skeg://{}", info.agent),
                "kernelVersion": info.kernel.as_str(),
                "kubeletVersion": info.agent.as_str(),
                "kubeProxyVersion": "",
                "machineID": "",
                "operatingSystem": "linux",
                "osImage": info.os.as_str(),
                "systemUUID": "",
            },
            // Kubernetes' own place for it; the empty name is the handler of pods that name none.
            "runtimeHandlers": [{"name": "", "features": {"userNamespaces": info.user_namespaces}}],
        });
    })?;
    Ok(())
}

/// Notes that a device is not connected any more, and why. Its pods stay as they were: silence is normal.
pub(super) fn disconnected(store: &dyn Store, name: &str, why: &str) -> Result<(), StoreError> {
    update(store, &key(name), |node| {
        node["status"]["conditions"] = ready(node, "Unknown", "DeviceDisconnected", why);
    })?;
    Ok(())
}

/// Notes at the controller's start that no device is connected yet.
pub(crate) fn mark_all_unknown(store: &dyn Store) -> Result<(), StoreError> {
    for node in store.list("Node", None)?.items {
        if let Some(name) = node["metadata"]["name"].as_str().filter(|_| crate::schedule::is_ready(&node)) {
            disconnected(store, name, "the controller was started again and the device is not back yet")?;
        }
    }
    Ok(())
}

/// Forgets a node: its object, its key, its manifests and its pods. A device that is connected is cut off.
pub(crate) fn forget(app: &App, name: &str) -> Result<Value, StoreError> {
    let node = app.store.remove(&key(name))?;
    app.store.forget_key(name)?;
    app.hub.send(name, Command::Close("the node was deleted and its key forgotten"));
    app.store.forget_manifests(name)?;
    for pod in app.store.list("Pod", None)?.items.iter().filter(|pod| pod["spec"]["nodeName"] == name) {
        let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
        match app.store.remove(&Key::new("Pod", &text("namespace"), &text("name"))) {
            Ok(_) | Err(StoreError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    app.nudge(Nudge::Look);
    Ok(node)
}
