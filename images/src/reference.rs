//! Image references: `[host[:port]/]repository[:tag][@sha256:…]`, normalised as Docker does.
//!
//! Owns the grammar of distribution's `reference` package and its bounds. It looks nothing up.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::digest::Digest;

/// Longest repository name in bytes, host included (distribution-spec).
pub const MAX_NAME: usize = 255;
/// Longest tag in bytes (distribution-spec).
pub const MAX_TAG: usize = 128;
/// Longest reference in bytes: name, tag, digest and their separators.
pub const MAX_REFERENCE: usize = MAX_NAME + 1 + MAX_TAG + 1 + 71;
const DOCKER_HUB: &str = "docker.io";

/// The name of an image, normalised: `nginx` is `docker.io/library/nginx:latest`.
///
/// Without a tag and without a digest the tag is `latest`; with a digest only, there is no tag.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
    /// The name as written, without tag and digest.
    written: String,
}

/// Why a text is no image reference.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not an image reference: {problem}")]
pub struct ReferenceError {
    /// The text as given, cut to 100 characters.
    pub text: String,
    /// What is wrong, with the part that is.
    pub problem: Problem,
}

/// What is wrong with a reference.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// Nothing was given.
    #[error("it is empty")]
    Empty,
    /// The whole is longer than any valid reference.
    #[error("it has {0} bytes, {MAX_REFERENCE} are allowed")]
    TooLong(usize),
    /// Host and repository together are too long.
    #[error("its name has {0} bytes, {MAX_NAME} are allowed")]
    NameTooLong(usize),
    /// The part before the first slash looks like a host but is none.
    #[error("{0:?} is not a host name with an optional port")]
    Host(String),
    /// A capital letter in the repository, the most common mistake.
    #[error("{0:?} has capital letters; repository names are lower case")]
    UpperCase(String),
    /// A component of the repository breaks the grammar.
    #[error("{0:?} may only have a-z and 0-9, separated by one of . _ __ or dashes")]
    Component(String),
    /// The tag breaks the grammar.
    #[error(
        "tag {0:?} may only have letters, digits and . _ -, starts with none of . -, and has at most {MAX_TAG} bytes"
    )]
    Tag(String),
    /// The digest is none.
    #[error("{0:?} is not a digest of the form sha256:<64 lowercase hex digits>")]
    Digest(String),
    /// 64 hex digits would be mistaken for an image id.
    #[error("a name of 64 hex digits is not allowed: it looks like an image id")]
    Identifier,
}

impl Reference {
    /// Returns the registry's host with its port if one was written; `docker.io` when none was.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Returns the repository within the registry, `library/` added for Docker Hub's official images.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Returns the tag; `None` only when the reference has a digest and no tag.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Returns the digest, which wins over the tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Returns the name as it was written, without tag and digest: `nginx`, `demo/web`, `ghcr.io/a/b`.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// Tells whether the text named a registry's host.
    pub fn names_a_registry(&self) -> bool {
        split_host(&self.written).is_some()
    }

    /// Returns the shortest text that means the same: `nginx:latest` for `docker.io/library/nginx:latest`.
    pub fn familiar(&self) -> String {
        let name = if self.registry == DOCKER_HUB {
            let short = self.repository.strip_prefix("library/").filter(|rest| !rest.contains('/'));
            let candidate = short.unwrap_or(&self.repository);
            match split_host(candidate) {
                // A first component that looks like a host needs Docker Hub's name before it.
                Some(_) => format!("{DOCKER_HUB}/{candidate}"),
                None => candidate.to_owned(),
            }
        } else {
            format!("{}/{}", self.registry, self.repository)
        };
        self.with_suffix(name)
    }

    fn with_suffix(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(&digest.to_string());
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_suffix(format!("{}/{}", self.registry, self.repository)))
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Reference, ReferenceError> {
        parse(text).map_err(|problem| ReferenceError { text: cut(text), problem })
    }
}

fn cut(text: &str) -> String {
    text.chars().take(100).collect()
}

fn parse(text: &str) -> Result<Reference, Problem> {
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if text.len() > MAX_REFERENCE {
        return Err(Problem::TooLong(text.len()));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| Problem::Digest(cut(digest)))?)),
        None => (text, None),
    };
    // A colon after the last slash begins the tag; one before it belongs to a port.
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (written, tag) = match rest[last..].find(':') {
        Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
        None => (rest, None),
    };
    if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
        return Err(Problem::Tag(cut(tag)));
    }
    if Digest::from_hex(written).is_some() {
        return Err(Problem::Identifier);
    }
    let (registry, path) = split_host(written).unwrap_or((DOCKER_HUB, written));
    if !is_host(registry) {
        return Err(Problem::Host(cut(registry)));
    }
    let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
    check_repository(path)?;
    let repository = match registry == DOCKER_HUB && !path.contains('/') {
        true => format!("library/{path}"),
        false => path.to_owned(),
    };
    let length = registry.len() + 1 + repository.len();
    if length > MAX_NAME {
        return Err(Problem::NameTooLong(length));
    }
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some("latest".to_owned()),
    };
    Ok(Reference { registry: registry.to_owned(), repository, tag, digest, written: written.to_owned() })
}

