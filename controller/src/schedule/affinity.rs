//! Whether a pod may be on a node by who else is there: affinity and anti-affinity to pods, and spread over topologies.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::selector;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn label<'a>(node: &'a Value, key: &str) -> Option<&'a str> {
    node["metadata"]["labels"][key].as_str()
}

/// Whether a term of `of` speaks of `pod`.
fn speaks_of(term: &Value, of: &Value, pod: &Value) -> bool {
    let own = &of["metadata"]["namespace"];
    let home = &pod["metadata"]["namespace"];
    let mut named = items(&term["namespaces"]).peekable();
    let near = match named.peek() {
        Some(_) => named.any(|namespace| namespace == home),
        None => own == home || term["namespaceSelector"].is_object(),
    };
    near && selector::matches(&term["labelSelector"], &pod["metadata"]["labels"])
}

/// The pods that are on nodes.
#[derive(Debug, Default)]
pub(super) struct Crowd<'a> {
    pods: Vec<(&'a Value, &'a Value)>,
    /// Those that keep others away.
    shy: Vec<(&'a Value, &'a Value)>,
}

/// How one pod sees the crowd.
#[derive(Debug)]
pub(super) struct ForPod {
    /// Places (topology key and value) where the pod may not be.
    closed: Vec<(String, String)>,
    /// Of each term of required affinity: its key, and the places where it is met; none where nobody is needed.
    needed: Vec<(String, Option<Vec<String>>)>,
    /// Places that count for or against.
    liked: Vec<(String, String, i64)>,
    /// Of each spread: its key, the most that a place may have already, and how many each has.
    spread: Vec<(String, Option<i64>, BTreeMap<String, i64>)>,
}

impl<'a> Crowd<'a> {
    pub(super) fn add(&mut self, pod: &'a Value, node: &'a Value) {
        self.pods.push((pod, node));
        if items(&pod["spec"]["affinity"]["podAntiAffinity"][REQUIRED]).next().is_some() {
            self.shy.push((pod, node));
        }
    }

    /// The values of a topology key on the nodes of the pods that a term of `of` speaks of.
    fn where_met(&self, term: &Value, of: &Value) -> Vec<String> {
        let key = term["topologyKey"].as_str().unwrap_or_default();
        let met = self.pods.iter().filter(|(pod, _)| speaks_of(term, of, pod));
        met.filter_map(|(_, node)| label(node, key)).map(str::to_owned).collect()
    }

    /// Looks at the crowd as a pod does; what the pod does not ask for costs nothing.
    pub(super) fn for_pod(&self, pod: &Value, nodes: impl Iterator<Item = &'a Value> + Clone) -> ForPod {
        let affinity = &pod["spec"]["affinity"];
        let key = |term: &Value| term["topologyKey"].as_str().unwrap_or_default().to_owned();
        let mut closed = Vec::new();
        for term in items(&affinity["podAntiAffinity"][REQUIRED]) {
            closed.extend(self.where_met(term, pod).into_iter().map(|place| (key(term), place)));
        }
        for (other, node) in &self.shy {
            for term in items(&other["spec"]["affinity"]["podAntiAffinity"][REQUIRED]) {
                if speaks_of(term, other, pod)
                    && let Some(place) = label(node, &key(term))
                {
                    closed.push((key(term), place.to_owned()));
                }
            }
        }
        let needed = items(&affinity["podAffinity"][REQUIRED]).map(|term| {
            let met = self.where_met(term, pod);
            // The first of a group that wants to be together has nobody to be with.
            let alone = met.is_empty() && speaks_of(term, pod, pod);
            (key(term), (!alone).then_some(met))
        });
        let needed = needed.collect();
        let mut liked = Vec::new();
        for (kind, sign) in [("podAffinity", 1), ("podAntiAffinity", -1)] {
            for wish in items(&affinity[kind][PREFERRED]) {
                let weight = wish["weight"].as_i64().unwrap_or(0) * sign;
                let term = &wish["podAffinityTerm"];
                liked.extend(self.where_met(term, pod).into_iter().map(|place| (key(term), place, weight)));
            }
        }
        let spread = items(&pod["spec"]["topologySpreadConstraints"]).map(|rule| self.spread(rule, pod, nodes.clone()));
        let spread = spread.collect();
        ForPod { closed, needed, liked, spread }
    }

    fn spread(
        &self,
        rule: &Value,
        pod: &Value,
        nodes: impl Iterator<Item = &'a Value>,
    ) -> (String, Option<i64>, BTreeMap<String, i64>) {
        let key = rule["topologyKey"].as_str().unwrap_or_default();
        let fitting = nodes.filter(|node| super::fit::selected(pod, node));
        let mut counts: BTreeMap<String, i64> =
            fitting.filter_map(|node| label(node, key)).map(|place| (place.to_owned(), 0)).collect();
        let alike = self.pods.iter().filter(|(other, _)| {
            other["metadata"]["namespace"] == pod["metadata"]["namespace"]
                && other["metadata"]["deletionTimestamp"].is_null()
                && selector::matches(&rule["labelSelector"], &other["metadata"]["labels"])
        });
        for (_, node) in alike {
            if let Some(count) = label(node, key).and_then(|place| counts.get_mut(place)) {
                *count += 1;
            }
        }
        let fewest = counts.values().min().copied().unwrap_or(0);
        let hard = rule["whenUnsatisfiable"] != "ScheduleAnyway";
        let own = i64::from(selector::matches(&rule["labelSelector"], &pod["metadata"]["labels"]));
        let most = hard.then(|| fewest + rule["maxSkew"].as_i64().unwrap_or(1) - own);
        (key.to_owned(), most, counts)
    }
}

impl ForPod {
    /// Whether the pod may be on a node.
    pub(super) fn fits(&self, node: &Value) -> Result<(), String> {
        let refuse = |why: &str| Err(why.to_owned());
        if self.closed.iter().any(|(key, place)| label(node, key) == Some(place)) {
            return refuse("node(s) didn't match pod anti-affinity rules");
        }
        let met = |(key, places): &(String, Option<Vec<String>>)| match places {
            None => true,
            Some(places) => label(node, key).is_some_and(|here| places.iter().any(|place| place == here)),
        };
        if !self.needed.iter().all(met) {
            return refuse("node(s) didn't match pod affinity rules");
        }
        for (key, most, counts) in &self.spread {
            let Some(most) = most else { continue };
            match label(node, key) {
                None => return refuse("node(s) didn't match pod topology spread constraints (missing required label)"),
                Some(place) if counts.get(place).copied().unwrap_or(0) > *most => {
                    return refuse("node(s) didn't match pod topology spread constraints");
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// How well the pod would be on a node.
    pub(super) fn score(&self, node: &Value) -> i64 {
        let liked = self.liked.iter().filter(|(key, place, _)| label(node, key) == Some(place));
        let liking: i64 = liked.map(|(_, _, weight)| weight * 100).sum();
        let crowding = self.spread.iter().filter(|(_, most, _)| most.is_none());
        let crowding = crowding.filter_map(|(key, _, counts)| counts.get(label(node, key)?));
        liking - crowding.map(|count| count * 1000).sum::<i64>()
    }
}
