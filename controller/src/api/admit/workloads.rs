//! Deployments, ReplicaSets, StatefulSets, DaemonSets, Jobs and CronJobs: their defaults, their rules, and what of them
//! never changes.

use serde_json::{Value, json};

use super::rules::{labels, not_negative, one_of};
use super::{default, defaults, name_of};
use crate::api::ApiError;
use crate::api::error::Cause;
use crate::selector;

/// Fills in and checks one.
pub(super) fn admit(kind: &str, object: &mut Value, old: Option<&Value>) -> Result<(), ApiError> {
    match kind {
        "Deployment" => deployment(&mut object["spec"]),
        "ReplicaSet" => default(&mut object["spec"], "replicas", json!(1)),
        "StatefulSet" => stateful_set(&mut object["spec"]),
        "DaemonSet" => daemon_set(&mut object["spec"]),
        "Job" => job(object),
        _ => cron_job(&mut object["spec"]),
    }
    let mut causes = Vec::new();
    if kind == "CronJob" {
        check_cron_job(object, &mut causes);
    } else {
        defaults::pod_spec(&mut object["spec"]["template"]["spec"]);
        check(kind, object, &mut causes);
        check_change(kind, object, old, &mut causes);
    }
    if causes.is_empty() { Ok(()) } else { Err(ApiError::causes(kind, name_of(object), &causes)) }
}

fn deployment(spec: &mut Value) {
    default(spec, "replicas", json!(1));
    default(spec, "revisionHistoryLimit", json!(10));
    default(spec, "progressDeadlineSeconds", json!(600));
    default(&mut spec["strategy"], "type", json!("RollingUpdate"));
    if spec["strategy"]["type"] == "RollingUpdate" {
        default(&mut spec["strategy"]["rollingUpdate"], "maxSurge", json!("25%"));
        default(&mut spec["strategy"]["rollingUpdate"], "maxUnavailable", json!("25%"));
    }
}

fn stateful_set(spec: &mut Value) {
    default(spec, "replicas", json!(1));
    default(spec, "revisionHistoryLimit", json!(10));
    default(spec, "podManagementPolicy", json!("OrderedReady"));
    default(&mut spec["updateStrategy"], "type", json!("RollingUpdate"));
    if spec["updateStrategy"]["type"] == "RollingUpdate" {
        default(&mut spec["updateStrategy"]["rollingUpdate"], "partition", json!(0));
    }
    default(&mut spec["persistentVolumeClaimRetentionPolicy"], "whenDeleted", json!("Retain"));
    default(&mut spec["persistentVolumeClaimRetentionPolicy"], "whenScaled", json!("Retain"));
    for claim in spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut).into_iter().flatten() {
        default(claim, "apiVersion", json!("v1"));
        default(claim, "kind", json!("PersistentVolumeClaim"));
        default(&mut claim["spec"], "volumeMode", json!("Filesystem"));
    }
}

fn daemon_set(spec: &mut Value) {
    default(spec, "revisionHistoryLimit", json!(10));
    default(&mut spec["updateStrategy"], "type", json!("RollingUpdate"));
    if spec["updateStrategy"]["type"] == "RollingUpdate" {
        default(&mut spec["updateStrategy"]["rollingUpdate"], "maxSurge", json!(0));
        default(&mut spec["updateStrategy"]["rollingUpdate"], "maxUnavailable", json!(1));
    }
}

fn job(object: &mut Value) {
    let (uid, name) = (object["metadata"]["uid"].clone(), object["metadata"]["name"].clone());
    let spec = &mut object["spec"];
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        spec["completions"] = json!(1);
    }
    default(spec, "parallelism", json!(1));
    default(spec, "backoffLimit", json!(6));
    default(spec, "completionMode", json!("NonIndexed"));
    default(spec, "suspend", json!(false));
    if spec["manualSelector"] != true && spec["selector"].is_null() {
        spec["selector"] = json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}});
        let labels = &mut spec["template"]["metadata"]["labels"];
        for (label, value) in [
            ("batch.kubernetes.io/controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
            ("controller-uid", &uid),
            ("job-name", &name),
        ] {
            labels[label] = value.clone();
        }
    }
}

