//! Everything that documents ask one device for, on its way to a manifest.
//!
//! Who an item is follows from what it says: the same document gives the same uids, so that it changes nothing when it
//! is handed in again, and a changed template gives new pods.

use std::collections::BTreeSet;

use ring::digest::{SHA256, digest};
use serde::Serialize;
use skeg_protocol::manifest::{Container, CronJob, Data, Job, Manifest, Network, Pod, Service};
use skeg_protocol::{Invalid, Uid};

/// Everything that documents ask one device for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bundle {
    /// Pods; uids come with [`Bundle::into_manifest`].
    pub pods: Vec<Pod>,
    /// Config maps and secrets.
    pub data: Vec<Data>,
    /// Services.
    pub services: Vec<Service>,
    /// Networks.
    pub networks: Vec<Network>,
    /// Work that ends.
    pub jobs: Vec<Job>,
    /// Work that returns.
    pub cron_jobs: Vec<CronJob>,
    /// Image references whose meaning is asked for anew even where it is known (`imagePullPolicy: Always`).
    pub ask_anew: BTreeSet<String>,
    /// Folders that are made where they are missing.
    pub folders: BTreeSet<String>,
    /// What was passed over and why, for people.
    pub notes: Vec<String>,
}

impl Bundle {
    /// Every container, for its image to be told what its reference means.
    pub fn containers_mut(&mut self) -> impl Iterator<Item = &mut Container> {
        let templates = self.jobs.iter_mut().map(|job| job.template.as_mut());
        let returning = self.cron_jobs.iter_mut().map(|job| job.job.template.as_mut());
        let pods = self.pods.iter_mut().chain(templates).chain(returning);
        pods.flat_map(|pod| pod.init_containers.iter_mut().chain(&mut pod.containers))
    }

    /// Puts another bundle beside this one.
    pub fn extend(&mut self, other: Bundle) {
        self.pods.extend(other.pods);
        self.data.extend(other.data);
        self.services.extend(other.services);
        self.networks.extend(other.networks);
        self.jobs.extend(other.jobs);
        self.cron_jobs.extend(other.cron_jobs);
        self.ask_anew.extend(other.ask_anew);
        self.folders.extend(other.folders);
        self.notes.extend(other.notes);
    }

    /// Gives every pod and job its uid and puts all in order. To be called when the images have their digests.
    ///
    /// # Errors
    /// Two documents claim the same name or port, or there is too much of something.
    pub fn into_manifest(mut self) -> Result<Manifest, Invalid> {
        self.pods.iter_mut().for_each(|pod| {
            pod.uid = Uid::default();
            pod.uid = uid_of("Pod", pod);
        });
        self.jobs.iter_mut().for_each(|job| {
            job.uid = Uid::default();
            job.uid = uid_of("Job", job);
        });
        self.cron_jobs.iter_mut().for_each(|job| {
            job.uid = Uid::default();
            job.uid = uid_of("CronJob", job);
        });
        self.pods.sort_by_key(|pod| pod.uid);
        self.jobs.sort_by_key(|job| job.uid);
        self.cron_jobs.sort_by_key(|job| job.uid);
        let key = |data: &Data| (data.kind, data.namespace.clone(), data.name.clone());
        self.data.sort_by_key(key);
        self.services.sort_by_key(|service| (service.namespace.clone(), service.name.clone()));
        self.networks.sort_by_key(|network| (network.namespace.clone(), network.name.clone()));
        let manifest = Manifest {
            pods: self.pods,
            data: self.data,
            services: self.services,
            networks: self.networks,
            jobs: self.jobs,
            cron_jobs: self.cron_jobs,
            ..Manifest::default()
        };
        manifest.validate()?;
        Ok(manifest)
    }
}

/// A UUID of version 8 (RFC 9562) from what an item says.
fn uid_of(kind: &str, item: &impl Serialize) -> Uid {
    // Nothing in a manifest refuses to be encoded into memory.
    let body = postcard::to_allocvec(item).unwrap_or_default();
    let hash = digest(&SHA256, &[kind.as_bytes(), &[0], &body].concat());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.as_ref()[..16]);
    bytes[6] = bytes[6] & 0x0f | 0x80;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Uid(bytes)
}

/// Ten characters that follow from a text, for names: letters and digits that make no words, as Kubernetes has them.
pub(crate) fn short_hash(text: &str) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let hash = digest(&SHA256, text.as_bytes());
    hash.as_ref().iter().take(10).map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect()
}
