//! The exactly-once copy from a pipe to a log file: one batch at a time, without waiting.
//!
//! Owns the order of the system calls; the table in [`super`] argues why it is safe to stop between any two.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice, tee};

use super::format::{Stream, format};
use super::{Limits, rotated};

/// Most bytes of one batch, and the usual size of a pipe.
const BATCH: usize = 64 * 1024;

/// Why a log can't be kept.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The four descriptors are not what [`Pipes::fds`] gave.
    #[error("a log needs four descriptors of init, not {0}")]
    Descriptors(usize),
    /// A pipe can't be made or used.
    #[error("{call} on a log's pipe fails")]
    Pipe {
        /// The system call.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file can't be used.
    #[error("log file {} fails", path.display())]
    File {
        /// The log or its intent.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn pipe_error(call: &'static str) -> impl FnOnce(Errno) -> LogError {
    move |error| LogError::Pipe { call, source: error.into() }
}

/// The ends that init must hold for as long as the container's log is kept.
#[derive(Debug)]
pub struct Pipes {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    staging_read: OwnedFd,
    staging_write: OwnedFd,
}

/// The ends that the container gets. Drop them as soon as it runs, or its log never ends.
#[derive(Debug)]
pub struct Writers {
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

impl Pipes {
    /// How many descriptors [`Pipes::fds`] has.
    pub const COUNT: usize = 4;

    /// Makes the pipes for a new container.
    pub fn new() -> Result<(Pipes, Writers), LogError> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(pipe_error("pipe2"));
        let ((stdout, stdout_write), (stderr, stderr_write)) = (pipe()?, pipe()?);
        let (staging_read, staging_write) = pipe()?;
        for fd in [&stdout, &stderr, &staging_read, &staging_write] {
            // The container's ends stay as programs expect them: waiting.
            fcntl_setfl(fd, OFlags::NONBLOCK).map_err(pipe_error("fcntl(F_SETFL)"))?;
        }
        let pipes = Pipes { stdout, stderr, staging_read, staging_write };
        Ok((pipes, Writers { stdout: stdout_write, stderr: stderr_write }))
    }

    /// The descriptors to give to init, in this order.
    pub fn fds(&self) -> [BorrowedFd<'_>; Pipes::COUNT] {
        [self.stdout.as_fd(), self.stderr.as_fd(), self.staging_read.as_fd(), self.staging_write.as_fd()]
    }

    /// Takes back what init held: exactly the descriptors of [`Pipes::fds`], in that order.
    pub fn from_fds(fds: impl IntoIterator<Item = OwnedFd>) -> Result<Pipes, LogError> {
        let fds: Vec<OwnedFd> = fds.into_iter().take(Pipes::COUNT + 1).collect();
        let [stdout, stderr, staging_read, staging_write] =
            fds.try_into().map_err(|fds: Vec<OwnedFd>| LogError::Descriptors(fds.len()))?;
        Ok(Pipes { stdout, stderr, staging_read, staging_write })
    }
}

/// Buffers that all logs of an agent share, one batch at a time. Clones are the same buffers.
#[derive(Clone)]
pub struct Scratch {
    pub(crate) buffers: std::sync::Arc<tokio::sync::Mutex<Buffers>>,
    pub(crate) limits: Limits,
}

impl Scratch {
    /// Makes the buffers. One call an agent is enough.
    pub fn new(limits: Limits) -> Result<Scratch, LogError> {
        Ok(Scratch { buffers: std::sync::Arc::new(tokio::sync::Mutex::new(Buffers::new()?)), limits })
    }
}

pub(crate) struct Buffers {
    read: File,
    write: OwnedFd,
    bytes: Box<[u8]>,
    text: Vec<u8>,
}

impl Buffers {
    fn new() -> Result<Buffers, LogError> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).map_err(pipe_error("pipe2"))?;
        // One slot for every slot that a staging pipe can have, or tee could copy only a part.
        fcntl_setpipe_size(&write, BATCH).map_err(pipe_error("fcntl(F_SETPIPE_SZ)"))?;
        Ok(Buffers { read: read.into(), write, bytes: vec![0; BATCH].into(), text: Vec::new() })
    }
}

/// What one step came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many bytes were taken.
    Moved(usize),
    /// The stream has nothing now.
    Empty,
    /// The stream has ended.
    End,
}

/// The note in memory on how far a batch has come. Small enough that one write is all or nothing under `kill -9`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Intent {
    /// The bytes in staging are in the log.
    written: bool,
    stream: Stream,
    /// Size of the log before the batch.
    size: u64,
    /// Bytes dropped and not yet told.
    lost: u64,
}

impl Intent {
    const SIZE: usize = 24;

