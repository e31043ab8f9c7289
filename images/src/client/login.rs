//! Credentials: what Docker's `config.json` (and a Kubernetes Secret of type `kubernetes.io/dockerconfigjson`) holds,
//! and which of them are for which image.
//!
//! Owns that file's form and the rule of the best match. It starts no helper programs, and no secret of it is ever
//! shown: not by `Debug`, not in an error.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use thiserror::Error;

use crate::reference::Reference;

/// Largest `config.json` in bytes: that of a Kubernetes Secret.
pub const MAX_CONFIG: usize = 1 << 20;
/// Most entries of one file.
const MAX_ENTRIES: usize = 1000;
/// Names by which Docker Hub is known in such files.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// Something that proves to a registry who is asking.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A user with a password or access token.
    Password {
        /// Who; without a colon (RFC 7617).
        user: String,
        /// The secret.
        password: String,
    },
    /// A refresh token that the token server trades for access tokens (`identitytoken`, as `az acr login` writes it).
    IdentityToken(String),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.who())
    }
}

impl Login {
    /// Tells whose login this is, without the secret.
    pub(super) fn who(&self) -> String {
        match self {
            Login::Password { user, .. } => format!("user {user:?}"),
            Login::IdentityToken(_) => "the owner of an identity token".to_owned(),
        }
    }

    /// Returns the value of an `Authorization: Basic` header (RFC 7617); an identity token has none.
    pub(super) fn basic(&self) -> Option<String> {
        match self {
            Login::Password { user, password } => {
                Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
            }
            Login::IdentityToken(_) => None,
        }
    }
}

/// The logins of one or more files, each for a registry or a part of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Logins(Vec<(Scope, Login)>);

/// What a login is for: a host whose labels may have `*`, a port, and the beginning of the repository's path.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Scope {
    host: String,
    port: Option<u16>,
    path: String,
}

/// Why a `config.json` gives no logins. Holds the entry's name, never its content.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LoginError {
    /// Not JSON of the right form; the parser's words could quote a secret.
    #[error("it is no docker config.json with an object \"auths\" (line {line}, column {column})")]
    Json {
        /// Line of the fault.
        line: usize,
        /// Column of the fault.
        column: usize,
    },
    /// Too large.
    #[error("it has {0} bytes, {MAX_CONFIG} are allowed")]
    TooLarge(usize),
    /// Too many entries.
    #[error("it has {0} entries in \"auths\", {MAX_ENTRIES} are allowed")]
    TooMany(usize),
    /// It leaves the secrets to a helper program.
    #[error(
        "it leaves credentials to the helper program {0:?} (credsStore or credHelpers), which is not run here: \
         write them into \"auths\""
    )]
    Helper(String),
    /// An entry's name is no registry.
    #[error("\"auths\" has {0:?}, which is no registry of the form host[:port][/path]")]
    Scope(String),
    /// An entry without a usable secret.
    #[error("\"auths\" has {entry:?}, but {problem}")]
    Entry {
        /// The entry's name.
        entry: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    creds_store: Option<String>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

impl Logins {
    /// Reads a `config.json` (Docker CLI, "Credentials" of its configuration files).
    pub fn parse(json: &[u8]) -> Result<Logins, LoginError> {
        if json.len() > MAX_CONFIG {
            return Err(LoginError::TooLarge(json.len()));
        }
        let file: File = serde_json::from_slice(json)
            .map_err(|error| LoginError::Json { line: error.line(), column: error.column() })?;
        let helper = file.creds_store.filter(|name| !name.is_empty()).or(file.cred_helpers.into_values().next());
        if let Some(helper) = helper {
            return Err(LoginError::Helper(shown(&helper)));
        }
        if file.auths.len() > MAX_ENTRIES {
            return Err(LoginError::TooMany(file.auths.len()));
        }
        let login = |(name, entry): (String, Entry)| {
            let scope = Scope::parse(&name).ok_or_else(|| LoginError::Scope(shown(&name)))?;
            let login = entry.login().map_err(|problem| LoginError::Entry { entry: shown(&name), problem })?;
            Ok((scope, login))
        };
        let mut logins = Logins(file.auths.into_iter().map(login).collect::<Result<_, _>>()?);
        logins.sort();
        Ok(logins)
    }

    /// Adds further logins; the same scope may have several, which are tried in the order in which they were added.
    pub fn extend(&mut self, others: Logins) {
        self.0.extend(others.0);
        self.sort();
    }

    /// Lists the logins for an image, the best match first: as the kubelet does, by the longest scope.
    ///
    /// A path matches whole components: `host/team` is for `host/team/web`, and not for `host/teammates/web`.
    pub fn matching(&self, reference: &Reference) -> Vec<Login> {
        let hub = DOCKER_HUB.contains(&reference.registry());
        let (host, port) = split(reference.registry());
        let fits = |scope: &Scope| {
            let same_host = match hub {
                true => DOCKER_HUB.contains(&scope.host.as_str()),
                false => scope.port == port && is_host(&scope.host, host),
            };
            let below = reference.repository().strip_prefix(scope.path.as_str());
            same_host && below.is_some_and(|rest| scope.path.is_empty() || rest.is_empty() || rest.starts_with('/'))
        };
        self.0.iter().filter(|(scope, _)| fits(scope)).map(|(_, login)| login.clone()).collect()
    }

    fn sort(&mut self) {
        // The longest path first, then the host with the fewest wildcards; stable, so that equals keep their order.
        self.0.sort_by_key(|(scope, _)| (std::cmp::Reverse(scope.path.len()), scope.host.matches('*').count()));
    }
}

impl Entry {
    fn login(self) -> Result<Login, &'static str> {
        if let Some(token) = self.identitytoken.filter(|token| !token.is_empty()) {
            return Ok(Login::IdentityToken(token));
        }
        let pair = match (self.auth.filter(|auth| !auth.is_empty()), self.username, self.password) {
            (Some(auth), ..) => {
                let bytes = STANDARD.decode(auth.trim()).map_err(|_| "its \"auth\" is not base64")?;
                let text = String::from_utf8(bytes).map_err(|_| "its \"auth\" is not text")?;
                // Docker pads with NUL bytes.
                let (user, password) = text.split_once(':').ok_or("its \"auth\" is not base64 of user:password")?;
                (user.to_owned(), password.trim_end_matches('\0').to_owned())
            }
            (None, Some(user), Some(password)) => (user, password),
            _ => return Err("it has neither \"auth\" nor \"username\" and \"password\" nor \"identitytoken\""),
        };
        match pair {
            (user, _) if user.is_empty() || user.contains(':') => Err("its user name is empty or has a colon"),
            (user, password) => Ok(Login::Password { user, password }),
        }
    }
}

