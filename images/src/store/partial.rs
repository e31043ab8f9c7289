//! The compressed bytes of a layer that is on its way: what a download goes on from after a restart or a power cut.
//!
//! Owns the files `partial/<chain id>`: frames, each with its length and checksum, so that the file tells by itself
//! how far it is sound. It promises nothing about the content: the layer's digest is verified over all of it. Why
//! there is such a file beside the unpacked one: docs/decisions/0012-pulls.md.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;

/// Most bytes of one frame.
const MAX_FRAME: usize = 64 << 10;
/// Length and checksum, 32 bits each, little-endian.
const HEADER: usize = 8;
/// A power cut loses at most so much of a download; a layer that comes faster is never synced as a partial one.
pub(super) const SYNC_EVERY: Duration = Duration::from_secs(5);

/// A download that may go on later. First [`Partial::replay`] until it has ended, then [`Partial::append`].
pub(super) struct Partial {
    file: File,
    path: PathBuf,
    frame: Vec<u8>,
    /// Bytes of the file that are sound and read.
    sound: u64,
    synced: Instant,
    durable: bool,
}

impl Partial {
    /// Opens or creates the file of a layer.
    pub(super) fn open(path: &Path) -> io::Result<Partial> {
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let durable = file.metadata()?.len() > 0;
        Ok(Partial { file, path: path.to_owned(), frame: Vec::new(), sound: 0, synced: Instant::now(), durable })
    }

    /// Returns the next bytes that are there; `None` at the end, what is not sound having been cut off.
    pub(super) fn replay(&mut self) -> io::Result<Option<Bytes>> {
        let mut header = [0; HEADER];
        if let Some(data) = self.file.read_exact(&mut header).ok().and_then(|()| self.sound_data(header)) {
            self.sound += (HEADER + data.len()) as u64;
            return Ok(Some(data));
        }
        self.file.set_len(self.sound)?;
        self.file.seek(io::SeekFrom::Start(self.sound))?;
        Ok(None)
    }

    fn sound_data(&mut self, header: [u8; HEADER]) -> Option<Bytes> {
        let [length, checksum] = [&header[..4], &header[4..]].map(|half| half.try_into().map(u32::from_le_bytes));
        // An honest frame is never empty, so a run of zeros is none.
        let length = usize::try_from(length.ok()?).ok().filter(|length| (1..=MAX_FRAME).contains(length))?;
        let mut data = vec![0; length];
        self.file.read_exact(&mut data).ok()?;
        (checksum_of(&data) == checksum.ok()?).then(|| data.into())
    }

    /// Adds bytes that have come, and sees to it that they are on the disk within a few seconds.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        for data in bytes.chunks(MAX_FRAME) {
            self.frame.clear();
            self.frame.extend_from_slice(&(data.len() as u32).to_le_bytes());
            self.frame.extend_from_slice(&checksum_of(data).to_le_bytes());
            self.frame.extend_from_slice(data);
            self.file.write_all(&self.frame)?;
        }
        if self.synced.elapsed() > SYNC_EVERY {
            self.file.sync_data()?;
            (self.synced, self.durable) = (Instant::now(), true);
        }
        Ok(())
    }

    /// Tells whether some of it is on the disk for later, and not only in memory.
    pub(super) fn is_durable(&self) -> bool {
        self.durable
    }

    /// Forgets the download: its layer is in place, or its bytes are of no use.
    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

fn checksum_of(data: &[u8]) -> u32 {
    let mut checksum = flate2::Crc::new();
    checksum.update(data);
    checksum.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn replayed(path: &Path) -> Vec<u8> {
        let mut partial = Partial::open(path).unwrap();
        let mut bytes = Vec::new();
        while let Some(data) = partial.replay().unwrap() {
            bytes.extend_from_slice(&data);
        }
        bytes
    }

    fn written(path: &Path, chunks: &[&[u8]]) {
        let mut partial = Partial::open(path).unwrap();
        while partial.replay().unwrap().is_some() {}
        for chunk in chunks {
            partial.append(chunk).unwrap();
        }
    }

    #[test]
    fn a_download_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        written(&path, &[b"hello ", &[7; 200_000]]);
        written(&path, &[b"world"]);
        assert_eq!(replayed(&path), [&b"hello "[..], &[7; 200_000], b"world"].concat());
    }

    #[test]
    fn a_torn_end_is_cut_wherever_it_is_torn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        written(&path, &[b"sound", b"torn"]);
        let whole = fs::read(&path).unwrap();
        for cut in whole.len() - 4 - HEADER..whole.len() {
            // What the file system had promised and not written comes back as zeros, or not at all.
            for tail in [0, 4096] {
                let mut bytes = whole[..cut].to_vec();
                bytes.resize(cut + tail, 0);
                fs::write(&path, &bytes).unwrap();
                assert_eq!(replayed(&path), b"sound", "cut at {cut}, {tail} zeros");
                written(&path, &[b" again"]);
                assert_eq!(replayed(&path), b"sound again");
            }
        }
    }

    proptest! {
        #[test]
        fn any_file_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("x");
            fs::write(&path, &bytes).unwrap();
            let sound = replayed(&path);
            prop_assert!(sound.len() <= bytes.len());
            prop_assert_eq!(replayed(&path), sound);
        }
    }
}
