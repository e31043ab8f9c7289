//! Counts the bytes of a connection by what they are for.

use serde::{Deserialize, Serialize};

use crate::message::Message;

/// What bytes are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Purpose {
    /// Hello and its answers.
    Handshake,
    /// Heartbeats.
    Heartbeat,
    /// Manifests and what else a device is to know.
    Manifest,
    /// What a device reports.
    Status,
    /// Logs, exec and other streams.
    Stream,
}

impl Purpose {
    /// Every purpose, in the order of [`Traffic`]'s fields.
    pub const ALL: [Purpose; 5] =
        [Purpose::Handshake, Purpose::Heartbeat, Purpose::Manifest, Purpose::Status, Purpose::Stream];

    /// One word for people and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Purpose::Handshake => "handshake",
            Purpose::Heartbeat => "heartbeat",
            Purpose::Manifest => "manifest",
            Purpose::Status => "status",
            Purpose::Stream => "stream",
        }
    }

    /// What a message is for.
    pub fn of(message: &Message) -> Purpose {
        match message {
            Message::Hello(_) | Message::Welcome(_) | Message::Reject(_) | Message::Goodbye(_) => Purpose::Handshake,
            Message::Heartbeat(_) => Purpose::Heartbeat,
            Message::ManifestBegin(_)
            | Message::ManifestPiece(_)
            | Message::GetItems(_)
            | Message::Items(_)
            | Message::Held(_)
            | Message::ManifestRefused(_)
            | Message::PullSecrets(_) => Purpose::Manifest,
            Message::StatusUpdate(_) | Message::GetStatus(_) | Message::NodeStatus(_) => Purpose::Status,
            Message::StreamOpen(_)
            | Message::StreamData(_)
            | Message::StreamCredit(_)
            | Message::StreamResize(_)
            | Message::StreamClose(_) => Purpose::Stream,
        }
    }
}

/// Bytes of frames by purpose, without what TLS, TCP and IP add.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// By purpose, in the order of [`Purpose::ALL`].
    pub sent: [u64; 5],
    /// The same.
    pub received: [u64; 5],
}

impl Traffic {
    /// Adds what another connection, or another time, had.
    pub fn add(&mut self, other: &Traffic) {
        for index in 0..Purpose::ALL.len() {
            self.sent[index] = self.sent[index].saturating_add(other.sent[index]);
            self.received[index] = self.received[index].saturating_add(other.received[index]);
        }
    }

    pub(crate) fn count_sent(&mut self, purpose: Purpose, bytes: usize) {
        self.sent[purpose as usize] += bytes as u64;
    }

    pub(crate) fn count_received(&mut self, purpose: Purpose, bytes: usize) {
        self.received[purpose as usize] += bytes as u64;
    }

    /// All of it, both ways.
    pub fn total(&self) -> u64 {
        self.sent.iter().chain(&self.received).sum()
    }
}
