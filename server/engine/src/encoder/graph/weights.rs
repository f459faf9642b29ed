//! From the files' tensors to the parts of an encoder, and what they will take.

use std::sync::Arc;

use super::{
    super::config::{Family, Head, Shape},
    Buffers, Encoder,
};
use crate::{
    LoadError,
    kernels::{Activation, Isa, Linear, PackedFormat, PackedMatrix, Pool, RawTensor, StoredType},
    weights::folder::FolderWeights,
};

/// Rows of floats as they are stored.
pub(super) struct Table {
    dtype: StoredType,
    rows: usize,
    columns: usize,
    bytes: Box<[u8]>,
}

impl Table {
    pub(super) fn row(&self, i: usize, out: &mut [f32]) {
        RawTensor { dtype: self.dtype, rows: self.rows, columns: self.columns, bytes: &self.bytes }
            .widen_row(i, out);
    }
}

pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Option<Vec<f32>>,
}

pub(super) struct Layer {
    /// In front of attention; the first layer of ModernBERT has none. BERT's stands behind.
    pub(super) attention_norm: Option<Norm>,
    pub(super) qkv: Linear,
    pub(super) output: Linear,
    pub(super) feed_forward_norm: Norm,
    /// Gate and up together where the feed-forward is gated.
    pub(super) up: Linear,
    pub(super) down: Linear,
}

/// What turns hidden states into scores.
pub(super) struct Top {
    /// Of the pooled state, with what follows it.
    pub(super) dense: Option<(Linear, Between)>,
    pub(super) classifier: Linear,
}

pub(super) enum Between {
    Tanh,
    /// An activation, then a norm.
    Normed(Activation, Norm),
}

/// Reads tensors of an encoder by their names behind the prefix that models with a head have.
struct Reader<'a, 'p> {
    weights: &'a FolderWeights<'p>,
    prefix: &'static str,
    format: Option<PackedFormat>,
}

impl<'a, 'p> Reader<'a, 'p> {
    fn new(weights: &'a FolderWeights<'p>, family: Family, format: Option<PackedFormat>) -> Self {
        let prefix = match family {
            Family::Bert => "bert.",
            Family::XlmRoberta => "roberta.",
            Family::ModernBert => "model.",
        };
        // A bare model's tensors have no prefix.
        let prefix = if weights.has(&format!("{prefix}{}", words(family))) { prefix } else { "" };
        Self { weights, prefix, format }
    }

    fn corrupt(&self, what: String) -> LoadError {
        LoadError::corrupt(self.weights.name(), what)
    }

    fn body(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        let mut values = vec![0.0; len];
        self.weights.tensor(name, &[len])?.widen_row(0, &mut values);
        Ok(values)
    }

    fn norm(&self, name: &str, len: usize) -> Result<Norm, LoadError> {
        let bias = format!("{name}.bias");
        Ok(Norm {
            weight: self.vector(&format!("{name}.weight"), len)?,
            bias: if self.weights.has(&bias) { Some(self.vector(&bias, len)?) } else { None },
        })
    }

    fn table(&self, name: &str, rows: usize, columns: usize) -> Result<Table, LoadError> {
        let raw = self.weights.tensor(&self.body(name), &[rows, columns])?;
        Ok(Table { dtype: raw.dtype, rows, columns, bytes: raw.bytes.into() })
    }

    /// Products over one input; a bias where the files have one.
    fn linear(
        &self,
        pool: &Pool,
        names: &[String],
        rows: usize,
        columns: usize,
    ) -> Result<Linear, LoadError> {
        let (mut parts, mut biases, mut has_bias) = (Vec::new(), Vec::new(), false);
        for name in names {
            let raw = self.weights.tensor(&format!("{name}.weight"), &[rows, columns])?;
            let packed = PackedMatrix::quantize(&raw, self.becomes(&raw), pool);
            parts.push(packed.map_err(|e| self.corrupt(e))?);
            let bias = format!("{name}.bias");
            match self.weights.has(&bias) {
                true => {
                    biases.extend(self.vector(&bias, rows)?);
                    has_bias = true;
                }
                false => biases.resize(biases.len() + rows, 0.0),
            }
        }
        Linear::new(parts, has_bias.then_some(biases)).map_err(|e| self.corrupt(e))
    }

