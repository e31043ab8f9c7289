//! CronJobs: a Job at each time of a schedule.

use std::cmp::Reverse;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::world::World;
use super::common::{delete, later, name, reference, time_of};
use super::job::outcome;
use super::{Deed, Plan};
use crate::cron::Schedule;
use crate::time;

/// Missed times that are looked through; more mean that the clock or the schedule makes no sense.
const MISSED: usize = 10_000;

/// What is to be done about a CronJob.
pub(super) fn plan(world: &World, cron: &Value, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let jobs: Vec<&Value> = world.controlled(cron, "Job").collect();
    clean_up(cron, &jobs, &mut plan);
    let active: Vec<&Value> = jobs.iter().copied().filter(|job| outcome(job).is_none()).collect();
    let mut status = cron["status"].clone();
    let mut shown: Vec<Value> = active.iter().map(|job| object_reference(job)).collect();
    let schedule =
        Schedule::parse(cron["spec"]["schedule"].as_str().unwrap_or_default(), cron["spec"]["timeZone"].as_str());
    if let Ok(schedule) = schedule
        && cron["spec"]["suspend"] != true
    {
        let since = time_of(&cron["status"]["lastScheduleTime"])
            .or_else(|| time_of(&cron["metadata"]["creationTimestamp"]))
            .unwrap_or(now);
        if let Some(due) = newest_due(&schedule, since, now) {
            let limit = cron["spec"]["startingDeadlineSeconds"].as_i64();
            let late = limit.is_some_and(|seconds| later(due, seconds) < now);
            let policy = cron["spec"]["concurrencyPolicy"].as_str().unwrap_or("Allow");
            if late {
                let message = format!("Missed scheduled time to start a job: {}", time::text(due));
                plan.event(cron, true, "MissSchedule", message);
            } else if policy == "Forbid" && !active.is_empty() {
                plan.event(
                    cron,
                    false,
                    "JobAlreadyActive",
                    "Not starting job because prior execution is running and concurrency policy is Forbid".to_owned(),
                );
            } else {
                if policy == "Replace" {
                    active.iter().for_each(|job| plan.add(delete(job)));
                    shown.clear();
                }
                plan.add(Deed::Create(job_at(cron, due)));
            }
            // Whatever became of this time, it is not looked at again.
            status["lastScheduleTime"] = json!(time::text(due));
        }
        plan.look_at(schedule.after(now));
    }
    status["active"] = json!(shown);
    if shown.is_empty() {
        status.as_object_mut().map(|status| status.remove("active"));
    }
    let done = jobs.iter().filter(|job| outcome(job) == Some(true));
    if let Some(last) = done.filter_map(|job| job["status"]["completionTime"].as_str()).max() {
        status["lastSuccessfulTime"] = json!(last);
    }
    if status.is_null() {
        status = json!({});
    }
    plan.status(cron, status);
    plan
}

/// The newest time of a schedule that has come since.
fn newest_due(schedule: &Schedule, since: Timestamp, now: Timestamp) -> Option<Timestamp> {
    let mut due = None;
    let mut at = since;
    for _ in 0..MISSED {
        match schedule.after(at).filter(|next| *next <= now) {
            Some(next) => (due, at) = (Some(next), next),
            None => return due,
        }
    }
    // Far behind: begin anew from now.
    newest_due(schedule, later(now, -3600), now).or(due)
}

fn object_reference(job: &Value) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "name": job["metadata"]["name"],
        "namespace": job["metadata"]["namespace"], "uid": job["metadata"]["uid"],
    })
}

