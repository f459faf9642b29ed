//! Every metric that is told by model: its name, its meaning, and what vLLM calls it. An alias is another name for the same
//! value, so the two cannot disagree. `docs/reference/metrics.md` repeats this table, and a test compares them.

use candela_engine::{EncoderStats, Stats};

use super::seen::{Engine, Seen, Value};

/// One metric. Its name has `candela_server_` before it, and the label `model`; its aliases have `vllm:` before them, and
/// the label `model_name`.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) vllm: &'static [&'static str],
    /// `None` = not of a model of this kind.
    pub(super) read: fn(&Seen) -> Option<Value<'_>>,
}

const fn row(
    name: &'static str,
    vllm: &'static [&'static str],
    help: &'static str,
    read: fn(&Seen) -> Option<Value<'_>>,
) -> Row {
    Row { name, help, vllm, read }
}

fn generator(seen: &Seen) -> Option<&Stats> {
    match &seen.engine {
        Engine::Generator(stats) => Some(stats),
        Engine::Encoder(_) => None,
    }
}

fn encoder(seen: &Seen) -> Option<&EncoderStats> {
    match &seen.engine {
        Engine::Encoder(stats) => Some(stats),
        Engine::Generator(_) => None,
    }
}

fn count(n: u64) -> Option<Value<'static>> {
    Some(Value::Count(n))
}

fn gauge(n: usize) -> Option<Value<'static>> {
    Some(Value::Gauge(n as f64))
}

