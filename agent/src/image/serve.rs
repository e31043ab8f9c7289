//! Carries out what is asked about images, for a stream or for a command that runs without an agent.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use serde_json::{Value, json};
use skeg_images::{Digest, Goal, Listed, Progress, Store, Target, Usage};
use skeg_protocol::message::{Channel, ImageRequest, StreamEnd};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::agent::Agent;
use crate::apply::{Images, chain};
use crate::core::Event;
use crate::peer::Sender;

/// Where lines go that say how far a long command is.
pub type Lines = mpsc::UnboundedSender<String>;

/// Serves a stream: lines on stderr while it lasts, then the answer on stdout.
///
/// # Errors
/// What could not be done, and why.
pub async fn serve(agent: &Agent, sender: &Sender, request: ImageRequest) -> Result<StreamEnd, String> {
    let (lines, mut said) = mpsc::unbounded_channel();
    let brings = matches!(request, ImageRequest::Pull { .. } | ImageRequest::Import { .. });
    let work = carry_out(&agent.host.images, request, lines);
    tokio::pin!(work);
    let answer = loop {
        tokio::select! {
            Some(line) = said.recv() => {
                if sender.send(Channel::Stderr, line.as_bytes()).await.is_err() {
                    return Ok(StreamEnd::Cancelled);
                }
            }
            answer = &mut work => break answer?,
            () = sender.closed() => return Ok(StreamEnd::Cancelled),
        }
    };
    if brings {
        // A pod may wait for it. Without the loop the agent is ending.
        agent.host.events.send(Event::NewImages).ok();
    }
    match sender.send(Channel::Stdout, answer.to_string().as_bytes()).await {
        Ok(()) => Ok(StreamEnd::Done),
        Err(_) => Ok(StreamEnd::Cancelled),
    }
}

/// Carries a request out; returns its answer.
///
/// # Errors
/// What could not be done, and why.
pub async fn carry_out(images: &Images, request: ImageRequest, lines: Lines) -> Result<Value, String> {
    let store = images.store.clone();
    match request {
        ImageRequest::Pull { reference } => pull(images, &reference, &lines).await,
        ImageRequest::Remove { images } => remove(&store, &images).await,
        ImageRequest::Prune => prune(&store).await,
        ImageRequest::List => blocking(move || list(&store)).await,
        ImageRequest::Usage => blocking(move || usage(&store)).await,
        ImageRequest::Inspect { images } => blocking(move || inspect(&store, &images)).await,
        ImageRequest::Verify => blocking(move || verify(&store, &lines)).await,
        ImageRequest::Export { images, path } => blocking(move || export(&store, &images, &path)).await,
        ImageRequest::Import { path, name } => {
            let platform = images.platform.clone();
            let work = move || {
                let progress = |done, of| say(&lines, format_args!("layer {done} of {of}"));
                store.import(Path::new(&path), name.as_deref(), &platform, &progress).map_err(|error| chain(&error))
            };
            let imported = blocking(work).await?;
            let image = |(digest, names): &(Digest, Vec<String>)| json!({"digest": digest.to_string(), "names": names});
            Ok(imported.iter().map(image).collect())
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    spawn_blocking(work).await.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))
}

fn say(lines: &Lines, line: std::fmt::Arguments<'_>) {
    // Nobody may listen any more; the work goes on.
    lines.send(format!("{line}\n")).ok();
}

async fn pull(images: &Images, reference: &str, lines: &Lines) -> Result<Value, String> {
    let image = images.resolve(reference).await?;
    say(lines, format_args!("{} is {}", image.reference, image.digest));
    let told = std::sync::Mutex::new((usize::MAX, u64::MAX));
    let progress = |progress: Progress| {
        let now = (progress.layers_done, progress.bytes_done * 20 / progress.bytes.max(1));
        // A line for each layer and each twentieth.
        let mut told = told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *told != now {
            *told = now;
            let Progress { layers, layers_done, bytes, bytes_done } = progress;
            say(lines, format_args!("layers {layers_done} of {layers}, bytes {bytes_done} of {bytes}"));
        }
    };
    images.pull(&image, None, &progress).await?;
    Ok(json!({"digest": image.digest.to_string(), "names": [image.reference]}))
}

/// Finds the one image that is meant.
fn find(store: &Store, what: &str) -> Result<Digest, String> {
    let found = store.find(what).map_err(|error| chain(&error))?;
    match found.as_slice() {
        [digest] => Ok(*digest),
        [] => Err(format!("there is no image {what:?} on this device; `skegd image ls` lists them")),
        several => {
            let digests: Vec<_> = several.iter().map(ToString::to_string).collect();
            Err(format!("{what:?} could be any of {}", digests.join(", ")))
        }
    }
}

fn list(store: &Store) -> Result<Value, String> {
    Ok(store.list().map_err(|error| chain(&error))?.iter().map(listed).collect())
}

fn listed(image: &Listed) -> Value {
    let used = image.last_used.duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    json!({
        "digest": image.digest.to_string(), "id": image.id.map(|id| id.to_string()), "names": image.names,
        "size": image.size, "created": image.created, "lastUsed": used, "needed": image.needed, "whole": image.whole,
    })
}

