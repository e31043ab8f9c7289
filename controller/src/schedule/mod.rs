//! Which node a pod goes to. A pure function of the objects: it reads no clock and writes nothing.

mod affinity;
mod fit;

use std::collections::BTreeMap;

use serde_json::Value;

use affinity::Crowd;
use fit::Resources;

pub(crate) use fit::{belongs, tolerates};

/// Nodes that are weighed for one pod; of a large fleet not all are looked at.
const WEIGHED: usize = 100;

/// What is known of a node while pods are placed.
#[derive(Debug)]
struct Site<'a> {
    name: &'a str,
    node: &'a Value,
    open: bool,
    total: Resources,
    used: Resources,
    pods: usize,
    ports: Vec<(u64, String)>,
}

/// All nodes with what their pods take, while pods are placed one after the other.
#[derive(Debug)]
pub(crate) struct Scheduler<'a> {
    sites: Vec<Site<'a>>,
    places: BTreeMap<&'a str, usize>,
    crowd: Crowd<'a>,
    /// Where the next search begins, so that all nodes get their turn.
    next: usize,
}

/// Why nodes do not take a pod, counted.
#[derive(Debug, Default)]
struct Refusals(BTreeMap<String, usize>);

impl Refusals {
    fn add(&mut self, why: String) {
        *self.0.entry(why).or_default() += 1;
    }

    fn words(&self, total: usize) -> String {
        let parts: Vec<String> = self.0.iter().map(|(why, count)| format!("{count} {why}")).collect();
        format!("0/{total} nodes are available: {}.", parts.join(", "))
    }
}

impl<'a> Scheduler<'a> {
    /// Looks at the nodes and at the pods that are on them.
    pub(crate) fn new(nodes: impl Iterator<Item = &'a Value>, pods: impl Iterator<Item = &'a Value>) -> Scheduler<'a> {
        let name = |node: &'a Value| node["metadata"]["name"].as_str().unwrap_or_default();
        let sites: Vec<Site<'a>> = nodes
            .map(|node| Site {
                name: name(node),
                node,
                open: is_ready(node) && node["spec"]["unschedulable"] != true,
                total: Resources::of_node(node),
                used: Resources::default(),
                pods: 0,
                ports: Vec::new(),
            })
            .collect();
        let places = sites.iter().enumerate().map(|(place, site)| (site.name, place)).collect();
        let mut scheduler = Scheduler { sites, places, crowd: Crowd::default(), next: 0 };
        for pod in pods {
            if let Some(place) = pod["spec"]["nodeName"].as_str().and_then(|node| scheduler.places.get(node).copied()) {
                scheduler.take(place, pod);
            }
        }
        scheduler
    }

    /// Counts a pod in.
    fn take(&mut self, place: usize, pod: &'a Value) {
        let site = &mut self.sites[place];
        site.used.add(&Resources::of_pod(pod));
        site.pods += 1;
        site.ports.extend(fit::host_ports(pod));
        self.crowd.add(pod, site.node);
    }

    /// Chooses a node for a pod and counts it in: one that is ready, that the pod may and can be on, and of those the
    /// one that suits it best.
    ///
    /// # Errors
    /// Why none can take it, for people.
    pub(crate) fn place(&mut self, pod: &'a Value) -> Result<&'a str, String> {
        let total = self.sites.len();
        if total == 0 {
            return Err("0/0 nodes are available: no node is enrolled, see `skeg token create`".to_owned());
        }
        let (wanted, ports) = (Resources::of_pod(pod), fit::host_ports(pod).collect::<Vec<_>>());
        let crowd = self.crowd.for_pod(pod, self.sites.iter().map(|site| site.node));
        let (mut refusals, mut best, mut weighed) = (Refusals::default(), None, 0);
        for step in 0..total {
            let place = (self.next + step) % total;
            let site = &self.sites[place];
            if let Err(why) = site.fits(pod, &wanted, &ports).and_then(|()| crowd.fits(site.node)) {
                refusals.add(why);
                continue;
            }
            let score = site.score(pod, &wanted) + crowd.score(site.node);
            // Of equals the first by name: `sites` is in that order, but the search may begin anywhere.
            let candidate = (score, std::cmp::Reverse(place));
            best = best.max(Some(candidate));
            weighed += 1;
            if weighed == WEIGHED && total > WEIGHED {
                self.next = (place + 1) % total;
                break;
            }
        }
        drop(crowd);
        let Some((_, std::cmp::Reverse(place))) = best else { return Err(refusals.words(total)) };
        self.take(place, pod);
        Ok(self.sites[place].name)
    }
}

impl Site<'_> {
    fn fits(&self, pod: &Value, wanted: &Resources, ports: &[(u64, String)]) -> Result<(), String> {
        let refuse = |why: &str| Err(why.to_owned());
        if !fit::selected(pod, self.node) {
            return refuse("node(s) didn't match Pod's node affinity/selector");
        }
        if !self.open {
            return refuse(if is_ready(self.node) { "node(s) were unschedulable" } else { "node(s) were not ready" });
        }
        if let Some(taint) = fit::untolerated(pod, self.node) {
            let text = |field: &str| taint[field].as_str().unwrap_or_default();
            return Err(format!("node(s) had untolerated taint {{{}: {}}}", text("key"), text("value")));
        }
        if ports.iter().any(|port| self.ports.contains(port)) {
            return refuse("node(s) didn't have free ports for the requested pod ports");
        }
        if let Some(short) = self.total.lacks(&self.used, wanted) {
            return Err(format!("Insufficient {short}"));
        }
        Ok(())
    }

    /// Higher is better: what the pod prefers first, then few pods and much room.
    fn score(&self, pod: &Value, wanted: &Resources) -> i64 {
        let pods = i64::try_from(self.pods).unwrap_or(i64::MAX / 1000);
        fit::preferred(pod, self.node) * 10_000 + self.total.free_share(&self.used, wanted) - pods * 100
    }
}