pub(super) const TABLE: &[Row] = &[
    row("requests_running", &["num_requests_running"], "Requests that are computed now", |seen| {
        gauge(match &seen.engine {
            Engine::Generator(stats) => stats.running,
            Engine::Encoder(stats) => stats.running,
        })
    }),
    row("requests_queued", &["num_requests_waiting"], "Requests that wait for the engine", |seen| {
        gauge(match &seen.engine {
            Engine::Generator(stats) => stats.queued,
            Engine::Encoder(stats) => stats.queued,
        })
    }),
    row("queued_tokens", &[], "Prompt tokens of the requests that wait", |seen| {
        gauge(match &seen.engine {
            Engine::Generator(stats) => stats.queued_tokens,
            Engine::Encoder(stats) => stats.queued_tokens,
        })
    }),
    row(
        "engine_silent_seconds",
        &[],
        "Since the engine last showed progress; 0 while it has nothing to do",
        |seen| {
            let silent = match &seen.engine {
                Engine::Generator(stats) => stats.heartbeat_age,
                Engine::Encoder(stats) => stats.heartbeat_age,
            };
            Some(Value::Gauge(silent.as_secs_f64()))
        },
    ),
    row("kv_blocks", &[], "Blocks of the KV cache", |seen| gauge(generator(seen)?.kv_blocks_total)),
    row("kv_blocks_used", &[], "Blocks of the KV cache that requests hold", |seen| {
        gauge(generator(seen)?.kv_blocks_used)
    }),
    row(
        "kv_usage_ratio",
        &["kv_cache_usage_perc", "gpu_cache_usage_perc"],
        "Share of the KV cache that requests hold, from 0 to 1",
        |seen| {
            let stats = generator(seen)?;
            Some(Value::Gauge(stats.kv_blocks_used as f64 / stats.kv_blocks_total.max(1) as f64))
        },
    ),
    row(
        "kv_config_info",
        &["cache_config_info"],
        "Always 1; the labels say how many tokens a block of the KV cache has, and how many blocks there are",
        |seen| {
            let n_blocks = generator(seen)?.kv_blocks_total.to_string();
            let block_size = candela_engine::KV_BLOCK_TOKENS.to_string();
            Some(Value::Labelled(vec![("block_size", block_size), ("num_gpu_blocks", n_blocks)]))
        },
    ),
    row(
        "prefix_query_tokens",
        &["prefix_cache_queries", "gpu_prefix_cache_queries"],
        "Prompt tokens that were looked for in the KV cache",
        |seen| count(generator(seen)?.prefix_query_tokens_total),
    ),
    row(
        "prefix_hit_tokens",
        &["prefix_cache_hits", "gpu_prefix_cache_hits"],
        "Prompt tokens that were found in the KV cache and not computed again",
        |seen| count(generator(seen)?.prefix_hit_tokens_total),
    ),
    row(
        "preemptions",
        &["num_preemptions"],
        "Requests that gave their KV blocks to older ones and computed them again later",
        |seen| count(generator(seen)?.preemptions_total),
    ),
    row("draft_tokens", &["spec_decode_num_draft_tokens"], "Tokens that were guessed ahead", |seen| {
        count(generator(seen)?.draft_tokens_total)
    }),
    row(
        "draft_tokens_accepted",
        &["spec_decode_num_accepted_tokens"],
        "Tokens that were guessed ahead, and right",
        |seen| count(generator(seen)?.accepted_tokens_total),
    ),
    row("steps", &[], "Steps of the engine", |seen| count(generator(seen)?.steps_total)),
    row(
        "step_tokens",
        &[],
        "Tokens that the steps computed: divided by the steps, tokens per step",
        |seen| count(generator(seen)?.step_tokens_total),
    ),
    row("encoder_batches", &[], "Batches of texts that were computed", |seen| {
        count(encoder(seen)?.batches_total)
    }),
    row("encoder_texts", &[], "Texts, or pairs of a query and a document, that were computed", |seen| {
        count(encoder(seen)?.inputs_total)
    }),
    row("encoder_tokens", &[], "Tokens of the texts that were computed", |seen| {
        count(encoder(seen)?.tokens_total)
    }),
    row("prompt_tokens", &["prompt_tokens"], "Tokens of admitted prompts and texts", |seen| {
        count(seen.metrics.prompt_tokens.get())
    }),
    row("generated_tokens", &["generation_tokens"], "Tokens generated", |seen| {
        generator(seen)?;
        count(seen.metrics.generated_tokens.get())
    }),
    row(
        "generations",
        &["request_success"],
        "Admitted generations by how they ended; vLLM's `finished_reason` is `stop`, `length`, `error` or `abort`",
        |seen| {
            generator(seen)?;
            Some(Value::Outcomes(seen.metrics.outcomes()))
        },
    ),
    row(
        "time_to_first_token_seconds",
        &["time_to_first_token_seconds"],
        "From the arrival of a request to its first token",
        |seen| {
            generator(seen)?;
            Some(Value::Histogram(&seen.metrics.time_to_first_token))
        },
    ),
    row(
        "inter_token_seconds",
        &["inter_token_latency_seconds", "time_per_output_token_seconds"],
        "Between two tokens of one answer",
        |seen| {
            generator(seen)?;
            Some(Value::Histogram(&seen.metrics.inter_token))
        },
    ),
    row(
        "time_per_output_token_seconds",
        &["request_time_per_output_token_seconds"],
        "Mean time between the tokens of an answer, of each answer of two tokens and more",
        |seen| {
            generator(seen)?;
            Some(Value::Histogram(&seen.metrics.time_per_output_token))
        },
    ),
    row(
        "request_seconds",
        &["e2e_request_latency_seconds"],
        "From the arrival of a request to the end of its answer, where that was whole",
        |seen| Some(Value::Histogram(&seen.metrics.latency)),
    ),
    row("queue_seconds", &["request_queue_time_seconds"], "From admission to a place in the batch", |seen| {
        generator(seen)?;
        Some(Value::Histogram(&seen.metrics.queue))
    }),
    row(
        "prefill_seconds",
        &["request_prefill_time_seconds"],
        "From a place in the batch to the first token",
        |seen| {
            generator(seen)?;
            Some(Value::Histogram(&seen.metrics.prefill))
        },
    ),
    row(
        "decode_seconds",
        &["request_decode_time_seconds"],
        "From the first token of an answer to its last",
        |seen| {
            generator(seen)?;
            Some(Value::Histogram(&seen.metrics.decode))
        },
    ),
    row("request_prompt_tokens", &["request_prompt_tokens"], "Tokens of a prompt", |seen| {
        generator(seen)?;
        Some(Value::Histogram(&seen.metrics.prompt_size))
    }),
    row("request_generated_tokens", &["request_generation_tokens"], "Tokens of an answer", |seen| {
        generator(seen)?;
        Some(Value::Histogram(&seen.metrics.output_size))
    }),
    row("weights_bytes", &[], "Memory that the weights take, as the engine estimates it", |seen| {
        Some(Value::Gauge(seen.memory.weights_bytes as f64))
    }),
    row("kv_bytes", &[], "Memory of the KV cache", |seen| Some(Value::Gauge(seen.memory.kv_bytes as f64))),
    row("activations_bytes", &[], "Memory of a step's intermediate values, estimated", |seen| {
        Some(Value::Gauge(seen.memory.activations_bytes as f64))
    }),
];
