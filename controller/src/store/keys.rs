//! The devices' keys: which Ed25519 key belongs to which node. A key that is not here is nobody's.

use std::collections::BTreeMap;

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use thiserror::Error;

use super::pending::{Waiting, wait};
use super::tokens::{TokenError, spend};
use super::{Database, StoreError, on_disk};

/// A raw Ed25519 public key.
pub(crate) type Key32 = [u8; 32];

const NODE_OF_KEY: TableDefinition<'_, &Key32, &str> = TableDefinition::new("node_of_key");
const KEY_OF_NODE: TableDefinition<'_, &str, &Key32> = TableDefinition::new("key_of_node");

/// What came of a good token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Enrolment {
    /// The key is enrolled, and its node gets these labels.
    In(BTreeMap<String, String>),
    /// An operator has to consent first.
    Waits {
        /// Because another key has the name.
        taken: bool,
    },
}

/// Why a key was not enrolled.
#[derive(Debug, Error)]
pub(crate) enum EnrolError {
    /// The token does not let it in.
    #[error(transparent)]
    Token(#[from] TokenError),
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

    /// Enrols a key under a name and counts one use of the token, or has it wait for consent. A device that waits because
    /// its name is taken costs no use.
    pub(crate) fn enrol(&self, key: &Key32, name: &str, token: &[u8; 32], now: i64) -> Result<Enrolment, EnrolError> {
        let mut write = self.redb.begin_write().map_err(StoreError::from)?;
        // First, so that nobody learns without a token which names are taken.
        let record = spend(&write, token, now)??;
        let taken = of_name(&write, name)?.is_some_and(|found| found != *key);
        if taken {
            write.abort().map_err(StoreError::from)?;
            write = self.redb.begin_write().map_err(StoreError::from)?;
        }
        let enrolment = if taken || record.approve {
            let waiting = Waiting { name: name.to_owned(), token: record.id, labels: record.labels, since: now };
            wait(&write, key, &waiting)?;
            Enrolment::Waits { taken }
        } else {
            add(&write, key, name)?;
            Enrolment::In(record.labels)
        };
        on_disk(|| write.commit()).map_err(StoreError::from)?;
        Ok(enrolment)
    }

    /// Forgets a node's key; it can come back only with a new token.
    pub(crate) fn forget_key(&self, name: &str) -> Result<Option<Key32>, StoreError> {
        self.write(|write| forget(write, name))
    }
}

/// The key that has a name.
pub(super) fn of_name(write: &WriteTransaction, name: &str) -> Result<Option<Key32>, StoreError> {
    Ok(write.open_table(KEY_OF_NODE)?.get(name)?.map(|key| *key.value()))
}

/// Gives a name to a key.
pub(super) fn add(write: &WriteTransaction, key: &Key32, name: &str) -> Result<(), StoreError> {
    write.open_table(KEY_OF_NODE)?.insert(name, key)?;
    write.open_table(NODE_OF_KEY)?.insert(key, name)?;
    Ok(())
}

/// Takes a name from its key.
pub(super) fn forget(write: &WriteTransaction, name: &str) -> Result<Option<Key32>, StoreError> {
    let key = write.open_table(KEY_OF_NODE)?.remove(name)?.map(|key| *key.value());
    if let Some(key) = &key {
        write.open_table(NODE_OF_KEY)?.remove(key)?;
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ConsentError, TokenRecord};

    fn open(uses: u32) -> (tempfile::TempDir, Database) {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("store.redb"), &[7; 32]).unwrap();
        let record = TokenRecord {
            id: "t1".into(),
            created: 0,
            expires: 100,
            uses,
            uses_left: uses,
            labels: [("site".to_owned(), "kiln".to_owned())].into(),
            approve: false,
            revoked: false,
        };
        database.add_token(&[7; 32], &record).unwrap();
        (folder, database)
    }

    #[test]
    fn a_token_lets_in_as_many_as_it_was_made_for() {
        let (_folder, store) = open(1);
        let enrolment = store.enrol(&[1; 32], "a", &[7; 32], 99).unwrap();
        assert!(matches!(enrolment, Enrolment::In(labels) if labels["site"] == "kiln"));
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
    fn a_taken_name_costs_no_use_of_the_token_and_is_given_only_with_consent() {
        let (_folder, store) = open(2);
        store.enrol(&[1; 32], "a", &[7; 32], 1).unwrap();
        assert_eq!(store.enrol(&[2; 32], "a", &[7; 32], 1).unwrap(), Enrolment::Waits { taken: true });
        assert_eq!(store.tokens().unwrap()[0].uses_left, 1);
        assert!(matches!(store.enrol(&[2; 32], "a", &[8; 32], 1), Err(EnrolError::Token(TokenError::Unknown))));
        assert_eq!(store.node_of_key(&[1; 32]).unwrap().as_deref(), Some("a"));
        assert!(matches!(store.consent("a", false), Err(ConsentError::Taken(_))));
        assert!(matches!(store.consent("b", true), Err(ConsentError::Nobody(_))));
        assert_eq!(store.consent("a", true).unwrap().token, "t1");
        assert_eq!(store.node_of_key(&[2; 32]).unwrap().as_deref(), Some("a"));
        assert_eq!(store.node_of_key(&[1; 32]).unwrap(), None);
        assert!(store.all_waiting().unwrap().is_empty() && store.waiting(&[2; 32]).unwrap().is_none());
    }

    #[test]
    fn a_token_can_ask_for_consent_and_be_revoked() {
        let (_folder, store) = open(3);
        let hash = [9; 32];
        let record = TokenRecord { id: "t2".into(), approve: true, ..store.tokens().unwrap()[0].clone() };
        store.add_token(&hash, &record).unwrap();
        assert_eq!(store.enrol(&[1; 32], "a", &hash, 1).unwrap(), Enrolment::Waits { taken: false });
        assert_eq!(store.node_of_key(&[1; 32]).unwrap(), None);
        assert_eq!(store.waiting(&[1; 32]).unwrap().map(|waiting| waiting.name).as_deref(), Some("a"));
        store.enrol(&[2; 32], "a", &hash, 1).unwrap();
        assert!(matches!(store.consent("a", true), Err(ConsentError::Several { count: 2, .. })));
        store.enrol(&[2; 32], "b", &hash, 1).unwrap();
        assert_eq!(store.consent("a", false).unwrap().labels["site"], "kiln");
        assert_eq!(store.node_of_key(&[1; 32]).unwrap().as_deref(), Some("a"));
        assert!(store.revoke_token("t1").unwrap() && !store.revoke_token("t9").unwrap());
        let error = store.enrol(&[4; 32], "d", &[7; 32], 1).unwrap_err();
        assert!(matches!(error, EnrolError::Token(TokenError::Revoked(id)) if id == "t1"));
    }
}
