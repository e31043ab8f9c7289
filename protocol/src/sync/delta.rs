//! What turns one sequence of bytes into another: pieces copied from the old one, from what was written already, and
//! bytes that are new. It finds alike what is equal, what has moved and what repeats, so that it is difference and
//! compression at once.
//!
//! ```text
//! delta = { operation }
//! operation = varint(length << 1), bytes            new bytes
//!           | varint(length << 1 | 1), place        a copy; place is the distance from where the last copy ended,
//!                                                   zigzag varint, in the old bytes followed by the new ones
//! ```
//! Whoever applies one says how many bytes it may make at most: a few bytes can ask for many.

use thiserror::Error;

/// Shortest copy that is worth its operation.
const SHORTEST: usize = 6;
/// Bits of the table of places where some bytes were seen last.
const TABLE_BITS: u32 = 15;

/// Why bytes are no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DeltaError {
    /// It ends within an operation.
    #[error("it ends within an operation")]
    Short,
    /// A number has more than 64 bits.
    #[error("it holds a number of more than 64 bits")]
    Number,
    /// A copy is of bytes that do not exist.
    #[error("it copies from a place that does not exist")]
    Place,
    /// It makes more bytes than it may.
    #[error("it makes more than the announced {0} bytes")]
    Long(usize),
}

pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(super) fn take(bytes: &mut &[u8]) -> Result<u64, DeltaError> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(DeltaError::Short)?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if shift == 63 && part > 1 {
            return Err(DeltaError::Number);
        }
        number |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(DeltaError::Number)
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

/// Old and new bytes as one sequence.
struct Both<'a> {
    old: &'a [u8],
    new: &'a [u8],
}

impl Both<'_> {
    fn at(&self, place: usize) -> u8 {
        match place.checked_sub(self.old.len()) {
            None => self.old[place],
            Some(place) => self.new[place],
        }
    }

    /// The bucket of the bytes at a place, at least [`SHORTEST`] before the end of old or new.
    fn bucket(bytes: &[u8]) -> usize {
        let mut word = [0; 8];
        word[..SHORTEST].copy_from_slice(&bytes[..SHORTEST]);
        // The golden ratio's bits spread neighbours.
        (u64::from_le_bytes(word).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - TABLE_BITS)) as usize
    }

    /// How many bytes at `place` equal those of the new sequence from `from`. A copy may run into what it writes.
    fn alike(&self, place: usize, from: usize) -> usize {
        (0..self.new.len() - from).take_while(|step| self.at(place + step) == self.new[from + step]).count()
    }
}

/// Where equal bytes may be found.
struct Table(Vec<u32>);

impl Table {
    /// Notes the places of a sequence that begins at `start` of both.
    fn note(&mut self, bytes: &[u8], start: usize) {
        for (index, window) in bytes.windows(SHORTEST).enumerate() {
            self.0[Both::bucket(window)] = (start + index) as u32 + 1;
        }
    }

    fn find(&self, window: &[u8]) -> Option<usize> {
        self.0[Both::bucket(window)].checked_sub(1).map(|place| place as usize)
    }
}

/// The difference that leads from `old` to `new`. Sequences are at most 2 GiB together.
pub fn encode(old: &[u8], new: &[u8]) -> Vec<u8> {
    let both = Both { old, new };
    let mut table = Table(vec![0; 1 << TABLE_BITS]);
    table.note(old, 0);
    let (mut out, mut literal, mut at, mut expected) = (Vec::new(), 0, 0, 0);
    while at < new.len() {
        // What follows the last copy comes first: between two changes most is as it was.
        let shift = at - literal;
        let follows = (expected + shift < old.len() + at).then_some(expected + shift);
        let window = new.get(at..at + SHORTEST);
        let candidates = [follows, window.and_then(|window| table.find(window))];
        let best = candidates.into_iter().flatten().map(|place| (both.alike(place, at), place)).max_by_key(|one| one.0);
        match best.filter(|(length, place)| *length >= SHORTEST || (*length > 2 && Some(*place) == follows)) {
            Some((length, place)) => {
                literals(&mut out, &new[literal..at]);
                put(&mut out, (length as u64) << 1 | 1);
                put(&mut out, zigzag(place as i64 - expected as i64));
                table.note(&new[at..at + length], old.len() + at);
                at += length;
                (literal, expected) = (at, place + length);
            }
            None => {
                if let Some(window) = window {
                    table.note(window, old.len() + at);
                }
                at += 1;
            }
        }
    }
    literals(&mut out, &new[literal..]);
    out
}

fn literals(out: &mut Vec<u8>, bytes: &[u8]) {
    if !bytes.is_empty() {
        put(out, (bytes.len() as u64) << 1);
        out.extend_from_slice(bytes);
    }
}

