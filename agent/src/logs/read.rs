//! Reads a log back: all of it, its end, or what comes.
//!
//! Owns the way from records to what an operator sees. Never writes.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::task::spawn_blocking;

use super::format::{MAX_RECORD, parse};
use super::rotated;

/// Most bytes of one piece: what fits into one piece of a stream to the controller.
const PIECE: usize = skeg_protocol::limits::MAX_STREAM_DATA;
/// Bytes read from a file at once.
const BLOCK: usize = 64 * 1024;

/// What to read.
#[derive(Debug, Default, Clone)]
pub struct Options {
    /// Only the last so many records (lines, unless they are very long).
    pub tail: Option<u32>,
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

/// Opens a log with its rotated part. A missing file is an error whose source says so.
pub async fn read(log: &Path, options: Options) -> Result<Reader, ReadError> {
    let path = log.to_owned();
    let Options { tail, timestamps, follow } = options;
    let cursor = blocking(log, move || Cursor::open(&path, tail, timestamps)).await?;
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
    /// Oldest first; the last one is still written.
    parts: VecDeque<File>,
    /// The beginning of a record whose end is not read yet.
    record: Vec<u8>,
    /// What is ready for the operator.
    ready: Vec<u8>,
    skip: u64,
    timestamps: bool,
    /// The last record's line goes on.
    inside_line: bool,
}

impl Cursor {
    fn open(path: &Path, tail: Option<u32>, timestamps: bool) -> io::Result<Cursor> {
        let mut parts = VecDeque::new();
        match File::open(rotated(path)) {
            Ok(old) => parts.push_back(old),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        parts.push_back(File::open(path)?);
        let mut skip = 0;
        if let Some(tail) = tail {
            for part in &mut parts {
                skip += records(part)?;
                part.rewind()?;
            }
            skip = skip.saturating_sub(tail.into());
        }
        let (record, ready) = (Vec::new(), Vec::new());
        Ok(Cursor { path: path.into(), parts, record, ready, skip, timestamps, inside_line: false })
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
            let last = self.parts.len() == 1;
            let Some(part) = self.parts.front_mut() else { return Ok(0) };
            let length = part.read(block)?;
            if length > 0 {
                return Ok(length);
            }
            if !last {
                self.parts.pop_front();
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
                    self.parts.push_back(File::open(&self.path)?);
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

fn records(file: &mut File) -> io::Result<u64> {
    let mut block = vec![0; BLOCK];
    let mut count = 0;
    loop {
        match file.read(&mut block)? {
            0 => return Ok(count),
            length => count += block[..length].iter().filter(|byte| **byte == b'\n').count() as u64,
        }
    }
}
