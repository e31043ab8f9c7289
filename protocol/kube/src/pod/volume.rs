//! Volumes of a pod and their mounts.

use serde_json::json;
use skeg_protocol::manifest::{
    DataKind, DownwardFile, DownwardValue, EmptyDir, HostPathKind, KeyPath, Projection, Volume, VolumeMount,
    VolumeSource,
};

use super::env::{data_source, field, only_one, resource};
use crate::cursor::{Cursor, Fault, Fields};
use crate::quantity;

const VOLUME: Fields = Fields {
    read: &["name", "emptyDir", "hostPath", "configMap", "secret", "downwardAPI", "projected", "persistentVolumeClaim"],
    ignored: &[],
    unsupported: &[
        "awsElasticBlockStore",
        "azureDisk",
        "azureFile",
        "cephfs",
        "cinder",
        "csi",
        "ephemeral",
        "fc",
        "flexVolume",
        "flocker",
        "gcePersistentDisk",
        "gitRepo",
        "glusterfs",
        "image",
        "iscsi",
        "nfs",
        "photonPersistentDisk",
        "portworxVolume",
        "quobyte",
        "rbd",
        "scaleIO",
        "storageos",
        "vsphereVolume",
    ],
};
const SOURCES: [&str; 7] =
    ["emptyDir", "hostPath", "configMap", "secret", "downwardAPI", "projected", "persistentVolumeClaim"];
/// Permission bits of projected files, as Kubernetes has them.
const FILE_MODE: u16 = 0o644;

pub(super) fn mount(at: &Cursor<'_>) -> Result<VolumeMount, Fault> {
    at.fields(&Fields {
        read: &["name", "mountPath", "readOnly", "mountPropagation", "recursiveReadOnly", "subPath", "subPathExpr"],
        ignored: &[],
        unsupported: &[],
    })?;
    at.only("mountPropagation", &[json!("None")])?;
    at.only("recursiveReadOnly", &[json!("Disabled")])?;
    let (plain, expression) = (at.word("subPath")?, at.word("subPathExpr")?);
    if !plain.is_empty() && !expression.is_empty() {
        return Err(at.wrong("must not have both subPath and subPathExpr"));
    }
    // The device replaces variables in it, which a plain one does not have.
    let sub_path = if expression.is_empty() { plain.replace('$', "$$") } else { expression.to_owned() };
    Ok(VolumeMount {
        volume: at.need("name")?.bounded()?,
        path: at.need("mountPath")?.text()?.to_owned(),
        read_only: at.flag("readOnly")?,
        sub_path: Some(sub_path).filter(|path| !path.is_empty()),
    })
}

pub(super) fn read(at: &Cursor<'_>) -> Result<Volume, Fault> {
    at.fields(&VOLUME)?;
    let name = at.need("name")?.bounded()?;
    let mut there = 0;
    for source in SOURCES {
        there += usize::from(at.get(source)?.is_some());
    }
    // Kubernetes, too, takes a volume without a source for an emptyDir.
    let source = if there == 0 { VolumeSource::EmptyDir(EmptyDir::default()) } else { read_source(at)? };
    Ok(Volume { name, source })
}

fn read_source(at: &Cursor<'_>) -> Result<VolumeSource, Fault> {
    let (kind, source) = only_one(at, &SOURCES)?;
    match kind {
        "emptyDir" => empty_dir(&source).map(VolumeSource::EmptyDir),
        "hostPath" => host_path(&source),
        "persistentVolumeClaim" => {
            source.fields(&Fields { read: &["claimName", "readOnly"], ignored: &[], unsupported: &[] })?;
            let name = source.need("claimName")?.text()?.to_owned();
            Ok(VolumeSource::Persistent { name, read_only: source.flag("readOnly")?, like_image: false })
        }
        "projected" => {
            source.fields(&Fields { read: &["sources", "defaultMode"], ignored: &[], unsupported: &[] })?;
            let default_mode = mode(&source, "defaultMode")?.unwrap_or(FILE_MODE);
            Ok(VolumeSource::Projected { sources: source.each("sources", projection)?, default_mode })
        }
        kind => {
            let (name, fields): (_, &'static [&'static str]) = match kind {
                "secret" => ("secretName", &["secretName", "items", "defaultMode", "optional"]),
                "configMap" => ("name", &["name", "items", "defaultMode", "optional"]),
                _ => ("", &["items", "defaultMode"]),
            };
            let default_mode = mode(&source, "defaultMode")?.unwrap_or(FILE_MODE);
            let one = if name.is_empty() {
                downward(&source, fields)?
            } else {
                let kind = if kind == "secret" { DataKind::Secret } else { DataKind::ConfigMap };
                Projection::Data { source: data_source(&source, kind, fields)?, items: source.each("items", key_path)? }
            };
            Ok(VolumeSource::Projected { sources: vec![one], default_mode })
        }
    }
}

