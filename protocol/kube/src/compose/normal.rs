//! A Compose file in its long form: short ways of writing become long ones, and paths become absolute, so that files
//! can be merged item by item and read in one way.

use serde_json::{Map, Value, json};

use super::path;
use super::scalar::Scalar as _;
use crate::cursor::{Cursor, Fault};

/// Most ports that one range may stand for.
const MOST_PORTS: u32 = 1024;

/// Brings a whole file into its long form. `folder` is where its relative paths begin, `home` what `~` means.
pub(super) fn file(document: &Value, folder: &str, home: &str) -> Result<Value, Fault> {
    let top = Cursor::new(document, "");
    let mut out = top.object()?.clone();
    if top.get("services")?.is_some() {
        let mut services = Map::new();
        for (name, at) in top.entries("services")? {
            let at = Cursor::new(at.value(), &format!("services.{name}"));
            services.insert(name.to_owned(), service(&at, folder, home)?);
        }
        out.insert("services".to_owned(), services.into());
    }
    for kind in ["secrets", "configs"] {
        for (name, at) in top.entries(kind)? {
            let at = Cursor::new(at.value(), &format!("{kind}.{name}"));
            if let Some(file) = at.get("file")? {
                out[kind][name]["file"] = path::join(folder, file.text()?, home).into();
            }
        }
    }
    for kind in ["networks", "volumes"] {
        for (name, at) in top.entries(kind)? {
            let at = Cursor::new(at.value(), &format!("{kind}.{name}"));
            if !at.value().is_null() {
                out[kind][name] = with_maps(&at, &["labels", "driver_opts"])?;
            }
        }
    }
    Ok(out.into())
}

/// Turns lists of `NAME=VALUE` in these fields into maps.
fn with_maps(at: &Cursor<'_>, names: &[&str]) -> Result<Value, Fault> {
    let mut out = at.object()?.clone();
    for name in names {
        if let Some(field) = at.get(name)? {
            out.insert((*name).to_owned(), pairs(&field)?);
        }
    }
    Ok(out.into())
}

fn service(at: &Cursor<'_>, folder: &str, home: &str) -> Result<Value, Fault> {
    let mut out = Map::new();
    for (name, value) in at.object()? {
        let Some(field) = at.get(name)? else {
            // `command:` with nothing behind it takes nothing away.
            continue;
        };
        let value = match name.as_str() {
            "environment" | "labels" | "annotations" | "sysctls" => pairs(&field)?,
            "deploy" => with_maps(&field, &["labels"])?,
            "depends_on" => names(&field, || json!({"condition": "service_started"}))?,
            "networks" => names(&field, || json!({}))?,
            "dns" | "dns_search" | "dns_opt" | "tmpfs" | "expose" | "cap_add" | "cap_drop" | "security_opt"
            | "group_add" | "profiles" => list(&field)?.into(),
            "extra_hosts" => extra_hosts(&field)?,
            "env_file" => {
                list(&field)?.iter().map(|item| env_file(item, &field, folder, home)).collect::<Result<_, _>>()?
            }
            "ports" => {
                let mut ports = Vec::new();
                for item in at.items("ports")? {
                    ports.extend(port(&item)?);
                }
                ports.into()
            }
            "volumes" => at.each("volumes", |item| volume(item, folder, home))?.into(),
            "devices" => at.each("devices", device)?.into(),
            "secrets" | "configs" => at
                .each(name, |item| {
                    Ok(match item.value() {
                        Value::String(name) => json!({"source": name}),
                        long => long.clone(),
                    })
                })?
                .into(),
            "extends" => match field.value() {
                Value::String(name) => json!({"service": name}),
                long => long.clone(),
            },
            _ => value.clone(),
        };
        out.insert(name.clone(), value);
    }
    Ok(out.into())
}

/// A list, or what stands for a list of one.
fn list(at: &Cursor<'_>) -> Result<Vec<Value>, Fault> {
    match at.value() {
        Value::Array(items) => Ok(items.clone()),
        Value::Object(_) if at.path().ends_with("env_file") => Ok(vec![at.value().clone()]),
        Value::Object(_) => Err(at.invalid("must be a text or a list")),
        one => Ok(vec![one.clone()]),
    }
}

/// A map, from a map or from a list of `NAME=VALUE`; a name alone has no value.
fn pairs(at: &Cursor<'_>) -> Result<Value, Fault> {
    let Value::Array(items) = at.value() else {
        at.object()?;
        return Ok(at.value().clone());
    };
    let mut out = Map::new();
    for item in items {
        let text = item.as_str().ok_or_else(|| at.invalid("must be a map or a list of texts NAME=VALUE"))?;
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, value.into()),
            None => (text, Value::Null),
        };
        out.insert(name.to_owned(), value);
    }
    Ok(out.into())
}

/// A map, from a map or from a list of its keys.
fn names(at: &Cursor<'_>, default: impl Fn() -> Value) -> Result<Value, Fault> {
    let mut out = Map::new();
    match at.value() {
        Value::Array(items) => {
            for item in items {
                let name = item.as_str().ok_or_else(|| at.invalid("must be a map or a list of names"))?;
                out.insert(name.to_owned(), default());
            }
        }
        _ => {
            for (name, value) in at.object()? {
                out.insert(name.clone(), if value.is_null() { default() } else { value.clone() });
            }
        }
    }
    Ok(out.into())
}

