//! Where one image can be fetched: an ordered list of registries, and what to do when one of them fails.
//!
//! Owns fallback and patience: the next source is asked at once; when all have failed and one of them may only be
//! in trouble, all are asked again after a while. As everything is asked for by digest, sources may be mixed freely.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::{Client, ClientError, RawManifest};
use crate::digest::Digest;

/// How often all sources are asked before the pull fails.
const ROUNDS: u32 = 6;
/// How often while this machine has no route to any of them, as after its start: the wait does not grow then.
const ROUNDS_WITHOUT_ROUTE: u32 = 30;
/// The wait before the second round; it doubles, so that all of them take 15 s.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// A registry that wants more patience than this (`Retry-After`) is given up for now.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The registries that may have an image, best first; at least one. Clones share what was learnt about them.
#[derive(Clone)]
pub struct Sources {
    list: Arc<[(Client, String)]>,
    /// How many of them are the registry and its mirrors; the others stand in for it.
    own: usize,
    /// Where the last request succeeded or is being tried.
    preferred: Arc<AtomicUsize>,
    first_wait: Duration,
}

/// One thing that is being asked for, until some source has given it.
pub(crate) struct Attempt<'a> {
    sources: &'a Sources,
    at: usize,
    round: u32,
    rounds_without_route: u32,
    failures: Failures,
}

/// What has failed in one round.
#[derive(Default)]
struct Failures {
    count: usize,
    /// Whether asking again may help, and how long a registry wants to be left alone.
    transient: bool,
    wanted_wait: Option<Duration>,
    /// For how many of them there was no route.
    without_route: usize,
    /// The failure of the last of the list before those that stand in: of the registry that the user knows.
    own: Option<(usize, ClientError)>,
    /// The failure of the last that stood in for it.
    stand_in: Option<ClientError>,
}

impl Failures {
    fn note(&mut self, at: usize, own: bool, error: ClientError) {
        self.count += 1;
        self.transient |= error.is_transient();
        self.without_route += usize::from(error.is_without_route());
        self.wanted_wait = self.wanted_wait.max(error.retry_after());
        if !own {
            self.stand_in = Some(error);
        } else if self.own.as_ref().is_none_or(|(other, _)| at >= *other) {
            self.own = Some((at, error));
        }
    }

    /// What the user is told: what the registry said first, whoever was asked after it.
    fn told(self) -> Option<ClientError> {
        match (self.own.map(|(_, error)| error), self.stand_in) {
            (Some(registry), Some(stand_in)) => {
                Some(ClientError::Everywhere { registry: Box::new(registry), stand_in: Box::new(stand_in) })
            }
            (one, other) => one.or(other),
        }
    }
}

impl Sources {
    /// Lists mirrors, then the registry itself, each with the repository's name there.
    pub fn new(first: (Client, String), others: impl IntoIterator<Item = (Client, String)>) -> Sources {
        let list: Vec<_> = std::iter::once(first).chain(others).collect();
        Sources { own: list.len(), list: list.into(), preferred: Arc::default(), first_wait: FIRST_WAIT }
    }

    /// Takes one registry alone.
    pub fn one(client: Client, repository: &str) -> Sources {
        Sources::new((client, repository.to_owned()), [])
    }

    /// Adds sources that stand in for the registry: they are asked when it and all before them have failed.
    #[must_use]
    pub fn and_then(self, others: impl IntoIterator<Item = (Client, String)>) -> Sources {
        Sources { list: self.list.iter().cloned().chain(others).collect(), ..self }
    }

    /// Sets the wait before everything is asked again for the first time (0.5 s); it doubles each time.
    #[must_use]
    pub fn with_first_wait(self, first_wait: Duration) -> Sources {
        Sources { first_wait, ..self }
    }

    /// Lists them, best first, each with the repository's name there.
    pub fn list(&self) -> &[(Client, String)] {
        &self.list
    }

    /// Finds the digest that a tag means now, as [`Client::resolve`].
    pub async fn resolve(&self, tag: &str) -> Result<Digest, ClientError> {
        let mut attempt = self.attempt();
        loop {
            let (client, repository) = attempt.source();
            match client.resolve(repository, tag).await {
                Ok(digest) => return Ok(digest),
                Err(error) => attempt.failed(error).await?,
            }
        }
    }

    /// Fetches a manifest or index, as [`Client::manifest`].
    pub(crate) async fn manifest(&self, digest: &Digest) -> Result<RawManifest, ClientError> {
        let mut attempt = self.attempt();
        loop {
            let (client, repository) = attempt.source();
            match client.manifest(repository, &digest.to_string()).await {
                Ok(manifest) => return Ok(manifest),
                Err(error) => attempt.failed(error).await?,
            }
        }
    }

    /// Fetches a small blob, as [`Client::small_blob`].
    pub(crate) async fn small_blob(&self, digest: &Digest, limit: u64) -> Result<Bytes, ClientError> {
        let mut attempt = self.attempt();
        loop {
            let (client, repository) = attempt.source();
            match client.small_blob(repository, digest, limit).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => attempt.failed(error).await?,
            }
        }
    }

    pub(crate) fn attempt(&self) -> Attempt<'_> {
        let at = self.preferred.load(Ordering::Relaxed);
        Attempt { sources: self, at, round: 1, rounds_without_route: 1, failures: Failures::default() }
    }
}

impl<'a> Attempt<'a> {
    /// Returns whom to ask now, and for which repository.
    pub(crate) fn source(&self) -> (&'a Client, &'a str) {
        let (client, repository) = &self.sources.list[self.at];
        (client, repository)
    }

    /// Notes that bytes have come: whatever happens next is a new trouble.
    pub(crate) fn progressed(&mut self) {
        (self.round, self.rounds_without_route, self.failures) = (1, 1, Failures::default());
    }

    /// Turns away from a source whose content was refused; tells whether there is another.
    pub(crate) fn lied(&mut self) -> bool {
        self.failures.count += 1;
        self.at = (self.at + 1) % self.sources.list.len();
        self.sources.preferred.store(self.at, Ordering::Relaxed);
        self.failures.count < self.sources.list.len()
    }

    /// Turns to the next source, waiting once all have failed.
    ///
    /// # Errors
    /// What the registry itself says, when asking again cannot help or has not helped.
    pub(crate) async fn failed(&mut self, error: ClientError) -> Result<(), ClientError> {
        let count = self.sources.list.len();
        log::info!("{}", error.in_full());
        self.failures.note(self.at, self.at < self.sources.own, error);
        self.at = (self.at + 1) % count;
        self.sources.preferred.store(self.at, Ordering::Relaxed);
        if self.failures.count < count {
            return Ok(());
        }
        let failures = std::mem::take(&mut self.failures);
        // A device that is still being given its address has one soon.
        let (factor, round, most) = match failures.without_route == failures.count {
            true => (1, &mut self.rounds_without_route, ROUNDS_WITHOUT_ROUTE),
            false => (2u32.pow(self.round - 1), &mut self.round, ROUNDS),
        };
        let wait = failures.wanted_wait.unwrap_or_else(|| jittered(self.sources.first_wait * factor));
        if !failures.transient || *round == most || wait > MAX_WAIT {
            return failures.told().map_or(Ok(()), Err);
        }
        *round += 1;
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// Takes up to half of a wait away, so that a fleet does not come back in step.
fn jittered(wait: Duration) -> Duration {
    let mut random = [0; 1];
    // Without randomness the fleet comes in step, which is no reason to fail.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random);
    wait - wait * u32::from(random[0]) / 512
}
