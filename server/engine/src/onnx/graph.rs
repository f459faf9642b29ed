//! Runs a graph over batches of texts.

use std::{path::Path, sync::Arc, thread};

use rten::{Dimension, Model, ModelOptions, NodeId, RunOptions, ShapeInferenceMode, ThreadPool, Value};

use super::config::Described;
use crate::{
    LoadError, contained,
    encoder::{Head, Pooling, Row, pooled},
    kernels::Pool,
};

/// The runtime recurses along chains of nodes while it plans, of which [`super::inspect`] lets 16384 pass.
const STACK: usize = 256 << 20;
/// Texts are padded to the longest of their batch, but not to more than this many times their length.
const MOST_PADDING: f64 = 1.25;

/// A loaded graph.
pub(crate) struct Graph {
    model: Model,
    options: RunOptions,
    inputs: Vec<(NodeId, Input)>,
    output: NodeId,
    gives: Gives,
    head: Head,
    /// Each text is computed alone.
    alone: bool,
    /// Length of a row of the output.
    width: usize,
    /// Computes nothing: it tells that runs end.
    beats: Pool,
    /// Tokens of a run, padding included.
    batch_tokens: usize,
}

/// What a graph is given for each token.
#[derive(Clone, Copy)]
enum Input {
    Ids,
    /// 1 for a token, 0 for padding.
    Mask,
    /// Which text of a pair.
    Types,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gives {
    /// A row for each token.
    Tokens,
    /// A row for each text.
    Texts,
}

/// How a graph is to be run.
pub(super) struct Settings {
    pub(super) alone: bool,
    pub(super) threads: usize,
    pub(super) batch_tokens: usize,
}

impl Graph {
    /// Loads a file that was inspected, and computes two tokens with it. Blocks.
    ///
    /// # Errors
    /// What the runtime says of the file, or what is wrong with its inputs and outputs.
    pub(super) fn load(
        file: &str,
        path: &Path,
        described: &Described,
        settings: &Settings,
    ) -> Result<Self, LoadError> {
        thread::scope(|scope| {
            let work = || contained::run(|| Self::open(file, path, described, settings));
            let thread = thread::Builder::new().name("candela-onnx".to_owned()).stack_size(STACK);
            let thread = thread.spawn_scoped(scope, work).map_err(LoadError::Thread)?;
            let panicked = || LoadError::corrupt(file, "reading it made the ONNX runtime panic");
            thread.join().map_err(|_| panicked())?.map_err(|_| panicked())?
        })
    }

    fn open(file: &str, path: &Path, described: &Described, settings: &Settings) -> Result<Self, LoadError> {
        let refuse = |what: String, hint: &str| LoadError::unsupported(file, what, hint);
        let mut options = ModelOptions::with_all_ops();
        // Packed weights halve the time of a short text. Shapes are not inferred: the gain is small, and a graph could
        // make their formulas grow without end.
        options.prepack_weights(true).shape_inference(ShapeInferenceMode::Off);
        let model = options.load_file(path).map_err(|err| match err.kind() {
            rten::LoadErrorKind::OperatorInvalid => refuse(
                format!("an operator of this graph ({err})"),
                "export it with standard operators, opset 17",
            ),
            _ => LoadError::corrupt(file, err.to_string()),
        })?;
        let name = |id: NodeId| model.node_info(id).and_then(|info| info.name()).unwrap_or_default();
        let mut inputs = Vec::new();
        for id in model.input_ids() {
            inputs.push((
                *id,
                match name(*id) {
                    "input_ids" => Input::Ids,
                    "attention_mask" => Input::Mask,
                    "token_type_ids" => Input::Types,
                    other => {
                        let hint = "an encoder reads `input_ids`, `attention_mask` and `token_type_ids`";
                        return Err(refuse(format!("the input `{other}`"), hint));
                    }
                },
            ));
        }
        let wanted: &[&str] = match described.head {
            Head::Embed => &["last_hidden_state", "token_embeddings", "sentence_embedding"],
            _ => &["logits"],
        };
        let outputs = model.output_ids();
        let output = wanted.iter().find_map(|wanted| outputs.iter().find(|id| name(**id) == *wanted));
        let Some(output) = output.copied() else {
            let names: Vec<_> = outputs.iter().map(|id| name(*id)).collect();
            let what = format!("a `{}` whose outputs are `{}`", described.class, names.join("`, `"));
            return Err(refuse(what, &format!("it should have one of `{}`", wanted.join("`, `"))));
        };
        let gives = match described.head {
            Head::Embed if name(output) == "sentence_embedding" => Gives::Texts,
            Head::Embed | Head::Tokens(_) => Gives::Tokens,
            Head::Score => Gives::Texts,
        };
        let is_fixed = |id: NodeId| {
            let shape = model.node_info(id).and_then(|info| info.shape()).unwrap_or_default();
            shape.iter().any(|size| matches!(size, Dimension::Fixed(_)))
        };
        if let Some((id, _)) = inputs.iter().find(|(id, _)| is_fixed(*id)) {
            let what = format!("the input `{}` of a fixed size", name(*id));
            return Err(refuse(what, "export it with dynamic axes for batch and sequence"));
        }
        let pool = ThreadPool::with_num_threads(settings.threads);
        let mut graph = Self {
            options: RunOptions::default().with_thread_pool(Some(Arc::new(pool))),
            inputs,
            output,
            gives,
            head: described.head,
            alone: settings.alone,
            width: 0,
            beats: Pool::new(1).map_err(LoadError::Thread)?,
            batch_tokens: settings.batch_tokens,
            model,
        };
        graph.probe(file, described)?;
        Ok(graph)
    }

