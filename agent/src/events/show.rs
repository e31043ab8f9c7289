//! `skegd events`: what is on disk, for people. It needs no agent that runs.

use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use super::{Event, FOLDER, ring};
use crate::commands::columns;
use crate::logs::timestamp;

/// The events of a device as a table or as JSON, one a line.
///
/// # Errors
/// The journal can't be read.
pub fn show(state_dir: &Path, json: bool) -> std::io::Result<String> {
    let events = match ring::read(&state_dir.join(FOLDER)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    if json {
        return Ok(events.iter().map(|event| format!("{}\n", as_json(event))).collect());
    }
    let head = ["TIME", "POD", "CONTAINER", "REASON", "MESSAGE"].map(str::to_owned);
    Ok(columns(&std::iter::once(head).chain(events.iter().map(row)).collect::<Vec<_>>()))
}

fn time(event: &Event) -> String {
    let since = Duration::from_millis(u64::try_from(event.wall).unwrap_or(0));
    // Seconds are enough for people.
    let text = timestamp(UNIX_EPOCH + since);
    text.split_once('.').map_or(text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

fn pod(event: &Event) -> String {
    event.pod.as_ref().map(|(_, namespace, name)| format!("{namespace}/{name}")).unwrap_or_default()
}

fn row(event: &Event) -> [String; 5] {
    let container = event.container.as_ref().map(ToString::to_string).unwrap_or_default();
    // One line an event, whatever is in the message.
    let message = event.message.replace(|c: char| c.is_control(), " ");
    [time(event), pod(event), container, event.reason.clone(), message]
}

fn as_json(event: &Event) -> serde_json::Value {
    serde_json::json!({
        "sequence": event.sequence, "boot": event.boot.to_string(), "sinceBootMs": event.since_boot,
        "time": time(event), "pod": event.pod.as_ref().map(|_| pod(event)),
        "uid": event.pod.as_ref().map(|(uid, ..)| uid.to_string()),
        "container": event.container.as_ref().map(ToString::to_string),
        "reason": event.reason, "message": event.message,
    })
}
