//! A container's log as a task of the agent.
//!
//! Owns waiting and fairness. File work is done on tokio's blocking threads, since a slow SD card must not stop
//! the agent, and one batch at a time, since the buffers are shared.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::async_fd;

use super::copy::{Copier, LogError, Pipes, Scratch, Step};
use super::format::Stream;
use super::rate::Bucket;

/// Batches of one stream before others have their turn.
const TURN: usize = 4;
/// Batches taken from each stream of a container that has ended. A pipe holds one; more come only if something
/// outside of the container still writes.
const LAST_BATCHES: usize = 16;
/// How long a log that fails rests before it tries again.
const REST: Duration = Duration::from_secs(1);

/// A log that is being written. Dropping it lets it go on until both streams end.
pub struct Log {
    task: JoinHandle<()>,
    finish: Arc<Notify>,
    progress: watch::Receiver<u64>,
}

struct Job {
    copier: Arc<Mutex<Copier>>,
    scratch: Scratch,
    progress: watch::Sender<u64>,
    bucket: std::sync::Mutex<Bucket>,
}

impl Log {
    /// Opens a log file, finishes what an earlier agent may have left half-done, and copies from then on.
    ///
    /// `intent` must lie on a tmpfs and be the same path for the container's whole life; its folder and the log's
    /// are made. Init must hold `pipes` before the container starts. Never start two logs with the same pipes.
    /// Call inside a tokio runtime.
    pub async fn start(pipes: Pipes, log: &Path, intent: &Path, scratch: &Scratch) -> Result<Log, LogError> {
        let mut buffers = scratch.buffers.clone().lock_owned().await;
        let (log, intent, limits) = (log.to_owned(), intent.to_owned(), scratch.limits);
        let (copier, sources) = blocking(move || Copier::open(pipes, &log, &intent, limits, &mut buffers)).await??;
        let watch = |fd| async_fd::watch(fd, Interest::READABLE);
        let watch = |fd| watch(fd).map_err(|source| LogError::Pipe { call: "epoll_ctl", source });
        let (stdout, stderr) = (Arc::new(watch(sources.stdout)?), Arc::new(watch(sources.stderr)?));
        let (sender, progress) = watch::channel(0);
        let bucket = std::sync::Mutex::new(Bucket::new(limits.rate, limits.burst, now()));
        let job = Job { copier: Arc::new(Mutex::new(copier)), scratch: scratch.clone(), progress: sender, bucket };
        let finish = Arc::new(Notify::new());
        let task = tokio::spawn(job.run(stdout, stderr, finish.clone()));
        Ok(Log { task, finish, progress })
    }

    /// Tells a follower when there is more: the value changes after each batch, and the sender is dropped at the end
    /// of the log. For [`super::read()`].
    pub fn progress(&self) -> watch::Receiver<u64> {
        self.progress.clone()
    }

    /// Waits until both streams have ended.
    #[cfg(test)]
    pub(crate) async fn task_for_test(self) {
        self.task.await.unwrap();
    }

    /// Takes what is left in the pipes of a container that has ended, and ends. When it returns, every byte that
    /// the container wrote is in the log; init may forget the pipes.
    pub async fn finish(self) {
        self.finish.notify_one();
        if let Err(error) = self.task.await {
            log::error!("a log's task failed: {error}");
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, LogError> {
    let source = |error| LogError::Pipe { call: "spawn_blocking", source: std::io::Error::other(error) };
    spawn_blocking(work).await.map_err(source)
}

impl Job {
    async fn run(self, stdout: Arc<AsyncFd<OwnedFd>>, stderr: Arc<AsyncFd<OwnedFd>>, finish: Arc<Notify>) {
        let both = async { tokio::join!(self.pump(&stdout, Stream::Stdout), self.pump(&stderr, Stream::Stderr)) };
        tokio::select! {
            _ = both => return,
            () = finish.notified() => {}
        }
        for (source, stream) in [(&stdout, Stream::Stdout), (&stderr, Stream::Stderr)] {
            if let Err(error) = self.turn(source, stream, LAST_BATCHES).await {
                report(&error);
            }
        }
    }

    async fn pump(&self, source: &Arc<AsyncFd<OwnedFd>>, stream: Stream) {
        loop {
            let mut ready = match source.readable().await {
                Ok(ready) => ready,
                // The runtime shuts down.
                Err(_) => return,
            };
            let wait = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).wait(now());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
                continue;
            }
            match self.turn(source, stream, TURN).await {
                Ok(Step::Moved(_)) => {}
                Ok(Step::Empty) => ready.clear_ready(),
                Ok(Step::End) => return,
                Err(error) => {
                    report(&error);
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }

    /// Copies up to a number of batches.
    async fn turn(&self, source: &Arc<AsyncFd<OwnedFd>>, stream: Stream, batches: usize) -> Result<Step, LogError> {
        // Always in this order, or two logs could wait for each other. Both are fair: first come, first served.
        let mut copier = self.copier.clone().lock_owned().await;
        let mut buffers = self.scratch.buffers.clone().lock_owned().await;
        let source = source.clone();
        let step = blocking(move || {
            let (mut bytes, mut last) = (0, Step::Empty);
            for _ in 0..batches {
                last = copier.step(source.get_ref(), stream, &mut buffers)?;
                let Step::Moved(length) = last else { break };
                bytes += length as u64;
            }
            // Others may go on with the buffers while this one compresses.
            drop(buffers);
            if copier.is_untidy() {
                copier.tidy();
            }
            Ok((bytes, last))
        });
        let (bytes, last) = step.await??;
        if bytes > 0 {
            self.bucket.lock().unwrap_or_else(PoisonError::into_inner).spend(bytes, now());
            self.progress.send_modify(|batches| *batches = batches.wrapping_add(1));
        }
        Ok(last)
    }
}

/// A clock that never goes back.
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn report(error: &LogError) {
    match std::error::Error::source(error) {
        Some(source) => log::error!("{error}: {source}"),
        None => log::error!("{error}"),
    }
}
