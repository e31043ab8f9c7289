//! Join tokens: only the SHA-256 of a secret is kept, with when it expires and how many devices it may still let
//! in. A use is counted in the same transaction that enrols the key.

use std::collections::BTreeMap;

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{Database, StoreError};

const TOKENS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("tokens");
/// Spent tokens are kept this long, so that a late device is told "used" or "expired" and not "unknown".
const KEPT_SECONDS: i64 = 7 * 24 * 3600;

/// What is known of a join token. Times are seconds since 1970 by the controller's clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRecord {
    /// For people; says nothing about the secret.
    pub(crate) id: String,
    /// When it was made.
    pub(crate) created: i64,
    /// When it ends.
    pub(crate) expires: i64,
    /// How many devices it was made for.
    pub(crate) uses: u32,
    /// How many it may still let in.
    pub(crate) uses_left: u32,
    /// Labels that a device's node gets.
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    /// A device waits for an operator's consent.
    #[serde(default)]
    pub(crate) approve: bool,
    /// It lets nobody in any more.
    #[serde(default)]
    pub(crate) revoked: bool,
}

/// Why a token lets nobody in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum TokenError {
    /// Nobody made it.
    #[error("the join token is not known here: create one with `skeg token create`")]
    Unknown,
    /// Its time is over.
    #[error("the join token {0} has expired: create another with `skeg token create`")]
    Expired(String),
    /// An operator took it back.
    #[error("the join token {0} was revoked: create another with `skeg token create`")]
    Revoked(String),
    /// Every use was made.
    #[error("the join token {0} was used already: create another with `skeg token create`")]
    Used(String),
}

pub(super) fn create(write: &WriteTransaction) -> Result<(), StoreError> {
    write.open_table(TOKENS)?;
    Ok(())
}

fn decode(bytes: &[u8]) -> Result<TokenRecord, StoreError> {
    serde_json::from_slice(bytes)
        .map_err(|error| StoreError::Damaged { what: "a join token".to_owned(), reason: error.to_string() })
}

fn encode(record: &TokenRecord) -> Vec<u8> {
    serde_json::json!(record).to_string().into_bytes()
}

/// Counts one use of the token with this hash, within the caller's transaction.
pub(super) fn spend(
    write: &WriteTransaction,
    hash: &[u8; 32],
    now: i64,
) -> Result<Result<TokenRecord, TokenError>, StoreError> {
    let mut table = write.open_table(TOKENS)?;
    let Some(mut record) = table.get(hash)?.map(|bytes| decode(bytes.value())).transpose()? else {
        return Ok(Err(TokenError::Unknown));
    };
    if record.revoked {
        return Ok(Err(TokenError::Revoked(record.id)));
    }
    if record.uses_left == 0 {
        return Ok(Err(TokenError::Used(record.id)));
    }
    if now >= record.expires {
        return Ok(Err(TokenError::Expired(record.id)));
    }
    record.uses_left -= 1;
    table.insert(hash, encode(&record).as_slice())?;
    Ok(Ok(record))
}

impl Database {
    /// Keeps a new token by the hash of its secret, and drops those that ended long ago.
    pub(crate) fn add_token(&self, hash: &[u8; 32], record: &TokenRecord) -> Result<(), StoreError> {
        self.write(|write| {
            let mut table = write.open_table(TOKENS)?;
            table.insert(hash, encode(record).as_slice())?;
            let oldest = record.created - KEPT_SECONDS;
            table.retain(|_, bytes| decode(bytes).is_ok_and(|record| record.expires > oldest))?;
            Ok(())
        })
    }

    /// Takes back a token; says whether there is one with this id.
    pub(crate) fn revoke_token(&self, id: &str) -> Result<bool, StoreError> {
        self.write(|write| {
            let mut table = write.open_table(TOKENS)?;
            let mut found = None;
            for entry in table.iter()? {
                let (hash, bytes) = entry?;
                let record = decode(bytes.value())?;
                if record.id == id {
                    found = Some((*hash.value(), TokenRecord { revoked: true, ..record }));
                }
            }
            let Some((hash, record)) = found else { return Ok(false) };
            table.insert(&hash, encode(&record).as_slice())?;
            Ok(true)
        })
    }

    /// Lists the tokens, oldest first.
    pub(crate) fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        let table = self.redb.begin_read()?.open_table(TOKENS)?;
        let mut records = Vec::new();
        for entry in table.iter()? {
            records.push(decode(entry?.1.value())?);
        }
        records.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
        Ok(records)
    }
}
