//! `model.uri` as a closed set of places. Everything about a URI that can be refused is refused here.

use std::path::PathBuf;

use candela_wire::config::{Format, ModelConfig, PVC_DIR};
use url::Url;

use crate::Fatal;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) location: Location,
    served_name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// In the binary.
    Builtin,
    /// Mounted, or on this machine; nothing to fetch.
    Path(PathBuf),
    Hub {
        /// `org/name`.
        repo: String,
        revision: String,
        /// One file of it, where the URI names one.
        file: Option<String>,
    },
    HttpFile(Url),
    /// Ends with a slash.
    HttpFolder(Url),
}

impl Source {
    pub(crate) fn parse(model: &ModelConfig) -> Result<Self, Fatal> {
        let uri = model.uri.as_str();
        let refuse = |why: &str| Fatal::config(format!("`uri` `{}`: {why}", redacted(uri)));
        let (scheme, rest) = uri.split_once("://").ok_or_else(|| {
            refuse(
                "needs a scheme: builtin://demo, hf://org/name, http(s)://host/path, pvc://claim/path or file:///path",
            )
        })?;
        if model.revision.is_some() && scheme != "hf" {
            return Err(refuse("`revision` is for hf:// only; put it into the address"));
        }
        let location = match scheme {
            "builtin" if rest == "demo" => Location::Builtin,
            "builtin" => return Err(refuse("the only model in the image is builtin://demo")),
            "pvc" => {
                let path = relative(rest).ok_or_else(|| refuse("must be pvc://CLAIM/PATH, without `..`"))?;
                Location::Path(PathBuf::from(PVC_DIR).join(path))
            }
            "file" => {
                let path = rest.strip_prefix('/').and_then(relative);
                let path = path.ok_or_else(|| refuse("must be file:///PATH, without `..`"))?;
                Location::Path(PathBuf::from("/").join(path))
            }
            "hf" => {
                hub(rest, model).ok_or_else(|| refuse("must be hf://ORG/NAME or hf://ORG/NAME/FILE.gguf"))?
            }
            "http" | "https" => http(uri, model).map_err(refuse)?,
            _ => return Err(refuse("unknown scheme; use builtin, hf, http, https, pvc or file")),
        };
        Ok(Self { location, served_name: model.served_name.clone() })
    }

    /// Name of the model's folder under the models directory.
    pub(crate) fn folder_name(&self) -> String {
        candela_wire::config::folder_name(&self.served_name)
    }
}

/// A path of plain names below some folder; `None` if it could lead out of it.
pub(crate) fn relative(path: &str) -> Option<&str> {
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\\', '\0']);
    let trimmed = path.strip_suffix('/').unwrap_or(path);
    trimmed.split('/').all(plain).then_some(trimmed)
}

fn hub(rest: &str, model: &ModelConfig) -> Option<Location> {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let rest = relative(rest).filter(|rest| rest.chars().all(safe))?;
    let mut parts = rest.splitn(3, '/');
    let repo = format!("{}/{}", parts.next()?, parts.next()?);
    let file = parts.next().map(str::to_owned);
    if file.as_ref().is_some_and(|file| !file.ends_with(".gguf")) {
        return None;
    }
    let revision = model.revision.clone().unwrap_or_else(|| "main".to_owned());
    Some(Location::Hub { repo, revision, file })
}

fn http(uri: &str, model: &ModelConfig) -> Result<Location, &'static str> {
    let mut url = Url::parse(uri).map_err(|_| "is not a valid URL")?;
    check_url(&url)?;
    let is_file = url.path().to_ascii_lowercase().ends_with(".gguf");
    match (is_file, model.format) {
        (true, Some(Format::Safetensors)) => Err("names a GGUF file, but `format` is Safetensors"),
        (true, _) => Ok(Location::HttpFile(url)),
        (false, Some(Format::Gguf)) => Err("must end with .gguf when `format` is Gguf"),
        (false, _) => {
            if !url.path().ends_with('/') {
                let path = format!("{}/", url.path());
                url.set_path(&path);
            }
            Ok(Location::HttpFolder(url))
        }
    }
}

/// What no URL may be that we call, redirects included.
pub(crate) fn check_url(url: &Url) -> Result<(), &'static str> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must be http or https");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user name or password: use `credentialsRef`");
    }
    let Some(host) = url.host() else { return Err("has no host") };
    let refused = match host {
        url::Host::Domain(name) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            METADATA_NAMES.contains(&name.as_str())
        }
        url::Host::Ipv4(ip) => is_metadata(ip.into()),
        url::Host::Ipv6(ip) => is_metadata(ip.into()),
    };
    if refused { Err("points at an address where clouds keep credentials") } else { Ok(()) }
}