    /// How a matrix will be held: as it is stored, or in blocks where that is asked for and its rows are whole blocks.
    fn becomes(&self, raw: &RawTensor<'_>) -> PackedFormat {
        let format = self.format.filter(|_| raw.dtype.is_dense() && raw.columns.is_multiple_of(32));
        format.unwrap_or_else(|| PackedFormat::of(raw.dtype))
    }

    /// The matrices of a layer as products over one input each: their names, and the rows and columns of one.
    /// In order: query, key and value; output; up, with the gate if there is one; down.
    fn matrices(&self, i: usize, shape: &Shape) -> [(Vec<String>, usize, usize); 4] {
        let (hidden, f) = (shape.hidden, shape.feed_forward);
        if shape.family == Family::ModernBert {
            let at = |name: &str| vec![self.body(&format!("layers.{i}.{name}"))];
            return [
                (at("attn.Wqkv"), 3 * hidden, hidden),
                (at("attn.Wo"), hidden, hidden),
                (at("mlp.Wi"), 2 * f, hidden),
                (at("mlp.Wo"), hidden, f),
            ];
        }
        let at = |name: &str| self.body(&format!("encoder.layer.{i}.{name}"));
        let qkv = ["query", "key", "value"].map(|part| at(&format!("attention.self.{part}")));
        [
            (qkv.to_vec(), hidden, hidden),
            (vec![at("attention.output.dense")], hidden, hidden),
            (vec![at("intermediate.dense")], f, hidden),
            (vec![at("output.dense")], hidden, f),
        ]
    }

    fn layer(&self, pool: &Pool, i: usize, shape: &Shape) -> Result<Layer, LoadError> {
        let hidden = shape.hidden;
        let (layer, before, behind) = match shape.family {
            Family::ModernBert => ("layers", "attn_norm", "mlp_norm"),
            _ => ("encoder.layer", "attention.output.LayerNorm", "output.LayerNorm"),
        };
        let norm = |name: &str| self.norm(&self.body(&format!("{layer}.{i}.{name}")), hidden);
        let has_no_norm = shape.family == Family::ModernBert && i == 0;
        let [qkv, output, up, down] =
            self.matrices(i, shape).map(|(names, rows, columns)| self.linear(pool, &names, rows, columns));
        Ok(Layer {
            attention_norm: if has_no_norm { None } else { Some(norm(before)?) },
            qkv: qkv?,
            output: output?,
            feed_forward_norm: norm(behind)?,
            up: up?,
            down: down?,
        })
    }

    fn top(&self, pool: &Pool, shape: &Shape) -> Result<Option<Top>, LoadError> {
        let hidden = shape.hidden;
        let linear = |name: &str, rows| self.linear(pool, &[name.to_owned()], rows, hidden);
        let rows = match shape.head {
            Head::Embed => return Ok(None),
            Head::Score => 1,
            Head::Tokens(n) => n,
        };
        let normed = || -> Result<_, LoadError> {
            let between = Between::Normed(shape.activation, self.norm("head.norm", hidden)?);
            Ok(Some((linear("head.dense", hidden)?, between)))
        };
        Ok(Some(match (shape.family, shape.head) {
            (Family::ModernBert, _) => Top { dense: normed()?, classifier: linear("classifier", rows)? },
            (_, Head::Tokens(_)) => Top { dense: None, classifier: linear("classifier", rows)? },
            (Family::XlmRoberta, _) => Top {
                dense: Some((linear("classifier.dense", hidden)?, Between::Tanh)),
                classifier: linear("classifier.out_proj", rows)?,
            },
            (Family::Bert, _) => Top {
                dense: Some((linear("bert.pooler.dense", hidden)?, Between::Tanh)),
                classifier: linear("classifier", rows)?,
            },
        }))
    }
}

