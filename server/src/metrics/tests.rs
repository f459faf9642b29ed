use std::time::Duration;

use candela_engine::{FinishReason, Finished, Memory, Stats, Timings, Usage};

use super::*;
use crate::progress::Phase;

fn generator(metrics: &Metrics, model: &str) -> Seen {
    Seen {
        model: model.to_owned(),
        metrics: metrics.of(model),
        engine: SeenEngine::Generator(Stats {
            queued: 2,
            kv_blocks_used: 3,
            kv_blocks_total: 12,
            prefix_hit_tokens_total: 64,
            ..Stats::default()
        }),
        memory: Memory { weights_bytes: 7, kv_bytes: 8, activations_bytes: 9 },
    }
}

fn encoder(metrics: &Metrics, model: &str) -> Seen {
    let stats = candela_engine::EncoderStats {
        number: 1,
        running: 1,
        queued: 0,
        queued_tokens: 0,
        heartbeat_age: Duration::ZERO,
        accepting: true,
        inputs_total: 5,
        tokens_total: 50,
        batches_total: 2,
    };
    Seen { engine: SeenEngine::Encoder(stats), ..generator(metrics, model) }
}

/// One of each kind, with something counted.
fn text(format: Format) -> String {
    let metrics = Metrics::new();
    metrics.requests.get_or_create(&Answer { route: "/v1/models", status: 200 }).inc();
    metrics.answer_time.get_or_create(&Answer { route: "/v1/models", status: 200 }).observe(1.0);
    metrics.phase_took("Load", 2.0);
    metrics.trust.token("none");
    metrics.trust.load("none");
    let chat = metrics.of("chat \"a\"");
    for outcome in ["stop", "client_gone", "request_timeout"] {
        chat.ended(outcome);
    }
    let timings = Timings { decode: Duration::from_secs(3), ..Timings::default() };
    let usage = Usage { completion_tokens: 4, prompt_tokens: 9, ..Usage::default() };
    let reason = FinishReason::Stop;
    let finished = Finished { reason, text: String::new(), stop_string: None, usage, timings };
    chat.finished(&finished, Duration::from_secs(5));
    let progress = Progress::new(Phase::Load);
    progress.set(5, 9);
    let models = vec![generator(&metrics, "chat \"a\""), encoder(&metrics, "org/embed:v1")];
    metrics.text(Now { queued: 2, in_flight: 3, models }, &progress, format)
}

#[test]
fn the_text_has_our_names_and_vllms_for_the_same_values() {
    let text = text(Format::OpenMetrics);
    for line in [
        "candela_server_requests_total{route=\"/v1/models\",status=\"200\"} 1",
        "candela_server_requests_in_flight 3",
        "candela_server_progress_bytes{phase=\"Load\"} 5",
        "candela_server_progress_total_bytes{phase=\"Load\"} 9",
        "candela_server_generations_total{model=\"chat \\\"a\\\"\",outcome=\"client_gone\"} 1",
        "vllm:request_success_total{model_name=\"chat \\\"a\\\"\",finished_reason=\"stop\"} 1",
        "vllm:request_success_total{model_name=\"chat \\\"a\\\"\",finished_reason=\"abort\"} 2",
        "candela_server_requests_queued{model=\"chat \\\"a\\\"\"} 2.0",
        "vllm:num_requests_waiting{model_name=\"chat \\\"a\\\"\"} 2.0",
        "vllm:num_requests_running{model_name=\"org/embed:v1\"} 1.0",
        "vllm:kv_cache_usage_perc{model_name=\"chat \\\"a\\\"\"} 0.25",
        "vllm:gpu_cache_usage_perc{model_name=\"chat \\\"a\\\"\"} 0.25",
        "vllm:cache_config_info{model_name=\"chat \\\"a\\\"\",block_size=\"32\",num_gpu_blocks=\"12\"} 1.0",
        "vllm:prefix_cache_hits_total{model_name=\"chat \\\"a\\\"\"} 64",
        "vllm:e2e_request_latency_seconds_sum{model_name=\"chat \\\"a\\\"\"} 5.0",
        "candela_server_time_per_output_token_seconds_sum{model=\"chat \\\"a\\\"\"} 1.0",
        "candela_server_encoder_texts_total{model=\"org/embed:v1\"} 5",
        "candela_server_weights_bytes{model=\"org/embed:v1\"} 7.0",
    ] {
        assert!(text.lines().any(|have| have == line), "no {line} in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert!(!text.contains("kv_usage_ratio{model=\"org/embed:v1\"}"), "an encoder has no KV cache");
    let resident = text.lines().find_map(|line| line.strip_prefix("candela_server_resident_memory_bytes "));
    assert!(resident.unwrap().parse::<u64>().unwrap() > 1 << 20);
}

#[test]
fn who_does_not_ask_for_openmetrics_gets_prometheus_own_format() {
    let text = text(Format::Prometheus);
    assert!(
        text.contains("# TYPE candela_server_requests_total counter\ncandela_server_requests_total{"),
        "{text}"
    );
    assert!(text.contains("# HELP vllm:prompt_tokens_total Tokens of admitted"), "{text}");
    assert!(text.contains("# TYPE vllm:kv_cache_usage_perc gauge"));
    assert!(!text.contains("# EOF"));
    let wanted = |accept: &'static str| {
        let mut headers = http::HeaderMap::new();
        headers.insert("accept", http::HeaderValue::from_static(accept));
        Format::wanted(&headers)
    };
    assert_eq!(Format::wanted(&http::HeaderMap::new()), Format::Prometheus);
    assert_eq!(wanted("text/plain"), Format::Prometheus);
    assert_eq!(
        wanted("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"),
        Format::OpenMetrics
    );
}

/// Every line of both tables of `docs/reference/metrics.md`, from the text itself.
#[test]
fn the_page_of_metrics_lists_each_of_them() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/metrics.md");
    let text = text(Format::OpenMetrics);
    let kind_of = |name: &str| {
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        types.filter(|(have, _)| *have == name).map(|(_, kind)| kind.to_owned()).next()
    };
    let by_model: Vec<String> = table::TABLE
        .iter()
        .map(|row| {
            let kind = kind_of(&format!("candela_server_{}", row.name));
            seen::documented(row, &kind.unwrap_or_else(|| panic!("{} is not in the text", row.name)))
        })
        .collect();
    let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    let of_process: Vec<String> = helps
        .filter(|(name, _)| {
            let row = name.strip_prefix("candela_server_");
            row.is_some_and(|row| !table::TABLE.iter().any(|known| known.name == row))
        })
        .map(|(name, help)| {
            let kind = kind_of(name).unwrap();
            let total = if kind == "counter" { "_total" } else { "" };
            format!("| `{name}{total}` | {kind} | {help} |")
        })
        .collect();
    let tables = format!(
        "<!-- by model: written by the test of server/src/metrics, UPDATE_EXPECT=1 -->\n| name | type | meaning | the \
         same as |\n| --- | --- | --- | --- |\n{}\n<!-- end -->\n\n## Of the process\n\n| name | type | meaning |\n| --- \
         | --- | --- |\n{}\n",
        by_model.join("\n"),
        of_process.join("\n"),
    );
    let marker = "<!-- by model";
    let now = std::fs::read_to_string(page).unwrap();
    let (head, have) = now.split_at(now.find(marker).expect("the page has the table's mark"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(page, format!("{head}{tables}")).unwrap();
        return;
    }
    assert_eq!(have, tables, "run the test with UPDATE_EXPECT=1");
}