fn extra_hosts(at: &Cursor<'_>) -> Result<Value, Fault> {
    if let Value::Array(_) = at.value() {
        return Ok(at.value().clone());
    }
    let mut out = Vec::new();
    for (name, value) in at.object()? {
        match value {
            Value::Array(addresses) => {
                out.extend(
                    addresses.iter().filter_map(Value::as_str).map(|address| Value::from(format!("{name}={address}"))),
                );
            }
            value => out.push(format!("{name}={}", value.as_str().unwrap_or_default()).into()),
        }
    }
    Ok(out.into())
}

fn env_file(item: &Value, at: &Cursor<'_>, folder: &str, home: &str) -> Result<Value, Fault> {
    let mut out = match item {
        Value::String(path) => json!({"path": path}),
        Value::Object(_) => item.clone(),
        _ => return Err(at.invalid("must be a path, or a list of paths")),
    };
    let written = out["path"].as_str().ok_or_else(|| at.invalid("must name a path"))?;
    out["path"] = path::join(folder, written, home).into();
    Ok(out)
}

/// `[[IP:]PUBLISHED:]TARGET[/PROTOCOL]`, with ranges; one entry a port.
fn port(at: &Cursor<'_>) -> Result<Vec<Value>, Fault> {
    let text = match at.value() {
        Value::Object(_) => return Ok(vec![at.value().clone()]),
        _ => at.scalar()?,
    };
    let bad = || at.invalid("must be [[IP:]PUBLISHED:]TARGET[/PROTOCOL]");
    let (rest, protocol) = text.split_once('/').unwrap_or((&text, "tcp"));
    let (rest, target) = rest.rsplit_once(':').map_or(("", rest), |(rest, target)| (rest, target));
    let (address, published) = match rest.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((address, published)) => (address, published.strip_prefix(':').ok_or_else(bad)?),
        None => rest.rsplit_once(':').unwrap_or(("", rest)),
    };
    let range = |text: &str| -> Option<(u16, u16)> {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let (from, to) = (from.parse().ok()?, to.parse().ok()?);
        (0 < from && from <= to).then_some((from, to))
    };
    let (from, to) = range(target).ok_or_else(bad)?;
    if u32::from(to - from) >= MOST_PORTS {
        return Err(at.invalid(&format!("must stand for at most {MOST_PORTS} ports")));
    }
    let mut out = Vec::new();
    for (step, target) in (from..=to).enumerate() {
        let mut port = json!({"target": target, "protocol": protocol});
        if !address.is_empty() {
            port["host_ip"] = address.into();
        }
        if !published.is_empty() {
            let (first, last) = range(published).ok_or_else(bad)?;
            port["published"] = if from == to {
                // One target behind a range: each replica takes one of it.
                published.into()
            } else if last - first == to - from {
                (usize::from(first) + step).to_string().into()
            } else {
                return Err(at.invalid("must have as many published ports as targets"));
            };
        }
        out.push(port);
    }
    Ok(out)
}

/// `[SOURCE:]TARGET[:MODE]`.
fn volume(at: &Cursor<'_>, folder: &str, home: &str) -> Result<Value, Fault> {
    let absolute = |source: &str| Value::from(path::join(folder, source, home));
    if let Value::Object(_) = at.value() {
        let mut out = at.value().clone();
        if out["type"] == "bind"
            && let Some(source) = at.get("source")?
        {
            out["source"] = absolute(source.text()?);
        }
        return Ok(out);
    }
    let text = at.text()?;
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] if target.starts_with('/') => (*source, *target, ""),
        [target, mode] => ("", *target, *mode),
        [source, target, mode] => (*source, *target, *mode),
        _ => return Err(at.invalid("must be [SOURCE:]TARGET[:MODE]")),
    };
    let mut out = json!({"type": "volume", "target": target});
    if source.starts_with(['/', '.', '~']) {
        out["type"] = "bind".into();
        out["source"] = absolute(source);
        out["bind"] = json!({"create_host_path": true});
    } else if !source.is_empty() {
        out["source"] = source.into();
    }
    for word in mode.split(',').filter(|word| !word.is_empty()) {
        match word {
            "ro" => out["read_only"] = true.into(),
            "nocopy" => out["volume"] = json!({"nocopy": true}),
            // How a device mounts anyway, and labels of a kernel module that it does not use.
            "rw" | "z" | "Z" | "cached" | "delegated" | "consistent" | "rprivate" => {}
            _ => return Err(at.invalid(&format!("has the mode {word:?}, which is not supported"))),
        }
    }
    Ok(out)
}

/// `SOURCE[:TARGET[:PERMISSIONS]]`.
fn device(at: &Cursor<'_>) -> Result<Value, Fault> {
    if let Value::Object(_) = at.value() {
        return Ok(at.value().clone());
    }
    let text = at.text()?;
    let (source, rest) = text.split_once(':').unwrap_or((text, text));
    let (target, permissions) = rest.split_once(':').unwrap_or((rest, "rwm"));
    Ok(json!({"source": source, "target": target, "permissions": permissions}))
}
