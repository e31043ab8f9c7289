//! The words of `skegd up`, `down`, `apply` and their like.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use skeg_kube::{Bundle, show};
use skeg_protocol::manifest::{Manifest, PullPolicy};
use skeg_protocol::message::{Channel, ImageQuestion, ProjectRequest, StreamEnd, StreamRequest};
use skeg_protocol::{Digest, Label, Uid};

use super::read::{self, Sources};
use super::serve::MANIFESTS;
use super::wait;
use crate::Place;
use crate::commands::{Client, columns, print};
use crate::peer::StreamEvent;

/// The project that `/etc/skeg/manifests` is.
const FOLDER_PROJECT: &str = "etc-skeg-manifests";

/// What is to be done with projects: manifests of this device itself.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Brings up what files ask for, and waits until it is ready
    Up {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        sources: Sources,
        #[command(flatten)]
        patience: Patience,
    },
    /// Ends a project's pods and forgets it; its volumes stay
    Down {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        sources: Sources,
    },
    /// Brings the device in step with the documents of a folder
    Apply {
        #[command(flatten)]
        place: Place,
        /// Folder of Compose files and Kubernetes' documents
        #[arg(default_value = MANIFESTS)]
        folder: PathBuf,
        #[command(flatten)]
        patience: Patience,
    },
    /// Prints what files ask for, as JSON
    Config {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        sources: Sources,
    },
    /// Lists the projects
    Projects {
        #[command(flatten)]
        place: Place,
    },
    /// Ends pods of projects, and leaves them ended until they are started
    Stop {
        #[command(flatten)]
        place: Place,
        /// Projects, or pods as NAME or NAMESPACE/NAME
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Starts pods again that were stopped
    Start {
        #[command(flatten)]
        place: Place,
        /// Projects, or pods as NAME or NAMESPACE/NAME
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        patience: Patience,
    },
    /// Ends pods and starts them again
    Restart {
        #[command(flatten)]
        place: Place,
        /// Projects, or pods as NAME or NAMESPACE/NAME
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        patience: Patience,
    },
}

