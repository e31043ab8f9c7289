//! The deep check: every byte that has a digest is read again, and what does not match is set aside.
//!
//! Owns making a layer's archive again from its files and its record, which both the check and an export do. The
//! archive's digest covers names, owners, modes, times, links and data; since headers come from the record, they are
//! compared with the files entry by entry. Of folders only that they are there: archives may name one several times.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use thiserror::Error;

use super::seal::{ARCHIVE, Seal, TREE};
use super::{MAX_CONFIG, MAX_MANIFEST, Record, Store, StoreError};
use crate::blobs::BlobError;
use crate::digest::Digest;
use crate::split::Remade;
use crate::tar::{Archive, Entry, Kind};
use crate::unpack::{WHITEOUT, components, open_beneath};

/// What a deep check has found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Images that are whole.
    pub images: Vec<Digest>,
    /// Images of which something is missing or was set aside: pull them again.
    pub incomplete: Vec<Digest>,
    /// Layers that were checked by content.
    pub layers: usize,
    /// Layers of which only names and sizes could be checked: their archives name a file twice.
    pub shallow: usize,
    /// Bytes of the layers' archives that were hashed.
    pub bytes: u64,
    /// What was set aside, and why.
    pub broken: Vec<String>,
}

/// Why a layer's archive cannot be made again.
#[derive(Debug, Error)]
pub(super) enum RemakeError {
    /// The layer is not what it was.
    #[error("{0}")]
    Broken(String),
    /// What was made could not be written.
    #[error("cannot write the archive")]
    Out(#[source] io::Error),
}

impl Store {
    /// Reads everything and compares it with its digests. What is broken is set aside, so that the next pull fetches it.
    ///
    /// Blocks for as long as reading all images takes. `progress` hears of each layer: how many of how many.
    pub fn verify(&self, progress: &dyn Fn(usize, usize)) -> Result<Verified, StoreError> {
        let mut verified = Verified::default();
        let layers = self.names("layers")?;
        for (done, name) in layers.iter().enumerate() {
            progress(done, layers.len());
            if let Some(chain_id) = Digest::from_hex(name) {
                self.verify_layer(&chain_id, &mut verified)?;
            }
        }
        progress(layers.len(), layers.len());
        for blob in self.0.blobs.list()? {
            if let Err(BlobError::TooLarge { .. }) | Ok(None) = self.0.blobs.read(&blob, MAX_CONFIG.max(MAX_MANIFEST)) {
                verified.broken.push(format!("blob {blob}: its content has another digest"));
            }
        }
        for digest in self.images()? {
            match self.image(&digest)? {
                Some(_) => verified.images.push(digest),
                None => verified.incomplete.push(digest),
            }
        }
        Ok(verified)
    }

    fn verify_layer(&self, chain_id: &Digest, verified: &mut Verified) -> Result<(), StoreError> {
        let path = self.layer_path(chain_id);
        let checked = match Seal::read(&path) {
            // Removed in the meantime.
            Ok(None) => return Ok(()),
            Ok(Some(seal)) => check(&path, &seal),
            Err(error) => Err(format!("its seal cannot be read: {error}")),
        };
        match checked {
            Ok(Some(bytes)) => {
                verified.layers += 1;
                verified.bytes += bytes;
            }
            Ok(None) => verified.shallow += 1,
            Err(_) if !path.exists() => {}
            Err(trouble) => {
                self.set_layer_aside(chain_id, &trouble)?;
                verified.broken.push(format!("layer {chain_id}: {trouble}"));
            }
        }
        Ok(())
    }

    /// What an image consists of, and what its layers' seals say; `None` where something is missing.
    pub(super) fn sealed(&self, digest: &Digest) -> Result<Option<(Record, super::Parts, Vec<Seal>)>, StoreError> {
        let (Some(record), Some(parts)) = (self.record(digest)?, self.parts(digest)?) else { return Ok(None) };
        let mut seals = Vec::with_capacity(parts.layers.len());
        for layer in &parts.layers {
            match Seal::read(&self.layer_path(&layer.chain_id)) {
                Ok(Some(seal)) => seals.push(seal),
                _ => return Ok(None),
            }
        }
        Ok(Some((record, parts, seals)))
    }
}

/// Checks a layer: bytes of its archive, or `None` where that cannot be made again.
fn check(layer: &Path, seal: &Seal) -> Result<Option<u64>, String> {
    if let Some(trouble) = seal.trouble(layer) {
        return Err(trouble);
    }
    let Some(size) = seal.archive_size else { return Ok(None) };
    let (diff_id, remade) = remake(layer, io::sink()).map_err(|error| error.to_string())?;
    if (diff_id.to_string(), remade) != (seal.diff_id.clone(), size) {
        return Err(format!("its archive has the digest {diff_id} where {} was unpacked", seal.diff_id));
    }
    Ok(Some(size))
}

/// Makes a layer's archive again, writes it to `out`, and tells its digest and size. Blocks.
pub(super) fn remake(layer: &Path, out: impl Write) -> Result<(Digest, u64), RemakeError> {
    let broken = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| RemakeError::Broken(format!("{what}: {error}"))
    };
    let record = File::open(layer.join(ARCHIVE)).map_err(broken("the record of its archive"))?;
    let remade = Remade::new(record, out);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let tree = rustix::fs::open(layer.join(TREE), flags, Mode::empty())
        .map_err(|errno| RemakeError::Broken(format!("its files: {errno}")))?;
    let mut archive = Archive::new(remade);
    let done =
        walk(&mut archive, &Tree { root: tree }).and_then(|()| archive.drain().map_err(|error| error.to_string()));
    let (mut remade, _) = archive.into_inner();
    match (done, remade.out_failed()) {
        (_, Some(error)) => Err(RemakeError::Out(error)),
        (Err(trouble), None) => Err(RemakeError::Broken(trouble)),
        (Ok(()), None) => Ok(remade.finish()),
    }
}

