//! Devices that showed a good join token and wait for an operator's consent: their token asks for it, or their name is
//! another key's.

use std::collections::BTreeMap;

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::keys::{self, Key32};
use super::{Database, StoreError};

const PENDING: TableDefinition<'_, &Key32, &[u8]> = TableDefinition::new("pending_devices");
/// Most devices that wait; the one that waits longest makes room.
const MOST: usize = 1024;

/// A device that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Waiting {
    /// The name that it wants.
    pub(crate) name: String,
    /// The token that it showed.
    pub(crate) token: String,
    /// Labels that the token gives.
    pub(crate) labels: BTreeMap<String, String>,
    /// Since when, in seconds since 1970.
    pub(crate) since: i64,
}

/// Why no device was let in.
#[derive(Debug, Error)]
pub(crate) enum ConsentError {
    /// Nobody waits under this name.
    #[error("no device waits for the name {0}: `skeg node pending` lists those that wait")]
    Nobody(String),
    /// Several do.
    #[error("{count} devices wait for the name {name}: give all but one another node_name, they come with a new key")]
    Several {
        /// The name.
        name: String,
        /// How many.
        count: usize,
    },
    /// Another key has the name.
    #[error(
        "a node named {0} is enrolled with another key: `skeg node replace {0}` gives its name and pods to the device that waits"
    )]
    Taken(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(super) fn create(write: &WriteTransaction) -> Result<(), StoreError> {
    write.open_table(PENDING)?;
    Ok(())
}

fn decode(bytes: &[u8]) -> Result<Waiting, StoreError> {
    let damaged = |error: serde_json::Error| StoreError::Damaged {
        what: "a device that waits for consent".to_owned(),
        reason: error.to_string(),
    };
    serde_json::from_slice(bytes).map_err(damaged)
}

/// All that wait, with their keys.
fn all(table: &impl ReadableTable<&'static Key32, &'static [u8]>) -> Result<Vec<(Key32, Waiting)>, StoreError> {
    let mut found = Vec::new();
    for entry in table.iter()? {
        let (key, bytes) = entry?;
        found.push((*key.value(), decode(bytes.value())?));
    }
    found.sort_by_key(|(_, waiting)| waiting.since);
    Ok(found)
}

/// Has a device wait; one that waits already goes on doing so.
pub(super) fn wait(write: &WriteTransaction, key: &Key32, waiting: &Waiting) -> Result<(), StoreError> {
    let mut table = write.open_table(PENDING)?;
    let others = all(&table)?;
    if others.len() >= MOST
        && let Some((longest, _)) = others.first()
    {
        table.remove(longest)?;
    }
    table.insert(key, serde_json::json!(waiting).to_string().as_bytes())?;
    Ok(())
}

impl Database {
    /// What a key waits for.
    pub(crate) fn waiting(&self, key: &Key32) -> Result<Option<Waiting>, StoreError> {
        let table = self.redb.begin_read()?.open_table(PENDING)?;
        table.get(key)?.map(|bytes| decode(bytes.value())).transpose()
    }

    /// Every device that waits, the longest first.
    pub(crate) fn all_waiting(&self) -> Result<Vec<Waiting>, StoreError> {
        let table = self.redb.begin_read()?.open_table(PENDING)?;
        Ok(all(&table)?.into_iter().map(|(_, waiting)| waiting).collect())
    }

    /// Lets the device in that waits for a name; with `replace` also where another key has that name, which is forgotten
    /// thereby. Gives what it waited with.
    pub(crate) fn consent(&self, name: &str, replace: bool) -> Result<Waiting, ConsentError> {
        self.write(|write| {
            let mut table = write.open_table(PENDING).map_err(StoreError::from)?;
            let mut found = all(&table)?;
            found.retain(|(_, waiting)| waiting.name == name);
            let count = found.len();
            let (Some((key, waiting)), 0 | 1) = (found.pop(), count) else {
                let name = name.to_owned();
                return Err(if count == 0 {
                    ConsentError::Nobody(name)
                } else {
                    ConsentError::Several { name, count }
                });
            };
            if keys::of_name(write, name)?.is_some_and(|old| old != key) && !replace {
                return Err(ConsentError::Taken(name.to_owned()));
            }
            table.remove(&key).map_err(StoreError::from)?;
            keys::forget(write, name)?;
            keys::add(write, &key, name)?;
            Ok(waiting)
        })
    }
}
