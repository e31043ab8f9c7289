//! Which of the host's ids are a pod's own users and groups: a range for each pod, kept in the pod's folder.
//!
//! Owns the choice and its memory. Files on the disk belong to these ids, so a pod keeps its range until it is removed.
//! Must not make namespaces or change owners.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use skeg_protocol::Uid;

use crate::convert::USERS;
use crate::journal::{make_folder, replace_file};

/// Above every id that a distribution gives to people and services.
const FIRST: u32 = 1 << 20;
/// Ids from here on are negative numbers to some programs.
const END: u32 = 1 << 31;

/// The ranges of all pods of a device. Clones are the same.
#[derive(Debug, Clone)]
pub struct Ranges {
    /// Folder of the pods' folders.
    pods: PathBuf,
    /// Held from the search to the memory: workers ask at the same time.
    choosing: Arc<Mutex<()>>,
}

impl Ranges {
    /// Ranges that are kept below `pods`, a folder for each pod.
    pub fn new(pods: PathBuf) -> Self {
        Ranges { pods, choosing: Arc::default() }
    }

    /// The host's id of a pod's root: that of its kept range, or the smallest free one, which is durable on return.
    ///
    /// # Errors
    /// What could not be read or written, or that no range is free.
    pub fn root_of(&self, pod: Uid) -> Result<u32, String> {
        // Nothing is left half done by a panic: the file is the memory.
        let _choosing = self.choosing.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = self.pods.join(pod.to_string());
        let file = folder.join("ids");
        if let Some(kept) = read(&file)? {
            return Ok(kept);
        }
        let taken = self.taken()?;
        let free = (FIRST..END).step_by(USERS as usize).find(|first| !taken.contains(first));
        let free = free.ok_or_else(|| format!("all {} ranges of user ids are taken by pods", taken.len()))?;
        make_folder(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        replace_file(&file, free.to_string().as_bytes()).map_err(|error| super::chain(&error))?;
        Ok(free)
    }

    fn taken(&self) -> Result<Vec<u32>, String> {
        let entries = match fs::read_dir(&self.pods) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| format!("{}: {error}", self.pods.display()))?,
        };
        let mut taken = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| format!("{}: {error}", self.pods.display()))?;
            taken.extend(read(&entry.path().join("ids"))?);
        }
        Ok(taken)
    }
}

/// A kept range; `None` where none was kept yet.
fn read(file: &Path) -> Result<Option<u32>, String> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| format!("{}: {error}", file.display()))?,
    };
    let range = text.parse().ok().filter(|first| (FIRST..END).contains(first) && first % USERS == 0);
    let broken = || format!("{}: {text:?} is no range of user ids; delete the pod of this folder", file.display());
    range.map(Some).ok_or_else(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_kept_apart_and_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let pod = |number| Uid([number; 16]);
        let ranges = || Ranges::new(folder.path().join("pods"));
        let all = ranges();
        assert_eq!([1, 2, 3].map(|number| all.root_of(pod(number)).unwrap()), [0x10_0000, 0x11_0000, 0x12_0000]);
        assert_eq!(ranges().root_of(pod(3)), Ok(0x12_0000), "a later agent finds it");
        fs::remove_dir_all(folder.path().join("pods").join(pod(2).to_string())).unwrap();
        assert_eq!(ranges().root_of(pod(4)), Ok(0x11_0000), "a removed pod's range is free");
    }

    #[test]
    fn a_broken_range_is_an_error_for_everybody() {
        let folder = tempfile::tempdir().unwrap();
        let ranges = Ranges::new(folder.path().to_owned());
        let (one, other) = (Uid([1; 16]), Uid([2; 16]));
        ranges.root_of(one).unwrap();
        let file = folder.path().join(one.to_string()).join("ids");
        for text in ["", "0", "1048577", "2147483648", "-1", "1048576 "] {
            fs::write(&file, text).unwrap();
            for pod in [one, other] {
                let error = ranges.root_of(pod).unwrap_err();
                assert!(error.contains(file.to_str().unwrap()), "{error}");
            }
        }
    }

    #[test]
    fn no_range_left_is_told() {
        let folder = tempfile::tempdir().unwrap();
        for first in (FIRST..END).step_by(USERS as usize) {
            let pod = folder.path().join(first.to_string());
            fs::create_dir(&pod).unwrap();
            fs::write(pod.join("ids"), first.to_string()).unwrap();
        }
        let error = Ranges::new(folder.path().to_owned()).root_of(Uid([1; 16])).unwrap_err();
        assert_eq!(error, "all 32752 ranges of user ids are taken by pods");
    }
}
