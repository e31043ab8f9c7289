//! What the agent must not forget, on disk: the wanted state (`state/current` and the revision before it,
//! `state/previous`) and one small record per pod (`state/pods/<uid>`).
//!
//! Every file is written beside its place, synced and renamed into it, and carries a checksum; a reader sees the
//! old content or the new, never a part. Nothing is written unless something changed: idle is silent. What the
//! contents mean is the core's. Secrets of a manifest are written encrypted.
//!
//! File: 8 bytes of magic with the format's version, SHA-256 of the body, the body in postcard.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use skeg_protocol::{Manifest, Uid};
use thiserror::Error;

use crate::alone::Projects;
use crate::core::PodRecord;
use crate::trial::{Standing, State};
use crate::vault::Vault;

const MAGIC: &[u8; 8] = b"SKEGJ\0\0\x02";
const HEADER: usize = MAGIC.len() + 32;
/// Largest body that is read: more than [`skeg_protocol::limits::MAX_PODS`] pods of ordinary size need.
const MOST_BYTES: u64 = 64 * 1024 * 1024;

/// Why the journal could not be written or listed.
#[derive(Debug, Error)]
#[error("{step} {path}: {source}")]
pub struct JournalError {
    step: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Why a file is no journal file.
#[derive(Debug, Error)]
pub(crate) enum ReadError {
    #[error("reading {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is broken: {problem}")]
    Broken { path: PathBuf, problem: &'static str },
}

/// The journal of one state folder.
#[derive(Debug, Clone)]
pub struct Journal {
    state: PathBuf,
    pods: PathBuf,
    vault: Vault,
}

pub(crate) fn at<'a>(step: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> JournalError + 'a {
    move |source| JournalError { step, path: path.to_owned(), source }
}

/// SHA-256 over `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    out
}

/// Makes a folder and its parents, readable by root only.
///
/// # Errors
/// As mkdir(2); a folder that is there already is none.
pub fn make_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file beside its place, syncs it and renames it into its place; mode 0600.
///
/// # Errors
/// The step that failed, with its path. The old file, if any, is then as before.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), JournalError> {
    let temporary = path.with_extension("tmp");
    write_synced(&temporary, bytes)?;
    fs::rename(&temporary, path).map_err(at("renaming into", path))?;
    sync_parent(path)
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), JournalError> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path).map_err(at("opening", path))?;
    file.write_all(bytes).map_err(at("writing", path))?;
    file.sync_all().map_err(at("syncing", path))
}

fn sync_parent(path: &Path) -> Result<(), JournalError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(at("syncing folder", parent))
}

pub(crate) fn seal(value: &impl Serialize, path: &Path) -> Result<Vec<u8>, JournalError> {
    let body = postcard::to_allocvec(value)
        .map_err(|error| at("encoding", path)(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    if body.len() as u64 + HEADER as u64 > MOST_BYTES {
        let problem = format!("{} bytes are more than are ever read back", body.len());
        return Err(at("encoding", path)(io::Error::new(io::ErrorKind::FileTooLarge, problem)));
    }
    Ok([MAGIC.as_slice(), &sha256(&body), &body].concat())
}

pub(crate) fn unseal<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ReadError> {
    let io = |source| ReadError::Io { path: path.to_owned(), source };
    let broken = |problem| ReadError::Broken { path: path.to_owned(), problem };
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
        Ok(file) => file.take(MOST_BYTES).read_to_end(&mut bytes).map_err(io)?,
    };
    let (header, body) = bytes.split_at_checked(HEADER).ok_or_else(|| broken("it is too short"))?;
    let (magic, checksum) = header.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(broken("it is of another format or version"));
    }
    if checksum != sha256(body) {
        return Err(broken("its checksum does not match"));
    }
    postcard::from_bytes(body).map(Some).map_err(|_| broken("its content does not decode"))
}

impl Journal {
    /// Opens the journal below a state folder, making its folders and the key for its secrets.
    ///
    /// # Errors
    /// A folder or the key can't be made.
    pub fn open(state_dir: &Path) -> Result<Self, JournalError> {
        let state = state_dir.join("state");
        let pods = state.join("pods");
        make_folder(&pods).map_err(at("making folder", &pods))?;
        let vault = Vault::open(&state_dir.join("identity"))?;
        Ok(Journal { state, pods, vault })
    }

    /// The projects of the device itself.
    ///
    /// # Errors
    /// Their folder can't be made.
    pub fn projects(&self) -> Result<Projects, JournalError> {
        Projects::open(self.state.join("projects"), self.vault.clone())
    }

