//! The Hugging Face hub protocol: a revision becomes a commit and a list of files; each file's digest is in the
//! headers of the first hop, its bytes behind a redirect.

use std::collections::BTreeSet;

use candela_wire::config::{Format, ModelConfig};
use serde::Deserialize;
use tracing::info;
use url::Url;

use super::{
    FetchError,
    client::{Client, hub_url},
    files::{MAX_DOCUMENT_BYTES, OPTIONAL, Plan, REQUIRED, RemoteFile, WEIGHTS, as_sha256, length, shards},
    source::relative,
};

#[derive(Deserialize)]
struct Revision {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

pub(super) async fn plan(
    client: &Client,
    hub: &str,
    repo: &str,
    revision: &str,
    file: Option<&str>,
    model: &ModelConfig,
) -> Result<Plan, FetchError> {
    let hub = hub_url(hub)?;
    let url =
        extend(&hub, ["api", "models"].into_iter().chain(repo.split('/')).chain(["revision", revision]));
    let not_found = || {
        FetchError::NotFound(format!(
            "`{repo}` at revision `{revision}` does not exist on {hub}: check `uri` and `revision`"
        ))
    };
    let answer = client.document(&url, MAX_DOCUMENT_BYTES).await?.ok_or_else(not_found)?;
    let listed: Revision = serde_json::from_slice(&answer)
        .map_err(|err| FetchError::Failed(format!("`{url}` did not answer as a hub does: {err}")))?;
    let commit = listed.sha;
    if commit.is_empty() || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(FetchError::Failed(format!("`{url}` names a commit that is none")));
    }
    info!(repo, revision, commit, "revision resolved");
    let names: BTreeSet<&str> = listed.siblings.iter().filter_map(|file| relative(&file.rfilename)).collect();
    let place = |name: &str| extend(&hub, repo.split('/').chain(["resolve", &commit]).chain(name.split('/')));
    let wanted = match wanted_gguf(&names, file, model.format, repo)? {
        Some(file) => vec![file],
        None => wanted_folder(client, &names, &place, repo).await?,
    };
    let mut files = Vec::new();
    for name in wanted {
        files.push(describe(client, &name, place(&name), &commit).await?);
    }
    Ok(Plan { files, resolved_revision: Some(commit) })
}

/// The one GGUF file to fetch, if that is what is asked for.
fn wanted_gguf(
    names: &BTreeSet<&str>,
    file: Option<&str>,
    format: Option<Format>,
    repo: &str,
) -> Result<Option<String>, FetchError> {
    let all: Vec<&str> = names.iter().copied().filter(|name| name.ends_with(".gguf")).collect();
    let list = || if all.is_empty() { "none".to_owned() } else { all.join(", ") };
    if let Some(file) = file {
        let missing =
            || FetchError::NotFound(format!("`{repo}` has no file `{file}`; GGUF files there: {}", list()));
        return if names.contains(file) { Ok(Some(file.to_owned())) } else { Err(missing()) };
    }
    let implied = format.is_none() && !names.contains("config.json") && !all.is_empty();
    if format != Some(Format::Gguf) && !implied {
        return Ok(None);
    }
    match all[..] {
        [only] => Ok(Some(only.to_owned())),
        [] => Err(FetchError::NotFound(format!("`{repo}` has no GGUF file, but `format` is Gguf"))),
        _ => Err(FetchError::Config(format!(
            "`{repo}` has several GGUF files: name one, as in hf://{repo}/FILE.gguf; there are {}",
            list()
        ))),
    }
}

async fn wanted_folder(
    client: &Client,
    names: &BTreeSet<&str>,
    place: &impl Fn(&str) -> Url,
    repo: &str,
) -> Result<Vec<String>, FetchError> {
    let mut wanted: BTreeSet<String> = REQUIRED.map(str::to_owned).into();
    let there = WEIGHTS.into_iter().find(|(single, index)| names.contains(single) || names.contains(index));
    let (single, index) = there.unwrap_or(WEIGHTS[0]);
    if names.contains(index) {
        let gone = || FetchError::Failed(format!("`{repo}` lists `{index}` but does not have it"));
        let document = client.document(&place(index), MAX_DOCUMENT_BYTES).await?.ok_or_else(gone)?;
        wanted.extend(shards(&document, index)?);
        wanted.insert(index.to_owned());
    } else {
        wanted.insert(single.to_owned());
    }
    if let Some(missing) = wanted.iter().find(|name| !names.contains(name.as_str())) {
        let message = format!(
            "`{repo}` has no `{missing}`: only repositories with weights in safetensors or `pytorch_model.bin` and a tokenizer.json, or with a GGUF file, can be served"
        );
        return Err(FetchError::NotFound(message));
    }
    wanted.extend(OPTIONAL.into_iter().filter(|name| names.contains(name)).map(str::to_owned));
    Ok(wanted.into_iter().collect())
}

async fn describe(client: &Client, name: &str, url: Url, commit: &str) -> Result<RemoteFile, FetchError> {
    let gone = || FetchError::NotFound(format!("the hub lists `{name}` but does not have it"));
    let head = client.head(&url).await?.ok_or_else(gone)?;
    if let Some(served) = head.said("x-repo-commit").filter(|served| *served != commit) {
        return Err(FetchError::Failed(format!("asked for commit {commit}, the hub serves {served}")));
    }
    // Large files are described by the hub, small ones (whose ETag is a git hash) by themselves.
    let linked_size = head.said("x-linked-size").and_then(|size| size.parse().ok());
    let linked_etag = head.said("x-linked-etag").map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
    Ok(RemoteFile {
        name: name.to_owned(),
        size_bytes: linked_size.or_else(|| length(head.response.headers())),
        sha256: linked_etag.and_then(as_sha256),
        url,
        optional: false,
    })
}

/// Adds path segments, each escaped: a revision such as `refs/pr/1` is one segment.
fn extend<'a>(base: &Url, segments: impl Iterator<Item = &'a str>) -> Url {
    let mut url = base.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(segments);
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_with_slashes_is_one_segment() {
        let base = Url::parse("http://hub:1/mirror/").unwrap();
        let url = extend(&base, ["api", "models", "o", "n", "revision", "refs/pr/1"].into_iter());
        assert_eq!(url.as_str(), "http://hub:1/mirror/api/models/o/n/revision/refs%2Fpr%2F1");
    }

    #[test]
    fn one_gguf_file_is_chosen_or_the_choice_is_listed() {
        let names = BTreeSet::from(["a.gguf", "b.gguf", "README.md"]);
        assert_eq!(wanted_gguf(&names, Some("b.gguf"), None, "o/n").unwrap().as_deref(), Some("b.gguf"));
        let several = wanted_gguf(&names, None, None, "o/n").unwrap_err().to_string();
        assert!(several.contains("a.gguf, b.gguf"), "{several}");
        assert!(wanted_gguf(&names, Some("c.gguf"), None, "o/n").is_err());
        let folder = BTreeSet::from(["a.gguf", "config.json"]);
        assert_eq!(wanted_gguf(&folder, None, None, "o/n").unwrap(), None);
        assert_eq!(wanted_gguf(&folder, None, Some(Format::Gguf), "o/n").unwrap().as_deref(), Some("a.gguf"));
    }
}
