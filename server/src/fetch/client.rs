//! HTTP to a source that is trusted with nothing: bounded redirects, each checked; credentials for one origin
//! only; deadlines on every phase; retries in this one place.

use std::{net::SocketAddr, time::Duration};

use candela_wire::config::ModelConfig;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::{Response, redirect::Policy};
use tracing::warn;
use url::Url;

use super::{
    FetchError, Patience,
    source::{Location, Source, check_url, is_metadata, redacted},
};
use crate::exit::Chain;

/// A bearer token and the only origin that may see it.
pub(super) struct Credentials {
    origin: url::Origin,
    bearer: HeaderValue,
}

impl Credentials {
    /// Reads the file that the model names.
    pub(super) fn read(model: &ModelConfig, source: &Source, hub: &str) -> Result<Option<Self>, FetchError> {
        let Some(path) = &model.credentials_file else { return Ok(None) };
        let invalid = |why: String| FetchError::Config(format!("`credentialsFile` `{path}`: {why}"));
        // The operator mounts one key of the Secret, as an optional file: it is absent where the key is.
        let no_key = || {
            FetchError::Unauthorized(
                "the Secret of `credentialsRef` has no such `key`, or nothing in it: correct `key`, or \
                 put the token there"
                    .to_owned(),
            )
        };
        let token = match std::fs::read_to_string(path) {
            Ok(token) => token,
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Err(no_key()),
            Err(err) => return Err(invalid(err.to_string())),
        };
        let token = token.trim();
        if token.is_empty() {
            return Err(no_key());
        }
        let mut bearer = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| invalid("holds characters that no token has".to_owned()))?;
        bearer.set_sensitive(true);
        let origin = match &source.location {
            Location::HttpFile(url) | Location::HttpFolder(url) => url.origin(),
            _ => hub_url(hub)?.origin(),
        };
        Ok(Some(Self { origin, bearer }))
    }
}

pub(super) fn hub_url(hub: &str) -> Result<Url, FetchError> {
    let invalid = |why: &str| FetchError::Config(format!("`HF_ENDPOINT` {why}"));
    let url = Url::parse(&format!("{}/", hub.trim_end_matches('/'))).map_err(|_| invalid("is not a URL"))?;
    check_url(&url).map_err(invalid)?;
    Ok(url)
}

/// One source's client.
pub(super) struct Client {
    http: reqwest::Client,
    credentials: Option<Credentials>,
    pub(super) patience: Patience,
}

/// An answer and what the hops before it said.
pub(super) struct Answer {
    pub(super) response: Response,
    /// Headers of the first hop: a hub describes a file there and redirects to where it lies.
    pub(super) first: HeaderMap,
}

/// One attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt may do better, not before the given time.
    Passing {
        what: String,
        not_before: Option<Duration>,
    },
    Final(FetchError),
}

impl Failure {
    pub(super) fn passing(what: impl Into<String>) -> Self {
        Self::Passing { what: what.into(), not_before: None }
    }
}

impl From<FetchError> for Failure {
    fn from(err: FetchError) -> Self {
        Self::Final(err)
    }
}

const MAX_REDIRECTS: usize = 5;

impl Client {
    pub(super) fn new(credentials: Option<Credentials>, patience: Patience) -> Result<Self, FetchError> {
        // Another part of the process may have chosen it already; there is one provider in the build.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("candela-server/", env!("CARGO_PKG_VERSION")))
                .redirect(Policy::none())
                .connect_timeout(patience.connect)
                .read_timeout(patience.read)
                .dns_resolver(NoMetadata)
        };
        let http = builder()
            .build()
            // An image without CA certificates can still fetch over plain http.
            .or_else(|_| builder().tls_certs_only([]).build())
            .map_err(|err| FetchError::Failed(format!("cannot set up HTTP: {}", Chain(&err))))?;
        Ok(Self { http, credentials, patience })
    }

    /// One attempt, following redirects.
    pub(super) async fn try_once(
        &self,
        method: Method,
        url: &Url,
        extra: &HeaderMap,
    ) -> Result<Answer, Failure> {
        let mut url = url.clone();
        let mut first = None;
        for _ in 0..=MAX_REDIRECTS {
            check_url(&url)
                .map_err(|why| FetchError::Failed(format!("`{}` {why}", redacted(url.as_str()))))?;
            let mut request = self.http.request(method.clone(), url.clone()).headers(extra.clone());
            if let Some(credentials) = self.credentials.as_ref().filter(|its| its.origin == url.origin()) {
                request = request.header(header::AUTHORIZATION, credentials.bearer.clone());
            }
            let response = request.send().await.map_err(|err| {
                // The URL may hold a signature; reqwest would print it.
                Failure::passing(format!("{}: {}", redacted(url.as_str()), Chain(&err.without_url())))
            })?;
            let headers = response.headers().clone();
            let target =
                response.status().is_redirection().then(|| headers.get(header::LOCATION).cloned()).flatten();
            let first = &*first.get_or_insert(headers);
            let Some(target) = target.filter(|_| method != Method::HEAD || !described(first)) else {
                return Ok(Answer { first: first.clone(), response });
            };
            let next = target.to_str().ok().and_then(|target| url.join(target).ok());
            let next = next.ok_or_else(|| {
                FetchError::Failed(format!("`{}` redirects to what is no URL", redacted(url.as_str())))
            })?;
            if url.scheme() == "https" && next.scheme() != "https" {
                let message =
                    format!("`{}` redirects from https to {}", redacted(url.as_str()), next.scheme());
                return Err(FetchError::Failed(message).into());
            }
            url = next;
        }
        Err(FetchError::Failed(format!(
            "more than {MAX_REDIRECTS} redirects, at `{}`",
            redacted(url.as_str())
        ))
        .into())
    }

    /// A small document, with retries. `None` = 404.
    pub(super) async fn document(
        &self,
        url: &Url,
        limit_bytes: usize,
    ) -> Result<Option<Vec<u8>>, FetchError> {
        let attempt = async || {
            let answer = self.try_once(Method::GET, url, &HeaderMap::new()).await?;
            if answer.response.status() == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            let mut response = refuse_errors(url, answer)?.response;
            let mut body = Vec::new();
            loop {
                let broken = |err: reqwest::Error| Failure::passing(Chain(&err.without_url()).to_string());
                let Some(piece) = response.chunk().await.map_err(broken)? else { return Ok(Some(body)) };
                if body.len() + piece.len() > limit_bytes {
                    let message = format!("`{}` is larger than {limit_bytes} bytes", redacted(url.as_str()));
                    return Err(FetchError::Unsupported(message).into());
                }
                body.extend_from_slice(&piece);
            }
        };
        let mut retries = Retries::new(self.patience);
        loop {
            match attempt().await {
                Ok(body) => return Ok(body),
                Err(failure) => retries.wait(failure).await?,
            }
        }
    }

    /// The head of a file, with retries: `Ok(None)` = 404.
    pub(super) async fn head(&self, url: &Url) -> Result<Option<Answer>, FetchError> {
        let mut retries = Retries::new(self.patience);
        loop {
            let failure = match self.try_once(Method::HEAD, url, &HeaderMap::new()).await {
                // A hub that describes a file has said everything: what the place of its bytes thinks of HEAD is no
                // answer about the file.
                Ok(answer) if described(&answer.first) => return Ok(Some(answer)),
                Ok(answer) if answer.response.status() == StatusCode::NOT_FOUND => return Ok(None),
                Ok(answer) => match refuse_errors(url, answer) {
                    Ok(answer) => return Ok(Some(answer)),
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            };
            retries.wait(failure).await?;
        }
    }
}

