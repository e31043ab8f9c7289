//! The controller's folder: what lies where, made private (0700 and 0600), and files replaced whole.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The controller's folder.
#[derive(Debug, Clone)]
pub(crate) struct Data {
    root: PathBuf,
}

impl Data {
    /// Makes the folder and those inside it.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let data = Data { root: root.to_owned() };
        for folder in [root.to_owned(), data.path("identity"), data.path("tls"), data.registry()] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&folder)
                .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        }
        Ok(data)
    }

    /// A path inside the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where the registry keeps its blobs.
    pub(crate) fn registry(&self) -> PathBuf {
        self.path("registry")
    }

    /// Gives a file's bytes, or makes them once and keeps them.
    pub(crate) fn get_or_make(&self, name: &str, make: impl FnOnce() -> Result<Vec<u8>>) -> Result<Vec<u8>> {
        let path = self.path(name);
        match std::fs::read(&path) {
            Ok(bytes) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let bytes = make()?;
                self.write(name, &bytes)?;
                Ok(bytes)
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes a file whole, mode 0600: a reader sees the old one or the new one, also after a power cut.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let (path, fresh) = (self.path(name), self.path(&format!("{name}.new")));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&fresh, &path)?;
            // The rename is durable only when the folder is.
            File::open(path.parent().unwrap_or(&self.root))?.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}
