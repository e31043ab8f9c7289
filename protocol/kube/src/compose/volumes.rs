//! Volumes, tmpfs, secrets and configs of a service.

use serde_json::json;
use skeg_protocol::Label;
use skeg_protocol::manifest::{
    Container, DataKind, DataSource, EmptyDir, HostPathKind, KeyPath, Pod, Projection, Volume, VolumeMount,
    VolumeSource,
};

use super::project::{Context, KEY, data_name};
use super::scalar::Scalar as _;
use super::words;
use crate::cursor::{Cursor, Fault, Fields};

/// Where secrets are that say nothing else.
const SECRETS: &str = "/run/secrets";
/// Permission bits of secrets and configs, as Compose has them.
const FILE_MODE: u16 = 0o444;

pub(super) fn read(
    context: &mut Context<'_>,
    at: &Cursor<'_>,
    pod: &mut Pod,
    container: &mut Container,
) -> Result<(), Fault> {
    for item in at.items("volumes")? {
        let (source, mount) = volume(context, &item)?;
        add(pod, container, "volume", source, mount)?;
    }
    for item in at.items("tmpfs")? {
        let (source, mount) = tmpfs(&item)?;
        add(pod, container, "tmpfs", source, mount)?;
    }
    files(context, at, pod, container, DataKind::Secret)?;
    files(context, at, pod, container, DataKind::ConfigMap)
}

/// Adds a volume with a name of its own and its mount.
fn add(
    pod: &mut Pod,
    container: &mut Container,
    kind: &str,
    source: VolumeSource,
    mount: VolumeMount,
) -> Result<(), Fault> {
    // Never longer than a label.
    let name = Label::try_from(format!("{kind}-{}", pod.volumes.len()).as_str()).unwrap_or_default();
    pod.volumes.push(Volume { name: name.clone(), source });
    container.mounts.push(VolumeMount { volume: name, ..mount });
    Ok(())
}

fn volume(context: &mut Context<'_>, at: &Cursor<'_>) -> Result<(VolumeSource, VolumeMount), Fault> {
    at.fields(&Fields {
        read: &["type", "source", "target", "read_only", "bind", "volume", "tmpfs"],
        ignored: &["consistency"],
        unsupported: &["image"],
    })?;
    let read_only = at.get("read_only")?.map(|flag| flag.truth()).transpose()?.unwrap_or_default();
    let path = at.need("target")?.text()?.to_owned();
    let mut mount = VolumeMount { path, read_only, ..VolumeMount::default() };
    let source = match at.need("type")?.text()? {
        "bind" => bind(context, at)?,
        "tmpfs" => {
            let mut memory = EmptyDir { memory: true, ..EmptyDir::default() };
            if let Some(options) = at.get("tmpfs")? {
                options.fields(&Fields { read: &["size", "mode"], ignored: &[], unsupported: &[] })?;
                memory.size_limit = options.get("size")?.map(|field| field.size()).transpose()?;
                memory.mode = options.get("mode")?.map(|field| field.whole()).transpose()?;
            }
            VolumeSource::EmptyDir(memory)
        }
        "volume" => {
            if let Some(options) = at.get("volume")? {
                options.fields(&Fields { read: &["subpath", "nocopy"], ignored: &["labels"], unsupported: &[] })?;
                let below = options.word("subpath")?;
                mount.sub_path = Some(words::literal(below)).filter(|path| !path.is_empty());
            }
            match at.get("source")? {
                Some(name) => VolumeSource::Persistent {
                    name: context.volume_name(name.text()?, &name)?,
                    read_only: false,
                    like_image: true,
                },
                // A volume without a name lives and dies with its pod.
                None => VolumeSource::EmptyDir(EmptyDir::default()),
            }
        }
        _ => return Err(at.need("type")?.unsupported()),
    };
    Ok((source, mount))
}