fn usage(store: &Store) -> Result<Value, String> {
    let Usage { images, layers, files, records, blobs, partial, reclaimable, free } =
        store.usage().map_err(|error| chain(&error))?;
    Ok(json!({
        "images": images, "layers": layers, "files": files, "records": records, "blobs": blobs, "partial": partial,
        "reclaimable": reclaimable, "free": free,
    }))
}

fn inspect(store: &Store, images: &[String]) -> Result<Value, String> {
    let all = store.list().map_err(|error| chain(&error))?;
    let one = |what: &String| {
        let digest = find(store, what)?;
        let mut shown = all.iter().find(|image| image.digest == digest).map(listed).unwrap_or_default();
        let image = store.image(&digest).map_err(|error| chain(&error))?;
        let image = image.ok_or_else(|| format!("image {what:?} is not whole: pull it again"))?;
        shown["config"] = serde_json::to_value(&image.config).map_err(|error| error.to_string())?;
        shown["healthcheck"] = json!(image.healthcheck);
        shown["layers"] = image.layers.iter().map(|layer| json!(layer)).collect();
        Ok(shown)
    };
    images.iter().map(one).collect()
}

async fn remove(store: &Store, images: &[String]) -> Result<Value, String> {
    let mut done = json!({"untagged": [], "removed": []});
    let note = |done: &mut Value, list: &str, what: String| {
        if let Some(list) = done[list].as_array_mut() {
            list.push(what.into());
        }
    };
    for what in images {
        let digest = find(store, what)?;
        let failed = |error: &dyn std::error::Error| chain(error);
        let listed = store.list().map_err(|error| failed(&error))?;
        let others = listed.iter().find(|image| image.digest == digest).map_or(0, |image| image.names.len()) > 1;
        // A name that is one of several is all that goes.
        if others && !digest.hex().starts_with(what.trim_start_matches("sha256:")) {
            store.unname(what).map_err(|error| failed(&error))?;
            note(&mut done, "untagged", what.clone());
        } else if store.remove(&digest).await.map_err(|error| failed(&error))? {
            note(&mut done, "removed", digest.to_string());
        } else {
            return Err(format!("image {what:?} is needed by a pod of this device, or is being pulled"));
        }
    }
    Ok(done)
}

async fn prune(store: &Store) -> Result<Value, String> {
    let before = store.usage().map_err(|error| chain(&error))?;
    let removed = store.collect(Goal::Everything).await.map_err(|error| chain(&error))?;
    let after = store.usage().map_err(|error| chain(&error))?;
    let total = |usage: &Usage| usage.files + usage.records + usage.blobs + usage.partial;
    let removed: Vec<_> = removed.iter().map(ToString::to_string).collect();
    Ok(json!({"removed": removed, "freed": total(&before).saturating_sub(total(&after))}))
}

fn verify(store: &Store, lines: &Lines) -> Result<Value, String> {
    let progress = |done, of| say(lines, format_args!("layer {done} of {of}"));
    let verified = store.verify(&progress).map_err(|error| chain(&error))?;
    let texts = |digests: &[Digest]| digests.iter().map(ToString::to_string).collect::<Vec<_>>();
    Ok(json!({
        "images": texts(&verified.images), "incomplete": texts(&verified.incomplete), "layers": verified.layers,
        "shallow": verified.shallow, "bytes": verified.bytes, "broken": verified.broken,
    }))
}

fn export(store: &Store, images: &[String], path: &str) -> Result<Value, String> {
    let digests = images.iter().map(|what| find(store, what)).collect::<Result<Vec<_>, _>>()?;
    if path.ends_with('/') {
        store.export(&digests, Target::Folder(Path::new(path))).map_err(|error| chain(&error))?;
        sync(path, File::open(path))?;
    } else {
        export_archive(store, &digests, Path::new(path))?;
    }
    Ok(json!({"path": path, "images": digests.iter().map(ToString::to_string).collect::<Vec<_>>()}))
}

/// Writes an archive beside its place and renames it into it, or into a pipe.
fn export_archive(store: &Store, digests: &[Digest], path: &Path) -> Result<(), String> {
    let named = |error: std::io::Error| format!("{}: {error}", path.display());
    if fs::metadata(path).is_ok_and(|there| there.file_type().is_fifo() || there.file_type().is_socket()) {
        let pipe = OpenOptions::new().write(true).open(path).map_err(named)?;
        return store.export(digests, Target::Archive(&pipe)).map_err(|error| chain(&error));
    }
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part).map_err(named)?;
    let written = store.export(digests, Target::Archive(&file)).map_err(|error| chain(&error));
    let whole = written.and_then(|()| file.sync_all().and_then(|()| fs::rename(part, path)).map_err(named));
    if whole.is_err() {
        // The first error tells more.
        fs::remove_file(part).ok();
    }
    whole
}

fn sync(path: &str, folder: std::io::Result<File>) -> Result<(), String> {
    let synced = folder.and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
    synced.map_err(|error| format!("syncing {path}: {error}"))
}
