//! Random secrets, their hashes and their comparison.

use anyhow::{Result, anyhow};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};

/// Makes a random word of `length` characters `a-z0-9`, each equally likely.
pub(crate) fn random_word(length: usize) -> Result<String> {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    /// Bytes from here on would make some characters likelier than others.
    const FAIR: u8 = 252;
    let (random, mut word) = (SystemRandom::new(), String::with_capacity(length));
    let mut bytes = [0; 64];
    while word.len() < length {
        random.fill(&mut bytes).map_err(|_| anyhow!("the kernel gives no random bytes (getrandom failed)"))?;
        let fair = bytes.iter().filter(|byte| **byte < FAIR).map(|byte| char::from(ALPHABET[usize::from(byte % 36)]));
        word.extend(fair.take(length - word.len()));
    }
    Ok(word)
}

/// Makes a random key of 32 bytes.
pub(crate) fn random_key() -> Result<Vec<u8>> {
    let mut key = vec![0; 32];
    SystemRandom::new().fill(&mut key).map_err(|_| anyhow!("the kernel gives no random bytes (getrandom failed)"))?;
    Ok(key)
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    out
}

/// Compares a secret with what somebody claims it is, in a time that tells nothing about either: the hashes are
/// compared, so that not even their lengths matter.
pub(crate) fn same(secret: &str, claim: &str) -> bool {
    let (secret, claim) = (sha256(secret.as_bytes()), sha256(claim.as_bytes()));
    secret.iter().zip(claim).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

/// The text of a join token: the controller's public key, which the device pins, and the secret.
pub(crate) fn join_token(controller_key: &[u8; 32], secret: &str) -> String {
    format!("skeg-join.{}.{secret}", URL_SAFE_NO_PAD.encode(controller_key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_their_length_and_alphabet() {
        let word = random_word(32).unwrap();
        assert_eq!(word.len(), 32);
        assert!(word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
        assert_ne!(word, random_word(32).unwrap());
    }

    #[test]
    fn only_equal_secrets_are_the_same() {
        assert!(same("abc", "abc"));
        assert!(!same("abc", "abd") && !same("abc", "ab") && !same("abc", ""));
    }
}