    /// What the output's rows are, by computing one.
    fn probe(&mut self, file: &str, described: &Described) -> Result<(), LoadError> {
        let (tokens, types) = ([0; 2], []);
        let rows = [Row { tokens: &tokens, types: &types }];
        let (shape, _) = self.run(&rows).map_err(|what| LoadError::corrupt(file, what))?;
        self.width = *shape.last().unwrap_or(&0);
        let expected: (&[usize], usize) = match (self.gives, self.head) {
            (Gives::Texts, Head::Score) => (&[1], 1),
            (Gives::Texts, _) => (&[1], self.width),
            (Gives::Tokens, Head::Tokens(n)) => (&[1, 2], n),
            (Gives::Tokens, _) => (&[1, 2], self.width),
        };
        if shape.split_last() != Some((&expected.1, expected.0)) || self.width == 0 {
            let what =
                format!("two tokens give an output of shape {shape:?}, `{}` has another", described.class);
            return Err(LoadError::corrupt(file, what));
        }
        Ok(())
    }

    /// Beats between the runs of a batch.
    pub(crate) fn beats(&self) -> &Pool {
        &self.beats
    }

    /// Length of a vector, or how many scores.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// A vector for each text, in order.
    ///
    /// # Errors
    /// What the runtime says, in words.
    pub(crate) fn vectors(&self, rows: &[Row<'_>], pooling: Pooling) -> Result<Vec<Vec<f32>>, String> {
        self.each(rows, |own| match self.gives {
            Gives::Texts => own.to_vec(),
            Gives::Tokens => pooled(pooling, own, self.width),
        })
    }

    /// The scores of each text, or of each of its tokens, one text after the other.
    ///
    /// # Errors
    /// What the runtime says, in words.
    pub(crate) fn logits(&self, rows: &[Row<'_>]) -> Result<Vec<f32>, String> {
        Ok(self.each(rows, <[f32]>::to_vec)?.concat())
    }

    /// Computes the texts in batches of like lengths and calls `take` with the part of the output that is a text's own.
    fn each<T: Default>(&self, rows: &[Row<'_>], take: impl Fn(&[f32]) -> T) -> Result<Vec<T>, String> {
        let mut taken: Vec<T> = rows.iter().map(|_| T::default()).collect();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|i| rows[*i].tokens.len());
        let mut rest = &order[..];
        while !rest.is_empty() {
            let (batch, after) = rest.split_at(self.fitting(rows, rest));
            rest = after;
            let own: Vec<Row<'_>> = batch.iter().map(|i| rows[*i]).collect();
            let (shape, values) = self.run(&own)?;
            self.beats.beat();
            let row = values.len() / batch.len();
            for ((i, values), Row { tokens, .. }) in batch.iter().zip(values.chunks(row)).zip(&own) {
                let len = match self.gives {
                    Gives::Texts => self.width,
                    Gives::Tokens => tokens.len() * self.width,
                };
                let fits = shape.first() == Some(&batch.len()) && shape.last() == Some(&self.width);
                let values = values.get(..len).filter(|_| fits);
                taken[*i] =
                    take(values.ok_or_else(|| format!("the graph gives an output of shape {shape:?}"))?);
            }
        }
        Ok(taken)
    }

    /// How many of these texts, shortest first, make the next batch.
    fn fitting(&self, rows: &[Row<'_>], order: &[usize]) -> usize {
        let shortest = rows[order[0]].tokens.len() as f64;
        let fits = |(n, i): (usize, &usize)| {
            let len = rows[*i].tokens.len();
            (n + 1) * len <= self.batch_tokens && len as f64 <= shortest * MOST_PADDING
        };
        match self.alone {
            true => 1,
            false => order.iter().enumerate().take_while(|(n, i)| fits((*n, i))).count().max(1),
        }
    }

    /// One run over texts padded to the longest: shape and values of the output.
    fn run(&self, rows: &[Row<'_>]) -> Result<(Vec<usize>, Vec<f32>), String> {
        let longest = rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0);
        let shape = [rows.len(), longest];
        let padded = |of: &dyn Fn(&Row<'_>, usize) -> i32| {
            let values = rows
                .iter()
                .flat_map(|row| (0..longest).map(move |i| if i < row.tokens.len() { of(row, i) } else { 0 }));
            Value::from_shape(shape, values.collect::<Vec<i32>>()).map_err(|err| err.to_string())
        };
        let mut inputs = Vec::new();
        for (id, input) in &self.inputs {
            let value = match input {
                Input::Ids => padded(&|row, i| row.tokens[i].cast_signed())?,
                Input::Mask => padded(&|_, _| 1)?,
                Input::Types => padded(&|row, i| row.types.get(i).copied().unwrap_or(0).cast_signed())?,
            };
            inputs.push((*id, value.into()));
        }
        let outputs = self.model.run(inputs, &[self.output], Some(self.options.clone()));
        let output = outputs.map_err(|err| format!("the graph fails: {err}"))?.into_iter().next();
        match output {
            Some(value) => floats(value, self.gives).map_err(|err| format!("the output: {err}")),
            None => Err("the graph gives nothing".to_owned()),
        }
    }
}

/// Shape and values of a tensor of three dimensions, or of two.
fn floats(value: Value, gives: Gives) -> Result<(Vec<usize>, Vec<f32>), rten::TryFromValueError> {
    match gives {
        Gives::Tokens => value.into_shape_vec::<f32, 3>().map(|(shape, values)| (shape.to_vec(), values)),
        Gives::Texts => value.into_shape_vec::<f32, 2>().map(|(shape, values)| (shape.to_vec(), values)),
    }
}
