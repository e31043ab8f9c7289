//! The folders of the containers: one below `--root` each, locked by whoever changes it.
//!
//! Owns names, locks and files. Must not know what a container is. A container's folder holds `state.json`,
//! `config.json` as it was when the container was made, and `start.sock` while it waits to be started. Nothing is synced:
//! the folder is in memory, and no container outlives a power cut.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};

use super::state::Record;

/// Longest name of a container in bytes.
const NAME_MAXIMUM: usize = 1024;

/// A container's folder.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    id: String,
}

/// A folder that nobody else changes as long as this lives.
#[derive(Debug)]
pub(crate) struct Locked {
    folder: Folder,
    lock: File,
}

/// No container has this name.
#[derive(Debug, thiserror::Error)]
#[error("container {0:?} does not exist")]
pub(crate) struct Missing(String);

impl Folder {
    /// The place of a container, whether it is there or not.
    ///
    /// # Errors
    /// The name is not one of a container: letters, digits and `_+-.`, as runc's.
    pub(crate) fn new(root: &Path, id: &str) -> anyhow::Result<Folder> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
        if id.is_empty() || id.len() > NAME_MAXIMUM || matches!(id, "." | "..") || !id.bytes().all(plain) {
            bail!("invalid container id {id:?}: must be letters, digits, _, +, - and ., at most 1024 of them");
        }
        Ok(Folder { path: root.join(id), id: id.into() })
    }

    /// The containers below a folder, by name. Files and folders with other names are somebody else's.
    ///
    /// # Errors
    /// The folder cannot be read; one that does not exist has no containers.
    pub(crate) fn list(root: &Path) -> anyhow::Result<Vec<Folder>> {
        let failed = || format!("cannot read the folder of containers {root:?}");
        let entries = match fs::read_dir(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(failed)?,
        };
        let mut folders = Vec::new();
        for entry in entries {
            let entry = entry.with_context(failed)?;
            let name = entry.file_name();
            let folder = name.to_str().and_then(|id| Folder::new(root, id).ok());
            // Gone since the folder was read: deleted by somebody else.
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            folders.extend(folder.filter(|_| is_folder));
        }
        folders.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(folders)
    }

    /// The container's name.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// A file of the folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The user whose container it is.
    pub(crate) fn owner(&self) -> anyhow::Result<u32> {
        Ok(fs::metadata(&self.path).map_err(|error| self.explain(error))?.uid())
    }

    /// Makes the folder and locks it. Of several callers, one wins.
    ///
    /// # Errors
    /// There is one already.
    pub(crate) fn create(self, root: &Path) -> anyhow::Result<Locked> {
        let mut builder = DirBuilder::new();
        builder.mode(0o700);
        builder
            .recursive(true)
            .create(root)
            .with_context(|| format!("cannot make the folder of containers {root:?}"))?;
        match builder.recursive(false).create(&self.path) {
            Ok(()) => self.lock(),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!("container with id {:?} exists already; delete it first or choose another id", self.id)
            }
            Err(error) => Err(error).with_context(|| format!("cannot make the folder {:?}", self.path)),
        }
    }

    /// Whether somebody changes the container now.
    ///
    /// # Errors
    /// [`Missing`] if it is not there.
    pub(crate) fn is_locked(&self) -> anyhow::Result<bool> {
        let file = File::open(&self.path).map_err(|error| self.explain(error))?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error).with_context(|| format!("cannot look at the lock of {:?}", self.path)),
        }
    }

    /// Waits until nobody else changes the folder.
    ///
    /// # Errors
    /// [`Missing`] if it is not there, or not any longer when it is free.
    pub(crate) fn lock(self) -> anyhow::Result<Locked> {
        let lock = File::open(&self.path).map_err(|error| self.explain(error))?;
        loop {
            match flock(&lock, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result.with_context(|| format!("cannot lock the folder {:?}", self.path))?,
            }
        }
        let there = fs::metadata(&self.path).map_err(|error| self.explain(error))?;
        let held = lock.metadata().with_context(|| format!("cannot look at the folder {:?}", self.path))?;
        if (there.dev(), there.ino()) != (held.dev(), held.ino()) {
            return Err(Missing(self.id).into());
        }
        Ok(Locked { folder: self, lock })
    }

    /// Reads what is written down; nothing if whoever made the container has not come so far.
    ///
    /// # Errors
    /// [`Missing`] if there is no such container.
    pub(crate) fn record(&self) -> anyhow::Result<Option<Record>> {
        let path = self.file("state.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{path:?} is damaged")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.owner().map(|_| None),
            Err(error) => Err(error).with_context(|| format!("cannot read {path:?}")),
        }
    }

    fn explain(&self, error: io::Error) -> anyhow::Error {
        match error.kind() {
            io::ErrorKind::NotFound => Missing(self.id.clone()).into(),
            _ => anyhow::Error::new(error).context(format!("cannot use the folder {:?}", self.path)),
        }
    }
}

impl std::ops::Deref for Locked {
    type Target = Folder;

    fn deref(&self) -> &Folder {
        &self.folder
    }
}

impl Locked {
    /// Writes down what is known of the container; a reader sees the old or the new, never a part.
    ///
    /// # Errors
    /// The kernel's, with the path.
    pub(crate) fn write(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.file("state.json");
        let new = self.file("state.json.new");
        let bytes = serde_json::to_vec(record).context("the state cannot be written as JSON")?;
        fs::write(&new, bytes).with_context(|| format!("cannot write {new:?}"))?;
        fs::rename(&new, &path).with_context(|| format!("cannot replace {path:?}"))
    }

    /// Removes the folder with all that is in it.
    ///
    /// # Errors
    /// The kernel's, with the path.
    pub(crate) fn remove(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.folder.path).with_context(|| format!("cannot remove {:?}", self.folder.path))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Closing is not enough: a container's process that was cloned meanwhile has a copy until it runs its program.
        // A lock that cannot be given back goes with the descriptor.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        let root = Path::new("/run");
        for id in ["a", "A.b_c+d-9", ".a", "...", &"x".repeat(1024)] {
            assert!(Folder::new(root, id).is_ok(), "{id}");
        }
        for id in ["", ".", "..", "a/b", "/", "a b", "a\0", "ä", "a\n", &"x".repeat(1025)] {
            assert!(Folder::new(root, id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn whoever_waited_for_a_removed_folder_is_told() {
        let root = tempfile::tempdir().unwrap();
        let folder = || Folder::new(root.path(), "one").unwrap();
        let first = folder().create(root.path()).unwrap();
        assert!(folder().create(root.path()).is_err());
        std::thread::scope(|scope| {
            let second = scope.spawn(|| folder().lock());
            first.remove().unwrap();
            let error = second.join().unwrap().unwrap_err();
            assert!(error.is::<Missing>(), "{error:#}");
        });
        assert!(Folder::list(root.path()).unwrap().is_empty());
    }
}
