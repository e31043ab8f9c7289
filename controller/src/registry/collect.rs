//! Frees what no manifest names any more.
//!
//! Owns one rule: a manifest stays until somebody deletes it, for pods know images by digest; a blob stays as long as
//! a manifest of its repository names it, and for some time after it was last pushed or asked for, since who pushes
//! an image asks for its blobs first and sends the manifest last.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use skeg_images::Digest;

use super::Registry;
use super::error::RegistryError;
use super::manifests::{MAX_MANIFEST, parts};

/// How long a blob stays that no manifest names.
pub(super) const GRACE: Duration = Duration::from_secs(3600);

impl Registry {
    /// Removes the blobs that no manifest names and nobody has asked for since `before`. Tells how many. Blocks.
    pub(super) fn sweep(&self, before: SystemTime) -> Result<usize, RegistryError> {
        for repository in self.store.repositories()? {
            let _ledger = self.ledger();
            let contents = self.store.contents(&repository)?;
            let manifests = contents.iter().filter(|(_, media_type)| !media_type.is_empty());
            let mut named = HashSet::new();
            for (digest, media_type) in manifests {
                // Without its manifest nobody knows what an image needs: such a one is left for the operator to see.
                let Some(bytes) = self.blobs.read(&Digest(*digest), MAX_MANIFEST as u64)? else { continue };
                let manifest: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                named.extend(parts(&manifest, media_type).iter().filter_map(|part| part.parse::<Digest>().ok()));
            }
            for (digest, media_type) in &contents {
                let blob = Digest(*digest);
                if media_type.is_empty() && !named.contains(&blob) && self.is_older(&blob, before)? {
                    self.store.remove_content(&repository, digest)?;
                }
            }
        }
        let _ledger = self.ledger();
        let known: HashSet<_> = self.store.all_content()?.into_iter().collect();
        let mut removed = 0;
        for blob in self.blobs.list()? {
            if !known.contains(&blob.0) && self.is_older(&blob, before)? && self.blobs.remove(&blob)? {
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn is_older(&self, blob: &Digest, before: SystemTime) -> Result<bool, RegistryError> {
        // One that is not there has nothing to keep its name for.
        Ok(self.blobs.modified(blob)?.is_none_or(|modified| modified < before))
    }

    /// Removes what was not asked for during the time of grace; a failure is the operator's to see.
    pub(crate) fn sweep_now(&self) {
        let before = SystemTime::now().checked_sub(GRACE).unwrap_or(SystemTime::UNIX_EPOCH);
        match self.forget_kept(self.kept_bytes).and_then(|()| self.sweep(before)) {
            Ok(0) => {}
            Ok(removed) => log::info!("registry: removed {removed} blobs that no manifest names"),
            Err(error) => log::error!("registry: blobs that no manifest names cannot be removed: {error:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::store::Database;

    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

    struct World {
        registry: Registry,
        _folder: tempfile::TempDir,
    }

    impl World {
        fn new() -> World {
            let folder = tempfile::tempdir().unwrap();
            let store = Arc::new(Database::open(&folder.path().join("store.redb"), &[7; 32]).unwrap());
            let registry = Registry::open(&folder.path().join("registry"), store, 100).unwrap();
            World { registry, _folder: folder }
        }

        fn push(&self, repository: &str, bytes: &[u8], media_type: &str, tag: Option<&str>) -> Digest {
            let digest = self.registry.blobs.put(bytes).unwrap();
            self.registry.store.add_content(repository, &digest.0, media_type, tag).unwrap();
            digest
        }

        fn image(&self, repository: &str, layers: &[&Digest], tag: &str) -> Digest {
            let config = self.push(repository, b"{}", "", None);
            let layers: Vec<_> = layers.iter().map(|layer| json!({"digest": layer.to_string()})).collect();
            let manifest = json!({"config": {"digest": config.to_string()}, "layers": layers, "tag": tag});
            self.push(repository, manifest.to_string().as_bytes(), IMAGE, Some(tag))
        }
    }

    #[test]
    fn blobs_go_when_the_last_manifest_that_names_them_was_deleted_and_their_time_has_passed() {
        let world = World::new();
        let [shared, own, stray] = ["shared", "own", "stray"].map(|text| world.push("a", text.as_bytes(), "", None));
        world.push("b", b"shared", "", None);
        let one = world.image("a", &[&shared, &own], "1");
        let two = world.image("a", &[&shared], "2");
        world.image("b", &[&shared], "1");
        let (registry, later) = (&world.registry, SystemTime::now() + Duration::from_secs(60));
        let there = |digest: &Digest| registry.blobs.size(digest).unwrap().is_some();
        // Somebody may be about to push the manifest of what is young.
        assert_eq!(registry.sweep(SystemTime::now() - GRACE).unwrap(), 0);
        assert_eq!(registry.sweep(later).unwrap(), 1);
        assert!(!there(&stray) && there(&shared) && there(&own));
        // A manifest without a tag stays: pods know it by its digest.
        registry.store.remove_tag("a", "1").unwrap();
        assert_eq!(registry.sweep(later).unwrap(), 0);
        registry.store.remove_content("a", &one.0).unwrap();
        assert_eq!(registry.sweep(later).unwrap(), 2);
        assert!(!there(&own) && !there(&one) && there(&shared));
        registry.store.remove_content("a", &two.0).unwrap();
        registry.sweep(later).unwrap();
        assert!(there(&shared), "another repository has it");
        assert!(registry.store.content("a", &shared.0).unwrap().is_none());
    }
}
