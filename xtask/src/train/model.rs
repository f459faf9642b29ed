//! The Llama-shaped network that is trained: same arithmetic as transformers' `LlamaForCausalLM` with a tied head.
//! Weights are kept as `[in, out]` (no transposed copies in the backward pass) and turned on export.

use std::{collections::HashMap, sync::Arc};

use candle_core::{DType, Device, Result, Tensor, Var};
use rand::Rng;

use super::{
    attention::{Attention, Packed},
    init,
    ops::{CrossEntropy, RmsNorm, SwiGlu},
};

#[derive(Clone, Debug)]
pub(super) struct Config {
    pub(super) vocab: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) n_layers: usize,
    pub(super) n_heads: usize,
    pub(super) n_kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) rope_theta: f32,
    pub(super) rms_eps: f32,
    pub(super) context: usize,
}

impl Config {
    pub(super) fn demo(vocab: usize) -> Self {
        Self {
            vocab,
            hidden: 192,
            intermediate: 512,
            n_layers: 4,
            n_heads: 6,
            n_kv_heads: 3,
            head_dim: 32,
            rope_theta: 10_000.0,
            rms_eps: 1e-5,
            context: 1024,
        }
    }
}

/// Dialogues one after another, with the next token and its weight in the loss for each position.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) tokens: Vec<u32>,
    pub(super) targets: Vec<u32>,
    pub(super) weights: Vec<f32>,
    pub(super) lengths: Vec<usize>,
}

struct Layer {
    attention_norm: Var,
    q: Var,
    k: Var,
    v: Var,
    o: Var,
    mlp_norm: Var,
    gate: Var,
    up: Var,
    down: Var,
}

pub(super) struct Model {
    pub(super) config: Config,
    embedding: Var,
    layers: Vec<Layer>,
    norm: Var,
}

impl Model {
    /// Attention as [`init`] has it; the projections of the MLPs back into the residual stream start at zero.
    pub(super) fn new(config: Config, rng: &mut impl Rng) -> Result<Self> {
        let matrix = |values, rows: usize, cols: usize| Var::from_vec(values, (rows, cols), &Device::Cpu);
        let ones = |n| Var::ones(n, DType::F32, &Device::Cpu);
        let (d, ff) = (config.hidden, config.intermediate);
        let (qw, kw) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
        let std = (d as f32).powf(-0.5);
        let embedding = matrix(init::embedding(&config, rng), config.vocab, d)?;
        let mut layers = Vec::new();
        for layer in 0..config.n_layers {
            let start = init::attention(&config, layer, rng);
            layers.push(Layer {
                attention_norm: ones(d)?,
                q: matrix(start.q, d, qw)?,
                k: matrix(start.k, d, kw)?,
                v: matrix(start.v, d, kw)?,
                o: matrix(start.o, qw, d)?,
                mlp_norm: ones(d)?,
                gate: matrix(init::normal(rng, d * ff, std), d, ff)?,
                up: matrix(init::normal(rng, d * ff, std), d, ff)?,
                down: Var::zeros((ff, d), DType::F32, &Device::Cpu)?,
            });
        }
        Ok(Self { norm: ones(d)?, config, embedding, layers })
    }

    /// The parameters under their names in a Hugging Face checkpoint.
    pub(super) fn parameters(&self) -> Vec<(String, &Var)> {
        let mut all = vec![("model.embed_tokens.weight".to_owned(), &self.embedding)];
        for (i, layer) in self.layers.iter().enumerate() {
            let parts = [
                ("input_layernorm", &layer.attention_norm),
                ("self_attn.q_proj", &layer.q),
                ("self_attn.k_proj", &layer.k),
                ("self_attn.v_proj", &layer.v),
                ("self_attn.o_proj", &layer.o),
                ("post_attention_layernorm", &layer.mlp_norm),
                ("mlp.gate_proj", &layer.gate),
                ("mlp.up_proj", &layer.up),
                ("mlp.down_proj", &layer.down),
            ];
            all.extend(parts.map(|(name, var)| (format!("model.layers.{i}.{name}.weight"), var)));
        }
        all.push(("model.norm.weight".to_owned(), &self.norm));
        all
    }

    pub(super) fn n_parameters(&self) -> usize {
        self.parameters().iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// The weights as a checkpoint holds them: projections as `[out, in]`, f16.
    pub(super) fn export(&self) -> Result<HashMap<String, Tensor>> {
        let turn = |(name, var): (String, &Var)| {
            let tensor = if name.ends_with("_proj.weight") { var.t()?.contiguous()? } else { var.copy()? };
            Ok((name, tensor.to_dtype(DType::F16)?))
        };
        self.parameters().into_iter().map(turn).collect()
    }

    /// Rounds the weights to the precision of the checkpoint, so that what is evaluated is what ships.
    pub(super) fn round_to_f16(&self) -> Result<()> {
        for (_, var) in self.parameters() {
            var.set(&var.to_dtype(DType::F16)?.to_dtype(DType::F32)?)?;
        }
        Ok(())
    }

    /// Final hidden states of a packed batch, `[rows, hidden]`.
    pub(super) fn hidden(&self, tokens: &[u32], lengths: &[usize]) -> Result<Tensor> {
        let c = &self.config;
        let packed = Arc::new(Packed {
            lengths: lengths.to_vec(),
            n_heads: c.n_heads,
            n_kv_heads: c.n_kv_heads,
            head_dim: c.head_dim,
            theta: c.rope_theta,
        });
        let norm = |x: &Tensor, w: &Var| x.apply_op2(w.as_tensor(), RmsNorm { eps: c.rms_eps });
        let tokens = Tensor::from_slice(tokens, tokens.len(), &Device::Cpu)?;
        let mut x = self.embedding.index_select(&tokens, 0)?;
        for layer in &self.layers {
            let h = norm(&x, &layer.attention_norm)?;
            let (q, k, v) = (h.matmul(&layer.q)?, h.matmul(&layer.k)?, h.matmul(&layer.v)?);
            x = (x + q.apply_op3(&k, &v, Attention(packed.clone()))?.matmul(&layer.o)?)?;
            let h = norm(&x, &layer.mlp_norm)?;
            let (gate, up) = (h.matmul(&layer.gate)?, h.matmul(&layer.up)?);
            x = (x + gate.apply_op2(&up, SwiGlu)?.matmul(&layer.down)?)?;
        }
        norm(&x, &self.norm)
    }

    pub(super) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.matmul(&self.embedding.t()?)
    }

    pub(super) fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let hidden = self.hidden(&batch.tokens, &batch.lengths)?;
        let learned = || batch.weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0);
        let rows: Vec<u32> = learned().map(|(row, _)| row as u32).collect();
        let targets: Vec<u32> = rows.iter().map(|row| batch.targets[*row as usize]).collect();
        let weights: Vec<f32> = learned().map(|(_, weight)| *weight).collect();
        let n = rows.len();
        let rows = Tensor::from_vec(rows, n, &Device::Cpu)?;
        self.logits(&hidden.index_select(&rows, 0)?)?.apply_op1(CrossEntropy { targets, weights })
    }
}
