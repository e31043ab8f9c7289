//! Whether a pod may be on a node by what the two say of themselves: selectors, taints, ports and room.

use serde_json::Value;
use skeg_kube::quantity;

use crate::selector;

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// What pods ask for and nodes have. Nothing is no bound: a node that does not say what it has takes everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Resources {
    cpu_millis: i128,
    memory_millis: i128,
    pods: i128,
}

fn millis(value: &Value) -> i128 {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Null => return 0,
        other => other.to_string(),
    };
    quantity::millis(&text).and_then(|number| i128::try_from(number).ok()).unwrap_or(0)
}

impl Resources {
    pub(super) fn of_node(node: &Value) -> Resources {
        let has = &node["status"]["allocatable"];
        Resources {
            cpu_millis: millis(&has["cpu"]),
            memory_millis: millis(&has["memory"]),
            pods: millis(&has["pods"]) / 1000,
        }
    }

    /// What a pod asks for: its containers together, or its largest init container.
    pub(super) fn of_pod(pod: &Value) -> Resources {
        let ask = |name: &str| {
            let of = |container: &Value| {
                let resources = &container["resources"];
                let asked = &resources["requests"][name];
                millis(if asked.is_null() { &resources["limits"][name] } else { asked })
            };
            let together: i128 = items(&pod["spec"]["containers"]).map(of).sum();
            items(&pod["spec"]["initContainers"]).map(of).fold(together, i128::max)
        };
        Resources { cpu_millis: ask("cpu"), memory_millis: ask("memory"), pods: 1 }
    }

    pub(super) fn add(&mut self, other: &Resources) {
        self.cpu_millis += other.cpu_millis;
        self.memory_millis += other.memory_millis;
        self.pods += other.pods;
    }

    /// What is not enough for more, if anything.
    pub(super) fn lacks(&self, used: &Resources, more: &Resources) -> Option<&'static str> {
        let short = |total: i128, used: i128, more: i128| total > 0 && more > 0 && used + more > total;
        match () {
            () if short(self.pods, used.pods, more.pods) => Some("pods"),
            () if short(self.cpu_millis, used.cpu_millis, more.cpu_millis) => Some("cpu"),
            () if short(self.memory_millis, used.memory_millis, more.memory_millis) => Some("memory"),
            () => None,
        }
    }

    /// The free share after taking more, 0 to 100.
    pub(super) fn free_share(&self, used: &Resources, more: &Resources) -> i64 {
        let share = |total: i128, used: i128| if total > 0 { (total - used).max(0) * 50 / total } else { 0 };
        let cpu = share(self.cpu_millis, used.cpu_millis + more.cpu_millis);
        i64::try_from(cpu + share(self.memory_millis, used.memory_millis + more.memory_millis)).unwrap_or(0)
    }
}

/// The ports that a pod publishes, with their protocol. The address does not count: a port is given out once a node.
pub(super) fn host_ports(pod: &Value) -> impl Iterator<Item = (u64, String)> {
    let ports = items(&pod["spec"]["containers"]).flat_map(|container| items(&container["ports"]));
    ports.filter_map(|port| Some((port["hostPort"].as_u64()?, port["protocol"].as_str().unwrap_or("TCP").to_owned())))
}

/// Whether a term of node affinity holds for a node.
fn term_holds(term: &Value, node: &Value) -> bool {
    let labels = &node["metadata"]["labels"];
    let name = serde_json::json!({"metadata.name": node["metadata"]["name"]});
    let some = items(&term["matchExpressions"]).next().is_some() || items(&term["matchFields"]).next().is_some();
    some && items(&term["matchExpressions"]).all(|rule| selector::holds(rule, labels))
        && items(&term["matchFields"]).all(|rule| selector::holds(rule, &name))
}

/// Whether a node is one that a pod asks for: by nodeSelector and required node affinity.
pub(super) fn selected(pod: &Value, node: &Value) -> bool {
    let mut plain = pod["spec"]["nodeSelector"].as_object().into_iter().flatten();
    let required = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let mut terms = items(&required["nodeSelectorTerms"]);
    plain.all(|(label, value)| node["metadata"]["labels"][label] == *value)
        && (required.is_null() || terms.any(|term| term_holds(term, node)))
}

/// How much a pod would like a node: the weights of the preferences that it meets.
pub(super) fn preferred(pod: &Value, node: &Value) -> i64 {
    let wishes = &pod["spec"]["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"];
    let met = items(wishes).filter(|wish| term_holds(&wish["preference"], node));
    let wish: i64 = met.filter_map(|wish| wish["weight"].as_i64()).sum();
    let soft =
        items(&node["spec"]["taints"]).filter(|taint| taint["effect"] == "PreferNoSchedule" && !stands(pod, taint));
    wish - i64::try_from(soft.count()).unwrap_or(0)
}

/// Whether a toleration is for a taint.
pub(crate) fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (key, effect) = (text(&toleration["key"]), text(&toleration["effect"]));
    let exists = toleration["operator"] == "Exists";
    (effect.is_empty() || taint["effect"] == *effect)
        && ((key.is_empty() && exists) || taint["key"] == *key)
        && (exists || text(&toleration["value"]) == text(&taint["value"]))
}

fn stands(pod: &Value, taint: &Value) -> bool {
    items(&pod["spec"]["tolerations"]).any(|toleration| tolerates(toleration, taint))
}

/// A taint that keeps a pod off a node.
pub(super) fn untolerated<'a>(pod: &Value, node: &'a Value) -> Option<&'a Value> {
    let hard = |taint: &&Value| matches!(taint["effect"].as_str(), Some("NoSchedule" | "NoExecute"));
    items(&node["spec"]["taints"]).filter(hard).find(|taint| !stands(pod, taint))
}

/// Whether a pod that follows its nodes (a DaemonSet's) belongs on this one, ready or not.
pub(crate) fn belongs(pod: &Value, node: &Value) -> bool {
    selected(pod, node) && untolerated(pod, node).is_none()
}
