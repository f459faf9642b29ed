//! Keys and values of one sequence, contiguous per layer, grown by doubling.

use candle_core::{DType, Device, Result as CandleResult, Tensor};

use super::Shape;

const FIRST_CAPACITY: usize = 64;

/// The cache of one sequence.
pub(crate) struct KvCache {
    /// Keys and values of each layer, `(kv_heads, capacity, head_dim)`.
    layers: Vec<(Tensor, Tensor)>,
    len: usize,
    capacity: usize,
    max_len: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl KvCache {
    /// Empty; nothing is allocated before the first token.
    pub(crate) fn new(shape: &Shape, max_len: usize) -> Self {
        Self {
            layers: Vec::new(),
            len: 0,
            capacity: 0,
            max_len,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
        }
    }

    /// Tokens held.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Makes room for `n` more tokens in each of `n_layers` layers.
    pub(super) fn reserve(&mut self, n: usize, n_layers: usize) -> CandleResult<()> {
        let needed = self.len + n;
        if needed <= self.capacity {
            return Ok(());
        }
        if needed > self.max_len {
            candle_core::bail!("{needed} tokens exceed the context of {}", self.max_len);
        }
        let capacity = needed.max(self.capacity * 2).max(FIRST_CAPACITY).min(self.max_len);
        let dims = (self.kv_heads, capacity, self.head_dim);
        let grow = |old: Option<&Tensor>| -> CandleResult<Tensor> {
            let new = Tensor::zeros(dims, DType::F32, &Device::Cpu)?;
            if let Some(old) = old {
                new.slice_set(old, 1, 0)?;
            }
            Ok(new)
        };
        // One tensor at a time, the old one dropped at once: growing all of them first would hold both, which is half
        // as much again as was counted for. The capacity says what every layer has, so it moves last.
        for i in 0..n_layers {
            match self.layers.get_mut(i) {
                Some((keys, values)) => {
                    *keys = grow(Some(&*keys))?;
                    *values = grow(Some(&*values))?;
                }
                None => self.layers.push((grow(None)?, grow(None)?)),
            }
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Appends `(kv_heads, n, head_dim)` to one layer and returns all keys and values of it, the new ones included.
    /// [`KvCache::advance`] counts them once every layer has them.
    pub(super) fn append(
        &mut self,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> CandleResult<(Tensor, Tensor)> {
        let n = keys.dim(1)?;
        let (all_keys, all_values) = &self.layers[layer];
        all_keys.slice_set(&keys.contiguous()?, 1, self.len)?;
        all_values.slice_set(&values.contiguous()?, 1, self.len)?;
        Ok((all_keys.narrow(1, 0, self.len + n)?, all_values.narrow(1, 0, self.len + n)?))
    }

    pub(super) fn advance(&mut self, n: usize) {
        self.len += n;
    }
}
