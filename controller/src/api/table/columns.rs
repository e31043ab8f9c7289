//! The columns of each kind, as kubectl's own printers have them.

use serde_json::Value;

use super::{pod_ready, pod_reason, restarts};
use crate::{selector, time};

/// Name, priority (1 shows with `-o wide` only), and what stands in it.
type Column = (&'static str, u8, fn(&Value) -> String);

fn text(value: &Value) -> String {
    value.as_str().filter(|text| !text.is_empty()).unwrap_or("<none>").to_owned()
}

fn number(value: &Value) -> String {
    value.as_i64().unwrap_or(0).to_string()
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn age(object: &Value) -> String {
    time::age(&object["metadata"]["creationTimestamp"], time::now())
}

fn ago(value: &Value) -> String {
    if value.is_null() { "<none>".to_owned() } else { time::age(value, time::now()) }
}

fn size(value: &Value) -> usize {
    value.as_object().map_or_else(|| value.as_array().map_or(0, Vec::len), serde_json::Map::len)
}

fn join(values: impl Iterator<Item = String>) -> String {
    let words: Vec<String> = values.collect();
    if words.is_empty() { "<none>".to_owned() } else { words.join(",") }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn containers(object: &Value, field: &str) -> String {
    join(items(&object["spec"]["template"]["spec"]["containers"]).map(|container| text(&container[field])))
}

fn pairs(map: &Value) -> String {
    join(
        map.as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())),
    )
}

fn selector_of(object: &Value) -> String {
    let text = selector::text(&object["spec"]["selector"]);
    if text.is_empty() { "<none>".to_owned() } else { text }
}

fn node_status(node: &Value) -> String {
    let ready = if crate::schedule::is_ready(node) { "Ready" } else { "NotReady" };
    let closed = if node["spec"]["unschedulable"] == true { ",SchedulingDisabled" } else { "" };
    format!("{ready}{closed}")
}

fn node_address(node: &Value) -> String {
    let internal = items(&node["status"]["addresses"]).find(|address| address["type"] == "InternalIP");
    internal.map_or_else(|| "<none>".to_owned(), |address| text(&address["address"]))
}

fn roles(node: &Value) -> String {
    let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
    join(labels.filter_map(|(label, _)| label.strip_prefix("node-role.kubernetes.io/")).map(str::to_owned))
}

fn service_ports(service: &Value) -> String {
    join(items(&service["spec"]["ports"]).map(|port| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        match port["nodePort"].as_i64() {
            Some(node) => format!("{}:{node}/{protocol}", port["port"]),
            None => format!("{}/{protocol}", port["port"]),
        }
    }))
}

fn endpoint_addresses(endpoints: &Value) -> String {
    let all: Vec<String> = items(&endpoints["subsets"])
        .flat_map(|subset| {
            items(&subset["addresses"]).flat_map(move |address| {
                items(&subset["ports"]).map(move |port| format!("{}:{}", text(&address["ip"]), port["port"]))
            })
        })
        .collect();
    match all.len() {
        0 => "<none>".to_owned(),
        1..=3 => all.join(","),
        more => format!("{} + {} more...", all[..3].join(","), more - 3),
    }
}

fn job_status(job: &Value) -> String {
    let holds = |kind: &str| items(&job["status"]["conditions"]).any(|c| c["type"] == kind && c["status"] == "True");
    let status = match () {
        () if holds("Complete") => "Complete",
        () if holds("Failed") => "Failed",
        () if !job["metadata"]["deletionTimestamp"].is_null() => "Terminating",
        () if holds("Suspended") => "Suspended",
        () => "Running",
    };
    status.to_owned()
}

fn job_duration(job: &Value) -> String {
    let Some(start) = job["status"]["startTime"].as_str() else { return String::new() };
    let end = job["status"]["completionTime"].as_str().and_then(|text| text.parse().ok()).unwrap_or_else(time::now);
    time::age(&Value::String(start.to_owned()), end)
}

