//! The agent's side: takes projects, keeps them, and says what image references mean.

use std::rc::Rc;

use serde_json::{Value, json};
use skeg_images::Reference;
use skeg_protocol::message::{Channel, ImageQuestion, ProjectRequest, StreamEnd};
use skeg_protocol::{Digest, Label, Manifest, Uid};
use tokio::task::{spawn_blocking, spawn_local};

use super::Project;
use crate::agent::Agent;
use crate::apply::{Images, chain};
use crate::peer::{Stream, StreamEvent};

/// Largest manifest of a project in bytes.
const MOST_BYTES: usize = 16 << 20;
/// Folder whose documents are taken up when the agent starts.
pub(super) const MANIFESTS: &str = "/etc/skeg/manifests";

/// Serves one request to its end.
///
/// # Errors
/// What could not be done, and why.
pub async fn serve(agent: &Rc<Agent>, stream: &mut Stream, request: ProjectRequest) -> Result<StreamEnd, String> {
    let answer = match request {
        ProjectRequest::Resolve(questions) => resolve(&agent.host.images, questions).await?,
        ProjectRequest::Apply { project } => {
            let Some(bytes) = receive(stream).await? else { return Ok(StreamEnd::Cancelled) };
            let manifest: Manifest = postcard::from_bytes(&bytes).map_err(|error| format!("the manifest: {error}"))?;
            apply(agent, &project, manifest).await?
        }
        ProjectRequest::Remove { project } => {
            let known = agent.projects.borrow_mut().remove(&project).map_err(|error| error.to_string())?;
            agent.want();
            json!({ "removed": known })
        }
        ProjectRequest::List => list(agent),
        ProjectRequest::Stop(pods) => set_stopped(agent, &pods, true)?,
        ProjectRequest::Start(pods) => set_stopped(agent, &pods, false)?,
    };
    match stream.sender().send(Channel::Stdout, answer.to_string().as_bytes()).await {
        Ok(()) => Ok(StreamEnd::Done),
        Err(_) => Ok(StreamEnd::Cancelled),
    }
}

/// All that comes on stdin; `None` where the stream was closed before its end.
async fn receive(stream: &mut Stream) -> Result<Option<Vec<u8>>, String> {
    let mut out = Vec::new();
    loop {
        match stream.next().await {
            Some(StreamEvent::Data(_, bytes)) if bytes.is_empty() => return Ok(Some(out)),
            Some(StreamEvent::Data(_, bytes)) => out.extend_from_slice(&bytes),
            Some(StreamEvent::Resize { .. }) => {}
            Some(StreamEvent::Closed(_)) | None => return Ok(None),
        }
        if out.len() > MOST_BYTES {
            return Err(format!("the manifest has more than {MOST_BYTES} bytes"));
        }
    }
}

async fn apply(agent: &Rc<Agent>, name: &Label, manifest: Manifest) -> Result<Value, String> {
    if !skeg_protocol::id::is_label(name) {
        return Err(format!("the project's name {name:?} must be a DNS label"));
    }
    manifest.validate().map_err(|invalid| invalid.to_string())?;
    let jobs = manifest.jobs.iter().map(|job| ("Job", &job.namespace, &job.name));
    let jobs = jobs.chain(manifest.cron_jobs.iter().map(|job| ("CronJob", &job.namespace, &job.name)));
    if let Some((kind, namespace, name)) = jobs.into_iter().next() {
        return Err(format!("{kind} {namespace}/{name}: this device does not run jobs yet"));
    }
    let project = Project { manifest, ..Project::default() };
    let mut all = agent.projects.borrow().all().clone();
    all.insert(name.clone(), project.clone());
    let (merged, left) = super::merge(&agent.held.borrow(), all.iter());
    let mine = format!("of project {name}");
    if let Some(clash) = left.iter().find(|clash| clash.contains(&mine)) {
        return Err(clash.clone());
    }
    merged.validate().map_err(|invalid| format!("together with what else runs here: {invalid}"))?;
    let pods = project.manifest.pods.len();
    // Small, and a person waits for it: it is written here.
    agent.projects.borrow_mut().store(name, project).map_err(|error| error.to_string())?;
    log::info!("project {name} with {pods} pods is wanted from now on");
    agent.want();
    Ok(json!({ "pods": pods }))
}