/// Makes the new bytes from the old ones, at most `most` of them.
///
/// # Errors
/// The difference breaks its form, or asks for more.
pub fn apply(old: &[u8], mut delta: &[u8], most: usize) -> Result<Vec<u8>, DeltaError> {
    let mut new: Vec<u8> = Vec::new();
    let mut expected: i64 = 0;
    while !delta.is_empty() {
        let operation = take(&mut delta)?;
        let length = usize::try_from(operation >> 1).map_err(|_| DeltaError::Long(most))?;
        if length > most - new.len() {
            return Err(DeltaError::Long(most));
        }
        if operation & 1 == 0 {
            new.extend_from_slice(delta.get(..length).ok_or(DeltaError::Short)?);
            delta = &delta[length..];
            continue;
        }
        let place = expected.checked_add(unzigzag(take(&mut delta)?)).ok_or(DeltaError::Place)?;
        let start = usize::try_from(place).map_err(|_| DeltaError::Place)?;
        if start >= old.len() + new.len() {
            return Err(DeltaError::Place);
        }
        copy(old, &mut new, start, length);
        expected = place.checked_add(length as i64).ok_or(DeltaError::Place)?;
    }
    Ok(new)
}

/// Copies from a place that exists; what is written may be read again.
fn copy(old: &[u8], new: &mut Vec<u8>, mut start: usize, mut length: usize) {
    if let Some(rest) = old.get(start..) {
        let part = length.min(rest.len());
        new.extend_from_slice(&rest[..part]);
        (start, length) = (start + part, length - part);
    }
    let start = start - old.len().min(start);
    for step in 0..length {
        new.push(new[start + step]);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn there_and_back(old: &[u8], new: &[u8]) -> usize {
        let delta = encode(old, new);
        assert_eq!(apply(old, &delta, new.len()).as_deref(), Ok(new));
        delta.len()
    }

    /// Bytes without repeats.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn equal_and_changed_in_the_middle_cost_a_few_bytes() {
        let old = noise(20_000);
        assert!(there_and_back(&old, &old) <= 4);
        let mut new = old.clone();
        new[9_000..9_032].copy_from_slice(&noise(40)[8..]);
        assert!(there_and_back(&old, &new) <= 44);
        new.drain(3_000..4_000);
        assert!(there_and_back(&old, &new) <= 56);
    }

    #[test]
    fn what_repeats_is_written_once() {
        assert!(there_and_back(b"", &[7; 50_000]) <= 12);
        assert!(there_and_back(b"", "abcdefgh".repeat(1_000).as_bytes()) <= 16);
        assert_eq!(there_and_back(b"", b""), 0);
        assert_eq!(there_and_back(b"abcdefghijk", b""), 0);
    }

    #[test]
    fn hostile_differences_are_refused() {
        let huge = [0xff; 11];
        let copy = |length: u64, place: i64| {
            let mut out = Vec::new();
            put(&mut out, length << 1 | 1);
            put(&mut out, zigzag(place));
            out
        };
        assert_eq!(apply(b"abc", &huge, 10), Err(DeltaError::Number));
        assert_eq!(apply(b"abc", &[9 << 1, 1], 10), Err(DeltaError::Short));
        assert_eq!(apply(b"abc", &copy(3, 3), 10), Err(DeltaError::Place));
        assert_eq!(apply(b"abc", &copy(3, -1), 10), Err(DeltaError::Place));
        assert_eq!(apply(b"abc", &copy(11, 0), 10), Err(DeltaError::Long(10)));
        assert_eq!(apply(b"abc", &copy(7, 0), 10).as_deref(), Ok(&b"abcabca"[..]));
        let twice = [copy(1, 0), copy(1, i64::MAX)].concat();
        assert_eq!(apply(b"abc", &twice, 10), Err(DeltaError::Place));
    }

    proptest! {
        #[test]
        fn any_bytes_come_out_as_they_were(
            parts in vec(vec(0_u8..4, 0..40), 0..12),
            order in vec((0_usize..12, any::<bool>()), 0..24),
        ) {
            let old = parts.concat();
            let pick = |(index, flip): &(usize, bool)| {
                let mut part = parts.get(*index).cloned().unwrap_or_default();
                if let Some(first) = part.first_mut().filter(|_| *flip) {
                    *first ^= 1;
                }
                part
            };
            let new: Vec<u8> = order.iter().flat_map(pick).collect();
            there_and_back(&old, &new);
        }

        #[test]
        fn hostile_bytes_never_panic_or_grow(old in vec(any::<u8>(), 0..40), delta in vec(any::<u8>(), 0..60)) {
            if let Ok(new) = apply(&old, &delta, 1000) {
                prop_assert!(new.len() <= 1000);
            }
        }
    }
}
