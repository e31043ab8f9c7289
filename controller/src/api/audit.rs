//! The audit log: every change that somebody asked for, whether it was let through or not, one JSON object a line in
//! the form of Kubernetes' audit events (audit.k8s.io/v1, level Metadata: bodies are never in it).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use super::authorize::Deed;
use super::users::User;
use crate::time;

/// Bytes after which a new file is begun; the one before is kept.
const LARGEST: u64 = 64 << 20;

/// The log's file.
#[derive(Debug)]
pub(crate) struct Audit {
    path: PathBuf,
    file: Mutex<(File, u64)>,
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}

/// Whether a verb changes something, or runs something in a container.
fn changes(verb: &str) -> bool {
    !matches!(verb, "get" | "list" | "watch" | "head" | "options")
}

impl Audit {
    /// Opens the log, or begins it.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub(crate) fn open(path: &Path) -> io::Result<Audit> {
        Ok(Audit { path: path.to_owned(), file: Mutex::new(open(path)?) })
    }

    /// Notes what somebody did and what was answered. A log that cannot be written does not stop the controller: that is
    /// said in its own log.
    pub(super) fn note(&self, user: &User, deed: &Deed, code: u16) {
        if !changes(&deed.verb) {
            return;
        }
        let (resource, part) = deed.resource.split_once('/').unwrap_or((&deed.resource, ""));
        let line = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "stage": "ResponseComplete",
            "auditID": uuid::Uuid::new_v4().to_string(), "stageTimestamp": time::text(time::now()), "verb": deed.verb,
            "user": user.info(), "requestURI": deed.path, "responseStatus": {"code": code},
            "objectRef": {
                "apiGroup": deed.group, "resource": resource, "subresource": part, "namespace": deed.namespace,
                "name": deed.name,
            },
        });
        if let Err(error) = self.write(format!("{line}\n").as_bytes()) {
            log::error!("cannot write {}: {error}", self.path.display());
        }
    }

    fn write(&self, line: &[u8]) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if file.1 >= LARGEST {
            std::fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *file = open(&self.path)?;
        }
        file.1 += line.len() as u64;
        file.0.write_all(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_noted_and_reads_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let audit = Audit::open(&path).unwrap();
        let user = User { name: "ada".to_owned(), groups: vec!["ops".to_owned()] };
        for (verb, code) in [("get", 200), ("create", 201), ("delete", 403)] {
            let deed = Deed { verb: verb.to_owned(), resource: "pods/exec".to_owned(), ..Deed::default() };
            audit.note(&user, &deed, code);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            (&lines[1]["responseStatus"]["code"], &lines[1]["objectRef"]["subresource"]),
            (&json!(403), &json!("exec"))
        );
    }
}