/// How long a command waits.
#[derive(Debug, clap::Args)]
pub struct Patience {
    /// Does not wait until the pods are ready
    #[arg(short = 'd', long)]
    no_wait: bool,
    /// Gives up waiting after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

/// Has a command carried out. Says the exit code: 0 where all is ready.
///
/// # Errors
/// What could not be done, and why.
pub async fn run(command: Command) -> anyhow::Result<i32> {
    match command {
        Command::Up { place, sources, patience } => {
            let config = place.config()?;
            let (name, bundle) = read::project(&sources, &config)?;
            let mut client = Client::connect(&config.run_dir).await?;
            bring_up(&mut client, &name, bundle, &patience).await
        }
        Command::Apply { place, folder, patience } => {
            let config = place.config()?;
            let bundle = read::folder(&folder, &config)?;
            let mut client = Client::connect(&config.run_dir).await?;
            let name = FOLDER_PROJECT.try_into().unwrap_or_default();
            bring_up(&mut client, &name, bundle, &patience).await
        }
        Command::Config { place, sources } => {
            let (name, bundle) = read::project(&sources, &place.config()?)?;
            let mut shown = show(&bundle);
            shown["project"] = name.as_str().into();
            print(format!("{shown:#}\n").as_bytes())?;
            Ok(0)
        }
        Command::Down { place, sources } => {
            let config = place.config()?;
            let name = match &sources.project {
                Some(name) if sources.files.is_empty() => {
                    name.as_str().try_into().map_err(|_| anyhow::anyhow!("project {name:?} is too long a name"))?
                }
                _ => read::project(&sources, &config)?.0,
            };
            down(&mut Client::connect(&config.run_dir).await?, name).await
        }
        Command::Projects { place } => projects(&Client::connect(&place.run_dir()?).await?).await,
        Command::Stop { place, names } => {
            let mut client = Client::connect(&place.run_dir()?).await?;
            let pods = find(&mut client, &names).await?;
            stop(&mut client, &pods).await?;
            Ok(0)
        }
        Command::Start { place, names, patience } => {
            let mut client = Client::connect(&place.run_dir()?).await?;
            let pods = find(&mut client, &names).await?;
            start(&mut client, &pods, &patience).await
        }
        Command::Restart { place, names, patience } => {
            let mut client = Client::connect(&place.run_dir()?).await?;
            let pods = find(&mut client, &names).await?;
            stop(&mut client, &pods).await?;
            start(&mut client, &pods, &patience).await
        }
    }
}

/// Hands a bundle in as a project.
async fn bring_up(client: &mut Client, name: &Label, mut bundle: Bundle, patience: &Patience) -> anyhow::Result<i32> {
    for note in &bundle.notes {
        eprintln!("note: {note}");
    }
    resolve(client, &mut bundle).await?;
    for folder in std::mem::take(&mut bundle.folders) {
        if !std::path::Path::new(&folder).exists() {
            std::fs::create_dir_all(&folder).with_context(|| format!("making the folder {folder} of a volume"))?;
        }
    }
    let manifest = bundle.into_manifest()?;
    let pods: Vec<Uid> = manifest.pods.iter().map(|pod| pod.uid).collect();
    send(client, name, &manifest).await?;
    if patience.no_wait {
        return Ok(0);
    }
    wait::ready(client, &pods, Duration::from_secs(patience.timeout)).await
}

/// Tells the images of a bundle what their references mean.
async fn resolve(client: &Client, bundle: &mut Bundle) -> anyhow::Result<()> {
    let mut questions: BTreeMap<String, ImageQuestion> = BTreeMap::new();
    let anew = std::mem::take(&mut bundle.ask_anew);
    for container in bundle.containers_mut() {
        let reference = container.image.reference.clone();
        let here_only = container.pull_policy == PullPolicy::Never;
        let question = ImageQuestion { anew: anew.contains(&reference), reference: reference.clone(), here_only };
        questions.entry(reference).and_modify(|known| known.here_only &= here_only).or_insert(question);
    }
    let references: Vec<String> = questions.keys().cloned().collect();
    let request = ProjectRequest::Resolve(questions.into_values().collect());
    let answer = ask(client, request, &[]).await?;
    let digests = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let mut known: BTreeMap<String, Digest> = BTreeMap::new();
    for (reference, digest) in references.into_iter().zip(digests) {
        let digest = digest.as_str().unwrap_or_default().parse().context("reading the agent's answer")?;
        known.insert(reference, digest);
    }
    for container in bundle.containers_mut() {
        let digest = known.get(&container.image.reference).copied();
        container.image.digest = digest.context("the agent has not answered for every image")?;
    }
    Ok(())
}

async fn send(client: &Client, name: &Label, manifest: &Manifest) -> anyhow::Result<()> {
    let bytes = postcard::to_allocvec(manifest).context("encoding the manifest")?;
    ask(client, ProjectRequest::Apply { project: name.clone() }, &bytes).await.map(drop)
}

/// Puts a request with what belongs to it, and gives the answer.
async fn ask(client: &Client, request: ProjectRequest, bytes: &[u8]) -> anyhow::Result<Value> {
    let mut stream = client.open(StreamRequest::Project(request))?;
    let sender = stream.sender();
    // A closed stream says below why it was closed.
    if sender.send(Channel::Stdin, bytes).await.is_ok() {
        sender.end_stdin();
    }
    let mut answer = Vec::new();
    loop {
        match stream.next().await {
            Some(StreamEvent::Data(_, bytes)) => answer.extend_from_slice(&bytes),
            Some(StreamEvent::Resize { .. }) => {}
            Some(StreamEvent::Closed(StreamEnd::Failed(message))) => bail!(message),
            Some(StreamEvent::Closed(_)) => return serde_json::from_slice(&answer).context("reading the answer"),
            None => bail!("the agent closed the connection"),
        }
    }
}

async fn down(client: &mut Client, name: Label) -> anyhow::Result<i32> {
    let pods = project_pods(client).await?.remove(name.as_str());
    let Some(pods) = pods else { bail!("there is no project {:?}; `skegd projects` lists them", name.as_str()) };
    ask(client, ProjectRequest::Remove { project: name }, &[]).await?;
    wait::gone(client, &pods, Duration::from_secs(300)).await?;
    Ok(0)
}

/// The pods of each project.
async fn project_pods(client: &Client) -> anyhow::Result<BTreeMap<String, Vec<Uid>>> {
    let list = ask(client, ProjectRequest::List, &[]).await?;
    let mut out = BTreeMap::new();
    for entry in list.as_array().into_iter().flatten() {
        let uids = entry["pods"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let uids = uids.map(str::parse).collect::<Result<Vec<Uid>, _>>().context("reading the agent's answer")?;
        out.insert(entry["name"].as_str().unwrap_or_default().to_owned(), uids);
    }
    Ok(out)
}

async fn projects(client: &Client) -> anyhow::Result<i32> {
    let list = ask(client, ProjectRequest::List, &[]).await?;
    let count = |list: &Value| list.as_array().map_or(0, Vec::len).to_string();
    let mut rows = vec![["PROJECT", "PODS", "STOPPED"].map(str::to_owned)];
    for entry in list.as_array().into_iter().flatten() {
        let name = entry["name"].as_str().unwrap_or_default().to_owned();
        rows.push([name, count(&entry["pods"]), count(&entry["stopped"])]);
    }
    print(columns(&rows).as_bytes())?;
    Ok(0)
}

/// The pods that are meant: of whole projects, or single ones.
async fn find(client: &mut Client, names: &[String]) -> anyhow::Result<Vec<Uid>> {
    let mut projects = project_pods(client).await?;
    let mut out = Vec::new();
    for name in names {
        match projects.remove(name) {
            Some(pods) => out.extend(pods),
            None => out.push(client.find_pod(name).await?),
        }
    }
    Ok(out)
}

async fn stop(client: &mut Client, pods: &[Uid]) -> anyhow::Result<()> {
    ask(client, ProjectRequest::Stop(pods.to_vec()), &[]).await?;
    wait::gone(client, pods, Duration::from_secs(300)).await
}

async fn start(client: &mut Client, pods: &[Uid], patience: &Patience) -> anyhow::Result<i32> {
    ask(client, ProjectRequest::Start(pods.to_vec()), &[]).await?;
    if patience.no_wait {
        return Ok(0);
    }
    wait::ready(client, pods, Duration::from_secs(patience.timeout)).await
}
