//! Room on the disk: what is removed, when, and how much must be free before a pull.
//!
//! Owns one rule: what the device wants or a pull is using is never removed, and whether it is wanted is asked at the
//! moment of the removal, under the lock under which wishes change. What is removed leaves its name at once and its
//! bytes afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::{PullError, Record, Store, StoreError};
use crate::blobs::{blob_io, sync_folder};
use crate::digest::Digest;

/// A layer is expected to have no more files than one for so many unpacked bytes.
const BYTES_A_FILE: u64 = 64 << 10;
/// Inodes that a pull leaves free, where the file system counts them.
const SPARE_INODES: u64 = 1000;
/// What an interrupted pull has left waits so long for the pull to go on.
const LEFTOVERS: Duration = Duration::from_secs(24 * 3600);

/// A pull leaves so many bytes free unless told otherwise …
const RESERVE: u64 = 64 << 20;
/// … or this part of a file system where that is less.
const RESERVE_PART: u64 = 20;

/// A clock that shows less than this (2025) was never set: boards without a battery begin in 1970.
const FIRST_TIME: Duration = Duration::from_secs(1_735_689_600);

/// How much of the disk images may take, and how large one of their layers may be. Errors name these fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that a pull leaves free on the store's file system. `None` is 64 MiB, or a twentieth of a smaller disk.
    pub reserve: Option<u64>,
    /// When so much of the file system is used, images that nothing needs are removed …
    pub high_percent: u8,
    /// … the longest unused first, until no more than this is used.
    pub low_percent: u8,
    /// Images that nothing needs are removed after this time. What was used while the clock was not set has no age.
    pub unused: Duration,
    /// Entries of one layer's archive.
    pub layer_entries: u64,
    /// Folders of one layer: their times are kept in memory until it is unpacked.
    pub layer_folders: u64,
    /// A layer may unpack to so many times its compressed size, and to 1 GiB in any case …
    pub layer_ratio: u64,
    /// … but never to more than so many GiB.
    pub layer_gib: u64,
}

impl Default for Limits {
    /// The kubelet's marks, and a month. Layers: more than any honest image has.
    fn default() -> Limits {
        Limits {
            reserve: None,
            high_percent: 85,
            low_percent: 80,
            unused: Duration::from_secs(30 * 24 * 3600),
            layer_entries: 1_000_000,
            layer_folders: 200_000,
            layer_ratio: 200,
            layer_gib: 64,
        }
    }
}

/// How much is to be removed of what nothing needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// What is older than the limits say, and more where the disk is fuller than they say.
    Limits,
    /// So much that this is free.
    Free {
        /// Bytes.
        bytes: u64,
        /// Inodes.
        inodes: u64,
    },
    /// All of it.
    Everything,
}

/// What is free on the store's file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct Free {
    pub(super) bytes: u64,
    /// `u64::MAX` where the file system has no fixed number.
    inodes: u64,
    used_percent: u64,
    /// Bytes of the whole file system, used or not.
    total: u64,
}

impl Store {
    /// Says which images the device cannot do without, in place of what was said before.
    ///
    /// Counts from this very moment, also for a removal that is under way. Blocks for no I/O.
    pub fn want(&self, digests: impl IntoIterator<Item = Digest>) {
        self.held().wanted = digests.into_iter().collect();
    }

