//! Files as people write them, read for this device: Compose projects and Kubernetes' documents, as a bundle.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::Value;
use skeg_images::Reference;
use skeg_kube::{Bundle, Files, MAX_FILE, Node, Request, convert_compose, convert_documents, yaml};
use skeg_protocol::Label;
use skeg_protocol::manifest::Image;

use crate::config::Config;

/// Names under which Compose looks for a file, and for one that goes over it.
const COMPOSE_FILES: [&str; 4] = ["compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"];
const OVER: [&str; 4] =
    ["compose.override.yaml", "compose.override.yml", "docker-compose.override.yml", "docker-compose.override.yaml"];

/// Which files are meant.
#[derive(Debug, Default, clap::Args)]
pub struct Sources {
    /// Compose files, later ones over earlier ones, or files of Kubernetes' documents; without one compose.yaml here
    #[arg(short, long = "file", value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Name of the project, in place of what the files say
    #[arg(short, long, value_name = "NAME")]
    pub project: Option<String>,
    /// Profile of a Compose file that is active; * for all
    #[arg(long, value_name = "NAME")]
    pub profile: Vec<String>,
}

/// Reads from this machine's disk.
struct Disk;

impl Files for Disk {
    fn read(&self, path: &str) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        // One byte more than may be, so that what is too large is not taken for whole.
        let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes));
        read.map(|_| bytes).map_err(|error| error.to_string())
    }

    fn exists(&self, path: &str) -> bool {
        Path::new(path).exists()
    }
}

fn image(reference: &str) -> Result<Image, String> {
    reference.parse::<Reference>().map_err(|error| crate::apply::chain(&error))?;
    Ok(Image { reference: reference.to_owned(), ..Image::default() })
}

/// This device as node selectors see it.
fn node(config: &Config) -> Node {
    let name = config.node_name();
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let own = [("kubernetes.io/os", "linux"), ("kubernetes.io/arch", arch), ("kubernetes.io/hostname", &name)];
    let mut labels: BTreeMap<String, String> =
        own.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
    labels.extend(config.labels.clone());
    Node { name, labels }
}

fn absolute(path: &Path) -> anyhow::Result<String> {
    let path = std::path::absolute(path).with_context(|| format!("making {} absolute", path.display()))?;
    path.into_os_string().into_string().map_err(|path| anyhow::anyhow!("{path:?} is not UTF-8"))
}

/// Reads one project.
///
/// # Errors
/// The file and field that is wrong.
pub fn project(sources: &Sources, config: &Config) -> anyhow::Result<(Label, Bundle)> {
    let files = if sources.files.is_empty() { found()? } else { sources.files.clone() };
    let files = files.iter().map(|path| absolute(path)).collect::<anyhow::Result<Vec<String>>>()?;
    let kinds = files.iter().map(|path| is_compose(path)).collect::<anyhow::Result<Vec<bool>>>()?;
    if kinds.iter().all(|compose| *compose) {
        return compose(files, sources);
    }
    if kinds.contains(&true) {
        bail!("Compose files and Kubernetes' documents are different projects: name them one after the other");
    }
    let documents = documents(&files)?;
    let stem = Path::new(&files[0]).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let name = sources.project.clone().unwrap_or_else(|| stem.to_ascii_lowercase().replace(['_', '.'], "-"));
    Ok((label(&name)?, convert_documents(&documents, &node(config), &image)?))
}

fn compose(files: Vec<String>, sources: &Sources) -> anyhow::Result<(Label, Bundle)> {
    let (project, profiles) = (sources.project.clone(), sources.profile.clone());
    let composed =
        convert_compose(&Request { files, project, profiles, variables: std::env::vars().collect() }, &Disk, &image)?;
    Ok((label(&composed.project)?, composed.bundle))
}

fn label(name: &str) -> anyhow::Result<Label> {
    let label = Label::try_from(name).ok().filter(|label| skeg_protocol::id::is_label(label));
    label.with_context(|| format!("the project's name {name:?} must be a DNS label; give it one with --project"))
}

/// The Compose file of this folder, and what goes over it.
fn found() -> anyhow::Result<Vec<PathBuf>> {
    let first = |names: &[&str]| names.iter().map(PathBuf::from).find(|path| path.exists());
    let file = first(&COMPOSE_FILES)
        .with_context(|| format!("there is no {} here; name a file with --file", COMPOSE_FILES[0]))?;
    Ok([Some(file), first(&OVER)].into_iter().flatten().collect())
}

fn text(path: &str) -> anyhow::Result<String> {
    let bytes = Disk.read(path).map_err(anyhow::Error::msg).with_context(|| path.to_owned())?;
    if bytes.len() as u64 > MAX_FILE {
        bail!("{path}: is larger than {MAX_FILE} bytes");
    }
    String::from_utf8(bytes).with_context(|| format!("{path}: is no text in UTF-8"))
}

/// A Compose file has services (or includes others) and no kind.
fn is_compose(path: &str) -> anyhow::Result<bool> {
    let documents = yaml::parse(&text(path)?).with_context(|| path.to_owned())?;
    let kind = |document: &Value| document.get("kind").is_some();
    Ok(!documents.iter().any(kind)
        && documents.iter().any(|one| ["services", "include"].iter().any(|key| one.get(key).is_some())))
}

fn documents(files: &[String]) -> anyhow::Result<Vec<Value>> {
    let mut out = Vec::new();
    for path in files {
        out.extend(yaml::parse(&text(path)?).with_context(|| path.clone())?);
    }
    Ok(out)
}

/// Reads a folder of documents as one bundle: Kubernetes' ones together, each Compose file in a namespace of its own.
///
/// # Errors
/// The file and field that is wrong; nothing of the folder is taken then.
pub fn folder(folder: &Path, config: &Config) -> anyhow::Result<Bundle> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry.with_context(|| folder.display().to_string())?.path();
        let kind = path.extension().and_then(|extension| extension.to_str());
        if matches!(kind, Some("yaml" | "yml" | "json")) {
            files.push(absolute(&path)?);
        }
    }
    files.sort();
    let (mut plain, mut out) = (Vec::new(), Bundle::default());
    for path in files {
        if is_compose(&path)? {
            let name = Path::new(&path).file_stem().and_then(|stem| stem.to_str()).map(str::to_owned);
            out.extend(compose(vec![path], &Sources { project: name, ..Sources::default() })?.1);
        } else {
            plain.push(path);
        }
    }
    out.extend(convert_documents(&documents(&plain)?, &node(config), &image)?);
    Ok(out)
}
