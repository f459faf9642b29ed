//! A hub for tests: what huggingface.co answers to its own client, with the faults that networks have.
//! Large files are redirected to a second port, which stands for the content network.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header},
    response::IntoResponse,
    routing::any,
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

/// Bearer token that opens repositories of the organisation `gated`.
pub(crate) const TOKEN: &str = "hub-test-token";

/// One repository, with one commit.
#[derive(Clone, Default)]
pub(crate) struct Repo {
    pub(crate) files: BTreeMap<String, Bytes>,
}

impl Repo {
    /// As git would name it: 40 hex digits that follow from the content.
    pub(crate) fn commit(&self) -> String {
        let mut hash = Sha256::new();
        for (name, bytes) in &self.files {
            hash.update(name);
            hash.update(bytes);
        }
        hex::encode(&hash.finalize()[..20])
    }
}

/// What the content network does to one request; the default is to serve it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Break the connection off after so many bytes of body.
    CutAfter(usize),
    /// Send so many bytes, then nothing more, connection open.
    StallAfter(usize),
    Status(u16),
    /// Flip a bit of the first byte.
    Corrupt,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) content_network: bool,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) authorized: bool,
    pub(crate) range: Option<String>,
}

#[derive(Default)]
struct Shared {
    repos: BTreeMap<String, Repo>,
    faults: VecDeque<Fault>,
    seen: Vec<Seen>,
}

/// Both listeners; they end with the runtime.
#[derive(Clone)]
pub(crate) struct Hub {
    shared: Arc<Mutex<Shared>>,
    pub(crate) endpoint: String,
    content_network: String,
}

impl Hub {
    pub(crate) async fn start(repos: BTreeMap<String, Repo>) -> io::Result<Self> {
        let api = TcpListener::bind("127.0.0.1:0").await?;
        let content = TcpListener::bind("127.0.0.1:0").await?;
        let hub = Self {
            shared: Arc::new(Mutex::new(Shared { repos, ..Shared::default() })),
            endpoint: format!("http://{}", api.local_addr()?),
            // Another name as well as another port, as in the wild.
            content_network: format!("http://localhost:{}", content.local_addr()?.port()),
        };
        let serve =
            |listener, handler: Router| tokio::spawn(async move { axum::serve(listener, handler).await });
        serve(api, Router::new().fallback(any(answer_api)).with_state(hub.clone()));
        serve(content, Router::new().fallback(any(answer_content)).with_state(hub.clone()));
        Ok(hub)
    }

    /// Each folder `DIR/ORG/NAME` becomes a repository.
    pub(crate) async fn of_folder(dir: &Path) -> io::Result<Self> {
        let mut repos = BTreeMap::new();
        for org in std::fs::read_dir(dir)? {
            for repo in std::fs::read_dir(org?.path())? {
                let path = repo?.path();
                let name = path.strip_prefix(dir).map_err(io::Error::other)?.display().to_string();
                repos.insert(name, Repo { files: read_files(&path)? });
            }
        }
        Self::start(repos).await
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.shared().faults.push_back(fault);
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared().seen.clone()
    }

    /// Where the bytes of `path` of `repo` are, without asking the hub.
    pub(crate) fn content_url(&self, repo: &str, file: &str) -> String {
        format!("{}/{repo}/{file}", self.content_network)
    }

    fn shared(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.shared.lock().expect("no holder of this lock panics")
    }

    fn note(&self, request: &Request, content_network: bool) {
        let text =
            |name| request.headers().get(name).and_then(|v: &HeaderValue| v.to_str().ok()).map(str::to_owned);
        let seen = Seen {
            content_network,
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            authorized: request.headers().contains_key(header::AUTHORIZATION),
            range: text(header::RANGE),
        };
        self.shared().seen.push(seen);
    }
}

pub(crate) fn read_files(folder: &Path) -> io::Result<BTreeMap<String, Bytes>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().is_file() {
            files.insert(
                entry.file_name().to_string_lossy().into_owned(),
                std::fs::read(entry.path())?.into(),
            );
        }
    }
    Ok(files)
}

