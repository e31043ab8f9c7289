//! One layer on its way from the network into a temporary folder: keep, count, hash, decompress, hash, unpack.
//!
//! Owns the stream in between, and its bounds: at most [`QUEUE`] chunks of 64 KiB wait in memory, and a zstd window
//! may have 8 MiB. The folder gets its name elsewhere, once all of this has succeeded.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use bytes::{Buf, Bytes};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::digest::{Digest, Hasher};
use crate::split::{Recorder, ZSTD_WINDOW_LOG};
use crate::tar::Archive;
use crate::unpack::{Bounds, UnpackError, Unpacked, unpack};

use super::partial::Partial;
use super::seal::{ARCHIVE, TREE};
use super::{LayerPart, Limits};

/// Chunks that may wait between network and disk.
pub(super) const QUEUE: usize = 8;
/// A small layer may unpack to so many bytes, whatever its compressed size is.
const MIN_UNPACKED: u64 = 1 << 30;
/// How much of a refused layer is still read to find out whether it is the right one at all.
const MAX_POST_MORTEM: u64 = 1 << 20;

/// Why a layer could not be unpacked.
#[derive(Debug, Error)]
pub enum LayerError {
    /// The archive is broken, hostile, or does not fit.
    #[error(transparent)]
    Unpack(#[from] UnpackError),
    /// The bytes from the registry are not those that the manifest names.
    #[error("the registry sent content with the digest {got}")]
    Digest {
        /// Digest of what came.
        got: Digest,
    },
    /// More or fewer bytes than the manifest says.
    #[error("the registry sent {got} bytes where the manifest says {wanted}")]
    Size {
        /// What the manifest says.
        wanted: u64,
        /// What came, or where reading stopped.
        got: u64,
    },
    /// The unpacked archive is not the one that the configuration names.
    #[error("unpacked, its digest is {got}, while the image's configuration says {wanted}")]
    DiffId {
        /// What the configuration says.
        wanted: Digest,
        /// What came.
        got: Digest,
    },
    /// The compressed stream is broken.
    #[error("cannot decompress it")]
    Decompress(#[source] io::Error),
    /// Decompressed it is far larger than any honest layer.
    #[error("it decompresses to more than {0} bytes (the limits layer_ratio and layer_gib)")]
    Bomb(u64),
    /// The pull was given up.
    #[error("the transfer was given up")]
    Interrupted,
    /// The temporary folder could not be made, synced, or put in its place.
    #[error("cannot {operation}")]
    Folder {
        /// What was tried.
        operation: &'static str,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// A layer that has come whole.
pub(super) struct Received {
    pub(super) unpacked: Unpacked,
    /// Bytes of the plain archive, where it can be made again from the files and its record.
    pub(super) archive_size: Option<u64>,
    /// Some of its compressed bytes are on the disk.
    pub(super) durable: bool,
}

/// What goes through the queue.
pub(super) enum Piece {
    Data(Bytes),
    /// All of the blob has come; without it the queue's end means that the pull was given up.
    End,
}

impl LayerError {
    /// Tells whether it is the content's fault, so that another registry may have better.
    pub(super) fn is_of_the_content(&self) -> bool {
        let disk = matches!(self, LayerError::Unpack(UnpackError::Full { .. } | UnpackError::Io { .. }));
        !disk && !matches!(self, LayerError::Interrupted | LayerError::Folder { .. })
    }
}

/// Where a layer's bytes come from.
pub(super) struct Source {
    /// What is here from an earlier attempt, and where what comes is kept for a later one.
    pub(super) partial: Option<Partial>,
    /// Told how many bytes were here, and so from where on to fetch.
    pub(super) begin: oneshot::Sender<u64>,
    /// What is fetched.
    pub(super) queue: mpsc::Receiver<Piece>,
}

/// The compressed stream as it comes out of its source, counted and hashed.
struct Compressed {
    partial: Option<Partial>,
    begin: Option<oneshot::Sender<u64>>,
    queue: mpsc::Receiver<Piece>,
    chunk: Bytes,
    hasher: Hasher,
    count: u64,
    wanted: u64,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Ended,
    GivenUp,
}

impl Compressed {
    /// Does something with the partial file; where that fails, the layer comes without one.
    fn with_partial<T>(&mut self, work: impl FnOnce(&mut Partial) -> io::Result<T>) -> Option<T> {
        match work(self.partial.as_mut()?) {
            Ok(value) => Some(value),
            Err(error) => {
                log::warn!("a download cannot be kept for later: {error}");
                self.forget();
                None
            }
        }
    }

    /// Removes the partial file: its bytes are of no use.
    fn forget(&mut self) {
        if let Some(error) = self.partial.take().and_then(|partial| partial.remove().err()) {
            log::warn!("a partial download cannot be removed: {error}");
        }
    }

    /// Returns what an earlier attempt has left, then tells the sender where to begin.
    fn replay(&mut self) -> Option<Bytes> {
        self.begin.as_ref()?;
        let data = self.with_partial(Partial::replay).flatten();
        if data.is_none()
            && let Some(begin) = self.begin.take()
        {
            // A sender that is gone is seen at the queue.
            let _ = begin.send(self.count);
        }
        data
    }

    /// Waits for the next bytes; `None` when the state has changed instead.
    fn next(&mut self) -> Option<Bytes> {
        if let Some(data) = self.replay() {
            return Some(data);
        }
        match self.queue.blocking_recv() {
            Some(Piece::Data(data)) => {
                self.with_partial(|partial| partial.append(&data));
                return Some(data);
            }
            Some(Piece::End) => self.state = State::Ended,
            None => self.state = State::GivenUp,
        }
        None
    }
}

impl BufRead for Compressed {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() && self.state == State::Open {
            let Some(data) = self.next() else { break };
            self.count += data.len() as u64;
            if self.count > self.wanted {
                return Err(io::Error::other("more bytes than the manifest says"));
            }
            self.hasher.update(&data);
            self.chunk = data;
        }
        match self.state {
            State::GivenUp => Err(io::Error::other("the transfer was given up")),
            _ => Ok(&self.chunk),
        }
    }

    fn consume(&mut self, amount: usize) {
        self.chunk.advance(amount.min(self.chunk.len()));
    }
}

impl Read for Compressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

/// The three forms of a layer. What it is shows in its first bytes, as media types are often wrong.
enum Decoder<'a> {
    Plain(&'a mut Compressed),
    Gzip(Box<flate2::bufread::MultiGzDecoder<&'a mut Compressed>>),
    Zstd(zstd::stream::read::Decoder<'static, &'a mut Compressed>),
}

impl<'a> Decoder<'a> {
    fn new(compressed: &'a mut Compressed) -> io::Result<Decoder<'a>> {
        let head = compressed.fill_buf()?;
        if head.starts_with(&[0x1f, 0x8b]) {
            return Ok(Decoder::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(compressed))));
        }
        if head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            return Ok(Decoder::Zstd(decoder));
        }
        Ok(Decoder::Plain(compressed))
    }
}

impl Read for Decoder<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(inner) => inner.read(buffer),
            Decoder::Gzip(inner) => inner.read(buffer),
            Decoder::Zstd(inner) => inner.read(buffer),
        }
    }
}

