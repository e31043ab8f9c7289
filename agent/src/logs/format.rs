//! The form of log lines: Kubernetes' container runtime interface (`kubelet`'s `logs.go`, "CRI log format").
//!
//! Pure: bytes and time in, bytes out, and back.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest text of one record in bytes; longer lines are split.
pub(crate) const MAX_TEXT: usize = 16 * 1024;
/// Longest record in bytes: time, stream, tag, text and newline.
pub(crate) const MAX_RECORD: usize = MAX_TEXT + 64;

/// Where a container wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Appends bytes of a stream as records. All have the same time: when they were taken from the pipe.
pub(crate) fn format(bytes: &[u8], stream: Stream, time: SystemTime, out: &mut Vec<u8>) {
    let stamp = timestamp(time);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let (text, ends) = match line.strip_suffix(b"\n") {
            Some(text) => (text, true),
            None => (line, false),
        };
        let mut pieces = text.chunks(MAX_TEXT).peekable();
        if pieces.peek().is_none() {
            record(&stamp, stream, ends, b"", out);
        }
        while let Some(piece) = pieces.next() {
            record(&stamp, stream, ends && pieces.peek().is_none(), piece, out);
        }
    }
}

fn record(stamp: &str, stream: Stream, full: bool, text: &[u8], out: &mut Vec<u8>) {
    let tag = if full { "F" } else { "P" };
    write!(out, "{stamp} {} {tag} ", stream.name()).expect("a vector takes every byte");
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Writes a time as RFC 3339 in UTC with nanoseconds. Times before 1970 become 1970.
pub(crate) fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", since.subsec_nanos())
}

/// Year, month and day of a day since 1970-01-01, after Howard Hinnant's `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// A record taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) stamp: &'a [u8],
    pub(crate) stream: &'a [u8],
    /// The line ends here.
    pub(crate) full: bool,
    pub(crate) text: &'a [u8],
}

/// Takes a line without its newline apart. None: it is no record.
pub(crate) fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut fields = line.splitn(4, |byte| *byte == b' ');
    let (stamp, stream, tag, text) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let full = match tag {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Record { stamp, stream, full, text })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn formatted(bytes: &[u8]) -> Vec<String> {
        let mut out = Vec::new();
        format(bytes, Stream::Stdout, UNIX_EPOCH, &mut out);
        String::from_utf8(out).unwrap().lines().map(|line| line[31..].to_owned()).collect()
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000000007Z"),
            (1_795_233_960, "2026-11-21T04:06:00.000000007Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000000007Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000007Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::new(seconds, 7)), text);
        }
    }

    #[test]
    fn lines_become_records() {
        assert_eq!(formatted(b"one\n\ntwo"), ["stdout F one", "stdout F ", "stdout P two"]);
        assert_eq!(formatted(b""), Vec::<String>::new());
    }

    #[test]
    fn long_lines_are_split() {
        let records = formatted(&[&[b'a'; MAX_TEXT + 1][..], b"\n"].concat());
        assert_eq!(records.len(), 2);
        assert!(records[0].starts_with("stdout P aaa") && records[0].len() == MAX_TEXT + 9);
        assert_eq!(records[1], "stdout F a");
        assert_eq!(formatted(&[&[b'a'; MAX_TEXT][..], b"\n"].concat()).len(), 1);
    }

    #[test]
    fn records_are_taken_apart() {
        let record = parse(b"2026-11-21T04:06:00Z stderr P a b  c").unwrap();
        assert_eq!((record.stream, record.full, record.text), (&b"stderr"[..], false, &b"a b  c"[..]));
        assert_eq!(parse(b"no record"), None);
        assert_eq!(parse(b"a b C d"), None);
    }
}
