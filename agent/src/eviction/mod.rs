//! Who must go when the device runs short of memory, or a pod holds more of the disk than it may.
//!
//! Owns the watching and the choice; that a pod has failed and why is the core's. Thresholds, order and words are the
//! kubelet's (`eviction/helpers.go`). The kernel wakes it when memory is waited for (accounting/psi.rst); only where a
//! pod has a bound on the disk is that measured, now and then.

mod rank;

use std::fs::OpenOptions;
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use skeg_protocol::Pod;
use skeg_protocol::manifest::VolumeSource;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;

use crate::agent::Agent;
use crate::apply::Folders;
use crate::convert::{qos, requested_memory};
use crate::core::Event;
use crate::volumes::persistent::usage;
use rank::{Candidate, first};

/// What the kernel tells of: 200 ms in which something waited for memory, out of 2 s.
const TRIGGER: &[u8] = b"some 200000 2000000\0";
/// Time between two measurements of the disk.
const MEASURE: Duration = Duration::from_secs(60);
/// Time that an evicted pod has to give its memory back before another one goes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Watches for ever.
pub async fn watch(agent: Rc<Agent>) {
    let pressure = pressure().inspect_err(|error| log::warn!("the kernel tells no memory pressure: {error}")).ok();
    let threshold = threshold(agent.host.device.memory);
    loop {
        let bounded = agent.node.borrow().pods().any(|(pod, _)| is_bounded(pod));
        let measure = async {
            if bounded { tokio::time::sleep(MEASURE).await } else { agent.changes().changed().await.map_or((), drop) }
        };
        let pressed = async {
            match &pressure {
                Some(fd) => match fd.ready(Interest::PRIORITY).await {
                    Ok(mut ready) => ready.clear_ready(),
                    Err(_) => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pressed => {
                if relieve(&agent, threshold) {
                    tokio::time::sleep(PATIENCE).await;
                }
            }
            () = measure => if bounded { measure_disk(&agent).await },
        }
    }
}

/// A descriptor that becomes ready when memory is waited for.
fn pressure() -> std::io::Result<AsyncFd<std::os::fd::OwnedFd>> {
    let mut file = OpenOptions::new().read(true).write(true).open("/proc/pressure/memory")?;
    file.write_all(TRIGGER)?;
    crate::async_fd::watch(file.into(), Interest::PRIORITY)
}

/// Kubernetes' 100 MiB, and a twentieth of a smaller board.
fn threshold(memory: u64) -> u64 {
    (memory / 20).min(100 << 20)
}

fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map(|kib: u64| kib.saturating_mul(1024))
}

/// Evicts one pod where memory is short. Says whether it did.
fn relieve(agent: &Agent, threshold: u64) -> bool {
    let Some(available) = available().filter(|available| *available < threshold) else { return false };
    let candidates: Vec<(Arc<Pod>, Candidate)> = agent
        .node
        .borrow()
        .pods()
        .map(|(pod, _)| {
            let cgroup = format!("{}/{}", agent.host.config.cgroup, pod.uid);
            let used = crate::cgroups::open(&cgroup).and_then(|cgroup| cgroup.memory_usage());
            let asked = pod.containers.iter().map(requested_memory).fold(0, u64::saturating_add);
            let used = used.ok().flatten().unwrap_or(0);
            (Arc::clone(pod), Candidate { class: qos(pod), priority: pod.priority, used, asked })
        })
        .filter(|(_, candidate)| candidate.used > 0)
        .collect();
    let Some(index) = first(&candidates.iter().map(|(_, candidate)| *candidate).collect::<Vec<_>>()) else {
        return false;
    };
    let (pod, Candidate { used, asked, .. }) = &candidates[index];
    let message = format!(
        "The node was low on resource: memory. Threshold quantity: {threshold}, available: {available}. The pod was using \
         {used}, request is {asked}"
    );
    evict(agent, pod, message);
    true
}

fn evict(agent: &Agent, pod: &Pod, message: String) {
    log::warn!("pod {}/{} is evicted: {message}", pod.namespace, pod.name);
    // Without the loop the agent is ending.
    agent.host.events.send(Event::Evict { pod: pod.uid, message }).ok();
}

/// Whether something of a pod on the disk has a bound.
fn is_bounded(pod: &Pod) -> bool {
    let limited = |volume: &VolumeSource| matches!(volume, VolumeSource::EmptyDir(one) if !one.memory && one.size_limit.is_some_and(|size| size > 0));
    pod.volumes.iter().any(|volume| limited(&volume.source))
        || pod.all_containers().any(|one| one.limits.ephemeral_storage_bytes.is_some())
}

async fn measure_disk(agent: &Agent) {
    let pods: Vec<Arc<Pod>> = {
        let node = agent.node.borrow();
        node.pods().map(|(pod, _)| pod).filter(|pod| is_bounded(pod)).cloned().collect()
    };
    let folders = agent.host.folders.clone();
    let measured = spawn_blocking(move || {
        let excess = |pod: &Arc<Pod>| excess(&folders, pod).map(|message| (Arc::clone(pod), message));
        pods.iter().filter_map(excess).collect::<Vec<_>>()
    });
    match measured.await {
        Ok(over) => over.into_iter().for_each(|(pod, message)| evict(agent, &pod, message)),
        Err(error) => log::error!("measuring what pods hold of the disk: {error}"),
    }
}

/// What of a pod is over its bound, in the kubelet's words.
fn excess(folders: &Folders, pod: &Pod) -> Option<String> {
    // What can't be read, or goes away meanwhile, is measured the next time.
    let bytes = |folder: &std::path::Path| usage(folder).map_or(0, |usage| usage.bytes);
    let mut together = 0_u64;
    for volume in &pod.volumes {
        let VolumeSource::EmptyDir(one) = &volume.source else { continue };
        if one.memory {
            continue;
        }
        let used = bytes(&folders.volume(pod.uid, &volume.name));
        if let Some(limit) = one.size_limit.filter(|limit| *limit > 0 && used > *limit) {
            return Some(format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}.",
                volume.name.as_str(),
                limit.to_string()
            ));
        }
        together = together.saturating_add(used);
    }
    for container in pod.all_containers() {
        let used = bytes(&folders.container(pod.uid, &container.name))
            .saturating_add(bytes(&folders.container_log(pod, &container.name)));
        if let Some(limit) = container.limits.ephemeral_storage_bytes.filter(|limit| used > *limit) {
            return Some(format!(
                "Container {} exceeded its local ephemeral storage limit {:?}.",
                container.name,
                limit.to_string()
            ));
        }
        together = together.saturating_add(used);
    }
    // As in Kubernetes, the pod has a bound where all of its containers have.
    let limits: Option<Vec<u64>> = pod.containers.iter().map(|one| one.limits.ephemeral_storage_bytes).collect();
    let limit = limits?.into_iter().fold(0, u64::saturating_add);
    (together > limit)
        .then(|| format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}."))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use skeg_protocol::manifest::{EmptyDir, Volume};

    use super::*;
    use crate::core::tests::pod;

    #[test]
    fn what_is_over_its_bound_is_told_in_kubernetes_words() {
        let folder = tempfile::tempdir().unwrap();
        let folders =
            Folders { state: folder.path().join("state"), run: folder.path().join("run"), node_name: String::new() };
        let mut pod = pod(1, "web", &["main"]);
        let source = VolumeSource::EmptyDir(EmptyDir { size_limit: Some(100_000), ..EmptyDir::default() });
        pod.volumes = vec![Volume { name: "cache".try_into().unwrap(), source }];
        let (volume, log) = (folders.volume(pod.uid, "cache"), folders.container_log(&pod, "main"));
        let attempt = folders.attempt(pod.uid, "main", 0);
        for path in [&volume, &log, &attempt] {
            fs::create_dir_all(path).unwrap();
        }
        assert!(is_bounded(&pod));
        assert_eq!(excess(&folders, &pod), None);
        fs::write(volume.join("file"), vec![1; 60_000]).unwrap();
        assert_eq!(excess(&folders, &pod), None);
        pod.containers[0].limits.ephemeral_storage_bytes = Some(80_000);
        assert_eq!(excess(&folders, &pod), None);
        fs::write(log.join("0.log"), vec![1; 30_000]).unwrap();
        let all = "Pod ephemeral local storage usage exceeds the total limit of containers 80000.";
        assert_eq!(excess(&folders, &pod).as_deref(), Some(all));
        fs::write(attempt.join("file"), vec![1; 60_000]).unwrap();
        let container = "Container main exceeded its local ephemeral storage limit \"80000\".";
        assert_eq!(excess(&folders, &pod).as_deref(), Some(container));
        fs::write(volume.join("file"), vec![1; 120_000]).unwrap();
        let volume = "Usage of EmptyDir volume \"cache\" exceeds the limit \"100000\".";
        assert_eq!(excess(&folders, &pod).as_deref(), Some(volume));
        pod.containers[0].limits.ephemeral_storage_bytes = None;
        pod.volumes.clear();
        assert!(!is_bounded(&pod) && excess(&folders, &pod).is_none());
    }

    #[test]
    fn the_threshold_is_kubernetes_and_a_twentieth_of_a_small_board() {
        assert_eq!([512 << 20, 8 << 30].map(threshold), [(512 << 20) / 20, 100 << 20]);
        assert!(available().is_some_and(|bytes| bytes > 0));
    }
}
