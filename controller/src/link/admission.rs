//! Who may come in: a key that is enrolled, or one that brings a join token that still lets somebody in.

use std::collections::BTreeMap;

use skeg_protocol::id::is_name;
use skeg_protocol::message::{Hello, Reject, RejectCode, VERSIONS};

use crate::secret::sha256;
use crate::store::{Database, EnrolError, Enrolment, Key32, StoreError};
use crate::time;

/// When a refused device may ask again: somebody has to do something first.
const REFUSED_SECONDS: u16 = 60;

/// What a device that is let in is called and speaks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Admitted {
    pub(super) node: String,
    pub(super) version: u16,
    /// Whether it was enrolled just now.
    pub(super) new: bool,
    /// Labels that its token gives to its node.
    pub(super) labels: BTreeMap<String, String>,
}

/// Decides about a device that has proved to hold `key`.
pub(super) fn admit(store: &Database, key: &Key32, hello: &Hello) -> Result<Result<Admitted, Reject>, StoreError> {
    let Some(version) = VERSIONS.common(hello.versions) else {
        let (theirs, ours) = (hello.versions, VERSIONS);
        return Ok(reject(
            RejectCode::Version,
            format!(
                "the device speaks protocol versions {} to {}, this controller {} to {}: upgrade the older of the two",
                theirs.oldest, theirs.newest, ours.oldest, ours.newest
            ),
        ));
    };
    let name = hello.node.name.as_str();
    if !is_name(name) {
        return Ok(reject(RejectCode::Invalid, format!("node name {name:?} must be a DNS name: set node_name")));
    }
    if let Some(node) = store.node_of_key(key)? {
        return Ok(Ok(Admitted { node, version, new: false, labels: BTreeMap::new() }));
    }
    if store.waiting(key)?.is_some_and(|waiting| waiting.name == name) {
        return Ok(waits(name, false));
    }
    let Some(secret) = &hello.join else {
        return Ok(reject(
            RejectCode::UnknownKey,
            "this device's key is not enrolled here: give it a join token from `skeg token create`".to_owned(),
        ));
    };
    let now = time::now().as_second();
    match store.enrol(key, name, &sha256(secret.as_bytes()), now) {
        Ok(Enrolment::In(labels)) => Ok(Ok(Admitted { node: name.to_owned(), version, new: true, labels })),
        Ok(Enrolment::Waits { taken }) => Ok(waits(name, taken)),
        Err(EnrolError::Token(error)) => Ok(reject(RejectCode::Token, error.to_string())),
        Err(EnrolError::Store(error)) => Err(error),
    }
}

fn waits(name: &str, taken: bool) -> Result<Admitted, Reject> {
    if taken {
        let message = format!(
            "a node named {name} is enrolled with another key: give this device another node_name, or consent with \
             `skeg node replace {name}`"
        );
        return reject(RejectCode::NameTaken, message);
    }
    reject(RejectCode::Pending, format!("this device waits for consent: `skeg node approve {name}`"))
}

fn reject(code: RejectCode, message: String) -> Result<Admitted, Reject> {
    Err(Reject { code, message, retry_seconds: REFUSED_SECONDS })
}