/// Splits off the first component if it is a host: it has a dot or a colon, is `localhost`, or has a capital letter.
fn split_host(name: &str) -> Option<(&str, &str)> {
    let (first, rest) = name.split_once('/')?;
    let is_host =
        first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase());
    is_host.then_some((first, rest))
}

/// Tells whether the text is `host`, `host:port`, `[ipv6]` or `[ipv6]:port`.
pub(crate) fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", port),
            _ => return false,
        },
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let good_port = match port.strip_prefix(':') {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u16>().is_ok(),
        None => port.is_empty(),
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    good_port && host.split('.').all(label)
}

/// Checks a repository name against distribution-spec's `<name>` grammar.
pub(crate) fn check_repository(path: &str) -> Result<(), Problem> {
    for component in path.split('/') {
        if component.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(Problem::UpperCase(cut(component)));
        }
        if !is_component(component) {
            return Err(Problem::Component(cut(component)));
        }
    }
    Ok(())
}

/// Alphanumeric runs separated by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    component
        .split(|character: char| character.is_ascii_lowercase() || character.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
}

/// Tells whether the text is a tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub(crate) fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let mut bytes = tag.bytes();
    bytes.next().is_some_and(word)
        && bytes.all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
        && tag.len() <= MAX_TAG
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn short_names_mean_docker_hub() {
        assert_eq!(full("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(full("nginx:1.22"), "docker.io/library/nginx:1.22");
        assert_eq!(full("bitnami/redis"), "docker.io/bitnami/redis:latest");
        assert_eq!(full("index.docker.io/nginx"), "docker.io/library/nginx:latest");
        assert_eq!(full(&format!("nginx@sha256:{HEX}")), format!("docker.io/library/nginx@sha256:{HEX}"));
    }

    #[test]
    fn hosts_and_ports_are_told_from_repositories_and_tags() {
        assert_eq!(full("localhost/a"), "localhost/a:latest");
        assert_eq!(full("127.0.0.1:5000/a:b"), "127.0.0.1:5000/a:b");
        assert_eq!(full("[::1]:5000/a/b"), "[::1]:5000/a/b:latest");
        assert_eq!(full("ghcr.io/a/b__c-d:v1"), "ghcr.io/a/b__c-d:v1");
        let reference: Reference = format!("ghcr.io/a/b:v1@sha256:{HEX}").parse().unwrap();
        assert_eq!((reference.registry(), reference.repository(), reference.tag()), ("ghcr.io", "a/b", Some("v1")));
        assert_eq!(reference.digest().unwrap().hex(), HEX);
        assert_eq!(reference.written(), "ghcr.io/a/b");
        assert!(reference.names_a_registry());
        assert!(!"demo/web".parse::<Reference>().unwrap().names_a_registry());
    }

    #[test]
    fn familiar_names_are_short() {
        for text in ["nginx:latest", "bitnami/redis:7", "ghcr.io/a/b:v1", "localhost:5000/x:y"] {
            assert_eq!(text.parse::<Reference>().unwrap().familiar(), text);
        }
    }

    #[test]
    fn errors_show_what_is_wrong() {
        let long = "a".repeat(300);
        for (text, part) in [
            ("", "empty"),
            ("Nginx", "capital letters"),
            ("a//b", "may only have"),
            ("a/../b", "may only have"),
            ("a___b", "may only have"),
            ("nginx:", "tag \"\""),
            ("nginx:-x", "tag \"-x\""),
            ("nginx@sha256:12", "\"sha256:12\""),
            ("exa mple.com/x", "host name"),
            ("host:99999/x", "host name"),
            ("-bad.example/x", "host name"),
            (HEX, "image id"),
            (&long, "300 bytes"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            let part = if text == long { "bytes" } else { part };
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn display_parses_back_to_the_same(text in "([a-z]{1,8}(\\.[a-z]{1,4})?(:[1-9][0-9]{0,3})?/)?[a-z0-9]{1,5}((\\.|_|__|-)[a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,5}){0,3}(:[A-Za-z0-9_][A-Za-z0-9._-]{0,9})?") {
            if let Ok(reference) = text.parse::<Reference>() {
                for form in [reference.to_string(), reference.familiar()] {
                    let again: Reference = form.parse().unwrap();
                    prop_assert_eq!(again.to_string(), reference.to_string());
                    prop_assert_eq!(again.digest(), reference.digest());
                }
            }
        }

        #[test]
        fn any_text_parses_or_is_refused_without_panic(text in "\\PC{0,80}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn reference_like_text_never_panics(text in "[a-zA-Z0-9:/@.\\[\\]_-]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap().to_string(), reference.to_string());
            }
        }
    }
}
