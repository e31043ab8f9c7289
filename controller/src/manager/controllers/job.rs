//! Jobs: pods that run until enough of them have succeeded.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::world::{World, key_of};
use super::common::{delete, holds, is_active, is_ready, later, name, number, pod_of, time_of, with_condition};
use super::{Deed, Plan};
use crate::time;

const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// First wait after a failure; it doubles with each further one.
const BACKOFF: i64 = 10;
const LONGEST_BACKOFF: i64 = 360;

/// A Job and its pods by what became of them.
struct Run<'a> {
    job: &'a Value,
    active: Vec<&'a Value>,
    succeeded: Vec<&'a Value>,
    failed: Vec<&'a Value>,
    indexed: bool,
}

fn index_of(pod: &Value) -> Option<i64> {
    pod["metadata"]["annotations"][INDEX].as_str()?.parse().ok()
}

/// When a pod ended.
fn ended_at(pod: &Value) -> Option<Timestamp> {
    let containers = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    containers.filter_map(|status| time_of(&status["state"]["terminated"]["finishedAt"])).max()
}

/// Numbers as ranges: `0-2,5`.
fn ranges(numbers: &BTreeSet<i64>) -> String {
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == *number => *end = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let words = ranges.iter().map(|(from, to)| match to - from {
        0 => from.to_string(),
        1 => format!("{from},{to}"),
        _ => format!("{from}-{to}"),
    });
    words.collect::<Vec<_>>().join(",")
}

/// What is to be done about a Job.
pub(super) fn plan(world: &World, job: &Value, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let pods: Vec<&Value> = world.controlled(job, "Pod").collect();
    if holds(job, "Complete") || holds(job, "Failed") {
        finished(job, &pods, now, &mut plan);
        return plan;
    }
    let phase = |wanted: &str| pods.iter().copied().filter(|pod| pod["status"]["phase"] == wanted).collect::<Vec<_>>();
    let run = Run {
        job,
        active: pods.iter().copied().filter(|pod| is_active(pod)).collect(),
        succeeded: phase("Succeeded"),
        failed: phase("Failed"),
        indexed: job["spec"]["completionMode"] == "Indexed",
    };
    let suspended = job["spec"]["suspend"] == true;
    let start = time_of(&job["status"]["startTime"]);
    let deadline = job["spec"]["activeDeadlineSeconds"].as_i64();
    let ends = start.zip(deadline).map(|(start, seconds)| later(start, seconds));
    let end = match () {
        () if run.failures() > job["spec"]["backoffLimit"].as_i64().unwrap_or(6) => {
            Some(("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit"))
        }
        () if !suspended && ends.is_some_and(|ends| ends <= now) => {
            Some(("Failed", "DeadlineExceeded", "Job was active longer than specified deadline"))
        }
        () if run.is_complete() => {
            Some(("Complete", "CompletionsReached", "Reached expected number of succeeded pods"))
        }
        () => None,
    };
    plan.look_at(ends.filter(|_| end.is_none() && !suspended));
    match end {
        Some((kind, reason, message)) => {
            run.active.iter().for_each(|pod| plan.add(delete(pod)));
            plan.event(
                job,
                kind == "Failed",
                if kind == "Failed" { reason } else { "Completed" },
                match kind {
                    "Failed" => message.to_owned(),
                    _ => "Job completed".to_owned(),
                },
            );
        }
        None if suspended => run.active.iter().for_each(|pod| plan.add(delete(pod))),
        None => run.start(now, &mut plan),
    }
    run.status(start, suspended, end, now, &mut plan);
    plan
}

/// What is left to do after the end: the rest of the pods, and the Job itself when its time is over.
fn finished(job: &Value, pods: &[&Value], now: Timestamp, plan: &mut Plan) {
    pods.iter().filter(|pod| is_active(pod)).for_each(|pod| plan.add(delete(pod)));
    let active = pods.iter().filter(|pod| is_active(pod)).count();
    if number(&job["status"]["active"]) != i64::try_from(active).unwrap_or(0) {
        let mut status = job["status"].clone();
        status["active"] = json!(active);
        plan.status(job, status);
    }
    let Some(ttl) = job["spec"]["ttlSecondsAfterFinished"].as_i64() else { return };
    let ended = job["status"]["conditions"].as_array().into_iter().flatten();
    let ended = ended.filter(|c| c["status"] == "True" && (c["type"] == "Complete" || c["type"] == "Failed"));
    let Some(over) = ended.filter_map(|c| time_of(&c["lastTransitionTime"])).max().map(|at| later(at, ttl)) else {
        return;
    };
    if over <= now {
        plan.add(Deed::Delete(key_of(job), job["metadata"]["uid"].as_str().unwrap_or_default().to_owned()));
    } else {
        plan.look_at(Some(over));
    }
}

