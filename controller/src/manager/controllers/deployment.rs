//! Deployments: one ReplicaSet a template, and the way from one template to the next.

use std::cmp::Reverse;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::world::World;
use super::common::{condition, hash, is_active, later, name, number, reference, share, time_of, with_condition};
use super::{Deed, Plan};
use crate::time;

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
/// What of a Deployment's annotations is not its ReplicaSets'.
const OWN: [&str; 5] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    "deployment.kubernetes.io/revision-history",
    DESIRED,
    MAXIMUM,
];

/// A Deployment and its sets, the new one apart.
struct Rollout<'a> {
    deployment: &'a Value,
    new: Option<&'a Value>,
    /// The oldest first.
    old: Vec<&'a Value>,
    wanted: i64,
    surge: i64,
    unavailable: i64,
}

/// The template without what the Deployment adds to it.
fn plain(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH);
    }
    template
}

fn revision(object: &Value) -> i64 {
    object["metadata"]["annotations"][REVISION].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn replicas(set: &Value) -> i64 {
    number(&set["spec"]["replicas"])
}

fn sum(sets: &[&Value], field: &str) -> i64 {
    sets.iter().map(|set| number(&set["status"][field])).sum()
}

impl<'a> Rollout<'a> {
    fn of(world: &'a World, deployment: &'a Value) -> Rollout<'a> {
        let mut sets: Vec<&Value> = world.controlled(deployment, "ReplicaSet").collect();
        sets.sort_by_key(|set| (time_of(&set["metadata"]["creationTimestamp"]), revision(set)));
        let template = plain(&deployment["spec"]["template"]);
        // By its name or by its content: what a default of a newer version adds to it must not make it another one.
        let word = hash(&template);
        let named = |set: &&Value| set["metadata"]["labels"][HASH] == word;
        let same = |set: &&Value| plain(&set["spec"]["template"]) == template;
        let new = sets.iter().copied().find(same).or_else(|| sets.iter().copied().find(named));
        let old = sets.into_iter().filter(|set| new.is_none_or(|new| !std::ptr::eq(*set, new))).collect();
        let (spec, wanted) = (&deployment["spec"], replicas(deployment));
        let rolling = &spec["strategy"]["rollingUpdate"];
        let (mut surge, mut unavailable) =
            (share(&rolling["maxSurge"], wanted, true), share(&rolling["maxUnavailable"], wanted, false));
        if spec["strategy"]["type"] == "Recreate" {
            (surge, unavailable) = (0, wanted);
        } else if surge == 0 && unavailable == 0 {
            // With both at nothing it would never move.
            unavailable = 1;
        }
        unavailable = unavailable.min(wanted);
        Rollout { deployment, new, old, wanted, surge, unavailable }
    }

    fn all(&self) -> Vec<&'a Value> {
        self.old.iter().copied().chain(self.new).collect()
    }

    fn is_complete(&self) -> bool {
        let all = self.all();
        self.new.is_some_and(|new| number(&new["status"]["replicas"]) == self.wanted)
            && sum(&all, "replicas") == self.wanted
            && sum(&all, "availableReplicas") == self.wanted
            && self.new.is_some_and(|new| number(&new["status"]["availableReplicas"]) == self.wanted)
            && self.all().iter().all(|set| set["status"]["observedGeneration"] == set["metadata"]["generation"])
    }
}

/// What is to be done about a Deployment.
pub(super) fn plan(world: &World, deployment: &Value, now: Timestamp) -> Plan {
    let (mut plan, rollout) = (Plan::default(), Rollout::of(world, deployment));
    let mut now_wanted: Vec<(&Value, i64)> = rollout.all().iter().map(|set| (*set, replicas(set))).collect();
    let paused = deployment["spec"]["paused"] == true;
    match rollout.new {
        _ if rollout.was_rescaled()
            && !deployment["metadata"]["deletionTimestamp"].is_string()
            && rollout.new.is_some() =>
        {
            rollout.rescale(&mut now_wanted);
        }
        _ if paused => {}
        None => rollout.make_new(world, &mut plan),
        Some(_) if deployment["spec"]["strategy"]["type"] == "Recreate" => rollout.recreate(world, &mut now_wanted),
        Some(_) => rollout.roll(&mut now_wanted),
    }
    for (set, wanted) in now_wanted {
        rollout.write(set, wanted, &mut plan);
    }
    if !paused && rollout.is_complete() {
        rollout.clean_up(&mut plan);
    }
    rollout.note_revision(&mut plan);
    rollout.status(&mut plan, now);
    plan
}

