//! The files of the journal of events: a few segments, the oldest of which goes when a new one is begun.
//!
//! A segment is named after the number of its first event. A record is its length (4 bytes, little-endian), the first
//! 4 bytes of its SHA-256, and the event in postcard. What a power cut left half-written is cut off at the next
//! opening; nothing before it is touched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::Event;
use crate::journal::{make_folder, sha256};

/// Bytes after which a new segment is begun.
const SEGMENT: u64 = 128 * 1024;
/// Segments that are kept.
const KEPT: usize = 4;
/// Largest record: more than the longest words of an event need.
const LARGEST: usize = 8 * 1024;

/// The journal, open for writing.
pub(super) struct Ring {
    folder: PathBuf,
    segment: Option<(File, u64)>,
    next: u64,
    last: Option<Event>,
}

impl Ring {
    /// Opens the newest segment and cuts off what is not whole at its end.
    pub(super) fn open(folder: &Path) -> io::Result<Ring> {
        make_folder(folder)?;
        let mut ring = Ring { folder: folder.to_owned(), segment: None, next: 0, last: None };
        let segments = segments(folder)?;
        for (first, path) in segments.iter().rev() {
            let (events, whole) = parse(&read_segment(path)?);
            if ring.segment.is_none() {
                let file = OpenOptions::new().append(true).open(path)?;
                file.set_len(whole)?;
                ring.next = events.last().map_or(*first, |event| event.sequence + 1);
                ring.segment = Some((file, whole));
            }
            ring.last = events.into_iter().next_back();
            if ring.last.is_some() {
                break;
            }
        }
        Ok(ring)
    }

    /// The latest event that is on disk from before.
    pub(super) fn last(&self) -> Option<&Event> {
        self.last.as_ref()
    }

    /// The number of the next event.
    pub(super) fn take_number(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// Writes events and syncs them.
    pub(super) fn append(&mut self, events: &[Event]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for event in events {
            let body = postcard::to_allocvec(event).map_err(io::Error::other)?;
            if body.len() > LARGEST {
                return Err(io::Error::other("an event is larger than any that is read back"));
            }
            bytes.extend((body.len() as u32).to_le_bytes());
            bytes.extend(&sha256(&body)[..4]);
            bytes.extend(body);
        }
        let Some(first) = events.first() else { return Ok(()) };
        if self.segment.as_ref().is_none_or(|(_, length)| *length > SEGMENT) {
            self.begin(first.sequence)?;
        }
        let Some((file, length)) = &mut self.segment else { return Ok(()) };
        let written = file.write_all(&bytes).and_then(|()| file.sync_data());
        match written {
            Ok(()) => *length += bytes.len() as u64,
            // A record in part would hide those after it.
            Err(_) => file.set_len(*length)?,
        }
        written
    }

    fn begin(&mut self, first: u64) -> io::Result<()> {
        let path = self.folder.join(format!("{first:020}"));
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        File::open(&self.folder)?.sync_all()?;
        self.segment = Some((file, 0));
        let all = segments(&self.folder)?;
        for (_, old) in all.iter().take(all.len().saturating_sub(KEPT)) {
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

/// Every segment with the number of its first event, in order.
fn segments(folder: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if let Some(first) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.push((first, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

fn read_segment(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One batch may go beyond the bound of a segment.
    File::open(path)?.take(SEGMENT * 16).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The whole events at the begin of a segment, and where they end.
fn parse(bytes: &[u8]) -> (Vec<Event>, u64) {
    let (mut events, mut at) = (Vec::new(), 0);
    while let Some((head, rest)) = bytes[at..].split_first_chunk::<8>() {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let body = rest.get(..length).filter(|body| length <= LARGEST && sha256(body)[..4] == head[4..]);
        let Some(event) = body.and_then(|body| postcard::from_bytes(body).ok()) else { break };
        events.push(event);
        at += 8 + length;
    }
    (events, at as u64)
}

/// Reads every event that is kept, the oldest first. Whoever writes meanwhile is not disturbed.
///
/// # Errors
/// The folder or a file can't be read.
pub(super) fn read(folder: &Path) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    for (_, path) in segments(folder)? {
        match read_segment(&path) {
            Ok(bytes) => events.extend(parse(&bytes).0),
            // The oldest may go at any moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use skeg_protocol::Uid;

    fn event(sequence: u64, message: &str) -> Event {
        let (boot, reason) = (Uid::default(), "Tick".to_owned());
        let message = message.to_owned();
        Event { sequence, boot, since_boot: 0, wall: 0, pod: None, container: None, reason, message }
    }

    #[test]
    fn a_power_cut_at_any_byte_costs_only_what_was_being_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(folder.path()).unwrap();
        ring.append(&[event(0, "kept")]).unwrap();
        let path = segments(folder.path()).unwrap()[0].1.clone();
        let kept = fs::read(&path).unwrap();
        ring.append(&[event(1, "torn")]).unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in kept.len()..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut ring = Ring::open(folder.path()).unwrap();
            assert_eq!(ring.last(), Some(&event(0, "kept")), "cut at {cut}");
            assert_eq!(ring.take_number(), 1);
            ring.append(&[event(1, "after")]).unwrap();
            assert_eq!(read(folder.path()).unwrap(), [event(0, "kept"), event(1, "after")], "cut at {cut}");
        }
    }

    #[test]
    fn the_oldest_go_and_the_disk_s_share_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut ring = Ring::open(folder.path()).unwrap();
        let long = "x".repeat(1_000);
        for _ in 0..100 {
            let batch: Vec<Event> = (0..20).map(|_| event(ring.take_number(), &long)).collect();
            ring.append(&batch).unwrap();
        }
        let events = read(folder.path()).unwrap();
        assert_eq!(events.last().unwrap().sequence, 1_999);
        assert!(events.windows(2).all(|pair| pair[0].sequence + 1 == pair[1].sequence));
        let size: u64 =
            segments(folder.path()).unwrap().iter().map(|(_, path)| fs::metadata(path).unwrap().len()).sum();
        assert!(size <= (SEGMENT + 25_000) * KEPT as u64, "{size}");
        assert_eq!(Ring::open(folder.path()).unwrap().take_number(), 2_000);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let (_, whole) = parse(&bytes);
            prop_assert!(whole as usize <= bytes.len());
        }
    }
}
