//! Compose files (the Compose Specification, without `build`) for one device: each service becomes one pod a replica,
//! in a namespace named after the project; its name is an alias in each of its networks.
//!
//! What a device does not do is refused by name; what has no meaning on it is passed over with a note. Files are read
//! through [`Files`], so that nothing here touches a disk.

mod dotenv;
mod health;
mod interpolate;
mod load;
mod merge;
mod normal;
mod path;
mod project;
mod resources;
mod scalar;
mod service;
#[cfg(test)]
mod tests;
mod volumes;
mod words;

use std::collections::BTreeMap;

use thiserror::Error;

use crate::bundle::Bundle;
use crate::cursor::Fault;
use crate::workload::ImageOf;

/// Largest file of a project in bytes.
pub const MAX_FILE: u64 = 1 << 20;

/// How files are read.
pub trait Files {
    /// Reads a file of at most [`MAX_FILE`] bytes.
    ///
    /// # Errors
    /// Why it cannot be read, in words.
    fn read(&self, path: &str) -> Result<Vec<u8>, String>;

    /// Says whether there is a file.
    fn exists(&self, path: &str) -> bool;
}

/// Which project is meant.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Absolute paths, later ones over earlier ones; relative paths in all of them begin at the first one's folder.
    pub files: Vec<String>,
    /// Its name, over all that the files say.
    pub project: Option<String>,
    /// Active profiles.
    pub profiles: Vec<String>,
    /// The environment of whoever asks.
    pub variables: BTreeMap<String, String>,
}

/// What is wrong with a project, and in which file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{file}: {}", told(fault))]
pub struct ComposeFault {
    /// The file; empty where none is to blame.
    pub file: String,
    /// What is wrong.
    #[source]
    pub fault: Fault,
}

/// A complaint about a file as a whole has no field.
fn told(fault: &Fault) -> String {
    let text = fault.to_string();
    text.strip_prefix(": ").map_or(text.clone(), str::to_owned)
}

/// A project, ready for a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Composed {
    /// Its name, which is the namespace of all that is in it.
    pub project: String,
    /// What it asks for.
    pub bundle: Bundle,
}

/// Reads a project.
///
/// # Errors
/// The first file and field that is unknown, not followed by a device, or breaks a rule.
pub fn convert_compose(request: &Request, files: &dyn Files, image: ImageOf<'_>) -> Result<Composed, ComposeFault> {
    let (project, left) = load::load(request, files)?;
    project::convert(&project, load::Loader::resume(files, left), image)
}
