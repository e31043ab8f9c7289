//! Tokens of people and service accounts: only hashes are kept.

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{Database, StoreError};

const USERS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("users");

/// Whose a token is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserRecord {
    /// Names the token, not the person.
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
    /// Seconds since 1970.
    pub(crate) created: i64,
    /// Seconds since 1970; `None`: never.
    pub(crate) expires: Option<i64>,
}

pub(super) fn create(write: &WriteTransaction) -> Result<(), StoreError> {
    write.open_table(USERS)?;
    Ok(())
}

fn decode(bytes: &[u8]) -> Result<UserRecord, StoreError> {
    postcard::from_bytes(bytes)
        .map_err(|error| StoreError::Damaged { what: "a user's token".to_owned(), reason: error.to_string() })
}

impl Database {
    /// Keeps a token's hash.
    pub(crate) fn add_user(&self, hash: &[u8; 32], record: &UserRecord) -> Result<(), StoreError> {
        let bytes = postcard::to_allocvec(record)
            .map_err(|error| StoreError::Damaged { what: "a user's token".to_owned(), reason: error.to_string() })?;
        self.write(|write| {
            write.open_table(USERS)?.insert(hash, bytes.as_slice())?;
            Ok(())
        })
    }

    /// Whose token has this hash.
    pub(crate) fn user(&self, hash: &[u8; 32]) -> Result<Option<UserRecord>, StoreError> {
        let table = self.redb.begin_read()?.open_table(USERS)?;
        table.get(hash)?.map(|bytes| decode(bytes.value())).transpose()
    }

    /// All tokens.
    pub(crate) fn users(&self) -> Result<Vec<UserRecord>, StoreError> {
        let table = self.redb.begin_read()?.open_table(USERS)?;
        table.iter()?.map(|entry| decode(entry?.1.value())).collect()
    }

    /// Forgets the token of this id, and with it what has expired by `now`; says whether there was one.
    pub(crate) fn remove_user(&self, id: &str) -> Result<bool, StoreError> {
        self.write(|write| {
            let mut found = false;
            write.open_table(USERS)?.retain(|_, bytes| match decode(bytes) {
                Ok(record) if record.id == id => {
                    found = true;
                    false
                }
                _ => true,
            })?;
            Ok(found)
        })
    }

    /// Forgets tokens that have expired.
    pub(crate) fn sweep_users(&self, now: i64) -> Result<(), StoreError> {
        self.write(|write| {
            let expired = |bytes: &[u8]| decode(bytes).is_ok_and(|record| record.expires.is_some_and(|at| at <= now));
            write.open_table(USERS)?.retain(|_, bytes| !expired(bytes))?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_until_it_is_taken_back_or_swept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Database::open(&folder.path().join("store.redb"), &[7; 32]).unwrap();
        let record = |id: &str, expires| UserRecord {
            id: id.to_owned(),
            name: "ada".to_owned(),
            groups: vec!["ops".to_owned()],
            created: 1,
            expires,
        };
        for (hash, id, expires) in [([1; 32], "a", None), ([2; 32], "b", Some(10)), ([3; 32], "c", Some(20))] {
            store.add_user(&hash, &record(id, expires)).unwrap();
        }
        assert_eq!(store.user(&[1; 32]).unwrap(), Some(record("a", None)));
        assert!(store.remove_user("a").unwrap() && !store.remove_user("a").unwrap());
        assert_eq!(store.user(&[1; 32]).unwrap(), None);
        store.sweep_users(10).unwrap();
        assert_eq!(store.users().unwrap(), [record("c", Some(20))]);
    }
}