/// Whether a node's Ready condition is True.
pub(crate) fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, ready: bool) -> Value {
        json!({
            "metadata": {"name": name, "labels": {
                "kubernetes.io/arch": if name == "a" { "arm64" } else { "amd64" }, "kubernetes.io/hostname": name,
            }},
            "status": {
                "allocatable": {"cpu": "4", "memory": "1Gi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "Unknown" }}],
            },
        })
    }

    fn on(mut pod: Value, node: &str) -> Value {
        pod["spec"]["nodeName"] = json!(node);
        pod
    }

    fn placed(pod: &Value, nodes: &[Value], pods: &[Value]) -> Result<String, String> {
        Scheduler::new(nodes.iter(), pods.iter()).place(pod).map(str::to_owned)
    }

    #[test]
    fn a_host_port_is_given_out_once_a_node() {
        let nodes = [node("a", true), node("b", true)];
        let pod = json!({"spec": {"containers": [{"ports": [{"containerPort": 80, "hostPort": 80}]}]}});
        assert_eq!(placed(&pod, &nodes, &[on(pod.clone(), "a")]).unwrap(), "b");
        let both = [on(pod.clone(), "a"), on(pod.clone(), "b")];
        assert!(placed(&pod, &nodes, &both).unwrap_err().contains("2 node(s) didn't have free ports"));
    }

    #[test]
    fn the_ready_node_with_the_fewest_pods_is_chosen_and_a_selector_is_obeyed_before() {
        let nodes = [node("a", true), node("b", true), node("c", false)];
        let plain = json!({"spec": {}});
        assert_eq!(placed(&plain, &nodes, &[on(plain.clone(), "a")]).unwrap(), "b");
        assert_eq!(placed(&plain, &nodes, &[]).unwrap(), "a");
        let arm = json!({"spec": {"nodeSelector": {"kubernetes.io/arch": "arm64"}}});
        assert_eq!(placed(&arm, &nodes, &[on(plain.clone(), "a")]).unwrap(), "a");
        let why = placed(&arm, &[node("a", false), node("b", true)], &[]).unwrap_err();
        let wanted =
            "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were not ready.";
        assert_eq!(why, wanted);
        assert!(placed(&arm, &[], &[]).unwrap_err().contains("skeg token create"));
    }

    #[test]
    fn requests_fit_into_what_is_left() {
        let nodes = [node("a", true), node("b", true)];
        let pod =
            |cpu: &str| json!({"spec": {"containers": [{"resources": {"requests": {"cpu": cpu, "memory": "100Mi"}}}]}});
        assert_eq!(placed(&pod("2"), &nodes, &[on(pod("3"), "a")]).unwrap(), "b");
        let why = placed(&pod("2"), &nodes, &[on(pod("3"), "a"), on(pod("2500m"), "b")]).unwrap_err();
        assert_eq!(why, "0/2 nodes are available: 2 Insufficient cpu.");
    }

    #[test]
    fn taints_keep_away_those_who_do_not_stand_them() {
        let mut tainted = node("a", true);
        tainted["spec"]["taints"] = json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]);
        let nodes = [tainted];
        let plain = json!({"spec": {}});
        assert!(placed(&plain, &nodes, &[]).unwrap_err().contains("untolerated taint {gpu: yes}"));
        let stands = json!({"spec": {"tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes"}]}});
        assert_eq!(placed(&stands, &nodes, &[]).unwrap(), "a");
    }

    #[test]
    fn copies_keep_apart_or_together_as_they_ask() {
        let nodes = [node("a", true), node("b", true)];
        let term = json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}});
        let pod = |affinity: Value| json!({"metadata": {"namespace": "d", "labels": {"app": "web"}}, "spec": {"affinity": affinity}});
        let apart = pod(json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}));
        assert_eq!(placed(&apart, &nodes, &[on(apart.clone(), "a")]).unwrap(), "b");
        assert!(
            placed(&apart, &nodes, &[on(apart.clone(), "a"), on(apart.clone(), "b")])
                .unwrap_err()
                .contains("anti-affinity")
        );
        // Those that are there already keep others away, too.
        let plain = pod(json!({}));
        assert_eq!(placed(&plain, &nodes, &[on(apart.clone(), "a")]).unwrap(), "b");
        let together = pod(json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}));
        assert_eq!(placed(&together, &nodes, &[on(plain.clone(), "b")]).unwrap(), "b");
        // The first of a group has nobody to be with.
        assert_eq!(placed(&together, &nodes, &[]).unwrap(), "a");
        let soft = pod(
            json!({"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}}),
        );
        let other = json!({"metadata": {"namespace": "d"}, "spec": {}});
        let crowd = [on(plain.clone(), "a"), on(other.clone(), "b"), on(other, "b")];
        assert_eq!(placed(&soft, &nodes, &crowd).unwrap(), "b");
    }

    #[test]
    fn spread_bounds_the_difference_between_places() {
        let nodes = [node("a", true), node("b", true), node("c", false)];
        let mut pod = json!({"metadata": {"namespace": "d", "labels": {"app": "web"}}, "spec": {}});
        pod["spec"]["topologySpreadConstraints"] = json!([{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}},
        }]);
        let here = [on(pod.clone(), "a"), on(pod.clone(), "c")];
        assert_eq!(placed(&pod, &nodes, &here).unwrap(), "b");
        let full = [node("a", true), node("c", false)];
        let why = placed(&pod, &full, &[on(pod.clone(), "a")]).unwrap_err();
        assert!(why.contains("topology spread"), "{why}");
    }
}
