//! Reading `config.json` and `process.json`, and the rules of the runtime specification.
//!
//! Owns the way from bytes of an unknown hand to a specification that is whole and means something: bounded, typed and
//! checked, each error with its place as a JSON path. Must not look at the host: what depends on it is found when the
//! plan is compiled.

mod adapt;
mod check;
mod lists;
mod locate;
mod resources;
#[cfg(test)]
mod tests;

use crate::oci;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub(crate) use check::{NODES_MAXIMUM, PROCESSORS_MAXIMUM, check, process};
pub(crate) use lists::numbers;
use locate::locate;

/// The longest configuration that is read: the kernel takes at most 6 MiB of arguments and environment (execve(2)), and
/// engines write some ten KiB.
const LENGTH_MAXIMUM: u64 = 4 << 20;

/// Why a configuration could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The file is longer than any sensible configuration.
    #[error("{path} is longer than {LENGTH_MAXIMUM} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The content is not a configuration.
    #[error("{path} is not valid")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: InvalidConfig,
    },
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum InvalidConfig {
    /// It is not JSON, or nested deeper than 128 levels.
    #[error("not JSON")]
    Json(#[source] serde_json::Error),
    /// A value has another type than its property, is none of the known ones, or is missing.
    #[error("{at}: {source}")]
    Type {
        /// The place, as `process.rlimits[0].type`.
        at: String,
        /// What is there and what should be.
        source: serde_json::Error,
    },
    /// A rule of the specification is broken.
    #[error(transparent)]
    Rule(#[from] Violation),
}

/// A broken rule of the OCI runtime specification.
#[derive(Debug, thiserror::Error)]
#[error("{at}: {value:?} {rule} (runtime-spec, {section})")]
pub struct Violation {
    /// The place, as `mounts[3].destination`.
    pub at: String,
    /// What stands there.
    pub value: String,
    /// What must be.
    pub rule: &'static str,
    /// The file of the specification and its heading.
    pub section: &'static str,
}

/// Reads a bundle's `config.json`.
///
/// At most 4 MiB. Unknown properties are ignored and unknown capabilities are left out with a warning, as the
/// specification wants it (config.md, "Extensibility" and "Linux Process").
///
/// # Errors
/// [`ConfigError`] names the file, and for what stands in it the JSON path, the value and the rule.
pub fn read_config(path: &Path) -> Result<oci::Spec, ConfigError> {
    parse_config(&read(path)?).map_err(|source| ConfigError::Invalid { path: path.into(), source })
}

/// Reads the process of an exec, which has the form of `process` in a `config.json`.
///
/// # Errors
/// As [`read_config`].
pub fn read_process(path: &Path) -> Result<oci::Process, ConfigError> {
    parse_process(&read(path)?).map_err(|source| ConfigError::Invalid { path: path.into(), source })
}

/// Reads a `config.json` from bytes; see [`read_config`].
///
/// # Errors
/// [`InvalidConfig`].
pub fn parse_config(bytes: &[u8]) -> Result<oci::Spec, InvalidConfig> {
    let mut value = serde_json::from_slice(bytes).map_err(InvalidConfig::Json)?;
    adapt::config(&mut value)?;
    let spec = typed(value)?;
    check(&spec)?;
    Ok(spec)
}

/// Reads a `process.json` from bytes; see [`read_process`].
///
/// # Errors
/// [`InvalidConfig`].
pub fn parse_process(bytes: &[u8]) -> Result<oci::Process, InvalidConfig> {
    let mut value = serde_json::from_slice(bytes).map_err(InvalidConfig::Json)?;
    adapt::process(&mut value)?;
    let process = typed(value)?;
    self::process("", &process)?;
    Ok(process)
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.into(), source };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(LENGTH_MAXIMUM + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LENGTH_MAXIMUM {
        return Err(ConfigError::TooLong { path: path.into() });
    }
    Ok(bytes)
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, InvalidConfig> {
    T::deserialize(&value).map_err(|source| InvalidConfig::Type { at: locate::<T>(value, &source.to_string()), source })
}
