//! The parts of a log that were full: numbered, compressed, and only so many.
//!
//! ```text
//!   0.log          being written
//!   0.log.7        just full; compressed next
//!   0.log.6.gz     kept, the oldest goes first
//! ```
//!
//! A part has its number for ever, so that a sudden end at any moment leaves nothing to be guessed: what is not compressed
//! yet is compressed by the next agent.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

/// A part that is read.
pub(super) type Part = Box<dyn Read + Send>;

fn with(log: &Path, end: &str) -> PathBuf {
    let mut name: OsString = log.as_os_str().to_owned();
    name.push(end);
    name.into()
}

/// The place of a part that is not compressed.
pub(super) fn plain(log: &Path, number: u64) -> PathBuf {
    with(log, &format!(".{number}"))
}

fn compressed(log: &Path, number: u64) -> PathBuf {
    with(log, &format!(".{number}.gz"))
}

/// Ends of the names of files that belong to a log.
fn ends(log: &Path) -> io::Result<Vec<String>> {
    let (Some(folder), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let mut ends = Vec::new();
    for entry in fs::read_dir(folder)? {
        let file = entry?.file_name();
        ends.extend(file.to_str().and_then(|file| file.strip_prefix(name)?.strip_prefix('.').map(str::to_owned)));
    }
    Ok(ends)
}

/// The numbers of a log's parts, the oldest first.
pub(super) fn numbers(log: &Path) -> io::Result<BTreeSet<u64>> {
    Ok(ends(log)?.iter().filter_map(|end| end.strip_suffix(".gz").unwrap_or(end).parse().ok()).collect())
}

/// Compresses what is full and removes what is too much.
///
/// # Errors
/// As of the file system; a part is then still there as it was.
pub(super) fn tidy(log: &Path, keep: usize) -> io::Result<()> {
    let numbers = numbers(log)?;
    for number in numbers.iter().rev().skip(keep) {
        remove(&plain(log, *number))?;
        remove(&compressed(log, *number))?;
    }
    for number in numbers.iter().rev().take(keep) {
        let full = plain(log, *number);
        let Ok(mut from) = File::open(&full) else { continue };
        let fresh = with(log, ".tmp");
        let to = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        let mut to = GzEncoder::new(to, Compression::fast());
        io::copy(&mut from, &mut to)?;
        to.finish()?.flush()?;
        fs::rename(&fresh, compressed(log, *number))?;
        remove(&full)?;
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Opens a part, whether it was compressed meanwhile or not. `None`: it is gone.
pub(super) fn open(log: &Path, number: u64) -> io::Result<Option<Part>> {
    match File::open(plain(log, number)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return Ok(Some(Box::new(opened?))),
    }
    match File::open(compressed(log, number)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => Ok(Some(Box::new(GzDecoder::new(opened?)))),
    }
}

/// Every file of a log: the one that is written and its parts.
pub fn files(log: &Path) -> Vec<PathBuf> {
    let parts = ends(log).unwrap_or_default().into_iter().map(|end| with(log, &format!(".{end}")));
    parts.chain([log.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(log: &Path) -> Vec<String> {
        let mut names = ends(log).unwrap();
        names.sort();
        names
    }

    fn text(log: &Path, number: u64) -> String {
        let mut text = String::new();
        open(log, number).unwrap().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn full_parts_are_compressed_and_the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        fs::write(folder.path().join("1.log.9"), "another's").unwrap();
        for number in 1..=5 {
            fs::write(plain(&log, number), format!("part {number}\n").repeat(1000)).unwrap();
        }
        tidy(&log, 3).unwrap();
        assert_eq!(names(&log), ["3.gz", "4.gz", "5.gz"]);
        assert_eq!(text(&log, 4), "part 4\n".repeat(1000));
        assert!(fs::metadata(compressed(&log, 4)).unwrap().len() < 500);
        assert!(folder.path().join("1.log.9").exists());
        assert!(open(&log, 2).unwrap().is_none());
    }

    #[test]
    fn an_interrupted_compression_is_done_again() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("0.log");
        fs::write(plain(&log, 7), "whole\n").unwrap();
        fs::write(with(&log, ".tmp"), "half").unwrap();
        assert_eq!(text(&log, 7), "whole\n");
        tidy(&log, 3).unwrap();
        assert_eq!(names(&log), ["7.gz"]);
        // Killed between the rename and the removal.
        fs::write(plain(&log, 7), "whole\n").unwrap();
        tidy(&log, 3).unwrap();
        assert_eq!((names(&log), text(&log, 7)), (vec!["7.gz".to_owned()], "whole\n".to_owned()));
    }
}
