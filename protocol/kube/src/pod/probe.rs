//! Probes and hooks. Ports that they name are looked up among their container's.

use serde_json::{Value, json};
use skeg_protocol::manifest::{Handler, HttpGet, Lifecycle, Port, Probe, Probes};

use super::env::only_one;
use crate::cursor::{Cursor, Fault, Fields};
use crate::signal;

pub(super) fn probes(at: &Cursor<'_>, ports: &[Port]) -> Result<Probes, Fault> {
    let probe = |name| at.get(name)?.map(|probe| read(&probe, ports)).transpose();
    Ok(Probes {
        startup: probe("startupProbe")?,
        liveness: probe("livenessProbe")?,
        readiness: probe("readinessProbe")?,
        // A kubelet does not know what an image says of its health.
        ignore_image: true,
    })
}

fn read(at: &Cursor<'_>, ports: &[Port]) -> Result<Probe, Fault> {
    at.fields(&Fields {
        read: &[
            "exec",
            "httpGet",
            "tcpSocket",
            "grpc",
            "initialDelaySeconds",
            "periodSeconds",
            "timeoutSeconds",
            "successThreshold",
            "failureThreshold",
            "terminationGracePeriodSeconds",
        ],
        ignored: &[],
        unsupported: &[],
    })?;
    // What Kubernetes fills in; it takes a zero for a missing number.
    let number = |name, default: u32| -> Result<u32, Fault> {
        Ok(at.number(name)?.filter(|number| *number != 0).unwrap_or(default))
    };
    let millis = |name, default: u32| -> Result<u32, Fault> {
        let seconds = number(name, default)?;
        seconds.checked_mul(1000).ok_or_else(|| at.wrong(format!("{name} must be less than 50 days")))
    };
    Ok(Probe {
        action: handler(at, &["exec", "httpGet", "tcpSocket", "grpc"], ports)?,
        initial_delay_ms: millis("initialDelaySeconds", 0)?,
        period_ms: millis("periodSeconds", 10)?,
        timeout_ms: millis("timeoutSeconds", 1)?,
        success_threshold: number("successThreshold", 1)?,
        failure_threshold: number("failureThreshold", 3)?,
        termination_grace_seconds: at.number("terminationGracePeriodSeconds")?,
    })
}

pub(super) fn lifecycle(at: &Cursor<'_>, ports: &[Port]) -> Result<Lifecycle, Fault> {
    let Some(at) = at.get("lifecycle")? else { return Ok(Lifecycle::default()) };
    at.fields(&Fields { read: &["postStart", "preStop", "stopSignal"], ignored: &[], unsupported: &[] })?;
    let hook = |name| -> Result<Option<Handler>, Fault> {
        let Some(hook) = at.get(name)? else { return Ok(None) };
        hook.fields(&Fields { read: &["exec", "httpGet", "tcpSocket", "sleep"], ignored: &[], unsupported: &[] })?;
        handler(&hook, &["exec", "httpGet", "tcpSocket", "sleep"], ports).map(Some)
    };
    let stop_signal = match at.get("stopSignal")? {
        Some(name) => Some(signal::number(name.text()?).ok_or_else(|| name.invalid("is no signal (signal(7))"))?),
        None => None,
    };
    Ok(Lifecycle { post_start: hook("postStart")?, pre_stop: hook("preStop")?, stop_signal })
}

fn handler(at: &Cursor<'_>, kinds: &[&str], ports: &[Port]) -> Result<Handler, Fault> {
    let (kind, action) = only_one(at, kinds)?;
    let host = || -> Result<Option<String>, Fault> {
        Ok(Some(action.word("host")?.to_owned()).filter(|host| !host.is_empty()))
    };
    Ok(match kind {
        "exec" => {
            action.fields(&Fields { read: &["command"], ignored: &[], unsupported: &[] })?;
            Handler::Exec { command: action.texts("command")? }
        }
        "tcpSocket" => {
            action.fields(&Fields { read: &["host", "port"], ignored: &[], unsupported: &[] })?;
            Handler::TcpSocket { host: host()?, port: port(&action, ports)? }
        }
        "grpc" => {
            action.fields(&Fields { read: &["port", "service"], ignored: &[], unsupported: &[] })?;
            let number = action.need("port")?.integer()?;
            Handler::Grpc { port: number, service: action.word("service")?.to_owned() }
        }
        "sleep" => {
            action.fields(&Fields { read: &["seconds"], ignored: &[], unsupported: &[] })?;
            Handler::Sleep { seconds: action.need("seconds")?.integer()? }
        }
        _ => Handler::HttpGet(http_get(&action, host()?, ports)?),
    })
}

fn http_get(at: &Cursor<'_>, host: Option<String>, ports: &[Port]) -> Result<HttpGet, Fault> {
    at.fields(&Fields { read: &["host", "port", "path", "scheme", "httpHeaders"], ignored: &[], unsupported: &[] })?;
    at.only("scheme", &[json!(""), json!("HTTP"), json!("HTTPS")])?;
    let path = at.word("path")?;
    let headers = at.each("httpHeaders", |header| {
        header.fields(&Fields { read: &["name", "value"], ignored: &[], unsupported: &[] })?;
        Ok((header.need("name")?.text()?.to_owned(), header.word("value")?.to_owned()))
    })?;
    Ok(HttpGet {
        https: at.word("scheme")? == "HTTPS",
        host,
        port: port(at, ports)?,
        path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        headers,
    })
}

/// A port by number, or by the name that the container gives it.
fn port(at: &Cursor<'_>, ports: &[Port]) -> Result<u16, Fault> {
    let port = at.need("port")?;
    let Value::String(name) = port.value() else { return port.integer() };
    let named = ports.iter().find(|port| port.name == name.as_str()).map(|port| port.container_port);
    named.ok_or_else(|| port.invalid("is no port of this container"))
}
