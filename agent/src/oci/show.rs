//! Commands that only tell: `state`, `list`, `ps`, `spec` and `plan`.
//!
//! Owns their output, in runc's forms. Must not change a container.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail};
use nix::unistd::{Uid, User};
use serde::Serialize;
use skeg_runtime::default_spec;

use super::arguments::Format;
use super::container::Container;
use super::store::{Folder, Missing};

/// Writes to standard output.
pub(crate) fn print(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Writes JSON and a newline; `pretty` for people.
pub(crate) fn print_json(value: &impl Serialize, pretty: bool) -> anyhow::Result<()> {
    let bytes = if pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
    let mut bytes = bytes.context("cannot be written as JSON")?;
    bytes.push(b'\n');
    print(&bytes)
}

/// The name of the user whose container it is; its number where there is no such user.
fn owner(folder: &Folder) -> anyhow::Result<String> {
    let number = folder.owner()?;
    // A broken /etc/passwd is no reason to hide a container.
    let user = User::from_uid(Uid::from_raw(number)).ok().flatten();
    Ok(user.map_or_else(|| format!("#{number}"), |user| user.name))
}

/// `state`
pub(crate) fn state(root: &Path, id: &str) -> anyhow::Result<()> {
    let container = Container::find(root, id)?;
    print_json(&container.record.shown(container.status()?, owner(&container.folder)?), true)
}

/// `list`
pub(crate) fn list(root: &Path, format: Format, quiet: bool) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for folder in Folder::list(root)? {
        let id = folder.id().to_string();
        match Container::unfinished(folder).and_then(|it| Ok((it.status()?, owner(&it.folder)?, it))) {
            Ok(entry) => found.push(entry),
            // Deleted while the list was made.
            Err(error) if error.is::<Missing>() => {}
            Err(error) => log::warn!("{id}: {error:#}"),
        }
    }
    let shown: Vec<_> = found.iter().map(|(status, owner, it)| it.record.shown(*status, owner.clone())).collect();
    if quiet {
        return print(shown.iter().map(|it| format!("{}\n", it.id)).collect::<String>().as_bytes());
    }
    if format == Format::Json {
        return print_json(&shown, false);
    }
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from);
    let rows = shown.iter().map(|it| {
        let bundle = it.bundle.display().to_string();
        [it.id.into(), it.pid.to_string(), it.status.to_string(), bundle, it.created.into(), it.owner.clone()]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    print(table(&rows).as_bytes())
}

/// Columns at least 12 wide and 3 apart, as Go's tabwriter makes them for runc.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count() + 3).max().unwrap_or(0).max(12);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let (last, leading) = row.split_last().expect("a row has columns");
        for (cell, width) in leading.iter().zip(widths) {
            text.push_str(&format!("{cell:width$}"));
        }
        text.push_str(last);
        text.push('\n');
    }
    text
}

/// `ps`
pub(crate) fn ps(root: &Path, id: &str, format: Format, options: &[OsString]) -> anyhow::Result<()> {
    let pids = Container::find(root, id)?.cgroup()?.processes()?;
    if format == Format::Json {
        return print_json(&pids, false);
    }
    let default = ["-ef".into()];
    let options = if options.is_empty() { &default } else { options };
    let output = Command::new("ps").args(options).output().context("cannot run ps; `--format json` needs none")?;
    if !output.status.success() {
        bail!("ps: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    print(rows_of(&String::from_utf8_lossy(&output.stdout), &pids)?.as_bytes())
}

/// The heading of ps's output and the lines of some processes.
fn rows_of(output: &str, pids: &[i32]) -> anyhow::Result<String> {
    let heading = output.lines().next().unwrap_or_default();
    let Some(column) = heading.split_whitespace().position(|name| name == "PID") else {
        bail!("ps prints no column PID with these options");
    };
    let of_container = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    let lines = output.lines().skip(1).filter(of_container);
    Ok(std::iter::once(heading).chain(lines).flat_map(|line| [line, "\n"]).collect())
}

/// `spec`
pub(crate) fn spec(bundle: &Path) -> anyhow::Result<()> {
    let path = bundle.join("config.json");
    let mut spec = default_spec();
    // As runc and crun have it: the example is a shell for a person, in a root that stays as it is.
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(true));
    }
    if let Some(root) = spec.root_mut() {
        root.set_readonly(Some(true));
    }
    let json = serde_json::to_vec_pretty(&spec).context("the example cannot be written as JSON")?;
    let opened = OpenOptions::new().write(true).create_new(true).open(&path);
    let mut file = opened.with_context(|| format!("cannot make {path:?}"))?;
    file.write_all(&json).with_context(|| format!("cannot write {path:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_need() {
        let rows = [["ID", "PID", "OWNER"], ["a-long-name-of-one", "7", "root"]].map(|row| row.map(String::from));
        assert_eq!(table(&rows), "ID                   PID         OWNER\na-long-name-of-one   7           root\n");
    }

    #[test]
    fn only_lines_of_the_container_are_shown() {
        let output = "UID   PID  CMD\nroot    7  sh\nroot   77  7\n";
        assert_eq!(rows_of(output, &[7]).unwrap(), "UID   PID  CMD\nroot    7  sh\n");
        assert!(rows_of("CMD\nsh\n", &[7]).is_err());
    }
}
