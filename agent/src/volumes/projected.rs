//! Files made of config maps, secrets and facts about the pod.
//!
//! Owns what is in such a volume and the way it gets there: all at once, so that a program never sees files of two
//! states beside each other. The scheme is Kubernetes' (`atomic_writer.go`):
//!
//! ```text
//!   volume/password   ──▶ ..data/password
//!   volume/..data     ──▶ ..7                 renamed over at a stroke
//!   volume/..7/password                       the files themselves
//! ```
//!
//! A container sees the volume read-only, so nobody else writes here.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use skeg_protocol::Pod;
use skeg_protocol::manifest::{Data, DataKind, DownwardValue, KeyPath, Projection};

use super::facts::Facts;

/// Link to the folder of the present state.
const PRESENT: &str = "..data";

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    bytes: Vec<u8>,
    mode: u16,
}

/// All files of a volume by their paths.
pub type Files = BTreeMap<String, File>;

/// Who owns the files.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    /// The host's id of the pod's root.
    pub user: u32,
    /// The host's id of the pod's `fsGroup`, who may then read every file.
    pub group: Option<u32>,
}

/// Says what is to be in a volume.
///
/// # Errors
/// What is missing, in Kubernetes' words, or which path is none.
pub fn files(pod: &Pod, sources: &[Projection], default_mode: u16, facts: &Facts) -> Result<Files, String> {
    let mut files = Files::new();
    for projection in sources {
        match projection {
            Projection::Data { source, items } => {
                if let Some(data) = facts.source(pod, source)? {
                    add_data(&mut files, data, items, source.optional, default_mode)?;
                }
            }
            Projection::Downward(asked) => {
                for file in asked {
                    let text = match &file.value {
                        DownwardValue::Field(field) => facts.field(pod, field),
                        DownwardValue::Resource(resource) => facts.resource(pod, None, resource),
                    };
                    add(&mut files, &file.path, text.into_bytes(), file.mode.unwrap_or(default_mode))?;
                }
            }
        }
    }
    let inside = |path: &String| {
        let mut below = files.range(format!("{path}/")..).next();
        below.take_if(|(other, _)| other.starts_with(&format!("{path}/"))).is_some()
    };
    match files.keys().find(|path| inside(path)) {
        Some(path) => Err(format!("{path:?} is to be a file and a folder at once")),
        None => Ok(files),
    }
}

fn add_data(
    files: &mut Files,
    data: &Data,
    items: &[KeyPath],
    optional: bool,
    default_mode: u16,
) -> Result<(), String> {
    if items.is_empty() {
        return data.entries.iter().try_for_each(|(key, bytes)| add(files, key, bytes.clone(), default_mode));
    }
    for item in items {
        match data.get(&item.key) {
            Some(bytes) => add(files, &item.path, bytes.to_vec(), item.mode.unwrap_or(default_mode))?,
            None if optional => {}
            None => {
                let kind = if data.kind == DataKind::Secret { "secret" } else { "config" };
                return Err(format!("references non-existent {kind} key: {}", item.key));
            }
        }
    }
    Ok(())
}

fn add(files: &mut Files, path: &str, bytes: Vec<u8>, mode: u16) -> Result<(), String> {
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    // What begins with two dots is the volume's own.
    if parts.is_empty() || parts[0].starts_with("..") || parts.contains(&"..") {
        return Err(format!("{path:?} is no path for a file: it must not begin with `..`"));
    }
    files.insert(parts.join("/"), File { bytes, mode: mode & 0o7777 });
    Ok(())
}

/// Makes a volume's folder hold exactly these files; nothing is touched where it does already. Says whether it changed.
///
/// # Errors
/// As of the file system; the state before then stays.
pub fn publish(volume: &Path, files: &Files, owner: Owner) -> io::Result<bool> {
    // Whoever has the group may read, as in Kubernetes.
    let more = if owner.group.is_some() { 0o440 } else { 0 };
    let files: Files =
        files.iter().map(|(path, file)| (path.clone(), File { mode: file.mode | more, ..file.clone() })).collect();
    let present = volume.join(PRESENT);
    let before = fs::read_link(&present).ok();
    if before.is_some() && read(&present)? == files {
        return Ok(false);
    }
    let number = before.as_deref().and_then(Path::to_str).and_then(|name| name.strip_prefix("..")?.parse().ok());
    let name = format!("..{}", number.unwrap_or(0_u64) + 1);
    let fresh = volume.join(&name);
    remove_all(&fresh)?;
    write(&fresh, &files, owner)?;
    let (link, group) = (volume.join("..data_tmp"), owner.group.unwrap_or(owner.user));
    remove_all(&link)?;
    symlink(&name, &link)?;
    lchown(&link, Some(owner.user), Some(group))?;
    fs::rename(&link, &present)?;
    let tops: Vec<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for top in &tops {
        let link = volume.join(top);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(PRESENT).join(top), &link)?;
            lchown(&link, Some(owner.user), Some(group))?;
        }
    }
    for entry in fs::read_dir(volume)? {
        let entry = entry?.file_name();
        let known = |known: &str| entry.to_str() == Some(known);
        if !known(PRESENT) && !known(&name) && !tops.iter().any(|top| known(top)) {
            remove_all(&volume.join(entry))?;
        }
    }
    Ok(true)
}