/// Whether a first hop says the size and digest of a file that lies elsewhere.
fn described(first: &HeaderMap) -> bool {
    first.contains_key("x-linked-etag") && first.contains_key("x-linked-size")
}

/// Sorts statuses into "there", "never" and "not now".
pub(super) fn refuse_errors(url: &Url, answer: Answer) -> Result<Answer, Failure> {
    let status = answer.response.status();
    let place = redacted(url.as_str());
    match status {
        _ if status.is_success() => Ok(answer),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let said = hub_message(&answer.first);
            let message = format!(
                "`{place}` answered {status}{said}: check the name (a hub answers so for what does not exist, too), or \
                 give a token that may read it in `credentialsRef` (and accept the model's terms, if it is gated)"
            );
            Err(FetchError::Unauthorized(message).into())
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            let said = hub_message(&answer.first);
            Err(FetchError::NotFound(format!(
                "`{place}` answered {status}{said}: check `uri` and `revision`"
            ))
            .into())
        }
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            Err(FetchError::Method(format!("`{place}` answered {status}")).into())
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Err(passing(&place, &answer)),
        _ if status.is_server_error() => Err(passing(&place, &answer)),
        _ => Err(FetchError::Failed(format!("`{place}` answered {status}")).into()),
    }
}

fn passing(place: &str, answer: &Answer) -> Failure {
    let wait = answer.response.headers().get(header::RETRY_AFTER);
    let seconds = wait.and_then(|wait| wait.to_str().ok()?.trim().parse::<u64>().ok());
    let what = format!("`{place}` answered {}", answer.response.status());
    Failure::Passing { what, not_before: seconds.map(|seconds| Duration::from_secs(seconds.min(120))) }
}

/// The hub's own words, such as `GatedRepo` or `RevisionNotFound`.
fn hub_message(headers: &HeaderMap) -> String {
    let code = headers.get("x-error-code").and_then(|code| code.to_str().ok());
    code.map(|code| format!(" ({})", code.chars().take(60).collect::<String>())).unwrap_or_default()
}

/// Counts failures in a row and waits between them.
pub(super) struct Retries {
    patience: Patience,
    failures: u32,
}

impl Retries {
    pub(super) fn new(patience: Patience) -> Self {
        Self { patience, failures: 0 }
    }

    /// Bytes were gained: what failed before does not count any more.
    pub(super) fn gained(&mut self) {
        self.failures = 0;
    }

    /// Waits, or gives up.
    pub(super) async fn wait(&mut self, failure: Failure) -> Result<(), FetchError> {
        let (what, not_before) = match failure {
            Failure::Final(err) => return Err(err),
            Failure::Passing { what, not_before } => (what, not_before),
        };
        self.failures += 1;
        if self.failures >= self.patience.attempts {
            return Err(FetchError::Failed(format!(
                "{what}; gave up after {} attempts: check `uri`, and that pods reach it (DNS, proxy, egress rules)",
                self.failures
            )));
        }
        let doubled = self.patience.backoff.saturating_mul(1 << (self.failures - 1).min(16));
        // Many pods may have lost the same source at once.
        let spread = doubled.min(self.patience.backoff_max).mul_f64(rand::random_range(0.5..1.0));
        let wait = not_before.map_or(spread, |not_before| not_before.max(spread));
        warn!(failure = %what, attempt = self.failures, ?wait, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// The system's resolver, less the addresses where clouds keep credentials.
struct NoMetadata;

impl reqwest::dns::Resolve for NoMetadata {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let host = name.as_str().to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found.filter(|address| !is_metadata(address.ip())).collect();
            if allowed.is_empty() {
                return Err(format!("`{host}` has no address that may be called").into());
            }
            Ok(Box::new(allowed.into_iter()) as reqwest::dns::Addrs)
        })
    }
}
