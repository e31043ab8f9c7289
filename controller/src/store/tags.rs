//! The registry's memory: which tag of which repository names which manifest, and which blobs a repository has.

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::{Database, StoreError};

const TAGS: TableDefinition<'_, (&str, &str), &[u8; 32]> = TableDefinition::new("tags");
/// (repository, digest) → media type for manifests, empty for blobs.
const CONTENT: TableDefinition<'_, (&str, &[u8; 32]), &str> = TableDefinition::new("content");
const LAST: &str = "\u{10ffff}";

pub(super) fn create(write: &WriteTransaction) -> Result<(), StoreError> {
    write.open_table(TAGS)?;
    write.open_table(CONTENT)?;
    Ok(())
}

impl Database {
    /// What a tag names.
    pub(crate) fn tag(&self, repository: &str, tag: &str) -> Result<Option<[u8; 32]>, StoreError> {
        let table = self.redb.begin_read()?.open_table(TAGS)?;
        Ok(table.get((repository, tag))?.map(|digest| *digest.value()))
    }

    /// The tags of a repository in order.
    pub(crate) fn tags(&self, repository: &str) -> Result<Vec<String>, StoreError> {
        let table = self.redb.begin_read()?.open_table(TAGS)?;
        let mut tags = Vec::new();
        for entry in table.range((repository, "")..=(repository, LAST))? {
            tags.push(entry?.0.value().1.to_owned());
        }
        Ok(tags)
    }

    /// Every repository in order.
    pub(crate) fn repositories(&self) -> Result<Vec<String>, StoreError> {
        let table = self.redb.begin_read()?.open_table(CONTENT)?;
        let mut names: Vec<String> = Vec::new();
        for entry in table.iter()? {
            let key = entry?.0;
            let name = key.value().0;
            if names.last().is_none_or(|last| last != name) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    /// The media type of a manifest, `""` for a blob, `None` for what the repository does not have.
    pub(crate) fn content(&self, repository: &str, digest: &[u8; 32]) -> Result<Option<String>, StoreError> {
        let table = self.redb.begin_read()?.open_table(CONTENT)?;
        Ok(table.get((repository, digest))?.map(|media_type| media_type.value().to_owned()))
    }

    /// Everything that a repository has: digest and media type as in [`Database::content`].
    pub(crate) fn contents(&self, repository: &str) -> Result<Vec<([u8; 32], String)>, StoreError> {
        let table = self.redb.begin_read()?.open_table(CONTENT)?;
        let mut contents = Vec::new();
        for entry in table.range((repository, &[0; 32])..=(repository, &[0xff; 32]))? {
            let (key, media_type) = entry?;
            contents.push((*key.value().1, media_type.value().to_owned()));
        }
        Ok(contents)
    }

    /// Adds content to a repository, under a tag where one is given.
    pub(crate) fn add_content(
        &self,
        repository: &str,
        digest: &[u8; 32],
        media_type: &str,
        tag: Option<&str>,
    ) -> Result<(), StoreError> {
        self.write(|write| {
            let mut content = write.open_table(CONTENT)?;
            // A manifest that was first pushed as a blob becomes one; never the other way round.
            let is_manifest = content.get((repository, digest))?.is_some_and(|known| !known.value().is_empty());
            if !(is_manifest && media_type.is_empty()) {
                content.insert((repository, digest), media_type)?;
            }
            if let Some(tag) = tag {
                write.open_table(TAGS)?.insert((repository, tag), digest)?;
            }
            Ok(())
        })
    }

    /// Takes content, and the tags that name it, from a repository. Says whether it was there.
    pub(crate) fn remove_content(&self, repository: &str, digest: &[u8; 32]) -> Result<bool, StoreError> {
        self.write(|write| {
            let found = write.open_table(CONTENT)?.remove((repository, digest))?.is_some();
            let mut tags = write.open_table(TAGS)?;
            tags.retain_in((repository, "")..=(repository, LAST), |_, named| named != digest)?;
            Ok(found)
        })
    }

    /// Takes a tag from a repository. Says whether it was there.
    pub(crate) fn remove_tag(&self, repository: &str, tag: &str) -> Result<bool, StoreError> {
        self.write(|write| Ok(write.open_table(TAGS)?.remove((repository, tag))?.is_some()))
    }

    /// Every digest that any repository has.
    pub(crate) fn all_content(&self) -> Result<Vec<[u8; 32]>, StoreError> {
        let table = self.redb.begin_read()?.open_table(CONTENT)?;
        let mut digests = Vec::new();
        for entry in table.iter()? {
            digests.push(*entry?.0.value().1);
        }
        Ok(digests)
    }
}
