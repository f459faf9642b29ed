//! Paths under `/v2/models/`. Names of models may have slashes, which clients do not escape, so that these paths are read
//! from their end.

/// What is asked of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Metadata,
    Ready,
    Config,
    Infer,
    Generate,
    GenerateStream,
}

impl Verb {
    /// Last segments; none = metadata.
    const NAMED: [(&str, Self); 5] = [
        ("ready", Self::Ready),
        ("config", Self::Config),
        ("infer", Self::Infer),
        ("generate", Self::Generate),
        ("generate_stream", Self::GenerateStream),
    ];

    pub(crate) fn is_post(self) -> bool {
        matches!(self, Self::Infer | Self::Generate | Self::GenerateStream)
    }

    /// As in the OpenAPI document, for metrics.
    pub(crate) fn route(self, versioned: bool) -> &'static str {
        match (self, versioned) {
            (Self::Metadata, false) => "/v2/models/{model}",
            (Self::Ready, false) => "/v2/models/{model}/ready",
            (Self::Config, false) => "/v2/models/{model}/config",
            (Self::Infer, false) => "/v2/models/{model}/infer",
            (Self::Generate, false) => "/v2/models/{model}/generate",
            (Self::GenerateStream, false) => "/v2/models/{model}/generate_stream",
            (Self::Metadata, true) => "/v2/models/{model}/versions/{version}",
            (Self::Ready, true) => "/v2/models/{model}/versions/{version}/ready",
            (Self::Config, true) => "/v2/models/{model}/versions/{version}/config",
            (Self::Infer, true) => "/v2/models/{model}/versions/{version}/infer",
            (Self::Generate, true) => "/v2/models/{model}/versions/{version}/generate",
            (Self::GenerateStream, true) => "/v2/models/{model}/versions/{version}/generate_stream",
        }
    }

    /// Every one, for documents.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        [Self::Metadata].into_iter().chain(Self::NAMED.map(|(_, verb)| verb))
    }
}

/// `MODEL[/versions/VERSION][/VERB]`, without escapes.
#[derive(Debug, PartialEq)]
pub(crate) struct ModelPath<'a> {
    pub(crate) model: &'a str,
    pub(crate) version: Option<&'a str>,
    pub(crate) verb: Verb,
}

impl<'a> ModelPath<'a> {
    pub(crate) fn parse(path: &'a str) -> Self {
        let named = path.rsplit_once('/').and_then(|(rest, last)| {
            let (_, verb) = Verb::NAMED.into_iter().find(|(name, _)| *name == last)?;
            Some((rest, verb))
        });
        let (rest, verb) = named.unwrap_or((path, Verb::Metadata));
        let versioned = rest.rsplit_once('/').and_then(|(rest, version)| {
            let model = rest.strip_suffix("/versions")?;
            (!version.is_empty()).then_some((model, version))
        });
        match versioned {
            Some((model, version)) => Self { model, version: Some(version), verb },
            None => Self { model: rest, version: None, verb },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_from_their_end() {
        let parse = |path| {
            let ModelPath { model, version, verb } = ModelPath::parse(path);
            (model, version, verb)
        };
        assert_eq!(parse("m"), ("m", None, Verb::Metadata));
        assert_eq!(parse("m/infer"), ("m", None, Verb::Infer));
        assert_eq!(parse("org/m/ready"), ("org/m", None, Verb::Ready));
        assert_eq!(parse("org/m/versions/1"), ("org/m", Some("1"), Verb::Metadata));
        assert_eq!(parse("m/versions/2/generate_stream"), ("m", Some("2"), Verb::GenerateStream));
        assert_eq!(parse("org/m"), ("org/m", None, Verb::Metadata));
        assert_eq!(parse("versions/1"), ("versions/1", None, Verb::Metadata));
        assert_eq!(parse("infer"), ("infer", None, Verb::Metadata));
        assert_eq!(parse("m/versions//config"), ("m/versions/", None, Verb::Config));
    }
}