fn cron_job(spec: &mut Value) {
    default(spec, "concurrencyPolicy", json!("Allow"));
    default(spec, "suspend", json!(false));
    default(spec, "successfulJobsHistoryLimit", json!(3));
    default(spec, "failedJobsHistoryLimit", json!(1));
    defaults::pod_spec(&mut spec["jobTemplate"]["spec"]["template"]["spec"]);
}

fn check_cron_job(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    match spec["schedule"].as_str().filter(|text| !text.is_empty()) {
        None => causes.push(Cause::required("spec.schedule", "")),
        Some(text) => {
            if let Err(why) = crate::cron::Schedule::parse(text, spec["timeZone"].as_str()) {
                causes.push(Cause::invalid("spec.schedule", &spec["schedule"], &why));
            }
        }
    }
    one_of(spec, "spec", "concurrencyPolicy", &["Allow", "Forbid", "Replace"], causes);
    let policy = &spec["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"];
    if !matches!(policy.as_str(), Some("OnFailure" | "Never")) {
        let field = "spec.jobTemplate.spec.template.spec.restartPolicy";
        causes.push(Cause::unsupported(field, policy, &["OnFailure", "Never"]));
    }
    containers(&spec["jobTemplate"]["spec"]["template"], "spec.jobTemplate.spec.template", causes);
}

fn check(kind: &str, object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    let numbers = [
        "replicas",
        "minReadySeconds",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
        "completions",
        "parallelism",
        "backoffLimit",
        "activeDeadlineSeconds",
        "ttlSecondsAfterFinished",
    ];
    for field in numbers {
        not_negative(spec, "spec", field, causes);
    }
    let selects = spec["selector"]["matchLabels"].as_object().is_some_and(|map| !map.is_empty())
        || spec["selector"]["matchExpressions"].as_array().is_some_and(|list| !list.is_empty());
    if spec["selector"].is_null() {
        causes.push(Cause::required("spec.selector", ""));
    } else if !selects {
        causes.push(Cause::invalid(
            "spec.selector",
            &spec["selector"],
            &format!("empty selector is invalid for {}", kind.to_lowercase()),
        ));
    } else if !selector::matches(&spec["selector"], &spec["template"]["metadata"]["labels"]) {
        let why = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", &spec["template"]["metadata"]["labels"], why));
    }
    causes.extend(labels("spec.template.labels", &spec["template"]["metadata"]["labels"]));
    let (strategy, known): (&str, &[&str]) = match kind {
        "Deployment" => ("strategy", &["Recreate", "RollingUpdate"]),
        _ => ("updateStrategy", &["OnDelete", "RollingUpdate"]),
    };
    one_of(&spec[strategy], &format!("spec.{strategy}"), "type", known, causes);
    one_of(spec, "spec", "podManagementPolicy", &["OrderedReady", "Parallel"], causes);
    one_of(spec, "spec", "completionMode", &["NonIndexed", "Indexed"], causes);
    if kind == "Deployment" {
        let rolling = &spec["strategy"]["rollingUpdate"];
        if spec["strategy"]["type"] == "Recreate" && !rolling.is_null() {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            causes.push(Cause::forbidden("spec.strategy.rollingUpdate", why));
        }
        let zero = |value: &Value| matches!(value.as_str(), Some("0%")) || value.as_i64() == Some(0);
        if zero(&rolling["maxSurge"]) && zero(&rolling["maxUnavailable"]) {
            let why = "may not be 0 when `maxSurge` is 0";
            causes.push(Cause::invalid("spec.strategy.rollingUpdate.maxUnavailable", &rolling["maxUnavailable"], why));
        }
    }
    if kind == "Job" && spec["completionMode"] == "Indexed" && spec["completions"].is_null() {
        causes.push(Cause::required("spec.completions", "when completion mode is Indexed"));
    }
    let policy = &spec["template"]["spec"]["restartPolicy"];
    let policies: &[&str] = if kind == "Job" { &["OnFailure", "Never"] } else { &["Always"] };
    if !policy.as_str().is_some_and(|policy| policies.contains(&policy)) {
        causes.push(Cause::unsupported("spec.template.spec.restartPolicy", policy, policies));
    }
    containers(&spec["template"], "spec.template", causes);
}