fn completions(job: &Value) -> String {
    let done = number(&job["status"]["succeeded"]);
    match job["spec"]["completions"].as_i64() {
        Some(wanted) => format!("{done}/{wanted}"),
        None => format!("{done}/1 of {}", job["spec"]["parallelism"].as_i64().unwrap_or(1)),
    }
}

fn event_object(event: &Value) -> String {
    let object = &event["involvedObject"];
    format!(
        "{}/{}",
        object["kind"].as_str().unwrap_or_default().to_lowercase(),
        object["name"].as_str().unwrap_or_default()
    )
}

fn role_ref(binding: &Value) -> String {
    format!("{}/{}", text(&binding["roleRef"]["kind"]), text(&binding["roleRef"]["name"]))
}

fn subjects(binding: &Value, kind: &str) -> String {
    let of = items(&binding["subjects"]).filter(|subject| subject["kind"] == kind);
    let words: Vec<String> = of
        .map(|subject| match subject["namespace"].as_str() {
            Some(namespace) => format!("{namespace}/{}", text(&subject["name"])),
            None => text(&subject["name"]),
        })
        .collect();
    words.join(", ")
}

fn or_empty(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

const NAME: Column = ("Name", 0, name);
const AGE: Column = ("Age", 0, age);
const CONTAINERS: Column = ("Containers", 1, |object| containers(object, "name"));
const IMAGES: Column = ("Images", 1, |object| containers(object, "image"));
const SELECTOR: Column = ("Selector", 1, selector_of);

const PODS: &[Column] = &[
    NAME,
    ("Ready", 0, |pod| {
        let (ready, all) = pod_ready(pod);
        format!("{ready}/{all}")
    }),
    ("Status", 0, pod_reason),
    ("Restarts", 0, restarts),
    AGE,
    ("IP", 1, |pod| text(&pod["status"]["podIP"])),
    ("Node", 1, |pod| text(&pod["spec"]["nodeName"])),
    ("Nominated Node", 1, |_| "<none>".to_owned()),
    ("Readiness Gates", 1, |_| "<none>".to_owned()),
];
const NODES: &[Column] = &[
    NAME,
    ("Status", 0, node_status),
    ("Roles", 0, roles),
    AGE,
    ("Version", 0, |node| text(&node["status"]["nodeInfo"]["kubeletVersion"])),
    ("Internal-IP", 1, node_address),
    ("External-IP", 1, |_| "<none>".to_owned()),
    ("OS-Image", 1, |node| text(&node["status"]["nodeInfo"]["osImage"])),
    ("Kernel-Version", 1, |node| text(&node["status"]["nodeInfo"]["kernelVersion"])),
    ("Container-Runtime", 1, |node| text(&node["status"]["nodeInfo"]["containerRuntimeVersion"])),
];
const DEPLOYMENTS: &[Column] = &[
    NAME,
    ("Ready", 0, |o| format!("{}/{}", number(&o["status"]["readyReplicas"]), number(&o["spec"]["replicas"]))),
    ("Up-to-date", 0, |o| number(&o["status"]["updatedReplicas"])),
    ("Available", 0, |o| number(&o["status"]["availableReplicas"])),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const REPLICA_SETS: &[Column] = &[
    NAME,
    ("Desired", 0, |o| number(&o["spec"]["replicas"])),
    ("Current", 0, |o| number(&o["status"]["replicas"])),
    ("Ready", 0, |o| number(&o["status"]["readyReplicas"])),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const STATEFUL_SETS: &[Column] = &[
    NAME,
    ("Ready", 0, |o| format!("{}/{}", number(&o["status"]["readyReplicas"]), number(&o["spec"]["replicas"]))),
    AGE,
    CONTAINERS,
    IMAGES,
];
const DAEMON_SETS: &[Column] = &[
    NAME,
    ("Desired", 0, |o| number(&o["status"]["desiredNumberScheduled"])),
    ("Current", 0, |o| number(&o["status"]["currentNumberScheduled"])),
    ("Ready", 0, |o| number(&o["status"]["numberReady"])),
    ("Up-to-date", 0, |o| number(&o["status"]["updatedNumberScheduled"])),
    ("Available", 0, |o| number(&o["status"]["numberAvailable"])),
    ("Node Selector", 0, |o| pairs(&o["spec"]["template"]["spec"]["nodeSelector"])),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const JOBS: &[Column] = &[
    NAME,
    ("Status", 0, job_status),
    ("Completions", 0, completions),
    ("Duration", 0, job_duration),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const CRON_JOBS: &[Column] = &[
    NAME,
    ("Schedule", 0, |o| text(&o["spec"]["schedule"])),
    ("Timezone", 0, |o| text(&o["spec"]["timeZone"])),
    ("Suspend", 0, |o| if o["spec"]["suspend"] == true { "True".to_owned() } else { "False".to_owned() }),
    ("Active", 0, |o| size(&o["status"]["active"]).to_string()),
    ("Last Schedule", 0, |o| ago(&o["status"]["lastScheduleTime"])),
    AGE,
];
const SERVICES: &[Column] = &[
    NAME,
    ("Type", 0, |o| text(&o["spec"]["type"])),
    ("Cluster-IP", 0, |o| text(&o["spec"]["clusterIP"])),
    ("External-IP", 0, |o| text(&o["spec"]["externalName"])),
    ("Port(s)", 0, service_ports),
    AGE,
    ("Selector", 1, |o| pairs(&o["spec"]["selector"])),
];
const ENDPOINTS: &[Column] = &[NAME, ("Endpoints", 0, endpoint_addresses), AGE];
const ENDPOINT_SLICES: &[Column] = &[
    NAME,
    ("AddressType", 0, |o| text(&o["addressType"])),
    ("Ports", 0, |o| join(items(&o["ports"]).map(|port| port["port"].to_string()))),
    ("Endpoints", 0, |o| join(items(&o["endpoints"]).flat_map(|end| items(&end["addresses"])).map(text))),
    AGE,
];
const SECRETS: &[Column] =
    &[NAME, ("Type", 0, |o| text(&o["type"])), ("Data", 0, |o| size(&o["data"]).to_string()), AGE];
const CONFIG_MAPS: &[Column] = &[NAME, ("Data", 0, |o| (size(&o["data"]) + size(&o["binaryData"])).to_string()), AGE];
const EVENTS: &[Column] = &[
    ("Last Seen", 0, |o| {
        ago(if o["lastTimestamp"].is_null() { &o["metadata"]["creationTimestamp"] } else { &o["lastTimestamp"] })
    }),
    ("Type", 0, |o| text(&o["type"])),
    ("Reason", 0, |o| text(&o["reason"])),
    ("Object", 0, event_object),
    ("Message", 0, |o| or_empty(&o["message"])),
    ("Source", 1, |o| or_empty(&o["source"]["component"])),
    ("Count", 1, |o| number(&o["count"])),
    ("Name", 1, name),
];
const CLAIMS: &[Column] = &[
    NAME,
    ("Status", 0, |o| text(&o["status"]["phase"])),
    ("Volume", 0, |o| or_empty(&o["spec"]["volumeName"])),
    ("Capacity", 0, |o| or_empty(&o["status"]["capacity"]["storage"])),
    ("Access Modes", 0, |o| join(items(&o["spec"]["accessModes"]).map(text))),
    ("StorageClass", 0, |o| or_empty(&o["spec"]["storageClassName"])),
    AGE,
];
const VOLUMES: &[Column] = &[
    NAME,
    ("Capacity", 0, |o| or_empty(&o["spec"]["capacity"]["storage"])),
    ("Access Modes", 0, |o| join(items(&o["spec"]["accessModes"]).map(text))),
    ("Reclaim Policy", 0, |o| text(&o["spec"]["persistentVolumeReclaimPolicy"])),
    ("Status", 0, |o| text(&o["status"]["phase"])),
    ("Claim", 0, |o| match o["spec"]["claimRef"]["name"].as_str() {
        Some(claim) => format!("{}/{claim}", or_empty(&o["spec"]["claimRef"]["namespace"])),
        None => String::new(),
    }),
    ("StorageClass", 0, |o| or_empty(&o["spec"]["storageClassName"])),
    AGE,
];
const NAMESPACES: &[Column] = &[NAME, ("Status", 0, |o| text(&o["status"]["phase"])), AGE];
const BINDINGS: &[Column] = &[
    NAME,
    ("Role", 0, role_ref),
    AGE,
    ("Users", 1, |o| subjects(o, "User")),
    ("Groups", 1, |o| subjects(o, "Group")),
    ("ServiceAccounts", 1, |o| subjects(o, "ServiceAccount")),
];
const ROLES: &[Column] = &[NAME, ("Created At", 0, |o| text(&o["metadata"]["creationTimestamp"]))];
const BUDGETS: &[Column] = &[
    NAME,
    ("Min Available", 0, |o| scalar(&o["spec"]["minAvailable"])),
    ("Max Unavailable", 0, |o| scalar(&o["spec"]["maxUnavailable"])),
    ("Allowed Disruptions", 0, |o| number(&o["status"]["disruptionsAllowed"])),
    AGE,
];
const REVISIONS: &[Column] = &[
    NAME,
    ("Controller", 0, |o| {
        let owner = &o["metadata"]["ownerReferences"][0];
        format!("{}.apps/{}", text(&owner["kind"]).to_lowercase(), text(&owner["name"]))
    }),
    ("Revision", 0, |o| number(&o["revision"])),
    AGE,
];
const PRIORITY_CLASSES: &[Column] = &[
    NAME,
    ("Value", 0, |o| number(&o["value"])),
    ("Global-Default", 0, |o| (o["globalDefault"] == true).to_string()),
    AGE,
];
const STORAGE_CLASSES: &[Column] = &[
    NAME,
    ("Provisioner", 0, |o| text(&o["provisioner"])),
    ("ReclaimPolicy", 0, |o| text(&o["reclaimPolicy"])),
    ("VolumeBindingMode", 0, |o| text(&o["volumeBindingMode"])),
    AGE,
];
const LEASES: &[Column] = &[NAME, ("Holder", 0, |o| or_empty(&o["spec"]["holderIdentity"])), AGE];
const QUOTAS: &[Column] = &[
    NAME,
    ("Request", 0, |o| {
        let used = &o["status"]["used"];
        join(
            o["spec"]["hard"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(name, hard)| format!("{name}: {}/{}", scalar(&used[name]), scalar(hard))),
        )
    }),
    AGE,
];
const OTHERS: &[Column] = &[NAME, AGE];

fn scalar(value: &Value) -> String {
    match value {
        Value::Null => "N/A".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The columns of a kind.
pub(super) fn of(kind: &str) -> &'static [Column] {
    match kind {
        "Pod" => PODS,
        "Node" => NODES,
        "Deployment" => DEPLOYMENTS,
        "ReplicaSet" => REPLICA_SETS,
        "StatefulSet" => STATEFUL_SETS,
        "DaemonSet" => DAEMON_SETS,
        "Job" => JOBS,
        "CronJob" => CRON_JOBS,
        "Service" => SERVICES,
        "Endpoints" => ENDPOINTS,
        "EndpointSlice" => ENDPOINT_SLICES,
        "Secret" => SECRETS,
        "ConfigMap" => CONFIG_MAPS,
        "Event" => EVENTS,
        "PersistentVolumeClaim" => CLAIMS,
        "PersistentVolume" => VOLUMES,
        "Namespace" => NAMESPACES,
        "RoleBinding" | "ClusterRoleBinding" => BINDINGS,
        "Role" | "ClusterRole" => ROLES,
        "PodDisruptionBudget" => BUDGETS,
        "ControllerRevision" => REVISIONS,
        "PriorityClass" => PRIORITY_CLASSES,
        "StorageClass" => STORAGE_CLASSES,
        "Lease" => LEASES,
        "ResourceQuota" => QUOTAS,
        _ => OTHERS,
    }
}
