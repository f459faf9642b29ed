//! Registries as text, in the format that a reader asks for.

use std::fmt::Write as _;

use http::HeaderMap;
use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    registry::Registry,
};

/// OpenMetrics where it is asked for, as Prometheus does; else what every reader knows, among them the endpoint pickers of
/// the Gateway API Inference Extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    OpenMetrics,
    Prometheus,
}

impl Format {
    pub(crate) fn wanted(headers: &HeaderMap) -> Self {
        let accepts = headers.get_all(http::header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let open = accepts.flat_map(|value| value.split(',')).any(|kind| {
            kind.split(';').next().is_some_and(|kind| kind.trim() == "application/openmetrics-text")
        });
        if open { Self::OpenMetrics } else { Self::Prometheus }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

pub(super) fn written(registries: &[&Registry], format: Format) -> String {
    let mut text = String::new();
    // Writing to a String fails only if a metric's own encoder does; then that text ends there.
    let whole = registries.iter().try_for_each(|registry| encode_registry(&mut text, registry));
    let ended = whole.and_then(|()| encode_eof(&mut text));
    if ended.is_err() {
        let _ = text.write_str("# EOF\n");
    }
    match format {
        Format::OpenMetrics => text,
        Format::Prometheus => prometheus(&text),
    }
}

/// The same in Prometheus' own format, where a counter is called what its sample is called, and nothing marks the end.
fn prometheus(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len() + 1024);
    let mut lines = open_metrics.lines().peekable();
    while let Some(line) = lines.next() {
        let help = line.strip_prefix("# HELP ").and_then(|help| help.split_once(' '));
        let suffix = match lines.peek().and_then(|next| next.strip_prefix("# TYPE ")) {
            Some(next) if next.ends_with(" counter") => "_total",
            _ => "",
        };
        match (help, line.strip_prefix("# TYPE ").and_then(|line| line.strip_suffix(" counter"))) {
            (Some((name, help)), _) => {
                let _ = writeln!(out, "# HELP {name}{suffix} {help}");
            }
            (None, Some(counter)) => {
                let _ = writeln!(out, "# TYPE {counter}_total counter");
            }
            (None, None) if line == "# EOF" => {}
            (None, None) => {
                let _ = writeln!(out, "{line}");
            }
        }
    }
    out
}