    /// Removes images that nothing needs, and what no image has. Returns the digests of the images.
    pub async fn collect(&self, goal: Goal) -> Result<Vec<Digest>, StoreError> {
        let store = self.clone();
        let work = tokio::task::spawn_blocking(move || store.collect_blocking(goal));
        work.await.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))
    }

    /// Removes one image that nothing needs, and what no other image has of it. Tells whether it was removed.
    pub async fn remove(&self, digest: &Digest) -> Result<bool, StoreError> {
        let (store, digest) = (self.clone(), *digest);
        let work = tokio::task::spawn_blocking(move || {
            let had = store.parts_of(&digest)?;
            let removed = store.remove_record(&digest)?;
            if removed {
                store.sweep(false, &had)?;
            }
            Ok(removed)
        });
        work.await.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()))
    }

    /// Makes sure that layers of so many unpacked bytes fit, removing what nothing needs where they do not. Blocks.
    pub(super) fn make_room(&self, unpacked: u64) -> Result<(), PullError> {
        if unpacked == 0 {
            return Ok(());
        }
        let mut free = self.free()?;
        let bytes = unpacked.saturating_add(self.reserve(&free));
        let inodes = (unpacked / BYTES_A_FILE).saturating_add(SPARE_INODES);
        if free.bytes < bytes || free.inodes < inodes {
            self.collect_blocking(Goal::Free { bytes, inodes })?;
            free = self.free()?;
        }
        let path = || self.0.root.clone();
        if free.bytes < bytes {
            return Err(PullError::Space { path: path(), what: "bytes", needed: bytes, free: free.bytes });
        }
        if free.inodes < inodes {
            return Err(PullError::Space { path: path(), what: "inodes", needed: inodes, free: free.inodes });
        }
        Ok(())
    }

    /// Tells how many bytes may be written before the reserve begins.
    pub(super) fn room(&self) -> Result<u64, StoreError> {
        let free = self.free()?;
        Ok(free.bytes.saturating_sub(self.reserve(&free)))
    }

    fn reserve(&self, free: &Free) -> u64 {
        self.0.limits.reserve.unwrap_or_else(|| RESERVE.min(free.total / RESERVE_PART))
    }

    pub(super) fn free(&self) -> Result<Free, StoreError> {
        let root = &self.0.root;
        let stat =
            rustix::fs::statvfs(root).map_err(|errno| blob_io("ask for the free space of", root)(errno.into()))?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        Ok(Free {
            bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            inodes: if stat.f_files == 0 { u64::MAX } else { stat.f_favail },
            // As df counts it: of what is not root's alone.
            used_percent: (used * 100).div_ceil((used + stat.f_bavail).max(1)),
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
        })
    }

    fn collect_blocking(&self, goal: Goal) -> Result<Vec<Digest>, StoreError> {
        let limits = self.0.limits;
        let all = goal != Goal::Limits;
        self.sweep(all, &BTreeSet::new())?;
        let mut removed = Vec::new();
        // Whether there is less room than there should be is asked once; from then on more is made.
        let mut tight = self.free()?.used_percent >= u64::from(limits.high_percent);
        let now = SystemTime::now();
        for (last_used, digest) in self.unneeded()? {
            let due = match goal {
                Goal::Everything => true,
                Goal::Free { bytes, inodes } => {
                    let free = self.free()?;
                    free.bytes < bytes || free.inodes < inodes
                }
                Goal::Limits => {
                    tight = tight && self.free()?.used_percent > u64::from(limits.low_percent);
                    tight || is_older(last_used, now, limits.unused)
                }
            };
            let had = if due { self.parts_of(&digest)? } else { continue };
            if self.remove_record(&digest)? {
                self.sweep(all, &had)?;
                removed.push(digest);
            }
        }
        Ok(removed)
    }

    /// The images that nothing needs, the longest unused first.
    pub(super) fn unneeded(&self) -> Result<Vec<(SystemTime, Digest)>, StoreError> {
        let mut images = self.images()?;
        {
            let held = self.held();
            images.retain(|digest| !held.needs(digest));
        }
        let mut images: Vec<_> = images.into_iter().map(|digest| (self.last_used(&digest), digest)).collect();
        images.sort();
        Ok(images)
    }

    /// Makes an image unknown, unless it is needed.
    pub(super) fn remove_record(&self, digest: &Digest) -> Result<bool, StoreError> {
        let folder = self.0.root.join("images");
        {
            let held = self.held();
            if held.needs(digest) {
                return Ok(false);
            }
            match fs::remove_file(folder.join(digest.hex())) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                result => result.map_err(blob_io("remove", &folder))?,
            }
        }
        sync_folder(&folder)?;
        Ok(true)
    }

    /// Removes layers and blobs that no image has: those that a removed image `had`, and what an interrupted pull has
    /// left, when that is old or `all` must go.
    fn sweep(&self, all: bool, had: &BTreeSet<Digest>) -> Result<(), StoreError> {
        let removed: Vec<PathBuf> = loop {
            let generation = self.held().generation;
            let used = self.used()?;
            let held = self.held();
            // An image that became known in between may have what none had before.
            if held.generation != generation {
                continue;
            }
            let mut removed = Vec::new();
            for folder in ["layers", "blobs/sha256", "partial"] {
                for name in self.names(folder)? {
                    let path = self.0.root.join(folder).join(&name);
                    let digest = Digest::from_hex(&name);
                    let needed = digest.is_some_and(|digest| used.contains(&digest) || held.needs(&digest));
                    let due = all || digest.is_none_or(|digest| had.contains(&digest)) || is_old(&path);
                    if !needed && due {
                        let away = self.temp_path("removed");
                        fs::rename(&path, &away).map_err(blob_io("remove", &path))?;
                        removed.push(away);
                    }
                }
            }
            break removed;
        };
        Ok(removed.iter().try_for_each(|path| super::remove(path))?)
    }

    /// Everything that the known images consist of: blobs by digest, layers by chain id.
    fn used(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let mut used = BTreeSet::new();
        for digest in self.images()? {
            used.append(&mut self.parts_of(&digest)?);
        }
        Ok(used)
    }

    fn parts_of(&self, digest: &Digest) -> Result<BTreeSet<Digest>, StoreError> {
        let Some(Record { manifest, .. }) = self.record(digest)? else { return Ok(BTreeSet::new()) };
        let mut had = BTreeSet::from([*digest, manifest]);
        if let Some(parts) = self.parts(digest)? {
            had.insert(parts.config_digest);
            had.extend(parts.layers.iter().map(|layer| layer.chain_id));
        }
        Ok(had)
    }
}

impl super::Held {
    pub(super) fn needs(&self, digest: &Digest) -> bool {
        self.wanted.contains(digest) || self.pinned.contains_key(digest)
    }
}

/// Whether nobody has touched something for a day.
fn is_old(path: &std::path::Path) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| is_older(modified, SystemTime::now(), LEFTOVERS))
}

/// Whether more than `age` lies between two times. What is of unknown age, from the future or from before the clock was
/// set, counts as young.
fn is_older(then: SystemTime, now: SystemTime, age: Duration) -> bool {
    then >= SystemTime::UNIX_EPOCH + FIRST_TIME && now.duration_since(then).is_ok_and(|since| since > age)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A board without a battery for its clock once forgot its downloads when it learnt the time.
    #[test]
    fn what_was_used_while_the_clock_was_not_set_is_young() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let (now, day) = (at(1_800_000_000), Duration::from_secs(86_400));
        assert!(is_older(at(1_799_000_000), now, day));
        for then in [1_799_999_000, 1_900_000_000, 60] {
            assert!(!is_older(at(then), now, day), "{then}");
        }
        assert!(!is_older(at(10), at(1_000_000), day));
    }
}