/// Who failed, which the archive reader's error alone does not tell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    Decoder,
    Bound,
}

/// The archive as it comes out of the decoder, hashed and bounded.
struct Hashed<R> {
    inner: R,
    hasher: Hasher,
    size: u64,
    left: u64,
    trouble: Trouble,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer).inspect_err(|_| self.trouble = Trouble::Decoder)?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        match self.left.checked_sub(count as u64) {
            Some(left) => self.left = left,
            None => {
                self.trouble = Trouble::Bound;
                return Err(io::Error::other("the archive is too large"));
            }
        }
        Ok(count)
    }
}

/// Unpacks a layer into `fs` of an existing empty folder, with its `archive.gz` beside, and verifies both of its
/// digests. Blocks.
///
/// The partial file stays when all is well, for the layer is not in its place yet, and when the transfer was given up.
pub(super) fn receive(
    source: Source,
    layer: &LayerPart,
    folder: &Path,
    limits: &Limits,
) -> Result<Received, LayerError> {
    let mut compressed = Compressed {
        partial: source.partial,
        begin: Some(source.begin),
        queue: source.queue,
        chunk: Bytes::new(),
        hasher: Hasher::new(),
        count: 0,
        wanted: layer.size,
        state: State::Open,
    };
    let mut result = verified(&mut compressed, layer, folder, bounds(layer, limits));
    if let Ok(received) = &mut result {
        received.durable = compressed.partial.as_ref().is_some_and(Partial::is_durable);
    }
    if !matches!(result, Ok(_) | Err(LayerError::Interrupted)) {
        compressed.forget();
    }
    result
}

