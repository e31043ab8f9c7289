//! What can go wrong between here and a registry. Owns the words of those errors, nothing else.

use std::fmt;
use std::io;
use std::time::Duration;

use hyper::StatusCode;
use thiserror::Error;

use crate::digest::Digest;

/// Longest piece of a registry's answer that an error shows, in characters.
const MAX_SHOWN: usize = 200;

/// What was asked of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The registry, as the user knows it.
    pub registry: Box<str>,
    /// The repository within it.
    pub repository: Box<str>,
    /// The thing: `manifest 1.22`, `blob sha256:…`.
    pub what: Box<str>,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "registry {}, repository {}: {}", self.registry, self.repository, self.what)
    }
}

/// Why a registry gave no answer that can be used. The source, where there is one, holds the system's reason.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No TCP connection or no TLS session.
    #[error("{asked}: cannot connect to {address}")]
    Connect {
        /// What was asked.
        asked: Asked,
        /// Host and port.
        address: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// No connection in time.
    #[error("{asked}: no connection to {address} within {seconds} s")]
    ConnectTimeout {
        /// What was asked.
        asked: Asked,
        /// Host and port.
        address: String,
        /// The limit.
        seconds: f32,
    },
    /// The HTTP session could not be set up.
    #[error("{asked}: no HTTP session with {address}")]
    Handshake {
        /// What was asked.
        asked: Asked,
        /// Host and port.
        address: String,
        /// The reason.
        #[source]
        source: hyper::Error,
    },
    /// The connection stands, but next to nothing comes.
    #[error("{asked}: the registry has sent next to nothing for {seconds} s")]
    Stalled {
        /// What was asked.
        asked: Asked,
        /// The limit.
        seconds: f32,
    },
    /// The transfer broke off, or what came was no HTTP.
    #[error("{asked}: the transfer broke off")]
    Transfer {
        /// What was asked.
        asked: Asked,
        /// The reason.
        #[source]
        source: hyper::Error,
    },
    /// The name cannot be put into a request.
    #[error("{asked}: cannot be asked for")]
    Request {
        /// What was asked.
        asked: Asked,
        /// The reason.
        #[source]
        source: hyper::http::Error,
    },
    /// The registry answered with an error.
    #[error("{asked}: the registry answers {status}{}{body}", if .body.is_empty() { "" } else { ": " })]
    Refused {
        /// What was asked.
        asked: Asked,
        /// The HTTP status.
        status: StatusCode,
        /// What the registry says, cut to 200 characters.
        body: String,
        /// How long it wants to be left alone (`Retry-After` in seconds; a date is of no use without a right clock).
        retry_after: Option<Duration>,
    },
    /// The registry or its token server lets this asker not in.
    #[error("{asked}: the registry denies it to {who} ({status}{}{body})", if .body.is_empty() { "" } else { ": " })]
    Denied {
        /// What was asked.
        asked: Asked,
        /// The HTTP status, 401 or 403.
        status: StatusCode,
        /// Who asked, without the secret.
        who: String,
        /// What the registry says, cut to 200 characters.
        body: String,
    },
    /// Something else than a manifest, such as the page of a captive portal.
    #[error("{asked}: the registry sends {media_type:?} that is no JSON instead: {body}")]
    NotManifest {
        /// What was asked.
        asked: Asked,
        /// Content-Type of the answer.
        media_type: String,
        /// Its beginning, cut to 200 characters.
        body: String,
    },
    /// Another part of a blob than the one that was asked for.
    #[error("{asked}: asked for the bytes from {wanted} on, the registry sends {got:?}")]
    Range {
        /// What was asked.
        asked: Asked,
        /// The offset that was asked for.
        wanted: u64,
        /// `Content-Range` of the answer.
        got: String,
    },
    /// A redirect to something that is no http(s) URL.
    #[error("{asked}: redirected to {location:?}, which cannot be followed")]
    Redirect {
        /// What was asked.
        asked: Asked,
        /// Where to.
        location: String,
    },
    /// Redirects without end.
    #[error("{asked}: more than 5 redirects")]
    TooManyRedirects {
        /// What was asked.
        asked: Asked,
    },
    /// The token server that the registry names is of no use.
    #[error("{asked}: cannot get a token from {realm:?}: {problem}")]
    Token {
        /// What was asked.
        asked: Asked,
        /// The token server.
        realm: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// More bytes than such a thing may have.
    #[error("{asked}: larger than the limit of {limit} bytes")]
    TooLarge {
        /// What was asked.
        asked: Asked,
        /// The limit in bytes.
        limit: u64,
    },
    /// Other bytes than were asked for.
    #[error("{asked}: what the registry sent has the digest {got}")]
    Digest {
        /// What was asked.
        asked: Asked,
        /// Digest of the bytes that came.
        got: Digest,
    },
    /// The registry failed, and so did who was asked in its place.
    #[error("{}; asked in its place, {}", registry.in_full(), stand_in.in_full())]
    Everywhere {
        /// What the registry said.
        registry: Box<ClientError>,
        /// What the other said.
        stand_in: Box<ClientError>,
    },
}

impl ClientError {
    /// The error with its reasons, in one line.
    pub(super) fn in_full(&self) -> String {
        let sources = std::iter::successors(std::error::Error::source(self), |error| error.source());
        sources.fold(self.to_string(), |text, source| format!("{text}: {source}"))
    }

    /// Tells whether this machine has no way there, as before it has an address.
    pub(crate) fn is_without_route(&self) -> bool {
        use io::ErrorKind::{HostUnreachable, NetworkDown, NetworkUnreachable};
        match self {
            ClientError::Connect { source, .. } => {
                matches!(source.kind(), HostUnreachable | NetworkDown | NetworkUnreachable)
            }
            _ => false,
        }
    }

    /// Tells whether the registry says that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, ClientError::Refused { status: StatusCode::NOT_FOUND, .. })
    }

    /// Tells how long the registry wants to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            ClientError::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Tells whether the same request may succeed at another attempt: the network failed, not the registry's answer.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            ClientError::Connect { .. }
            | ClientError::ConnectTimeout { .. }
            | ClientError::Handshake { .. }
            | ClientError::Stalled { .. }
            | ClientError::Transfer { .. } => true,
            ClientError::Refused { status, .. } => {
                let passing = [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY];
                status.is_server_error() || passing.contains(status)
            }
            _ => false,
        }
    }
}

/// Makes foreign text fit for one line of an error: cut, and without control characters.
pub(super) fn cut(text: &str) -> String {
    let clean = |character: char| if character.is_control() { ' ' } else { character };
    let mut shown: String = text.trim().chars().take(MAX_SHOWN).map(clean).collect();
    if text.trim().chars().nth(MAX_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}
