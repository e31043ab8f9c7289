//! Reads tar archives from a stream: ustar, GNU long names, PAX records and sparse files.
//!
//! Owns the format and its bounds: no header makes it allocate more than [`MAX_META`]. It touches no file. The
//! field layouts come from the `tar` crate; its own iterator is not used, because it reads long names and PAX
//! records of any length into memory.

use std::io::{self, Read};

use thiserror::Error;

use crate::split::Recorder;

/// Most bytes of long names and PAX records before one entry.
pub(crate) const MAX_META: u64 = 1 << 20;
/// Most pieces of one sparse file.
const MAX_PIECES: usize = 65_536;
const BLOCK: usize = 512;

/// Pieces of data of a sparse file as (offset, length).
type Pieces = Vec<(u64, u64)>;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Folder,
    Fifo,
}

/// One entry; its data is read from the archive before the next entry is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    /// Size of the file, holes included.
    pub(crate) size: u64,
    /// The data of a sparse file, ascending; the rest is holes.
    pub(crate) pieces: Option<Pieces>,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why the stream is no archive that can be read.
#[derive(Debug, Error)]
pub(crate) enum TarError {
    #[error("cannot read on after {offset} bytes of the archive")]
    Read {
        offset: u64,
        #[source]
        source: io::Error,
    },
    #[error("not a tar archive at byte {offset}: {problem}")]
    Malformed { offset: u64, problem: &'static str },
}

/// What PAX records say about the next entry.
#[derive(Debug, Default, Clone)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Sparse,
}

#[derive(Debug, Default, Clone)]
struct Sparse {
    major: Option<u64>,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    numbers: Vec<u64>,
}

/// An archive that is being read.
pub(crate) struct Archive<R> {
    inner: R,
    offset: u64,
    /// Bytes of the present entry's data that are not read yet.
    data: u64,
    padding: u64,
    recorder: Option<Recorder>,
}

type Result<T> = std::result::Result<T, TarError>;

impl<R: Read> Archive<R> {
    pub(crate) fn new(inner: R) -> Archive<R> {
        Archive { inner, offset: 0, data: 0, padding: 0, recorder: None }
    }

    /// Has everything noted that passes by: what [`Archive::read_data`] gives as data, all else raw.
    pub(crate) fn recorded(inner: R, recorder: Recorder) -> Archive<R> {
        Archive { recorder: Some(recorder), ..Archive::new(inner) }
    }

    pub(crate) fn into_inner(self) -> (R, Option<Recorder>) {
        (self.inner, self.recorder)
    }

    /// Tells how many bytes of the archive were read.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Reads what follows the archive's end mark.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        let mut buffer = [0; 8192];
        loop {
            match self.inner.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => self.note(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn note(&mut self, bytes: &[u8]) {
        if let Some(recorder) = &mut self.recorder {
            recorder.raw(bytes);
        }
    }

    fn malformed<T>(&self, problem: &'static str) -> Result<T> {
        Err(TarError::Malformed { offset: self.offset, problem })
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<()> {
        let offset = self.offset;
        self.inner.read_exact(buffer).map_err(|source| TarError::Read { offset, source })?;
        self.offset += buffer.len() as u64;
        self.note(buffer);
        Ok(())
    }

    /// Reads a block; `None` at a clean end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let offset = self.offset;
            let read = self.inner.read(&mut block[filled..]);
            match read {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return self.malformed("it ends within a header"),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { offset, source }),
            }
        }
        self.offset += BLOCK as u64;
        self.note(&block);
        Ok(Some(block))
    }

