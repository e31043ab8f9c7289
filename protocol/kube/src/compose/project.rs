//! A project as a whole: its networks, volumes, secrets and configs, and then its services one by one.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use skeg_protocol::manifest::{Data, DataKind, Network, Subnet};
use skeg_protocol::{Invalid, Label, Name};

use super::load::{Loader, Project};
use super::scalar::Scalar as _;
use super::{ComposeFault, Composed, service, words};
use crate::bundle::Bundle;
use crate::cursor::{Cursor, Fault, Fields};
use crate::workload::ImageOf;

/// What services refer to, and what becomes of them.
pub(super) struct Context<'a> {
    pub(super) project: &'a Project,
    pub(super) namespace: Label,
    pub(super) loader: Loader<'a>,
    pub(super) image: ImageOf<'a>,
    pub(super) bundle: Bundle,
    /// Networks that some service is in.
    pub(super) networks: BTreeSet<String>,
    /// Secrets and configs that some service has.
    pub(super) data: BTreeSet<(DataKind, String)>,
}

/// Turns a project into what it asks for.
pub(super) fn convert(project: &Project, loader: Loader<'_>, image: ImageOf<'_>) -> Result<Composed, ComposeFault> {
    let complain = |fault| ComposeFault { file: "compose project".to_owned(), fault };
    let label = words::label(&project.name);
    let namespace = Label::try_from(label.as_str()).ok().filter(|label| skeg_protocol::id::is_label(label));
    let namespace = namespace.ok_or_else(|| {
        let problem = format!("{:?} must be at most 63 letters, digits, `-` and `_`", project.name);
        complain(Invalid { field: "name".to_owned(), problem }.into())
    })?;
    let mut context = Context {
        project,
        namespace,
        loader,
        image,
        bundle: Bundle::default(),
        networks: BTreeSet::new(),
        data: BTreeSet::new(),
    };
    let services = project.document["services"].as_object();
    let mut names = BTreeMap::new();
    for (name, value) in services.into_iter().flatten() {
        let file = project.origin.get(name).cloned().unwrap_or_default();
        let at = Cursor::new(value, &format!("services.{name}"));
        if let Some(other) = names.insert(words::label(name), name) {
            let problem = format!("has the same DNS name as the service {other:?}");
            return Err(ComposeFault { file, fault: Invalid { field: at.path().to_owned(), problem }.into() });
        }
        service::convert(&mut context, name, &at).map_err(|fault| fault.at(&file))?;
    }
    if names.is_empty() {
        let problem = "there is no service; perhaps a profile must be named".to_owned();
        return Err(complain(Invalid { field: "services".to_owned(), problem }.into()));
    }
    context.top_level().map_err(|fault| fault.at("compose project"))?;
    Ok(Composed { project: context.namespace.to_string(), bundle: context.bundle })
}

/// A complaint about the project's documents, or one that knows its file already.
pub(super) enum Trouble {
    Here(Fault),
    There(ComposeFault),
}

impl Trouble {
    fn at(self, file: &str) -> ComposeFault {
        match self {
            Trouble::Here(fault) => ComposeFault { file: file.to_owned(), fault },
            Trouble::There(fault) => fault,
        }
    }
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        Trouble::Here(fault)
    }
}

impl From<ComposeFault> for Trouble {
    fn from(fault: ComposeFault) -> Self {
        Trouble::There(fault)
    }
}

impl From<Invalid> for Trouble {
    fn from(invalid: Invalid) -> Self {
        Trouble::Here(invalid.into())
    }
}