impl Encoder {
    /// Converts the weights; 16- and 32-bit matrices of layers become blocks of `format`.
    pub(crate) fn load(
        shape: Shape,
        weights: &FolderWeights<'_>,
        format: Option<PackedFormat>,
        pool: Arc<Pool>,
    ) -> Result<Self, LoadError> {
        let reader = Reader::new(weights, shape.family, format);
        let hidden = shape.hidden;
        let modern = shape.family == Family::ModernBert;
        let words = reader.table(words(shape.family), shape.vocabulary, hidden)?;
        let (positions, types) = match modern {
            true => (None, None),
            false => (
                Some(reader.table(POSITIONS, shape.positions, hidden)?),
                Some(reader.table(TYPES, shape.token_types, hidden)?),
            ),
        };
        let embedding_norm = if modern { "embeddings.norm" } else { "embeddings.LayerNorm" };
        let embedding_norm = reader.norm(&reader.body(embedding_norm), hidden)?;
        let final_norm = if modern { Some(reader.norm(&reader.body("final_norm"), hidden)?) } else { None };
        let layers =
            (0..shape.layers).map(|i| reader.layer(&pool, i, &shape)).collect::<Result<Vec<_>, _>>()?;
        let top = reader.top(&pool, &shape)?;
        let isa = Isa::detect();
        let buffers = Buffers::default();
        Ok(Self {
            shape,
            words,
            positions,
            types,
            embedding_norm,
            layers,
            final_norm,
            top,
            isa,
            pool,
            buffers,
        })
    }

    /// Bytes that the weights will hold, from headers alone: layers and tables exactly, with room for what is small.
    ///
    /// # Errors
    /// As [`Self::load`], for matrices of layers and tables.
    pub(crate) fn weights_bytes(
        shape: &Shape,
        weights: &FolderWeights<'_>,
        format: Option<PackedFormat>,
    ) -> Result<u64, LoadError> {
        let reader = Reader::new(weights, shape.family, format);
        let (hidden, f) = (shape.hidden, shape.feed_forward);
        let mut total = 0u64;
        for (names, rows, columns) in (0..shape.layers).flat_map(|i| reader.matrices(i, shape)) {
            for name in names {
                let raw = weights.tensor(&format!("{name}.weight"), &[rows, columns])?;
                total = total.saturating_add(PackedMatrix::bytes_as(reader.becomes(&raw), rows, columns));
            }
        }
        for (name, rows) in tables(shape) {
            let raw = weights.tensor(&reader.body(name), &[rows, hidden])?;
            total = total.saturating_add(raw.bytes.len() as u64);
        }
        // Biases and norms are f32 whatever the files have.
        total = total.saturating_add((shape.layers * 4 * (10 * hidden + 3 * f)) as u64);
        let head = match shape.head {
            Head::Embed => 0,
            Head::Score => hidden + 1,
            Head::Tokens(n) => hidden + n,
        };
        Ok(total.saturating_add(PackedMatrix::bytes_as(PackedFormat::F32, head, hidden)))
    }
}

/// The name of the table of words.
fn words(family: Family) -> &'static str {
    match family {
        Family::ModernBert => "embeddings.tok_embeddings.weight",
        Family::Bert | Family::XlmRoberta => "embeddings.word_embeddings.weight",
    }
}

const POSITIONS: &str = "embeddings.position_embeddings.weight";
const TYPES: &str = "embeddings.token_type_embeddings.weight";

/// Names and rows of the tables that a family has.
fn tables(shape: &Shape) -> Vec<(&'static str, usize)> {
    let mut tables = vec![(words(shape.family), shape.vocabulary)];
    if shape.family != Family::ModernBert {
        tables.extend([(POSITIONS, shape.positions), (TYPES, shape.token_types)]);
    }
    tables
}
