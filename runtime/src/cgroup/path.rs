//! Where a cgroup goes: `linux.cgroupsPath` of the OCI runtime specification.
//!
//! Owns the meaning of that path. Must not touch cgroup filesystems.

use super::CgroupError;
use super::hierarchy::{Hierarchy, HostCgroups, Version};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Greatest length of a path in bytes.
const LONGEST: usize = 1024;

/// A checked place for a cgroup, the same in each hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath {
    below: Base,
    path: PathBuf,
}

/// What a path starts at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    /// Each hierarchy's root.
    Root,
    /// The caller's own cgroup.
    Own,
}

impl CgroupPath {
    /// Checks a `linux.cgroupsPath`: an absolute one is below each hierarchy's root, a relative one below the caller's
    /// own cgroup, a missing one is the container's id below the root (config-linux.md, "Cgroups Path").
    ///
    /// # Errors
    /// [`CgroupError::Path`] for a path with `..`, an empty one, one of more than 1024 bytes, and for systemd's
    /// `slice:prefix:name`, because nothing here speaks to systemd.
    pub fn new(path: Option<&Path>, id: &str) -> Result<CgroupPath, CgroupError> {
        let id = Path::new("/").join(id);
        let path = path.unwrap_or(&id);
        let refused = |problem| CgroupError::Path { path: path.into(), problem };
        let text = path.to_str().ok_or_else(|| refused("is not UTF-8"))?;
        if text.len() > LONGEST || text.contains(['\0', '\n']) {
            return Err(refused("is longer than 1024 bytes or holds a line feed or NUL"));
        }
        if path.components().next().is_none_or(|first| {
            matches!(first, Component::Normal(name)
            if name.to_string_lossy().split(':').count() == 3)
        }) {
            return Err(refused("is empty or a systemd unit, and cgroups are made by cgroupfs only"));
        }
        let mut plain = PathBuf::new();
        for component in path.components() {
            match component {
                Component::Normal(name) if name.len() <= 255 => plain.push(name),
                Component::RootDir | Component::CurDir => {}
                _ => return Err(refused("leads elsewhere by .. or holds a name of more than 255 bytes")),
            }
        }
        if plain.as_os_str().is_empty() {
            return Err(refused("names no cgroup of its own"));
        }
        Ok(CgroupPath { below: if path.is_absolute() { Base::Root } else { Base::Own }, path: plain })
    }

    /// The place below each hierarchy's root, such as `skeg/<pod>/<container>`.
    ///
    /// # Errors
    /// Those of [`CgroupPath::new`].
    pub fn below_root(name: &str) -> Result<CgroupPath, CgroupError> {
        CgroupPath::new(Some(&Path::new("/").join(name)), "")
    }

    /// The folders that a cgroup of this path has, by hierarchy (`cpu,cpuacct`; nothing for version 2), whether they are
    /// there or not: what has to be saved before they are made.
    ///
    /// # Errors
    /// [`CgroupError::Mounts`] and [`CgroupError::Path`] if the caller's own cgroup is wanted and not to be told.
    pub fn folders(&self, host: &HostCgroups) -> Result<BTreeMap<String, PathBuf>, CgroupError> {
        host.used().map(|hierarchy| Ok((hierarchy.key(), self.folder(hierarchy)?))).collect()
    }

    /// The folder in a hierarchy.
    pub(super) fn folder(&self, hierarchy: &Hierarchy) -> Result<PathBuf, CgroupError> {
        Ok(match self.below {
            Base::Root => hierarchy.mount.join(&self.path),
            Base::Own => hierarchy.mount.join(own(hierarchy)?).join(&self.path),
        })
    }
}

/// The caller's own cgroup in a hierarchy, relative to its root; see cgroups(7), `/proc/PID/cgroup`.
fn own(hierarchy: &Hierarchy) -> Result<PathBuf, CgroupError> {
    let file = Path::new("/proc/self/cgroup");
    let table = fs::read_to_string(file).map_err(|source| CgroupError::Mounts { path: file.into(), source })?;
    let own = table.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        let found = match hierarchy.version {
            Version::Two => controllers.is_empty(),
            Version::One => controllers.split(',').any(|controller| hierarchy.offers(controller)),
        };
        found.then(|| PathBuf::from(path.trim_start_matches('/')))
    });
    let own = own.unwrap_or_default();
    // Seen from a cgroup namespace, a cgroup outside of it starts with `..`.
    if own.components().any(|part| part == Component::ParentDir) {
        return Err(CgroupError::Path {
            path: own,
            problem: "is the caller's own cgroup and outside of its namespace",
        });
    }
    Ok(match hierarchy.version {
        Version::One => own,
        // A version 2 cgroup that holds the caller cannot hand controllers down: the place beside it can.
        Version::Two => own.parent().map(PathBuf::from).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_relative_and_missing_paths_are_placed() {
        let hierarchy =
            Hierarchy { version: Version::One, mount: "/mnt".into(), controllers: vec!["none-such".into()] };
        let folder = |path: Option<&str>| {
            CgroupPath::new(path.map(Path::new), "box").unwrap().folder(&hierarchy).unwrap().display().to_string()
        };
        assert_eq!(folder(None), "/mnt/box");
        assert_eq!(folder(Some("/a//b/./c/")), "/mnt/a/b/c");
        // Nobody is in a hierarchy that is not there: the root stands for the caller's own place.
        assert_eq!(folder(Some("a/b")), "/mnt/a/b");
        assert_eq!(folder(Some("/libpod:x/a:b:c")), "/mnt/libpod:x/a:b:c");
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        let long = "x".repeat(256);
        let longer = "x/".repeat(600);
        for path in ["", "/", ".", "..", "/..", "a/../b", "/a/..", "a\nb", "a\0", &long, &longer, "system.slice:p:n"] {
            let refused = CgroupPath::new(Some(Path::new(path)), "box");
            assert!(matches!(refused, Err(CgroupError::Path { .. })), "{path:?}");
        }
        assert!(matches!(CgroupPath::new(None, "../box"), Err(CgroupError::Path { .. })));
    }
}