impl Rollout<'_> {
    /// Whether the number of replicas was changed since the sets were sized.
    fn was_rescaled(&self) -> bool {
        self.all().iter().filter(|set| replicas(set) > 0).any(|set| {
            let desired = set["metadata"]["annotations"][DESIRED].as_str().and_then(|text| text.parse::<i64>().ok());
            desired.is_some_and(|desired| desired != self.wanted)
        })
    }

    /// Sizes all sets anew: one alone gets everything; several, in the middle of a rollout, keep their proportions.
    fn rescale(&self, sets: &mut [(&Value, i64)]) {
        let mut active: Vec<usize> = (0..sets.len()).filter(|place| sets[*place].1 > 0).collect();
        if active.len() <= 1 || self.is_complete() {
            let place = active.first().copied().unwrap_or(sets.len().saturating_sub(1));
            if let Some(set) = sets.get_mut(place) {
                set.1 = self.wanted;
            }
            return;
        }
        let total: i64 = sets.iter().map(|set| set.1).sum();
        let allowed = if self.wanted > 0 { self.wanted + self.surge } else { 0 };
        let mut rest = allowed - total;
        // The largest takes its part first, so that what rounding leaves over matters least.
        active.sort_by_key(|place| Reverse(sets[*place].1));
        for (turn, place) in active.iter().enumerate() {
            let part = if turn + 1 == active.len() { rest } else { sets[*place].1 * (allowed - total) / total.max(1) };
            let part = part.clamp(rest.min(0), rest.max(0)).max(-sets[*place].1);
            sets[*place].1 += part;
            rest -= part;
        }
    }

    fn roll(&self, sets: &mut [(&Value, i64)]) {
        let total: i64 = sets.iter().map(|set| set.1).sum();
        let Some((new, others)) = sets.split_last_mut() else { return };
        if new.1 > self.wanted {
            new.1 = self.wanted;
            return;
        }
        let room = (self.wanted + self.surge - total).min(self.wanted - new.1);
        if room > 0 {
            new.1 += room;
            return;
        }
        let minimum = self.wanted - self.unavailable;
        let unready = new.1 - number(&new.0["status"]["availableReplicas"]);
        let mut may_go = total - minimum - unready;
        // What does not work goes first, and costs no availability.
        for (set, wanted) in others.iter_mut() {
            let broken = (*wanted - number(&set["status"]["availableReplicas"])).clamp(0, may_go.max(0));
            *wanted -= broken;
            may_go -= broken;
        }
        let available = sum(&self.all(), "availableReplicas");
        let mut spare = available - minimum;
        for (_, wanted) in others.iter_mut() {
            let less = spare.clamp(0, may_go.max(0)).min(*wanted);
            *wanted -= less;
            spare -= less;
            may_go -= less;
        }
    }

    fn recreate(&self, world: &World, sets: &mut [(&Value, i64)]) {
        let Some((new, others)) = sets.split_last_mut() else { return };
        others.iter_mut().for_each(|(_, wanted)| *wanted = 0);
        let runs = |set: &&Value| world.controlled(set, "Pod").any(|pod| is_active(pod) || !super::is_over(pod));
        if !self.old.iter().any(runs) {
            new.1 = self.wanted;
        }
    }

    fn make_new(&self, world: &World, plan: &mut Plan) {
        let template = plain(&self.deployment["spec"]["template"]);
        let mut word = hash(&template);
        let (namespace, base) =
            (self.deployment["metadata"]["namespace"].as_str().unwrap_or_default(), name(self.deployment));
        // A stranger may have the name.
        while world.get(&crate::store::Key::new("ReplicaSet", namespace, &format!("{base}-{word}"))).is_some() {
            word = hash(&json!(word));
        }
        let mut template = template;
        template["metadata"]["labels"][HASH] = json!(word);
        let mut selector = self.deployment["spec"]["selector"].clone();
        selector["matchLabels"][HASH] = json!(word);
        let total: i64 = self.old.iter().map(|set| replicas(set)).sum();
        let first = match self.deployment["spec"]["strategy"]["type"] == "Recreate" && total > 0 {
            true => 0,
            false => (self.wanted + self.surge - total).clamp(0, self.wanted),
        };
        let mut set = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": format!("{base}-{word}"), "namespace": namespace, "labels": template["metadata"]["labels"],
                "ownerReferences": [reference(self.deployment)], "annotations": self.annotations(self.highest() + 1),
            },
            "spec": {"replicas": first, "selector": selector, "template": template},
        });
        if !self.deployment["spec"]["minReadySeconds"].is_null() {
            set["spec"]["minReadySeconds"] = self.deployment["spec"]["minReadySeconds"].clone();
        }
        let message = format!("Scaled up replica set {base}-{word} from 0 to {first}");
        plan.event(self.deployment, false, "ScalingReplicaSet", message);
        plan.add(Deed::Create(set));
    }

    fn highest(&self) -> i64 {
        self.old.iter().map(|set| revision(set)).max().unwrap_or(0)
    }

    fn annotations(&self, revision: i64) -> Value {
        let mut annotations = self.deployment["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
        annotations.retain(|name, _| !OWN.contains(&name.as_str()));
        annotations.insert(REVISION.to_owned(), json!(revision.to_string()));
        annotations.insert(DESIRED.to_owned(), json!(self.wanted.to_string()));
        annotations.insert(MAXIMUM.to_owned(), json!((self.wanted + self.surge).to_string()));
        Value::Object(annotations)
    }

    /// Writes a set's size and what it should say of its Deployment, where that changed.
    fn write(&self, set: &Value, wanted: i64, plan: &mut Plan) {
        let mut changed = set.clone();
        let is_new = self.new.is_some_and(|new| std::ptr::eq(new, set));
        if is_new {
            let own = revision(set);
            let highest = self.highest();
            changed["metadata"]["annotations"] = self.annotations(if own <= highest { highest + 1 } else { own });
            changed["spec"]["minReadySeconds"] = self.deployment["spec"]["minReadySeconds"].clone();
            if changed["spec"]["minReadySeconds"].is_null() {
                changed.get_mut("spec").and_then(Value::as_object_mut).map(|spec| spec.remove("minReadySeconds"));
            }
        } else if wanted > 0 || replicas(set) > 0 {
            changed["metadata"]["annotations"][DESIRED] = json!(self.wanted.to_string());
            changed["metadata"]["annotations"][MAXIMUM] = json!((self.wanted + self.surge).to_string());
        }
        let before = replicas(set);
        if before != wanted {
            changed["spec"]["replicas"] = json!(wanted);
            let word = if before < wanted { "up" } else { "down" };
            let message = format!("Scaled {word} replica set {} from {before} to {wanted}", name(set));
            plan.event(self.deployment, false, "ScalingReplicaSet", message);
        }
        if changed != *set {
            plan.add(Deed::Replace(changed));
        }
    }

    /// Deletes old sets beyond those that are kept for a rollback.
    fn clean_up(&self, plan: &mut Plan) {
        let keep = usize::try_from(self.deployment["spec"]["revisionHistoryLimit"].as_i64().unwrap_or(10)).unwrap_or(0);
        let mut idle: Vec<&Value> = self
            .old
            .iter()
            .copied()
            .filter(|set| {
                replicas(set) == 0 && number(&set["status"]["replicas"]) == 0 && !super::common::is_leaving(set)
            })
            .collect();
        idle.sort_by_key(|set| Reverse(revision(set)));
        for set in idle.into_iter().skip(keep) {
            plan.add(super::common::delete(set));
        }
    }

    fn note_revision(&self, plan: &mut Plan) {
        let Some(new) = self.new else { return };
        let current = revision(new).max(if revision(new) <= self.highest() { self.highest() + 1 } else { 0 });
        if revision(self.deployment) != current {
            let mut changed = self.deployment.clone();
            changed["metadata"]["annotations"][REVISION] = json!(current.to_string());
            plan.add(Deed::Replace(changed));
        }
    }

    fn status(&self, plan: &mut Plan, now: Timestamp) {
        let all = self.all();
        let (total, available) = (sum(&all, "replicas"), sum(&all, "availableReplicas"));
        let updated = self.new.map_or(0, |new| number(&new["status"]["replicas"]));
        let mut status = json!({
            "observedGeneration": self.deployment["metadata"]["generation"],
            "replicas": total, "updatedReplicas": updated, "readyReplicas": sum(&all, "readyReplicas"),
            "availableReplicas": available, "unavailableReplicas": (total.max(self.wanted) - available).max(0),
        });
        let (holds, reason, message) = match available >= self.wanted - self.unavailable {
            true => ("True", "MinimumReplicasAvailable", "Deployment has minimum availability."),
            false => ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability."),
        };
        let mut shown = self.deployment.clone();
        shown["status"]["conditions"] = json!(conditions(self.deployment, "Available", holds, reason, message, now));
        shown["status"]["conditions"] = json!(self.progress(&shown, &status, plan, now));
        if let Some(failure) = all.iter().find_map(|set| condition(set, "ReplicaFailure")) {
            let message = failure["message"].as_str().unwrap_or_default();
            shown["status"]["conditions"] =
                json!(conditions(&shown, "ReplicaFailure", "True", "FailedCreate", message, now));
        } else if let Some(list) = shown.pointer_mut("/status/conditions").and_then(Value::as_array_mut) {
            list.retain(|condition| condition["type"] != "ReplicaFailure");
        }
        status["conditions"] = shown["status"]["conditions"].take();
        plan.status(self.deployment, status);
    }

    /// The Progressing condition: whether the rollout moves, is done, or has not moved for too long.
    fn progress(&self, shown: &Value, status: &Value, plan: &mut Plan, now: Timestamp) -> Vec<Value> {
        let old = condition(self.deployment, "Progressing");
        let deadline = self.deployment["spec"]["progressDeadlineSeconds"]
            .as_i64()
            .filter(|seconds| *seconds < i64::from(i32::MAX));
        let set = |status: &str, reason: &str, message: String| {
            conditions(shown, "Progressing", status, reason, &message, now)
        };
        let new = self.new.map_or_else(String::new, |new| name(new).to_owned());
        if self.deployment["spec"]["paused"] == true {
            return set("Unknown", "DeploymentPaused", "Deployment is paused".to_owned());
        }
        if self.is_complete() {
            return set("True", "NewReplicaSetAvailable", format!("ReplicaSet \"{new}\" has successfully progressed."));
        }
        let Some(deadline) = deadline else {
            return shown["status"]["conditions"].as_array().cloned().unwrap_or_default();
        };
        let before = &self.deployment["status"];
        let ahead = |field: &str| number(&status[field]) > number(&before[field]);
        let fewer_old = number(&status["replicas"]) - number(&status["updatedReplicas"])
            < number(&before["replicas"]) - number(&before["updatedReplicas"]);
        let reason = old.and_then(|old| old["reason"].as_str()).unwrap_or_default();
        let restarted = self.new.is_none()
            || matches!(reason, "" | "NewReplicaSetAvailable" | "DeploymentPaused")
            || status["observedGeneration"] != before["observedGeneration"];
        let moves = ahead("updatedReplicas") || ahead("readyReplicas") || ahead("availableReplicas") || fewer_old;
        if restarted || moves {
            plan.look_at(Some(later(now, deadline + 1)));
            let mut list = set("True", "ReplicaSetUpdated", format!("ReplicaSet \"{new}\" is progressing."));
            for condition in list.iter_mut().filter(|condition| condition["type"] == "Progressing") {
                condition["lastUpdateTime"] = json!(time::text(now));
            }
            return list;
        }
        let since = old.and_then(|old| time_of(&old["lastUpdateTime"])).unwrap_or(now);
        if reason == "ProgressDeadlineExceeded" || now > later(since, deadline) {
            let message = format!("ReplicaSet \"{new}\" has timed out progressing.");
            return set("False", "ProgressDeadlineExceeded", message);
        }
        plan.look_at(Some(later(since, deadline + 1)));
        shown["status"]["conditions"].as_array().cloned().unwrap_or_default()
    }
}

