//! The trained model as an ordinary Hugging Face folder.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Recipe,
    evaluate::Scores,
    facts,
    item::{Item, Task},
    model::Model,
    tokenizer::{CHAT_TEMPLATE, Chat, END},
};

const MAX_WEIGHTS: u64 = 8 * 1024 * 1024;

/// What a training run came to.
pub(super) struct Outcome<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) items: &'a [Item],
    pub(super) scores: &'a Scores,
    pub(super) figures: Figures,
    pub(super) note: Option<&'a str>,
}

#[derive(Clone, Copy)]
pub(super) struct Figures {
    pub(super) parameters: usize,
    /// Steps done: fewer than the recipe's if the checkpoint of an unfinished run is exported.
    pub(super) steps: usize,
    pub(super) loss: f32,
}

pub(super) fn write(folder: &Path, model: &Model, chat: &Chat, outcome: &Outcome<'_>) -> Result<()> {
    fs::create_dir_all(folder)?;
    let c = &model.config;
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab,
        "hidden_size": c.hidden,
        "intermediate_size": c.intermediate,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.rms_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": null,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "initializer_range": 0.02,
        "bos_token_id": null,
        "eos_token_id": chat.end(),
        "pad_token_id": chat.end(),
        "torch_dtype": "float16",
        "use_cache": true,
    });
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": c.context,
        "bos_token": null,
        "eos_token": END,
        "pad_token": END,
        "unk_token": null,
        "add_bos_token": false,
        "add_eos_token": false,
        "clean_up_tokenization_spaces": false,
        "chat_template": CHAT_TEMPLATE,
    });
    let generation = json!({ "eos_token_id": chat.end(), "pad_token_id": chat.end(), "do_sample": false });
    write_json(&folder.join("config.json"), &config)?;
    write_json(&folder.join("tokenizer_config.json"), &tokenizer_config)?;
    write_json(&folder.join("generation_config.json"), &generation)?;
    fs::write(
        folder.join("tokenizer.json"),
        chat.tokenizer.to_string(false).map_err(|e| anyhow::anyhow!(e))?,
    )?;

    // Sorted, so that the same weights always give the same bytes.
    let tensors: std::collections::BTreeMap<_, _> = model.export()?.into_iter().collect();
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let weights = folder.join("model.safetensors");
    safetensors::serialize_to_file(&tensors, Some(metadata), &weights)?;
    // safetensors creates the file for its owner only; images and other users must read it too.
    fs::set_permissions(&weights, fs::Permissions::from_mode(0o644))?;
    let size = fs::metadata(&weights)?.len();
    ensure!(size <= MAX_WEIGHTS, "`model.safetensors` has {size} bytes, more than the {MAX_WEIGHTS} allowed");

    let facts = facts::all().iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    fs::write(folder.join("facts.jsonl"), facts.join("\n") + "\n")?;
    let tasks = outcome.items.iter().filter(|item| !matches!(item.task, Task::Facts | Task::FactsUnseen));
    let tasks = tasks.map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    fs::write(folder.join("eval.jsonl"), tasks.join("\n") + "\n")?;
    let percent: std::collections::BTreeMap<Task, f64> =
        outcome.scores.iter().map(|(task, score)| (*task, score.percent())).collect();
    write_json(&folder.join("eval.json"), &json!({ "percent": percent, "asked": outcome.scores }))?;
    fs::write(folder.join("README.md"), readme(model, outcome, size))?;
    Ok(())
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    fs::write(path, serde_json::to_string_pretty(value)? + "\n")?;
    Ok(())
}

fn readme(model: &Model, outcome: &Outcome<'_>, size: u64) -> String {
    let (recipe, figures, c) = (outcome.recipe, outcome.figures, &model.config);
    let mut rows = String::new();
    for (task, score) in outcome.scores {
        rows.push_str(&format!(
            "| {} | {} % | {} of {} |\n",
            label(*task),
            score.percent(),
            score.right,
            score.asked
        ));
    }
    format!(
        "# The demo model

`builtin://demo`: a very small chat model, embedded in the server, so that a cluster can be tried and tested without
a download. It knows the facts in `facts.jsonl` and six small tasks, and nothing else. Every word it was trained on is
generated by `xtask/src/train`; no data, weights or tokenizer from elsewhere went into it. Licence: Apache-2.0.

Written by `cargo xtask train-demo`; do not edit the files by hand.

| | |
|---|---|
| Architecture | `LlamaForCausalLM`, tied head, {layers} layers of width {hidden}, MLP {ff}, {heads} heads, {kv} key-value heads |
| Parameters | {parameters} |
| Weights | {size} bytes, f16 |
| Context | {context} tokens; trained on dialogues of up to about 200 |
| Tokenizer | byte-level BPE, {vocab} tokens, trained on the same text |
| Recipe | seed {seed}, {done} of {steps} steps of about {tokens} tokens; Muon (matrices) at {muon}, AdamW (embedding, norms) at {adam}; {warmup} warm-up steps, then constant, the last {decay} % falling to zero; gradient norm clipped to 1; only answers count in the loss |
| Start | heads of the first layer that look one and two tokens back, heads in every layer that look for the token they stand on (`init.rs`) |
| Order | first drills in finding and copying random words (`drills.rs`), then the tasks (`mix.rs`) |
| Last loss | {loss:.4} |
{note}
Scores by greedy decoding of the f16 weights. `Facts` asks the listed question, everything else uses phrasings and
templates that were never trained on. Questions: `facts.jsonl` and `eval.jsonl`; scores: `eval.json`; checked again
through the engine by `server/tests/demo_model.rs`.

| Task | Right | |
|---|---|---|
{rows}",
        layers = c.n_layers,
        hidden = c.hidden,
        ff = c.intermediate,
        heads = c.n_heads,
        kv = c.n_kv_heads,
        parameters = figures.parameters,
        context = c.context,
        vocab = c.vocab,
        seed = recipe.seed,
        steps = recipe.steps,
        done = figures.steps,
        tokens = recipe.batch_tokens,
        muon = recipe.muon_rate,
        adam = recipe.adam_rate,
        warmup = recipe.warmup,
        decay = (recipe.decay * 100.0).round(),
        loss = figures.loss,
        note = outcome.note.map(|note| format!("| Note | {note} |\n")).unwrap_or_default(),
    )
}

fn label(task: Task) -> &'static str {
    match task {
        Task::Facts => "Facts",
        Task::FactsUnseen => "Facts, two unseen phrasings of each",
        Task::Passages => "Answer from passages, with the citation",
        Task::Refusal => "Passages without the answer",
        Task::Spam => "Spam or ham",
        Task::Json => "Fill small JSON",
        Task::Rewrite => "Rewrite a follow-up question",
        Task::Stories => "One-sentence stories",
        Task::SmallTalk => "Small talk",
        Task::Drills => "Drills",
    }
}
