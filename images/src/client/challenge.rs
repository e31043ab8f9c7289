//! The `WWW-Authenticate` challenge and the token that answers it (RFC 9110, 11.6.1; distribution's token specification).
//!
//! Parses and writes text only; the client does the asking.

use hyper::header::{HeaderMap, WWW_AUTHENTICATE};
use serde::Deserialize;

/// Longest challenge and longest token that are looked at, in bytes.
const MAX_LENGTH: usize = 16 << 10;

/// How a registry wants to be asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// With a token.
    Bearer(Bearer),
    /// With user and password.
    Basic,
}

/// Where to get a token, and for what.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bearer {
    pub(super) realm: String,
    service: Option<String>,
    scope: Option<String>,
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
}

/// Finds the challenge to answer among an answer's headers: Bearer with a realm before Basic.
pub(super) fn parse(headers: &HeaderMap) -> Option<Challenge> {
    let texts = || headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let scheme = |text: &str| text.split_whitespace().next().map(str::to_ascii_lowercase);
    let basic = || texts().any(|text| scheme(text).as_deref() == Some("basic")).then_some(Challenge::Basic);
    texts().find_map(bearer).map(Challenge::Bearer).or_else(basic)
}

fn bearer(header: &str) -> Option<Bearer> {
    let (scheme, rest) = header.trim_start().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") || header.len() > MAX_LENGTH {
        return None;
    }
    let (mut realm, mut service, mut scope) = (None, None, None);
    let mut rest = rest.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = value(after)?;
        match name.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value),
            "service" => service = Some(value),
            "scope" => scope = Some(value),
            _ => {}
        }
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    Some(Bearer { realm: realm?, service, scope })
}

/// Reads a token or a quoted string with its backslash escapes (RFC 9110, 5.6.4); returns what follows it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(',').unwrap_or(text.len());
        return Some((text[..end].trim().to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &quoted[index + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

impl Bearer {
    /// Adds service and scope to the token server's path; without a scope, pulling the repository is meant.
    pub(super) fn add_query(&self, path: &mut String, repository: &str) {
        let mut joint = if path.contains('?') { '&' } else { '?' };
        for (name, value) in self.parameters(repository) {
            path.push(joint);
            push_pair(path, name, &value);
            joint = '&';
        }
    }

    /// Returns the form that trades a refresh token for an access token (distribution's OAuth2 specification).
    pub(super) fn form(&self, repository: &str, refresh_token: &str) -> String {
        let own = [("grant_type", "refresh_token"), ("client_id", "skeg"), ("refresh_token", refresh_token)];
        let own = own.map(|(name, value)| (name, value.to_owned()));
        own.into_iter().chain(self.parameters(repository)).fold(String::new(), |mut form, (name, value)| {
            form.push_str(if form.is_empty() { "" } else { "&" });
            push_pair(&mut form, name, &value);
            form
        })
    }

    fn parameters(&self, repository: &str) -> impl Iterator<Item = (&'static str, String)> {
        let scope = self.scope.clone().unwrap_or_else(|| format!("repository:{repository}:pull"));
        self.service.clone().map(|service| ("service", service)).into_iter().chain([("scope", scope)])
    }
}

fn push_pair(text: &mut String, name: &str, value: &str) {
    text.push_str(name);
    text.push('=');
    for byte in value.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => text.push(char::from(byte)),
            other => text.push_str(&format!("%{other:02X}")),
        }
    }
}

/// Takes the token out of the token server's JSON; one that cannot stand in a header is none.
pub(super) fn token(body: &[u8]) -> Option<String> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token = answer.token.filter(|token| !token.is_empty()).or(answer.access_token)?;
    (!token.is_empty() && token.len() <= MAX_LENGTH && token.bytes().all(|byte| byte.is_ascii_graphic()))
        .then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn docker_hubs_challenge_becomes_a_query() {
        let header = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull,push""#;
        let bearer = bearer(header).unwrap();
        assert_eq!(bearer.realm, "https://auth.docker.io/token");
        let mut path = "/token".to_owned();
        bearer.add_query(&mut path, "library/nginx");
        assert_eq!(path, "/token?service=registry.docker.io&scope=repository%3Alibrary%2Fnginx%3Apull%2Cpush");
    }

    #[test]
    fn a_challenge_without_realm_or_of_another_scheme_is_none() {
        for header in ["Bearer", "Bearer service=\"x\"", "Basic realm=\"x\"", "Bearer realm=\"unclosed"] {
            assert_eq!(bearer(header), None, "{header}");
        }
        assert_eq!(bearer("bearer realm=https://x/y, service=z").unwrap().service.as_deref(), Some("z"));
    }

    #[test]
    fn a_refresh_token_is_traded_by_a_form() {
        let bearer = bearer(r#"Bearer realm="https://a.azurecr.io/oauth2/token",service="a.azurecr.io""#).unwrap();
        assert_eq!(
            bearer.form("a/b", "re fresh"),
            "grant_type=refresh_token&client_id=skeg&refresh_token=re%20fresh&service=a.azurecr.io&scope=repository%3Aa%2Fb%3Apull"
        );
    }

    #[test]
    fn bearer_is_preferred_to_basic() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Negotiate".parse().unwrap());
        assert_eq!(parse(&headers), None);
        headers.append(WWW_AUTHENTICATE, "basic realm=\"x\"".parse().unwrap());
        assert_eq!(parse(&headers), Some(Challenge::Basic));
        headers.append(WWW_AUTHENTICATE, "Bearer realm=\"https://x/\"".parse().unwrap());
        assert!(matches!(parse(&headers), Some(Challenge::Bearer(_))));
    }

    #[test]
    fn a_token_that_would_break_the_header_is_refused() {
        assert_eq!(token(br#"{"token":"abc"}"#).as_deref(), Some("abc"));
        assert_eq!(token(br#"{"token":"","access_token":"abc"}"#).as_deref(), Some("abc"));
        assert_eq!(token(b"{\"token\":\"a\\r\\nX: y\"}"), None);
        assert_eq!(token(b"<html>"), None);
    }

    proptest! {
        #[test]
        fn any_header_is_parsed_without_panic(header in "(Bearer )?[ -~]{0,60}") {
            let _ = bearer(&header);
        }
    }
}