/// What every template needs before a pod of it can be made.
fn containers(template: &Value, path: &str, causes: &mut Vec<Cause>) {
    let list = template["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    if list.is_empty() {
        causes.push(Cause::required(&format!("{path}.spec.containers"), ""));
    }
    for (index, container) in list.iter().enumerate() {
        for field in ["name", "image"] {
            if container[field].as_str().is_none_or(str::is_empty) {
                causes.push(Cause::required(&format!("{path}.spec.containers[{index}].{field}"), ""));
            }
        }
    }
}

fn check_change(kind: &str, object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let Some(old) = old else { return };
    let (was, is) = (&old["spec"], &object["spec"]);
    match kind {
        "StatefulSet" => {
            const MAY: [&str; 8] = [
                "replicas",
                "ordinals",
                "template",
                "updateStrategy",
                "revisionHistoryLimit",
                "persistentVolumeClaimRetentionPolicy",
                "minReadySeconds",
                "podManagementPolicy",
            ];
            let fixed = |spec: &Value| {
                let mut spec = spec.as_object().cloned().unwrap_or_default();
                spec.retain(|name, _| name == "podManagementPolicy" || !MAY.contains(&name.as_str()));
                spec
            };
            if fixed(was) != fixed(is) {
                causes.push(Cause::forbidden(
                    "spec",
                    "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                     'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                     'minReadySeconds' are forbidden",
                ));
            }
        }
        "Job" => {
            for field in ["selector", "template", "completionMode"] {
                if was[field] != is[field] {
                    causes.push(Cause::invalid(&format!("spec.{field}"), &is[field], "field is immutable"));
                }
            }
        }
        _ if was["selector"] != is["selector"] => {
            causes.push(Cause::invalid("spec.selector", &is["selector"], "field is immutable"));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(kind: &str, spec: Value) -> Result<Value, String> {
        let mut object = json!({"metadata": {"name": "a", "uid": "u"}, "spec": spec});
        admit(kind, &mut object, None).map(|()| object).map_err(|error| error.status()["message"].to_string())
    }

    #[test]
    fn a_deployment_gets_its_defaults_and_says_what_it_lacks() {
        let template =
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
        let whole = made("Deployment", json!({"selector": {"matchLabels": {"a": "b"}}, "template": template})).unwrap();
        assert_eq!(whole["spec"]["strategy"]["rollingUpdate"], json!({"maxSurge": "25%", "maxUnavailable": "25%"}));
        assert_eq!(whole["spec"]["template"]["spec"]["restartPolicy"], "Always");
        let other =
            made("Deployment", json!({"selector": {"matchLabels": {"a": "c"}}, "template": template})).unwrap_err();
        assert!(other.contains("`selector` does not match template `labels`"), "{other}");
        let empty = made("Deployment", json!({})).unwrap_err();
        assert!(
            empty.contains("spec.selector: Required value") && empty.contains("containers: Required value"),
            "{empty}"
        );
    }

    #[test]
    fn a_job_selects_by_its_own_uid_and_a_cron_job_needs_a_schedule() {
        let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}});
        let job = made("Job", json!({"template": template})).unwrap();
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["controller-uid"], "u");
        assert_eq!((&job["spec"]["completions"], &job["spec"]["backoffLimit"]), (&json!(1), &json!(6)));
        let always = json!({"spec": {"containers": [{"name": "c", "image": "i"}]}});
        assert!(made("Job", json!({"template": always})).unwrap_err().contains("Unsupported value: \\\"Always\\\""));
        let cron = |schedule: &str| {
            made("CronJob", json!({"schedule": schedule, "jobTemplate": {"spec": {"template": template}}}))
        };
        assert!(cron("30 2 * * 1-6").is_ok() && cron("often").is_err());
    }
}