impl Scope {
    /// Reads `[https://]host[:port][/v1/|/v2/][path]`.
    fn parse(text: &str) -> Option<Scope> {
        let text = text.trim_start_matches("https://").trim_start_matches("http://");
        let (authority, path) = text.split_once('/').unwrap_or((text, ""));
        let (host, port) = split(authority);
        let bare = host.replace('*', "x");
        if !crate::reference::is_host(&authority.replace('*', "x")) || bare.is_empty() {
            return None;
        }
        // Docker Hub's own entry is `https://index.docker.io/v1/`.
        let path = ["v1", "v2"].iter().find_map(|version| path.strip_prefix(version)).unwrap_or(path);
        Some(Scope { host: host.to_owned(), port, path: path.trim_matches('/').to_owned() })
    }
}

/// Splits `host[:port]`; the brackets of an IPv6 address stay.
fn split(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

/// Matches a host label by label; `*` stands for any part of one label.
fn is_host(pattern: &str, host: &str) -> bool {
    let (wanted, there): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    wanted.len() == there.len() && wanted.iter().zip(&there).all(|(pattern, label)| is_label(pattern, label))
}

fn is_label(pattern: &str, label: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == label };
    let Some(label) = label.strip_prefix(head) else { return false };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut label) = label.strip_suffix(tail) else { return false };
    middle.split('*').all(|part| match label.find(part) {
        Some(at) => {
            label = &label[at + part.len()..];
            true
        }
        None => false,
    })
}

fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn users(json: &str, image: &str) -> Vec<String> {
        let logins = Logins::parse(json.as_bytes()).unwrap().matching(&image.parse().unwrap());
        let user = |login| match login {
            Login::Password { user, password } => {
                assert_eq!(password, "secret");
                user
            }
            Login::IdentityToken(token) => token,
        };
        logins.into_iter().map(user).collect()
    }

    /// A file whose entries have their own name as the user's.
    fn file(names: &[&str]) -> String {
        let entry = |name: &&str| {
            let user = name.replace([':', '/'], "-");
            ((*name).to_owned(), serde_json::json!({"auth": STANDARD.encode(format!("{user}:secret"))}))
        };
        serde_json::json!({"auths": names.iter().map(entry).collect::<serde_json::Map<_, _>>()}).to_string()
    }

    #[test]
    fn every_form_of_an_entry_is_read() {
        let json = r#"{"auths": {
            "a.example": {"auth": "dXNlcjpzZWNyZXQAAA=="},
            "b.example": {"username": "user", "password": "secret", "email": "x@y"},
            "c.example": {"auth": "MDA6", "identitytoken": "refresh"}}, "HttpHeaders": {}, "credsStore": ""}"#;
        assert_eq!(users(json, "a.example/x"), ["user"]);
        assert_eq!(users(json, "b.example/x"), ["user"]);
        assert_eq!(users(json, "c.example/x"), ["refresh"]);
        assert!(users(json, "d.example/x").is_empty());
    }

    #[test]
    fn the_longest_scope_comes_first() {
        let json =
            file(&["host.example", "host.example/team", "host.example/team/web", "host.example/other", "*.example"]);
        let found = users(&json, "host.example/team/web/front:1");
        assert_eq!(found, ["host.example-team-web", "host.example-team", "host.example", "*.example"]);
        assert_eq!(users(&json, "host.example/teammates/web"), ["host.example", "*.example"]);
        assert_eq!(users(&json, "two.labels.example/x"), Vec::<String>::new());
    }

    #[test]
    fn ports_and_docker_hubs_names_are_told_apart() {
        let json = file(&["https://index.docker.io/v1/", "host:5000", "host.example"]);
        assert_eq!(users(&json, "nginx"), ["https---index.docker.io-v1-"]);
        assert_eq!(users(&json, "docker.io/bitnami/redis"), ["https---index.docker.io-v1-"]);
        assert_eq!(users(&json, "host:5000/x"), ["host-5000"]);
        assert!(users(&json, "host:5001/x").is_empty());
        assert!(users(&json, "host.example:5000/x").is_empty());
    }

    #[test]
    fn wildcards_stand_for_parts_of_one_label() {
        for (pattern, host, fits) in [
            ("*.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.eu-west-1.amazonaws.com", true),
            ("*.io", "ghcr.io", true),
            ("*.io", "a.ghcr.io", false),
            ("a*b*c.io", "a1b2c.io", true),
            ("a*b*c.io", "a1c.io", false),
            ("aa*a.io", "aa.io", false),
        ] {
            assert_eq!(is_host(pattern, host), fits, "{pattern} {host}");
        }
    }

    #[test]
    fn useless_files_are_named_without_their_secrets() {
        for (json, part) in [
            (r#"{"credsStore": "desktop"}"#, "helper program \"desktop\""),
            (r#"{"credHelpers": {"gcr.io": "gcloud"}}"#, "helper program \"gcloud\""),
            (r#"{"auths": {"a.io": {}}}"#, "\"a.io\", but it has neither"),
            (r#"{"auths": {"a.io": {"auth": "hush!"}}}"#, "not base64"),
            (r#"{"auths": {"a.io": {"auth": "aHVzaA=="}}}"#, "user:password"),
            (r#"{"auths": {"a b": {"auth": "dTpwCg=="}}}"#, "\"a b\", which is no registry"),
            (r#"{"auths": {"a.io": {"auth": 7, "password": "hush"}}}"#, "line 1, column 29"),
            ("hush", "line 1"),
        ] {
            let error = Logins::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("hush"), "{error}");
        }
        let many: Vec<_> = (0..=MAX_ENTRIES).map(|number| format!("host{number}.io")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(Logins::parse(file(&many).as_bytes()), Err(LoginError::TooMany(1001)));
    }

    #[test]
    fn debug_shows_no_secret() {
        let logins = Logins::parse(br#"{"auths": {"a.io": {"auth": "dXNlcjpzZWNyZXQ="}}}"#).unwrap();
        let shown = format!("{logins:?}");
        assert!(shown.contains("user") && !shown.contains("secret"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_scope_and_host_are_matched_without_panic(scope in "[a-z*.:/\\[\\]0-9]{0,30}", host in "[a-z.*]{0,20}") {
            if let Some(scope) = Scope::parse(&scope) {
                let _ = is_host(&scope.host, &host);
            }
        }
    }
}
