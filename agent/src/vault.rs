//! Secrets at rest: a manifest's secrets are encrypted before they reach the disk, with a key of this device.
//!
//! Owns the key, `identity/secrets.key`. What it protects from is a disk that is read without its key: a backup or a
//! support bundle of `state/`, a file that is copied away. Whoever reads `identity/` reads the secrets too.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use skeg_protocol::Manifest;
use skeg_protocol::manifest::{Data, DataKind};

use crate::journal::{JournalError, at, make_folder, replace_file};

/// Bytes of the key's file: one half encrypts, the other makes nonces.
const KEY: usize = 64;
/// The only key of an encrypted secret.
const ENTRY: &str = "encrypted";

/// The device's key for secrets. Clones are the same.
#[derive(Clone)]
pub struct Vault(Arc<Keys>);

struct Keys {
    encryption: LessSafeKey,
    nonces: hmac::Key,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vault(key not shown)")
    }
}

impl Vault {
    /// Takes the key of a folder `identity/`, or makes one. A file that holds no key is set aside: what was encrypted
    /// with it is lost, and comes again from whoever sent it.
    ///
    /// # Errors
    /// The key can't be read or written.
    pub fn open(identity: &Path) -> Result<Vault, JournalError> {
        let path = identity.join("secrets.key");
        match fs::read(&path) {
            Ok(bytes) if bytes.len() == KEY => return Vault::of(&bytes, &path),
            Ok(_) => {
                log::error!("{} holds no key; it is set aside, and another one is made", path.display());
                fs::rename(&path, path.with_extension("broken")).map_err(at("setting aside", &path))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at("reading", &path)(error)),
        }
        let mut bytes = [0; KEY];
        let random = SystemRandom::new().fill(&mut bytes);
        random.map_err(|_| at("making", &path)(io::Error::other("the system gives no random numbers")))?;
        make_folder(identity).map_err(at("making folder", identity))?;
        replace_file(&path, &bytes)?;
        Vault::of(&bytes, &path)
    }

    fn of(bytes: &[u8], path: &Path) -> Result<Vault, JournalError> {
        let (encryption, nonces) = bytes.split_at(KEY / 2);
        let encryption = UnboundKey::new(&CHACHA20_POLY1305, encryption)
            .map_err(|_| at("using", path)(io::Error::other("it is no key of ChaCha20-Poly1305")))?;
        let nonces = hmac::Key::new(hmac::HMAC_SHA256, nonces);
        Ok(Vault(Arc::new(Keys { encryption: LessSafeKey::new(encryption), nonces })))
    }

    /// The manifest as it may be written: each secret's entries are one encrypted entry. The same manifest gives the
    /// same bytes.
    ///
    /// # Errors
    /// What can't be encoded or encrypted; never for a manifest that is valid.
    pub fn close(&self, manifest: &Manifest) -> io::Result<Manifest> {
        let mut closed = manifest.clone();
        for data in closed.data.iter_mut().filter(|data| data.kind == DataKind::Secret) {
            data.entries = vec![(ENTRY.to_owned(), self.encrypt(data)?)];
        }
        Ok(closed)
    }

    /// The manifest as it was before [`Vault::close`]. A secret that can't be decrypted, because the key is another one
    /// or somebody changed the file, is left out and said in the log; the revision is then 0, so that the manifest is
    /// sent anew.
    pub fn reveal(&self, mut manifest: Manifest) -> Manifest {
        let held = manifest.data.len();
        manifest.data.retain_mut(|data| {
            if data.kind != DataKind::Secret {
                return true;
            }
            let entries = self.decrypt(data);
            if entries.is_none() {
                log::error!("secret {}/{} can't be decrypted with this device's key", data.namespace, data.name);
            }
            entries.map(|entries| data.entries = entries).is_some()
        });
        if manifest.data.len() < held {
            let none = Manifest::default();
            (manifest.revision, manifest.epoch, manifest.digest) = (0, none.epoch, none.digest);
        }
        manifest
    }