    fn current(&self) -> PathBuf {
        self.state.join("current")
    }

    fn previous(&self) -> PathBuf {
        self.state.join("previous")
    }

    /// The revision before the current one, where it can be read.
    pub fn previous_manifest(&self) -> Manifest {
        unseal(&self.previous()).ok().flatten().map(|manifest| self.vault.reveal(manifest)).unwrap_or_default()
    }

    /// The wanted state: the current revision, or the one before it where the current one is broken (it is set
    /// aside), or the empty manifest.
    pub fn manifest(&self) -> Manifest {
        for path in [self.current(), self.previous()] {
            let found = unseal::<Manifest>(&path).map(|found| found.map(|manifest| self.vault.reveal(manifest)));
            match found.and_then(|found| match found {
                Some(manifest) if manifest.validate().is_err() => {
                    Err(ReadError::Broken { path: path.clone(), problem: "it breaks a rule" })
                }
                found => Ok(found),
            }) {
                Ok(Some(manifest)) => return manifest,
                Ok(None) => {}
                Err(error) => {
                    log::error!("{error}; going on with what is older");
                    set_aside(&path);
                }
            }
        }
        Manifest::default()
    }

    /// Makes a manifest durable as the current one; the one before it stays as the previous.
    ///
    /// # Errors
    /// The step that failed; the current manifest is then as before, or can be read as the previous.
    pub fn store_manifest(&self, manifest: &Manifest) -> Result<(), JournalError> {
        let (current, previous) = (self.current(), self.previous());
        let closed = self.vault.close(manifest).map_err(at("encrypting for", &current))?;
        let bytes = seal(&closed, &current)?;
        // A revision that comes twice, because the link ended before the answer, must not push the last good one out.
        if fs::read(&current).is_ok_and(|held| held == bytes) {
            return sync_parent(&current);
        }
        let temporary = self.state.join("next.tmp");
        write_synced(&temporary, &bytes)?;
        // A revision that was rolled back is nothing to go back to.
        let rolled_back = self.standing().filter(|standing| standing.state == State::RolledBack);
        let bad = rolled_back.is_some_and(|standing| {
            unseal::<Manifest>(&current).ok().flatten().is_some_and(|held| held.revision == standing.revision)
        });
        let pushed = if bad { Ok(()) } else { fs::rename(&current, &previous) };
        match pushed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at("renaming into", &previous)(error)),
            _ => {}
        }
        fs::rename(&temporary, &current).map_err(at("renaming into", &current))?;
        sync_parent(&current)
    }

    /// What is known of the revision that was on trial last, where it can be read.
    pub fn standing(&self) -> Option<Standing> {
        unseal(&self.state.join("standing")).unwrap_or_else(|error| {
            log::error!("{error}");
            None
        })
    }

    /// Makes the standing of a revision durable.
    ///
    /// # Errors
    /// The step that failed; the old standing is then as before.
    pub fn store_standing(&self, standing: &Standing) -> Result<(), JournalError> {
        let path = self.state.join("standing");
        replace_file(&path, &seal(standing, &path)?)
    }

    /// Makes a pod's record durable.
    ///
    /// # Errors
    /// The step that failed; the old record is then as before.
    pub fn store_record(&self, record: &PodRecord) -> Result<(), JournalError> {
        let path = self.pods.join(record.pod.uid.to_string());
        replace_file(&path, &seal(record, &path)?)
    }

    /// Forgets a pod.
    ///
    /// # Errors
    /// The file can't be removed.
    pub fn remove_record(&self, uid: Uid) -> Result<(), JournalError> {
        let path = self.pods.join(uid.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("removing", &path)(error)),
            _ => Ok(()),
        }
    }

    /// Every readable record. A broken one is set aside and said in the log.
    ///
    /// # Errors
    /// The folder can't be listed.
    pub fn records(&self) -> Result<Vec<PodRecord>, JournalError> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.pods).map_err(at("listing", &self.pods))? {
            let path = entry.map_err(at("listing", &self.pods))?.path();
            if path.extension().is_some() {
                continue;
            }
            match unseal::<PodRecord>(&path) {
                Ok(Some(record)) if is_whole(&record) => records.push(record),
                Ok(_) => set_aside(&path),
                Err(error) => {
                    log::error!("{error}; the pod begins anew");
                    set_aside(&path);
                }
            }
        }
        Ok(records)
    }
}

/// Whether a record's containers are its pod's.
fn is_whole(record: &PodRecord) -> bool {
    let wanted = record.pod.all_containers().map(|container| &container.name);
    record.pod.validate().is_ok() && wanted.eq(record.containers.iter().map(|container| &container.name))
}