fn list(agent: &Agent) -> Value {
    let projects = agent.projects.borrow();
    let entry = |(name, project): (&Label, &Project)| {
        let uids = |pods: &mut dyn Iterator<Item = Uid>| pods.map(|uid| uid.to_string()).collect::<Vec<_>>();
        let pods = uids(&mut project.manifest.pods.iter().map(|pod| pod.uid));
        json!({ "name": name, "pods": pods, "stopped": uids(&mut project.stopped.iter().copied()) })
    };
    projects.all().iter().map(entry).collect()
}

/// Stops or starts pods of projects: all of them, or none.
fn set_stopped(agent: &Agent, pods: &[Uid], stopped: bool) -> Result<Value, String> {
    let all = agent.projects.borrow().all().clone();
    for uid in pods {
        if !all.values().any(|project| project.manifest.pod(*uid).is_some()) {
            return Err(format!("pod {uid} is of no project of this device; what the controller wants is its own"));
        }
    }
    for (name, mut project) in all {
        let own: Vec<Uid> = pods.iter().copied().filter(|uid| project.manifest.pod(*uid).is_some()).collect();
        for uid in own {
            if stopped {
                project.stopped.insert(uid);
            } else {
                project.stopped.remove(&uid);
            }
        }
        agent.projects.borrow_mut().store(&name, project).map_err(|error| error.to_string())?;
    }
    agent.want();
    Ok(json!({ "pods": pods.len() }))
}

/// What each reference means, in order.
async fn resolve(images: &Images, questions: Vec<ImageQuestion>) -> Result<Value, String> {
    let mut digests = Vec::new();
    for question in questions {
        digests.push(resolve_one(images, &question).await?.to_string());
    }
    Ok(digests.into())
}

async fn resolve_one(images: &Images, question: &ImageQuestion) -> Result<Digest, String> {
    let ImageQuestion { reference, anew, here_only } = question;
    let here = || async {
        let (store, name) = (images.store.clone(), whole(reference)?);
        let found = spawn_blocking(move || store.find(&name)).await.map_err(|error| error.to_string())?;
        let found = found.map_err(|error| chain(&error))?;
        Ok::<_, String>(found.first().map(|digest| Digest(digest.0)))
    };
    if *here_only {
        return here()
            .await?
            .ok_or_else(|| format!("image {reference:?} is not on this device, and may not be pulled"));
    }
    if !*anew && let Some(digest) = here().await? {
        return Ok(digest);
    }
    match (images.resolve(reference).await, anew) {
        (Ok(image), _) => Ok(image.digest),
        // A device without a network goes on with what it has.
        (Err(problem), true) => match here().await? {
            Some(digest) => {
                log::warn!("{problem}; the image that is here is taken");
                Ok(digest)
            }
            None => Err(problem),
        },
        (Err(problem), false) => Err(problem),
    }
}

/// A reference with its tag, so that it cannot be taken for the first digits of a digest.
fn whole(reference: &str) -> Result<String, String> {
    let parsed: Reference = reference.parse().map_err(|error| chain(&error))?;
    let plain = parsed.digest().is_none() && parsed.tag().is_none();
    Ok(if plain { format!("{reference}:latest") } else { reference.to_owned() })
}

/// Has the documents of `/etc/skeg/manifests` taken up by a command of its own, for YAML is not the agent's to read.
pub fn boot(agent: &Agent) {
    if !std::path::Path::new(MANIFESTS).is_dir() {
        return;
    }
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command.args(["apply", "--no-wait", "--run-dir"]).arg(&agent.host.folders.run);
    // Without a file the agent has the defaults, and so has the command.
    if agent.host.config.path.exists() {
        command.arg("--config").arg(&agent.host.config.path);
    }
    command.kill_on_drop(true).stdin(std::process::Stdio::null());
    spawn_local(async move {
        match command.status().await {
            Ok(status) if status.success() => {}
            Ok(status) => log::error!("taking up {MANIFESTS}: the command ended with {status}"),
            Err(error) => log::error!("taking up {MANIFESTS}: {error}"),
        }
    });
}
