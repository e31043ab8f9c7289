//! The compiled manifests of each node: the last few revisions whole, so that a device that holds one of them is sent
//! only the difference, and which revisions were ever made here.
//!
//! The latter is kept as a list of epochs (one for each start of the controller that made a revision) with the highest
//! revision of each. A device that holds a revision which is not in it knows more than this database: it may have been
//! restored from a backup.

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use skeg_protocol::message::{Epoch, Held};
use skeg_protocol::sync::{Shelf, body};
use skeg_protocol::{Digest, Manifest};

use super::seal::Seal;
use super::{Database, Key, StoreError};

/// (node, revision) → epoch, digest, body. The body is sealed: it holds the Secrets that the node's pods name.
const MANIFESTS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("manifests");
/// Node → epochs with the highest revision of each, oldest first.
const MADE: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("made_revisions");
/// Revisions kept a node.
const KEPT: usize = 8;
/// Epochs kept a node: starts of the controller in which it made a revision for the node.
const EPOCHS: usize = 256;
/// Bytes before a body.
const HEAD: usize = 8 + 32;
/// Highest revision that a device may say it holds: those that follow must still fit into the number.
pub(crate) const MAX_REVISION: u64 = u64::MAX / 2;

pub(super) fn create(write: &WriteTransaction) -> Result<(), StoreError> {
    write.open_table(MANIFESTS)?;
    write.open_table(MADE)?;
    Ok(())
}

fn damaged(node: &str, revision: u64, reason: impl ToString) -> StoreError {
    StoreError::Damaged { what: format!("the manifest {revision} of node {node}"), reason: reason.to_string() }
}

/// A record's name and body.
fn open<'a>(node: &str, revision: u64, record: &'a [u8]) -> Result<(Held, &'a [u8]), StoreError> {
    let (head, body) = record.split_at_checked(HEAD).ok_or_else(|| damaged(node, revision, "it is too short"))?;
    let (mut epoch, mut digest) = ([0; 8], [0; 32]);
    epoch.copy_from_slice(&head[..8]);
    digest.copy_from_slice(&head[8..]);
    Ok((Held { revision, digest: Digest(digest), epoch }, body))
}

/// What a body is sealed to: its place.
fn place(node: &str, revision: u64) -> Key {
    Key::new("manifest", node, &revision.to_string())
}

fn decode(seal: &Seal, node: &str, revision: u64, record: &[u8]) -> Result<Manifest, StoreError> {
    let (held, bytes) = open(node, revision, record)?;
    let bytes = seal.open(&place(node, revision), bytes)?;
    body::decode(held, &bytes).map_err(|error| damaged(node, revision, error))
}

/// Epochs and the highest revision of each.
fn made(record: &[u8]) -> Vec<(Epoch, u64)> {
    let entry = |bytes: &[u8]| {
        let (mut epoch, mut revision) = ([0; 8], [0; 8]);
        epoch.copy_from_slice(&bytes[..8]);
        revision.copy_from_slice(&bytes[8..]);
        (epoch, u64::from_le_bytes(revision))
    };
    record.chunks_exact(16).map(entry).collect()
}

/// Notes that a revision is of this epoch.
fn note(write: &WriteTransaction, node: &str, epoch: Epoch, revision: u64) -> Result<(), StoreError> {
    let mut table = write.open_table(MADE)?;
    let mut known = table.get(node)?.map_or_else(Vec::new, |record| made(record.value()));
    match known.iter_mut().find(|(one, _)| *one == epoch) {
        Some((_, highest)) => *highest = revision.max(*highest),
        None => known.push((epoch, revision)),
    }
    let known = &known[known.len().saturating_sub(EPOCHS)..];
    let record: Vec<u8> = known.iter().flat_map(|(epoch, highest)| [*epoch, highest.to_le_bytes()].concat()).collect();
    table.insert(node, record.as_slice())?;
    Ok(())
}

/// Adds a revision and drops the oldest that are kept.
fn add(write: &WriteTransaction, seal: &Seal, node: &str, held: Held, bytes: &[u8]) -> Result<(), StoreError> {
    let mut table = write.open_table(MANIFESTS)?;
    let sealed = seal.seal(&place(node, held.revision), bytes.to_vec())?;
    let record = [&held.epoch[..], &held.digest.0, &sealed].concat();
    table.insert((node, held.revision), record.as_slice())?;
    let kept: Vec<u64> = table
        .range((node, 0)..=(node, u64::MAX))?
        .map(|entry| Ok(entry?.0.value().1))
        .collect::<Result<_, StoreError>>()?;
    for old in kept.iter().take(kept.len().saturating_sub(KEPT)) {
        table.remove((node, *old))?;
    }
    drop(table);
    note(write, node, held.epoch, held.revision)
}

