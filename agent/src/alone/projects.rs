//! The projects of a device on its disk, `state/projects/NAME`: as durable as the controller's revision, and with
//! their secrets encrypted. Nothing is written unless something changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skeg_protocol::{Label, Manifest, Pod, Uid};

use crate::journal::{JournalError, at, make_folder, replace_file, seal, set_aside, unseal};
use crate::vault::Vault;

/// One project.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// All that it wants.
    pub manifest: Manifest,
    /// Its pods that somebody stopped.
    pub stopped: BTreeSet<Uid>,
}

impl Project {
    /// Its pods, and what pods of its jobs will be.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        let Manifest { pods, jobs, cron_jobs, .. } = &self.manifest;
        let templates = jobs.iter().chain(cron_jobs.iter().map(|cron| &cron.job)).map(|job| job.template.as_ref());
        pods.iter().chain(templates)
    }
}

/// The folder of projects.
#[derive(Debug)]
pub struct Projects {
    folder: PathBuf,
    vault: Vault,
    known: BTreeMap<Label, Project>,
}

impl Projects {
    /// Opens the folder and reads every project; a broken one is set aside and said in the log.
    ///
    /// # Errors
    /// The folder can't be made or listed.
    pub fn open(folder: PathBuf, vault: Vault) -> Result<Projects, JournalError> {
        make_folder(&folder).map_err(at("making folder", &folder))?;
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&folder).map_err(at("listing", &folder))? {
            let path = entry.map_err(at("listing", &folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| Label::try_from(name).ok());
            // What is half written or was set aside has an extension, which a label cannot have.
            let Some(name) = name.filter(|name| skeg_protocol::id::is_label(name)) else { continue };
            match unseal::<Project>(&path) {
                Ok(Some(project)) => {
                    let manifest = vault.reveal(project.manifest);
                    if let Err(error) = manifest.validate() {
                        log::error!("project {name} breaks a rule of this version: {error}; it is set aside");
                        set_aside(&path);
                        continue;
                    }
                    known.insert(name, Project { manifest, ..project });
                }
                Ok(None) => {}
                Err(error) => {
                    log::error!("{error}; the project is set aside");
                    set_aside(&path);
                }
            }
        }
        Ok(Projects { folder, vault, known })
    }

    /// Every project by name.
    pub fn all(&self) -> &BTreeMap<Label, Project> {
        &self.known
    }

    /// Makes a project durable; what is the same already costs nothing.
    ///
    /// # Errors
    /// The step that failed; the project is then as before.
    pub fn store(&mut self, name: &Label, project: Project) -> Result<(), JournalError> {
        if self.known.get(name) == Some(&project) {
            return Ok(());
        }
        let path = self.folder.join(name.as_str());
        let closed = self.vault.close(&project.manifest).map_err(at("encrypting for", &path))?;
        let sealed = Project { manifest: closed, stopped: project.stopped.clone() };
        replace_file(&path, &seal(&sealed, &path)?)?;
        self.known.insert(name.clone(), project);
        Ok(())
    }

    /// Forgets a project. Says whether there was one.
    ///
    /// # Errors
    /// Its file can't be removed.
    pub fn remove(&mut self, name: &Label) -> Result<bool, JournalError> {
        let path = self.folder.join(name.as_str());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at("removing", &path)(error)),
            _ => {}
        }
        Ok(self.known.remove(name).is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::pod;
    use crate::journal::Journal;

    #[test]
    fn projects_are_read_back_and_a_broken_one_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Journal::open(folder.path()).unwrap().projects().unwrap();
        let name = |text: &str| Label::try_from(text).unwrap();
        let manifest = Manifest { pods: vec![pod(1, "web", &["main"])], ..Manifest::default() };
        let project = Project { stopped: [manifest.pods[0].uid].into(), manifest };
        let mut projects = open();
        projects.store(&name("shop"), project.clone()).unwrap();
        projects.store(&name("other"), Project::default()).unwrap();
        assert!(projects.remove(&name("other")).unwrap() && !projects.remove(&name("other")).unwrap());
        assert_eq!(open().all(), &[(name("shop"), project)].into());
        fs::write(folder.path().join("state/projects/shop"), b"SKEGJ").unwrap();
        assert!(open().all().is_empty());
        assert!(folder.path().join("state/projects/shop.broken").exists());
    }
}
