//! The controllers: each a pure function from the world and one object to what is to be done about it. None reads a
//! clock or the store; time comes in, deeds go out.

mod common;
mod cron_job;
mod daemon_set;
mod deployment;
mod disruption;
mod endpoints;
mod garbage;
mod job;
mod namespace;
mod node;
mod replica_set;
mod revisions;
mod stateful_set;

use jiff::Timestamp;
use serde_json::Value;

use super::world::World;
use crate::store::Key;

pub(super) use common::is_over;

/// Something that is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Deed {
    /// Makes an object; its kind and namespace are in it.
    Create(Value),
    /// Replaces an object, if it is still at the version that is in it.
    Replace(Value),
    /// Sets an object's status.
    Status(Key, Value),
    /// Sets a field of an object's metadata.
    Metadata(Key, &'static str, Value),
    /// Deletes an object that still has this uid.
    Delete(Key, String),
    /// Removes an object that nobody holds any more.
    Remove(Key),
    /// Tells people what happened to an object.
    Event { about: Value, warning: bool, reason: &'static str, message: String },
}

/// What a controller wants.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) deeds: Vec<Deed>,
    /// When to look again although nothing changed.
    pub(crate) again: Option<Timestamp>,
}

impl Plan {
    fn add(&mut self, deed: Deed) {
        self.deeds.push(deed);
    }

    fn look_at(&mut self, when: Option<Timestamp>) {
        self.again = [self.again, when].into_iter().flatten().min();
    }

    fn event(&mut self, about: &Value, warning: bool, reason: &'static str, message: String) {
        self.add(Deed::Event { about: about.clone(), warning, reason, message });
    }

    /// Sets the status where it is another than the object's.
    fn status(&mut self, object: &Value, status: Value) {
        if object["status"] != status {
            self.add(Deed::Status(super::world::key_of(object), status));
        }
    }
}

/// Kinds that have a controller.
const ACTING: [&str; 10] = [
    "Namespace",
    "Node",
    "ReplicaSet",
    "Deployment",
    "DaemonSet",
    "StatefulSet",
    "Job",
    "CronJob",
    "Service",
    "PodDisruptionBudget",
];

/// Whether objects of a kind are looked at by a controller of their own.
pub(super) fn acts(kind: &str) -> bool {
    ACTING.contains(&kind)
}

/// What is to be done about an object. `failure`: why a deed of the last time failed.
pub(super) fn plan(world: &World, object: &Value, failure: Option<&str>, now: Timestamp) -> Plan {
    if let Some(plan) = garbage::plan(world, object) {
        return plan;
    }
    let leaving = !object["metadata"]["deletionTimestamp"].is_null();
    match object["kind"].as_str() {
        Some("Namespace") => namespace::plan(world, object),
        _ if leaving => Plan::default(),
        Some("Node") => node::plan(world, object, now),
        Some("ReplicaSet") => replica_set::plan(world, object, failure, now),
        Some("Deployment") => deployment::plan(world, object, now),
        Some("DaemonSet") => daemon_set::plan(world, object, now),
        Some("StatefulSet") => stateful_set::plan(world, object, now),
        Some("Job") => job::plan(world, object, now),
        Some("CronJob") => cron_job::plan(world, object, now),
        Some("Service") => endpoints::plan(world, object),
        Some("PodDisruptionBudget") => disruption::plan(world, object),
        _ => Plan::default(),
    }
}
