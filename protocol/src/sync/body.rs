//! The body of a manifest as it travels and as its digest is computed: its items one after the other.
//!
//! ```text
//! body = { item }
//! item = kind (1 byte), varint(length), the item in postcard
//! ```
//! An item grows only at its end, and kinds that are not known are passed over: an older device takes what a newer
//! controller sends.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::delta::{put, take};
use crate::id::Digest;
use crate::limits::{MAX_BODY, MAX_DATA, MAX_FRAME, MAX_ITEMS, MAX_NETWORKS, MAX_PODS};
use crate::manifest::Manifest;
use crate::message::{Check, Epoch, Held};

/// What an item is. A number means the same for ever.
mod kind {
    pub(super) const SETTINGS: u8 = 0;
    pub(super) const POD: u8 = 1;
    pub(super) const DATA: u8 = 2;
    pub(super) const SERVICE: u8 = 3;
    pub(super) const NETWORK: u8 = 4;
    pub(super) const JOB: u8 = 5;
    pub(super) const CRON_JOB: u8 = 6;
}

/// What a manifest says beside its lists.
#[derive(Default, Serialize, Deserialize)]
struct Settings {
    trial_seconds: u32,
}

/// Why bytes are no body.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BodyError {
    /// It ends within an item, or an item's length is none.
    #[error("the item at byte {0} has no whole head or is not there whole")]
    Cut(usize),
    /// An item is not what its kind says.
    #[error("item {index} of kind {kind} does not decode: {source}")]
    Malformed {
        /// Number of the item from 0.
        index: usize,
        /// What it is said to be.
        kind: u8,
        /// What postcard says.
        source: postcard::Error,
    },
    /// An item is too long.
    #[error("item {index} of kind {kind} has {length} bytes, which is too many")]
    Large {
        /// Number of the item from 0.
        index: usize,
        /// What it is said to be.
        kind: u8,
        /// Its length in bytes.
        length: usize,
    },
    /// There are too many of a kind.
    #[error("more than {most} items of kind {kind}")]
    Many {
        /// Which kind.
        kind: u8,
        /// How many there may be.
        most: usize,
    },
    /// The body is too long.
    #[error("the manifest has {0} bytes, at most {MAX_BODY} are possible")]
    Long(usize),
}

/// Bounds of a kind: how many there may be, and how long one may be in bytes.
fn bounds(kind: u8) -> (usize, usize) {
    match kind {
        kind::SETTINGS => (1, MAX_FRAME),
        kind::POD => (MAX_PODS, MAX_FRAME),
        kind::DATA => (MAX_ITEMS, MAX_DATA + MAX_FRAME),
        kind::NETWORK => (MAX_NETWORKS, MAX_FRAME),
        _ => (MAX_ITEMS, MAX_FRAME),
    }
}

/// The body of a manifest.
///
/// # Errors
/// It, or an item of it, is larger than it may be.
pub fn encode(manifest: &Manifest) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    let settings = [Settings { trial_seconds: manifest.trial_seconds }];
    add(&mut body, kind::SETTINGS, &settings)?;
    add(&mut body, kind::POD, &manifest.pods)?;
    add(&mut body, kind::DATA, &manifest.data)?;
    add(&mut body, kind::SERVICE, &manifest.services)?;
    add(&mut body, kind::NETWORK, &manifest.networks)?;
    add(&mut body, kind::JOB, &manifest.jobs)?;
    add(&mut body, kind::CRON_JOB, &manifest.cron_jobs)?;
    if body.len() > MAX_BODY { Err(BodyError::Long(body.len())) } else { Ok(body) }
}

fn add<T: Serialize>(body: &mut Vec<u8>, kind: u8, items: &[T]) -> Result<(), BodyError> {
    let (most, longest) = bounds(kind);
    if items.len() > most {
        return Err(BodyError::Many { kind, most });
    }
    for (index, item) in items.iter().enumerate() {
        let bytes = postcard::to_allocvec(item).map_err(|source| BodyError::Malformed { index, kind, source })?;
        if bytes.len() > longest {
            return Err(BodyError::Large { index, kind, length: bytes.len() });
        }
        body.push(kind);
        put(body, bytes.len() as u64);
        body.extend_from_slice(&bytes);
    }
    Ok(())
}

/// One item of a body.
struct Item<'a> {
    kind: u8,
    /// Without its head.
    content: &'a [u8],
    /// With its head.
    whole: &'a [u8],
}

/// Splits a body into its items.
fn split(body: &[u8]) -> Result<Vec<Item<'_>>, BodyError> {
    let (mut items, mut rest) = (Vec::new(), body);
    while let Some((&kind, mut after)) = rest.split_first() {
        let cut = || BodyError::Cut(body.len() - rest.len());
        let length = take(&mut after).ok().and_then(|length| usize::try_from(length).ok()).ok_or_else(cut)?;
        let content = after.get(..length).ok_or_else(cut)?;
        let whole = &rest[..rest.len() - after.len() + length];
        items.push(Item { kind, content, whole });
        rest = &after[length..];
    }
    Ok(items)
}

