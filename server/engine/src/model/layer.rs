//! One layer's weights.

use super::{Shape, load::Source};
use crate::{
    LoadError,
    kernels::{Linear, Pool},
    weights::{Part, Role},
};

pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    /// Query, key and value over one input.
    pub(super) qkv: Linear,
    pub(super) query_key_norms: Option<(Vec<f32>, Vec<f32>)>,
    pub(super) output: Linear,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
    /// Of what attention and feed-forward add.
    pub(super) post_norms: Option<(Vec<f32>, Vec<f32>)>,
}

type Dims = (usize, usize);

impl Layer {
    /// The matrices as they are stored, `(rows, columns)`, in the order in which they are computed.
    pub(super) fn matrices(shape: &Shape) -> Vec<(Part, Dims)> {
        let (hidden, f) = (shape.hidden, shape.feed_forward);
        let (query, kv) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let mut all = match shape.family.is_fused() {
            true => vec![(Part::QueryKeyValue, (query + 2 * kv, hidden))],
            false => {
                vec![(Part::Query, (query, hidden)), (Part::Key, (kv, hidden)), (Part::Value, (kv, hidden))]
            }
        };
        all.push((Part::Output, (hidden, query)));
        match shape.family.is_fused() {
            true => all.push((Part::GateUp, (2 * f, hidden))),
            false => all.extend([(Part::Gate, (f, hidden)), (Part::Up, (f, hidden))]),
        }
        all.push((Part::Down, (hidden, f)));
        all
    }

    pub(super) fn load(
        i: usize,
        shape: &Shape,
        source: &mut Source<'_>,
        pool: &Pool,
    ) -> Result<Self, LoadError> {
        let matrices = Self::matrices(shape);
        let mut linear = |wanted: &[Part]| {
            let parts: Vec<_> = matrices.iter().filter(|(part, _)| wanted.contains(part)).collect();
            let has_bias = parts.iter().any(|(part, _)| bias_of(shape, *part).is_some());
            let bias = match has_bias {
                false => None,
                true => {
                    let mut all = Vec::new();
                    for (part, (rows, _)) in &parts {
                        match bias_of(shape, *part) {
                            Some(bias) => all.extend(source.weights.vector(Role::Layer(i, bias), *rows)?),
                            None => all.resize(all.len() + rows, 0.0),
                        }
                    }
                    Some(all)
                }
            };
            let parts: Vec<_> = parts.iter().map(|(part, dims)| (Role::Layer(i, *part), *dims)).collect();
            source.linear(pool, &parts, bias)
        };
        let qkv = linear(&[Part::Query, Part::Key, Part::Value, Part::QueryKeyValue])?;
        let output = linear(&[Part::Output])?;
        let gate_up = linear(&[Part::Gate, Part::Up, Part::GateUp])?;
        let down = linear(&[Part::Down])?;
        let norm = |part, len| source.weights.vector(Role::Layer(i, part), len);
        let hidden = shape.hidden;
        let query_key_norms = match shape.family.has_query_key_norms() {
            true => Some((norm(Part::QueryNorm, shape.head_dim)?, norm(Part::KeyNorm, shape.head_dim)?)),
            false => None,
        };
        let post_norms = match shape.family.has_post_norms() {
            true => Some((norm(Part::PostAttentionNorm, hidden)?, norm(Part::PostFeedForwardNorm, hidden)?)),
            false => None,
        };
        Ok(Self {
            attention_norm: norm(Part::AttentionNorm, hidden)?,
            feed_forward_norm: norm(Part::FeedForwardNorm, hidden)?,
            qkv,
            query_key_norms,
            output,
            gate_up,
            down,
            post_norms,
        })
    }
}

fn bias_of(shape: &Shape, part: Part) -> Option<Part> {
    let (has, bias) = match part {
        Part::Query => (shape.biases.qkv, Part::QueryBias),
        Part::Key => (shape.biases.qkv, Part::KeyBias),
        Part::Value => (shape.biases.qkv, Part::ValueBias),
        Part::Output => (shape.biases.output, Part::OutputBias),
        Part::Gate => (shape.biases.feed_forward, Part::GateBias),
        Part::Up => (shape.biases.feed_forward, Part::UpBias),
        Part::Down => (shape.biases.feed_forward, Part::DownBias),
        _ => return None,
    };
    has.then_some(bias)
}
