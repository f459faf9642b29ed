//! Mutated model files against the loader and, where they still load, the tokenizer, the chat template and a few steps.
//!
//! Each input must end in an engine or an error, without a panic that a library would have to be saved from, in bounded
//! time, and without memory that its size does not justify: an allocator counts. Inputs follow from the seed, so a
//! failure names what repeats it. `CANDELA_FUZZ_SECONDS` says how long each target runs (default 2), `CANDELA_FUZZ_SEED`
//! where it begins; `make prove` runs hours.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod counting;

use std::{
    fs,
    ops::ControlFlow,
    path::Path,
    sync::mpsc,
    time::{Duration, Instant},
};

use candela_engine::{
    ChatRequest, Engine, EngineConfig, Event, GenerateRequest, LoadError, ModelSource, SamplingParams,
    SpecialTokens, testing::TinyModel,
};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

/// What a load may hold at once: the widest JSON value takes ninety times its bytes, and a context's keys and values
/// are asked for by the config, so the limit given to the engine counts too.
const MEMORY_LIMIT: u64 = 64 << 20;
const PER_BYTE: usize = 128;
/// A mutated file of some ten kilobytes that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Writes a mutated model into a folder.
type Make = fn(&Path, &mut ChaCha8Rng) -> ModelSource;

fn main() {
    // Contained panics are many, and their backtraces bury the one that matters.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !candela_engine::panic_is_contained() {
            usual(info);
        }
    }));
    let seconds = number("CANDELA_FUZZ_SECONDS").unwrap_or(2);
    let first = number("CANDELA_FUZZ_SEED").unwrap_or(0);
    let targets: [(&str, Make); 6] = [
        ("safetensors", |dir, rng| folder_with(dir, rng, "model.safetensors")),
        ("pytorch", pytorch),
        ("gguf", gguf),
        ("tokenizer.json", |dir, rng| folder_with(dir, rng, "tokenizer.json")),
        ("config.json", |dir, rng| folder_with(dir, rng, "config.json")),
        ("chat template", |dir, rng| folder_with(dir, rng, "tokenizer_config.json")),
    ];
    for (target, make) in targets {
        let until = Instant::now() + Duration::from_secs(seconds);
        let (mut n, mut served) = (0u64, 0u64);
        while Instant::now() < until {
            let seed = first + n;
            served += u64::from(one(target, seed, make));
            n += 1;
        }
        println!("{target}: {n} inputs, {served} still served");
        assert!(n > 0);
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// True = the model was served all the same.
fn one(target: &str, seed: u64, make: Make) -> bool {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    let source = make(dir.path(), &mut rng);
    let bytes: u64 = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    let began = Instant::now();
    let before = counting::start();
    let served = serve(&source).unwrap_or_else(|what| panic!("{target}, seed {seed}: {what}"));
    let most = counting::most_since(before);
    let allowed = MEMORY_LIMIT as usize + PER_BYTE * bytes as usize;
    assert!(most <= allowed, "{target}, seed {seed}: {most} bytes were held for {bytes} of input");
    let took = began.elapsed();
    assert!(took < PATIENCE, "{target}, seed {seed}: it took {took:?}");
    served
}

fn serve(source: &ModelSource) -> Result<bool, String> {
    let config = EngineConfig {
        max_sequences: 2,
        step_tokens: 16,
        memory_limit_bytes: Some(MEMORY_LIMIT / 2),
        threads: Some(2),
        ..EngineConfig::default()
    };
    let engine = match Engine::load(source, &config, &mut |_| ()) {
        Ok(engine) => engine,
        // The tokenizer library's own panics are expected and contained where it is called; others are ours.
        Err(LoadError::Corrupt { what, .. }) if what.contains("made a library panic") => return Err(what),
        Err(_) => return Ok(false),
    };
    // Errors are answers here; what must not be is a panic or a wait without end.
    let _ = engine.encode("Hello, wörld! \u{1F980} <|eos|> 123", SpecialTokens::Add);
    let _ = engine.decode(&[0, 1, 2, 255, 256, 257, 259, u32::MAX]);
    let messages =
        serde_json::json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x"}]);
    let chat = ChatRequest { messages, add_generation_prompt: true, ..ChatRequest::default() };
    let _ = engine.render_chat(&chat);
    let (sender, receiver) = mpsc::channel();
    let sink = Box::new(move |event| {
        if matches!(event, Event::Finished(_)) {
            let _ = sender.send(());
        }
        ControlFlow::Continue(())
    });
    let request = GenerateRequest {
        prompt_tokens: vec![0; 3],
        sampling: SamplingParams::greedy(),
        max_tokens: Some(4),
        logprobs: Some(2),
        ..GenerateRequest::default()
    };
    if engine.submit(request, sink).is_ok() && receiver.recv_timeout(PATIENCE).is_err() {
        return Err("a request never ended".to_owned());
    }
    engine.shutdown();
    Ok(true)
}

fn folder_with(dir: &Path, rng: &mut ChaCha8Rng, name: &str) -> ModelSource {
    TinyModel::default().write_folder(dir).unwrap();
    let path = dir.join(name);
    let bytes = fs::read(&path).unwrap();
    fs::write(path, mutated(rng, bytes)).unwrap();
    ModelSource::Folder(dir.to_owned())
}

fn pytorch(dir: &Path, rng: &mut ChaCha8Rng) -> ModelSource {
    TinyModel::default().write_folder(dir).unwrap();
    fs::remove_file(dir.join("model.safetensors")).unwrap();
    fs::write(dir.join("pytorch_model.bin"), mutated(rng, TinyModel::default().pytorch())).unwrap();
    ModelSource::Folder(dir.to_owned())
}

fn gguf(dir: &Path, rng: &mut ChaCha8Rng) -> ModelSource {
    let path = dir.join("model.gguf");
    TinyModel::default().write_gguf(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, mutated(rng, bytes)).unwrap();
    ModelSource::GgufFile(path)
}

/// Some of: flipped bits, hostile numbers in binary and in words, pieces cut, copied, repeated. Most hit the first
/// tenth of a binary file, which is its header.
fn mutated(rng: &mut ChaCha8Rng, mut bytes: Vec<u8>) -> Vec<u8> {
    const NUMBERS: [u64; 10] =
        [0, 1, 0x7f, 0xff, 0x7fff_ffff, 0xffff_ffff, 1 << 31, 1 << 32, u64::MAX >> 1, u64::MAX];
    const WORDS: [&str; 14] = [
        "0",
        "-1",
        "1e999",
        "4294967296",
        "18446744073709551615",
        "null",
        "[]",
        "{}",
        "\"\"",
        "true",
        "[[[[[[[[",
        "\\u0000",
        "{{ range(999999999) | list }}",
        "{% for a in range(9999999) %}{{ a ~ a }}{% endfor %}",
    ];
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            break;
        }
        let reach = if rng.random_bool(0.7) {
            bytes.len().div_ceil(10).max(64).min(bytes.len())
        } else {
            bytes.len()
        };
        let at = rng.random_range(0..reach);
        let n = rng.random_range(1..=64).min(bytes.len() - at);
        match rng.random_range(0..7) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => {
                let number = NUMBERS.choose(rng).unwrap().to_le_bytes();
                let n = n.min(*[1, 2, 4, 8].choose(rng).unwrap());
                bytes[at..at + n].copy_from_slice(&number[..n]);
            }
            2 => drop(bytes.splice(at..at + n, WORDS.choose(rng).unwrap().bytes())),
            3 => bytes.truncate(at),
            4 => drop(bytes.drain(at..at + n)),
            5 => {
                let piece = bytes[at..at + n].to_vec();
                let to = rng.random_range(0..bytes.len());
                drop(bytes.splice(to..to, piece.repeat(rng.random_range(1..=50))));
            }
            // A number in words becomes another one.
            _ => {
                let Some(first) = bytes[at..].iter().position(u8::is_ascii_digit) else { continue };
                let first = at + first;
                let n = bytes[first..].iter().take_while(|b| b.is_ascii_digit()).count();
                drop(bytes.splice(first..first + n, WORDS.choose(rng).unwrap().bytes()));
            }
        }
    }
    bytes
}