/// The manifest that a body is.
///
/// # Errors
/// It is none, or larger than it may be. What its items say is not checked ([`Manifest::validate`]).
pub fn decode(held: Held, body: &[u8]) -> Result<Manifest, BodyError> {
    if body.len() > MAX_BODY {
        return Err(BodyError::Long(body.len()));
    }
    let mut manifest =
        Manifest { revision: held.revision, epoch: held.epoch, digest: held.digest, ..Manifest::default() };
    let mut settings: Vec<Settings> = Vec::new();
    for (index, item) in split(body)?.iter().enumerate() {
        match item.kind {
            kind::SETTINGS => push(&mut settings, index, item)?,
            kind::POD => push(&mut manifest.pods, index, item)?,
            kind::DATA => push(&mut manifest.data, index, item)?,
            kind::SERVICE => push(&mut manifest.services, index, item)?,
            kind::NETWORK => push(&mut manifest.networks, index, item)?,
            kind::JOB => push(&mut manifest.jobs, index, item)?,
            kind::CRON_JOB => push(&mut manifest.cron_jobs, index, item)?,
            _ => {}
        }
    }
    manifest.trial_seconds = settings.pop().unwrap_or_default().trial_seconds;
    Ok(manifest)
}

fn push<T: DeserializeOwned>(list: &mut Vec<T>, index: usize, item: &Item<'_>) -> Result<(), BodyError> {
    let kind = item.kind;
    let (most, longest) = bounds(kind);
    if item.content.len() > longest {
        return Err(BodyError::Large { index, kind, length: item.content.len() });
    }
    if list.len() >= most {
        return Err(BodyError::Many { kind, most });
    }
    let decoded = postcard::take_from_bytes(item.content);
    list.push(decoded.map_err(|source| BodyError::Malformed { index, kind, source })?.0);
    Ok(())
}

/// What a manifest with this body is called.
pub fn name(revision: u64, epoch: Epoch, body: &[u8]) -> Held {
    Held { revision, digest: Digest::of(body), epoch }
}

/// The items of a body with their heads, in order; none of what is no body.
pub(super) fn items(body: &[u8]) -> Vec<&[u8]> {
    split(body).unwrap_or_default().into_iter().map(|item| item.whole).collect()
}

/// Short names of bytes.
pub(super) fn check(bytes: &[u8]) -> Check {
    let mut check = Check::default();
    check.copy_from_slice(&Digest::of(bytes).0[..8]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Data, Pod};
    use crate::{Label, Uid};

    fn manifest() -> Manifest {
        let pod = |number: u8| Pod { uid: Uid([number; 16]), name: "web".try_into().unwrap(), ..Pod::default() };
        let data = Data { namespace: Label::try_from("default").unwrap(), ..Data::default() };
        Manifest { pods: vec![pod(1), pod(2)], data: vec![data], trial_seconds: 90, ..Manifest::default() }
    }

    #[test]
    fn a_manifest_comes_out_of_its_body_as_it_was() {
        let body = encode(&manifest()).unwrap();
        let held = name(3, [7; 8], &body);
        let wanted = Manifest { revision: 3, epoch: [7; 8], digest: Digest::of(&body), ..manifest() };
        assert_eq!(decode(held, &body), Ok(wanted));
        assert_eq!(items(&body).concat(), body);
        assert_eq!(items(&body).len(), 4);
        for cut in 1..body.len() {
            // Between two items a cut is a shorter body; the digest tells.
            assert!(decode(held, &body[..cut]).is_ok() == split(&body[..cut]).is_ok(), "cut at {cut}");
        }
    }

    #[test]
    fn an_older_device_takes_longer_items_and_new_kinds() {
        let body = encode(&manifest()).unwrap();
        let mut newer = vec![200, 2, 1, 2];
        for item in split(&body).unwrap() {
            newer.push(item.kind);
            put(&mut newer, item.content.len() as u64 + 3);
            newer.extend_from_slice(item.content);
            newer.extend_from_slice(b"new");
        }
        let decoded = decode(Held::NOTHING, &newer).unwrap();
        assert_eq!(decoded, manifest());
    }

    #[test]
    fn too_many_and_too_long_items_are_refused_before_they_are_decoded() {
        let one = [kind::SETTINGS, 1, 0];
        assert_eq!(decode(Held::NOTHING, &[one, one].concat()), Err(BodyError::Many { kind: 0, most: 1 }));
        let mut long = vec![kind::POD];
        put(&mut long, MAX_FRAME as u64 + 1);
        long.extend(vec![0; MAX_FRAME + 1]);
        assert!(matches!(decode(Held::NOTHING, &long), Err(BodyError::Large { index: 0, kind: 1, .. })));
        assert_eq!(decode(Held::NOTHING, &[1, 5, 0]), Err(BodyError::Cut(0)));
    }
}
