//! From pods to nodes: binds pods, resolves their images, compiles each node's manifest, and tells the sessions.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use skeg_kube::{image_references, pull_secret_names};
use skeg_protocol::limits::MAX_ITEMS;
use skeg_protocol::manifest::{Data, DataKind, Image, ImageSource, Service};
use skeg_protocol::sync::body;
use skeg_protocol::{Manifest, Pod, Uid};
use tokio::sync::Semaphore;

use super::controllers::is_over;
use super::world::{World, key_of};
use super::{Nudge, events, ignore_missing, is_data};
use crate::app::App;
use crate::compile::{assemble, data_named};
use crate::images::{self, Answers, Standing, shared_asker};
use crate::link::Command;
use crate::pods::{conditions, convert, failed_images, unschedulable};
use crate::pull_secrets;
use crate::schedule::Scheduler;
use crate::store::{Action, Change, Key, Store, StoreError, update};
use crate::time;

/// Registries asked at the same time.
const ASKING: usize = 4;

/// What the nodes need.
pub(super) struct Nodes {
    app: Arc<App>,
    answers: Answers,
    asking: Arc<Semaphore>,
    /// Whether a Secret or ConfigMap may have changed since the last look.
    data_changed: bool,
    /// Whether pods without a node may find one.
    unbound: bool,
    /// Nodes whose manifests may have to change.
    due: BTreeSet<String>,
}

/// Whether a change may lead to another manifest or binding.
fn matters(change: &Change) -> bool {
    match change.key.kind.as_str() {
        "Pod" => change.beyond_status || change.action != Action::Modified,
        "Node" => true,
        _ => false,
    }
}