fn refuse(status: StatusCode, code: &'static str) -> Response<Body> {
    (status, [("x-error-code", code), ("x-error-message", code)], Json(json!({ "error": code })))
        .into_response()
}

async fn answer_api(State(hub): State<Hub>, request: Request) -> Response<Body> {
    hub.note(&request, false);
    let path = request.uri().path().replace("%2F", "/");
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts[..] {
        ["api", "models", org, name] => info(&hub, request.headers(), org, name, "main"),
        ["api", "models", org, name, "revision", revision] => {
            info(&hub, request.headers(), org, name, revision)
        }
        ["api", "models", org, name, "tree", revision] => tree(&hub, request.headers(), org, name, revision),
        [org, name, "resolve", revision, ref file @ ..] if !file.is_empty() => {
            resolve(&hub, &request, org, name, revision, &file.join("/"))
        }
        _ => refuse(StatusCode::NOT_FOUND, "EntryNotFound"),
    }
}

/// The repository at a revision, or why not: as the real hub, which says 401 for what may exist in private.
#[expect(clippy::result_large_err, reason = "a response is the error here, and this is a test double")]
fn open(
    hub: &Hub,
    headers: &HeaderMap,
    org: &str,
    name: &str,
    revision: &str,
) -> Result<Repo, Response<Body>> {
    let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if org == "gated" {
        match authorization {
            None => return Err(refuse(StatusCode::UNAUTHORIZED, "GatedRepo")),
            Some(given) if given != format!("Bearer {TOKEN}") => {
                return Err(refuse(StatusCode::FORBIDDEN, "GatedRepo"));
            }
            Some(_) => {}
        }
    }
    let repo = hub.shared().repos.get(&format!("{org}/{name}")).cloned();
    let repo = repo.ok_or_else(|| refuse(StatusCode::NOT_FOUND, "RepoNotFound"))?;
    if revision == "main" || revision == repo.commit() {
        return Ok(repo);
    }
    Err(refuse(StatusCode::NOT_FOUND, "RevisionNotFound"))
}

fn info(hub: &Hub, headers: &HeaderMap, org: &str, name: &str, revision: &str) -> Response<Body> {
    let repo = match open(hub, headers, org, name, revision) {
        Ok(repo) => repo,
        Err(refusal) => return refusal,
    };
    let siblings: Vec<_> = repo.files.keys().map(|name| json!({ "rfilename": name })).collect();
    Json(json!({
        "_id": "1", "id": format!("{org}/{name}"), "modelId": format!("{org}/{name}"), "sha": repo.commit(),
        "private": false, "gated": if org == "gated" { json!("auto") } else { json!(false) }, "disabled": false,
        "tags": [], "downloads": 0, "likes": 0, "siblings": siblings,
    }))
    .into_response()
}

fn tree(hub: &Hub, headers: &HeaderMap, org: &str, name: &str, revision: &str) -> Response<Body> {
    let repo = match open(hub, headers, org, name, revision) {
        Ok(repo) => repo,
        Err(refusal) => return refusal,
    };
    let file = |(name, bytes): (&String, &Bytes)| {
        let mut entry = json!({ "type": "file", "path": name, "size": bytes.len(), "oid": git_id(bytes) });
        if is_large(name) {
            let sha256 = hex::encode(Sha256::digest(bytes));
            entry["lfs"] = json!({ "oid": sha256, "size": bytes.len(), "pointerSize": 135 });
        }
        entry
    };
    Json(repo.files.iter().map(file).collect::<Vec<_>>()).into_response()
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

/// Stands for a git blob's SHA-1; clients only compare it.
fn git_id(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes)[..20])
}