/// How much a layer of this compressed size may be.
fn bounds(layer: &LayerPart, limits: &Limits) -> Bounds {
    let most = limits.layer_gib.saturating_mul(1 << 30);
    let bytes = layer.size.saturating_mul(limits.layer_ratio).max(MIN_UNPACKED).min(most);
    Bounds { entries: limits.layer_entries, folders: limits.layer_folders, bytes }
}

fn verified(
    compressed: &mut Compressed,
    layer: &LayerPart,
    folder: &Path,
    bounds: Bounds,
) -> Result<Received, LayerError> {
    let unpacked = decode(compressed, folder, bounds);
    if compressed.state == State::GivenUp {
        return Err(LayerError::Interrupted);
    }
    if compressed.count > layer.size {
        return Err(LayerError::Size { wanted: layer.size, got: compressed.count });
    }
    // A page of HTML instead of a layer is no archive; that it is not the right blob tells more. But a layer that
    // was refused early is not fetched to its end only to know.
    let worth_it = match &unpacked {
        Ok(_) => true,
        Err(error) => error.is_of_the_content() && layer.size - compressed.count <= MAX_POST_MORTEM,
    };
    if worth_it {
        drain(compressed)?;
        if compressed.count != layer.size {
            return Err(LayerError::Size { wanted: layer.size, got: compressed.count });
        }
        let got = std::mem::replace(&mut compressed.hasher, Hasher::new()).finish();
        if got != layer.blob {
            return Err(LayerError::Digest { got });
        }
    }
    let (unpacked, diff_id) = unpacked?;
    if diff_id != layer.diff_id {
        return Err(LayerError::DiffId { wanted: layer.diff_id, got: diff_id });
    }
    Ok(unpacked)
}

fn decode(compressed: &mut Compressed, folder: &Path, bounds: Bounds) -> Result<(Received, Digest), LayerError> {
    let step = |operation| move |source| LayerError::Folder { operation, source };
    let (tree, record) = (folder.join(TREE), folder.join(ARCHIVE));
    fs::DirBuilder::new().mode(0o755).create(&tree).map_err(step("make the folder of its files"))?;
    let recorder = File::create_new(&record).map(Recorder::new).map_err(step("begin its archive's record"))?;
    let decoder = Decoder::new(compressed).map_err(LayerError::Decompress)?;
    let hashed = Hashed { inner: decoder, hasher: Hasher::new(), size: 0, left: bounds.bytes, trouble: Trouble::None };
    let mut archive = Archive::recorded(BufReader::with_capacity(64 << 10, hashed), recorder);
    let unpacked = unpack(&mut archive, &tree, bounds);
    // The diff id is over the whole stream, also over what follows the archive's end mark.
    let drained = unpacked.as_ref().ok().map(|_| archive.drain());
    let (rest, recorder) = archive.into_inner();
    let hashed = rest.into_inner();
    match (unpacked, drained) {
        (Ok(unpacked), Some(Ok(()))) => {
            let whole = recorder.map_or(Ok(false), Recorder::finish).map_err(step("end its archive's record"))?;
            let remade = whole && !unpacked.replaced;
            if !remade {
                fs::remove_file(&record).map_err(step("remove its archive's record"))?;
            }
            let size = hashed.size;
            Ok((Received { unpacked, archive_size: remade.then_some(size), durable: false }, hashed.hasher.finish()))
        }
        (Err(UnpackError::Archive(_, Some(source))), _) | (Ok(_), Some(Err(source))) => match hashed.trouble {
            Trouble::Decoder => Err(LayerError::Decompress(source)),
            Trouble::Bound => Err(LayerError::Bomb(bounds.bytes)),
            Trouble::None => Err(UnpackError::Archive("it ends too early".to_owned(), Some(source)).into()),
        },
        (Err(error), _) => Err(error.into()),
        (Ok(_), None) => Err(LayerError::Interrupted),
    }
}

fn drain(compressed: &mut Compressed) -> Result<(), LayerError> {
    let mut buffer = [0; 8192];
    loop {
        match compressed.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(_) if compressed.state == State::GivenUp => return Err(LayerError::Interrupted),
            Err(_) => return Err(LayerError::Size { wanted: compressed.wanted, got: compressed.count }),
        }
    }
}
