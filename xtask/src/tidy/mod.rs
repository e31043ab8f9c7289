//! What no compiler checks: who may depend on whom, that every file says what it owns, that links lead somewhere,
//! where unsafe code may stand, where versions are written, and under which licences others' code comes.

mod edges;
mod licences;
mod links;
mod sources;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::build::{TARGETS, cargo};
use crate::process::capture;
use crate::root;

/// A file of the repository: its path below the root, and its text.
struct File {
    path: PathBuf,
    text: String,
}

/// Files with an ending below a folder, sorted; build results and hidden folders are passed over.
fn files(folder: &Path, ending: &str) -> Result<Vec<File>> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(current) = folders.pop() {
        for entry in std::fs::read_dir(&current).with_context(|| current.display().to_string())? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let kind = entry.file_type()?;
            if kind.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if kind.is_file() && name.ends_with(ending) {
                let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                found.push(File { path: path.strip_prefix(folder)?.to_owned(), text });
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(found)
}

fn metadata(arguments: &[&str]) -> Result<Value> {
    let mut command = cargo();
    command.args(["metadata", "--format-version", "1", "--locked"]).args(arguments);
    serde_json::from_str(&capture(&mut command)?).context("cargo metadata gives JSON")
}

/// Runs every check; gives how many files were looked at.
///
/// # Errors
/// Every finding, one a line.
pub(crate) fn check() -> Result<String> {
    let root = root();
    let (rust, markdown, manifests) = (files(&root, ".rs")?, files(&root, ".md")?, files(&root, "Cargo.toml")?);
    let mut findings = Vec::new();
    findings.extend(edges::check(&metadata(&["--no-deps"])?));
    for file in &rust {
        findings.extend(sources::check(&file.path, &file.text));
    }
    for file in &manifests {
        findings.extend(sources::check_manifest(&file.path, &file.text)?);
    }
    findings.extend(links::check(&root, &markdown));
    let rules = std::fs::read_to_string(root.join("deny.toml")).context("deny.toml")?;
    let rules = licences::Rules::parse(&rules)?;
    for target in TARGETS {
        findings.extend(licences::check(&rules, &metadata(&["--filter-platform", target])?));
    }
    findings.sort();
    findings.dedup();
    if !findings.is_empty() {
        bail!("{} findings:\n{}", findings.len(), findings.join("\n"));
    }
    Ok(format!("{} files, no finding", rust.len() + markdown.len() + manifests.len()))
}

/// `cargo xtask tidy`.
pub(crate) fn run() -> Result<ExitCode> {
    println!("{}", check()?);
    Ok(ExitCode::SUCCESS)
}
