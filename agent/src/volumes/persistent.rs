//! Volumes that outlive pods: a folder each, `volumes/<namespace>/<name>`.
//!
//! Files in them have the ids that the pods see, not those of the host's range that a pod has at the time: the next pod
//! with another range finds its files. The folder above is root's alone.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use skeg_protocol::manifest::VolumeSource;
use skeg_protocol::{Label, Name, Pod};

use crate::journal::make_folder;

/// What is being removed has this before its name, which no name can have.
const REMOVED: &str = ".removed.";

/// The named volumes of a device.
#[derive(Debug, Clone)]
pub struct Persistent {
    folder: PathBuf,
}

/// A named volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Named {
    /// Kubernetes namespace.
    pub namespace: Label,
    /// Its name there.
    pub name: Name,
}

/// What a volume holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// On the disk.
    pub bytes: u64,
    /// Files and folders.
    pub files: u64,
}

impl Persistent {
    /// Volumes below a folder.
    pub fn new(folder: PathBuf) -> Self {
        Persistent { folder }
    }

    /// Where a volume lies.
    pub fn path(&self, namespace: &str, name: &str) -> PathBuf {
        self.folder.join(namespace).join(name)
    }

    /// Makes a volume where it is missing; everybody in a pod may write to a new one, as with Kubernetes' local volumes.
    ///
    /// # Errors
    /// As of the file system.
    pub fn make(&self, namespace: &str, name: &str) -> io::Result<PathBuf> {
        let path = self.path(namespace, name);
        make_folder(&self.folder.join(namespace))?;
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.and_then(|()| fs::set_permissions(&path, Permissions::from_mode(0o777)))?,
        }
        Ok(path)
    }

    /// Gives a volume that is empty owner and mode of an image's folder, as Docker does with a volume that is mounted
    /// over it. `layers` are the image's, the highest first; where they have no such folder, the volume stays as it is.
    ///
    /// # Errors
    /// As of the file system.
    pub fn take_after(volume: &Path, layers: &[PathBuf], inside: &Path) -> io::Result<()> {
        if fs::read_dir(volume)?.next().is_some() {
            return Ok(());
        }
        let inside = inside.strip_prefix("/").unwrap_or(inside);
        // What a layer says through a link is not followed: it could lead into another layer.
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        for layer in layers {
            let root = openat(CWD, layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let folder = match openat2(&root, inside, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::NOENT) => continue,
                // A link or a file on the way.
                Err(Errno::LOOP | Errno::NOTDIR) => return Ok(()),
                found => fs::File::from(found?).metadata()?,
            };
            if folder.is_dir() {
                chown(volume, Some(folder.uid()), Some(folder.gid()))?;
                fs::set_permissions(volume, Permissions::from_mode(folder.mode() & 0o7777))?;
            }
            return Ok(());
        }
        Ok(())
    }

    /// Every volume, sorted.
    ///
    /// # Errors
    /// A folder can't be listed.
    pub fn list(&self) -> io::Result<Vec<Named>> {
        let mut found = Vec::new();
        for (namespace, folder) in folders(&self.folder)? {
            let Ok(namespace) = namespace.as_str().try_into() else { continue };
            for (name, _) in folders(&folder)? {
                if let Ok(name) = name.as_str().try_into() {
                    found.push(Named { namespace: Label::clone(&namespace), name });
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Adds up what a volume holds. A file with several names counts once for each.
    ///
    /// # Errors
    /// It can't be read.
    pub fn usage(&self, volume: &Named) -> io::Result<Usage> {
        usage(&self.path(&volume.namespace, &volume.name))
    }

    /// Removes a volume with all that is in it. Nobody may use it.
    ///
    /// # Errors
    /// There is none, or it can't be removed; it is then removed in part and no longer listed.
    pub fn remove(&self, volume: &Named) -> io::Result<()> {
        let aside = self.path(&volume.namespace, &format!("{REMOVED}{}", volume.name));
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(self.path(&volume.namespace, &volume.name), &aside)?;
        fs::remove_dir_all(&aside)?;
        // Stays where others are in it.
        fs::remove_dir(self.folder.join(volume.namespace.as_str())).ok();
        Ok(())
    }

    /// Removes what an interrupted removal has left.
    pub fn sweep(&self) {
        for (_, namespace) in folders(&self.folder).into_iter().flatten() {
            for entry in fs::read_dir(&namespace).into_iter().flatten().flatten() {
                if entry.file_name().as_encoded_bytes().starts_with(REMOVED.as_bytes())
                    && let Err(error) = fs::remove_dir_all(entry.path())
                {
                    log::error!("removing {}: {error}", entry.path().display());
                }
            }
        }
    }
}

/// Folders in a folder with names that a volume or namespace can have.
fn folders(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if let (Ok(name), true) = (entry.file_name().into_string(), entry.file_type()?.is_dir())
            && !name.starts_with('.')
        {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

/// Adds up a folder with all that is in it, without following links.
///
/// # Errors
/// It can't be read. What goes away meanwhile is no error.
pub fn usage(folder: &Path) -> io::Result<Usage> {
    let mut sum = Usage::default();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let Ok(found) = entry.metadata() else { continue };
        sum.bytes += found.blocks() * 512;
        sum.files += 1;
        if found.is_dir() {
            match usage(&entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                below => {
                    let below = below.unwrap_or_default();
                    sum.bytes += below.bytes;
                    sum.files += below.files;
                }
            }
        }
    }
    Ok(sum)
}

/// Whether a pod mounts a volume.
pub fn uses(pod: &Pod, volume: &Named) -> bool {
    let is = |source: &VolumeSource| matches!(source, VolumeSource::Persistent { name, .. } if *name == *volume.name);
    pod.namespace == volume.namespace && pod.volumes.iter().any(|one| is(&one.source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(namespace: &str, name: &str) -> Named {
        Named { namespace: namespace.try_into().unwrap(), name: name.try_into().unwrap() }
    }

    #[test]
    fn an_empty_volume_takes_after_the_highest_layer_that_has_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let (volume, low, high) = (folder.path().join("v"), folder.path().join("low"), folder.path().join("high"));
        for path in [volume.clone(), low.join("var/lib/db"), high.join("var"), high.join("srv")] {
            fs::create_dir_all(path).unwrap();
        }
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        let seen = || fs::metadata(&volume).unwrap().mode() & 0o7777;
        mode(&volume, 0o777);
        mode(&low.join("var/lib/db"), 0o1730);
        let layers = [high.clone(), low.clone()];
        let take = |inside: &str| Persistent::take_after(&volume, &layers, Path::new(inside)).unwrap();
        take("/none");
        assert_eq!(seen(), 0o777);
        take("/var/lib/db/");
        assert_eq!(seen(), 0o1730);
        // A link in an image leads nowhere, least of all to the device's files.
        std::os::unix::fs::symlink("/", high.join("srv/link")).unwrap();
        take("/srv/link/tmp");
        assert_eq!(seen(), 0o1730);
        mode(&high.join("srv"), 0o700);
        fs::write(volume.join("file"), "").unwrap();
        take("/srv");
        assert_eq!(seen(), 0o1730, "what is not empty stays as it is");
        fs::remove_file(volume.join("file")).unwrap();
        take("/srv");
        assert_eq!(seen(), 0o700);
    }

    #[test]
    fn volumes_are_made_listed_measured_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let all = Persistent::new(folder.path().join("volumes"));
        assert_eq!(all.list().unwrap(), []);
        let path = all.make("default", "db").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        fs::create_dir(path.join("sub")).unwrap();
        fs::write(path.join("sub/file"), vec![1; 100_000]).unwrap();
        all.make("default", "db").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700, "what is there is left as it is");
        all.make("other", "a.b").unwrap();
        assert_eq!(all.list().unwrap(), [named("default", "db"), named("other", "a.b")]);
        let usage = all.usage(&named("default", "db")).unwrap();
        assert!(usage.files == 2 && usage.bytes >= 100_000, "{usage:?}");
        all.remove(&named("default", "db")).unwrap();
        assert_eq!(all.list().unwrap(), [named("other", "a.b")]);
        assert_eq!(all.remove(&named("default", "db")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_interrupted_removal_is_finished_later() {
        let folder = tempfile::tempdir().unwrap();
        let all = Persistent::new(folder.path().to_owned());
        all.make("default", "db").unwrap();
        let aside = folder.path().join("default/.removed.db");
        fs::rename(all.path("default", "db"), &aside).unwrap();
        assert_eq!(all.list().unwrap(), []);
        all.sweep();
        assert!(!aside.exists());
    }
}
