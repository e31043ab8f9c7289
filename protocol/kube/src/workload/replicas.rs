//! Deployments, replica sets, daemon sets and stateful sets.

use serde_json::{Value, json};
use skeg_protocol::manifest::{Condition, Dependency};
use skeg_protocol::{Label, Name};

use super::{Maker, OBJECT, joined, names, template};
use crate::bundle::short_hash;
use crate::cursor::{Cursor, Fault, Fields};

const DEPLOYMENT: Fields = Fields {
    read: &["paused", "replicas", "selector", "strategy", "template"],
    // How a cluster goes from one revision to the next; a device alone does it by its trial.
    ignored: &["minReadySeconds", "progressDeadlineSeconds", "revisionHistoryLimit"],
    unsupported: &[],
};
const REPLICA_SET: Fields =
    Fields { read: &["replicas", "selector", "template"], ignored: &["minReadySeconds"], unsupported: &[] };
const DAEMON_SET: Fields = Fields {
    read: &["selector", "template"],
    ignored: &["minReadySeconds", "revisionHistoryLimit", "updateStrategy"],
    unsupported: &[],
};
const STATEFUL_SET: Fields = Fields {
    read: &[
        "ordinals",
        "podManagementPolicy",
        "replicas",
        "selector",
        "serviceName",
        "template",
        "volumeClaimTemplates",
    ],
    // Claims stay until somebody removes them.
    ignored: &["minReadySeconds", "persistentVolumeClaimRetentionPolicy", "revisionHistoryLimit", "updateStrategy"],
    unsupported: &[],
};
/// Most pods that one workload can ask for; the manifest's own bound is checked as well.
const MOST: u32 = skeg_protocol::limits::MAX_PODS as u32;

/// What workloads have in common.
struct Workload<'a> {
    namespace: Label,
    name: Name,
    spec: Cursor<'a>,
    template: Cursor<'a>,
    replicas: u32,
}

fn workload<'a>(top: &Cursor<'a>, fields: &Fields) -> Result<Workload<'a>, Fault> {
    top.fields(&OBJECT)?;
    let (namespace, name) = names(&top.need("metadata")?)?;
    let spec = top.need("spec")?;
    spec.fields(fields)?;
    let template = spec.need("template")?;
    let selector = spec.need("selector")?;
    selector.fields(&Fields { read: &["matchLabels"], ignored: &["matchExpressions"], unsupported: &[] })?;
    for (key, value) in selector.text_map("matchLabels")? {
        if template.value().pointer("/metadata/labels").and_then(|labels| labels.get(&key)) != Some(&json!(value)) {
            return Err(selector.invalid("does not select the labels of the template"));
        }
    }
    let policy = template.value().pointer("/spec/restartPolicy").unwrap_or(&Value::Null);
    if !policy.is_null() && policy != "Always" {
        return Err(template.need("spec")?.need("restartPolicy")?.invalid("must be Always here"));
    }
    let replicas = spec.number("replicas")?.unwrap_or(1);
    if replicas > MOST {
        return Err(spec.need("replicas")?.invalid(&format!("must be at most {MOST}")));
    }
    Ok(Workload { namespace, name, spec, template, replicas })
}

impl Maker<'_> {
    pub(super) fn deployment(&mut self, top: &Cursor<'_>) -> Result<(), Fault> {
        let workload = workload(top, &DEPLOYMENT)?;
        workload.spec.only("paused", &[json!(false)])?;
        self.replicas(&workload)
    }

    pub(super) fn replica_set(&mut self, top: &Cursor<'_>) -> Result<(), Fault> {
        let workload = workload(top, &REPLICA_SET)?;
        self.replicas(&workload)
    }

    /// Pods that are alike, named after their template.
    fn replicas(&mut self, workload: &Workload<'_>) -> Result<(), Fault> {
        let hash = short_hash(&workload.template.value().to_string());
        let written = template(workload.template.value(), &[("pod-template-hash", &hash)]);
        for index in 0..workload.replicas {
            let name = joined(&workload.spec, &workload.name, &format!("{hash}-{index}"))?;
            let pod = self.of_template(&workload.template, &written, workload.namespace.clone(), name)?;
            self.bundle.pods.extend(pod);
        }
        Ok(())
    }

    pub(super) fn daemon_set(&mut self, top: &Cursor<'_>) -> Result<(), Fault> {
        let workload = workload(top, &DAEMON_SET)?;
        let hash = short_hash(&workload.template.value().to_string());
        let name = joined(&workload.spec, &workload.name, &hash[..5])?;
        let written = template(workload.template.value(), &[]);
        let pod = self.of_template(&workload.template, &written, workload.namespace.clone(), name)?;
        self.bundle.pods.extend(pod);
        Ok(())
    }

    pub(super) fn stateful_set(&mut self, top: &Cursor<'_>) -> Result<(), Fault> {
        let workload = workload(top, &STATEFUL_SET)?;
        let spec = &workload.spec;
        spec.only("podManagementPolicy", &[json!("OrderedReady"), json!("Parallel")])?;
        let ordered = spec.word("podManagementPolicy")? != "Parallel";
        let first = match spec.get("ordinals")? {
            Some(ordinals) => {
                ordinals.fields(&Fields { read: &["start"], ignored: &[], unsupported: &[] })?;
                ordinals.number::<u32>("start")?.unwrap_or(0)
            }
            None => 0,
        };
        let claims = spec.each("volumeClaimTemplates", |claim| claim.need("metadata")?.need("name")?.text())?;
        let service = spec.word("serviceName")?;
        let mut before: Option<Name> = None;
        for index in 0..workload.replicas {
            let ordinal = first.saturating_add(index).to_string();
            let name = joined(spec, &workload.name, &ordinal)?;
            let labels =
                [("statefulset.kubernetes.io/pod-name", name.as_str()), ("apps.kubernetes.io/pod-index", &ordinal)];
            let mut written = template(workload.template.value(), &labels);
            written["spec"]["hostname"] = name.as_str().into();
            if !service.is_empty() {
                written["spec"]["subdomain"] = service.into();
            }
            add_claims(&mut written["spec"], &claims, &name);
            let pod = self.of_template(&workload.template, &written, workload.namespace.clone(), name.clone())?;
            let Some(mut pod) = pod else { continue };
            if ordered && let Some(pod_before) = before.replace(name) {
                pod.depends_on.push(Dependency { pod: pod_before, condition: Condition::Healthy, optional: false });
            }
            self.bundle.pods.push(pod);
        }
        Ok(())
    }
}

/// Adds a volume for each claim; one of the same name in the template gives way, as in Kubernetes.
fn add_claims(spec: &mut Value, claims: &[&str], pod: &str) {
    if claims.is_empty() {
        return;
    }
    let mut volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    volumes.retain(|volume| !claims.iter().any(|claim| volume["name"] == *claim));
    volumes.extend(
        claims
            .iter()
            .map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": format!("{claim}-{pod}")}})),
    );
    spec["volumes"] = volumes.into();
}
