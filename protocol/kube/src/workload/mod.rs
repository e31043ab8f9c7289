//! Kubernetes' objects for a device that is alone: each workload becomes the pods that a cluster's controllers would
//! have made of it for this one node.

mod job;
mod replicas;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde_json::Value;
use skeg_protocol::manifest::{Image, Pod, Service, ServiceKind};
use skeg_protocol::{Invalid, Label, Name, Uid};
use thiserror::Error;

use crate::bundle::{Bundle, short_hash};
use crate::cursor::{Cursor, Fault, Fields};
use crate::pod::{Identity, METADATA, containers, read_template};
use crate::{convert_data, convert_service};

/// The device that the documents are for.
#[derive(Debug, Clone, Default)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels, against which node selectors are held.
    pub labels: BTreeMap<String, String>,
}

/// What is wrong with a document, and with which.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{document}: {fault}")]
pub struct DocumentFault {
    /// Kind and name, or its number where it has none.
    pub document: String,
    /// What is wrong.
    #[source]
    pub fault: Fault,
}

/// Says what an image reference means, or why it is none.
pub type ImageOf<'a> = &'a dyn Fn(&str) -> Result<Image, String>;

/// Makes one bundle of all documents. Objects without a namespace are in `default`.
///
/// # Errors
/// The first document that is unknown, not followed by a device alone, or breaks a rule.
pub fn convert_documents(documents: &[Value], node: &Node, image: ImageOf<'_>) -> Result<Bundle, DocumentFault> {
    let mut maker = Maker { node, image, classes: BTreeMap::new(), bundle: Bundle::default() };
    for (index, document) in documents.iter().enumerate() {
        maker.class(document).map_err(|fault| DocumentFault { document: title(index, document), fault })?;
    }
    for (index, document) in documents.iter().enumerate() {
        let document = with_namespace(document);
        maker.document(&document).map_err(|fault| DocumentFault { document: title(index, &document), fault })?;
    }
    maker.choose_node_ports();
    Ok(maker.bundle)
}

fn title(index: usize, document: &Value) -> String {
    let word = |pointer| document.pointer(pointer).and_then(Value::as_str);
    match (word("/kind"), word("/metadata/namespace"), word("/metadata/name")) {
        (Some(kind), Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (Some(kind), None, Some(name)) => format!("{kind} {name}"),
        (kind, ..) => format!("document {} ({})", index + 1, kind.unwrap_or("without a kind")),
    }
}

fn with_namespace(document: &Value) -> Value {
    let mut document = document.clone();
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        let namespace = metadata.entry("namespace").or_insert(Value::Null);
        if namespace.is_null() || namespace == "" {
            *namespace = "default".into();
        }
    }
    document
}

/// Fields of an object that has metadata and a specification.
const OBJECT: Fields =
    Fields { read: &["metadata", "spec"], ignored: &["apiVersion", "kind", "status"], unsupported: &[] };

/// Kinds that say nothing to a single device: what they allow, reserve or describe is so anyway.
const PASSED_OVER: [&str; 8] = [
    "Namespace",
    "ServiceAccount",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "StorageClass",
    "Role",
    "RoleBinding",
    "PriorityClass",
];

/// What becomes of the documents while they are read.
pub(crate) struct Maker<'a> {
    node: &'a Node,
    image: ImageOf<'a>,
    /// Priority classes of the documents.
    classes: BTreeMap<String, i32>,
    bundle: Bundle,
}