/// The newest record of a node.
fn newest(write: &WriteTransaction, seal: &Seal, node: &str) -> Result<Option<(Held, Vec<u8>)>, StoreError> {
    let table = write.open_table(MANIFESTS)?;
    let Some(entry) = table.range((node, 0)..=(node, u64::MAX))?.next_back() else { return Ok(None) };
    let (key, record) = entry?;
    let (held, bytes) = open(node, key.value().1, record.value())?;
    Ok(Some((held, seal.open(&place(node, held.revision), bytes)?)))
}

/// The highest revision that a node ever had here.
fn highest(write: &WriteTransaction, node: &str) -> Result<u64, StoreError> {
    let table = write.open_table(MADE)?;
    let known = table.get(node)?.map_or_else(Vec::new, |record| made(record.value()));
    Ok(known.iter().map(|(_, revision)| *revision).max().unwrap_or(0))
}

fn empty_body() -> Result<Vec<u8>, StoreError> {
    body::encode(&Manifest::default()).map_err(|error| damaged("", 0, error))
}

impl Database {
    /// The newest manifest of a node; an empty one where it has none.
    pub(crate) fn newest_manifest(&self, node: &str) -> Result<Manifest, StoreError> {
        let table = self.redb.begin_read()?.open_table(MANIFESTS)?;
        match table.range((node, 0)..=(node, u64::MAX))?.next_back().transpose()? {
            Some((key, record)) => decode(&self.seal, node, key.value().1, record.value()),
            None => Ok(Manifest::default()),
        }
    }

    /// Makes these bodies the newest manifests of their nodes, all or none, and gives the nodes for which that changed
    /// anything.
    pub(crate) fn advance_manifests(&self, wanted: &[(String, Vec<u8>)]) -> Result<Vec<String>, StoreError> {
        let empty = empty_body()?;
        let mut changed = Vec::new();
        for (node, bytes) in wanted {
            let newest = self.shelf(node).newest()?;
            // Every node begins with nothing, which is not worth a revision.
            if newest.digest != Digest::of(bytes) && (newest.revision > 0 || *bytes != empty) {
                changed.push((node, bytes));
            }
        }
        if changed.is_empty() {
            return Ok(Vec::new());
        }
        self.write(|write| {
            for (node, bytes) in &changed {
                let revision = highest(write, node)?.saturating_add(1);
                add(write, &self.seal, node, body::name(revision, self.epoch, bytes), bytes)?;
            }
            Ok::<_, StoreError>(())
        })?;
        Ok(changed.into_iter().map(|(node, _)| node.clone()).collect())
    }

    /// Takes over a node from whoever made what its device holds: the newest manifest gets a revision above that.
    ///
    /// # Errors
    /// The revision is one that nobody makes, or the database fails.
    pub(crate) fn take_over(&self, node: &str, held: &Held) -> Result<(), StoreError> {
        if held.revision > MAX_REVISION {
            return Err(damaged(node, held.revision, "the device holds a revision that nobody made"));
        }
        let empty = empty_body()?;
        self.write(|write| {
            note(write, node, held.epoch, held.revision)?;
            let bytes = newest(write, &self.seal, node)?.map_or(empty, |(_, bytes)| bytes);
            let revision = highest(write, node)?.saturating_add(1);
            add(write, &self.seal, node, body::name(revision, self.epoch, &bytes), &bytes)
        })
    }

    /// Whether any kept manifest of a node has a pod.
    pub(crate) fn was_sent(&self, node: &str, uid: &str) -> Result<bool, StoreError> {
        let Ok(uid) = uid.parse() else { return Ok(false) };
        let table = self.redb.begin_read()?.open_table(MANIFESTS)?;
        for entry in table.range((node, 0)..=(node, u64::MAX))? {
            let (key, record) = entry?;
            if decode(&self.seal, node, key.value().1, record.value())?.pod(uid).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Forgets all manifests of a node, but not that they were made: a device that comes back with one is known.
    pub(crate) fn forget_manifests(&self, node: &str) -> Result<(), StoreError> {
        self.write(|write| {
            write.open_table(MANIFESTS)?.retain_in((node, 0)..=(node, u64::MAX), |_, _| false)?;
            Ok(())
        })
    }

    /// The manifests of one node, as the link asks for them.
    pub(crate) fn shelf<'a>(&'a self, node: &'a str) -> NodeShelf<'a> {
        NodeShelf { store: self, node }
    }
}

/// The manifests of one node.
#[derive(Debug)]
pub(crate) struct NodeShelf<'a> {
    store: &'a Database,
    node: &'a str,
}

impl Shelf for NodeShelf<'_> {
    type Error = StoreError;

    fn newest(&self) -> Result<Held, StoreError> {
        let table = self.store.redb.begin_read()?.open_table(MANIFESTS)?;
        match table.range((self.node, 0)..=(self.node, u64::MAX))?.next_back().transpose()? {
            Some((key, record)) => Ok(open(self.node, key.value().1, record.value())?.0),
            None => Ok(Held::NOTHING),
        }
    }

