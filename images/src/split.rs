//! What a layer's archive has beside its files' data: headers, padding, end mark. With the unpacked files it makes the
//! very same archive again, byte for byte.
//!
//! Owns the form of `archive.gz`: a gzip stream of parts, each `u32` length of raw bytes, the raw bytes, `u64` length
//! of data that follows them in the archive and lies in a file; little endian. Whose data that is shows in the header
//! among the raw bytes before, so that whoever remakes the archive reads it as an archive and supplies the files.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

use crate::digest::{Digest, Hasher};

/// Raw bytes of one part, unless one header is longer.
const PART: usize = 64 << 10;
/// Longest part that is read: one header with all that may stand before it.
const MAX_PART: u32 = 4 << 20;
/// Most raw bytes that are recorded for one layer; an archive with more cannot be made again.
const MAX_RAW: u64 = 1 << 30;
/// Of what others have made, windows above 8 MiB are refused: RFC 8878 asks decoders for no more.
pub(crate) const ZSTD_WINDOW_LOG: u32 = 23;

/// Writes down what passes by while a layer is unpacked.
pub(crate) struct Recorder {
    out: GzEncoder<BufWriter<File>>,
    raw: Vec<u8>,
    data: u64,
    left: u64,
    /// The first failure; it is told at the end.
    failed: Option<io::Error>,
}

impl Recorder {
    /// Begins a record in an empty file.
    pub(crate) fn new(file: File) -> Recorder {
        // Headers are mostly zeros and repeat: the least effort makes them a tenth.
        let out = GzEncoder::new(BufWriter::new(file), Compression::fast());
        Recorder { out, raw: Vec::with_capacity(PART), data: 0, left: MAX_RAW, failed: None }
    }

    /// Notes bytes that are nowhere else.
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        if self.data > 0 || self.raw.len() + bytes.len() > PART {
            self.flush();
        }
        self.raw.extend_from_slice(bytes);
    }

    /// Notes so many bytes that are in the file of the present entry.
    pub(crate) fn data(&mut self, length: usize) {
        self.data += length as u64;
    }

    fn flush(&mut self) {
        let (raw, data) = (std::mem::take(&mut self.raw), std::mem::take(&mut self.data));
        if self.failed.is_none() && !(raw.is_empty() && data == 0) {
            self.failed = self.write(&raw, data).err();
        }
        self.raw = raw;
        self.raw.clear();
    }

    fn write(&mut self, raw: &[u8], data: u64) -> io::Result<()> {
        self.left = self.left.checked_sub(raw.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        let length = u32::try_from(raw.len()).map_err(io::Error::other)?;
        self.out.write_all(&length.to_le_bytes())?;
        self.out.write_all(raw)?;
        self.out.write_all(&data.to_le_bytes())
    }

    /// Ends the record. `false` means that there was more than a record may have.
    pub(crate) fn finish(mut self) -> io::Result<bool> {
        self.flush();
        match self.failed {
            Some(error) if error.kind() == io::ErrorKind::FileTooLarge => Ok(false),
            Some(error) => Err(error),
            None => self.out.finish()?.into_inner().map_err(io::IntoInnerError::into_error).map(|_| true),
        }
    }
}

/// Where the data of the present entry lies.
struct Supply {
    file: File,
    /// Pieces of the file as (offset, length), the next one last.
    pieces: Vec<(u64, u64)>,
}

enum State {
    Begin,
    Raw(u32),
    Data(u64),
}

/// The archive of a layer, made again while it is read; everything that is read also goes to `out`.
pub(crate) struct Remade<W> {
    parts: GzDecoder<BufReader<File>>,
    state: State,
    supply: Option<Supply>,
    hasher: Hasher,
    size: u64,
    out: W,
    /// Why `out` does not take more, which is nobody's fault here.
    out_failed: Option<io::Error>,
}

impl<W: Write> Remade<W> {
    /// Begins to make the archive of a record again.
    pub(crate) fn new(record: File, out: W) -> Remade<W> {
        let (parts, hasher) = (GzDecoder::new(BufReader::new(record)), Hasher::new());
        Remade { parts, state: State::Begin, supply: None, hasher, size: 0, out, out_failed: None }
    }

    /// Gives the file that has the data which comes next, and where in it.
    pub(crate) fn supply(&mut self, file: File, mut pieces: Vec<(u64, u64)>) {
        pieces.reverse();
        self.supply = Some(Supply { file, pieces });
    }

    /// Tells why `out` failed, where it did.
    pub(crate) fn out_failed(&mut self) -> Option<io::Error> {
        self.out_failed.take()
    }

    /// Tells digest and size of what was read.
    pub(crate) fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.size)
    }

    fn number<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.parts.read_exact(&mut bytes).map(|()| bytes)
    }

    /// Moves on to bytes that can be read; `None` at the end.
    fn advance(&mut self) -> io::Result<Option<()>> {
        loop {
            self.state = match self.state {
                State::Raw(0) => State::Data(u64::from_le_bytes(self.number()?)),
                State::Begin | State::Data(0) => {
                    let mut first = [0];
                    if self.parts.read(&mut first)? == 0 {
                        return Ok(None);
                    }
                    let [second, third, fourth] = self.number()?;
                    let length = u32::from_le_bytes([first[0], second, third, fourth]);
                    if length > MAX_PART {
                        return Err(io::Error::other("the record of the archive is broken"));
                    }
                    State::Raw(length)
                }
                State::Raw(_) | State::Data(_) => return Ok(Some(())),
            };
        }
    }

    fn read_supply(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        let missing = || io::Error::other("the record of the archive asks for data of no file");
        let supply = self.supply.as_mut().ok_or_else(missing)?;
        while let Some((offset, length)) = supply.pieces.last_mut() {
            if *length == 0 {
                supply.pieces.pop();
                continue;
            }
            let room = buffer.len().min(usize::try_from(*length).unwrap_or(usize::MAX));
            let count = supply.file.read_at(&mut buffer[..room], *offset)?;
            if count == 0 {
                return Err(io::Error::other("the file is shorter than it was"));
            }
            *offset += count as u64;
            *length -= count as u64;
            return Ok(count);
        }
        Err(missing())
    }
}

impl<W: Write> Read for Remade<W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.advance()?.is_none() || buffer.is_empty() {
            return Ok(0);
        }
        let room = |left: u64| buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = match self.state {
            State::Begin => 0,
            State::Raw(left) => {
                let room = room(left.into());
                self.parts.read_exact(&mut buffer[..room])?;
                // No more than `left`, which is of this type.
                self.state = State::Raw(left - u32::try_from(room).unwrap_or(left));
                room
            }
            State::Data(left) => {
                let room = room(left);
                let count = self.read_supply(&mut buffer[..room])?;
                self.state = State::Data(left - count as u64);
                count
            }
        };
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        if let Err(error) = self.out.write_all(&buffer[..count]) {
            self.out_failed = Some(error);
            return Err(io::Error::other("what is made cannot be written"));
        }
        Ok(count)
    }
}
