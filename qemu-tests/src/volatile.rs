//! A disk that loses what it was not told to keep: a network block device on a Unix socket, with a write cache in memory.
//!
//! Killing QEMU leaves its writes in this machine's page cache, as if every disk had a battery. This disk keeps a write
//! in memory until the guest flushes; when the power fails, each sector that waits is written or lost by chance: writes
//! are torn and reordered as a real disk may tear and reorder them. It speaks just enough of the protocol (NBD's
//! `doc/proto.md`, fixed newstyle with simple replies) for one connection of QEMU at a time.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use fastrand::Rng;

const SECTOR: usize = 512;
/// The largest request that is taken, in bytes; QEMU's limit is the same.
const MAX_REQUEST: usize = 32 << 20;

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPTION_GO: u32 = 7;
const REPLY_ACKNOWLEDGED: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// `HAS_FLAGS`, `SEND_FLUSH`, `SEND_FUA`.
const EXPORT_FLAGS: u16 = 1 | 4 | 8;
/// The write is to be kept before it is answered.
const FLAG_FORCE_UNIT_ACCESS: u16 = 1;

/// What a power failure did to the writes that had not been flushed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Loss {
    /// Sectors that were lost.
    pub lost: usize,
    /// Sectors that were written all the same.
    pub kept: usize,
}

/// A disk with a volatile write cache, over a raw image.
pub struct VolatileDisk {
    socket: PathBuf,
    failed: Arc<AtomicBool>,
    server: JoinHandle<io::Result<Platter>>,
}

impl VolatileDisk {
    /// Serves `image` on `socket`, to one machine. After `fails_after` written bytes the power fails: in the middle of
    /// a write nothing more is kept or answered.
    pub fn serve(image: &Path, socket: &Path, fails_after: u64) -> Result<VolatileDisk> {
        let image = OpenOptions::new().read(true).write(true).open(image);
        let image = image.context("the disk's image")?;
        let size = image.metadata()?.len();
        let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
        let failed = Arc::new(AtomicBool::new(false));
        let mut platter =
            Platter { image, size, cache: BTreeMap::new(), left: fails_after, failed: Arc::clone(&failed) };
        let server = std::thread::spawn(move || {
            let (mut machine, _) = listener.accept()?;
            negotiate(&mut machine, size)?;
            platter.serve(&mut machine)?;
            Ok(platter)
        });
        Ok(VolatileDisk { socket: socket.to_owned(), failed, server })
    }

    /// Returns the disk's address, as QEMU's `file=` takes it.
    pub fn address(&self) -> String {
        format!("nbd:unix:{}", self.socket.display())
    }

    /// Tells whether the power has failed: the machine waits for its disk for ever, and is to be killed.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// Decides by chance what becomes of each sector that was not flushed. The machine has been killed before.
    pub fn settle(self, random: &mut Rng) -> Result<Loss> {
        let platter = self.server.join().map_err(|_| anyhow!("the disk's server panicked"))?;
        std::fs::remove_file(&self.socket)?;
        Ok(platter.context("the disk's server")?.settle(random)?)
    }
}

/// The image and what waits to be written to it.
struct Platter {
    image: File,
    size: u64,
    /// Sectors that were written and not flushed, by their number.
    cache: BTreeMap<u64, [u8; SECTOR]>,
    /// Bytes that may still be written before the power fails.
    left: u64,
    failed: Arc<AtomicBool>,
}

impl Platter {
    /// Answers requests until the machine is gone or the power fails.
    fn serve(&mut self, machine: &mut UnixStream) -> io::Result<()> {
        // A machine that was killed leaves in the middle of anything.
        while let Some(request) = Request::read(machine)? {
            if request.offset.checked_add(request.length as u64).is_none_or(|end| end > self.size) {
                return Err(ErrorKind::InvalidData.into());
            }
            let mut data = vec![0; request.length];
            match request.kind {
                Kind::Read => self.read(request.offset, &mut data)?,
                Kind::Write => {
                    if gone(machine.read_exact(&mut data))? {
                        return Ok(());
                    }
                    if !self.write(request.offset, &data) {
                        self.failed.store(true, Ordering::SeqCst);
                        // Nothing is answered any more, until the machine is killed.
                        return gone(io::copy(machine, &mut io::sink())).map(|_| ());
                    }
                    data.clear();
                }
                Kind::Flush => {}
                Kind::Disconnect => return Ok(()),
            }
            if request.kind == Kind::Flush || request.flags & FLAG_FORCE_UNIT_ACCESS != 0 {
                self.flush()?;
            }
            let mut answer = Vec::with_capacity(16 + data.len());
            answer.extend(SIMPLE_REPLY_MAGIC.to_be_bytes());
            answer.extend(0u32.to_be_bytes());
            answer.extend(request.handle);
            answer.extend(data);
            if gone(machine.write_all(&answer))? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.image.read_exact_at(data, offset)?;
        let first = offset / SECTOR as u64;
        for (number, sector) in self.cache.range(first..first + (data.len() / SECTOR) as u64) {
            let at = (number - first) as usize * SECTOR;
            data[at..at + SECTOR].copy_from_slice(sector);
        }
        Ok(())
    }

    /// Takes a write into the cache; `false` if the power failed before its end.
    fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        for (number, sector) in (offset / SECTOR as u64..).zip(data.as_chunks().0) {
            let Some(left) = self.left.checked_sub(SECTOR as u64) else { return false };
            self.left = left;
            self.cache.insert(number, *sector);
        }
        true
    }

    fn flush(&mut self) -> io::Result<()> {
        for (number, sector) in std::mem::take(&mut self.cache) {
            self.image.write_all_at(&sector, number * SECTOR as u64)?;
        }
        Ok(())
    }

