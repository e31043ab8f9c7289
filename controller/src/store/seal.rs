//! Secrets are sealed in the database file (AES-256-GCM, NIST SP 800-38D), so that a copy of that file alone gives none
//! away (docs/decisions/0014-pull-secrets.md). It owns the form of a sealed object: the nonce, then the ciphertext and
//! its tag, bound to the object's key.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use super::{Key, Key32, StoreError};

/// The key of one database.
#[derive(Debug)]
pub(super) struct Seal(LessSafeKey);

/// Whether objects of a kind are sealed.
pub(super) fn is_sealed(kind: &str) -> bool {
    kind == "Secret"
}

fn place(key: &Key) -> Aad<Vec<u8>> {
    Aad::from([&key.kind, &key.namespace, &key.name].map(String::as_bytes).join(&0))
}

impl Seal {
    pub(super) fn new(key: &Key32) -> Result<Seal, StoreError> {
        // Only a wrong length is refused, and this one is right.
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| StoreError::Sealing)?;
        Ok(Seal(LessSafeKey::new(key)))
    }

    /// Seals an object's bytes under a random nonce: safe for 2^32 writes under one key.
    pub(super) fn seal(&self, key: &Key, mut bytes: Vec<u8>) -> Result<Vec<u8>, StoreError> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| StoreError::Sealing)?;
        let sealed = self.0.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), place(key), &mut bytes);
        sealed.map_err(|_| StoreError::Sealing)?;
        Ok([nonce.as_slice(), &bytes].concat())
    }

    /// Gives back what was sealed under this place.
    pub(super) fn open(&self, key: &Key, sealed: &[u8]) -> Result<Vec<u8>, StoreError> {
        let opened = sealed.split_first_chunk::<NONCE_LEN>().and_then(|(nonce, rest)| {
            let mut bytes = rest.to_vec();
            let opened = self.0.open_in_place(Nonce::assume_unique_for_key(*nonce), place(key), &mut bytes);
            opened.ok().map(|plain| plain.to_vec())
        });
        opened.ok_or_else(|| StoreError::Damaged {
            what: key.to_string(),
            reason: "it does not open with identity/secrets.key: restore that file from the same backup".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_opens_it_and_only_in_its_place() {
        let (one, other) = (Seal::new(&[1; 32]).unwrap(), Seal::new(&[2; 32]).unwrap());
        let key = Key::new("Secret", "default", "a");
        let sealed = one.seal(&key, b"hush".to_vec()).unwrap();
        assert_eq!(one.open(&key, &sealed).unwrap(), b"hush");
        assert_ne!(sealed, one.seal(&key, b"hush".to_vec()).unwrap(), "a nonce was used twice");
        assert!(other.open(&key, &sealed).is_err());
        assert!(one.open(&Key::new("Secret", "defaul", "ta"), &sealed).is_err());
        for end in 0..sealed.len() {
            assert!(one.open(&key, &sealed[..end]).is_err());
        }
    }
}