fn empty_dir(at: &Cursor<'_>) -> Result<EmptyDir, Fault> {
    at.fields(&Fields { read: &["medium", "sizeLimit"], ignored: &[], unsupported: &[] })?;
    at.only("medium", &[json!(""), json!("Memory")])?;
    let size_limit = match at.get("sizeLimit")? {
        Some(limit) => {
            let size = quantity::units(&limit.quantity_text()?);
            Some(size.ok_or_else(|| limit.invalid("must be a quantity such as 64Mi"))?).filter(|size| *size > 0)
        }
        None => None,
    };
    Ok(EmptyDir { memory: at.word("medium")? == "Memory", size_limit, mode: None })
}

fn host_path(at: &Cursor<'_>) -> Result<VolumeSource, Fault> {
    at.fields(&Fields { read: &["path", "type"], ignored: &[], unsupported: &[] })?;
    let kind = match at.word("type")? {
        "" => HostPathKind::Any,
        "DirectoryOrCreate" => HostPathKind::DirectoryOrCreate,
        "Directory" => HostPathKind::Directory,
        "FileOrCreate" => HostPathKind::FileOrCreate,
        "File" => HostPathKind::File,
        "Socket" => HostPathKind::Socket,
        "CharDevice" => HostPathKind::CharDevice,
        "BlockDevice" => HostPathKind::BlockDevice,
        _ => return Err(at.need("type")?.invalid("is no type of a hostPath volume")),
    };
    Ok(VolumeSource::HostPath { path: at.need("path")?.text()?.to_owned(), kind })
}

fn projection(at: &Cursor<'_>) -> Result<Projection, Fault> {
    at.fields(&Fields {
        read: &["configMap", "secret", "downwardAPI"],
        ignored: &[],
        unsupported: &["clusterTrustBundle", "podCertificate", "serviceAccountToken"],
    })?;
    let (kind, source) = only_one(at, &["configMap", "secret", "downwardAPI"])?;
    let kind = match kind {
        "configMap" => DataKind::ConfigMap,
        "secret" => DataKind::Secret,
        _ => return downward(&source, &["items"]),
    };
    let items = source.each("items", key_path)?;
    Ok(Projection::Data { source: data_source(&source, kind, &["name", "items", "optional"])?, items })
}

fn key_path(at: &Cursor<'_>) -> Result<KeyPath, Fault> {
    at.fields(&Fields { read: &["key", "path", "mode"], ignored: &[], unsupported: &[] })?;
    let text = |name| at.need(name)?.text().map(str::to_owned);
    Ok(KeyPath { key: text("key")?, path: text("path")?, mode: mode(at, "mode")? })
}

fn downward(at: &Cursor<'_>, fields: &'static [&'static str]) -> Result<Projection, Fault> {
    at.fields(&Fields { read: fields, ignored: &[], unsupported: &[] })?;
    let files = at.each("items", |item| {
        item.fields(&Fields {
            read: &["path", "mode", "fieldRef", "resourceFieldRef"],
            ignored: &[],
            unsupported: &[],
        })?;
        let (kind, source) = only_one(item, &["fieldRef", "resourceFieldRef"])?;
        let value = match kind {
            "fieldRef" => DownwardValue::Field(field(&source)?),
            _ => DownwardValue::Resource(resource(&source)?),
        };
        Ok(DownwardFile { path: item.need("path")?.text()?.to_owned(), mode: mode(item, "mode")?, value })
    })?;
    Ok(Projection::Downward(files))
}

fn mode(at: &Cursor<'_>, name: &str) -> Result<Option<u16>, Fault> {
    let Some(field) = at.get(name)? else { return Ok(None) };
    let bits: u16 = field.integer()?;
    if bits <= 0o777 { Ok(Some(bits)) } else { Err(field.invalid("must be 0 to 0777, which is 511")) }
}