    fn settle(mut self, random: &mut Rng) -> io::Result<Loss> {
        let waited = self.cache.len();
        // How much a disk had got round to is chance, too: from nothing to all.
        let chance = random.f64();
        self.cache.retain(|_, _| random.f64() < chance);
        let kept = self.cache.len();
        self.flush()?;
        Ok(Loss { lost: waited - kept, kept })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Disconnect,
    Flush,
}

struct Request {
    flags: u16,
    kind: Kind,
    handle: [u8; 8],
    offset: u64,
    length: usize,
}

impl Request {
    /// Reads a request's head; `None` if the machine is gone.
    fn read(machine: &mut UnixStream) -> io::Result<Option<Request>> {
        let mut head = [0; 28];
        if gone(machine.read_exact(&mut head))? {
            return Ok(None);
        }
        let mut fields = &head[..];
        let (magic, flags) = (u32::from_be_bytes(take(&mut fields)?), u16::from_be_bytes(take(&mut fields)?));
        let kind = match u16::from_be_bytes(take(&mut fields)?) {
            0 => Kind::Read,
            1 => Kind::Write,
            2 => Kind::Disconnect,
            3 => Kind::Flush,
            // What was not offered is not asked for.
            _ => return Err(ErrorKind::InvalidData.into()),
        };
        let (handle, offset) = (take(&mut fields)?, u64::from_be_bytes(take(&mut fields)?));
        let length = u32::from_be_bytes(take(&mut fields)?) as usize;
        let aligned = offset.is_multiple_of(SECTOR as u64) && length.is_multiple_of(SECTOR);
        if magic != REQUEST_MAGIC || length > MAX_REQUEST || !aligned {
            return Err(ErrorKind::InvalidData.into());
        }
        Ok(Some(Request { flags, kind, handle, offset, length }))
    }
}

/// Tells whether the other side is gone; any other error is one.
fn gone<T>(result: io::Result<T>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(false),
        Err(error) => match error.kind() {
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Ok(true),
            _ => Err(error),
        },
    }
}

fn take<const N: usize>(source: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Agrees on the one export that there is: everything but `NBD_OPT_GO` is refused.
fn negotiate(machine: &mut UnixStream, size: u64) -> io::Result<()> {
    machine.write_all(b"NBDMAGIC")?;
    machine.write_all(OPTION_MAGIC)?;
    // `FIXED_NEWSTYLE` and `NO_ZEROES`, which the client answers with the same.
    machine.write_all(&3u16.to_be_bytes())?;
    take::<4>(machine)?;
    loop {
        if take(machine)? != *OPTION_MAGIC {
            return Err(ErrorKind::InvalidData.into());
        }
        let (option, length) = (u32::from_be_bytes(take(machine)?), u32::from_be_bytes(take(machine)?));
        if length > 4096 {
            return Err(ErrorKind::InvalidData.into());
        }
        io::copy(&mut machine.take(length.into()), &mut io::sink())?;
        let mut answer = |kind: u32, data: &[u8]| {
            machine.write_all(&OPTION_REPLY_MAGIC.to_be_bytes())?;
            machine.write_all(&option.to_be_bytes())?;
            machine.write_all(&kind.to_be_bytes())?;
            machine.write_all(&(data.len() as u32).to_be_bytes())?;
            machine.write_all(data)
        };
        if option == OPTION_GO {
            // `NBD_INFO_EXPORT` is type 0.
            let export = [&0u16.to_be_bytes()[..], &size.to_be_bytes(), &EXPORT_FLAGS.to_be_bytes()].concat();
            answer(REPLY_INFO, &export)?;
            return answer(REPLY_ACKNOWLEDGED, &[]);
        }
        answer(REPLY_UNSUPPORTED, &[])?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platter(left: u64) -> Platter {
        let image = tempfile::tempfile().unwrap();
        image.set_len(64 << 10).unwrap();
        Platter { image, size: 64 << 10, cache: BTreeMap::new(), left, failed: Arc::default() }
    }

    fn on_image(platter: &Platter) -> Vec<u8> {
        let mut bytes = vec![0; 64 << 10];
        platter.image.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn what_was_written_is_read_and_on_the_image_only_after_a_flush() {
        let mut platter = platter(u64::MAX);
        assert!(platter.write(1024, &[7; 1024]));
        let mut seen = vec![0; 2048];
        platter.read(512, &mut seen).unwrap();
        assert_eq!(seen, [&[0; 512][..], &[7; 1024], &[0; 512]].concat());
        assert!(on_image(&platter).iter().all(|byte| *byte == 0));
        platter.flush().unwrap();
        assert_eq!(on_image(&platter)[1024..2048], [7; 1024]);
    }

    #[test]
    fn a_power_failure_tears_what_was_not_flushed_and_nothing_else() {
        let mut platter = platter(40 << 10);
        assert!(platter.write(0, &[1; 8 << 10]));
        platter.flush().unwrap();
        assert!(!platter.write(16 << 10, &[2; 48 << 10]), "the power fails in the middle of it");
        assert_eq!(platter.cache.len(), 64);
        let copy = platter.image.try_clone().unwrap();
        let loss = platter.settle(&mut Rng::with_seed(3)).unwrap();
        assert!(loss.lost > 0 && loss.kept > 0 && loss.lost + loss.kept == 64, "{loss:?}");
        let mut bytes = vec![0; 64 << 10];
        copy.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes[..8 << 10], [1; 8 << 10]);
        assert_eq!(bytes.iter().filter(|byte| **byte == 2).count(), loss.kept * SECTOR);
    }
}