    fn store(self, file: &File) -> io::Result<()> {
        let mut bytes = [0; Intent::SIZE];
        bytes[0] = u8::from(self.written);
        bytes[1] = u8::from(self.stream == Stream::Stderr);
        bytes[8..16].copy_from_slice(&self.size.to_le_bytes());
        bytes[16..].copy_from_slice(&self.lost.to_le_bytes());
        file.write_all_at(&bytes, 0)
    }

    /// Reads the note of an earlier agent. None: there is none.
    fn load(file: &File) -> Option<Intent> {
        let mut bytes = [0; Intent::SIZE];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes of 24"));
        let stream = if bytes[1] == 1 { Stream::Stderr } else { Stream::Stdout };
        Some(Intent { written: bytes[0] == 1, stream, size: number(8), lost: number(16) })
    }
}

/// One container's log file and what leads to it.
pub(crate) struct Copier {
    staging_read: File,
    staging_write: OwnedFd,
    path: PathBuf,
    log: File,
    intent_path: PathBuf,
    intent_file: File,
    intent: Intent,
    rotate_at: u64,
    /// Full parts that are kept.
    parts: usize,
    /// The number of the next full part.
    next_part: u64,
    /// There is a part to be compressed, or too many of them.
    untidy: bool,
    /// Staging may hold bytes of a step that failed.
    unfinished: bool,
    /// Why bytes were dropped last.
    reason: String,
}

/// The two streams to copy from.
pub(crate) struct Sources {
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Copier {
    /// Opens the log, makes the folders that it needs, and finishes what an earlier agent has begun.
    pub(crate) fn open(
        pipes: Pipes,
        path: &Path,
        intent_path: &Path,
        limits: Limits,
        buffers: &mut Buffers,
    ) -> Result<(Copier, Sources), LogError> {
        let log = open(path, OpenOptions::new().append(true))?;
        let parts = rotated::numbers(path).map_err(|source| LogError::File { path: path.into(), source })?;
        let intent_file = open(intent_path, OpenOptions::new().read(true).write(true))?;
        let size = fcntl_getpipe_size(&buffers.write).map_err(pipe_error("fcntl(F_GETPIPE_SZ)"))?;
        let staging_size = fcntl_getpipe_size(&pipes.staging_write).map_err(pipe_error("fcntl(F_GETPIPE_SZ)"))?;
        if staging_size > size {
            fcntl_setpipe_size(&buffers.write, staging_size).map_err(pipe_error("fcntl(F_SETPIPE_SZ)"))?;
        }
        // Without a note nothing is known to be in the log, so nothing is cut off and everything is copied.
        let fresh = Intent { written: false, stream: Stream::Stdout, size: u64::MAX, lost: 0 };
        let mut copier = Copier {
            staging_read: pipes.staging_read.into(),
            staging_write: pipes.staging_write,
            path: path.into(),
            log,
            intent_path: intent_path.into(),
            intent: Intent::load(&intent_file).unwrap_or(fresh),
            intent_file,
            rotate_at: limits.size,
            parts: limits.parts,
            next_part: parts.last().map_or(1, |last| last + 1),
            untidy: !parts.is_empty(),
            unfinished: true,
            reason: "the log could not be written".into(),
        };
        copier.finish_batch(buffers)?;
        Ok((copier, Sources { stdout: pipes.stdout, stderr: pipes.stderr }))
    }

    /// Compresses full parts and removes those that are too many, where there is something to do.
    pub(crate) fn tidy(&mut self) {
        if std::mem::take(&mut self.untidy)
            && let Err(error) = rotated::tidy(&self.path, self.parts)
        {
            // Tried again when the next part is full.
            log::error!("the full parts of log {} can't be compressed: {error}", self.path.display());
        }
    }

    /// Whether [`Copier::tidy`] has something to do.
    pub(crate) fn is_untidy(&self) -> bool {
        self.untidy
    }

    /// Moves at most one batch of a stream into the log. Never waits for the stream.
    pub(crate) fn step(&mut self, source: impl AsFd, stream: Stream, buffers: &mut Buffers) -> Result<Step, LogError> {
        if self.unfinished {
            self.finish_batch(buffers)?;
        }
        let mut size = self.log.metadata().map_err(|source| self.log_error(source))?.len();
        if size >= self.rotate_at && self.rotate() {
            size = 0;
        }
        self.note(Intent { written: false, stream, size, lost: self.intent.lost })?;
        self.unfinished = true;
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let step = match splice(source, None, &self.staging_write, None, BATCH, flags) {
            Ok(0) => Step::End,
            Ok(length) => Step::Moved(length),
            Err(Errno::AGAIN | Errno::INTR) => Step::Empty,
            Err(error) => return Err(pipe_error("splice")(error)),
        };
        if matches!(step, Step::Moved(_)) {
            self.write_batch(buffers)?;
            self.drain(buffers)?;
        }
        self.unfinished = false;
        Ok(step)
    }

    /// Brings what lies in staging to its end, from wherever an earlier attempt stopped.
    fn finish_batch(&mut self, buffers: &mut Buffers) -> Result<(), LogError> {
        let staged = rustix::io::ioctl_fionread(&self.staging_read).map_err(pipe_error("ioctl(FIONREAD)"))?;
        if staged > 0 && !self.intent.written {
            let size = self.log.metadata().map_err(|source| self.log_error(source))?.len();
            if size > self.intent.size {
                self.log.set_len(self.intent.size).map_err(|source| self.log_error(source))?;
            } else {
                self.intent.size = size;
            }
            self.write_batch(buffers)?;
        }
        self.drain(buffers)?;
        self.unfinished = false;
        Ok(())
    }

    /// Copies staging to the log without taking anything out of staging, and notes that it is written.
    fn write_batch(&mut self, buffers: &mut Buffers) -> Result<(), LogError> {
        let Buffers { read, write, bytes, text } = buffers;
        let staged = rustix::io::ioctl_fionread(&self.staging_read).map_err(pipe_error("ioctl(FIONREAD)"))?;
        let copied = tee(&self.staging_read, write, BATCH, SpliceFlags::NONBLOCK).map_err(pipe_error("tee"))?;
        let bytes = bytes.get_mut(..copied).unwrap_or_default();
        read.read_exact(bytes).map_err(|source| LogError::Pipe { call: "read", source })?;
        if copied as u64 != staged {
            let source = io::Error::other(format!("{copied} of {staged} bytes"));
            return Err(LogError::Pipe { call: "tee", source });
        }
        let time = SystemTime::now();
        text.clear();
        if self.intent.lost > 0 {
            let notice = format!("skegd: {} bytes of output are lost: {}\n", self.intent.lost, self.reason);
            format(notice.as_bytes(), Stream::Stderr, time, text);
        }
        format(bytes, self.intent.stream, time, text);
        let lost = match self.log.write_all(text) {
            Ok(()) => 0,
            Err(error) => {
                // A full disk must not stop the container. Half a batch goes away again, so that no line is torn.
                if let Err(error) = self.cut() {
                    log::error!("log {} can't be cut to {} bytes: {error}", self.path.display(), self.intent.size);
                }
                if self.intent.lost == 0 {
                    log::error!("log {} can't be written, output is dropped: {error}", self.path.display());
                }
                self.reason = error.to_string();
                self.intent.lost.saturating_add(staged)
            }
        };
        self.note(Intent { written: true, lost, ..self.intent })
    }

    /// Takes back what was appended since the batch began.
    fn cut(&self) -> io::Result<()> {
        let longer = self.log.metadata()?.len() > self.intent.size;
        if longer { self.log.set_len(self.intent.size) } else { Ok(()) }
    }

    fn drain(&mut self, buffers: &mut Buffers) -> Result<(), LogError> {
        loop {
            match self.staging_read.read(&mut buffers.bytes) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(LogError::Pipe { call: "read", source }),
            }
        }
    }

