//! The controller's durable memory: generic objects with resource versions and watches, and the small typed
//! tables beside them (keys, tokens, manifests, tags).
//!
//! It owns consistency: every change is one transaction, and changes are published in the order in which they were
//! committed. A change of nothing but a status is durable within a second, every other one at once. It knows no Kubernetes kind and must not decide anything.

mod database;
mod history;
mod keys;
mod manifests;
mod pending;
mod placed;
mod seal;
mod tags;
mod tokens;
mod users;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use thiserror::Error;

pub(crate) use database::{Database, on_disk};
pub(crate) use history::{Expired, Watch};
pub(crate) use keys::{EnrolError, Enrolment, Key32};
pub(crate) use manifests::MAX_REVISION;
pub(crate) use pending::{ConsentError, Waiting};
pub(crate) use tokens::TokenRecord;
pub(crate) use users::UserRecord;

/// Names one object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// Kind, such as `Pod`.
    pub(crate) kind: String,
    /// Namespace; empty for kinds that have none.
    pub(crate) namespace: String,
    /// Name.
    pub(crate) name: String,
}

impl Key {
    /// Names an object.
    pub(crate) fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Key { kind: kind.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace.as_str() {
            "" => write!(f, "{} {}", self.kind, self.name),
            namespace => write!(f, "{} {namespace}/{}", self.kind, self.name),
        }
    }
}

/// What must hold for a [`Store::put`] to go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guard {
    /// The object does not exist.
    Absent,
    /// The object exists with this resource version.
    Revision(u64),
}

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is new.
    Added,
    /// It changed.
    Modified,
    /// It is gone; the change carries its last state.
    Deleted,
}

/// One committed change.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// The store's revision after it.
    pub(crate) revision: u64,
    /// What happened.
    pub(crate) action: Action,
    /// To which object.
    pub(crate) key: Key,
    /// Its new, or last, state.
    pub(crate) object: Arc<Value>,
    /// Its state before, where it was modified.
    pub(crate) old: Option<Arc<Value>>,
    /// Whether more than `status` and the resource version changed.
    pub(crate) beyond_status: bool,
}

/// Objects of one kind at one revision.
#[derive(Debug)]
pub(crate) struct List {
    /// In order of namespace and name.
    pub(crate) items: Vec<Value>,
    /// The store's revision.
    pub(crate) revision: u64,
}

/// Why the store did not do what was asked.
#[derive(Debug, Error)]
pub(crate) enum StoreError {
    /// There is no such object.
    #[error("{0} does not exist")]
    NotFound(Key),
    /// There is such an object already.
    #[error("{0} exists already")]
    Exists(Key),
    /// Someone else changed the object meanwhile.
    #[error("{key} is at resource version {found}, not {expected}: read it again and repeat the change")]
    Conflict {
        /// The object.
        key: Key,
        /// What the caller saw.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// Bytes on disk are not what was written.
    #[error("{what} in the database does not decode: {reason}")]
    Damaged {
        /// Which record.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kernel gave no random bytes, or the cipher refused.
    #[error("a secret cannot be sealed: no random bytes (getrandom failed)")]
    Sealing,
    /// A manifest is larger than the link carries.
    #[error("{0}")]
    Large(String),
    /// The kernel gave no random bytes.
    #[error("no random bytes (getrandom failed)")]
    Random,
    /// The database file could not be opened.
    #[error("cannot open the database {path}: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What redb says.
        source: Box<redb::Error>,
    },
    /// The database failed, for example because the disk is full.
    #[error("the database failed: {0}")]
    Database(#[source] Box<redb::Error>),
}

macro_rules! from_redb {
    ($($error:ty),*) => {
        $(impl From<$error> for StoreError {
            fn from(error: $error) -> Self { StoreError::Database(Box::new(error.into())) }
        })*
    };
}
from_redb!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError);

/// Generic objects: JSON under (kind, namespace, name), each with the resource version of its last change.
pub(crate) trait Store: Send + Sync {
    /// Gives an object.
    fn get(&self, key: &Key) -> Result<Option<Value>, StoreError>;
    /// Lists a kind, in one namespace or all.
    fn list(&self, kind: &str, namespace: Option<&str>) -> Result<List, StoreError>;
    /// Writes an object if the guard holds and gives it back with its resource version. What is already so is
    /// not written again.
    fn put(&self, key: &Key, object: Value, guard: Guard) -> Result<Value, StoreError>;
    /// Removes an object and gives its last state.
    fn remove(&self, key: &Key) -> Result<Value, StoreError>;
    /// Follows all changes after `since`, or from now on.
    fn watch(&self, since: Option<u64>) -> Result<Watch, Expired>;
}

/// Reads an object's resource version; 0 where it has none.
pub(crate) fn revision_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Changes an object in place, again from its newest state when someone else was quicker. `None` when it does
/// not exist.
pub(crate) fn update(
    store: &dyn Store,
    key: &Key,
    mut change: impl FnMut(&mut Value),
) -> Result<Option<Value>, StoreError> {
    loop {
        let Some(mut object) = store.get(key)? else { return Ok(None) };
        let guard = Guard::Revision(revision_of(&object));
        change(&mut object);
        match store.put(key, object, guard) {
            Err(StoreError::Conflict { .. }) => {}
            Err(StoreError::NotFound(_)) => return Ok(None),
            other => return other.map(Some),
        }
    }
}
