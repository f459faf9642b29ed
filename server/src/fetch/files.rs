//! Which files a model consists of, and what is known of each before it comes.

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderMap, header};
use tracing::warn;
use url::Url;

use super::{
    FetchError,
    client::{Answer, Client},
    source::{redacted, relative},
};

/// Everything to fetch.
pub(super) struct Plan {
    pub(super) files: Vec<RemoteFile>,
    /// Commit, where the source has such.
    pub(super) resolved_revision: Option<String>,
}

/// One file at its source.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    /// Path below the model's folder.
    pub(super) name: String,
    pub(super) url: Url,
    pub(super) size_bytes: Option<u64>,
    /// Lower-case hex, if somebody vouches for it.
    pub(super) sha256: Option<String>,
    /// The model can do without it.
    pub(super) optional: bool,
}

/// What a folder must or may hold beside weights.
pub(super) const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];
pub(super) const OPTIONAL: [&str; 7] = [
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    // Of embedding models: which vectors are pooled, how, and what is done with them.
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
];
/// One file of weights, or the index that names several; the first that is there is taken.
pub(super) const WEIGHTS: [(&str, &str); 2] = [
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
];
/// Largest JSON document that is read into memory.
pub(super) const MAX_DOCUMENT_BYTES: usize = 32 << 20;
const SUMS: &str = "SHA256SUMS";

pub(super) async fn one_file(client: &Client, url: &Url) -> Result<Plan, FetchError> {
    let last = url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default();
    let plain = relative(last).filter(|name| !name.contains(['%', '/']));
    let name = plain.unwrap_or("model.gguf").to_owned();
    let mut sums = sums(client, url).await?;
    // Whoever wrote the sums knew the name as it is, not as a URL has to spell it.
    let real = percent_encoding::percent_decode_str(last).decode_utf8_lossy();
    if let Some(sum) = sums.get(&*real).cloned() {
        sums.insert(name.clone(), sum);
    }
    let file = describe(client, &sums, name, url.clone()).await?;
    let missing =
        || FetchError::NotFound(format!("`{}` does not exist: check `uri`", redacted(url.as_str())));
    Ok(Plan { files: vec![file.ok_or_else(missing)?], resolved_revision: None })
}

pub(super) async fn folder(client: &Client, base: &Url) -> Result<Plan, FetchError> {
    let sums = sums(client, base).await?;
    let weights = weights(client, &sums, base).await?;
    let required = REQUIRED.into_iter().map(str::to_owned).chain(weights);
    let mut files = Vec::new();
    for name in required {
        let url = beside(base, &name)?;
        let file = describe(client, &sums, name, url.clone()).await?;
        files.push(file.ok_or_else(|| {
            let place = redacted(url.as_str());
            FetchError::NotFound(format!("`{place}` does not exist: a model's folder must hold it"))
        })?);
    }
    for name in OPTIONAL {
        let file = describe(client, &sums, name.to_owned(), beside(base, name)?).await?;
        files.extend(file.map(|file| RemoteFile { optional: true, ..file }));
    }
    Ok(Plan { files, resolved_revision: None })
}

/// Names of the weight files. Without any, those of the first layout: their absence is then reported.
async fn weights(
    client: &Client,
    sums: &BTreeMap<String, String>,
    base: &Url,
) -> Result<BTreeSet<String>, FetchError> {
    for (single, index) in WEIGHTS {
        let document = optional_document(client, &beside(base, index)?, MAX_DOCUMENT_BYTES).await?;
        if let Some(document) = document {
            let mut names = shards(&document, index)?;
            names.insert(index.to_owned());
            return Ok(names);
        }
        if describe(client, sums, single.to_owned(), beside(base, single)?).await?.is_some() {
            return Ok(BTreeSet::from([single.to_owned()]));
        }
    }
    Ok(BTreeSet::from([WEIGHTS[0].0.to_owned()]))
}

/// `None` = it does not exist.
async fn describe(
    client: &Client,
    sums: &BTreeMap<String, String>,
    name: String,
    url: Url,
) -> Result<Option<RemoteFile>, FetchError> {
    let size_bytes = match client.head(&url).await {
        Ok(None) => return Ok(None),
        Ok(Some(answer)) => length(answer.response.headers()),
        // A signed URL is signed for GET only, and some servers know no HEAD: GET will tell.
        Err(FetchError::Unauthorized(_) | FetchError::Method(_)) => None,
        Err(err) => return Err(err),
    };
    let sha256 = sums.get(&name).cloned();
    Ok(Some(RemoteFile { size_bytes, sha256, name, url, optional: false }))
}

/// A document that may be missing. Object stores answer 403 for that to whom may not list; if the source really
/// refuses us, the files that must be there show it.
async fn optional_document(client: &Client, url: &Url, limit: usize) -> Result<Option<Vec<u8>>, FetchError> {
    match client.document(url, limit).await {
        Err(FetchError::Unauthorized(_)) => Ok(None),
        result => result,
    }
}

