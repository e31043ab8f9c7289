//! The content of the link, without I/O: putting a manifest together from its difference, and finding the
//! difference between two states of the pods.

use std::collections::BTreeMap;

use skeg_protocol::limits::{MAX_FRAME, MAX_PODS};
use skeg_protocol::message::{ManifestBegin, ManifestEnd, StatusUpdate};
use skeg_protocol::{Manifest, Pod, PodStatus, Uid};

use crate::journal::manifest_digest;

/// Puts a manifest together. A begin replaces whatever was under way.
#[derive(Debug, Default)]
pub struct Assembly {
    begun: Option<(ManifestBegin, BTreeMap<Uid, Pod>)>,
}

impl Assembly {
    /// Begins a manifest.
    pub fn begin(&mut self, begin: ManifestBegin) {
        self.begun = Some((begin, BTreeMap::new()));
    }

    /// Takes a new or changed pod.
    pub fn pod(&mut self, pod: Pod) {
        if let Some((_, pods)) = &mut self.begun
            // One too many is enough to be refused at the end; more would only take memory.
            && pods.len() <= MAX_PODS
        {
            pods.insert(pod.uid, pod);
        }
    }

    /// Ends a manifest and checks it against the digest that the controller computed.
    ///
    /// # Errors
    /// What is wrong with it, for the controller's log.
    pub fn end(&mut self, end: ManifestEnd, held: &Manifest) -> Result<Manifest, String> {
        let (begin, changed) = self.begun.take().ok_or("it has an end without a begin")?;
        if begin.revision != end.revision {
            return Err(format!("it began as revision {} and ended as {}", begin.revision, end.revision));
        }
        let mut pods = BTreeMap::new();
        if begin.base != 0 {
            if begin.base != held.revision {
                return Err(format!("it is a difference to revision {}, {} is held", begin.base, held.revision));
            }
            pods.extend(held.pods.iter().map(|pod| (pod.uid, pod.clone())));
        }
        for uid in &begin.removed {
            pods.remove(uid);
        }
        pods.extend(changed);
        let manifest = Manifest { revision: end.revision, pods: pods.into_values().collect(), ..Manifest::default() };
        manifest.validate().map_err(|invalid| invalid.to_string())?;
        match manifest_digest(&manifest) {
            Ok(digest) if digest == end.digest => Ok(manifest),
            Ok(digest) => Err(format!("its digest is {digest}, {} was announced", end.digest)),
            Err(error) => Err(format!("it does not encode: {error}")),
        }
    }
}

/// What the controller was told.
#[derive(Debug, Default)]
pub struct Told {
    pods: Option<BTreeMap<Uid, PodStatus>>,
}