fn node_of(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

impl Nodes {
    pub(super) fn new(app: Arc<App>) -> Nodes {
        let mut nodes = Nodes {
            app,
            answers: Answers::default(),
            asking: Arc::new(Semaphore::new(ASKING)),
            data_changed: false,
            unbound: true,
            due: BTreeSet::new(),
        };
        if let Err(error) = nodes.remember() {
            log::error!("cannot read what the nodes' images are: {error}");
        }
        nodes
    }

    /// Takes up from the nodes' manifests what references mean, so that a new controller goes on with it.
    fn remember(&mut self) -> Result<(), StoreError> {
        for node in self.app.store.list("Node", None)?.items {
            let manifest = self.app.store.newest_manifest(node["metadata"]["name"].as_str().unwrap_or_default())?;
            for pod in manifest.pods {
                let asker = shared_asker(&pod.namespace, pod.image_pull_secrets.iter().map(|name| name.as_str()));
                for container in pod.init_containers.into_iter().chain(pod.containers) {
                    let reference = container.image.reference.clone();
                    self.answers.answered(&asker, &reference, Ok(container.image), Instant::now());
                }
            }
        }
        Ok(())
    }

    /// Marks everything.
    pub(super) fn look_at_all(&mut self, world: &World) {
        self.unbound = true;
        self.due.extend(world.all("Node").map(|node| key_of(node).name));
    }

    /// Whether there is something to do.
    pub(super) fn is_due(&self) -> bool {
        self.unbound || !self.due.is_empty()
    }

    /// When a registry that failed is asked again.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.answers.next_retry()
    }

    /// Notes that time has passed.
    pub(super) fn alarm(&mut self, world: &World) {
        if self.answers.next_retry().is_some_and(|at| at <= Instant::now()) {
            self.look_at_all(world);
        }
    }

    pub(super) fn data_changed(&mut self) {
        self.data_changed = true;
        self.answers.forget_failures();
    }

    /// Notes a change of an object.
    pub(super) fn note_change(&mut self, change: &Change, before: Option<&Value>) {
        if is_data(change) {
            self.data_changed();
        }
        if is_data(change) || change.key.kind == "Service" {
            // Which pods name it is looked up when their nodes are compiled.
            self.due.insert(String::new());
        }
        if !matters(change) {
            return;
        }
        self.unbound = true;
        if change.key.kind == "Node" {
            self.due.insert(change.key.name.clone());
            return;
        }
        let nodes = [Some(change.object.as_ref()), before].into_iter().flatten().map(node_of);
        self.due.extend(nodes.filter(|node| !node.is_empty()).map(str::to_owned));
    }

    /// Notes what else has happened.
    pub(super) fn note(&mut self, nudge: Nudge, world: &World) {
        match nudge {
            Nudge::Look => {}
            Nudge::Pushed => self.answers.forget_failures(),
            Nudge::Answer { uid, reference, answer } => {
                self.answers.answered(&uid, &reference, answer, Instant::now());
            }
        }
        self.look_at_all(world);
    }

    /// Does what is due.
    pub(super) fn work(&mut self, world: &World) -> Result<(), StoreError> {
        if std::mem::take(&mut self.unbound) {
            self.schedule(world)?;
        }
        let mut due = std::mem::take(&mut self.due);
        if due.remove("") {
            due.extend(world.all("Node").map(|node| key_of(node).name));
        }
        if due.is_empty() {
            return Ok(());
        }
        let uids = world.all("Pod").filter_map(|pod| pod["metadata"]["uid"].as_str().map(str::to_owned));
        let references = world.all("Pod").flat_map(image_references);
        self.answers.retain(&uids.collect::<HashSet<_>>(), &references.collect::<HashSet<_>>());
        let (mut manifests, mut tell) = (Vec::new(), HashSet::new());
        for node in due.iter().filter(|node| world.get(&Key::new("Node", "", node)).is_some()) {
            let pods: Vec<&Value> = world.pods_on(node).collect();
            match self.compile(world, node, &pods) {
                Ok((body, told)) => {
                    manifests.push((node.clone(), body));
                    tell.extend(told.then(|| node.clone()));
                }
                // What is wrong with one node's records must not hold up the others.
                Err(error) => log::error!("cannot bring the manifest of node {node} up to date: {error}"),
            }
        }
        self.data_changed = false;
        // One wait for the disk, however many nodes there are.
        tell.extend(self.app.store.advance_manifests(&manifests)?);
        for node in tell {
            self.app.hub.send(&node, Command::Manifest);
        }
        Ok(())
    }

    /// Binds pods that have no node yet, and says why where that is not possible.
    fn schedule(&self, world: &World) -> Result<(), StoreError> {
        let store = self.app.store.as_ref();
        let lost = |pod: &&Value| world.get(&Key::new("Node", "", node_of(pod))).is_none();
        let stray: Vec<&Value> = world.all("Pod").filter(|pod| !node_of(pod).is_empty()).filter(lost).collect();
        let waiting: Vec<&Value> = world.pods_on("").collect();
        if stray.is_empty() && waiting.is_empty() {
            return Ok(());
        }
        let running = world.all("Pod").filter(|pod| !is_over(pod));
        let mut scheduler = Scheduler::new(world.all("Node"), running);
        for pod in stray.into_iter().chain(waiting) {
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                store.remove(&pod_key(pod)).map(drop).or_else(ignore_missing)?;
                continue;
            }
            let choice = match node_of(pod) {
                "" => scheduler.place(pod),
                node => Err(format!("the node {node} that spec.nodeName names does not exist")),
            };
            self.bind(pod, choice)?;
        }
        Ok(())
    }

    /// Binds a pod to the node that was chosen, or says why there is none.
    fn bind(&self, pod: &Value, choice: Result<&str, String>) -> Result<(), StoreError> {
        let (store, now) = (self.app.store.as_ref(), time::now());
        update(store, &pod_key(pod), |pod| match &choice {
            Ok(node) if node_of(pod).is_empty() => {
                pod["spec"]["nodeName"] = json!(node);
                pod["status"]["conditions"] = json!(conditions(pod, now, &[("PodScheduled", true, "", "")]));
            }
            // Somebody else was quicker.
            Ok(_) => {}
            Err(message) => pod["status"] = unschedulable(pod, message, now),
        })?;
        let (reason, message) = match choice {
            Ok(node) => {
                let key = pod_key(pod);
                ("Scheduled", format!("Successfully assigned {}/{} to {node}", key.namespace, key.name))
            }
            Err(message) => ("FailedScheduling", message),
        };
        let known = pod["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["message"] == *message);
        // A pod that waits for the same reason as before is not told of again.
        if known { Ok(()) } else { events::tell(store, pod, reason != "Scheduled", reason, &message) }
    }

    /// Gives the body of one node's manifest, and whether its session is to look at it even where it is as it was.
    fn compile(&mut self, world: &World, node: &str, pods: &[&Value]) -> Result<(Vec<u8>, bool), StoreError> {
        let newest = self.app.store.newest_manifest(node)?;
        let mut wanted = Vec::new();
        let mut leaving = false;
        for pod in pods {
            let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
            let prior = uid.parse().ok().and_then(|uid| newest.pod(uid));
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                leaving = true;
                if prior.is_none() && !self.app.store.was_sent(node, uid)? {
                    self.app.store.remove(&pod_key(pod)).map(drop).or_else(ignore_missing)?;
                }
                continue;
            }
            // A pod whose new image is not known yet goes on as it was.
            wanted.extend(self.compile_pod(pod, uid, prior)?.or_else(|| prior.cloned()));
        }
        // What runs already keeps its claims against what is new.
        wanted.sort_by_key(|pod| newest.pod(pod.uid).is_none());
        let (wanted, refused) = assemble(wanted);
        self.refuse(pods, &refused)?;
        let (data, services) = (self.data(&wanted)?, services(world, &wanted));
        let manifest = Manifest { pods: wanted, data, services, ..Manifest::default() };
        let body = body::encode(&manifest).map_err(|error| StoreError::Large(error.to_string()))?;
        let named = pods.iter().any(|pod| pull_secret_names(pod).next().is_some());
        Ok((body, leaving || (self.data_changed && named)))
    }

    /// The config maps and secrets that pods name, as far as there are any; the device waits for the others.
    fn data(&self, pods: &[Pod]) -> Result<Vec<Data>, StoreError> {
        let mut data = Vec::new();
        for (kind, namespace, name) in data_named(pods) {
            let kind = if kind == DataKind::Secret { pull_secrets::KIND } else { "ConfigMap" };
            let key = Key::new(kind, &namespace, &name);
            let Some(object) = self.app.store.get(&key)? else { continue };
            match skeg_kube::convert_data(&object) {
                Ok(one) => data.push(one),
                Err(fault) => log::error!("{key} cannot be compiled: {fault}"),
            }
        }
        data.truncate(MAX_ITEMS);
        Ok(data)
    }

    /// Says in their status why pods cannot be in their node's manifest.
    fn refuse(&self, pods: &[&Value], refused: &[(Uid, String)]) -> Result<(), StoreError> {
        for (uid, message) in refused {
            let uid = uid.to_string();
            let Some(pod) = pods.iter().find(|pod| pod["metadata"]["uid"] == uid) else { continue };
            let now = time::now();
            update(self.app.store.as_ref(), &pod_key(pod), |pod| pod["status"] = unschedulable(pod, message, now))?;
        }
        Ok(())
    }

    /// Compiles one pod, or notes what it waits for.
    fn compile_pod(&mut self, pod: &Value, uid: &str, prior: Option<&Pod>) -> Result<Option<Pod>, StoreError> {
        let mut images = Vec::new();
        let mut failures = Vec::new();
        for (index, reference) in image_references(pod).iter().enumerate() {
            let before = prior.and_then(|pod| pod.all_containers().nth(index)).map(|container| &container.image);
            match before.filter(|image| image.reference == *reference) {
                Some(image) => images.push(image.clone()),
                None => match self.resolve(pod, &asker(pod, index, uid), reference)? {
                    Ok(Some(image)) => images.push(image),
                    Ok(None) => {}
                    Err((reason, message)) => {
                        let name = container_at(pod, index)["name"].as_str().unwrap_or_default();
                        failures.push((name.to_owned(), reason, message));
                    }
                },
            }
        }
        if !failures.is_empty() && prior.is_none() {
            let now = time::now();
            update(self.app.store.as_ref(), &pod_key(pod), |pod| pod["status"] = failed_images(pod, &failures, now))?;
        }
        if images.len() != image_references(pod).len() {
            return Ok(None);
        }
        let image = |index: usize, reference: &str| images.get(index).cloned().unwrap_or_else(|| unresolved(reference));
        match convert(pod, image) {
            Ok(pod) => Ok(Some(pod)),
            Err(fault) => {
                log::error!("pod {} cannot be compiled: {fault}", pod_key(pod));
                Ok(None)
            }
        }
    }

    /// What a reference means: known, being asked for (`None`), or failed with reason and message.
    #[allow(clippy::type_complexity, reason = "three outcomes, used in one place")]
    fn resolve(
        &mut self,
        pod: &Value,
        uid: &str,
        reference: &str,
    ) -> Result<Result<Option<Image>, (&'static str, String)>, StoreError> {
        match self.answers.standing(uid, reference, Instant::now()) {
            Some(Standing::Known(image)) => return Ok(Ok(Some(image.clone()))),
            Some(Standing::Asking) => return Ok(Ok(None)),
            Some(Standing::Failed { message, attempts, .. }) => {
                let reason = if *attempts == 1 { "ErrImagePull" } else { "ImagePullBackOff" };
                return Ok(Err((reason, message.clone())));
            }
            None => {}
        }
        if let Some(image) = images::own(&self.app.store, reference)? {
            self.answers.answered(uid, reference, Ok(image.clone()), Instant::now());
            return Ok(Ok(Some(image)));
        }
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        let (logins, missing) = pull_secrets::logins(&self.app.store, namespace, pull_secret_names(pod))?;
        self.answers.asking(uid, reference);
        let (app, asking) = (self.app.clone(), self.asking.clone());
        let (uid, reference) = (uid.to_owned(), reference.to_owned());
        tokio::spawn(async move {
            // The semaphore is never closed.
            let _permit = asking.acquire().await;
            let answer = images::remote(&reference, &app.upstream, logins).await;
            // As on Kubernetes' nodes it is tried without; whoever has to mend it reads why that was not enough.
            let told = |message| [vec![message], missing].concat().join("; ");
            let answer = answer.map_err(told);
            app.nudge(Nudge::Answer { uid, reference, answer });
        });
        Ok(Ok(None))
    }
}

