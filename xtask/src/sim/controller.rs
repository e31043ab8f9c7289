//! The controller as far as its links go: durable manifests, an epoch for each start, and what it has seen of the pods.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use skeg_protocol::manifest::{Image, Manifest, Pod};
use skeg_protocol::message::{Epoch, Held};
use skeg_protocol::sync::{Shelf, body};
use skeg_protocol::{Container, Digest, PodStatus, Uid};

use super::random::Random;

/// Revisions kept a device.
const KEPT: usize = 4;

/// What the controller keeps of one device on its disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Shelved {
    bodies: BTreeMap<u64, (Held, Vec<u8>)>,
    made: Vec<(Epoch, u64)>,
    /// Everything that was ever made or taken over here, to check the rest by.
    pub(super) history: BTreeSet<(Epoch, u64)>,
}

impl Shelved {
    fn note(&mut self, epoch: Epoch, revision: u64) {
        match self.made.iter_mut().find(|(one, _)| *one == epoch) {
            Some((_, highest)) => *highest = revision.max(*highest),
            None => self.made.push((epoch, revision)),
        }
        self.history.insert((epoch, revision));
    }

    /// Makes a body the newest manifest.
    pub(super) fn advance(&mut self, epoch: Epoch, bytes: Vec<u8>) -> Held {
        let revision = self.made.iter().map(|(_, revision)| *revision).max().unwrap_or(0) + 1;
        let held = body::name(revision, epoch, &bytes);
        self.bodies.insert(revision, (held, bytes));
        while self.bodies.len() > KEPT {
            self.bodies.pop_first();
        }
        self.note(epoch, revision);
        held
    }

    /// Takes over from whoever made what the device holds.
    pub(super) fn take_over(&mut self, held: Held, epoch: Epoch) -> Held {
        self.note(held.epoch, held.revision);
        let newest = self.bodies.last_key_value().map(|(_, (_, bytes))| bytes.clone());
        self.advance(epoch, newest.unwrap_or_else(|| encode(&Manifest::default())))
    }
}

impl Shelf for Shelved {
    type Error = Infallible;

    fn newest(&self) -> Result<Held, Infallible> {
        Ok(self.bodies.last_key_value().map_or(Held::NOTHING, |(_, (held, _))| *held))
    }

    fn body(&self, revision: u64) -> Result<Option<Vec<u8>>, Infallible> {
        Ok(self.bodies.get(&revision).map(|(_, bytes)| bytes.clone()))
    }

    fn kept(&self) -> Result<Vec<u64>, Infallible> {
        Ok(self.bodies.keys().copied().collect())
    }

    fn knows(&self, held: &Held) -> Result<bool, Infallible> {
        let made = self.made.iter().any(|(epoch, highest)| *epoch == held.epoch && held.revision <= *highest);
        Ok(held.revision == 0 || made)
    }
}

/// The controller.
#[derive(Debug)]
pub(super) struct Controller {
    pub(super) epoch: Epoch,
    pub(super) shelves: Vec<Shelved>,
    pub(super) backup: Vec<Shelved>,
    /// What each device has reported last.
    pub(super) seen: Vec<BTreeMap<Uid, PodStatus>>,
    /// The link that counts for each device.
    pub(super) current: Vec<Option<usize>>,
    pub(super) up: bool,
}

impl Controller {
    pub(super) fn new(devices: usize, random: &mut Random) -> Self {
        Controller {
            epoch: random.next().to_le_bytes(),
            shelves: vec![Shelved::default(); devices],
            backup: vec![Shelved::default(); devices],
            seen: vec![BTreeMap::new(); devices],
            current: vec![None; devices],
            up: true,
        }
    }

    /// An operator changes what a device is to run.
    pub(super) fn change(&mut self, device: usize, random: &mut Random) -> Held {
        let epoch = self.epoch;
        self.shelves[device].advance(epoch, encode(&manifest(random)))
    }
}

fn encode(manifest: &Manifest) -> Vec<u8> {
    body::encode(manifest).unwrap_or_else(|error| panic!("a manifest of a few pods encodes: {error}"))
}

/// Some pods; now and then so many that they take several pieces.
fn manifest(random: &mut Random) -> Manifest {
    let count = if random.once_in(6) { 60 } else { random.below(6) };
    let pods = (0..count).map(|number| {
        let image = Image { reference: format!("app-{number}:{}", random.below(4)), ..Image::default() };
        let noise = Digest::of(&random.next().to_le_bytes()).to_string();
        let args = if count > 50 { vec![noise.repeat(4); 2] } else { Vec::new() };
        let container = Container { name: "main".try_into().unwrap_or_default(), image, args, ..Container::default() };
        Pod {
            uid: Uid([number as u8; 16]),
            namespace: "default".try_into().unwrap_or_default(),
            name: format!("app-{number}").as_str().try_into().unwrap_or_default(),
            containers: vec![container],
            ..Pod::default()
        }
    });
    Manifest { pods: pods.collect(), ..Manifest::default() }
}
