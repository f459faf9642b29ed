//! The models as they are at one moment, and their part of the exposition text.

use std::{collections::BTreeMap, fmt, sync::Arc};

use candela_engine::{EncoderStats, Memory, Stats};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, histogram::Histogram},
};

use super::{model::ModelMetrics, table::TABLE};

/// A model, when someone asks.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) model: String,
    pub(crate) metrics: Arc<ModelMetrics>,
    pub(crate) engine: Engine,
    pub(crate) memory: Memory,
}

/// What its engine says of itself.
#[derive(Debug)]
pub(crate) enum Engine {
    Generator(Stats),
    Encoder(EncoderStats),
}

/// What a row of the table reads.
pub(super) enum Value<'a> {
    Count(u64),
    Gauge(f64),
    Histogram(&'a Histogram),
    /// Counts by how generations ended.
    Outcomes(BTreeMap<&'static str, u64>),
    /// 1, with these labels.
    Labelled(Vec<(&'static str, String)>),
}

type Labels = Vec<(&'static str, String)>;

/// All models together, for a registry that has no prefix.
#[derive(Debug)]
pub(super) struct AllSeen(pub(super) Vec<Seen>);

impl Collector for AllSeen {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for row in TABLE {
            let values: Vec<_> =
                self.0.iter().filter_map(|seen| Some((seen.model.as_str(), (row.read)(seen)?))).collect();
            let Some((_, first)) = values.first() else { continue };
            let metric_type = first.metric_type();
            let own = format!("candela_server_{}", row.name);
            let names = [(own, "model", "outcome")].into_iter();
            let aliases =
                row.vllm.iter().map(|alias| (format!("vllm:{alias}"), "model_name", "finished_reason"));
            for (name, model_label, outcome_label) in names.chain(aliases) {
                let mut metric = encoder.encode_descriptor(&name, row.help, None, metric_type)?;
                for (model, value) in &values {
                    let labels = vec![(model_label, (*model).to_owned())];
                    value.encode(labels, outcome_label, &mut metric)?;
                }
            }
        }
        Ok(())
    }
}

impl Value<'_> {
    fn metric_type(&self) -> MetricType {
        match self {
            Self::Count(_) | Self::Outcomes(_) => MetricType::Counter,
            // An info would be the exact type, but readers of Prometheus' own format know none.
            Self::Gauge(_) | Self::Labelled(_) => MetricType::Gauge,
            Self::Histogram(_) => MetricType::Histogram,
        }
    }

    fn encode(
        &self,
        mut labels: Labels,
        outcome_label: &'static str,
        to: &mut MetricEncoder<'_>,
    ) -> fmt::Result {
        match self {
            Self::Count(n) => ConstCounter::new(*n).encode(to.encode_family(&labels)?),
            Self::Gauge(x) => ConstGauge::new(*x).encode(to.encode_family(&labels)?),
            Self::Histogram(histogram) => histogram.encode(to.encode_family(&labels)?),
            Self::Labelled(further) => {
                labels.extend(further.iter().cloned());
                ConstGauge::new(1.0).encode(to.encode_family(&labels)?)
            }
            Self::Outcomes(outcomes) => {
                for (outcome, n) in by_label(outcomes, outcome_label) {
                    let mut labels = labels.clone();
                    labels.push((outcome_label, outcome.to_owned()));
                    ConstCounter::new(n).encode(to.encode_family(&labels)?)?;
                }
                Ok(())
            }
        }
    }
}

/// vLLM knows fewer ways to end than we tell apart.
fn by_label(outcomes: &BTreeMap<&'static str, u64>, label: &str) -> BTreeMap<&'static str, u64> {
    if label == "outcome" {
        return outcomes.clone();
    }
    let mut merged = BTreeMap::new();
    for (outcome, n) in outcomes {
        let reason = match *outcome {
            same @ ("stop" | "length" | "error") => same,
            _ => "abort",
        };
        *merged.entry(reason).or_default() += n;
    }
    merged
}

/// A row of `docs/reference/metrics.md`.
#[cfg(test)]
pub(super) fn documented(row: &super::table::Row, metric_type: &str) -> String {
    let total = if metric_type == "counter" { "_total" } else { "" };
    let aliases: Vec<String> = row.vllm.iter().map(|alias| format!("`vllm:{alias}{total}`")).collect();
    format!(
        "| `candela_server_{}{total}` | {metric_type} | {} | {} |",
        row.name,
        row.help,
        aliases.join(", ")
    )
}
