//! Events: what happened to an object, for people. The same thing again is counted, not repeated.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::secret::sha256;
use crate::store::{Guard, Key, Store, StoreError, update};
use crate::time;

/// How long an event is kept after it was told the last time.
const KEPT: SignedDuration = SignedDuration::from_hours(1);
const COMPONENT: &str = "skeg";

/// Tells what happened to an object.
pub(crate) fn tell(
    store: &dyn Store,
    about: &Value,
    warning: bool,
    reason: &str,
    message: &str,
) -> Result<(), StoreError> {
    let metadata = &about["metadata"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let namespace = match text(&metadata["namespace"]) {
        empty if empty.is_empty() => "default".to_owned(),
        namespace => namespace,
    };
    let now = time::text(time::now());
    let digest = sha256(format!("{}\0{reason}\0{message}", metadata["uid"]).as_bytes());
    let word: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let name: String = text(&metadata["name"]).chars().take(230).collect();
    let key = Key::new("Event", &namespace, &format!("{name}.{word}"));
    let again = update(store, &key, |event| {
        event["count"] = json!(event["count"].as_i64().unwrap_or(1) + 1);
        event["lastTimestamp"] = json!(now);
    })?;
    if again.is_some() {
        return Ok(());
    }
    let event = json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {
            "name": key.name, "namespace": namespace, "uid": uuid::Uuid::new_v4().to_string(), "creationTimestamp": now,
        },
        "involvedObject": {
            "apiVersion": about["apiVersion"], "kind": about["kind"], "name": metadata["name"],
            "namespace": metadata["namespace"], "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"],
        },
        "type": if warning { "Warning" } else { "Normal" }, "reason": reason, "message": message, "count": 1,
        "firstTimestamp": now, "lastTimestamp": now, "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT, "reportingInstance": "", "eventTime": null,
    });
    match store.put(&key, event, Guard::Absent) {
        Ok(_) | Err(StoreError::Exists(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Forgets the events of a namespace.
pub(super) fn forget(store: &dyn Store, namespace: &str) -> Result<(), StoreError> {
    remove(store, Some(namespace), |_| true)
}

/// Forgets what was told too long ago.
pub(super) fn sweep(store: &dyn Store, now: Timestamp) -> Result<(), StoreError> {
    remove(store, None, |event| {
        let last = event["lastTimestamp"].as_str().or(event["metadata"]["creationTimestamp"].as_str());
        let last = last.and_then(|text| text.parse::<Timestamp>().ok());
        last.is_none_or(|last| now.duration_since(last) > KEPT)
    })
}

fn remove(store: &dyn Store, namespace: Option<&str>, old: impl Fn(&Value) -> bool) -> Result<(), StoreError> {
    for event in store.list("Event", namespace)?.items.iter().filter(|event| old(event)) {
        match store.remove(&super::key_of(event)) {
            Ok(_) | Err(StoreError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