/// Reads the archive to its end mark: compares each entry with its file, and gives the file's data back.
fn walk<W: Write>(archive: &mut Archive<Remade<W>>, tree: &Tree) -> Result<(), String> {
    let mut buffer = vec![0; 128 << 10];
    while let Some(entry) = archive.next_entry().map_err(|error| error.to_string())? {
        let named = |problem: String| format!("{}: {problem}", String::from_utf8_lossy(&entry.path));
        if let Some(file) = tree.compare(&entry).map_err(named)? {
            let pieces = entry.pieces.clone().unwrap_or_else(|| vec![(0, entry.size)]);
            archive.inner_mut().supply(file, pieces);
            while archive.read_data(&mut buffer).map_err(|error| named(error.to_string()))? > 0 {}
        }
    }
    Ok(())
}

struct Tree {
    root: OwnedFd,
}

impl Tree {
    /// Compares an entry with what is there, and opens it where it is a file with data.
    fn compare(&self, entry: &Entry) -> Result<Option<File>, String> {
        let parts = components(&entry.path).map_err(|problem| problem.to_string())?;
        let Some((name, parents)) = parts.split_last() else { return Ok(None) };
        let device = matches!(entry.kind, Kind::CharacterDevice | Kind::BlockDevice);
        if device || parts.iter().any(|part| part.starts_with(WHITEOUT)) {
            // Left out or turned into overlay's form; there is no data of it in a file.
            return Ok(None);
        }
        let said = |errno: Errno| io::Error::from(errno).to_string();
        let folder = open_beneath(&self.root, &parents.join(&b'/')).map_err(said)?;
        let stat = rustix::fs::statat(&folder, *name, AtFlags::SYMLINK_NOFOLLOW).map_err(said)?;
        match entry.kind {
            Kind::Folder => return same("kind", FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            Kind::HardLink => return same("link", self.same_inode(&entry.link, &stat)?),
            Kind::Symlink => {
                let target = rustix::fs::readlinkat(&folder, *name, Vec::new()).map_err(said)?;
                same("target", target.as_bytes() == entry.link)?;
            }
            _ => {}
        }
        let kind = match entry.kind {
            Kind::Symlink => FileType::Symlink,
            Kind::Fifo => FileType::Fifo,
            _ => FileType::RegularFile,
        };
        same("kind", FileType::from_raw_mode(stat.st_mode) == kind)?;
        same("owner", (u64::from(stat.st_uid), u64::from(stat.st_gid)) == (entry.uid, entry.gid))?;
        if entry.kind != Kind::Symlink {
            same("mode", stat.st_mode & 0o7777 == entry.mode)?;
        }
        if entry.kind != Kind::File {
            return Ok(None);
        }
        same("size", u64::try_from(stat.st_size) == Ok(entry.size))?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&folder, *name, flags, Mode::empty()).map_err(said)?;
        Ok(Some(file.into()))
    }

    fn same_inode(&self, link: &[u8], stat: &Stat) -> Result<bool, String> {
        let said = |errno: Errno| io::Error::from(errno).to_string();
        let parts = components(link).map_err(|problem| problem.to_string())?;
        let Some((name, parents)) = parts.split_last() else { return Ok(false) };
        let folder = open_beneath(&self.root, &parents.join(&b'/')).map_err(said)?;
        let target = rustix::fs::statat(folder.as_fd(), *name, AtFlags::SYMLINK_NOFOLLOW).map_err(said)?;
        Ok((target.st_dev, target.st_ino) == (stat.st_dev, stat.st_ino))
    }
}

fn same(what: &str, same: bool) -> Result<Option<File>, String> {
    if same { Ok(None) } else { Err(format!("its {what} is another than the archive says")) }
}
