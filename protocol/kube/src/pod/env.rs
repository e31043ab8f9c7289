//! Environment variables, and what a pod can be told about itself.

use skeg_protocol::manifest::{DataKind, DataSource, EnvFrom, EnvValue, EnvVar, PodField, ResourceField, ResourceName};

use crate::cursor::{Cursor, Fault, Fields};
use crate::quantity;

pub(super) fn read(at: &Cursor<'_>) -> Result<EnvVar, Fault> {
    at.fields(&Fields { read: &["name", "value", "valueFrom"], ignored: &[], unsupported: &[] })?;
    let text = at.word("value")?;
    let value = match at.get("valueFrom")? {
        None => EnvValue::from(text),
        Some(from) if !text.is_empty() => return Err(from.wrong("must not be there beside a value")),
        Some(from) => read_value(&from)?,
    };
    Ok(EnvVar { name: at.need("name")?.text()?.to_owned(), value })
}

fn read_value(at: &Cursor<'_>) -> Result<EnvValue, Fault> {
    let kinds = ["configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef"];
    at.fields(&Fields {
        read: &["configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef"],
        ignored: &[],
        unsupported: &["fileKeyRef"],
    })?;
    let (kind, source) = only_one(at, &kinds)?;
    Ok(match kind {
        "fieldRef" => EnvValue::Field(field(&source)?),
        "resourceFieldRef" => EnvValue::Resource(resource(&source)?),
        _ => {
            let key = source.need("key")?.text()?.to_owned();
            let kind = if kind == "secretKeyRef" { DataKind::Secret } else { DataKind::ConfigMap };
            EnvValue::Key { source: data_source(&source, kind, &["name", "key", "optional"])?, key }
        }
    })
}

/// The only one of these fields that is there.
pub(super) fn only_one<'a, 'b>(at: &Cursor<'a>, kinds: &[&'b str]) -> Result<(&'b str, Cursor<'a>), Fault> {
    let mut found = Vec::new();
    for kind in kinds {
        found.extend(at.get(kind)?.map(|source| (*kind, source)));
    }
    match (found.pop(), found.is_empty()) {
        (Some(one), true) => Ok(one),
        _ => Err(at.invalid(&format!("must have exactly one of {}", kinds.join(", ")))),
    }
}

pub(super) fn data_source(
    at: &Cursor<'_>,
    kind: DataKind,
    fields: &'static [&'static str],
) -> Result<DataSource, Fault> {
    at.fields(&Fields { read: fields, ignored: &[], unsupported: &[] })?;
    let name = if fields.contains(&"secretName") { "secretName" } else { "name" };
    Ok(DataSource { kind, name: at.need(name)?.text()?.to_owned(), optional: at.flag("optional")? })
}

pub(super) fn read_from(at: &Cursor<'_>) -> Result<EnvFrom, Fault> {
    at.fields(&Fields { read: &["prefix", "configMapRef", "secretRef"], ignored: &[], unsupported: &[] })?;
    let (kind, source) = only_one(at, &["configMapRef", "secretRef"])?;
    let kind = if kind == "secretRef" { DataKind::Secret } else { DataKind::ConfigMap };
    Ok(EnvFrom { prefix: at.word("prefix")?.to_owned(), source: data_source(&source, kind, &["name", "optional"])? })
}

/// Reads a `fieldRef`.
pub(super) fn field(at: &Cursor<'_>) -> Result<PodField, Fault> {
    at.fields(&Fields { read: &["fieldPath", "apiVersion"], ignored: &[], unsupported: &[] })?;
    at.only("apiVersion", &["".into(), "v1".into()])?;
    let path = at.need("fieldPath")?;
    let text = path.text()?;
    let named = |map: &str| text.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']").map(str::to_owned);
    Ok(match text {
        "metadata.name" => PodField::Name,
        "metadata.namespace" => PodField::Namespace,
        "metadata.uid" => PodField::Uid,
        "metadata.labels" => PodField::Labels,
        "metadata.annotations" => PodField::Annotations,
        "spec.nodeName" => PodField::NodeName,
        "spec.serviceAccountName" => PodField::ServiceAccountName,
        "status.hostIP" => PodField::HostIp,
        "status.hostIPs" => PodField::HostIps,
        "status.podIP" => PodField::PodIp,
        "status.podIPs" => PodField::PodIps,
        _ => match (named("metadata.labels"), named("metadata.annotations")) {
            (Some(key), _) => PodField::Label(key),
            (_, Some(key)) => PodField::Annotation(key),
            _ => return Err(path.invalid("is no field that a pod can be told")),
        },
    })
}

/// Reads a `resourceFieldRef`.
pub(super) fn resource(at: &Cursor<'_>) -> Result<ResourceField, Fault> {
    at.fields(&Fields { read: &["containerName", "resource", "divisor"], ignored: &[], unsupported: &[] })?;
    let name = at.need("resource")?;
    let resource = match name.text()? {
        "limits.cpu" => ResourceName::LimitsCpu,
        "limits.memory" => ResourceName::LimitsMemory,
        "limits.ephemeral-storage" => ResourceName::LimitsEphemeralStorage,
        "requests.cpu" => ResourceName::RequestsCpu,
        "requests.memory" => ResourceName::RequestsMemory,
        "requests.ephemeral-storage" => ResourceName::RequestsEphemeralStorage,
        _ => return Err(name.invalid("must be cpu, memory or ephemeral-storage of limits or requests")),
    };
    let mut divisor_millis = 1000;
    if let Some(divisor) = at.get("divisor")? {
        let text = divisor.quantity_text()?;
        let millis = quantity::millis(&text).and_then(|millis| u64::try_from(millis).ok());
        // Kubernetes takes no divisor for a whole unit, and fills in a zero.
        divisor_millis = match millis {
            Some(0) => 1000,
            Some(millis) => millis,
            None => return Err(divisor.invalid("must be a quantity such as 1Mi or 1m")),
        };
    }
    let container = at.get("containerName")?.filter(|name| name.value().as_str() != Some(""));
    Ok(ResourceField { container: container.map(|name| name.bounded()).transpose()?, resource, divisor_millis })
}