fn resolve(
    hub: &Hub,
    request: &Request,
    org: &str,
    name: &str,
    revision: &str,
    file: &str,
) -> Response<Body> {
    let repo = match open(hub, request.headers(), org, name, revision) {
        Ok(repo) => repo,
        Err(refusal) => return refusal,
    };
    let Some(bytes) = repo.files.get(file) else { return refuse(StatusCode::NOT_FOUND, "EntryNotFound") };
    let mut response = if is_large(file) {
        let location = hub.content_url(&format!("{org}/{name}"), file) + "?signature=secret-signature";
        let size = bytes.len().to_string();
        let sha256 = format!("\"{}\"", hex::encode(Sha256::digest(bytes)));
        let headers = [("location", location), ("x-linked-size", size), ("x-linked-etag", sha256)];
        (StatusCode::FOUND, headers, "").into_response()
    } else {
        send(request, bytes, &format!("\"{}\"", git_id(bytes)), None)
    };
    let commit = HeaderValue::from_str(&repo.commit()).expect("hex digits are a header value");
    response.headers_mut().insert("x-repo-commit", commit);
    response
}

async fn answer_content(State(hub): State<Hub>, request: Request) -> Response<Body> {
    hub.note(&request, true);
    let path = request.uri().path().trim_start_matches('/').to_owned();
    // An object store behind signed URLs: no HEAD, and 403 for what is not there.
    let signed = request.uri().query() == Some("signed");
    if signed && request.method() == Method::HEAD {
        return refuse(StatusCode::FORBIDDEN, "SignatureDoesNotMatch");
    }
    let found = {
        let shared = hub.shared();
        let pair = path.match_indices('/').nth(1).map(|(at, _)| (&path[..at], &path[at + 1..]));
        pair.and_then(|(repo, file)| shared.repos.get(repo)?.files.get(file).cloned())
    };
    let missing = if signed { StatusCode::FORBIDDEN } else { StatusCode::NOT_FOUND };
    let Some(bytes) = found else { return refuse(missing, "NoSuchKey") };
    let fault = if request.method() == Method::GET { hub.shared().faults.pop_front() } else { None };
    // The content network counts ETags its own way, so that mixing them up with the hub's shows.
    let etag = format!("\"cdn-{}\"", git_id(&bytes));
    send(&request, &bytes, &etag, fault)
}

/// A file, whole or from an offset, with faults.
fn send(request: &Request, bytes: &Bytes, etag: &str, fault: Option<Fault>) -> Response<Body> {
    if let Some(Fault::Status(status)) = fault {
        return StatusCode::from_u16(status).expect("tests use real statuses").into_response();
    }
    let header = |name| request.headers().get(name).and_then(|v: &HeaderValue| v.to_str().ok());
    let same = header(header::IF_RANGE).is_none_or(|wanted| wanted == etag);
    let range = header(header::RANGE)
        .filter(|_| same)
        .and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let number = |text: &str| text.parse::<usize>().ok();
    let (status, start, end) = match range {
        None => (StatusCode::OK, 0, bytes.len()),
        Some((start, end)) => match number(start) {
            Some(start) if start < bytes.len() => {
                let end = number(end).map_or(bytes.len(), |end| bytes.len().min(end + 1));
                (StatusCode::PARTIAL_CONTENT, start, end)
            }
            _ => return StatusCode::RANGE_NOT_SATISFIABLE.into_response(),
        },
    };
    let mut part = bytes.slice(start..end);
    if matches!(fault, Some(Fault::Corrupt)) {
        let mut copy = part.to_vec();
        copy[0] ^= 1;
        part = copy.into();
    }
    let mut response = Response::builder()
        .status(status)
        .header(header::ETAG, etag)
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_LENGTH, part.len());
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {start}-{}/{}", end - 1, bytes.len());
        response = response.header(header::CONTENT_RANGE, range);
    }
    let body = match fault {
        _ if request.method() == Method::HEAD => Body::empty(),
        Some(Fault::CutAfter(n)) => {
            let sent = Ok(part.slice(..n.min(part.len())));
            let cut = async {
                // What comes before must leave first: the server writes when the body has nothing for it.
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
                let cut: io::Result<Bytes> = Err(io::ErrorKind::ConnectionReset.into());
                cut
            };
            Body::from_stream(stream::once(async { sent }).chain(stream::once(cut)))
        }
        Some(Fault::StallAfter(n)) => {
            let first: Result<Bytes, Infallible> = Ok(part.slice(..n.min(part.len())));
            Body::from_stream(stream::once(async { first }).chain(stream::pending()))
        }
        _ => Body::from(part),
    };
    response.body(body).expect("the parts above are valid")
}
