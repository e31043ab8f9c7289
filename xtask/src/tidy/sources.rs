//! Rules for single source files and manifests: a file says first what it owns, unsafe code has one home, crate
//! roots forbid it elsewhere, and versions stand in the workspace only.

use std::path::Path;

use anyhow::{Context, Result};

/// The one home of unsafe code.
const HOME: &str = "runtime/src/sys";
/// The word, put together so that this file does not hold it.
const WORD: &str = concat!("un", "safe");

/// Whether a line of code holds the word by itself; `unsafe_code` is another word, and neither what is quoted nor
/// what follows `//` is code. The compiler forbids what slips through.
fn holds_word(line: &str) -> bool {
    let unquoted: String = line.split('"').step_by(2).collect();
    let code = unquoted.split("//").next().unwrap_or_default();
    let letter = |character: Option<char>| character.is_some_and(|found| found.is_alphanumeric() || found == '_');
    code.match_indices(WORD)
        .any(|(at, _)| !letter(code[..at].chars().next_back()) && !letter(code[at + WORD.len()..].chars().next()))
}

/// Checks one source file; `path` is below the repository's root.
pub(super) fn check(path: &Path, text: &str) -> Vec<String> {
    let (mut findings, name) = (Vec::new(), path.display());
    if !text.trim_start().starts_with("//!") {
        findings.push(format!("{name}:1: the first line must be `//!` and say what this file owns"));
    }
    if !path.starts_with(HOME) {
        for (index, _) in text.lines().enumerate().filter(|(_, line)| holds_word(line)) {
            findings.push(format!("{name}:{}: {WORD} code belongs into {HOME}", index + 1));
        }
    }
    if path.ends_with("src/main.rs") || path.ends_with("src/lib.rs") {
        let level = if path.starts_with("runtime") { "deny" } else { "forbid" };
        let attribute = format!("#![{level}({WORD}_code)]");
        if !text.lines().any(|line| line.trim() == attribute) {
            findings.push(format!("{name}:1: a crate's root must hold {attribute}"));
        }
    }
    findings
}

/// Checks one crate's Cargo.toml: every dependency comes from the workspace.
///
/// # Errors
/// The manifest is no TOML.
pub(super) fn check_manifest(path: &Path, text: &str) -> Result<Vec<String>> {
    let manifest: toml::Table = text.parse().with_context(|| path.display().to_string())?;
    // A workspace's root holds the versions; the fuzzer is a workspace of its own.
    if manifest.contains_key("workspace") {
        return Ok(Vec::new());
    }
    let mut tables: Vec<&toml::Table> = vec![&manifest];
    if let Some(targets) = manifest.get("target").and_then(toml::Value::as_table) {
        tables.extend(targets.values().filter_map(toml::Value::as_table));
    }
    let mut findings = Vec::new();
    for table in tables {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(dependencies) = table.get(kind).and_then(toml::Value::as_table) else { continue };
            for (name, value) in dependencies {
                if value.get("workspace").and_then(toml::Value::as_bool) != Some(true) {
                    findings.push(format!(
                        "{}: {name} must say `workspace = true`; its version belongs into the root's Cargo.toml",
                        path.display()
                    ));
                }
            }
        }
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_first_what_it_owns() {
        assert!(check(Path::new("agent/src/a.rs"), "//! Owns a.\n").is_empty());
        let findings = check(Path::new("agent/src/a.rs"), "use std::fs;\n//! Too late.\n");
        assert!(findings[0].starts_with("agent/src/a.rs:1: the first line"), "{findings:?}");
    }

    #[test]
    fn unsafe_code_has_one_home() {
        let text = format!("//! Doc.\n#[deny({WORD}_code, reason = \"{WORD}\")] // {WORD}\nfn a() {{ {WORD} {{}} }}\n");
        assert!(check(Path::new("runtime/src/sys/a.rs"), &text).is_empty());
        let findings = check(Path::new("runtime/src/a.rs"), &text);
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].starts_with("runtime/src/a.rs:3: "), "{findings:?}");
    }

    #[test]
    fn crate_roots_forbid_unsafe_code() {
        let forbids = format!("//! Doc.\n#![forbid({WORD}_code)]\n");
        assert!(check(Path::new("agent/src/main.rs"), &forbids).is_empty());
        assert_eq!(check(Path::new("agent/src/main.rs"), "//! Doc.\n").len(), 1);
        assert_eq!(check(Path::new("runtime/src/lib.rs"), &forbids.replace("forbid", "deny")).len(), 0);
    }

    #[test]
    fn versions_stand_in_the_workspace_only() {
        let text = "[dependencies]\na.workspace = true\nb = \"1\"\n[target.'cfg(unix)'.dev-dependencies]\nc = { version = \"2\" }\n";
        let findings = check_manifest(Path::new("x/Cargo.toml"), text).unwrap();
        assert_eq!(findings.len(), 2, "{findings:?}");
        assert!(
            check_manifest(Path::new("Cargo.toml"), "[workspace]\n[dependencies]\nb = \"1\"\n").unwrap().is_empty()
        );
        assert!(check_manifest(Path::new("Cargo.toml"), "not toml").is_err());
    }
}
