//! From what a device reports to `status` as Kubernetes writes it.

use jiff::Timestamp;
use serde_json::{Value, json};
use skeg_protocol::status::ConditionKind;
use skeg_protocol::{ContainerState, ContainerStatus, Phase, PodStatus, Termination};

use crate::time;

/// The status that a device's report gives a pod. `host_ip` is the device's address; `now` dates conditions that
/// changed.
pub(crate) fn from_device(pod: &Value, report: &PodStatus, host_ip: Option<&str>, now: Timestamp) -> Value {
    let phase = match report.phase {
        Phase::Pending => "Pending",
        Phase::Running => "Running",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
    };
    let statuses = |field: &str, reports: &[ContainerStatus]| -> Vec<Value> {
        reports.iter().map(|container| container_status(pod, field, container)).collect()
    };
    let told: Vec<(&str, bool, &str, &str)> = report
        .conditions
        .iter()
        .map(|condition| (kind(condition.kind), condition.holds, condition.reason.as_str(), condition.message.as_str()))
        .collect();
    let mut status = json!({
        "phase": phase,
        "startTime": time::from_millis(report.started_at),
        "containerStatuses": statuses("containers", &report.containers),
        "conditions": conditions(pod, now, &told),
    });
    if !report.init_containers.is_empty() {
        status["initContainerStatuses"] = json!(statuses("initContainers", &report.init_containers));
    }
    let texts = [("reason", report.reason.as_str()), ("message", &report.message), ("hostIP", host_ip.unwrap_or(""))];
    for (name, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        status[name] = json!(text);
    }
    let addresses: Vec<String> = match host_ip {
        Some(address) if pod["spec"]["hostNetwork"] == true => vec![address.to_owned()],
        _ => report.ips.iter().map(ToString::to_string).collect(),
    };
    if let Some(first) = addresses.first() {
        status["podIP"] = json!(first);
        status["podIPs"] = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    }
    status
}

/// The status of a pod that no node can take.
pub(crate) fn unschedulable(pod: &Value, message: &str, now: Timestamp) -> Value {
    json!({
        "phase": "Pending",
        "conditions": conditions(pod, now, &[("PodScheduled", false, "Unschedulable", message)]),
    })
}

/// The status of a pod that waits for images which could not be resolved: (container, reason, message) each.
pub(crate) fn failed_images(pod: &Value, failures: &[(String, &str, String)], now: Timestamp) -> Value {
    let containers = pod["spec"]["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let waiting = containers.iter().map(|container| {
        let name = container["name"].as_str().unwrap_or_default();
        let failure = failures.iter().find(|(failed, ..)| failed == name);
        let state = match failure {
            Some((_, reason, message)) => json!({"waiting": {"reason": reason, "message": message}}),
            None => json!({"waiting": {"reason": "ContainerCreating"}}),
        };
        json!({
            "name": name, "image": container["image"], "imageID": "", "ready": false, "started": false,
            "restartCount": 0, "state": state, "lastState": {},
        })
    });
    json!({
        "phase": "Pending",
        "containerStatuses": waiting.collect::<Vec<_>>(),
        "conditions": conditions(pod, now, &[
            ("PodScheduled", true, "", ""),
            ("Ready", false, "ContainersNotReady", ""),
        ]),
    })
}

/// Conditions with the time of their last change kept where they did not change.
pub(crate) fn conditions(object: &Value, now: Timestamp, conditions: &[(&str, bool, &str, &str)]) -> Vec<Value> {
    let old = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let one = |&(kind, holds, reason, message): &(&str, bool, &str, &str)| {
        let status = if holds { "True" } else { "False" };
        let same = old.iter().find(|old| old["type"] == kind && old["status"] == status);
        let since = same.map_or_else(|| json!(time::text(now)), |old| old["lastTransitionTime"].clone());
        let mut condition = json!({"type": kind, "status": status, "lastTransitionTime": since});
        for (name, text) in [("reason", reason), ("message", message)].into_iter().filter(|(_, text)| !text.is_empty())
        {
            condition[name] = json!(text);
        }
        condition
    };
    conditions.iter().map(one).collect()
}

/// As Kubernetes calls it.
fn kind(kind: ConditionKind) -> &'static str {
    match kind {
        ConditionKind::PodScheduled => "PodScheduled",
        ConditionKind::Initialized => "Initialized",
        ConditionKind::ContainersReady => "ContainersReady",
        ConditionKind::Ready => "Ready",
    }
}