fn pod_key(pod: &Value) -> Key {
    let text = |field: &str| pod["metadata"][field].as_str().unwrap_or_default();
    Key::new("Pod", text("namespace"), text("name"))
}

/// The services of the namespaces that a node's pods are in.
fn services(world: &World, pods: &[Pod]) -> Vec<Service> {
    let namespaces: BTreeSet<&str> = pods.iter().map(|pod| pod.namespace.as_str()).collect();
    let services = namespaces.into_iter().flat_map(|namespace| world.within("Service", namespace));
    let converted = services.filter_map(|service| match skeg_kube::convert_service(service) {
        Ok(service) => Some(service),
        Err(fault) => {
            log::error!("{} cannot be compiled: {fault}", key_of(service));
            None
        }
    });
    converted.take(MAX_ITEMS).collect()
}

/// For whom a container's reference is asked for: for its pod alone where it is always asked for, else for all with
/// the same pull secrets.
fn asker(pod: &Value, container: usize, uid: &str) -> String {
    if container_at(pod, container)["imagePullPolicy"] == "Always" {
        return uid.to_owned();
    }
    shared_asker(pod["metadata"]["namespace"].as_str().unwrap_or_default(), pull_secret_names(pod))
}

/// A container as it is written; init containers come first.
fn container_at(pod: &Value, index: usize) -> &Value {
    skeg_kube::containers(pod).nth(index).unwrap_or(&Value::Null)
}

/// An image as a stand-in where only a pod's form is checked.
pub(crate) fn unresolved(reference: &str) -> Image {
    Image { reference: reference.to_owned(), digest: skeg_protocol::Digest([0; 32]), source: ImageSource::Registry }
}
