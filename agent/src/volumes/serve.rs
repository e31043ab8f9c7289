//! Carries out what is asked about the volumes that outlive pods.

use std::io;

use serde_json::{Value, json};
use skeg_protocol::Pod;
use skeg_protocol::message::{Channel, StreamEnd, VolumeRequest};
use tokio::task::spawn_blocking;

use super::persistent::{Named, Persistent, uses};
use crate::agent::Agent;
use crate::peer::Sender;

/// Serves a stream: the answer on stdout.
///
/// # Errors
/// What could not be done, and why.
pub async fn serve(agent: &Agent, sender: &Sender, request: VolumeRequest) -> Result<StreamEnd, String> {
    let pods: Vec<Pod> = {
        let node = agent.node.borrow();
        let (wanted, _) = agent.wanted();
        // One that is wanted may be about to start; one that is there may be on its way out.
        node.pods().map(|(pod, _)| pod.as_ref()).chain(&wanted.pods).cloned().collect()
    };
    let volumes = agent.host.folders.persistent();
    let answer = spawn_blocking(move || carry_out(&volumes, &pods, request));
    let answer = answer.await.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))?;
    match sender.send(Channel::Stdout, answer.to_string().as_bytes()).await {
        Ok(()) => Ok(StreamEnd::Done),
        Err(_) => Ok(StreamEnd::Cancelled),
    }
}

fn carry_out(volumes: &Persistent, pods: &[Pod], request: VolumeRequest) -> Result<Value, String> {
    let all = volumes.list().map_err(|error| format!("listing the volumes: {error}"))?;
    let measured = |volume: &Named| {
        let usage = volumes.usage(volume).map_err(|error| format!("volume {}: {error}", full(volume)))?;
        let mut shown = shown(volume, pods);
        shown["bytes"] = usage.bytes.into();
        shown["files"] = usage.files.into();
        Ok::<_, String>(shown)
    };
    match request {
        VolumeRequest::List => Ok(all.iter().map(|volume| shown(volume, pods)).collect()),
        VolumeRequest::Usage => all.iter().map(measured).collect(),
        VolumeRequest::Inspect { volumes: wanted } => {
            let inspect = |name: &String| {
                let volume = find(&all, name)?;
                let mut shown = measured(volume)?;
                shown["path"] = volumes.path(&volume.namespace, &volume.name).display().to_string().into();
                Ok(shown)
            };
            wanted.iter().map(inspect).collect()
        }
        VolumeRequest::Remove { volumes: wanted } => {
            let found: Vec<&Named> = wanted.iter().map(|name| find(&all, name)).collect::<Result<_, _>>()?;
            // All or none: nothing is removed where one of them is used.
            if let Some((volume, users)) =
                found.iter().map(|one| (one, users(one, pods))).find(|(_, users)| !users.is_empty())
            {
                let (volume, users) = (full(volume), users.join(", "));
                return Err(format!("volume {volume} is used by {users}; remove what uses it first"));
            }
            for volume in &found {
                match volumes.remove(volume) {
                    // Named twice.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    removed => removed.map_err(|error| format!("removing volume {}: {error}", full(volume)))?,
                }
            }
            Ok(json!({"removed": found.into_iter().map(full).collect::<Vec<_>>()}))
        }
    }
}

fn full(volume: &Named) -> String {
    format!("{}/{}", volume.namespace, volume.name)
}

fn users(volume: &Named, pods: &[Pod]) -> Vec<String> {
    let mut users: Vec<String> = pods.iter().filter(|pod| uses(pod, volume)).map(|pod| pod.name.to_string()).collect();
    users.sort();
    users.dedup();
    users
}

fn shown(volume: &Named, pods: &[Pod]) -> Value {
    json!({"namespace": volume.namespace, "name": volume.name, "pods": users(volume, pods)})
}

/// Finds a volume by `namespace/name`, or by its name where only one namespace has it.
fn find<'a>(all: &'a [Named], name: &str) -> Result<&'a Named, String> {
    let is = |volume: &&Named| volume.name == name || full(volume) == name;
    match all.iter().filter(is).collect::<Vec<_>>()[..] {
        [volume] => Ok(volume),
        [] => Err(format!("there is no volume {name:?} on this device; `skegd volume ls` lists them")),
        [one, other, ..] => Err(format!("{name:?} could be {} or {}", full(one), full(other))),
    }
}

#[cfg(test)]
mod tests {
    use skeg_protocol::manifest::{Volume, VolumeSource};

    use super::*;
    use crate::core::tests::pod;

    #[test]
    fn only_what_nobody_uses_is_removed_and_names_may_be_short() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Persistent::new(folder.path().to_owned());
        let mut user = pod(1, "web", &["main"]);
        for (namespace, name) in [(user.namespace.as_str(), "db"), ("other", "db"), ("other", "cache")] {
            volumes.make(namespace, name).unwrap();
        }
        let source = VolumeSource::Persistent { name: "db".to_owned(), read_only: false, like_image: false };
        user.volumes = vec![Volume { name: "data".try_into().unwrap(), source }];
        let pods = [user];
        let own = format!("{}/db", pods[0].namespace);
        let remove = |names: &[&str]| {
            let wanted = names.iter().map(|name| (*name).to_owned()).collect();
            carry_out(&volumes, &pods, VolumeRequest::Remove { volumes: wanted })
        };
        assert!(remove(&["db"]).unwrap_err().contains("could be"));
        assert!(remove(&["cache", &own]).unwrap_err().contains("is used by web"));
        assert!(remove(&["gone"]).unwrap_err().contains("there is no volume"));
        assert_eq!(volumes.list().unwrap().len(), 3, "all or none");
        assert_eq!(remove(&["cache", "other/db", "cache"]).unwrap()["removed"].as_array().unwrap().len(), 3);
        let left = carry_out(&volumes, &pods, VolumeRequest::Usage).unwrap();
        assert_eq!(
            (&left[0]["name"], &left[0]["pods"][0], &left[0]["files"]),
            (&"db".into(), &"web".into(), &0.into())
        );
        assert!(remove(&["db"]).unwrap_err().contains("is used by web"));
    }
}
