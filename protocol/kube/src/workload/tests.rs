//! Kubernetes' workloads on a device alone.

use serde_json::json;
use skeg_protocol::Digest;
use skeg_protocol::manifest::*;

use super::*;

fn image(reference: &str) -> Result<Image, String> {
    Ok(Image { reference: reference.to_owned(), digest: Digest([1; 32]), source: ImageSource::Registry })
}

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
}

fn object(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": "x/v1", "kind": kind, "metadata": {"name": "a"}, "spec": spec})
}

fn convert(documents: &[Value]) -> Result<Bundle, String> {
    convert_documents(documents, &Node::default(), &image).map_err(|fault| fault.to_string())
}

fn workload(kind: &str, change: Value) -> Result<Bundle, String> {
    let mut spec = json!({"selector": {"matchLabels": {"app": "a"}}, "template": template()});
    for (key, value) in change.as_object().unwrap() {
        spec[key] = value.clone();
    }
    convert(&[object(kind, spec)])
}

#[test]
fn a_stateful_set_has_names_disks_and_order() {
    let claims = json!([{"metadata": {"name": "data"}, "spec": {}}]);
    let change = json!({"replicas": 2, "serviceName": "db", "volumeClaimTemplates": claims});
    let bundle = workload("StatefulSet", change.clone()).unwrap();
    let [first, second] = bundle.pods.as_slice() else { panic!("{:?}", bundle.pods) };
    assert_eq!((first.name.as_str(), second.name.as_str()), ("a-0", "a-1"));
    assert_eq!(
        second.volumes[0].source,
        VolumeSource::Persistent { name: "data-a-1".into(), read_only: false, like_image: false }
    );
    assert_eq!((second.hostname.as_deref(), second.subdomain.as_deref()), (Some("a-1"), Some("db")));
    assert!(first.depends_on.is_empty());
    assert_eq!((second.depends_on[0].pod.as_str(), second.depends_on[0].condition), ("a-0", Condition::Healthy));
    let mut parallel = change;
    parallel["podManagementPolicy"] = json!("Parallel");
    assert!(workload("StatefulSet", parallel).unwrap().pods[1].depends_on.is_empty());
}

#[test]
fn replicas_are_named_after_their_template() {
    let bundle = workload("Deployment", json!({"replicas": 2})).unwrap();
    let (first, second) = (bundle.pods[0].name.as_str(), bundle.pods[1].name.as_str());
    assert_eq!(first.strip_suffix("-0"), second.strip_suffix("-1"));
    assert!(bundle.pods[0].labels.iter().any(|(key, _)| key == "pod-template-hash"));
    assert_eq!(workload("ReplicaSet", json!({"replicas": 0})).unwrap().pods.len(), 0);
    assert_eq!(workload("DaemonSet", json!({})).unwrap().pods.len(), 1);
}

#[test]
fn jobs_have_kubernetes_defaults() {
    let mut template = template();
    template["spec"]["restartPolicy"] = json!("Never");
    let bundle = convert(&[object("Job", json!({"template": template}))]).unwrap();
    let job = &bundle.jobs[0];
    assert_eq!((job.completions, job.parallelism, job.backoff_limit), (Some(1), 1, 6));
    let queue = convert(&[object("Job", json!({"template": template, "parallelism": 3}))]).unwrap();
    assert_eq!((queue.jobs[0].completions, queue.jobs[0].parallelism), (None, 3));
    let cron = json!({"schedule": "@daily", "jobTemplate": {"spec": {"template": template}}});
    let bundle = convert(&[object("CronJob", cron)]).unwrap();
    let cron = &bundle.cron_jobs[0];
    assert_eq!((cron.successful_jobs_history_limit, cron.failed_jobs_history_limit), (3, 1));
    assert_eq!(cron.concurrency, Concurrency::Allow);
    let manifest = bundle.into_manifest().unwrap();
    assert_ne!(manifest.cron_jobs[0].uid, Uid::default());
}

#[test]
fn priorities_are_those_of_the_documents_classes() {
    let class = json!({"kind": "PriorityClass", "metadata": {"name": "high"}, "value": 7});
    let mut pod = json!({"kind": "Pod", "metadata": {"name": "a"}, "spec": template()["spec"]});
    pod["spec"]["priorityClassName"] = json!("high");
    assert_eq!(convert(&[pod.clone(), class]).unwrap().pods[0].priority, 7);
    let text = convert(&[pod]).unwrap_err();
    assert_eq!(text, "Pod default/a: spec.priorityClassName: \"high\" is no PriorityClass among the documents");
}

#[test]
fn a_node_port_that_is_left_open_is_chosen_once_for_ever() {
    let service = |name: &str, spec: Value| json!({"kind": "Service", "metadata": {"name": name}, "spec": spec});
    let open = || service("a", json!({"type": "NodePort", "ports": [{"port": 80}]}));
    let port = |bundle: &Bundle, index: usize| bundle.services[index].ports[0].node_port.unwrap();
    let alone = convert(&[open()]).unwrap();
    let chosen = port(&alone, 0);
    assert!((30_000..32_768).contains(&chosen));
    let taken = service("b", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": chosen}]}));
    assert_ne!(port(&convert(&[open(), taken]).unwrap(), 0), chosen, "a written port goes first");
}

#[test]
fn what_is_wrong_names_document_and_field() {
    let missing = convert(&[json!({"kind": "Ingress", "metadata": {"name": "a", "namespace": "b"}})]).unwrap_err();
    assert_eq!(missing, "Ingress b/a: kind: not supported yet: \"Ingress\"");
    assert!(convert(&[json!({"metadata": {}})]).unwrap_err().starts_with("document 1 (without a kind): "));
    let text = workload("Deployment", json!({"selector": {"matchLabels": {"app": "b"}}})).unwrap_err();
    assert!(text.contains("does not select the labels of the template"), "{text}");
    let text = workload("Deployment", json!({"replicas": 5000})).unwrap_err();
    assert!(text.contains("spec.replicas: 5000 must be at most 1024"), "{text}");
    let mut broken = template();
    broken["spec"]["containers"][0]["imagee"] = json!("x");
    let text = workload("DaemonSet", json!({"template": broken})).unwrap_err();
    assert!(text.contains("unknown field \"spec.template.spec.containers[0].imagee\""), "{text}");
}