    /// Begins a new file; staging is empty here. False: the old one goes on, which is better than no log.
    fn rotate(&mut self) -> bool {
        let mut fresh = self.path.clone().into_os_string();
        fresh.push(".new");
        // The new file is there before the old one moves, so that a full disk can't leave the log without a name.
        let new = options(OpenOptions::new().append(true)).open(&fresh).and_then(|new| {
            std::fs::rename(&self.path, rotated::plain(&self.path, self.next_part))?;
            std::fs::rename(&fresh, &self.path)?;
            Ok(new)
        });
        match new {
            Ok(new) => {
                self.log = new;
                self.next_part += 1;
                self.untidy = true;
                true
            }
            Err(error) => {
                log::error!("log {} can't be rotated: {error}", self.path.display());
                // Not at every line again.
                self.rotate_at = self.rotate_at.saturating_mul(2);
                false
            }
        }
    }

    fn note(&mut self, intent: Intent) -> Result<(), LogError> {
        intent.store(&self.intent_file).map_err(|source| LogError::File { path: self.intent_path.clone(), source })?;
        self.intent = intent;
        Ok(())
    }

    fn log_error(&self, source: io::Error) -> LogError {
        LogError::File { path: self.path.clone(), source }
    }
}

fn options(options: &mut OpenOptions) -> &mut OpenOptions {
    options.create(true).mode(0o600)
}

fn open(path: &Path, how: &mut OpenOptions) -> Result<File, LogError> {
    let error = |source| LogError::File { path: path.into(), source };
    if let Some(folder) = path.parent() {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(error)?;
    }
    options(how).open(path).map_err(error)
}
