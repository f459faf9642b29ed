//! What computes an encoder: our own graph, or one that the model brought.

use super::{
    graph::{Encoder, Row},
    pooling::{self, Recipe},
};
use crate::kernels::Pool;
#[cfg(feature = "onnx")]
use crate::onnx;

/// From batches of tokens to vectors or scores.
pub(crate) enum Body {
    Native(Box<Encoder>),
    #[cfg(feature = "onnx")]
    Onnx(Box<onnx::Graph>),
}

impl Body {
    /// Whose pulse moves while a batch is computed.
    pub(super) fn pool(&self) -> &Pool {
        match self {
            Self::Native(encoder) => encoder.pool(),
            #[cfg(feature = "onnx")]
            Self::Onnx(graph) => graph.beats(),
        }
    }

    /// A vector for each text, in order.
    ///
    /// # Errors
    /// In words.
    pub(super) fn vectors(&mut self, rows: &[Row<'_>], recipe: Recipe) -> Result<Vec<Vec<f32>>, String> {
        let mut vectors: Vec<Vec<f32>> = match self {
            Self::Native(encoder) => {
                let hidden = encoder.shape.hidden;
                let mut states = &*encoder.hidden(rows)?;
                let vector = |row: &Row<'_>| {
                    let (own, rest) = states.split_at(row.tokens.len() * hidden);
                    states = rest;
                    pooling::pooled(recipe.pooling, own, hidden)
                };
                rows.iter().map(vector).collect()
            }
            #[cfg(feature = "onnx")]
            Self::Onnx(graph) => graph.vectors(rows, recipe.pooling)?,
        };
        if recipe.normalize {
            vectors.iter_mut().for_each(|vector| pooling::normalize(vector));
        }
        Ok(vectors)
    }

    /// The scores of each text, or of each of its tokens, one text after the other.
    ///
    /// # Errors
    /// In words.
    pub(super) fn logits(&mut self, rows: &[Row<'_>]) -> Result<Vec<f32>, String> {
        match self {
            Self::Native(encoder) => encoder.logits(rows),
            #[cfg(feature = "onnx")]
            Self::Onnx(graph) => graph.logits(rows),
        }
    }
}