pub(crate) fn set_aside(path: &Path) {
    let aside = path.with_extension("broken");
    if let Err(error) = fs::rename(path, &aside) {
        log::error!("setting aside {}: {error}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::pod;

    fn revision(number: u64) -> Manifest {
        Manifest { revision: number, pods: vec![pod(1, "web", &["main"])], ..Manifest::default() }
    }

    #[test]
    fn the_latest_manifest_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        assert_eq!(journal.manifest(), Manifest::default());
        journal.store_manifest(&revision(1)).unwrap();
        journal.store_manifest(&revision(2)).unwrap();
        assert_eq!(journal.manifest(), revision(2));
    }

    #[test]
    fn no_secret_is_on_the_disk_in_clear() {
        use skeg_protocol::manifest::{Data, DataKind};
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let secret = Data {
            kind: DataKind::Secret,
            namespace: "default".try_into().unwrap(),
            name: "login".try_into().unwrap(),
            immutable: false,
            entries: vec![("password".to_owned(), b"hush-hush".to_vec())],
        };
        let with_secret = Manifest { data: vec![secret], ..revision(2) };
        journal.store_manifest(&revision(1)).unwrap();
        journal.store_manifest(&with_secret).unwrap();
        journal.store_manifest(&revision(3)).unwrap();
        for file in [journal.current(), journal.previous()] {
            assert!(!fs::read(file).unwrap().windows(9).any(|window| window == b"hush-hush"));
        }
        assert_eq!(journal.previous_manifest(), with_secret);
        fs::remove_file(journal.current()).unwrap();
        assert_eq!(Journal::open(folder.path()).unwrap().manifest(), with_secret);
    }

    #[test]
    fn a_revision_that_comes_twice_leaves_the_previous_one_alone() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        for number in [1, 2, 2] {
            journal.store_manifest(&revision(number)).unwrap();
        }
        fs::write(journal.current(), b"garbage").unwrap();
        assert_eq!(journal.manifest(), revision(1));
    }

    #[test]
    fn a_broken_current_falls_back_to_the_previous_wherever_it_is_broken() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let whole = seal(&revision(2), Path::new("x")).unwrap();
        for cut in 0..whole.len() {
            journal.store_manifest(&revision(1)).unwrap();
            journal.store_manifest(&revision(2)).unwrap();
            fs::write(journal.current(), &whole[..cut]).unwrap();
            assert_eq!(journal.manifest(), revision(1), "cut at {cut}");
            // The broken file must not push out the good one with the next revision.
            journal.store_manifest(&revision(3)).unwrap();
            fs::write(journal.current(), b"garbage").unwrap();
            assert_eq!(journal.manifest(), revision(1), "cut at {cut}, then again");
        }
        for index in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[index] ^= 1;
            journal.store_manifest(&revision(1)).unwrap();
            journal.store_manifest(&revision(2)).unwrap();
            fs::write(journal.current(), &flipped).unwrap();
            assert_eq!(journal.manifest(), revision(1), "bit of byte {index}");
        }
    }

    #[test]
    fn a_power_cut_between_the_renames_loses_nothing_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        journal.store_manifest(&revision(1)).unwrap();
        fs::rename(journal.current(), journal.previous()).unwrap();
        assert_eq!(journal.manifest(), revision(1));
    }

    #[test]
    fn records_come_and_go_and_broken_ones_are_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path()).unwrap();
        let mut node = crate::core::Node::new(Uid::default());
        let now = crate::core::Now { monotonic: std::time::Duration::ZERO, wall: 0 };
        let manifest = std::sync::Arc::new(revision(1));
        let uid = manifest.pods[0].uid;
        node.step(crate::core::Event::Manifest { manifest, trial: None }, now);
        let event = crate::core::ContainerEvent::ImageReady { check: None };
        let container = "main".try_into().unwrap();
        let orders = node.step(crate::core::Event::Container { pod: uid, container, event }, now);
        let Some(crate::core::Order::Pod(_, crate::core::Action::Record(record))) = orders.first() else {
            panic!("{orders:?}")
        };
        journal.store_record(record).unwrap();
        assert_eq!(journal.records().unwrap(), [(**record).clone()]);
        let path = journal.pods.join(uid.to_string());
        fs::write(&path, b"SKEGJ").unwrap();
        assert!(journal.records().unwrap().is_empty());
        assert!(path.with_extension("broken").exists());
        journal.store_record(record).unwrap();
        journal.remove_record(uid).unwrap();
        journal.remove_record(uid).unwrap();
        assert!(journal.records().unwrap().is_empty());
    }
}
