//! `cargo xtask train-demo`: generates text, trains a tokenizer and a small Llama on it, evaluates and exports
//! `server/models/demo`. One process on the CPU; stop it at any time and go on with `--resume`.

mod attention;
mod checkpoint;
mod drills;
mod evaluate;
mod export;
mod facts;
mod facts_table;
mod init;
mod item;
mod json;
mod mix;
mod model;
mod ops;
mod optimizer;
mod passages;
mod rewrite;
mod spam;
mod stories;
mod tokenizer;
mod words;

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use self::{
    export::{Figures, Outcome},
    item::{Split, Task},
    model::{Batch, Config, Model},
    optimizer::{Optimizer, Rates},
    tokenizer::Chat,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    recipe: Recipe,
    /// Folder that receives the model.
    #[arg(long, default_value = "server/models/demo")]
    out: PathBuf,
    /// Folder for checkpoints and the tokenizer of a run.
    #[arg(long, default_value = "target/train-demo")]
    work: PathBuf,
    /// Go on from the checkpoint in the work folder.
    #[arg(long)]
    resume: bool,
    /// Steps between checkpoints, each with a short evaluation.
    #[arg(long, default_value_t = 200)]
    checkpoint_every: usize,
    /// Evaluate and export the checkpoint in the work folder without training.
    #[arg(long, requires = "resume")]
    export_only: bool,
    /// A line for the model's README, where a run differed from its recipe.
    #[arg(long)]
    note: Option<String>,
}

/// A step's dialogues are cut into parts whose gradients are computed side by side, each by one thread: small matrices
/// gain nothing from several threads each. A constant, so that the result does not depend on the machine.
const SHARDS: usize = 2;

/// Everything that decides what the trained weights are.
#[derive(clap::Args, Clone, Debug)]
struct Recipe {
    #[arg(long, default_value_t = 17)]
    seed: u64,
    #[arg(long, default_value_t = 3200)]
    steps: usize,
    /// Tokens per step, before the last dialogue is cut in whole.
    #[arg(long, default_value_t = 2048)]
    batch_tokens: usize,
    #[arg(long, default_value_t = 2048)]
    vocab: usize,
    #[arg(long, default_value_t = 0.02)]
    muon_rate: f64,
    #[arg(long, default_value_t = 0.004)]
    adam_rate: f64,
    #[arg(long, default_value_t = 30)]
    warmup: usize,
    /// Share of the steps, at the end, over which the learning rate falls to zero.
    #[arg(long, default_value_t = 0.5)]
    decay: f64,
}

impl Recipe {
    fn rates(&self, step: usize) -> Rates {
        let warm = (step + 1) as f64 / self.warmup.max(1) as f64;
        let left = self.steps.saturating_sub(step) as f64 / (self.steps as f64 * self.decay).max(1.0);
        let factor = warm.min(left).min(1.0);
        Rates { muon: self.muon_rate * factor, adam: self.adam_rate * factor }
    }

    /// The same step always sees the same dialogues, so a resumed run equals one that was not stopped.
    fn batch(&self, chat: &Chat, step: usize) -> Result<[Batch; SHARDS]> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed.wrapping_mul(0x9e37_79b9) ^ step as u64);
        let mut shards: [Batch; SHARDS] = Default::default();
        for shard in &mut shards {
            while shard.tokens.len() < self.batch_tokens / SHARDS {
                chat.push(shard, &mix::dialogue(&mut rng, step))?;
            }
        }
        Ok(shards)
    }
}

/// candle reads its number of threads once, from the environment; one per shard is wanted here (see [`SHARDS`]), so the
/// command runs itself again with that setting.
fn with_one_thread_per_matmul() -> Result<bool> {
    const THREADS: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(THREADS).is_some() {
        return Ok(true);
    }
    let mut command = std::process::Command::new(std::env::current_exe()?);
    let status = command.args(std::env::args_os().skip(1)).env(THREADS, "1").status()?;
    anyhow::ensure!(status.success(), "training ended with {status}");
    Ok(false)
}