    /// Reads data of the present entry as it is stored (without holes); 0 at its end. The caller keeps it in a file.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let count = self.next_data(buffer)?;
        if let Some(recorder) = &mut self.recorder {
            recorder.data(count);
        }
        Ok(count)
    }

    fn next_data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let limit = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        if limit == 0 {
            return Ok(0);
        }
        let offset = self.offset;
        let count = loop {
            match self.inner.read(&mut buffer[..limit]) {
                Ok(0) => return self.malformed("it ends within a file's data"),
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(TarError::Read { offset, source }),
            }
        };
        self.offset += count as u64;
        self.data -= count as u64;
        Ok(count)
    }

    fn skip_rest(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        loop {
            match self.next_data(&mut buffer)? {
                0 => break,
                count => self.note(&buffer[..count]),
            }
        }
        // umoci stops right after the last file's data. Nothing is lost by taking that for the end, as Go's reader does.
        let mut padding = Vec::with_capacity(BLOCK);
        let wanted = std::mem::take(&mut self.padding);
        let read = self.inner.by_ref().take(wanted).read_to_end(&mut padding);
        self.offset += read.map_err(|source| TarError::Read { offset: self.offset, source })? as u64;
        self.note(&padding);
        Ok(())
    }

    fn begin_data(&mut self, size: u64) -> Result<()> {
        if size > i64::MAX as u64 {
            return self.malformed("an entry of more than 2^63 bytes");
        }
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        Ok(())
    }

    /// Reads the whole data of a long name or PAX record, which is bounded.
    fn meta(&mut self, size: u64, used: &mut u64) -> Result<Vec<u8>> {
        *used = used.saturating_add(size);
        if *used > MAX_META {
            return self.malformed("more than 1 MiB of long names and PAX records before one entry");
        }
        self.begin_data(size)?;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        self.fill(&mut bytes)?;
        self.data = 0;
        self.skip_rest()?;
        Ok(bytes)
    }

    /// Reads up to the next entry; `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>> {
        self.skip_rest()?;
        let (mut pax, mut used) = (Pax::default(), 0);
        let (mut long_path, mut long_link) = (None, None);
        loop {
            let Some(block) = self.block()? else { return Ok(None) };
            if block == [0; BLOCK] {
                return match self.block()? {
                    Some(second) if second != [0; BLOCK] => self.malformed("data after the end mark"),
                    _ => Ok(None),
                };
            }
            let header = tar::Header::from_byte_slice(&block);
            if !self.checksum_holds(&block) {
                return self.malformed("a header's checksum is wrong");
            }
            let size = self.number(&header.as_old().size, header.entry_size())?;
            match header.entry_type().as_byte() {
                b'L' => long_path = Some(until_nul(self.meta(size, &mut used)?)),
                b'K' => long_link = Some(until_nul(self.meta(size, &mut used)?)),
                b'x' => {
                    let records = self.meta(size, &mut used)?;
                    self.parse_pax(&records, &mut pax)?;
                }
                // Global records: git writes a comment; nothing that a layer needs.
                b'g' => drop(self.meta(size, &mut used)?),
                _ => return self.entry(header, &block, size, pax, long_path, long_link).map(Some),
            }
        }
    }

    fn checksum_holds(&self, block: &[u8; BLOCK]) -> bool {
        let sum = |signed: bool| -> i64 {
            block
                .iter()
                .enumerate()
                .map(|(index, &byte)| match index {
                    148..156 => i64::from(b' '),
                    _ if signed => i64::from(byte.cast_signed()),
                    _ => i64::from(byte),
                })
                .sum()
        };
        let stored = tar::Header::from_byte_slice(block).cksum().map(i64::from);
        // Old writers summed signed bytes.
        stored.is_ok_and(|stored| stored == sum(false) || stored == sum(true))
    }

    /// An empty field is a 0, as for GNU tar and Go's reader.
    fn number<T: Default>(&self, field: &[u8], value: io::Result<T>) -> Result<T> {
        if field.iter().all(|byte| matches!(byte, 0 | b' ')) {
            return Ok(T::default());
        }
        value.or_else(|_| self.malformed("a header's number is none"))
    }

    fn entry(
        &mut self,
        header: &tar::Header,
        block: &[u8; BLOCK],
        size: u64,
        pax: Pax,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry> {
        let stored = pax.size.unwrap_or(size);
        let mut path = pax.path.or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = match header.entry_type().as_byte() {
            // Before ustar a folder was a file whose name ends with a slash.
            0 | b'0' if path.ends_with(b"/") => Kind::Folder,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharacterDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Folder,
            b'6' => Kind::Fifo,
            _ => return self.malformed("an entry of unknown type"),
        };
        // Only files have data; some writers give a link the size of its file.
        let has_data = matches!(kind, Kind::File);
        let (mut real_size, mut pieces) = (if has_data { stored } else { 0 }, None);
        if header.entry_type().as_byte() == b'S' {
            let (size, map) = self.old_sparse(block)?;
            (real_size, pieces) = (size, Some(map));
        }
        self.begin_data(if has_data { stored } else { 0 })?;
        if has_data && (pax.sparse.major.is_some() || !pax.sparse.numbers.is_empty()) {
            let Some(size) = pax.sparse.real_size else { return self.malformed("a sparse file without its size") };
            real_size = size;
            path = pax.sparse.name.unwrap_or(path);
            let numbers = match pax.sparse.major {
                Some(1) => self.sparse_map()?,
                _ => pax.sparse.numbers,
            };
            pieces = Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect());
        }
        if let Some(pieces) = &pieces {
            self.check_pieces(pieces, real_size)?;
        }
        let link = pax.link.or(long_link);
        Ok(Entry {
            path,
            kind,
            link: link.unwrap_or_else(|| header.link_name_bytes().map_or_else(Vec::new, |link| link.into_owned())),
            mode: self.number(&header.as_old().mode, header.mode())? & 0o7777,
            uid: pax.uid.map_or_else(|| self.number(&header.as_old().uid, header.uid()), Ok)?,
            gid: pax.gid.map_or_else(|| self.number(&header.as_old().gid, header.gid()), Ok)?,
            mtime: pax.mtime.map_or_else(|| self.mtime(header), Ok)?,
            size: real_size,
            pieces,
            device: (
                header.device_major().ok().flatten().unwrap_or(u32::MAX),
                header.device_minor().ok().flatten().unwrap_or(u32::MAX),
            ),
            xattrs: pax.xattrs,
        })
    }

    fn mtime(&self, header: &tar::Header) -> Result<(i64, u32)> {
        Ok((self.number(&header.as_old().mtime, header.mtime())?.cast_signed(), 0))
    }

    /// GNU's old sparse format: the map stands in the header and in blocks after it.
    fn old_sparse(&mut self, block: &[u8; BLOCK]) -> Result<(u64, Pieces)> {
        let Some(real_size) = field_number(&block[483..495]) else {
            return self.malformed("a sparse file without its size");
        };
        let mut pieces = Vec::new();
        let mut extended = block[482] != 0;
        self.sparse_fields(&block[386..482], &mut pieces)?;
        while extended {
            let Some(block) = self.block()? else { return self.malformed("it ends within a sparse map") };
            self.sparse_fields(&block[..504], &mut pieces)?;
            extended = block[504] != 0;
        }
        Ok((real_size, pieces))
    }

    fn sparse_fields(&self, fields: &[u8], pieces: &mut Pieces) -> Result<()> {
        for field in fields.chunks_exact(24).filter(|field| field[0] != 0) {
            match (field_number(&field[..12]), field_number(&field[12..])) {
                (Some(offset), Some(length)) => pieces.push((offset, length)),
                _ => return self.malformed("a sparse map's number is none"),
            }
        }
        if pieces.len() > MAX_PIECES { self.malformed("a sparse file with too many pieces") } else { Ok(()) }
    }

    /// The map of PAX sparse format 1.0: decimal numbers, one a line, at the head of the data, padded to a block.
    fn sparse_map(&mut self) -> Result<Vec<u64>> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = None;
        let mut number: Option<u64> = None;
        loop {
            if self.data < BLOCK as u64 {
                return self.malformed("it ends within a sparse map");
            }
            let mut block = [0; BLOCK];
            self.fill(&mut block)?;
            self.data -= BLOCK as u64;
            for byte in block {
                match (byte, number) {
                    (b'0'..=b'9', _) => {
                        let digit = u64::from(byte - b'0');
                        number = number.unwrap_or(0).checked_mul(10).and_then(|number| number.checked_add(digit));
                        if number.is_none() {
                            return self.malformed("a sparse map's number is too large");
                        }
                    }
                    (b'\n', Some(value)) => {
                        number = None;
                        match wanted {
                            None if value > MAX_PIECES as u64 => {
                                return self.malformed("a sparse file with too many pieces");
                            }
                            None => wanted = usize::try_from(value * 2).ok(),
                            Some(_) => numbers.push(value),
                        }
                        if wanted == Some(numbers.len()) {
                            return Ok(numbers);
                        }
                    }
                    _ => return self.malformed("a sparse map's number is none"),
                }
            }
        }
    }

    /// Pieces ascend, lie within the file, and are together as long as the data that is stored.
    fn check_pieces(&self, pieces: &[(u64, u64)], size: u64) -> Result<()> {
        let (mut end, mut sum) = (0u64, 0u64);
        for &(offset, length) in pieces {
            match offset.checked_add(length) {
                Some(next) if offset >= end && next <= size => end = next,
                _ => return self.malformed("a sparse map that does not ascend or leaves the file"),
            }
            sum += length;
        }
        if sum == self.data { Ok(()) } else { self.malformed("a sparse map that does not fit the data") }
    }

    /// PAX records: `<length> <key>=<value>\n`, the length counting itself (POSIX pax, extended header).
    fn parse_pax(&self, mut bytes: &[u8], pax: &mut Pax) -> Result<()> {
        while !bytes.is_empty() && bytes[0] != 0 {
            let record = (|| {
                let space = bytes.iter().take(20).position(|&byte| byte == b' ')?;
                let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
                let record = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
                let equals = record.iter().position(|&byte| byte == b'=')?;
                Some((&record[..equals], &record[equals + 1..], length))
            })();
            let Some((key, value, length)) = record else { return self.malformed("a PAX record that is none") };
            if pax.set(key, value).is_none() {
                return self.malformed("a PAX record's value is none");
            }
            bytes = &bytes[length..];
        }
        Ok(())
    }
}

impl Pax {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let decimal = || std::str::from_utf8(value).ok()?.parse::<u64>().ok();
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal()?),
            b"uid" => self.uid = Some(decimal()?),
            b"gid" => self.gid = Some(decimal()?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => self.sparse.major = Some(decimal()?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = Some(decimal()?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.numbers.push(decimal()?),
            b"GNU.sparse.map" => {
                let text = std::str::from_utf8(value).ok()?;
                self.sparse.numbers = text.split(',').map(|number| number.parse().ok()).collect::<Option<_>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(other, _)| other != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

/// A PAX time: decimal seconds with an optional fraction, possibly negative.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    match (whole.starts_with('-'), nanos) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}

/// A number field: octal text, or base 256 with the first bit set (GNU).
fn field_number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (head, tail) = field.split_at(field.len() - 8);
        let clear = head.iter().enumerate().all(|(index, &byte)| byte == if index == 0 { 0x80 } else { 0 });
        return clear.then(|| tail.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    u64::from_str_radix(text, 8).ok()
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|&byte| byte == 0) {
        bytes.truncate(end);
    }
    bytes
}
