//! What a request asks for: path and query to kind, name, subresource and options.

use std::collections::BTreeMap;

use http::Method;

use super::answer::ApiError;
use super::registry::Kind;

/// A request on a resource.
#[derive(Clone, Debug)]
pub struct Target {
    pub kind: &'static Kind,
    /// Empty for cluster-scoped kinds, and for all namespaces.
    pub namespace: String,
    pub name: Option<String>,
    pub subresource: Option<String>,
    pub query: BTreeMap<String, String>,
}

/// Where a path leads.
#[derive(Clone, Debug)]
pub enum Route {
    Resource(Target),
    /// `/version`, `/apis`, … with its path.
    Discovery(String),
    Missing,
}

impl Target {
    pub fn flag(&self, name: &str) -> bool {
        self.query.get(name).is_some_and(|v| v == "true" || v == "1")
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    pub fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let parse = |v: &str| {
            v.parse().map_err(|_| ApiError::bad_request(format!("invalid value for `{name}`: {v}")))
        };
        self.text(name).map(parse).transpose()
    }

    pub fn dry_run(&self) -> bool {
        self.text("dryRun") == Some("All")
    }

    /// The verb as the audit log names it.
    pub fn verb(&self, method: &Method) -> &'static str {
        match (method.as_str(), &self.name) {
            ("GET", _) if self.flag("watch") => "watch",
            ("GET", Some(_)) => "get",
            ("GET", None) => "list",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", Some(_)) => "delete",
            ("DELETE", None) => "deletecollection",
            _ => "unknown",
        }
    }
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match (bytes[at], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (_, Some(byte)) => {
                out.push(byte);
                at += 2;
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub fn parse(uri: &http::Uri) -> Route {
    let segments: Vec<String> = uri.path().split('/').filter(|s| !s.is_empty()).map(decode).collect();
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let query: BTreeMap<String, String> = uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (decode(key), decode(value)))
        .collect();
    let (group, version, rest) = match words.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        ["api" | "apis" | "version" | "livez" | "readyz" | "healthz" | ".well-known" | "openid", ..] => {
            return Route::Discovery(uri.path().to_owned());
        }
        _ => return Route::Missing,
    };
    // `/namespaces/NAME` and `/namespaces/NAME/status` are the Namespace itself; anything else lies in it.
    let (namespace, rest) = match rest {
        ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", rest),
        ["namespaces", namespace, rest @ ..] => (*namespace, rest),
        rest => ("", rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (plural, None, None),
        [plural, name] => (plural, Some(*name), None),
        [plural, name, subresource] => (plural, Some(*name), Some(*subresource)),
        _ => return Route::Missing,
    };
    let Some(kind) = Kind::find(group, version, plural) else { return Route::Missing };
    Route::Resource(Target {
        kind,
        namespace: namespace.to_owned(),
        name: name.map(str::to_owned),
        subresource: subresource.map(str::to_owned),
        query,
    })
}

/// A parsed label or field selector.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug)]
enum Term {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        let mut terms = Vec::new();
        for part in split_outside_brackets(text) {
            let part = part.trim();
            if part.is_empty() {
                continue;
            }
            terms.push(Self::term(part)?);
        }
        Ok(Self { terms })
    }

    fn term(part: &str) -> Result<Term, ApiError> {
        let bad = || ApiError::bad_request(format!("unable to parse requirement: `{part}`"));
        if let Some((key, rest)) = part.split_once(" notin ").or_else(|| part.split_once(" in ")) {
            let list = rest.trim().strip_prefix('(').and_then(|r| r.strip_suffix(')')).ok_or_else(bad)?;
            let values = list.split(',').map(|v| v.trim().to_owned()).collect();
            let key = key.trim().to_owned();
            return Ok(if part.contains(" notin ") {
                Term::NotIn(key, values)
            } else {
                Term::In(key, values)
            });
        }
        if let Some((key, value)) = part.split_once("!=") {
            return Ok(Term::NotIn(key.trim().to_owned(), vec![value.trim().to_owned()]));
        }
        if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            return Ok(Term::In(key.trim().to_owned(), vec![value.trim().to_owned()]));
        }
        Ok(match part.strip_prefix('!') {
            Some(key) => Term::Absent(key.trim().to_owned()),
            None => Term::Exists(part.to_owned()),
        })
    }

    /// Whether an object with these values is selected.
    pub fn matches<'v>(&self, value_of: impl Fn(&str) -> Option<&'v str>) -> bool {
        self.terms.iter().all(|term| match term {
            Term::In(key, values) => value_of(key).is_some_and(|v| values.iter().any(|want| want == v)),
            Term::NotIn(key, values) => value_of(key).is_none_or(|v| values.iter().all(|want| want != v)),
            Term::Exists(key) => value_of(key).is_some(),
            Term::Absent(key) => value_of(key).is_none(),
        })
    }
}

fn split_outside_brackets(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut out) = (0_i32, 0, Vec::new());
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                out.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    out.push(&text[start..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_kinds() {
        let route = parse(&"/apis/apps/v1/namespaces/a/deployments/b/scale?dryRun=All".parse().unwrap());
        let Route::Resource(target) = route else { panic!("not a resource: {route:?}") };
        assert_eq!((target.kind.kind, target.namespace.as_str()), ("Deployment", "a"));
        assert_eq!((target.name.as_deref(), target.subresource.as_deref()), (Some("b"), Some("scale")));
        assert!(target.dry_run());
        let Route::Resource(target) = parse(&"/api/v1/namespaces/a".parse().unwrap()) else {
            panic!("missing")
        };
        assert_eq!((target.kind.kind, target.name.as_deref()), ("Namespace", Some("a")));
    }

    #[test]
    fn selectors_select() {
        let labels = |key: &str| match key {
            "a" => Some("1"),
            _ => None,
        };
        for (text, want) in
            [("a=1", true), ("a!=1", false), ("a in (0, 1),!b", true), ("b", false), ("b notin (x)", true)]
        {
            assert_eq!(Selector::parse(text).unwrap().matches(labels), want, "{text}");
        }
    }
}
