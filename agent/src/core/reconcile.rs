//! The difference between the pods that are wanted and those that are there. Level-triggered: it is asked again
//! after every change, and says only what can be done now.

use skeg_protocol::{Manifest, Pod, Uid};

/// A pod that is there.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The specification that it was started with.
    pub pod: &'a Pod,
    /// It is on its way out.
    pub leaving: bool,
}

/// What brings the device nearer to what is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Take on this pod.
    Admit(Box<Pod>),
    /// Stop this pod and remove it.
    Stop(Uid),
}

/// Compares. A pod whose specification changed, and one that took over another's name, is admitted only once
/// the old one is gone.
pub fn reconcile<'a>(desired: &Manifest, observed: impl Iterator<Item = Observed<'a>> + Clone) -> Vec<Change> {
    let stale = observed.clone().filter(|there| !there.leaving && desired.pod(there.pod.uid) != Some(there.pod));
    let free = |pod: &Pod| {
        let taken = |there: Observed<'_>| {
            there.pod.uid == pod.uid || (there.pod.namespace == pod.namespace && there.pod.name == pod.name)
        };
        !observed.clone().any(taken)
    };
    let stops = stale.map(|there| Change::Stop(there.pod.uid));
    let admits = desired.pods.iter().filter(|pod| free(pod)).map(|pod| Change::Admit(Box::new(pod.clone())));
    stops.chain(admits).collect()
}