/// As `with_condition`, with the time of the last update that Deployments' conditions have beside.
fn conditions(object: &Value, kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> Vec<Value> {
    let old = condition(object, kind).cloned().unwrap_or_default();
    let mut list = with_condition(object, kind, status, reason, message, now);
    for condition in list.iter_mut().filter(|condition| condition["type"] == kind) {
        let same = old["status"] == status && old["reason"] == reason && !old["lastUpdateTime"].is_null();
        condition["lastUpdateTime"] = if same { old["lastUpdateTime"].clone() } else { json!(time::text(now)) };
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(image: &str, replicas: i64, surge: Value, unavailable: Value) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": {"a": "b"}}, "progressDeadlineSeconds": 60,
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
            },
            "status": {},
        })
    }

    fn now() -> Timestamp {
        "2026-01-01T00:00:00Z".parse().unwrap()
    }

    /// Plays the rest of the world: sets are as the plan says, pods of good images become available at once.
    struct Play {
        deployment: Value,
        sets: Vec<Value>,
        worst: i64,
        most: i64,
    }

    impl Play {
        fn new(deployment: Value) -> Play {
            Play { deployment, sets: Vec::new(), worst: i64::MAX, most: 0 }
        }

        /// One round; whether anything was done.
        fn round(&mut self, now: Timestamp) -> bool {
            let world = World::of(self.sets.iter().cloned().chain([self.deployment.clone()]));
            let plan = plan(&world, &self.deployment, now);
            let mut acted = false;
            for deed in plan.deeds {
                match deed {
                    Deed::Create(mut set) => {
                        set["metadata"]["uid"] = set["metadata"]["name"].clone();
                        set["metadata"]["generation"] = json!(1);
                        set["metadata"]["creationTimestamp"] = json!(format!("2026-01-01T00:00:0{}Z", self.sets.len()));
                        self.sets.push(set);
                        acted = true;
                    }
                    Deed::Replace(object) if object["kind"] == "Deployment" => {
                        self.deployment["metadata"] = object["metadata"].clone()
                    }
                    Deed::Replace(object) => {
                        let place = self
                            .sets
                            .iter()
                            .position(|set| set["metadata"]["name"] == object["metadata"]["name"])
                            .unwrap();
                        acted |= self.sets[place]["spec"] != object["spec"];
                        self.sets[place] = object;
                    }
                    Deed::Status(_, status) => {
                        acted |= self.deployment["status"] != status;
                        self.deployment["status"] = status;
                    }
                    Deed::Delete(key, _) => self.sets.retain(|set| set["metadata"]["name"] != *key.name),
                    _ => {}
                }
            }
            for set in &mut self.sets {
                let size = replicas(set);
                let good = !set["spec"]["template"].to_string().contains("bad");
                let available = if good { size } else { 0 };
                set["status"] = json!({"replicas": size, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1});
            }
            let all: Vec<&Value> = self.sets.iter().collect();
            self.worst = self.worst.min(sum(&all, "availableReplicas"));
            self.most = self.most.max(sum(&all, "replicas"));
            acted
        }

        fn settle(&mut self, now: Timestamp) {
            assert!((0..200).any(|_| !self.round(now)), "it never settles");
        }

        fn sizes(&self) -> Vec<i64> {
            self.sets.iter().map(replicas).collect()
        }

        fn update(&mut self, image: &str) {
            self.deployment["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
            self.deployment["metadata"]["generation"] = json!(number(&self.deployment["metadata"]["generation"]) + 1);
            (self.worst, self.most) = (i64::MAX, 0);
        }
    }

    #[test]
    fn a_rollout_stays_within_its_bounds() {
        for (surge, unavailable, worst, most) in
            [(json!(1), json!(0), 10, 11), (json!(0), json!(2), 8, 10), (json!("25%"), json!("25%"), 8, 13)]
        {
            let mut play = Play::new(deployment("a", 10, surge, unavailable));
            play.settle(now());
            play.update("b");
            play.settle(now());
            assert_eq!(play.sizes(), [0, 10]);
            assert!(play.worst >= worst && play.most <= most, "{} {}", play.worst, play.most);
            assert_eq!(condition(&play.deployment, "Progressing").unwrap()["reason"], "NewReplicaSetAvailable");
            assert_eq!(revision(&play.deployment), 2);
        }
    }

    #[test]
    fn a_bad_image_stops_at_the_deadline_and_going_back_heals() {
        let mut play = Play::new(deployment("a", 4, json!(1), json!(1)));
        play.settle(now());
        play.update("bad");
        play.settle(now());
        assert!(play.worst >= 3, "{}", play.worst);
        assert_eq!(condition(&play.deployment, "Progressing").unwrap()["status"], "True");
        play.settle(later(now(), 100));
        assert_eq!(condition(&play.deployment, "Progressing").unwrap()["reason"], "ProgressDeadlineExceeded");
        play.update("a");
        play.settle(later(now(), 101));
        assert_eq!(play.sizes(), [4, 0]);
        assert_eq!(revision(&play.deployment), 3);
    }

    #[test]
    fn scaling_paused_and_in_the_middle_keeps_proportions() {
        let mut play = Play::new(deployment("a", 10, json!(2), json!(2)));
        play.settle(now());
        play.update("bad");
        play.settle(now());
        let before = play.sizes();
        play.deployment["spec"]["paused"] = json!(true);
        play.deployment["spec"]["replicas"] = json!(20);
        play.settle(now());
        let after = play.sizes();
        assert!(
            after[0] > before[0] && after[1] > before[1] && after.iter().sum::<i64>() <= 22,
            "{before:?} {after:?}"
        );
    }

    #[test]
    fn recreate_waits_until_the_old_pods_are_gone() {
        let mut d = deployment("a", 3, Value::Null, Value::Null);
        d["spec"]["strategy"] = json!({"type": "Recreate"});
        let mut play = Play::new(d);
        play.settle(now());
        play.update("b");
        play.settle(now());
        assert_eq!(play.sizes(), [0, 3]);
        assert_eq!(play.most, 3);
    }
}
