//! Who the device is and whom it trusts: its Ed25519 key, the controller's pinned key, and the join token.
//!
//! Owns the folder `identity/`. The key is made here and never leaves; nothing here touches the network.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use thiserror::Error;

use crate::journal::{JournalError, make_folder, replace_file};

/// First word of a join token.
const TOKEN_WORD: &str = "skeg-join";
/// Length of a join token's secret.
const SECRET: usize = 32;

/// Why the device has no usable identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// A file or folder can't be used.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// A file can't be written.
    #[error(transparent)]
    Write(#[from] JournalError),
    /// The key's file holds no key.
    #[error("{path} holds no Ed25519 key ({problem}); remove it to enrol anew with a join token")]
    Key {
        /// Which.
        path: PathBuf,
        /// What ring says.
        problem: String,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers for a key")]
    Random,
    /// The pin's file holds no key.
    #[error("{path} holds no key; remove it to trust the controller of the join token")]
    Pin {
        /// Which.
        path: PathBuf,
    },
    /// A token is none.
    #[error("the join token of {origin} is none: {problem}; `skeg token create` prints one")]
    Token {
        /// Where it was read.
        origin: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Nothing says which controller to trust.
    #[error("no controller key is pinned and the configuration has no join token; `skeg token create` prints one")]
    NoTrust,
}

/// A raw Ed25519 public key.
pub type PublicKey = [u8; 32];

/// A join token: whom to trust, and the secret that lets the device in.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The controller's key.
    pub controller: PublicKey,
    /// The secret.
    pub secret: heapless::String<64>,
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JoinToken(secret not shown)")
    }
}

impl JoinToken {
    /// Parses `skeg-join.<controller's key in base64url>.<secret>`; `origin` is named in errors.
    ///
    /// # Errors
    /// [`IdentityError::Token`]; the text itself is not repeated, it is a secret.
    pub fn parse(text: &str, origin: &str) -> Result<Self, IdentityError> {
        let error = |problem| IdentityError::Token { origin: origin.to_owned(), problem };
        let mut parts = text.trim().split('.');
        if parts.next() != Some(TOKEN_WORD) {
            return Err(error("it must begin with `skeg-join.`"));
        }
        let (Some(key), Some(secret), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(error("it must have three parts joined by dots"));
        };
        let controller =
            parse_key(key).ok_or_else(|| error("its second part must be a key of 32 bytes in base64url"))?;
        let plain = secret.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        match heapless::String::try_from(secret) {
            Ok(secret) if plain && secret.len() == SECRET => Ok(JoinToken { controller, secret }),
            _ => Err(error("its third part must be 32 of a-z and 0-9")),
        }
    }
}

fn parse_key(text: &str) -> Option<PublicKey> {
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}

/// The device's own key and its folder.
pub struct Identity {
    folder: PathBuf,
    /// PKCS #8 of the private key.
    pub private: Vec<u8>,
    /// The public key.
    pub public: PublicKey,
}

impl Identity {
    /// Reads the key below a state folder, making one at the first start.
    ///
    /// # Errors
    /// As the variants of [`IdentityError`] say.
    pub fn open(state_dir: &Path) -> Result<Self, IdentityError> {
        let folder = state_dir.join("identity");
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::Io { path, source }
        };
        make_folder(&folder).map_err(io(&folder))?;
        let path = folder.join("key.pk8");
        let private = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let document =
                    Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| IdentityError::Random)?;
                replace_file(&path, document.as_ref())?;
                document.as_ref().to_vec()
            }
            Err(error) => return Err(io(&path)(error)),
        };
        let pair = Ed25519KeyPair::from_pkcs8(&private)
            .map_err(|error| IdentityError::Key { path, problem: error.to_string() })?;
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Ok(Identity { folder, private, public })
    }

    /// The controller's key: the pinned one, else the token's, which is pinned thereby.
    ///
    /// # Errors
    /// Nothing is pinned and there is no token, or the pin can't be read or written.
    pub fn controller(&self, token: Option<&JoinToken>) -> Result<PublicKey, IdentityError> {
        let path = self.folder.join("controller.pub");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let pinned = parse_key(text.trim()).ok_or_else(|| IdentityError::Pin { path: path.clone() })?;
                if token.is_some_and(|token| token.controller != pinned) {
                    log::warn!(
                        "the join token is of another controller than the pinned one, which stays; remove {} to move",
                        path.display()
                    );
                }
                Ok(pinned)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = token.ok_or(IdentityError::NoTrust)?.controller;
                replace_file(&path, format!("{}\n", BASE64_URL_SAFE_NO_PAD.encode(key)).as_bytes())?;
                Ok(key)
            }
            Err(source) => Err(IdentityError::Io { path, source }),
        }
    }

    /// The name under which the controller has taken the device on, once it has.
    pub fn enrolled_as(&self) -> Option<String> {
        fs::read_to_string(self.folder.join("name")).ok().map(|name| name.trim().to_owned())
    }

    /// Notes that the controller has taken the device on.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn enrolled(&self, name: &str) -> Result<(), IdentityError> {
        if self.enrolled_as().as_deref() != Some(name) {
            replace_file(&self.folder.join("name"), format!("{name}\n").as_bytes())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_kept_for_root_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::open(folder.path()).unwrap();
        assert_eq!(Identity::open(folder.path()).unwrap().public, first.public);
        let mode = fs::metadata(folder.path().join("identity/key.pk8")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(folder.path().join("identity/key.pk8"), "x").unwrap();
        assert!(matches!(Identity::open(folder.path()), Err(IdentityError::Key { .. })));
    }

    #[test]
    fn the_first_controller_is_the_one_that_is_trusted() {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::open(folder.path()).unwrap();
        assert!(matches!(identity.controller(None), Err(IdentityError::NoTrust)));
        let token = |byte| JoinToken { controller: [byte; 32], secret: heapless::String::new() };
        assert_eq!(identity.controller(Some(&token(1))).unwrap(), [1; 32]);
        assert_eq!(identity.controller(Some(&token(2))).unwrap(), [1; 32]);
        assert_eq!(identity.controller(None).unwrap(), [1; 32]);
    }

    #[test]
    fn tokens_are_read_and_never_repeated() {
        let key = BASE64_URL_SAFE_NO_PAD.encode([9; 32]);
        let secret = "0123456789abcdefghijklmnopqrstuv";
        let token = JoinToken::parse(&format!(" skeg-join.{key}.{secret}\n"), "a file").unwrap();
        assert_eq!((token.controller, token.secret.as_str()), ([9; 32], secret));
        assert!(!format!("{token:?}").contains(secret));
        let (short, upper) = (format!("skeg-join.{key}.short"), format!("skeg-join.{key}.{}", secret.to_uppercase()));
        let more = format!("skeg-join.{key}.{secret}.x");
        for bad in ["", "x", "skeg-join", "skeg-join.AA.x", &short, &upper, &more] {
            let error = JoinToken::parse(bad, "/etc/skeg/join-token").unwrap_err().to_string();
            assert!(error.contains("/etc/skeg/join-token") && !error.contains(&key), "{error}");
        }
    }
}