impl Maker<'_> {
    fn class(&mut self, document: &Value) -> Result<(), Fault> {
        if document["kind"] == "PriorityClass" {
            let top = Cursor::new(document, "");
            let name = top.need("metadata")?.need("name")?.text()?;
            self.classes.insert(name.to_owned(), top.need("value")?.integer()?);
        }
        Ok(())
    }

    fn document(&mut self, document: &Value) -> Result<(), Fault> {
        let top = Cursor::new(document, "");
        match top.need("kind")?.text()? {
            "Pod" => self.pod(&top),
            "Deployment" => self.deployment(&top),
            "ReplicaSet" => self.replica_set(&top),
            "DaemonSet" => self.daemon_set(&top),
            "StatefulSet" => self.stateful_set(&top),
            "Job" => self.job(&top),
            "CronJob" => self.cron_job(&top),
            "ConfigMap" | "Secret" => {
                self.bundle.data.push(convert_data(document)?);
                Ok(())
            }
            "Service" => {
                let mut service = convert_service(document)?;
                ask_for_node_ports(&top, &mut service)?;
                self.bundle.services.push(service);
                Ok(())
            }
            kind if PASSED_OVER.contains(&kind) => {
                top.need("metadata")?.need("name")?.text()?;
                Ok(())
            }
            _ => Err(top.need("kind")?.unsupported()),
        }
    }

    fn pod(&mut self, top: &Cursor<'_>) -> Result<(), Fault> {
        top.fields(&OBJECT)?;
        let metadata = top.need("metadata")?;
        let (namespace, name) = names(&metadata)?;
        if let Some(pod) = self.of_template(top, &template(top.value(), &[]), namespace, name)? {
            self.bundle.pods.push(pod);
        }
        Ok(())
    }

    /// Reads a template for one pod; `None` where it is not for this device, which is noted.
    fn of_template(
        &mut self,
        at: &Cursor<'_>,
        template: &Value,
        namespace: Label,
        name: Name,
    ) -> Result<Option<Pod>, Fault> {
        let at = Cursor::new(template, at.path());
        let spec = at.need("spec")?;
        for (key, value) in spec.entries("nodeSelector")? {
            if self.node.labels.get(key).map(String::as_str) != Some(value.text()?) {
                let why = format!("{namespace}/{name} is not for this device: {} is {}", value.path(), value.value());
                self.bundle.notes.push(why);
                return Ok(None);
            }
        }
        let wanted = spec.word("nodeName")?;
        if !wanted.is_empty() && wanted != self.node.name {
            self.bundle.notes.push(format!("{namespace}/{name} is not for this device: nodeName is {wanted}"));
            return Ok(None);
        }
        for container in containers(template) {
            if container["imagePullPolicy"] == "Always" {
                self.bundle.ask_anew.extend(container["image"].as_str().map(str::to_owned));
            }
        }
        let image = self.image;
        let who = Identity { uid: Uid::default(), namespace, name };
        let mut pod = read_template(&at, who, &|_, reference| image(reference))?;
        let class = spec.word("priorityClassName")?;
        if !class.is_empty() && !class.starts_with("system-") {
            let known = self.classes.get(class);
            let field = spec.need("priorityClassName")?;
            pod.priority = *known.ok_or_else(|| field.invalid("is no PriorityClass among the documents"))?;
        }
        Ok(Some(pod))
    }

    /// Chooses the node ports that were left open, each after its service's name, so that they stay the same.
    fn choose_node_ports(&mut self) {
        let given = |service: &Service| service.ports.iter().filter_map(|port| port.node_port).collect::<Vec<_>>();
        let mut taken: Vec<u16> = self.bundle.services.iter().flat_map(given).filter(|port| *port != 0).collect();
        for service in &mut self.bundle.services {
            for port in &mut service.ports {
                if port.node_port != Some(0) {
                    continue;
                }
                let seed = format!("{}/{}/{}", service.namespace, service.name, port.port);
                let start =
                    short_hash(&seed).bytes().fold(0u16, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
                let candidates = (0..NODE_PORTS).map(|step| FIRST_NODE_PORT + (start.wrapping_add(step)) % NODE_PORTS);
                port.node_port = candidates.into_iter().find(|port| !taken.contains(port));
                taken.extend(port.node_port);
            }
        }
    }
}

/// Kubernetes' range of node ports.
const FIRST_NODE_PORT: u16 = 30_000;
const NODE_PORTS: u16 = 2768;

/// Marks with 0 the node ports that are to be chosen.
fn ask_for_node_ports(top: &Cursor<'_>, service: &mut Service) -> Result<(), Fault> {
    let kind = top.need("spec")?.word("type")?;
    if matches!(kind, "NodePort" | "LoadBalancer") && matches!(service.kind, ServiceKind::ClusterIp(_)) {
        service.ports.iter_mut().for_each(|port| port.node_port = port.node_port.or(Some(0)));
    }
    Ok(())
}

/// Namespace and name of an object.
fn names(metadata: &Cursor<'_>) -> Result<(Label, Name), Fault> {
    metadata.fields(&METADATA)?;
    Ok((metadata.need("namespace")?.bounded()?, metadata.need("name")?.bounded()?))
}

/// A template with further labels, and without what only a pod has.
fn template(template: &Value, labels: &[(&str, &str)]) -> Value {
    let mut out = serde_json::Map::new();
    let part = |name: &str| template.get(name).cloned().unwrap_or(Value::Null);
    let mut metadata = part("metadata");
    for (key, value) in labels {
        metadata["labels"][key] = (*value).into();
    }
    out.insert("metadata".to_owned(), metadata);
    out.insert("spec".to_owned(), part("spec"));
    Value::Object(out)
}

/// A name made of another and something behind it.
fn joined(at: &Cursor<'_>, name: &str, behind: &str) -> Result<Name, Fault> {
    let text = format!("{name}-{behind}");
    Name::try_from(text.as_str())
        .map_err(|_| Invalid { field: at.path().to_owned(), problem: format!("the name {text:?} is too long") }.into())
}
