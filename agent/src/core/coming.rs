//! Pods that are to take the place of others: their images come first, so that nothing old is stopped for something
//! new that cannot run. Pure, like all of the core.

use std::sync::Arc;
use std::time::Duration;

use skeg_protocol::status::{ConditionKind, PodCondition, reason};
use skeg_protocol::{ContainerState, ContainerStatus, Label, Phase as PodPhase, Pod, PodStatus};

use super::supervise::{ImageFailure, doubling, image_state};
use super::{Now, Order};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Fetch {
    UnderWay,
    Here,
    Failed { until: Duration, failure: ImageFailure },
}

/// A pod whose images are being made ready.
#[derive(Debug)]
pub(super) struct Coming {
    pub(super) pod: Arc<Pod>,
    since: i64,
    images: Vec<(Label, Fetch, u32)>,
}

impl Coming {
    pub(super) fn new(pod: Arc<Pod>, now: Now, orders: &mut Vec<Order>) -> Coming {
        let images = pod.all_containers().map(|one| (one.name.clone(), Fetch::UnderWay, 0)).collect();
        orders.extend(pod.all_containers().map(|one| Order::Fetch(Arc::clone(&pod), one.name.clone())));
        Coming { pod, since: now.wall, images }
    }

    /// Every image is here.
    pub(super) fn is_whole(&self) -> bool {
        self.images.iter().all(|(_, fetch, _)| *fetch == Fetch::Here)
    }

    /// An image came, or did not.
    pub(super) fn fetched(&mut self, container: &str, result: Result<(), ImageFailure>, now: Now) {
        for (name, fetch, failures) in &mut self.images {
            if name == container && *fetch == Fetch::UnderWay {
                *fetch = match result.clone() {
                    Ok(()) => Fetch::Here,
                    Err(failure) => {
                        *failures = failures.saturating_add(1);
                        Fetch::Failed { until: now.monotonic + doubling(*failures), failure }
                    }
                };
            }
        }
    }

    /// Tries again what is due; `at_once`, because an image came to the device by itself.
    pub(super) fn retry(&mut self, at_once: bool, now: Now, orders: &mut Vec<Order>) {
        for (name, fetch, _) in &mut self.images {
            if matches!(fetch, Fetch::Failed { until, .. } if at_once || *until <= now.monotonic) {
                *fetch = Fetch::UnderWay;
                orders.push(Order::Fetch(Arc::clone(&self.pod), name.clone()));
            }
        }
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        let until = |(_, fetch, _): &(Label, Fetch, u32)| match fetch {
            Fetch::Failed { until, .. } => Some(*until),
            Fetch::UnderWay | Fetch::Here => None,
        };
        self.images.iter().filter_map(until).min()
    }

    pub(super) fn status(&self) -> PodStatus {
        let one = |(name, fetch, failures): &(Label, Fetch, u32)| ContainerStatus {
            name: name.clone(),
            state: match fetch {
                Fetch::Failed { failure, .. } => image_state(failure, *failures),
                Fetch::UnderWay | Fetch::Here => ContainerState::Waiting {
                    reason: reason("ContainerCreating"),
                    message: "its images come before the pod in whose place it goes is stopped".to_owned(),
                },
            },
            last: None,
            restarts: 0,
            image: None,
            started: false,
            ready: false,
        };
        let inits = self.pod.init_containers.len();
        let condition = |kind, holds| {
            let word = if holds { "" } else { "ContainersNotReady" };
            PodCondition { kind, holds, since: self.since, reason: reason(word), message: String::new() }
        };
        PodStatus {
            ips: Vec::new(),
            uid: self.pod.uid,
            phase: PodPhase::Pending,
            reason: reason(""),
            message: String::new(),
            started_at: self.since,
            conditions: vec![
                condition(ConditionKind::PodScheduled, true),
                condition(ConditionKind::Initialized, inits == 0),
                condition(ConditionKind::ContainersReady, false),
                condition(ConditionKind::Ready, false),
            ],
            init_containers: self.images[..inits].iter().map(one).collect(),
            containers: self.images[inits..].iter().map(one).collect(),
        }
    }
}