impl Told {
    /// The updates that bring the controller to `pods`, each small enough for a frame; none where nothing
    /// changed. The first ever is full.
    pub fn updates(&mut self, pods: impl Iterator<Item = PodStatus>) -> Vec<StatusUpdate> {
        let now: BTreeMap<Uid, PodStatus> = pods.map(|pod| (pod.uid, pod)).collect();
        let full = self.pods.is_none();
        let before = self.pods.take().unwrap_or_default();
        let removed: Vec<Uid> = before.keys().filter(|uid| !now.contains_key(uid)).copied().collect();
        let changed = now.iter().filter(|(uid, pod)| before.get(uid) != Some(pod)).map(|(_, pod)| pod.clone());
        let mut update = StatusUpdate { full, pods: Vec::new(), removed };
        let (mut updates, mut size) = (Vec::new(), 0);
        for pod in changed {
            let length = postcard::to_allocvec(&pod).map_or(MAX_FRAME, |bytes| bytes.len());
            if size + length > MAX_FRAME / 2 && !update.pods.is_empty() {
                let rest = StatusUpdate { full: false, pods: Vec::new(), removed: Vec::new() };
                updates.push(std::mem::replace(&mut update, rest));
                size = 0;
            }
            size += length;
            update.pods.push(pod);
        }
        if update.full || !update.pods.is_empty() || !update.removed.is_empty() {
            updates.push(update);
        }
        self.pods = Some(now);
        updates
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::pod;
    use skeg_protocol::Phase;
    use skeg_protocol::status::{reason, text};

    fn ended(manifest: &Manifest) -> ManifestEnd {
        ManifestEnd { revision: manifest.revision, digest: manifest_digest(manifest).unwrap() }
    }

    #[test]
    fn a_difference_leads_to_the_announced_manifest() {
        let old = Manifest {
            revision: 4,
            pods: vec![pod(1, "a", &["m"]), pod(2, "b", &["m"]), pod(3, "c", &["m"])],
            ..Manifest::default()
        };
        let mut changed = pod(3, "c", &["m"]);
        changed.host_network = true;
        let new = Manifest {
            revision: 5,
            pods: vec![pod(1, "a", &["m"]), changed.clone(), pod(4, "d", &["m"])],
            ..Manifest::default()
        };
        let mut assembly = Assembly::default();
        let begin = ManifestBegin { revision: 5, base: 4, removed: vec![Uid([2; 16])] };
        let send = |assembly: &mut Assembly| {
            assembly.begin(begin.clone());
            assembly.pod(changed.clone());
            assembly.pod(pod(4, "d", &["m"]));
        };
        send(&mut assembly);
        assert_eq!(assembly.end(ended(&new), &old), Ok(new.clone()));
        assert!(assembly.end(ended(&new), &old).is_err(), "an end is used once");
        send(&mut assembly);
        let error = assembly.end(ended(&new), &Manifest::default()).unwrap_err();
        assert!(error.contains("revision 4"), "{error}");
        send(&mut assembly);
        let wrong = ManifestEnd { digest: skeg_protocol::Digest([0; 32]), ..ended(&new) };
        assert!(assembly.end(wrong, &old).unwrap_err().contains("digest"));
    }

    #[test]
    fn a_manifest_that_breaks_a_rule_is_refused_with_the_field() {
        let mut bad = pod(1, "a", &["m"]);
        bad.containers.clear();
        let mut assembly = Assembly::default();
        assembly.begin(ManifestBegin { revision: 1, base: 0, removed: Vec::new() });
        assembly.pod(bad.clone());
        let error = assembly
            .end(ended(&Manifest { revision: 1, pods: vec![bad], ..Manifest::default() }), &Manifest::default())
            .unwrap_err();
        assert!(error.contains("spec.containers"), "{error}");
    }

    fn status(number: u8, message: &str) -> PodStatus {
        PodStatus {
            uid: Uid([number; 16]),
            phase: Phase::Pending,
            reason: reason(""),
            message: message.to_owned(),
            started_at: 0,
            containers: Vec::new(),
        }
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut told = Told::default();
        let first = told.updates([].into_iter());
        assert!(first.len() == 1 && first[0].full);
        assert!(told.updates([].into_iter()).is_empty());
        let next = told.updates([status(1, ""), status(2, "")].into_iter());
        assert!(next.len() == 1 && !next[0].full && next[0].pods.len() == 2);
        let next = told.updates([status(2, "x")].into_iter());
        assert_eq!(next, [StatusUpdate { full: false, pods: vec![status(2, "x")], removed: vec![Uid([1; 16])] }]);
    }

    #[test]
    fn many_pods_are_told_in_frames_that_fit() {
        let mut told = Told::default();
        let many = (0..=255).map(|number| status(number, &text("y".repeat(9_000))));
        let fat = many.map(|pod| PodStatus { message: "y".repeat(3_000), ..pod });
        let updates = told.updates(fat);
        assert!(updates.len() > 1 && updates[0].full && !updates[1].full);
        assert_eq!(updates.iter().map(|update| update.pods.len()).sum::<usize>(), 256);
        for update in updates {
            assert!(postcard::to_allocvec(&update).unwrap().len() <= MAX_FRAME);
        }
    }
}
