//! Relative links in Markdown: the file must exist, and so must the heading. Links to other machines are not
//! followed: a check must not need a network.

use std::path::{Component, Path, PathBuf};

use super::File;

/// The targets of the links of a text, with their line numbers. Code, fenced or in backticks, holds no links.
fn targets(text: &str) -> Vec<(usize, String)> {
    let (mut found, mut fenced) = (Vec::new(), false);
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        // Between backticks, every other piece is code.
        let prose: String = line.split('`').step_by(2).collect::<Vec<_>>().join("`");
        for piece in prose.split("](").skip(1) {
            if let Some((target, _)) = piece.split_once(')') {
                found.push((index + 1, target.split(' ').next().unwrap_or_default().to_owned()));
            }
        }
        if let Some((name, target)) = prose.trim_start().split_once("]: ")
            && name.starts_with('[')
        {
            found.push((index + 1, target.trim().to_owned()));
        }
    }
    found
}

/// A heading as the fragment of a link, as GitHub and cargo make it.
fn fragment(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars()
        .filter(|letter| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '_'))
        .map(|letter| if letter == ' ' { '-' } else { letter })
        .collect()
}

fn headings(text: &str) -> Vec<String> {
    text.lines().filter(|line| line.starts_with('#')).map(|line| fragment(line.trim_start_matches('#'))).collect()
}

/// Takes `.` and `..` out of a path below the root; `None` when it leaves the root.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => out.pop().then_some(())?,
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(out)
}

fn broken(root: &Path, files: &[File], file: &File, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (path, heading) = target.split_once('#').unwrap_or((target, ""));
    let folder = file.path.parent().unwrap_or(Path::new(""));
    let wanted = if path.is_empty() { Some(file.path.clone()) } else { normal(&folder.join(path)) };
    let Some(wanted) = wanted else { return Some("leads out of the repository".to_owned()) };
    if !root.join(&wanted).exists() {
        return Some(format!("{} does not exist", wanted.display()));
    }
    let text = files.iter().find(|other| other.path == wanted).map(|other| other.text.as_str());
    let missing = !heading.is_empty() && text.is_some_and(|text| !headings(text).iter().any(|known| known == heading));
    missing.then(|| format!("{} has no heading #{heading}", wanted.display()))
}

/// Checks the links of all Markdown files.
pub(super) fn check(root: &Path, files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for file in files {
        for (line, target) in targets(&file.text) {
            if let Some(problem) = broken(root, files, file, &target) {
                findings.push(format!("{}:{line}: the link to {target} is broken: {problem}", file.path.display()));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_files_and_headings() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("docs")).unwrap();
        std::fs::write(folder.path().join("LICENSE"), "").unwrap();
        let file = |path: &str, text: &str| {
            std::fs::write(folder.path().join(path), text).unwrap();
            File { path: path.into(), text: text.to_owned() }
        };
        let readme = file(
            "README.md",
            "# What it is\n[a](LICENSE) [b](docs/A.md#the-way-of-a-pod) [c](#what-it-is) [d](https://example.org/x)\n\
             [e](gone.md) `[f](gone.md)`\n```\n[g](gone.md)\n```\n[h](docs/A.md#gone)\n[i]: docs/gone.md\n",
        );
        let other = file("docs/A.md", "## The way of a pod\n[up](../README.md) [out](../../etc/passwd)\n");
        let findings = check(folder.path(), &[readme, other]);
        let places: Vec<&str> = findings.iter().map(|finding| finding.split(": ").next().unwrap()).collect();
        assert_eq!(places, ["README.md:3", "README.md:7", "README.md:8", "docs/A.md:2"], "{findings:#?}");
    }
}