fn container_status(pod: &Value, field: &str, container: &ContainerStatus) -> Value {
    let specs = pod["spec"][field].as_array().map(Vec::as_slice).unwrap_or_default();
    let spec = specs.iter().find(|spec| spec["name"] == container.name.as_str());
    let image = spec.and_then(|spec| spec["image"].as_str()).unwrap_or_default();
    json!({
        "name": container.name.as_str(),
        "image": image,
        "imageID": container.image.map(|digest| digest.to_string()).unwrap_or_default(),
        "ready": container.ready,
        "started": container.started,
        "restartCount": container.restarts,
        "state": state(&container.state),
        "lastState": container.last.as_ref().map_or_else(|| json!({}), |last| json!({"terminated": terminated(last)})),
    })
}

fn state(state: &ContainerState) -> Value {
    match state {
        ContainerState::Waiting { reason, message } => {
            let mut waiting = json!({"reason": reason.as_str()});
            if !message.is_empty() {
                waiting["message"] = json!(message);
            }
            json!({"waiting": waiting})
        }
        ContainerState::Running { started_at } => json!({"running": {"startedAt": time::from_millis(*started_at)}}),
        ContainerState::Terminated(end) => json!({"terminated": terminated(end)}),
    }
}

fn terminated(end: &Termination) -> Value {
    let mut out = json!({
        "exitCode": end.exit_code,
        "reason": end.reason.as_str(),
        "startedAt": time::from_millis(end.started_at),
        "finishedAt": time::from_millis(end.finished_at),
    });
    if end.signal != 0 {
        out["signal"] = json!(end.signal);
    }
    if !end.message.is_empty() {
        out["message"] = json!(end.message);
    }
    out
}

#[cfg(test)]
mod tests {
    use skeg_protocol::Uid;
    use skeg_protocol::status::{PodCondition, reason};

    use super::*;

    fn report(state: ContainerState, last: Option<Termination>) -> PodStatus {
        let ready = matches!(state, ContainerState::Running { .. });
        let kinds = [ConditionKind::PodScheduled, ConditionKind::Ready];
        let conditions = kinds.map(|kind| PodCondition {
            kind,
            holds: ready || kind == ConditionKind::PodScheduled,
            since: 0,
            reason: reason(if ready { "" } else { "ContainersNotReady" }),
            message: String::new(),
        });
        PodStatus {
            ips: vec![[10, 42, 0, 7].into()],
            uid: Uid([1; 16]),
            phase: Phase::Running,
            reason: reason(""),
            message: String::new(),
            started_at: 1_700_000_000_000,
            conditions: conditions.to_vec(),
            init_containers: Vec::new(),
            containers: vec![ContainerStatus {
                name: heapless::String::try_from("web").unwrap(),
                state,
                last,
                restarts: 2,
                image: None,
                started: ready,
                ready,
            }],
        }
    }

    #[test]
    fn a_crash_loop_reads_as_kubectl_expects_it() {
        let pod = json!({"spec": {"containers": [{"name": "web", "image": "demo:1"}]}});
        let end = Termination {
            exit_code: 137,
            signal: 9,
            reason: reason("OOMKilled"),
            message: String::new(),
            started_at: 0,
            finished_at: 1000,
        };
        let waiting = ContainerState::Waiting { reason: reason("CrashLoopBackOff"), message: "back-off 10s".into() };
        let status = from_device(&pod, &report(waiting, Some(end)), Some("10.0.0.9"), Timestamp::UNIX_EPOCH);
        let container = &status["containerStatuses"][0];
        assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
        assert_eq!(container["lastState"]["terminated"]["reason"], "OOMKilled");
        assert_eq!(container["lastState"]["terminated"]["finishedAt"], "1970-01-01T00:00:01Z");
        assert_eq!(container["image"], "demo:1");
        assert_eq!(status["hostIP"], "10.0.0.9");
        assert_eq!(status["conditions"][1]["status"], "False");
    }

    #[test]
    fn conditions_keep_their_time_until_they_change() {
        let pod = json!({"spec": {"containers": [{"name": "web"}]}});
        let running = || report(ContainerState::Running { started_at: 0 }, None);
        let first = from_device(&pod, &running(), None, Timestamp::UNIX_EPOCH);
        let mut pod = pod;
        pod["status"] = first.clone();
        let later = Timestamp::from_second(99).unwrap();
        assert_eq!(from_device(&pod, &running(), None, later), first);
    }
}