impl Run<'_> {
    /// Failed pods, and restarts of containers where the pod itself goes on.
    fn failures(&self) -> i64 {
        let restarts =
            self.active.iter().flat_map(|pod| pod["status"]["containerStatuses"].as_array().into_iter().flatten());
        let restarts: i64 = match self.job["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure" {
            true => restarts.map(|status| number(&status["restartCount"])).sum(),
            false => 0,
        };
        i64::try_from(self.failed.len()).unwrap_or(i64::MAX) + restarts
    }

    fn done_indexes(&self) -> BTreeSet<i64> {
        let total = number(&self.job["spec"]["completions"]);
        self.succeeded.iter().filter_map(|pod| index_of(pod)).filter(|index| *index < total).collect()
    }

    fn done(&self) -> i64 {
        let count = if self.indexed { self.done_indexes().len() } else { self.succeeded.len() };
        i64::try_from(count).unwrap_or(i64::MAX)
    }

    fn is_complete(&self) -> bool {
        match self.job["spec"]["completions"].as_i64() {
            Some(wanted) => self.done() >= wanted,
            // A queue of work is done when one pod has succeeded and none runs any more.
            None => !self.succeeded.is_empty() && self.active.is_empty(),
        }
    }

    /// Makes the pods that may run beside those that do, not too soon after a failure.
    fn start(&self, now: Timestamp, plan: &mut Plan) {
        let parallelism = self.job["spec"]["parallelism"].as_i64().unwrap_or(1);
        let active = i64::try_from(self.active.len()).unwrap_or(i64::MAX);
        let wanted = match self.job["spec"]["completions"].as_i64() {
            Some(completions) => (completions - self.done()).min(parallelism),
            None if !self.succeeded.is_empty() => active,
            None => parallelism,
        };
        if active > wanted {
            let mut pods = self.active.clone();
            pods.sort_by_key(|pod| super::common::rank(pod));
            let surplus = usize::try_from(active - wanted).unwrap_or(0);
            pods.iter().take(surplus).for_each(|pod| plan.add(delete(pod)));
            return;
        }
        let missing = usize::try_from(wanted - active).unwrap_or(0);
        if missing == 0 {
            return;
        }
        if let Some(last) = self.failed.iter().filter_map(|pod| ended_at(pod)).max() {
            let doublings = self.failed.len().saturating_sub(1).min(6);
            let wait = (BACKOFF << doublings).min(LONGEST_BACKOFF);
            if later(last, wait) > now {
                return plan.look_at(Some(later(last, wait)));
            }
        }
        if self.indexed {
            let taken: BTreeSet<i64> =
                self.active.iter().filter_map(|pod| index_of(pod)).chain(self.done_indexes()).collect();
            let free = (0..number(&self.job["spec"]["completions"])).filter(|index| !taken.contains(index));
            free.take(missing).for_each(|index| plan.add(Deed::Create(self.indexed_pod(index))));
        } else {
            for _ in 0..missing {
                let mut pod = pod_of(&self.job["spec"]["template"], self.job);
                pod["metadata"]["generateName"] = json!(format!("{}-", name(self.job)));
                plan.add(Deed::Create(pod));
            }
        }
    }

    fn indexed_pod(&self, index: i64) -> Value {
        let mut pod = pod_of(&self.job["spec"]["template"], self.job);
        pod["metadata"]["generateName"] = json!(format!("{}-{index}-", name(self.job)));
        pod["metadata"]["annotations"][INDEX] = json!(index.to_string());
        pod["metadata"]["labels"][INDEX] = json!(index.to_string());
        pod["spec"]["hostname"] = json!(format!("{}-{index}", name(self.job)));
        for list in ["initContainers", "containers"] {
            for container in pod["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                let variable = json!({"name": "JOB_COMPLETION_INDEX", "value": index.to_string()});
                match container.get_mut("env").and_then(Value::as_array_mut) {
                    Some(env) => env.push(variable),
                    None => container["env"] = json!([variable]),
                }
            }
        }
        pod
    }

    fn status(
        &self,
        start: Option<Timestamp>,
        suspended: bool,
        end: Option<(&str, &str, &str)>,
        now: Timestamp,
        plan: &mut Plan,
    ) {
        let ready = self.active.iter().filter(|pod| is_ready(pod)).count();
        let mut status = json!({
            "active": if end.is_some() || suspended { 0 } else { self.active.len() },
            "ready": ready, "succeeded": self.done(), "failed": self.failed.len(), "terminating": 0,
            "uncountedTerminatedPods": {},
        });
        if let Some(start) = start.or((!suspended).then_some(now)) {
            status["startTime"] = json!(time::text(start));
        }
        if self.indexed {
            status["completedIndexes"] = json!(ranges(&self.done_indexes()));
        }
        let mut shown = self.job.clone();
        if suspended || holds(self.job, "Suspended") {
            let (word, reason) = if suspended { ("True", "JobSuspended") } else { ("False", "JobResumed") };
            shown["status"]["conditions"] = json!(with_condition(&shown, "Suspended", word, reason, reason, now));
        }
        if let Some((kind, reason, message)) = end {
            shown["status"]["conditions"] = json!(with_condition(&shown, kind, "True", reason, message, now));
            if kind == "Complete" {
                status["completionTime"] = json!(time::text(now));
            }
        }
        if shown["status"]["conditions"].is_array() {
            status["conditions"] = shown["status"]["conditions"].take();
        }
        plan.status(self.job, status);
    }
}

