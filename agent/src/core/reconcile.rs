//! The difference between the pods that are wanted and those that are there. Level-triggered: it is asked again
//! after every change, and says only what can be done now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use skeg_protocol::{Label, Name, Pod, Uid};

/// The pods that are wanted.
pub type Wanted = BTreeMap<Uid, Arc<Pod>>;

/// A pod that is there.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The specification that it was started with.
    pub pod: &'a Arc<Pod>,
    /// It is on its way out.
    pub leaving: bool,
}

/// What brings the device nearer to what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Take on this pod.
    Admit(Arc<Pod>),
    /// Make this pod's images ready, before what has its place is stopped.
    Fetch(Arc<Pod>),
    /// Stop this pod and remove it; the words say why.
    Stop(Uid, &'static str),
}

/// Compares. A pod whose specification changed, and one that took over another's name, is admitted only once
/// the old one is gone; the old one is stopped only once the images of the new one are here (`has_images`).
pub fn reconcile<'a>(
    wanted: &Wanted,
    observed: impl Iterator<Item = Observed<'a>> + Clone,
    has_images: impl Fn(&Pod) -> bool,
) -> Vec<Change> {
    let uids: BTreeSet<Uid> = observed.clone().map(|there| there.pod.uid).collect();
    let names: BTreeMap<(&Label, &Name), Uid> =
        observed.clone().map(|there| ((&there.pod.namespace, &there.pod.name), there.pod.uid)).collect();
    let same = |one: &Arc<Pod>, other: &Arc<Pod>| Arc::ptr_eq(one, other) || one == other;
    let stale: BTreeMap<Uid, &Arc<Pod>> = observed
        .filter(|there| !there.leaving && wanted.get(&there.pod.uid).is_none_or(|pod| !same(pod, there.pod)))
        .map(|there| (there.pod.uid, there.pod))
        .collect();
    let mut changes = Vec::new();
    let mut kept = BTreeSet::new();
    for pod in wanted.values() {
        let by_name = names.get(&(&pod.namespace, &pod.name)).copied();
        let places = [Some(pod.uid).filter(|uid| uids.contains(uid)), by_name];
        if places.iter().all(Option::is_none) {
            changes.push(Change::Admit(Arc::clone(pod)));
        }
        // Whoever stands in its place and is no longer wanted.
        let before: Vec<Uid> = places.into_iter().flatten().filter(|uid| stale.contains_key(uid)).collect();
        if !before.is_empty() && !has_images(pod) {
            kept.extend(before);
            changes.push(Change::Fetch(Arc::clone(pod)));
        }
    }
    let stops = stale.keys().filter(|uid| !kept.contains(uid)).map(|uid| match wanted.contains_key(uid) {
        true => Change::Stop(*uid, "its specification has changed"),
        false => Change::Stop(*uid, "it is no longer wanted"),
    });
    stops.collect::<Vec<_>>().into_iter().chain(changes).collect()
}