/// The Job of one time; its name holds the time, so that one time makes one Job.
fn job_at(cron: &Value, due: Timestamp) -> Value {
    let template = &cron["spec"]["jobTemplate"];
    let base: String = name(cron).chars().take(52).collect();
    let mut annotations = template["metadata"]["annotations"].as_object().cloned().unwrap_or_default();
    annotations.insert("batch.kubernetes.io/cronjob-scheduled-timestamp".to_owned(), json!(time::text(due)));
    let mut metadata = json!({
        "name": format!("{base}-{}", due.as_second() / 60), "namespace": cron["metadata"]["namespace"],
        "ownerReferences": [reference(cron)], "annotations": annotations,
    });
    if !template["metadata"]["labels"].is_null() {
        metadata["labels"] = template["metadata"]["labels"].clone();
    }
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]})
}

/// Deletes the oldest Jobs that have ended, beyond those that are kept.
fn clean_up(cron: &Value, jobs: &[&Value], plan: &mut Plan) {
    for (well, field, usual) in [(true, "successfulJobsHistoryLimit", 3), (false, "failedJobsHistoryLimit", 1)] {
        let keep = usize::try_from(cron["spec"][field].as_i64().unwrap_or(usual)).unwrap_or(0);
        let mut ended: Vec<&&Value> = jobs.iter().filter(|job| outcome(job) == Some(well)).collect();
        ended.sort_by_key(|job| Reverse(time_of(&job["status"]["startTime"])));
        ended.into_iter().skip(keep).for_each(|job| plan.add(delete(job)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron(policy: &str) -> Value {
        json!({
            "apiVersion": "batch/v1", "kind": "CronJob",
            "metadata": {"name": "nightly", "namespace": "default", "uid": "c", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "schedule": "0 * * * *", "concurrencyPolicy": policy, "startingDeadlineSeconds": 600,
                "successfulJobsHistoryLimit": 1, "jobTemplate": {"spec": {"template": {}}},
            },
            "status": {},
        })
    }

    fn run(world: &World, cron: &Value, now: &str) -> (Vec<String>, Option<Timestamp>) {
        let plan = plan(world, cron, now.parse().unwrap());
        let words = plan.deeds.iter().filter_map(|deed| match deed {
            Deed::Create(job) => Some(format!("+{}", name(job))),
            Deed::Delete(key, _) => Some(format!("-{}", key.name)),
            Deed::Event { reason, .. } => Some((*reason).to_owned()),
            _ => None,
        });
        (words.collect(), plan.again)
    }

    fn job(name: &str, ended: bool) -> Value {
        let conditions = if ended { json!([{"type": "Complete", "status": "True"}]) } else { json!([]) };
        json!({
            "kind": "Job",
            "metadata": {
                "name": name, "namespace": "default", "uid": name,
                "ownerReferences": [{"kind": "CronJob", "name": "nightly", "uid": "c", "controller": true}],
            },
            "status": {"conditions": conditions, "startTime": format!("2026-01-01T0{}:00:00Z", name.len())},
        })
    }

    #[test]
    fn a_job_starts_on_time_or_not_at_all() {
        let (empty, due) = (World::of([]), "2026-01-01T02:00:30Z");
        assert_eq!(run(&empty, &cron("Allow"), "2026-01-01T00:30:00Z"), (vec![], "2026-01-01T01:00:00Z".parse().ok()));
        assert_eq!(run(&empty, &cron("Allow"), due).0, ["+nightly-29453880"]);
        assert_eq!(run(&empty, &cron("Allow"), "2026-01-01T02:30:00Z").0, ["MissSchedule"]);
        let busy = World::of([job("a", false)]);
        assert_eq!(run(&busy, &cron("Forbid"), due).0, ["JobAlreadyActive"]);
        assert_eq!(run(&busy, &cron("Replace"), due).0, ["-a", "+nightly-29453880"]);
        let mut told = cron("Allow");
        told["status"]["lastScheduleTime"] = json!("2026-01-01T02:00:00Z");
        assert!(run(&empty, &told, due).0.is_empty());
        let full = World::of([job("a", true), job("bb", true)]);
        assert_eq!(run(&full, &told, due).0, ["-a"]);
    }
}