fn bind(context: &mut Context<'_>, at: &Cursor<'_>) -> Result<VolumeSource, Fault> {
    let path = at.need("source")?.text()?.to_owned();
    if let Some(options) = at.get("bind")? {
        options.fields(&Fields {
            read: &["create_host_path", "propagation"],
            ignored: &["selinux"],
            unsupported: &["recursive"],
        })?;
        options.only("propagation", &[json!("rprivate")])?;
        if options.get("create_host_path")?.map(|flag| flag.truth()).transpose()?.unwrap_or_default() {
            context.bundle.folders.insert(path.clone());
        }
    }
    Ok(VolumeSource::HostPath { path, kind: HostPathKind::Any })
}

/// `PATH[:OPTION,…]`.
fn tmpfs(at: &Cursor<'_>) -> Result<(VolumeSource, VolumeMount), Fault> {
    let text = at.text()?;
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    let mut memory = EmptyDir { memory: true, ..EmptyDir::default() };
    let mut mount = VolumeMount { path: path.to_owned(), ..VolumeMount::default() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let bad = || at.invalid(&format!("has the option {option:?}, which is not supported"));
        match option.split_once('=') {
            Some(("size", size)) => memory.size_limit = Some(words::bytes(size).ok_or_else(bad)?),
            Some(("mode", mode)) => memory.mode = Some(u16::from_str_radix(mode, 8).map_err(|_| bad())?),
            None if option == "ro" => mount.read_only = true,
            // As every volume is.
            None if matches!(option, "rw" | "nosuid" | "nodev") => {}
            _ => return Err(bad()),
        }
    }
    Ok((VolumeSource::EmptyDir(memory), mount))
}

/// Secrets or configs: one volume that holds them all. Those that belong in one folder are mounted with it; each other
/// one is mounted as a single file.
fn files(
    context: &mut Context<'_>,
    at: &Cursor<'_>,
    pod: &mut Pod,
    container: &mut Container,
    kind: DataKind,
) -> Result<(), Fault> {
    let (list, volume) = match kind {
        DataKind::Secret => ("secrets", "secrets"),
        DataKind::ConfigMap => ("configs", "configs"),
    };
    let (mut sources, mut mounts) = (Vec::new(), Vec::new());
    let name = Label::try_from(volume).unwrap_or_default();
    let mut folder = false;
    for item in at.items(list)? {
        item.fields(&Fields { read: &["source", "target", "mode"], ignored: &["uid", "gid"], unsupported: &[] })?;
        let source = item.need("source")?.text()?;
        context.declared(list, source, &item)?;
        context.data.insert((kind, source.to_owned()));
        let mode = item.get("mode")?.map(|mode| mode.whole()).transpose()?;
        let target = match (item.word("target")?, kind) {
            ("", DataKind::Secret) => format!("{SECRETS}/{source}"),
            ("", DataKind::ConfigMap) => format!("/{source}"),
            (target, _) if target.starts_with('/') => target.to_owned(),
            (target, DataKind::Secret) => format!("{SECRETS}/{target}"),
            (target, DataKind::ConfigMap) => format!("/{target}"),
        };
        let inside = target.strip_prefix(SECRETS).and_then(|rest| rest.strip_prefix('/'));
        let path = match inside.filter(|_| kind == DataKind::Secret) {
            Some(inside) => {
                folder = true;
                inside.to_owned()
            }
            None => {
                let path = format!("file-{}", mounts.len());
                let sub_path = Some(path.clone());
                mounts.push(VolumeMount { volume: name.clone(), path: target, read_only: true, sub_path });
                path
            }
        };
        let items = vec![KeyPath { key: KEY.to_owned(), path, mode }];
        let source = DataSource { kind, name: data_name(source, &item)?.to_string(), optional: false };
        sources.push(Projection::Data { source, items });
    }
    if sources.is_empty() {
        return Ok(());
    }
    pod.volumes
        .push(Volume { name: name.clone(), source: VolumeSource::Projected { sources, default_mode: FILE_MODE } });
    if folder {
        container.mounts.push(VolumeMount { volume: name, path: SECRETS.to_owned(), read_only: true, sub_path: None });
    }
    container.mounts.extend(mounts);
    Ok(())
}
