//! What the environment says of traces, by the names that OpenTelemetry gives to its variables.

use std::{str::FromStr, time::Duration};

use http::{HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use url::Url;

use super::context::Sampler;

/// Where spans go, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub(super) endpoint: Url,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) timeout: Duration,
    /// Keys and values that every span's resource has.
    pub(super) resource: Vec<(String, String)>,
    pub(super) sampler: Sampler,
    pub(super) max_queue: usize,
    pub(super) max_batch: usize,
    /// Between two batches that are not full.
    pub(super) delay: Duration,
}

impl Settings {
    /// `Ok(None)` = nobody asked for traces. `endpoint` is `OTEL_EXPORTER_OTLP_ENDPOINT` where it was passed as an
    /// argument, `env` looks a variable up.
    pub fn read(
        endpoint: Option<&str>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, String> {
        // An empty variable is one that is not set.
        let env =
            |name: &str| env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let either = |name: &str| {
            let own = format!("OTEL_EXPORTER_OTLP_TRACES_{name}");
            let shared = format!("OTEL_EXPORTER_OTLP_{name}");
            env(&own).map(|value| (own, value)).or_else(|| env(&shared).map(|value| (shared, value)))
        };
        if env("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Ok(None);
        }
        match env("OTEL_TRACES_EXPORTER").as_deref() {
            None | Some("otlp") => {}
            Some("none") => return Ok(None),
            Some(other) => {
                return Err(format!("`OTEL_TRACES_EXPORTER` is `{other}`: it may be `otlp` or `none`"));
            }
        }
        let base = endpoint.map(str::to_owned).or_else(|| env("OTEL_EXPORTER_OTLP_ENDPOINT"));
        let endpoint = match (env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), base) {
            (Some(whole), _) => url("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &whole)?,
            (None, Some(base)) => {
                let name = endpoint.map_or("OTEL_EXPORTER_OTLP_ENDPOINT", |_| "--otlp-endpoint");
                let base = url(name, &base)?;
                let path = format!("{}/v1/traces", base.path().trim_end_matches('/'));
                let mut whole = base;
                whole.set_path(&path);
                whole
            }
            (None, None) => return Ok(None),
        };
        if let Some((name, protocol)) = either("PROTOCOL")
            && protocol != "http/protobuf"
        {
            return Err(format!(
                "`{name}` is `{protocol}`: this server speaks `http/protobuf`, which collectors take on port 4318"
            ));
        }
        if let Some((name, compression)) = either("COMPRESSION")
            && compression != "none"
        {
            return Err(format!("`{name}` is `{compression}`: leave it out, spans are sent as they are"));
        }
        let max_queue = number(&env, "OTEL_BSP_MAX_QUEUE_SIZE", 2048)?.clamp(1, 1 << 20);
        let max_batch = number(&env, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)?.clamp(1, max_queue);
        let timeout = either("TIMEOUT").map_or(Ok(10_000), |(name, value)| parsed(&name, &value))?;
        Ok(Some(Self {
            endpoint,
            headers: either("HEADERS").map_or(Ok(Vec::new()), |(name, value)| headers(&name, &value))?,
            timeout: Duration::from_millis(timeout.max(1)),
            resource: resource(&env)?,
            sampler: sampler(&env)?,
            max_queue: usize::try_from(max_queue).unwrap_or(usize::MAX),
            max_batch: usize::try_from(max_batch).unwrap_or(usize::MAX),
            delay: Duration::from_millis(number(&env, "OTEL_BSP_SCHEDULE_DELAY", 5000)?.max(1)),
        }))
    }
}

fn url(name: &str, text: &str) -> Result<Url, String> {
    let wrong = |why: &str| {
        // Not the text itself: it may hold a password.
        format!("`{name}` {why}: it must look like `http://collector:4318`")
    };
    let url = Url::parse(text).map_err(|_| wrong("is not a URL"))?;
    match url.scheme() {
        "http" | "https" if url.host().is_some() => Ok(url),
        _ => Err(wrong("is neither http nor https")),
    }
}

fn parsed<T: FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{name}` is `{text}`: it must be a number"))
}

fn number(env: &impl Fn(&str) -> Option<String>, name: &str, default: u64) -> Result<u64, String> {
    env(name).map_or(Ok(default), |value| parsed(name, &value))
}

/// `key=value,key=value`, percent-encoded.
fn pairs(name: &str, text: &str) -> Result<Vec<(String, String)>, String> {
    let pair = |pair: &str| {
        let wrong = || format!("`{name}` must look like `key=value,key=value`");
        let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
        let decoded = |text: &str| {
            let text = percent_decode_str(text.trim()).decode_utf8().map_err(|_| wrong())?;
            Ok::<_, String>(text.into_owned())
        };
        Ok((decoded(key)?, decoded(value)?))
    };
    text.split(',').filter(|part| !part.trim().is_empty()).map(pair).collect()
}

fn headers(name: &str, text: &str) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let header = |(key, value): (String, String)| {
        let wrong = |_| format!("`{name}`: `{key}` is no header, or its value cannot be sent");
        let header = HeaderName::from_str(&key).map_err(|_| wrong(()))?;
        let mut value = HeaderValue::from_str(&value).map_err(|_| wrong(()))?;
        value.set_sensitive(true);
        Ok((header, value))
    };
    pairs(name, text)?.into_iter().map(header).collect()
}

fn resource(env: &impl Fn(&str) -> Option<String>) -> Result<Vec<(String, String)>, String> {
    const NAME: &str = "service.name";
    let given = env("OTEL_RESOURCE_ATTRIBUTES");
    let mut all = given.map_or(Ok(Vec::new()), |given| pairs("OTEL_RESOURCE_ATTRIBUTES", &given))?;
    if let Some(name) = env("OTEL_SERVICE_NAME") {
        all.retain(|(key, _)| key != NAME);
        all.push((NAME.to_owned(), name));
    }
    let mut default = |key: &str, value: &str| {
        if !all.iter().any(|(have, _)| have == key) {
            all.push((key.to_owned(), value.to_owned()));
        }
    };
    default(NAME, "candela-server");
    default("service.version", env!("CARGO_PKG_VERSION"));
    Ok(all)
}

fn sampler(env: &impl Fn(&str) -> Option<String>) -> Result<Sampler, String> {
    let ratio = || {
        let Some(text) = env("OTEL_TRACES_SAMPLER_ARG") else { return Ok(1.0) };
        let ratio: f64 = parsed("OTEL_TRACES_SAMPLER_ARG", &text)?;
        if (0.0..=1.0).contains(&ratio) {
            return Ok(ratio);
        }
        Err(format!("`OTEL_TRACES_SAMPLER_ARG` is `{text}`: it must be from 0 to 1"))
    };
    let (by_parent, ratio) = match env("OTEL_TRACES_SAMPLER").as_deref() {
        None | Some("parentbased_always_on") => (true, 1.0),
        Some("parentbased_always_off") => (true, 0.0),
        Some("parentbased_traceidratio") => (true, ratio()?),
        Some("always_on") => (false, 1.0),
        Some("always_off") => (false, 0.0),
        Some("traceidratio") => (false, ratio()?),
        Some(other) => {
            return Err(format!(
                "`OTEL_TRACES_SAMPLER` is `{other}`: it may be `always_on`, `always_off` or `traceidratio`, each also with \
                 `parentbased_` before it"
            ));
        }
    };
    Ok(Sampler { by_parent, ratio })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let find = |name: &str| variables.iter().find(|(have, _)| *have == name);
        Settings::read(None, |name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");

    #[test]
    fn without_an_endpoint_there_are_no_traces() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), Ok(None));
        assert_eq!(read(&[ENDPOINT, ("OTEL_SDK_DISABLED", "true")]), Ok(None));
        assert_eq!(read(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        assert_eq!(read(&[("OTEL_SERVICE_NAME", "a")]), Ok(None));
    }

    #[test]
    fn the_variables_mean_what_the_specification_says() {
        let settings = read(&[ENDPOINT]).unwrap().unwrap();
        assert_eq!(settings.endpoint.as_str(), "http://collector:4318/v1/traces");
        assert_eq!(settings.sampler, Sampler { by_parent: true, ratio: 1.0 });
        assert_eq!((settings.max_queue, settings.max_batch), (2048, 512));
        assert_eq!(settings.resource[0], ("service.name".to_owned(), "candela-server".to_owned()));
        let settings = read(&[
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://other/own/path"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x, x-scope=a"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=one,deployment.environment.name=test"),
            ("OTEL_SERVICE_NAME", "two"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "10"),
            ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ]);
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.endpoint.as_str(), "https://other/own/path");
        assert_eq!(settings.headers[0].1, "Bearer x");
        assert_eq!(
            (settings.timeout, settings.delay),
            (Duration::from_millis(250), Duration::from_millis(100))
        );
        assert!(settings.resource.contains(&("service.name".to_owned(), "two".to_owned())));
        assert!(!settings.resource.contains(&("service.name".to_owned(), "one".to_owned())));
        assert_eq!(settings.sampler, Sampler { by_parent: false, ratio: 0.25 });
        assert_eq!((settings.max_queue, settings.max_batch), (10, 10));
        let argument = Settings::read(Some("http://a:1/x"), |_| None).unwrap().unwrap();
        assert_eq!(argument.endpoint.as_str(), "http://a:1/x/v1/traces");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "ftp://collector"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "novalue"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=c"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
        ] {
            let refused = read(&[(name, value), ENDPOINT]).unwrap_err();
            assert!(refused.contains(name), "{name}={value}: {refused}");
        }
        let ratio = [ENDPOINT, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")];
        assert!(read(&ratio).unwrap_err().contains("OTEL_TRACES_SAMPLER_ARG"));
    }
}