/// A file of the same folder; a query (a signature for the folder) goes along.
fn beside(base: &Url, name: &str) -> Result<Url, FetchError> {
    let invalid = |_| FetchError::Config(format!("`{}` has no place for `{name}`", redacted(base.as_str())));
    // As segments, each escaped: `%2e%2e` in a name would otherwise be `..` to whoever reads the address.
    let mut url = base.join(".").map_err(invalid)?;
    match url.path_segments_mut() {
        Ok(mut path) => path.pop_if_empty().extend(name.split('/')),
        Err(()) => return Err(invalid(url::ParseError::RelativeUrlWithCannotBeABaseBase)),
    };
    url.set_query(base.query());
    Ok(url)
}

/// `SHA256SUMS` beside the files, as `sha256sum` writes it.
async fn sums(client: &Client, base: &Url) -> Result<BTreeMap<String, String>, FetchError> {
    let url = beside(base, SUMS)?;
    let Some(text) = optional_document(client, &url, 1 << 20).await? else { return Ok(BTreeMap::new()) };
    Ok(parse_sums(&String::from_utf8_lossy(&text)).unwrap_or_else(|line| {
        // Many servers answer any address with a page. Nothing is vouched for then; `verification.sha256` still holds.
        let place = redacted(url.as_str());
        warn!(%place, line, "not `SHA256  NAME` as sha256sum writes it: the files are taken without it");
        BTreeMap::new()
    }))
}

fn parse_sums(text: &str) -> Result<BTreeMap<String, String>, usize> {
    let mut sums = BTreeMap::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        // The second space is `*` for files read as binary.
        let (digest, name) = line.split_once("  ").or_else(|| line.split_once(" *")).ok_or(at + 1)?;
        let digest = as_sha256(digest).ok_or(at + 1)?;
        let name = name.trim_end();
        sums.insert(name.strip_prefix("./").unwrap_or(name).to_owned(), digest);
    }
    Ok(sums)
}

/// 64 hex digits, lower-case; `None` for anything else.
pub(super) fn as_sha256(text: &str) -> Option<String> {
    let is_digest = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then(|| text.to_ascii_lowercase())
}

/// The files that the index called `name` names.
pub(super) fn shards(index: &[u8], name: &str) -> Result<BTreeSet<String>, FetchError> {
    let invalid = |what: &str| FetchError::Unsupported(format!("`{name}`: {what}"));
    let extension = if name == WEIGHTS[0].1 { ".safetensors" } else { ".bin" };
    // Only what is wanted of it: as JSON values, its bytes would take up to ninety times their room.
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index).map_err(|err| invalid(&err.to_string()))?;
    let mut names = BTreeSet::new();
    for name in index.weight_map.into_values() {
        // The server reads shards beside the index, nowhere else.
        if relative(&name).is_none() || name.contains('/') || !name.ends_with(extension) {
            return Err(invalid(&format!("names what is no file `*{extension}` of this folder")));
        }
        names.insert(name);
        if names.len() > 4096 {
            return Err(invalid("names more than 4096 files"));
        }
    }
    if names.is_empty() {
        return Err(invalid("`weight_map` is empty"));
    }
    Ok(names)
}

pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Answer {
    /// A header of the first hop, as text.
    pub(super) fn said(&self, name: &str) -> Option<&str> {
        self.first.get(name)?.to_str().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_cannot_lead_out_of_the_folder() {
        let of = |index: &str, name: &str| {
            shards(format!(r#"{{"weight_map": {{"a": {name}}}}}"#).as_bytes(), index)
        };
        let index = |name: &str| of(WEIGHTS[0].1, name);
        assert!(of(WEIGHTS[1].1, "\"m.bin\"").is_ok() && of(WEIGHTS[1].1, "\"m.safetensors\"").is_err());
        assert_eq!(index("\"m-1.safetensors\"").unwrap(), BTreeSet::from(["m-1.safetensors".to_owned()]));
        for bad in ["\"../m.safetensors\"", "\"/m.safetensors\"", "\"sub/m.safetensors\"", "\"m.bin\"", "7"] {
            assert!(index(bad).is_err(), "{bad}");
        }
        assert!(shards(b"{}", WEIGHTS[0].1).is_err());
        assert!(shards(b"{\"weight_map\": {}}", WEIGHTS[0].1).is_err());
    }

    #[test]
    fn a_name_is_a_name_and_never_a_way_up() {
        let base = Url::parse("https://h/a/b/?sig=1").unwrap();
        let beside = |name: &str| beside(&base, name).unwrap().to_string();
        assert_eq!(beside("m 1.safetensors"), "https://h/a/b/m%201.safetensors?sig=1");
        assert_eq!(beside("sub/m.safetensors"), "https://h/a/b/sub/m.safetensors?sig=1");
        assert_eq!(beside("%2e%2e/secret.safetensors"), "https://h/a/b/%252e%252e/secret.safetensors?sig=1");
        let file = Url::parse("https://h/a/m.gguf").unwrap();
        assert_eq!(super::beside(&file, SUMS).unwrap().as_str(), "https://h/a/SHA256SUMS");
    }

    #[test]
    fn sums_are_read_as_sha256sum_writes_them() {
        let a = "a".repeat(64);
        let text = format!("{a}  ./x y.bin\n{a} *b\n\n");
        let sums = parse_sums(&text).unwrap();
        assert_eq!(sums.keys().map(String::as_str).collect::<Vec<_>>(), ["b", "x y.bin"]);
        assert_eq!(parse_sums("hello\n"), Err(1));
    }
}
