//! The devices' keys: which Ed25519 key belongs to which node. A key that is not here is nobody's.

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use thiserror::Error;

use super::tokens::{TokenError, spend};
use super::{Database, StoreError};

/// A raw Ed25519 public key.
pub(crate) type Key32 = [u8; 32];

const NODE_OF_KEY: TableDefinition<'_, &Key32, &str> = TableDefinition::new("node_of_key");
const KEY_OF_NODE: TableDefinition<'_, &str, &Key32> = TableDefinition::new("key_of_node");

/// Why a key was not enrolled.
#[derive(Debug, Error)]
pub(crate) enum EnrolError {
    /// The token does not let it in.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Another key has the name.
    #[error(
        "a node named {0} is enrolled with another key: give this device another node_name, or forget the old one \
         with `skeg delete node {0}`"
    )]
    NameTaken(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(super) fn create(write: &WriteTransaction) -> Result<(), StoreError> {
    write.open_table(NODE_OF_KEY)?;
    write.open_table(KEY_OF_NODE)?;
    Ok(())
}

impl Database {
    /// Says which node a key belongs to.
    pub(crate) fn node_of_key(&self, key: &Key32) -> Result<Option<String>, StoreError> {
        let table = self.redb.begin_read()?.open_table(NODE_OF_KEY)?;
        Ok(table.get(key)?.map(|name| name.value().to_owned()))
    }

    /// Enrols a key under a name and counts one use of the token: both or neither.
    pub(crate) fn enrol(&self, key: &Key32, name: &str, token: &[u8; 32], now: i64) -> Result<(), EnrolError> {
        self.write(|write| {
            // First, so that nobody learns without a token which names are taken; a failure below takes it back.
            spend(write, token, now)??;
            let mut keys = write.open_table(KEY_OF_NODE).map_err(StoreError::from)?;
            if keys.get(name).map_err(StoreError::from)?.is_some_and(|found| found.value() != key) {
                return Err(EnrolError::NameTaken(name.to_owned()));
            }
            keys.insert(name, key).map_err(StoreError::from)?;
            let mut names = write.open_table(NODE_OF_KEY).map_err(StoreError::from)?;
            names.insert(key, name).map_err(StoreError::from)?;
            Ok(())
        })
    }

    /// Forgets a node's key; it can come back only with a new token.
    pub(crate) fn forget_key(&self, name: &str) -> Result<Option<Key32>, StoreError> {
        self.write(|write| {
            let key = write.open_table(KEY_OF_NODE)?.remove(name)?.map(|key| *key.value());
            if let Some(key) = &key {
                write.open_table(NODE_OF_KEY)?.remove(key)?;
            }
            Ok(key)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::TokenRecord;

    fn open(uses: u32) -> (tempfile::TempDir, Database) {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("store.redb"), &[7; 32]).unwrap();
        let record = TokenRecord { id: "t1".into(), created: 0, expires: 100, uses, uses_left: uses };
        database.add_token(&[7; 32], &record).unwrap();
        (folder, database)
    }

    #[test]
    fn a_token_lets_in_as_many_as_it_was_made_for() {
        let (_folder, store) = open(1);
        store.enrol(&[1; 32], "a", &[7; 32], 99).unwrap();
        assert_eq!(store.node_of_key(&[1; 32]).unwrap().as_deref(), Some("a"));
        let again = store.enrol(&[2; 32], "b", &[7; 32], 99).unwrap_err();
        assert!(matches!(again, EnrolError::Token(TokenError::Used(id)) if id == "t1"));
        assert_eq!(store.node_of_key(&[2; 32]).unwrap(), None);
    }

    #[test]
    fn a_token_ends_on_time_and_a_wrong_one_is_unknown() {
        let (_folder, store) = open(1);
        let late = store.enrol(&[1; 32], "a", &[7; 32], 100).unwrap_err();
        assert!(matches!(late, EnrolError::Token(TokenError::Expired(_))));
        let wrong = store.enrol(&[1; 32], "a", &[8; 32], 99).unwrap_err();
        assert!(matches!(wrong, EnrolError::Token(TokenError::Unknown)));
    }

    #[test]
    fn a_refused_name_costs_no_use_of_the_token() {
        let (_folder, store) = open(2);
        store.enrol(&[1; 32], "a", &[7; 32], 1).unwrap();
        assert!(matches!(store.enrol(&[2; 32], "a", &[7; 32], 1), Err(EnrolError::NameTaken(_))));
        assert_eq!(store.tokens().unwrap()[0].uses_left, 1);
        assert!(matches!(store.enrol(&[2; 32], "a", &[8; 32], 1), Err(EnrolError::Token(TokenError::Unknown))));
        assert_eq!(store.forget_key("a").unwrap(), Some([1; 32]));
        store.enrol(&[2; 32], "a", &[7; 32], 1).unwrap();
        assert_eq!(store.node_of_key(&[1; 32]).unwrap(), None);
    }
}
