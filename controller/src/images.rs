//! What an image reference means: the digest in the controller's own registry, or else in the registry that the
//! reference names. Every answer, good or bad, is remembered for as long as a pod needs it.

use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use skeg_images::{Client, Endpoint, Logins, Reference, Sources};
use skeg_protocol::Digest;
use skeg_protocol::manifest::{Image, ImageSource};

use crate::store::{Database, StoreError};

/// First wait after a failure; it doubles up to [`LONGEST`].
const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(300);

/// Looks a reference up in the controller's own registry: under the name as written and, for a name without a
/// host and a folder, under `library/`.
pub(crate) fn own(database: &Database, reference: &str) -> Result<Option<Image>, StoreError> {
    let Ok(parsed) = reference.parse::<Reference>() else { return Ok(None) };
    let mut names = vec![parsed.written().to_owned()];
    if !parsed.written().contains('/') {
        names.push(format!("library/{}", parsed.written()));
    }
    for repository in names {
        let found = match (parsed.digest(), parsed.tag()) {
            (Some(digest), _) => {
                let media_type = database.content(&repository, &digest.0)?;
                media_type.filter(|media_type| !media_type.is_empty()).map(|_| digest.0)
            }
            (None, tag) => database.tag(&repository, tag.unwrap_or("latest"))?,
        };
        if let Some(digest) = found {
            let source = ImageSource::Controller(repository);
            return Ok(Some(Image { reference: reference.to_owned(), digest: Digest(digest), source }));
        }
    }
    Ok(None)
}

/// How other registries are reached.
#[derive(Debug, Default)]
pub(crate) struct Upstream {
    /// Hosts that are spoken to without TLS.
    pub(crate) plain_http: Vec<String>,
    /// Docker's config.json with logins.
    pub(crate) docker_config: Option<PathBuf>,
}

/// Largest file of logins in bytes.
const MAX_LOGINS: u64 = 1 << 20;

/// The registry that a reference names, with each login that is for it: of equally fitting ones, those of secrets come
/// before those of the file.
///
/// # Errors
/// The host is none, or the file of logins cannot be read.
pub(crate) fn sources(reference: &Reference, upstream: &Upstream, mut logins: Logins) -> Result<Sources, String> {
    if let Some(path) = &upstream.docker_config {
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(MAX_LOGINS).read_to_end(&mut bytes));
        read.map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        logins.extend(Logins::parse(&bytes).map_err(|error| format!("{}: {}", path.display(), chain(&error)))?);
    }
    let host = reference.registry();
    let plain = upstream.plain_http.iter().any(|plain| plain == host);
    let endpoint = Endpoint::for_registry(host, plain).map_err(|error| chain(&error))?;
    let source = |login| (Client::with_login(endpoint.clone(), login), reference.repository().to_owned());
    let mut logins = logins.matching(reference).into_iter().map(Some);
    Ok(Sources::new(source(logins.next().flatten()), logins.map(source)))
}

/// An error with its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Asks the registry that a reference names, with these logins beside the configured ones.
///
/// # Errors
/// Why the reference means nothing, for people.
pub(crate) async fn remote(reference: &str, upstream: &Upstream, logins: Logins) -> Result<Image, String> {
    let known = |digest: skeg_images::Digest| Image {
        reference: reference.to_owned(),
        digest: Digest(digest.0),
        source: ImageSource::Registry,
    };
    let parsed: Reference = reference.parse().map_err(|error: skeg_images::ReferenceError| error.to_string())?;
    if let Some(digest) = parsed.digest() {
        return Ok(known(*digest));
    }
    let failed = |message: String| format!("{reference:?} is not in the controller's registry, and {message}");
    let sources = sources(&parsed, upstream, logins).map_err(failed)?;
    let resolved = sources.resolve(parsed.tag().unwrap_or("latest")).await;
    resolved.map(known).map_err(|error| failed(chain(&error)))
}

/// Where the resolution of one pod's reference stands.
#[derive(Debug)]
pub(crate) enum Standing {
    /// A registry is being asked.
    Asking,
    /// It is known.
    Known(Image),
    /// It failed; it is tried again at `again`.
    Failed {
        /// What went wrong.
        message: String,
        /// How often in a row.
        attempts: u32,
        /// When to try again.
        again: Instant,
    },
}

/// The asker of all pods that use the same pull secrets: nothing for those without, else namespace and names.
pub(crate) fn shared_asker<'a>(namespace: &str, secrets: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = secrets.collect();
    if names.is_empty() { String::new() } else { format!("{namespace}/{}", names.join(",")) }
}

/// Whether an asker is not one pod.
fn is_shared(asker: &str) -> bool {
    asker.is_empty() || asker.contains('/')
}

