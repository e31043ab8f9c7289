//! The controller's revision and the device's own projects as one wanted state. Pure.
//!
//! The controller's word counts more: an item of a project that clashes with one of its revision is left out. Among
//! projects the first by name has the item; whoever hands in a project that clashes is told so and refused.

use std::collections::BTreeSet;

use skeg_protocol::manifest::HostPorts;
use skeg_protocol::{Label, Manifest, Pod};

use super::projects::Project;

/// Puts projects beside a revision. The second value says what was left out and why.
pub fn merge<'a>(
    revision: &Manifest,
    projects: impl Iterator<Item = (&'a Label, &'a Project)> + Clone,
) -> (Manifest, Vec<String>) {
    let mut out = revision.clone();
    let mut left = Vec::new();
    let pods = projects.clone().flat_map(|(name, project)| {
        let wanted = project.manifest.pods.iter().filter(|pod| !project.stopped.contains(&pod.uid));
        wanted.map(move |pod| (name, pod))
    });
    let pods = free_pods(revision, pods, &mut left);
    out.pods.extend(pods.into_iter().cloned());
    for (name, Project { manifest, .. }) in projects {
        let mut clash =
            |kind: &str, item: String| left.push(format!("{kind} {item} of project {name} is there already"));
        join(
            &mut out.data,
            &manifest.data,
            |data| (data.kind, data.namespace.clone(), data.name.clone()),
            |data| {
                clash(
                    if data.kind == Default::default() { "config map" } else { "secret" },
                    full(&data.namespace, &data.name),
                );
            },
        );
        let key = |service: &skeg_protocol::manifest::Service| (service.namespace.clone(), service.name.clone());
        join(&mut out.services, &manifest.services, key, |one| clash("service", full(&one.namespace, &one.name)));
        let key = |network: &skeg_protocol::manifest::Network| (network.namespace.clone(), network.name.clone());
        join(&mut out.networks, &manifest.networks, key, |one| clash("network", full(&one.namespace, &one.name)));
        join(&mut out.jobs, &manifest.jobs, |job| job.uid, |one| clash("job", full(&one.namespace, &one.name)));
        join(
            &mut out.cron_jobs,
            &manifest.cron_jobs,
            |job| job.uid,
            |one| {
                clash("cron job", full(&one.namespace, &one.name));
            },
        );
    }
    out.pods.sort_by_key(|pod| pod.uid);
    (out, left)
}

fn full(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// The pods whose name, uid and host ports nobody before them has.
fn free_pods<'a>(
    revision: &'a Manifest,
    pods: impl Iterator<Item = (&'a Label, &'a Pod)>,
    left: &mut Vec<String>,
) -> Vec<&'a Pod> {
    let mut names: BTreeSet<_> = revision.pods.iter().map(|pod| (&pod.namespace, &pod.name)).collect();
    let mut uids: BTreeSet<_> = revision.pods.iter().map(|pod| pod.uid).collect();
    let mut ports = HostPorts::default();
    for pod in &revision.pods {
        // A revision was checked when it came.
        ports.add(pod).ok();
    }
    let mut out = Vec::new();
    for (project, pod) in pods {
        let known = !names.insert((&pod.namespace, &pod.name)) || !uids.insert(pod.uid);
        let problem = if known { Some("there is one of that name already".to_owned()) } else { None };
        let problem = problem.or_else(|| ports.add(pod).err().map(|invalid| invalid.problem));
        match problem {
            None => out.push(pod),
            Some(problem) => {
                left.push(format!("pod {} of project {project}: {problem}", full(&pod.namespace, &pod.name)));
            }
        }
    }
    out
}

/// Adds items under keys that are free, and keeps the order.
fn join<T: Clone, K: Ord>(into: &mut Vec<T>, items: &[T], key: impl Fn(&T) -> K, mut clash: impl FnMut(&T)) {
    let (taken, free): (Vec<&T>, Vec<&T>) =
        items.iter().partition(|item| into.iter().any(|other| key(other) == key(item)));
    taken.into_iter().for_each(&mut clash);
    into.extend(free.into_iter().cloned());
    into.sort_by_key(key);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use skeg_protocol::manifest::Port;

    use super::*;
    use crate::core::tests::pod;

    fn project(pods: Vec<Pod>) -> Project {
        Project { manifest: Manifest { pods, ..Manifest::default() }, ..Project::default() }
    }

    fn with_port(mut pod: Pod) -> Pod {
        pod.containers[0].ports.push(Port { container_port: 80, host_port: Some(8080), ..Port::default() });
        pod
    }

    #[test]
    fn the_controllers_word_counts_more_than_a_projects() {
        let revision = Manifest { revision: 7, pods: vec![with_port(pod(5, "web", &["m"]))], ..Manifest::default() };
        let projects: BTreeMap<Label, Project> = [
            ("a".try_into().unwrap(), project(vec![pod(1, "web", &["m"]), pod(2, "own", &["m"])])),
            ("b".try_into().unwrap(), project(vec![with_port(pod(3, "port", &["m"])), pod(4, "own", &["m"])])),
        ]
        .into();
        let (merged, left) = merge(&revision, projects.iter());
        assert_eq!(merged.pods.iter().map(|pod| pod.uid.0[0]).collect::<Vec<_>>(), [2, 5]);
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(left[1].contains("host port 8080 is already published"), "{left:?}");
        assert_eq!(merged.revision, 7);
        merged.validate().unwrap();
    }

    #[test]
    fn what_is_stopped_is_not_wanted() {
        let mut stopped = project(vec![pod(1, "web", &["m"])]);
        stopped.stopped.insert(stopped.manifest.pods[0].uid);
        let projects: BTreeMap<Label, Project> = [("a".try_into().unwrap(), stopped)].into();
        assert!(merge(&Manifest::default(), projects.iter()).0.pods.is_empty());
    }
}
