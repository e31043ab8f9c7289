//! What a registry path means, and which names are possible (distribution-spec, "Pulling manifests").

use skeg_images::Digest;

use super::error::RegistryError;

/// Longest repository name in bytes.
const MAX_NAME: usize = 255;
/// Longest tag in bytes.
const MAX_TAG: usize = 128;

/// A tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Tag(String),
    Digest(Digest),
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Wanted::Tag(tag) => f.write_str(tag),
            Wanted::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

/// A path below `/v2/`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Base,
    Catalog,
    Tags { repository: String },
    Manifest { repository: String, reference: Wanted },
    Blob { repository: String, digest: Digest },
    Uploads { repository: String },
    Upload { repository: String, id: String },
}

/// Whether a text is a repository name: components `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*` joined by slashes.
pub(super) fn is_repository(name: &str) -> bool {
    name.len() <= MAX_NAME && name.split('/').all(is_component)
}

fn is_component(component: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().copied().is_some_and(word) && bytes.last().copied().is_some_and(word);
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends && separators
        .into_iter()
        .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let first = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(first)
        && tag.bytes().all(|byte| first(byte) || byte == b'.' || byte == b'-')
}

/// Reads a digest.
pub(super) fn digest(text: &str) -> Result<Digest, RegistryError> {
    text.parse().map_err(|error: skeg_images::DigestError| RegistryError::digest_invalid(error.to_string()))
}

fn repository(name: &[&str]) -> Result<String, RegistryError> {
    let name = name.join("/");
    match is_repository(&name) {
        true => Ok(name),
        false => Err(RegistryError::name_invalid(format!("{name:?} is no repository name"))),
    }
}

impl Place {
    /// Reads a path without its `/v2/`.
    pub(super) fn parse(path: &str) -> Result<Self, RegistryError> {
        let words: Vec<&str> = path.split('/').collect();
        match words.as_slice() {
            [""] => Ok(Place::Base),
            ["_catalog"] => Ok(Place::Catalog),
            [name @ .., "tags", "list"] => Ok(Place::Tags { repository: repository(name)? }),
            [name @ .., "blobs", "uploads" | "uploads/"] => Ok(Place::Uploads { repository: repository(name)? }),
            [name @ .., "blobs", "uploads", ""] => Ok(Place::Uploads { repository: repository(name)? }),
            [name @ .., "blobs", "uploads", id] => {
                Ok(Place::Upload { repository: repository(name)?, id: (*id).to_owned() })
            }
            [name @ .., "blobs", text] => Ok(Place::Blob { repository: repository(name)?, digest: digest(text)? }),
            [name @ .., "manifests", text] => {
                let reference = match text.contains(':') {
                    true => Wanted::Digest(digest(text)?),
                    false if is_tag(text) => Wanted::Tag((*text).to_owned()),
                    false => return Err(RegistryError::manifest_invalid(format!("{text:?} is no tag"))),
                };
                Ok(Place::Manifest { repository: repository(name)?, reference })
            }
            _ => Err(RegistryError::name_invalid(format!("/v2/{path} is no path of a registry"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_specification() {
        for name in ["a", "demo-web", "library/nginx", "ghcr.io/a/b", "a_b", "a__b", "a--b", "0/1"] {
            assert!(is_repository(name), "{name}");
        }
        for name in ["", "A", "a/", "/a", "a//b", "..", "a/../b", "-a", "a.", "a._b", "a___b", "a:b", &"a".repeat(256)]
        {
            assert!(!is_repository(name), "{name}");
        }
    }

    #[test]
    fn paths_are_told_apart_from_their_end() {
        let repository = || "a/blobs/b".to_owned();
        let zeros = format!("sha256:{}", "0".repeat(64));
        let parse = |path: &str| Place::parse(path).unwrap_or_else(|error| panic!("{path}: {error:?}"));
        assert_eq!(parse("a/blobs/b/tags/list"), Place::Tags { repository: repository() });
        assert_eq!(parse("a/blobs/b/blobs/uploads/"), Place::Uploads { repository: repository() });
        assert_eq!(parse("a/blobs/b/blobs/uploads/x1"), Place::Upload { repository: repository(), id: "x1".into() });
        let digest = Digest([0; 32]);
        assert_eq!(parse(&format!("a/blobs/b/blobs/{zeros}")), Place::Blob { repository: repository(), digest });
        let reference = Wanted::Tag("v1.0".into());
        assert_eq!(parse("a/manifests/v1.0"), Place::Manifest { repository: "a".into(), reference });
        for path in ["a", "../manifests/x", "a/manifests/..", "a/blobs/sha256:12", "A/tags/list", "manifests/x"] {
            assert!(Place::parse(path).is_err(), "{path}");
        }
    }
}
