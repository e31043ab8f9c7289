//! Health checks and hooks.

use serde_json::Value;
use skeg_protocol::manifest::{Handler, Probe, Probes};

use super::scalar::Scalar as _;
use super::service::command;
use crate::cursor::{Cursor, Fault, Fields};

/// A health check as a readiness probe: Compose waits for it and ends nothing because of it. Since a probe that fails
/// before it first succeeds does no harm here, a start period has nothing to add.
pub(super) fn read(at: &Cursor<'_>) -> Result<Probes, Fault> {
    let Some(check) = at.get("healthcheck")? else { return Ok(Probes::default()) };
    check.fields(&Fields {
        read: &["test", "interval", "timeout", "retries", "disable"],
        ignored: &["start_period", "start_interval"],
        unsupported: &[],
    })?;
    let none = Probes { ignore_image: true, ..Probes::default() };
    if check.get("disable")?.map(|flag| flag.truth()).transpose()?.unwrap_or_default() {
        return Ok(none);
    }
    let Some(test) = check.get("test")? else {
        // Times of the image's own check can't be changed.
        return Err(check.wrong("needs a test: the image's own health check is taken as it is or not at all"));
    };
    let command = match test.value() {
        Value::Array(_) => {
            let words = command(&test)?;
            match words.split_first() {
                Some((kind, [])) if kind == "NONE" => return Ok(none),
                Some((kind, [line])) if kind == "CMD-SHELL" => shell(line),
                Some((kind, words)) if kind == "CMD" && !words.is_empty() => words.to_vec(),
                _ => return Err(test.invalid("must begin with NONE, CMD or CMD-SHELL")),
            }
        }
        _ => shell(&test.scalar()?),
    };
    let duration = |name, default| -> Result<u32, Fault> {
        Ok(check.get(name)?.map(|field| field.duration()).transpose()?.filter(|millis| *millis > 0).unwrap_or(default))
    };
    let retries = check.get("retries")?.map(|field| field.whole()).transpose()?;
    Ok(Probes {
        readiness: Some(Probe {
            action: Handler::Exec { command },
            initial_delay_ms: 0,
            period_ms: duration("interval", 30_000)?,
            timeout_ms: duration("timeout", 30_000)?,
            success_threshold: 1,
            failure_threshold: retries.filter(|retries| *retries > 0).unwrap_or(3),
            termination_grace_seconds: None,
        }),
        ..none
    })
}

fn shell(line: &str) -> Vec<String> {
    ["/bin/sh", "-c", line].map(str::to_owned).to_vec()
}

/// A hook: one command in the container itself.
pub(super) fn hook(at: &Cursor<'_>, name: &str) -> Result<Option<Handler>, Fault> {
    let hooks = at.items(name)?;
    let hook = match hooks.as_slice() {
        [] => return Ok(None),
        [hook] => hook,
        [_, second, ..] => return Err(second.unsupported()),
    };
    hook.fields(&Fields {
        read: &["command"],
        ignored: &[],
        unsupported: &["environment", "privileged", "user", "working_dir"],
    })?;
    Ok(Some(Handler::Exec { command: command(&hook.need("command")?)? }))
}
