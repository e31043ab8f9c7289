//! The compiled manifests of each node: its revision counter, and the last few revisions whole, so that a device
//! that holds one of them is sent only the difference.

use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use skeg_protocol::{Digest, Manifest, Pod};

use super::{Database, StoreError};

const MANIFESTS: TableDefinition<'_, (&str, u64), &[u8]> = TableDefinition::new("manifests");
/// Revisions kept a node.
const KEPT: usize = 8;

/// A manifest with its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredManifest {
    /// Revision and pods.
    pub(crate) manifest: Manifest,
    /// SHA-256 over the postcard encoding of the pods; zeros for revision 0.
    pub(crate) digest: Digest,
}

impl StoredManifest {
    /// The manifest that every node starts with.
    pub(crate) fn empty() -> Self {
        StoredManifest { manifest: Manifest::default(), digest: Digest([0; 32]) }
    }
}

pub(super) fn create(write: &WriteTransaction) -> Result<(), StoreError> {
    write.open_table(MANIFESTS)?;
    Ok(())
}

fn decode(node: &str, revision: u64, bytes: &[u8]) -> Result<StoredManifest, StoreError> {
    let damaged = |error: postcard::Error| StoreError::Damaged {
        what: format!("the manifest {revision} of node {node}"),
        reason: error.to_string(),
    };
    let pods: Vec<Pod> = postcard::from_bytes(bytes).map_err(damaged)?;
    Ok(StoredManifest { manifest: Manifest { revision, pods, ..Manifest::default() }, digest: digest(bytes) })
}

fn digest(bytes: &[u8]) -> Digest {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    Digest(out)
}

impl Database {
    /// The newest manifest of a node.
    pub(crate) fn newest_manifest(&self, node: &str) -> Result<StoredManifest, StoreError> {
        let table = self.redb.begin_read()?.open_table(MANIFESTS)?;
        match table.range((node, 0)..=(node, u64::MAX))?.next_back().transpose()? {
            Some((key, bytes)) => decode(node, key.value().1, bytes.value()),
            None => Ok(StoredManifest::empty()),
        }
    }

    /// A manifest of a node that is still kept.
    pub(crate) fn manifest(&self, node: &str, revision: u64) -> Result<Option<StoredManifest>, StoreError> {
        let table = self.redb.begin_read()?.open_table(MANIFESTS)?;
        table.get((node, revision))?.map(|bytes| decode(node, revision, bytes.value())).transpose()
    }

    /// Makes `pods` the node's next revision, above `floor`, unless they are what the newest one holds and that
    /// is above `floor` already. Gives the newest manifest, and whether it is new.
    pub(crate) fn advance_manifest(
        &self,
        node: &str,
        pods: Vec<Pod>,
        floor: u64,
    ) -> Result<(StoredManifest, bool), StoreError> {
        let newest = self.newest_manifest(node)?;
        if newest.manifest.pods == pods && newest.manifest.revision >= floor {
            return Ok((newest, false));
        }
        let revision = newest.manifest.revision.max(floor).saturating_add(1);
        let bytes = postcard::to_allocvec(&pods).map_err(|error| StoreError::Damaged {
            what: format!("the manifest {revision} of node {node}"),
            reason: error.to_string(),
        })?;
        self.write(|write| {
            let mut table = write.open_table(MANIFESTS)?;
            table.insert((node, revision), bytes.as_slice())?;
            let kept: Vec<u64> = table
                .range((node, 0)..=(node, u64::MAX))?
                .map(|entry| Ok(entry?.0.value().1))
                .collect::<Result<_, StoreError>>()?;
            for old in kept.iter().take(kept.len().saturating_sub(KEPT)) {
                table.remove((node, *old))?;
            }
            Ok::<_, StoreError>(())
        })?;
        Ok((
            StoredManifest { manifest: Manifest { revision, pods, ..Manifest::default() }, digest: digest(&bytes) },
            true,
        ))
    }

    /// Whether any kept manifest of a node has a pod.
    pub(crate) fn was_sent(&self, node: &str, uid: &str) -> Result<bool, StoreError> {
        let Ok(uid) = uid.parse() else { return Ok(false) };
        let table = self.redb.begin_read()?.open_table(MANIFESTS)?;
        for entry in table.range((node, 0)..=(node, u64::MAX))? {
            let (key, bytes) = entry?;
            if decode(node, key.value().1, bytes.value())?.manifest.pod(uid).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Forgets all manifests of a node.
    pub(crate) fn forget_manifests(&self, node: &str) -> Result<(), StoreError> {
        self.write(|write| {
            write.open_table(MANIFESTS)?.retain_in((node, 0)..=(node, u64::MAX), |_, _| false)?;
            Ok(())
        })
    }
}