pub(crate) fn run(args: Args) -> Result<()> {
    if !with_one_thread_per_matmul()? {
        return Ok(());
    }
    let recipe = &args.recipe;
    std::fs::create_dir_all(&args.work)
        .with_context(|| format!("failed to create `{}`", args.work.display()))?;
    let state = args.work.join("state.safetensors");
    let tokenizer_file = args.work.join("tokenizer.json");
    let tokenizer = if args.resume {
        tokenizers::Tokenizer::from_file(&tokenizer_file).map_err(|e| anyhow::anyhow!(e))?
    } else {
        let tokenizer = tokenizer::train(recipe.seed, recipe.vocab, 12_000)?;
        tokenizer.save(&tokenizer_file, false).map_err(|e| anyhow::anyhow!(e))?;
        tokenizer
    };
    let vocab = tokenizer.get_vocab_size(true);
    let chat = Chat::new(tokenizer)?;
    let model = Model::new(Config::demo(vocab), &mut ChaCha8Rng::seed_from_u64(recipe.seed))?;
    let mut optimizer = Optimizer::default();
    let first = if args.resume { checkpoint::load(&state, &model, &mut optimizer)? } else { 0 };
    let items = mix::held_out(recipe.seed);
    let trained = mix::tasks(&mut ChaCha8Rng::seed_from_u64(recipe.seed), Split::Train, 20);
    eprintln!(
        "{} parameters, {vocab} tokens in the vocabulary, {} questions",
        model.n_parameters(),
        items.len()
    );

    let mut loss = f32::NAN;
    if !args.export_only {
        let started = Instant::now();
        let mut n_tokens = 0;
        for step in first..recipe.steps {
            let batch = recipe.batch(&chat, step)?;
            n_tokens += batch.iter().map(|shard| shard.tokens.len()).sum::<usize>();
            let (value, grads) = gradients(&model, &batch)?;
            let norm = optimizer.step(&model.parameters(), &grads, step, recipe.rates(step))?;
            loss = if loss.is_nan() { value } else { 0.95 * loss + 0.05 * value };
            if (step + 1) % 10 == 0 {
                let speed = n_tokens as f64 / started.elapsed().as_secs_f64();
                eprintln!("step {} loss {loss:.4} norm {norm:.2} {speed:.0} tokens/s", step + 1);
            }
            if (step + 1) % args.checkpoint_every == 0 || step + 1 == recipe.steps {
                checkpoint::save(&state, step + 1, &model, &optimizer)?;
                let some: Vec<_> = items.iter().step_by(4).cloned().collect();
                for (kind, some) in [("held out", &some), ("trained templates", &trained)] {
                    report(kind, &evaluate::score(some, &evaluate::answers(&model, &chat, some)?).0);
                }
            }
        }
    } else {
        loss = gradients(&model, &recipe.batch(&chat, first)?)?.0;
    }

    let steps = if args.export_only { first } else { first.max(recipe.steps) };
    model.round_to_f16()?;
    let answers = evaluate::answers(&model, &chat, &items)?;
    let (scores, wrong) = evaluate::score(&items, &answers);
    report("held out", &scores);
    for (task, (prompt, answer)) in &wrong {
        eprintln!("{task:?} wrong: {prompt:?} -> {answer:?}");
    }
    let figures = Figures { parameters: model.n_parameters(), steps, loss };
    let outcome = Outcome { recipe, items: &items, scores: &scores, figures, note: args.note.as_deref() };
    export::write(&args.out, &model, &chat, &outcome)?;
    eprintln!("wrote `{}`", args.out.display());
    Ok(())
}

/// Mean loss of the shards and the gradient of each parameter, in the order of [`Model::parameters`].
fn gradients(model: &Model, shards: &[Batch; SHARDS]) -> Result<(f32, Vec<candle_core::Tensor>)> {
    let parts: Vec<_> = shards
        .par_iter()
        .map(|shard| {
            let loss = model.loss(shard)?;
            let grads = loss.backward()?;
            let grad = |(name, var): (String, &candle_core::Var)| {
                let grad = grads.get(var).with_context(|| format!("`{name}` has no gradient"))?;
                Ok((grad.detach() / SHARDS as f64)?)
            };
            let grads = model.parameters().into_iter().map(grad).collect::<Result<Vec<_>>>()?;
            Ok((loss.to_scalar::<f32>()? / SHARDS as f32, grads))
        })
        .collect::<Result<_>>()?;
    let mut parts = parts.into_iter();
    let (mut loss, mut sum) = parts.next().context("there are no shards")?;
    for (part, grads) in parts {
        loss += part;
        sum = sum.iter().zip(&grads).map(|(a, b)| a + b).collect::<Result<_, _>>()?;
    }
    Ok((loss, sum))
}

fn report(kind: &str, scores: &evaluate::Scores) {
    let line: Vec<String> =
        scores.iter().map(|(task, score): (&Task, _)| format!("{task:?} {}%", score.percent())).collect();
    eprintln!("{kind}: {}", line.join(", "));
}