fn write(folder: &Path, files: &Files, owner: Owner) -> io::Result<()> {
    let group = owner.group.unwrap_or(owner.user);
    let give = |path: &Path, mode: u32| {
        lchown(path, Some(owner.user), Some(group))?;
        fs::set_permissions(path, Permissions::from_mode(mode))
    };
    fs::create_dir(folder)?;
    give(folder, 0o755)?;
    for (path, file) in files {
        let parts: Vec<&str> = path.split('/').collect();
        for end in 1..parts.len() {
            let folder = folder.join(parts[..end].join("/"));
            match fs::create_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.and_then(|()| give(&folder, 0o755))?,
            }
        }
        let path = folder.join(path);
        fs::write(&path, &file.bytes)?;
        give(&path, file.mode.into())?;
    }
    Ok(())
}

/// What a folder holds.
fn read(folder: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type()?.is_dir() {
            files.extend(read(&entry.path())?.into_iter().map(|(path, file)| (format!("{name}/{path}"), file)));
        } else {
            let mode = u16::try_from(entry.metadata()?.mode() & 0o7777).unwrap_or_default();
            files.insert(name, File { bytes: fs::read(entry.path())?, mode });
        }
    }
    Ok(files)
}

fn remove_all(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use skeg_protocol::manifest::{DataSource, DownwardFile, PodField, ResourceField, ResourceName};

    use super::super::facts::tests::{data, facts};
    use super::*;
    use crate::core::tests::pod;

    const NOBODY: Owner = Owner { user: 0, group: None };

    fn of(kind: DataKind, name: &str, optional: bool, items: &[(&str, &str, Option<u16>)]) -> Projection {
        let source = DataSource { kind, name: name.to_owned(), optional };
        let item = |(key, path, mode): &(&str, &str, Option<u16>)| KeyPath {
            key: (*key).to_owned(),
            path: (*path).to_owned(),
            mode: *mode,
        };
        Projection::Data { source, items: items.iter().map(item).collect() }
    }

    fn shown(files: &Files) -> Vec<(&str, &[u8], u16)> {
        files.iter().map(|(path, file)| (path.as_str(), file.bytes.as_slice(), file.mode)).collect()
    }

    #[test]
    fn config_maps_secrets_and_facts_become_files_with_modes() {
        let pod = pod(1, "web", &["main"]);
        let facts = facts(vec![
            data(DataKind::ConfigMap, "app", &[("a.conf", b"one"), ("b.conf", b"two")]),
            data(DataKind::Secret, "login", &[("key", b"\xff\x00")]),
        ]);
        let downward = vec![
            DownwardFile { path: "pod/name".to_owned(), mode: None, value: DownwardValue::Field(PodField::Name) },
            DownwardFile {
                path: "cpu".to_owned(),
                mode: Some(0o444),
                value: DownwardValue::Resource(ResourceField {
                    container: Some("main".try_into().unwrap()),
                    resource: ResourceName::LimitsCpu,
                    divisor_millis: 1,
                }),
            },
        ];
        let sources = [
            of(DataKind::ConfigMap, "app", false, &[]),
            of(DataKind::Secret, "login", false, &[("key", "tls/./key", Some(0o400))]),
            of(DataKind::ConfigMap, "none", true, &[]),
            Projection::Downward(downward),
            of(DataKind::ConfigMap, "app", false, &[("b.conf", "a.conf", None)]),
        ];
        let files = files(&pod, &sources, 0o640, &facts).unwrap();
        let expected: [(&str, &[u8], u16); 5] = [
            ("a.conf", b"two", 0o640),
            ("b.conf", b"two", 0o640),
            ("cpu", b"2000", 0o444),
            ("pod/name", b"web", 0o640),
            ("tls/key", b"\xff\x00", 0o400),
        ];
        assert_eq!(shown(&files), expected);
    }

    #[test]
    fn missing_sources_and_wrong_paths_are_refused_in_kubernetes_words() {
        let pod = pod(1, "web", &["main"]);
        let facts = facts(vec![
            data(DataKind::ConfigMap, "app", &[("a", b"1"), ("b", b"2")]),
            data(DataKind::Secret, "login", &[]),
        ]);
        let refused = |sources: &[Projection]| files(&pod, sources, 0o644, &facts).unwrap_err();
        let config = |items: &[_]| of(DataKind::ConfigMap, "app", false, items);
        assert_eq!(refused(&[of(DataKind::Secret, "none", false, &[])]), "secret \"none\" not found");
        assert_eq!(refused(&[config(&[("c", "c", None)])]), "references non-existent config key: c");
        let secret = of(DataKind::Secret, "login", false, &[("c", "c", None)]);
        assert_eq!(refused(&[secret]), "references non-existent secret key: c");
        assert!(files(&pod, &[of(DataKind::ConfigMap, "app", true, &[("c", "c", None)])], 0o644, &facts).is_ok());
        for path in ["..data/x", "..", "x/../../y", ".", "/", "..1"] {
            assert!(refused(&[config(&[("a", path, None)])]).contains("is no path"), "{path}");
        }
        let both = refused(&[config(&[("a", "x", None), ("b", "x/y", None)])]);
        assert_eq!(both, "\"x\" is to be a file and a folder at once");
        let beside = files(&pod, &[config(&[("a", "x", None), ("b", "x-y", None)])], 0o644, &facts);
        assert_eq!(beside.map(|files| files.len()), Ok(2));
    }

    fn some(entries: &[(&str, &str)]) -> Files {
        entries
            .iter()
            .map(|(path, text)| ((*path).to_owned(), File { bytes: text.as_bytes().to_vec(), mode: 0o600 }))
            .collect()
    }

    #[test]
    fn files_change_all_at_once_as_in_kubernetes() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path();
        assert!(publish(volume, &some(&[("a", "1"), ("sub/b", "2")]), NOBODY).unwrap());
        let first = fs::read_link(volume.join("..data")).unwrap();
        assert_eq!(fs::read_link(volume.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::read_to_string(volume.join("sub/b")).unwrap(), "2");
        assert!(!publish(volume, &some(&[("a", "1"), ("sub/b", "2")]), NOBODY).unwrap(), "nothing new");
        assert_eq!(fs::read_link(volume.join("..data")).unwrap(), first);

        // Whoever holds the old state sees all of it until it looks again.
        let held = fs::File::open(volume.join("sub/b")).unwrap();
        assert!(publish(volume, &some(&[("a", "3"), ("c", "4")]), NOBODY).unwrap());
        assert_eq!(io::read_to_string(held).unwrap(), "2");
        assert_ne!(fs::read_link(volume.join("..data")).unwrap(), first);
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
        let mut names: Vec<_> = fs::read_dir(volume).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["..2", "..data", "a", "c"]);
        assert!(publish(volume, &some(&[]), NOBODY).unwrap());
        assert!(!volume.join("a").exists());
    }

    /// A program that reads a volume while it changes sees one state or the other.
    #[test]
    fn a_reader_never_sees_two_states_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path().to_owned();
        let state = |number: usize| some(&[("a", &number.to_string()), ("b", &number.to_string())]);
        publish(&volume, &state(0), NOBODY).unwrap();
        let reader = std::thread::spawn({
            let volume = volume.clone();
            move || {
                let mut seen = 0;
                while seen < 200 {
                    // The link is followed to a folder that may be gone by the time, as in Kubernetes: it looks again.
                    let Ok(folder) = fs::File::open(volume.join("..data")) else { continue };
                    let read = |name| {
                        use std::os::fd::AsRawFd;
                        fs::read_to_string(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
                    };
                    // The folder may be gone by now, but never be half of another state.
                    if let (Ok(a), Ok(b)) = (read("a"), read("b")) {
                        assert_eq!(a, b);
                        seen = a.parse().unwrap();
                    }
                }
            }
        });
        for number in 1.. {
            publish(&volume, &state(number), NOBODY).unwrap();
            if reader.is_finished() {
                break;
            }
        }
        reader.join().unwrap();
    }

    #[test]
    fn an_interrupted_update_is_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path();
        publish(volume, &some(&[("a", "1")]), NOBODY).unwrap();
        fs::create_dir(volume.join("..2")).unwrap();
        fs::write(volume.join("..2/a"), "half").unwrap();
        symlink("..2", volume.join("..data_tmp")).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
        assert!(publish(volume, &some(&[("a", "2")]), NOBODY).unwrap());
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "2");
        assert_eq!(fs::read_dir(volume).unwrap().count(), 3);
    }

    #[test]
    fn the_fs_group_may_read_every_file() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root may give files away");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let owner = Owner { user: 1 << 20, group: Some((1 << 20) + 2000) };
        publish(folder.path(), &some(&[("a", "1")]), owner).unwrap();
        let found = fs::metadata(folder.path().join("a")).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (1 << 20, (1 << 20) + 2000, 0o640));
        assert!(!publish(folder.path(), &some(&[("a", "1")]), owner).unwrap());
    }
}