impl Context<'_> {
    /// A top-level entry that a service refers to.
    pub(super) fn declared(&self, kind: &str, name: &str, at: &Cursor<'_>) -> Result<&Value, Fault> {
        let entry = self.project.document[kind].as_object().and_then(|map| map.get(name));
        entry.ok_or_else(|| at.wrong(format!("{name:?} is not declared under the file's {kind}")))
    }

    /// The name of a volume on the device: its own, or that under which it is declared.
    pub(super) fn volume_name(&self, name: &str, at: &Cursor<'_>) -> Result<String, Fault> {
        let entry = self.declared("volumes", name, at)?;
        let empty = json!({});
        let entry = if entry.is_null() { &empty } else { entry };
        let volume = Cursor::new(entry, &format!("volumes.{name}"));
        volume.fields(&Fields {
            read: &["name", "driver", "external", "driver_opts"],
            ignored: &["labels"],
            unsupported: &[],
        })?;
        volume.only("driver", &[json!("local"), json!("")])?;
        volume.only("driver_opts", &[json!({})])?;
        let own = volume.get("name")?.map(|own| own.scalar()).transpose()?;
        let name = words::label(own.as_deref().unwrap_or(name));
        if skeg_protocol::id::is_name(&name) { Ok(name) } else { Err(volume.wrong(format!("{name:?} is no DNS name"))) }
    }

    /// Converts what the services have referred to.
    fn top_level(&mut self) -> Result<(), Trouble> {
        let empty = json!({});
        for name in std::mem::take(&mut self.networks) {
            let entry = self.project.document["networks"].get(&name).filter(|value| !value.is_null());
            let at = Cursor::new(entry.unwrap_or(&empty), &format!("networks.{name}"));
            let network = self.network(&name, &at)?;
            self.bundle.networks.push(network);
        }
        for (kind, name) in std::mem::take(&mut self.data) {
            let list = if kind == DataKind::Secret { "secrets" } else { "configs" };
            let at = Cursor::new(&self.project.document[list][name.as_str()], &format!("{list}.{name}"));
            let bytes = self.content(kind, &at)?;
            let data = Data {
                kind,
                namespace: self.namespace.clone(),
                name: data_name(&name, &at)?,
                immutable: false,
                entries: vec![(KEY.to_owned(), bytes)],
            };
            data.validate().map_err(|invalid| Invalid { field: format!("{list}.{name}"), ..invalid })?;
            self.bundle.data.push(data);
        }
        Ok(())
    }

    fn network(&mut self, name: &str, at: &Cursor<'_>) -> Result<Network, Fault> {
        at.fields(&Fields {
            read: &["driver", "driver_opts", "external", "internal", "ipam", "name"],
            ignored: &["attachable", "enable_ipv4", "enable_ipv6", "labels"],
            unsupported: &[],
        })?;
        at.only("driver", &[json!("bridge"), json!("default"), json!("")])?;
        if let Some(external) = at.get("external")?
            && external.truth().unwrap_or(true)
        {
            return Err(external.unsupported());
        }
        if at.get("name")?.is_some() {
            self.bundle.notes.push(format!("{}.name is passed over: a network belongs to its project", at.path()));
        }
        let mut mtu = None;
        for (option, value) in at.entries("driver_opts")? {
            match option {
                "com.docker.network.driver.mtu" => mtu = Some(value.whole()?),
                _ => return Err(value.unsupported()),
            }
        }
        let mut subnets = Vec::new();
        if let Some(ipam) = at.get("ipam")? {
            ipam.fields(&Fields { read: &["driver", "config", "options"], ignored: &[], unsupported: &[] })?;
            ipam.only("driver", &[json!("default")])?;
            ipam.only("options", &[json!({})])?;
            subnets = ipam.each("config", subnet)?;
        }
        let internal = at.get("internal")?.map(|flag| flag.truth()).transpose()?.unwrap_or_default();
        let network =
            Network { namespace: self.namespace.clone(), name: network_name(name, at)?, subnets, internal, mtu };
        network
            .validate()
            .map_err(|invalid| Invalid { field: format!("{}.{}", at.path(), invalid.field), ..invalid })?;
        Ok(network)
    }

    /// What stands in a secret or config.
    fn content(&mut self, kind: DataKind, at: &Cursor<'_>) -> Result<Vec<u8>, Trouble> {
        at.fields(&Fields {
            read: &["content", "environment", "external", "file"],
            ignored: &["labels", "name"],
            unsupported: &["driver", "driver_opts", "template_driver"],
        })?;
        at.only("external", &[json!(false)])?;
        if kind == DataKind::Secret
            && let Some(content) = at.get("content")?
        {
            // Whoever may read the file could read the secret.
            return Err(content.wrong("is for configs; a secret comes from a file or the environment").into());
        }
        match (at.get("file")?, at.get("environment")?, at.get("content")?) {
            (Some(file), None, None) => Ok(self.loader.bytes(file.text()?)?),
            (None, Some(name), None) => {
                let value = self.project.variables.get(name.text()?);
                let value = value.ok_or_else(|| name.invalid("is not set in the environment"))?;
                Ok(value.clone().into_bytes())
            }
            (None, None, Some(content)) => Ok(content.scalar()?.into_bytes()),
            _ => Err(at.wrong("must have one of file, environment and content").into()),
        }
    }
}

/// The only key of a secret or config.
pub(super) const KEY: &str = "content";

pub(super) fn data_name(name: &str, at: &Cursor<'_>) -> Result<Name, Fault> {
    let label = words::label(name);
    let bounded = Name::try_from(label.as_str()).ok().filter(|name| skeg_protocol::id::is_name(name));
    bounded.ok_or_else(|| at.wrong(format!("{name:?} must be letters, digits, `-`, `_` and `.`")))
}

pub(super) fn network_name(name: &str, at: &Cursor<'_>) -> Result<Name, Fault> {
    data_name(name, at)
}

fn subnet(at: &Cursor<'_>) -> Result<Subnet, Fault> {
    at.fields(&Fields { read: &["subnet", "gateway"], ignored: &[], unsupported: &["ip_range", "aux_addresses"] })?;
    let range = at.need("subnet")?;
    let parsed =
        range.text()?.split_once('/').and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)));
    let (address, prefix) = parsed.ok_or_else(|| range.invalid("must be a range such as 172.29.7.0/24"))?;
    let gateway = match at.get("gateway")? {
        Some(gateway) => Some(gateway.text()?.parse().map_err(|_| gateway.invalid("must be an IP address"))?),
        None => None,
    };
    Ok(Subnet { address, prefix, gateway })
}