/// Whether a Job has ended, and well.
pub(super) fn outcome(job: &Value) -> Option<bool> {
    match () {
        () if holds(job, "Complete") => Some(true),
        () if holds(job, "Failed") => Some(false),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(spec: Value) -> Value {
        json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "count", "namespace": "default", "uid": "j"},
            "spec": spec, "status": {},
        })
    }

    fn spec(mode: &str) -> Value {
        json!({
            "completions": 3, "parallelism": 2, "backoffLimit": 2, "completionMode": mode,
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}},
        })
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn created(plan: &Plan) -> Vec<Value> {
        let made = plan.deeds.iter().filter_map(|deed| match deed {
            Deed::Create(pod) => Some(pod.clone()),
            _ => None,
        });
        made.collect()
    }

    fn pod(mut pod: Value, number: u8, phase: &str, ended: i64) -> Value {
        pod["metadata"]["name"] = json!(format!("p{number}"));
        pod["metadata"]["uid"] = json!(format!("p{number}"));
        let end = json!({"terminated": {"finishedAt": time::text(at(ended))}});
        pod["status"] = json!({"phase": phase, "containerStatuses": [{"state": end}]});
        pod
    }

    #[test]
    fn an_indexed_job_runs_each_index_and_waits_after_a_failure() {
        let job = job(spec("Indexed"));
        let first = created(&plan(&World::of([]), &job, at(0)));
        let indexes: Vec<_> = first.iter().filter_map(index_of).collect();
        assert_eq!(indexes, [0, 1]);
        let env = &first[1]["spec"]["containers"][0]["env"];
        assert_eq!(*env, json!([{"name": "JOB_COMPLETION_INDEX", "value": "1"}]));
        let pods = [pod(first[0].clone(), 0, "Succeeded", 5), pod(first[1].clone(), 1, "Failed", 5)];
        let world = World::of(pods.clone());
        let soon = plan(&world, &job, at(6));
        assert!(created(&soon).is_empty() && soon.again == Some(at(15)), "{soon:?}");
        let then = created(&plan(&world, &job, at(15)));
        assert_eq!(then.iter().filter_map(index_of).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_job_ends_well_or_by_its_bounds() {
        let ends = |job: &Value, pods: &[Value], now| {
            let plan = plan(&World::of(pods.to_vec()), job, now);
            let status = plan.deeds.iter().find_map(|deed| match deed {
                Deed::Status(_, status) => Some(status.clone()),
                _ => None,
            });
            status.unwrap()["conditions"][0]["reason"].as_str().unwrap_or_default().to_owned()
        };
        let simple = job(spec("NonIndexed"));
        let template = created(&plan(&World::of([]), &simple, at(0))).remove(0);
        let pods = |phase: &str, count: u8| (0..count).map(|n| pod(template.clone(), n, phase, 0)).collect::<Vec<_>>();
        assert_eq!(ends(&simple, &pods("Succeeded", 3), at(9)), "CompletionsReached");
        assert_eq!(ends(&simple, &pods("Failed", 3), at(9)), "BackoffLimitExceeded");
        let mut bounded = simple.clone();
        bounded["spec"]["activeDeadlineSeconds"] = json!(5);
        bounded["status"]["startTime"] = json!(time::text(at(0)));
        assert_eq!(ends(&bounded, &pods("Running", 1), at(9)), "DeadlineExceeded");
        assert_eq!(ranges(&BTreeSet::from([0, 1, 2, 5, 7, 8])), "0-2,5,7,8");
    }
}
