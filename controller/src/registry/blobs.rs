//! Blobs of a repository: whole or in part, and their removal.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use hyper::{HeaderMap, StatusCode};
use skeg_images::Digest;

use super::error::RegistryError;
use super::{CONTENT_DIGEST, Registry};
use crate::store::on_disk;

/// Bytes read at once.
const PIECE: usize = 64 * 1024;

/// Reads a Range header: the first byte and the one after the last. `None` where the whole is meant.
fn range(headers: &HeaderMap, size: u64) -> Result<Option<(u64, u64)>, RegistryError> {
    let Some(text) = headers.get(RANGE).and_then(|value| value.to_str().ok()) else { return Ok(None) };
    // What is no single range of bytes may be ignored (RFC 9110, 14.2).
    let Some((from, to)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Ok(None);
    };
    let bounds = match (from.parse::<u64>().ok(), to.parse::<u64>().ok()) {
        (Some(from), to) if to.is_some() || text.ends_with('-') => {
            (from, to.map_or(size, |to| to.saturating_add(1).min(size)))
        }
        (None, Some(last)) if from.is_empty() => (size.saturating_sub(last), size),
        _ => return Ok(None),
    };
    if bounds.0 >= bounds.1 {
        let message = format!("{text} is outside the blob's {size} bytes");
        return Err(RegistryError::new(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", message));
    }
    Ok(Some(bounds))
}

/// Gives a blob, or only what is known about it.
pub(super) fn get(
    registry: &Registry,
    repository: &str,
    digest: &Digest,
    headers: &HeaderMap,
    head: bool,
) -> Result<Response<Body>, RegistryError> {
    let unknown = || RegistryError::blob_unknown(repository, &digest.to_string());
    registry.store.content(repository, &digest.0)?.ok_or_else(unknown)?;
    let (mut file, size) = registry.blobs.reader(digest)?.ok_or_else(unknown)?;
    if head {
        // Who pushes an image asks like this, and counts on the answer.
        registry.blobs.touch(digest)?;
    }
    let part = if head { None } else { range(headers, size)? };
    let (start, end) = part.unwrap_or((0, size));
    let mut response = Response::builder()
        .status(if part.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK })
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(CONTENT_LENGTH, end - start)
        .header(ACCEPT_RANGES, "bytes")
        .header(CONTENT_DIGEST, digest.to_string());
    if part.is_some() {
        response = response.header(CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1));
    }
    let failed = |error: std::io::Error| {
        RegistryError::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", format!("blob {digest}: {error}"))
    };
    let body = if head {
        Body::empty()
    } else {
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        stream(file, end - start)
    };
    response.body(body).map_err(|error| RegistryError::name_invalid(error.to_string()))
}

/// Streams so many bytes of a file.
fn stream(file: File, length: u64) -> Body {
    let pieces = futures_util::stream::unfold((file, length), async |(mut file, left)| {
        if left == 0 {
            return None;
        }
        let mut piece = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
        let read = on_disk(|| file.read(&mut piece)).and_then(|count| match count {
            0 => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
            count => Ok(count),
        });
        match read {
            Ok(count) => {
                piece.truncate(count);
                Some((Ok(Bytes::from(piece)), (file, left - count as u64)))
            }
            Err(error) => Some((Err(error), (file, 0))),
        }
    });
    Body::from_stream(pieces)
}

/// Takes a blob from a repository, and from the disk when no other has it.
pub(super) fn delete(registry: &Registry, repository: &str, digest: &Digest) -> Result<Response<Body>, RegistryError> {
    let _ledger = registry.ledger();
    if !registry.store.remove_content(repository, &digest.0)? {
        return Err(RegistryError::blob_unknown(repository, &digest.to_string()));
    }
    if !registry.store.all_content()?.contains(&digest.0) {
        registry.blobs.remove(digest)?;
    }
    Ok(StatusCode::ACCEPTED.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_means_them() {
        let with = |text: &str| {
            let headers = HeaderMap::from_iter([(RANGE, text.parse().unwrap())]);
            range(&headers, 100).map_err(|_| ())
        };
        assert_eq!(with("bytes=0-9"), Ok(Some((0, 10))));
        assert_eq!(with("bytes=90-"), Ok(Some((90, 100))));
        assert_eq!(with("bytes=90-200"), Ok(Some((90, 100))));
        assert_eq!(with("bytes=-10"), Ok(Some((90, 100))));
        assert_eq!(with("bytes=100-"), Err(()));
        assert_eq!(with("bytes=9-0"), Err(()));
        for odd in ["items=0-1", "bytes=a-b", "bytes=0-1,3-4", "bytes=-"] {
            assert_eq!(with(odd), Ok(None), "{odd}");
        }
        assert_eq!(with("bytes=0-18446744073709551615"), Ok(Some((0, 100))));
    }
}