/// Answers by (asker, reference). The asker is a pod's uid where a pod wants its own answer; else it is the pull secrets
/// that were used, as [`shared_asker`] writes them: a fleet runs one content, whenever its pods were made
/// (docs/decisions/0007-tags.md), and who has other secrets may be told something else.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    known: HashMap<(String, String), (Standing, u32)>,
}

impl Answers {
    /// Where a reference stands; `None` when it must be asked for now.
    pub(crate) fn standing(&self, uid: &str, reference: &str, now: Instant) -> Option<&Standing> {
        match self.known.get(&(uid.to_owned(), reference.to_owned())) {
            Some((Standing::Failed { again, .. }, _)) if *again <= now => None,
            other => other.map(|(standing, _)| standing),
        }
    }

    /// How often this reference failed in a row, and why the last time; for while it is asked for again.
    pub(crate) fn failures(&self, uid: &str, reference: &str) -> u32 {
        self.known.get(&(uid.to_owned(), reference.to_owned())).map_or(0, |(_, failures)| *failures)
    }

    /// Notes that a registry is being asked.
    pub(crate) fn asking(&mut self, uid: &str, reference: &str) {
        let failures = self.failures(uid, reference);
        self.known.insert((uid.to_owned(), reference.to_owned()), (Standing::Asking, failures));
    }

    /// Notes an answer.
    pub(crate) fn answered(&mut self, uid: &str, reference: &str, answer: Result<Image, String>, now: Instant) {
        let entry = match answer {
            Ok(image) => (Standing::Known(image), 0),
            Err(message) => {
                let attempts = self.failures(uid, reference) + 1;
                let wait = (FIRST * 2u32.saturating_pow(attempts.min(8) - 1)).min(LONGEST);
                (Standing::Failed { message, attempts, again: now + wait }, attempts)
            }
        };
        self.known.insert((uid.to_owned(), reference.to_owned()), entry);
    }

    /// Forgets what no pod needs any more, by uids and references of those that there are.
    pub(crate) fn retain(&mut self, uids: &HashSet<String>, references: &HashSet<String>) {
        self.known.retain(|(asker, reference), _| match is_shared(asker) {
            true => references.contains(reference),
            false => uids.contains(asker),
        });
    }

    /// Lets every failure be tried again at once.
    pub(crate) fn forget_failures(&mut self) {
        self.known.retain(|_, (standing, _)| !matches!(standing, Standing::Failed { .. }));
    }

    /// When the next failure is tried again.
    pub(crate) fn next_retry(&self) -> Option<Instant> {
        let times = self.known.values().filter_map(|(standing, _)| match standing {
            Standing::Failed { again, .. } => Some(*again),
            _ => None,
        });
        times.min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_registry_is_asked_by_name_and_library_name() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(&folder.path().join("store.redb"), &[7; 32]).unwrap();
        database.add_content("library/nginx", &[3; 32], "application/json", Some("1")).unwrap();
        let image = own(&database, "nginx:1").unwrap().unwrap();
        assert_eq!(image.source, ImageSource::Controller("library/nginx".to_owned()));
        assert_eq!(image.digest, Digest([3; 32]));
        let by_digest = own(&database, &format!("nginx@{}", Digest([3; 32]))).unwrap();
        assert!(by_digest.is_some());
        assert_eq!(own(&database, "nginx").unwrap(), None);
        assert_eq!(own(&database, "a/nginx:1").unwrap(), None);
    }

    #[test]
    fn an_answer_for_all_stays_as_long_as_a_pod_has_the_reference() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        let image = crate::manager::unresolved("x");
        for uid in ["", "u"] {
            answers.answered(uid, "x", Ok(image.clone()), now);
        }
        let set = |word: &str| HashSet::from([word.to_owned()]);
        answers.retain(&set("other"), &set("x"));
        assert!(answers.standing("", "x", now).is_some() && answers.standing("u", "x", now).is_none());
        answers.retain(&set("other"), &set("y"));
        assert!(answers.standing("", "x", now).is_none());
        let asker = shared_asker("default", ["a", "b"].into_iter());
        assert_eq!((asker.as_str(), shared_asker("default", [].into_iter()).as_str()), ("default/a,b", ""));
        answers.answered(&asker, "x", Err("denied".to_owned()), now);
        answers.retain(&set("other"), &set("x"));
        assert!(answers.standing(&asker, "x", now).is_some() && answers.standing("", "x", now).is_none());
    }

    #[test]
    fn failures_wait_longer_each_time() {
        let (mut answers, now) = (Answers::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..7 {
            answers.asking("u", "x");
            answers.answered("u", "x", Err("no".to_owned()), now);
            waits.push((answers.next_retry().unwrap() - now).as_secs());
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
        assert!(answers.standing("u", "x", now).is_some());
        assert!(answers.standing("u", "x", now + LONGEST).is_none());
    }
}
