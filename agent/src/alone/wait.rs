//! Waits until pods are as they should be, and says what happens to them meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::bail;
use skeg_protocol::message::LocalPod;
use skeg_protocol::status::ConditionKind;
use skeg_protocol::{ContainerState, Phase, Uid};

use crate::commands::Client;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(300);

/// What a pod is like, in one line.
fn line(pod: &LocalPod) -> String {
    let states: Vec<String> = pod
        .status
        .init_containers
        .iter()
        .chain(&pod.status.containers)
        .map(|container| match &container.state {
            ContainerState::Waiting { reason, message } if message.is_empty() => reason.to_string(),
            ContainerState::Waiting { reason, message } => format!("{reason} ({message})"),
            ContainerState::Running { .. } if container.ready => "Running".to_owned(),
            ContainerState::Running { .. } => "Running, not ready".to_owned(),
            ContainerState::Terminated(end) => format!("{} ({})", end.reason, end.exit_code),
        })
        .collect();
    format!("{}/{}: {}", pod.namespace, pod.name, states.join(", "))
}

fn is_well(pod: &LocalPod) -> bool {
    pod.status.phase == Phase::Succeeded || pod.status.is(ConditionKind::Ready)
}

/// Waits until every one of these pods is ready or has ended well. Says the exit code: 1 where one has failed.
///
/// # Errors
/// The agent does not answer, or the time is up.
pub async fn ready(client: &mut Client, pods: &[Uid], patience: Duration) -> anyhow::Result<i32> {
    let begun = Instant::now();
    let mut told: BTreeMap<Uid, String> = BTreeMap::new();
    loop {
        let status = client.status().await?;
        let mine: Vec<&LocalPod> = status.pods.iter().filter(|pod| pods.contains(&pod.status.uid)).collect();
        for pod in &mine {
            let line = line(pod);
            if told.insert(pod.status.uid, line.clone()).as_ref() != Some(&line) {
                // Whoever has closed it does not want to read it.
                writeln!(std::io::stderr(), "{line}").ok();
            }
        }
        if mine.iter().any(|pod| pod.status.phase == Phase::Failed) {
            return Ok(1);
        }
        if mine.len() == pods.len() && mine.iter().all(|pod| is_well(pod)) {
            return Ok(0);
        }
        if begun.elapsed() > patience {
            bail!(
                "{} of {} pods are not ready after {} s",
                pods.len() - mine.iter().filter(|pod| is_well(pod)).count(),
                pods.len(),
                patience.as_secs()
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until none of these pods is on the device.
///
/// # Errors
/// The agent does not answer, or the time is up.
pub async fn gone(client: &mut Client, pods: &[Uid], patience: Duration) -> anyhow::Result<()> {
    let begun = Instant::now();
    let pods: BTreeSet<Uid> = pods.iter().copied().collect();
    loop {
        let status = client.status().await?;
        let left = status.pods.iter().filter(|pod| pods.contains(&pod.status.uid)).count();
        if left == 0 {
            return Ok(());
        }
        if begun.elapsed() > patience {
            bail!("{left} pods are still there after {} s", patience.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}