    /// The nonce is made of the secret itself: it repeats only where name and content do, and tells nothing without the
    /// key.
    fn encrypt(&self, data: &Data) -> io::Result<Vec<u8>> {
        let about = about(data)?;
        let mut bytes = postcard::to_allocvec(&data.entries).map_err(io::Error::other)?;
        let tag = hmac::sign(&self.0.nonces, &[about.as_slice(), &bytes].concat());
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&tag.as_ref()[..NONCE_LEN]);
        let sealed = self.0.encryption.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(about),
            &mut bytes,
        );
        sealed.map_err(|_| io::Error::other("it can't be encrypted"))?;
        Ok([nonce.as_slice(), &bytes].concat())
    }

    fn decrypt(&self, data: &Data) -> Option<Vec<(String, Vec<u8>)>> {
        let bytes = data.get(ENTRY).filter(|bytes| bytes.len() >= NONCE_LEN + MAX_TAG_LEN)?;
        let (nonce, bytes) = bytes.split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut bytes = bytes.to_vec();
        let plain = self.0.encryption.open_in_place(nonce, Aad::from(about(data).ok()?), &mut bytes).ok()?;
        postcard::from_bytes(plain).ok()
    }
}

/// What an encrypted secret is bound to, so that none can take another's place.
fn about(data: &Data) -> io::Result<Vec<u8>> {
    postcard::to_allocvec(&(data.kind, &data.namespace, &data.name, data.immutable)).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn data(kind: DataKind, name: &str, value: &str) -> Data {
        Data {
            kind,
            namespace: "default".try_into().unwrap(),
            name: name.try_into().unwrap(),
            immutable: false,
            entries: vec![("password".to_owned(), value.as_bytes().to_vec())],
        }
    }

    fn manifest() -> Manifest {
        let data = vec![data(DataKind::ConfigMap, "plain", "seen"), data(DataKind::Secret, "login", "hush-hush")];
        Manifest { revision: 3, data, ..Manifest::default() }
    }

    #[test]
    fn secrets_come_back_with_the_same_key_only() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let closed = Vault::open(folder.path()).unwrap().close(&manifest()).unwrap();
        let bytes = postcard::to_allocvec(&closed).unwrap();
        let holds = |word: &str| bytes.windows(word.len()).any(|window| window == word.as_bytes());
        assert!(holds("seen") && !holds("hush") && !holds("password\u{9}hush"));
        let again = Vault::open(folder.path()).unwrap();
        assert_eq!(again.close(&manifest()).unwrap(), closed, "one manifest, one file");
        assert_eq!(again.reveal(closed.clone()), manifest());
        let lost = Vault::open(other.path()).unwrap().reveal(closed);
        assert_eq!((lost.revision, lost.data), (0, vec![manifest().data.swap_remove(0)]));
    }

    #[test]
    fn a_secret_does_not_take_anothers_place_and_a_changed_bit_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let vault = Vault::open(folder.path()).unwrap();
        let closed = vault.close(&manifest()).unwrap();
        let mut renamed = closed.clone();
        renamed.data[1].name = "other".try_into().unwrap();
        assert_eq!(vault.reveal(renamed).data.len(), 1);
        for at in [0, 11, 12, 20, closed.data[1].entries[0].1.len() - 1] {
            let mut changed = closed.clone();
            changed.data[1].entries[0].1[at] ^= 1;
            assert_eq!(vault.reveal(changed).data.len(), 1, "byte {at}");
        }
        let mut short = closed;
        short.data[1].entries[0].1.truncate(5);
        assert_eq!(vault.reveal(short).data.len(), 1);
    }

    #[test]
    fn the_key_is_roots_alone_and_a_broken_one_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let closed = Vault::open(folder.path()).unwrap().close(&manifest()).unwrap();
        let path = folder.path().join("secrets.key");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "short").unwrap();
        assert_eq!(Vault::open(folder.path()).unwrap().reveal(closed).data.len(), 1);
        assert!(folder.path().join("secrets.broken").exists());
    }
}
