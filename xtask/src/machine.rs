//! What this machine has mounted, grouped and running that bears a given word, so that a run can show that it left
//! nothing behind. It looks only at what can be told from other people's work on the machine, and removes nothing
//! but a cgroup that it is told to remove.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long the kernel may take to let go of what has ended.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long the kernel may take to see that a cgroup's processes have ended.
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);

/// Everything on the machine that bears a word, and every network interface and named network namespace.
pub(crate) struct Snapshot {
    word: String,
    found: BTreeSet<String>,
}

/// The names in a folder; none where there is no such folder.
fn names(folder: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Mount points whose path holds a word.
pub(crate) fn mounts(word: &str) -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|path| path.contains(word))
        .map(PathBuf::from)
        .collect())
}

/// The cgroup folders of a name at the top of every hierarchy.
pub(crate) fn cgroups(word: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = names("/sys/fs/cgroup").into_iter().map(|name| root.join(name)).filter(|path| path.is_dir());
    std::iter::once(root.to_owned())
        .chain(hierarchies)
        .flat_map(|folder| names(&folder.to_string_lossy()).into_iter().map(move |name| folder.join(name)))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(word)) && path.is_dir())
        .collect()
}

/// A folder and all folders below it, the deepest last.
pub(crate) fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    let mut next = 0;
    while let Some(current) = found.get(next) {
        let entries = std::fs::read_dir(current).into_iter().flatten().flatten();
        let below: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        found.extend(below);
        next += 1;
    }
    found
}

/// Removes a cgroup and those below it; the kernel may take a moment to see that their processes have ended.
pub(crate) fn remove_cgroup(folder: &Path) -> Result<()> {
    for path in walk(folder).into_iter().rev() {
        let began = Instant::now();
        while let Err(error) = std::fs::remove_dir(&path) {
            if began.elapsed() > REMOVE_PATIENCE {
                return Err(error).with_context(|| path.display().to_string());
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }
    Ok(())
}

/// Processes, not this one or its parents' shell, that bear a word in their command line or their cgroup.
pub(crate) fn processes(word: &str) -> Vec<(i32, String)> {
    let own = std::process::id() as i32;
    let mut found = Vec::new();
    for pid in names("/proc").into_iter().filter_map(|name| name.parse::<i32>().ok()).filter(|pid| *pid != own) {
        let read = |file: &str| {
            let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ").trim().to_owned()
        };
        let command = read("cmdline");
        // A process that has ended and waits for its parent has neither.
        let program = command.split(' ').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        let ours = matches!(program, "skeg" | "skegd") && command.contains(word);
        if ours || read("cgroup").contains(&format!("/{word}")) {
            found.push((pid, command));
        }
    }
    found
}

impl Snapshot {
    /// Looks at the machine.
    pub(crate) fn take(word: &str) -> Result<Self> {
        let mut found = BTreeSet::new();
        found.extend(mounts(word)?.iter().map(|path| format!("mount {}", path.display())));
        found.extend(cgroups(word).iter().map(|path| format!("cgroup {}", path.display())));
        found.extend(processes(word).iter().map(|(pid, command)| format!("process {pid} {command}")));
        found.extend(names("/sys/class/net").iter().map(|name| format!("network interface {name}")));
        found.extend(names("/run/netns").iter().map(|name| format!("network namespace {name}")));
        let temporary = std::env::temp_dir();
        let folders = names(&temporary.to_string_lossy());
        found.extend(
            folders
                .iter()
                .filter(|name| name.contains(word))
                .map(|name| format!("folder {}", temporary.join(name).display())),
        );
        Ok(Snapshot { word: word.to_owned(), found })
    }

    /// Fails, naming it, on anything that is there now and was not then.
    pub(crate) fn same_as_now(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let now = Snapshot::take(&self.word)?;
            let left: Vec<&str> = now.found.difference(&self.found).map(String::as_str).collect();
            if left.is_empty() {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                bail!("left behind:\n{}", left.join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_since_is_named() {
        let word = format!("skeg-machine-{}", std::process::id());
        let before = Snapshot::take(&word).unwrap();
        let folder = tempfile::Builder::new().prefix(&word).tempdir().unwrap();
        let line = format!("folder {}", folder.path().display());
        assert!(!before.found.contains(&line));
        assert!(Snapshot::take(&word).unwrap().found.contains(&line));
        drop(folder);
        assert!(!Snapshot::take(&word).unwrap().found.contains(&line));
    }
}
