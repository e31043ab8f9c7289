//! What the types of `oci-spec` cannot say or hold, settled on the JSON tree before it becomes typed.
//!
//! Owns required properties for which those types have defaults, spellings in which they differ from the specification,
//! and values that are to be ignored, not refused. Must not check what a typed value can show.

use super::Violation;
use crate::oci;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Properties that must be there (schema of the runtime specification), for which the types would take a default.
/// `[]` stands for each element of a list.
const REQUIRED: [(&str, &[&str], &str); 17] = [
    ("", &["ociVersion"], "config.md, Specification version"),
    ("", &["root"], "config.md, Root"),
    ("root", &["path"], "config.md, Root"),
    ("linux.uidMappings[]", &["containerID", "hostID", "size"], "config-linux.md, User namespace mappings"),
    ("linux.gidMappings[]", &["containerID", "hostID", "size"], "config-linux.md, User namespace mappings"),
    ("mounts[].uidMappings[]", &["containerID", "hostID", "size"], "config.md, POSIX-platform Mounts"),
    ("mounts[].gidMappings[]", &["containerID", "hostID", "size"], "config.md, POSIX-platform Mounts"),
    ("linux.devices[]", &["path"], "config-linux.md, Devices"),
    ("linux.resources.devices[]", &["allow"], "config-linux.md, Allowed Device list"),
    ("linux.resources.pids", &["limit"], "config-linux.md, PIDs"),
    ("linux.resources.hugepageLimits[]", &["pageSize", "limit"], "config-linux.md, Huge page limits"),
    ("linux.resources.network.priorities[]", &["name", "priority"], "config-linux.md, Network"),
    ("linux.resources.blockIO.weightDevice[]", &["major", "minor"], "config-linux.md, Block IO"),
    ("linux.resources.blockIO.throttleReadBpsDevice[]", &["major", "minor", "rate"], "config-linux.md, Block IO"),
    ("linux.resources.blockIO.throttleWriteBpsDevice[]", &["major", "minor", "rate"], "config-linux.md, Block IO"),
    ("linux.resources.blockIO.throttleReadIOPSDevice[]", &["major", "minor", "rate"], "config-linux.md, Block IO"),
    ("linux.resources.blockIO.throttleWriteIOPSDevice[]", &["major", "minor", "rate"], "config-linux.md, Block IO"),
];

/// The same for a process.
const REQUIRED_OF_PROCESS: [(&str, &[&str], &str); 3] = [
    ("", &["cwd"], "config.md, Process"),
    ("rlimits[]", &["type", "soft", "hard"], "config.md, POSIX process"),
    ("ioPriority", &["class", "priority"], "config.md, Linux Process"),
];

/// The spellings of the specification beside those of the types.
const SCHEDULER_FLAGS: [(&str, &str); 2] =
    [("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"), ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN")];

/// Settles a whole configuration.
pub(super) fn config(value: &mut Value) -> Result<(), Violation> {
    no_nul(value)?;
    for (pattern, fields, section) in REQUIRED {
        require(value, pattern, "", fields, section)?;
    }
    let devices = value.pointer("/linux/devices").and_then(Value::as_array);
    for (index, device) in devices.into_iter().flatten().enumerate().filter(|(_, device)| device["type"] != "p") {
        let at = format!("linux.devices[{index}]");
        require(device, "", &at, &["major", "minor"], "config-linux.md, Devices")?;
    }
    value.get_mut("process").map_or(Ok(()), |value| settle_process("process", value))
}

/// Settles a process.
pub(super) fn process(value: &mut Value) -> Result<(), Violation> {
    no_nul(value)?;
    settle_process("", value)
}

fn settle_process(at: &str, value: &mut Value) -> Result<(), Violation> {
    for (pattern, fields, section) in REQUIRED_OF_PROCESS {
        require(value, pattern, at, fields, section)?;
    }
    if let Some(process) = value.as_object_mut() {
        adapt_process(process);
    }
    Ok(())
}

fn adapt_process(process: &mut Map<String, Value>) {
    // "Runtimes MUST ignore consoleSize if terminal is false or unset."
    if process.get("terminal") != Some(&Value::Bool(true)) {
        process.remove("consoleSize");
    }
    process.entry("user").or_insert_with(|| Map::new().into());
    for (set, names) in process.get_mut("capabilities").and_then(Value::as_object_mut).into_iter().flatten() {
        if let Some(names) = names.as_array_mut() {
            names.retain(|name| known_capability(set, name));
        }
    }
    let flags = process.get_mut("scheduler").and_then(|scheduler| scheduler.get_mut("flags"));
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some((_, other)) = SCHEDULER_FLAGS.iter().find(|(name, _)| flag == name) {
            *flag = (*other).into();
        }
    }
    if let Some(affinity) = process.get_mut("execCPUAffinity").and_then(Value::as_object_mut) {
        affinity.retain(|_, list| list != "");
    }
}

/// "Any value which cannot be mapped to a relevant kernel interface … MUST be logged as a warning"; it is no error.
fn known_capability(set: &str, name: &Value) -> bool {
    // What is no string stays, for its type to be told as an error.
    let known = !name.is_string() || oci::Capability::deserialize(name).is_ok();
    if !known {
        log::warn!("process.capabilities.{set}: {name} is not known and is left out");
    }
    known
}

/// Refuses NUL bytes anywhere: no system call could take the string, and cut at the NUL it would mean something else.
fn no_nul(value: &Value) -> Result<(), Violation> {
    find_nul(value).map_or(Ok(()), |(at, text)| {
        let (at, value) = (at.trim_start_matches('.').into(), text.into());
        Err(Violation { at, value, rule: "must not contain a NUL byte", section: "config.md, Valid values" })
    })
}

/// Looks for a string with a NUL byte. Its place is put together on the way back, so that a good tree costs nothing.
fn find_nul(value: &Value) -> Option<(String, &str)> {
    match value {
        Value::String(text) => text.contains('\0').then(|| (String::new(), text.as_str())),
        Value::Array(list) => list.iter().enumerate().find_map(|(index, value)| {
            let (below, text) = find_nul(value)?;
            Some((format!("[{index}]{below}"), text))
        }),
        Value::Object(map) => map.iter().find_map(|(key, value)| {
            if key.contains('\0') {
                return Some((String::new(), key.as_str()));
            }
            let (below, text) = find_nul(value)?;
            Some((format!(".{key}{below}"), text))
        }),
        _ => None,
    }
}

fn join(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_string() } else { format!("{at}.{key}") }
}

/// Follows a pattern to every place that it means, and looks there for the fields.
fn require(value: &Value, pattern: &str, at: &str, fields: &[&str], section: &'static str) -> Result<(), Violation> {
    if let Some(rest) = pattern.strip_prefix("[]") {
        let rest = rest.strip_prefix('.').unwrap_or(rest);
        let each = value.as_array().into_iter().flatten().enumerate();
        return each
            .into_iter()
            .try_for_each(|(index, value)| require(value, rest, &format!("{at}[{index}]"), fields, section));
    }
    if pattern.is_empty() {
        let Some(map) = value.as_object() else { return Ok(()) };
        let missing = fields.iter().find(|field| map.get(**field).is_none_or(Value::is_null));
        return missing.map_or(Ok(()), |field| {
            Err(Violation { at: join(at, field), value: "nothing".into(), rule: "must be given", section })
        });
    }
    let end = pattern.find(['.', '[']).unwrap_or(pattern.len());
    let (key, rest) = pattern.split_at(end);
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    value.get(key).map_or(Ok(()), |value| require(value, rest, &join(at, key), fields, section))
}
