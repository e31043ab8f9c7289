//! The answer to a 401: a token from the server that the registry names, or the password itself.
//!
//! Owns what is sent to whom: credentials go to the registry itself (Basic) and to the token server that it names
//! (Bearer), over TLS unless the operator has allowed plain HTTP for this registry, and to nobody else. Flows:
//! distribution's token and OAuth2 specifications.

use hyper::header::HeaderMap;
use hyper::{Method, Response, StatusCode};

use super::challenge::{self, Bearer, Challenge};
use super::endpoint::Target;
use super::{Ask, Client, ClientError, Incoming, Login, error, lock};

const MAX_TOKEN_ANSWER: u64 = 64 << 10;
const MAX_KEPT: usize = 256;

impl Client {
    /// Gets the `Authorization` header that answers a challenge and remembers it for the repository.
    ///
    /// `None` when there is nothing to answer with: no challenge that is known, or no credentials for it.
    pub(super) async fn authorise(&self, ask: &Ask<'_>, headers: &HeaderMap) -> Result<Option<String>, ClientError> {
        let header = match challenge::parse(headers) {
            Some(Challenge::Bearer(bearer)) => format!("Bearer {}", self.fetch_token(ask, bearer).await?),
            Some(Challenge::Basic) => match self.0.login.as_ref().and_then(Login::basic) {
                Some(basic) => basic,
                None => return Ok(None),
            },
            None => return Ok(None),
        };
        let mut kept = lock(&self.0.authorizations);
        if kept.len() >= MAX_KEPT {
            kept.clear();
        }
        kept.insert(ask.repository.to_owned(), header.clone());
        Ok(Some(header))
    }

    /// Asks the token server that a 401 named for a token: with the login, or else an anonymous one.
    async fn fetch_token(&self, ask: &Ask<'_>, challenge: Bearer) -> Result<String, ClientError> {
        let bad = |problem: &'static str| ClientError::Token {
            asked: ask.asked.clone(),
            realm: error::cut(&challenge.realm),
            problem,
        };
        let mut target = Target::parse(&challenge.realm).ok_or_else(|| bad("its address is not an http(s) URL"))?;
        if !target.tls && self.0.endpoint.tls {
            return Err(bad("it is plain http, while the registry is https"));
        }
        let asked = self.asked(ask.repository, format!("a token from {}", target.host));
        let mut token_ask = Ask { body: None, ..Ask::get(ask.repository, asked) };
        match &self.0.login {
            Some(Login::IdentityToken(token)) => {
                token_ask.method = Method::POST;
                token_ask.body = Some(challenge.form(ask.repository, token));
            }
            _ => challenge.add_query(&mut target.path, ask.repository),
        }
        let basic = self.0.login.as_ref().and_then(Login::basic);
        let response = self.send(&token_ask, &target, basic.as_deref()).await?;
        if !response.status().is_success() {
            return Err(self.refusal(&token_ask, response).await);
        }
        let body = self.collect(response.into_body(), MAX_TOKEN_ANSWER, &token_ask.asked).await?;
        challenge::token(&body).ok_or_else(|| bad("its answer has no usable token"))
    }

    /// Turns an answer that is no success into an error with what the registry says about it.
    pub(super) async fn refusal(&self, ask: &Ask<'_>, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        let seconds = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let body = self.first_words(ask, response.into_body()).await;
        let asked = ask.asked.clone();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let who = self.0.login.as_ref().map_or_else(|| "anybody without credentials".to_owned(), Login::who);
            return ClientError::Denied { asked, status, who, body };
        }
        ClientError::Refused { asked, status, body, retry_after: seconds.map(std::time::Duration::from_secs) }
    }
}