/// Names of metadata services, for sources behind a proxy, which resolves them out of our sight.
const METADATA_NAMES: [&str; 3] = ["metadata.google.internal", "metadata.goog", "instance-data"];

/// Addresses of cloud metadata services, where models never are: link-local ones, and those of Alibaba, Oracle, Azure
/// (WireServer), AWS and Google that are not; also as NAT64 (RFC 6052 and RFC 8215) spells them.
pub(crate) fn is_metadata(ip: std::net::IpAddr) -> bool {
    match ip.to_canonical() {
        std::net::IpAddr::V4(ip) => {
            ip.is_link_local()
                || ip.is_unspecified()
                || matches!(ip.octets(), [100, 100, 100, 200] | [192, 0, 0, 192] | [168, 63, 129, 16])
        }
        std::net::IpAddr::V6(ip) => {
            // AWS has several services in that block; Google's and Oracle's are one address each.
            let services = match ip.segments() {
                [0xfd00, 0x0ec2, ..] => true,
                found => {
                    found == [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254]
                        || found == [0xfd00, 0x00c1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]
                }
            };
            let embedded = match ip.segments() {
                [0x64, 0xff9b, 0 | 1, .., high, low] => {
                    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
                    is_metadata(std::net::Ipv4Addr::new(a, b, c, d).into())
                }
                _ => false,
            };
            embedded || ip.is_unicast_link_local() || ip.is_unspecified() || services
        }
    }
}

/// A URI for logs and messages: no query, where signatures are, and no user name.
pub(crate) fn redacted(uri: &str) -> String {
    match Url::parse(uri) {
        Ok(mut url) => {
            url.set_query(None);
            url.set_fragment(None);
            // Fails for URLs that cannot have either, which is as good.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.to_string()
        }
        Err(_) => "(not a URL)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(uri: &str) -> ModelConfig {
        ModelConfig::new("org/m", uri)
    }

    fn parse(uri: &str) -> Result<Location, String> {
        Source::parse(&model(uri)).map(|source| source.location).map_err(|fatal| fatal.message)
    }

    #[test]
    fn each_scheme_is_one_place() {
        assert_eq!(parse("builtin://demo"), Ok(Location::Builtin));
        assert_eq!(parse("pvc://claim/a/b"), Ok(Location::Path("/pvc/claim/a/b".into())));
        assert_eq!(parse("file:///m/a.gguf"), Ok(Location::Path("/m/a.gguf".into())));
        let hub = |file: Option<&str>| Location::Hub {
            repo: "org/name".into(),
            revision: "main".into(),
            file: file.map(str::to_owned),
        };
        assert_eq!(parse("hf://org/name"), Ok(hub(None)));
        assert_eq!(parse("hf://org/name/q/m.gguf"), Ok(hub(Some("q/m.gguf"))));
        let url = |text: &str| Url::parse(text).unwrap();
        assert_eq!(parse("http://h/m"), Ok(Location::HttpFolder(url("http://h/m/"))));
        assert_eq!(parse("https://h/m.gguf?a=b"), Ok(Location::HttpFile(url("https://h/m.gguf?a=b"))));
        assert_eq!(Source::parse(&model("builtin://demo")).unwrap().folder_name(), "org+m");
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        for uri in [
            "demo",
            "builtin://other",
            "file://host/m",
            "file:///m/../etc",
            "s3://bucket/key",
            "pvc://claim/../other",
            "pvc:///x",
            "pvc://claim//x",
            "hf://org",
            "hf://org/../x",
            "hf://org/name/config.json",
            "hf://org/na%2fme",
            "http://user:secret@h/m",
            "http://169.254.169.254/latest",
            "http://[::ffff:169.254.169.254]/",
            "http://2852039166/",
            "http://0xa9fea9fe/",
            "http://[fe80::1]/m",
            "http://[fd00:ec2::254]/m",
            "http://100.100.100.200/m",
            "http://192.0.0.192/m",
            "http://168.63.129.16/m",
            "http://[fd00:ec2::23]/m",
            "http://[fd20:ce::254]/m",
            "http://[fd00:c1::a9fe:a9fe]/m",
            "http://[64:ff9b:1::a9fe:a9fe]/m",
            "http://[64:ff9b::a9fe:a9fe]/m",
            "http://metadata.google.internal/m",
            "http://Metadata.Google.Internal./m",
            "http://",
        ] {
            let message = parse(uri).expect_err(uri);
            assert!(!message.contains("secret"), "{message}");
        }
    }

    #[test]
    fn a_revision_needs_a_source_that_has_revisions() {
        let mut config = model("https://h/m");
        config.revision = Some("v1".into());
        assert!(Source::parse(&config).is_err());
    }
}
