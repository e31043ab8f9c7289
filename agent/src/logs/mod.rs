//! Container logs: from a container's pipes into a file, exactly once, whatever happens to the agent.
//!
//! Owns the files below `logs/`, their form and their rotation. Knows no pods: paths and pipes are handed in.
//!
//! A container's standard output and error are pipes whose read ends init holds too, so nothing is lost while
//! there is no agent: the container waits when a pipe is full. Copying from a pipe into a file can be cut short
//! by `kill -9` between any two system calls, so the bytes take a detour over a *staging* pipe, also held by init,
//! with a small *intent* file (in memory, on tmpfs) that says how far the detour has come:
//!
//! ```text
//!          1 splice          3 tee, read            4 append
//!  stdout ─────────▶ staging ───────────▶ scratch ─────────▶ log file
//!  stderr              │ 6 drain
//! ```
//!
//! | # | step                                       | if killed right after it, the next agent …                 |
//! |---|--------------------------------------------|------------------------------------------------------------|
//! | 1 | intent := staged, stream, log size         | finds staging empty: nothing to do                         |
//! | 2 | splice from the stream into staging        | cuts the log to the size, copies staging, drains it        |
//! | 3 | tee to a scratch pipe and read that        | the same: staging still has every byte                     |
//! | 4 | append to the log (maybe only in part)     | the same: what was appended is cut off first               |
//! | 5 | intent := written                          | drains staging: its bytes are in the log                   |
//! | 6 | drain staging (maybe only in part)         | drains the rest                                            |
//!
//! The log has the lines of Kubernetes' container runtime interface, so that every tool reads them:
//! `2026-11-21T04:06:00.123456789Z stdout F text`; `P` in place of `F` marks a line that goes on in the stream's
//! next record, which happens to lines over 16 KiB and to text that came without its newline.
//!
//! A log that is full becomes a numbered part, which is compressed ([`rotated`]). The kernel gathers what is appended
//! before it writes to the disk; nothing is synced, since a log is not worth a card's life. A container that writes
//! faster than it may ([`rate`]) waits at its pipe: it loses nothing, and neither others nor the disk suffer.
//!
//! A full disk never stops a container: what can't be written is dropped, counted, and told by a record
//! `skegd: N bytes of output are lost: …` as soon as there is room.

mod copy;
mod format;
mod rate;
mod read;
mod rotated;
mod task;

pub use copy::{LogError, Pipes, Scratch, Writers};
pub(crate) use format::timestamp;
pub use read::{Options, ReadError, Reader, read};
pub use rotated::files;
pub use task::Log;

/// How much a container may log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Size in bytes at which a log is full: it becomes a part, and a new one begins.
    pub size: u64,
    /// Full parts that are kept, compressed.
    pub parts: usize,
    /// Bytes a second; a container that writes more waits.
    pub rate: u64,
    /// Bytes that it may write at once after a silence.
    pub burst: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { size: 10 << 20, parts: 4, rate: 1 << 20, burst: 16 << 20 }
    }
}

#[cfg(test)]
mod tests;
