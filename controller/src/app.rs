//! What every part of the controller shares: the store, the links, the admin's token and the way to nudge the
//! manager. It holds no logic.

use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, watch};

use crate::api::Audit;
use crate::images::Upstream;
use crate::link::Hub;
use crate::manager::Nudge;
use crate::registry::Registry;
use crate::store::{Database, Key32};

/// The controller's shared state.
#[derive(Debug)]
pub(crate) struct App {
    /// Durable memory.
    pub(crate) store: Arc<Database>,
    /// Devices that are connected.
    pub(crate) hub: Hub,
    /// Images that were pushed here.
    pub(crate) registry: Registry,
    /// How other registries are reached.
    pub(crate) upstream: Upstream,
    /// Seconds between a device's heartbeats.
    pub(crate) heartbeat_seconds: u16,
    /// What the admin shows to be let in.
    pub(crate) admin_token: String,
    /// The raw public key that devices pin.
    pub(crate) public_key: Key32,
    /// Who changed what.
    pub(crate) audit: Audit,
    /// Held while something that there is once is given out: an address, a port, a share of a quota.
    pub(crate) allocating: Mutex<()>,
    /// Wakes the manager for what no change of an object tells.
    pub(crate) nudges: mpsc::UnboundedSender<Nudge>,
    /// Becomes true when the controller is to stop.
    pub(crate) stopping: watch::Receiver<bool>,
}

impl App {
    /// Wakes the manager.
    pub(crate) fn nudge(&self, nudge: Nudge) {
        // The manager is gone only when the whole controller stops.
        let _ = self.nudges.send(nudge);
    }

    /// Waits until the controller is to stop.
    pub(crate) async fn stopped(&self) {
        let mut stopping = self.stopping.clone();
        // An error means that the sender is gone, and with it the controller.
        let _ = stopping.wait_for(|stop| *stop).await;
    }
}
