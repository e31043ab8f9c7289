//! Reads a log back: all of it, its end, or what comes.
//!
//! Owns the way from records to what an operator sees. Never writes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::format::{MAX_RECORD, parse, timestamp};
use super::rotated::{self, Part};

/// Most bytes of one piece: what fits into one piece of a stream to the controller.
const PIECE: usize = skeg_protocol::limits::MAX_STREAM_DATA;
/// Bytes read from a file at once.
const BLOCK: usize = 64 * 1024;

/// What to read.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// Only the last so many records (lines, unless they are very long).
    pub tail: Option<u32>,
    /// Only what was written since then.
    pub since: Option<SystemTime>,
    /// Each line begins with its time (RFC 3339) and a space.
    pub timestamps: bool,
    /// Go on with what comes, until the log ends ([`super::Log::progress`]).
    pub follow: Option<watch::Receiver<u64>>,
}

/// A log can't be read.
#[derive(Debug, thiserror::Error)]
#[error("log {} can't be read", path.display())]
pub struct ReadError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A log on its way to an operator.
pub struct Reader {
    cursor: Arc<Mutex<Cursor>>,
    follow: Option<watch::Receiver<u64>>,
}

/// Opens a log with its full parts. A missing file is an error whose source says so.
pub async fn read(log: &Path, options: Options) -> Result<Reader, ReadError> {
    let path = log.to_owned();
    let Options { tail, since, timestamps, follow } = options;
    let cursor = blocking(log, move || Cursor::open(&path, tail, since, timestamps)).await?;
    Ok(Reader { cursor: Arc::new(Mutex::new(cursor)), follow })
}

impl Reader {
    /// Gives the next piece, 1 to 16 KiB; none at the end. Waits if it follows. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        loop {
            let cursor = self.cursor.clone();
            let path = lock(&cursor).path.clone();
            let piece = blocking(&path, move || lock(&cursor).piece()).await?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
            match &mut self.follow {
                None => return Ok(None),
                Some(progress) => {
                    if progress.changed().await.is_err() {
                        // The log has ended: what came since the last look is the rest.
                        self.follow = None;
                    }
                }
            }
        }
    }
}

fn lock(cursor: &Mutex<Cursor>) -> std::sync::MutexGuard<'_, Cursor> {
    cursor.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ReadError> {
    let result = spawn_blocking(work).await.map_err(io::Error::other).flatten();
    result.map_err(|source| ReadError { path: path.into(), source })
}

struct Cursor {
    path: PathBuf,
    /// Full ones, oldest first.
    parts: VecDeque<Part>,
    /// Those that were written when they were opened; the last one still is.
    files: VecDeque<File>,
    /// The beginning of a record whose end is not read yet.
    record: Vec<u8>,
    /// What is ready for the operator.
    ready: Vec<u8>,
    skip: u64,
    /// Records before this time are passed over; times of one form compare as texts.
    since: Option<String>,
    timestamps: bool,
    /// The last record's line goes on.
    inside_line: bool,
}

impl Cursor {
    fn open(path: &Path, tail: Option<u32>, since: Option<SystemTime>, timestamps: bool) -> io::Result<Cursor> {
        let mut file = File::open(path)?;
        let numbers = rotated::numbers(path)?;
        let (mut parts, mut skip) = (VecDeque::new(), 0);
        let wanted = tail.map(u64::from);
        let mut there = match wanted {
            Some(_) => records(&mut file)?,
            None => 0,
        };
        file.rewind()?;
        // From the newest on, so that no more is opened than is shown.
        for number in numbers.iter().rev() {
            if wanted.is_some_and(|wanted| there >= wanted) {
                break;
            }
            if wanted.is_some() {
                there += rotated::open(path, *number)?.map_or(Ok(0), |mut part| records(&mut part))?;
            }
            parts.extend(rotated::open(path, *number)?);
        }
        parts.make_contiguous().reverse();
        if let Some(wanted) = wanted {
            skip = there.saturating_sub(wanted);
        }
        Ok(Cursor {
            path: path.into(),
            parts,
            files: VecDeque::from([file]),
            record: Vec::new(),
            ready: Vec::new(),
            skip,
            since: since.map(timestamp),
            timestamps,
            inside_line: false,
        })
    }

    /// The next bytes for the operator; none when all that is there has been read.
    fn piece(&mut self) -> io::Result<Vec<u8>> {
        let mut block = vec![0; BLOCK];
        while self.ready.is_empty() {
            let length = self.read(&mut block)?;
            if length == 0 {
                break;
            }
            for line in block[..length].split_inclusive(|byte| *byte == b'\n') {
                self.record.extend_from_slice(line);
                if line.ends_with(b"\n") || self.record.len() > MAX_RECORD {
                    self.emit();
                }
            }
        }
        let rest = self.ready.split_off(self.ready.len().min(PIECE));
        Ok(std::mem::replace(&mut self.ready, rest))
    }

    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(part) = self.parts.front_mut() {
                let length = part.read(block)?;
                if length > 0 {
                    return Ok(length);
                }
                self.parts.pop_front();
                continue;
            }
            let last = self.files.len() == 1;
            let Some(part) = self.files.front_mut() else { return Ok(0) };
            let length = part.read(block)?;
            if length > 0 {
                return Ok(length);
            }
            if !last {
                self.files.pop_front();
                continue;
            }
            let size = part.metadata()?;
            if part.stream_position()? > size.len() {
                // A batch that met a full disk was taken back.
                part.seek(io::SeekFrom::End(0))?;
                self.record.clear();
            }
            match std::fs::metadata(&self.path) {
                Ok(new) if new.ino() != size.ino() => {
                    // Rotated. The old file gets nothing any more, yet may have got something since the last read.
                    let length = part.read(block)?;
                    self.files.push_back(File::open(&self.path)?);
                    if length > 0 {
                        return Ok(length);
                    }
                }
                // Removed with its pod, or between two names.
                _ => return Ok(0),
            }
        }
    }

    fn emit(&mut self) {
        let line = std::mem::take(&mut self.record);
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        let Some(record) = parse(line.strip_suffix(b"\n").unwrap_or(&line)) else {
            // Not ours, or torn by a power cut: shown as it is.
            self.ready.extend_from_slice(&line);
            return;
        };
        if self.since.as_ref().is_some_and(|since| record.stamp < since.as_bytes()) {
            return;
        }
        if self.timestamps && !self.inside_line {
            self.ready.extend_from_slice(record.stamp);
            self.ready.push(b' ');
        }
        self.ready.extend_from_slice(record.text);
        if record.full {
            self.ready.push(b'\n');
        }
        self.inside_line = !record.full;
    }
}

fn records(file: &mut impl Read) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut count = 0;
    loop {
        match file.read(&mut block)? {
            0 => return Ok(count),
            length => count += block[..length].iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
}