    fn body(&self, revision: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let table = self.store.redb.begin_read()?.open_table(MANIFESTS)?;
        let record = table.get((self.node, revision))?;
        let Some(record) = record else { return Ok(None) };
        let sealed = open(self.node, revision, record.value())?.1;
        self.store.seal.open(&place(self.node, revision), sealed).map(Some)
    }

    fn kept(&self) -> Result<Vec<u64>, StoreError> {
        let table = self.store.redb.begin_read()?.open_table(MANIFESTS)?;
        table.range((self.node, 0)..=(self.node, u64::MAX))?.map(|entry| Ok(entry?.0.value().1)).collect()
    }

    fn knows(&self, held: &Held) -> Result<bool, StoreError> {
        if held.revision == 0 {
            return Ok(true);
        }
        let table = self.store.redb.begin_read()?.open_table(MADE)?;
        let known = table.get(self.node)?.map_or_else(Vec::new, |record| made(record.value()));
        Ok(known.iter().any(|(epoch, highest)| *epoch == held.epoch && held.revision <= *highest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manifest of a node that is told by a number.
    fn wanted(node: &str, seconds: u32) -> (String, Vec<u8>) {
        let manifest = Manifest { trial_seconds: seconds, ..Manifest::default() };
        (node.to_owned(), body::encode(&manifest).unwrap())
    }

    fn open(folder: &tempfile::TempDir) -> Database {
        Database::open(&folder.path().join("store.redb"), &[7; 32]).unwrap()
    }

    #[test]
    fn a_revision_grows_only_with_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        assert!(store.advance_manifests(&[wanted("n", 0)]).unwrap().is_empty());
        assert_eq!(store.advance_manifests(&[wanted("n", 1), wanted("m", 1)]).unwrap(), ["n", "m"]);
        let one = store.newest_manifest("n").unwrap();
        assert_eq!((one.revision, one.trial_seconds, one.epoch), (1, 1, store.epoch));
        assert!(store.advance_manifests(&[wanted("n", 1)]).unwrap().is_empty());
        for seconds in 2..12 {
            store.advance_manifests(&[wanted("n", seconds), wanted("m", 1)]).unwrap();
        }
        assert_eq!(store.shelf("n").body(3).unwrap(), None);
        assert_eq!(store.shelf("n").kept().unwrap(), (4..=11).collect::<Vec<_>>());
        assert_eq!(store.newest_manifest("m").unwrap().revision, 1);
        assert_eq!(store.newest_manifest("other").unwrap(), Manifest::default());
        store.advance_manifests(&[wanted("n", 0)]).unwrap();
        assert_eq!(store.newest_manifest("n").unwrap().revision, 12);
    }

    #[test]
    fn a_secret_in_a_manifest_lies_sealed_on_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        let entries = vec![("key".to_owned(), b"hush-hush-hush".to_vec())];
        let data = skeg_protocol::manifest::Data { entries, ..Default::default() };
        let manifest = Manifest { data: vec![data], ..Manifest::default() };
        store.advance_manifests(&[("n".to_owned(), body::encode(&manifest).unwrap())]).unwrap();
        assert_eq!(store.newest_manifest("n").unwrap().data, manifest.data);
        drop(store);
        let bytes = std::fs::read(folder.path().join("store.redb")).unwrap();
        assert!(!bytes.windows(9).any(|window| window == b"hush-hush"));
    }

    #[test]
    fn what_was_made_here_is_known_for_ever_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        store.advance_manifests(&[wanted("n", 1)]).unwrap();
        let old = store.shelf("n").newest().unwrap();
        drop(store);
        let store = open(&folder);
        assert_ne!(store.epoch, old.epoch);
        store.advance_manifests(&[wanted("n", 2)]).unwrap();
        let shelf = store.shelf("n");
        for (revision, epoch, known) in [
            (0, [9; 8], true),
            (1, old.epoch, true),
            (2, old.epoch, false),
            (2, store.epoch, true),
            (3, store.epoch, false),
            (1, [9; 8], false),
        ] {
            assert_eq!(shelf.knows(&Held { revision, epoch, ..old }).unwrap(), known, "{revision} {epoch:?}");
        }
        store.forget_manifests("n").unwrap();
        assert!(shelf.knows(&old).unwrap());
        store.advance_manifests(&[wanted("n", 1)]).unwrap();
        assert_eq!(shelf.newest().unwrap().revision, 3, "a number was used twice");
    }

    #[test]
    fn a_node_is_taken_over_above_what_its_device_holds() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(&folder);
        let held = Held { revision: 40, digest: Digest::of(b"x"), epoch: [3; 8] };
        store.take_over("n", &held).unwrap();
        assert!(store.shelf("n").knows(&held).unwrap());
        assert_eq!(store.newest_manifest("n").unwrap().revision, 41);
        assert!(store.take_over("n", &Held { revision: u64::MAX, ..held }).is_err());
    }
}
