//! A device as far as its link goes: a disk with one manifest, pods with states, and what it loses when it crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use skeg_protocol::manifest::Manifest;
use skeg_protocol::message::{Epoch, Held};
use skeg_protocol::pace::Pace;
use skeg_protocol::status::{Phase, reason};
use skeg_protocol::sync::{Intake, Whole};
use skeg_protocol::{PodStatus, Uid};

use super::random::Random;

/// A manifest on its way to the disk.
pub(super) struct Storing {
    pub(super) whole: Whole,
    pub(super) done: Duration,
}

/// A device.
pub(super) struct Device {
    /// What is durable.
    pub(super) disk: Manifest,
    pub(super) full: bool,
    pub(super) intake: Intake,
    pub(super) storing: Option<Storing>,
    pub(super) pods: BTreeMap<Uid, PodStatus>,
    pub(super) pace: Pace,
    /// When it tries to connect; `None` while it has a link or is off.
    pub(super) connect_at: Option<Duration>,
    pub(super) link: Option<usize>,
    /// How far its clock has jumped ahead.
    pub(super) ahead: Duration,
    /// What was made durable.
    applied: BTreeSet<(Epoch, u64)>,
}

impl Device {
    pub(super) fn new(random: &mut Random) -> Self {
        Device {
            disk: Manifest::default(),
            full: false,
            intake: Intake::default(),
            storing: None,
            pods: BTreeMap::new(),
            pace: Pace::default(),
            connect_at: Some(random.millis(3_000)),
            link: None,
            ahead: Duration::ZERO,
            applied: BTreeSet::new(),
        }
    }

    pub(super) fn held(&self) -> Held {
        Held { revision: self.disk.revision, digest: self.disk.digest, epoch: self.disk.epoch }
    }

    /// Writes a manifest to the disk; says whether there was room.
    ///
    /// # Panics
    /// It goes back, or was written before: what a controller says is applied at most once.
    pub(super) fn write(&mut self, whole: &Whole) -> bool {
        if self.full {
            return false;
        }
        let Held { revision, epoch, .. } = whole.held;
        assert!(revision > self.disk.revision, "revision {revision} was applied over {}", self.disk.revision);
        assert!(self.applied.insert((epoch, revision)), "revision {revision} was applied twice");
        self.disk = whole.manifest.clone();
        let wanted: BTreeSet<Uid> = self.disk.pods.iter().map(|pod| pod.uid).collect();
        self.pods.retain(|uid, _| wanted.contains(uid));
        for uid in wanted {
            self.pods.entry(uid).or_insert_with(|| state(uid, 0));
        }
        true
    }

    /// The state of a pod changes.
    pub(super) fn live(&mut self, random: &mut Random) {
        let chosen = self.pods.len().checked_sub(1).map(|last| random.below(last as u64 + 1) as usize);
        if let Some(pod) = chosen.and_then(|index| self.pods.values_mut().nth(index)) {
            *pod = state(pod.uid, random.below(1_000));
        }
    }

    /// The power fails: what was under way to the disk got there or did not.
    pub(super) fn crash(&mut self, back: Duration, random: &mut Random) {
        if let Some(storing) = self.storing.take()
            && random.once_in(2)
        {
            self.write(&storing.whole);
        }
        self.intake = Intake::new(&self.disk);
        (self.pace, self.link, self.connect_at) = (Pace::default(), None, Some(back));
    }
}

fn state(uid: Uid, number: u64) -> PodStatus {
    let message = format!("state {number}");
    let (phase, reason) = (Phase::Running, reason(""));
    let (conditions, init_containers, containers) = (Vec::new(), Vec::new(), Vec::new());
    PodStatus { uid, phase, reason, message, started_at: 0, conditions, init_containers, containers, ips: Vec::new() }
}
