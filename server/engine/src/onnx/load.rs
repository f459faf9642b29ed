//! From a folder with a graph to an encoder.

use std::{collections::BTreeMap, thread};

use super::{
    config::{self, Described},
    graph::{Graph, Settings},
    inspect::{self, Inspected},
};
use crate::{
    EngineConfig, LoadError, LoadPhase, LoadProgress, Memory, ModelFacts,
    encoder::{Body, CONFIG, Head, Loaded, Recipe, batch_tokens, context_length, limits, tokens},
    files::{self, Bytes, Files, OnnxFile},
    load::Meter,
    text,
};

/// Loads what [`Files::onnx`] found.
pub(crate) fn load(
    files: &Files,
    onnx: &OnnxFile,
    config: &EngineConfig,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Loaded, LoadError> {
    if config.quantization.is_some() {
        let what =
            format!("`{}` is computed as it was exported; leave this out, or give an int8 graph", onnx.name);
        return Err(LoadError::InvalidConfig { field: "quantization", what });
    }
    let json = files.json(CONFIG)?.ok_or_else(|| LoadError::NotFound {
        file: CONFIG.to_owned(),
        hint: "an ONNX graph needs the model's `config.json` beside it".to_owned(),
    })?;
    let described = config::describe(&json)?;
    let recipe = Recipe::read(files)?;
    let max_tokens = context_length(config, described.positions, recipe.max_tokens)?;
    let mut meter = Meter::new(progress);

    let graph_bytes = onnx.open()?;
    let inspected = inspect::inspect(&onnx.name, &graph_bytes)?;
    let mut parts = BTreeMap::from([(onnx.name.clone(), graph_bytes)]);
    for name in &inspected.external {
        parts.insert(onnx.beside(name), onnx.open_beside(name)?);
    }
    let size_bytes = parts.values().map(|bytes| bytes.len() as u64).sum();
    let memory = memory(&described, size_bytes, batch_tokens(config), max_tokens);
    if let Some(limit_bytes) = config.memory_limit_bytes.filter(|limit| memory.total_bytes() > *limit) {
        return Err(LoadError::OutOfMemory {
            needed_bytes: memory.total_bytes(),
            limit_bytes,
            weights_bytes: memory.weights_bytes,
            kv_bytes: 0,
            kv_tokens: 0,
        });
    }
    let text = text::from_folder(files, None)?;

    meter.now.total_bytes = size_bytes;
    meter.start(LoadPhase::Verify);
    let digest = digest(&parts, &mut meter);
    drop(parts);
    meter.start(LoadPhase::Weights);
    let threads = config.threads.or_else(|| thread::available_parallelism().ok().map(usize::from));
    let settings = Settings {
        alone: inspected.rounds_by_batch,
        threads: threads.unwrap_or(1),
        batch_tokens: batch_tokens(config),
    };
    let graph = Graph::load(&onnx.name, &onnx.path, &described, &settings)?;
    meter.end();
    let dimensions = match described.head {
        Head::Embed => graph.width(),
        _ => described.hidden,
    };
    let limits = limits(described.head, max_tokens, dimensions);
    Ok(Loaded {
        facts: facts(&described, &inspected, digest, size_bytes, max_tokens, memory),
        tokens: tokens(text, max_tokens, limits.task)?,
        limits,
        body: Body::Onnx(Box::new(graph)),
        labels: described.labels,
        recipe,
    })
}

/// The runtime holds the weights as they are in the file and packed, and the graph's values while it computes.
fn memory(described: &Described, size_bytes: u64, batch_tokens: usize, max_tokens: usize) -> Memory {
    let tokens = batch_tokens.max(max_tokens) as u64;
    // Of each token: what is added and multiplied, and its shares of the others' attention, before and after softmax.
    let row = 4 * (6 * described.hidden + 3 * described.feed_forward + 2 * described.heads * max_tokens);
    Memory {
        weights_bytes: size_bytes.saturating_mul(2),
        kv_bytes: 0,
        activations_bytes: tokens.saturating_mul(row as u64),
    }
}

fn digest(parts: &BTreeMap<String, Bytes>, meter: &mut Meter<'_>) -> String {
    let list: Vec<String> = parts
        .iter()
        .map(|(name, bytes)| format!("{}  {name}\n", files::sha256(bytes, &mut |n| meter.add(n as u64))))
        .collect();
    format!("sha256:{}", files::sha256(list.concat().as_bytes(), &mut |_| ()))
}

fn facts(
    described: &Described,
    inspected: &Inspected,
    digest: String,
    size_bytes: u64,
    max_tokens: usize,
    memory: Memory,
) -> ModelFacts {
    ModelFacts {
        digest,
        architecture: described.class.clone(),
        parameters: inspected.parameters,
        size_bytes,
        quantization: inspected.stored_as(),
        context_length: max_tokens as u32,
        vocabulary_size: described.vocabulary as u32,
        has_chat_template: false,
        memory,
    }
}
