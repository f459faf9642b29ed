//! Models as tensors: what goes into each kind of model and what comes out, under the names that Triton's vLLM backend uses
//! for text. Wishes come as parameters or as inputs of one element, and are checked as the same fields of our JSON routes.

use candela_wire::{
    config::Task,
    encoders::{EmbeddingsRequest, MAX_INPUTS, RerankRequest},
    openai::InvalidField,
};
use serde_json::{Map, Value, json};

use super::tensor::Tensor;
use crate::{
    api::{ApiError, EncoderJob, Job, embeddings_job, generate_job, rerank_job},
    app::App,
    model::Served,
};

/// A request in either encoding.
#[derive(Debug, Default)]
pub(crate) struct InferRequest {
    /// The client's name for it, returned as it is.
    pub(crate) id: String,
    pub(crate) parameters: Map<String, Value>,
    pub(crate) inputs: Vec<Tensor>,
    /// Empty = all.
    pub(crate) outputs: Vec<WantedOutput>,
}

#[derive(Debug)]
pub(crate) struct WantedOutput {
    pub(crate) name: String,
    pub(crate) parameters: Map<String, Value>,
}

/// An input or output as metadata tells of it; -1 = any size.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Port {
    pub(crate) name: &'static str,
    pub(crate) datatype: &'static str,
    pub(crate) shape: Vec<i64>,
    pub(crate) optional: bool,
}

/// What a model is to this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Generate,
    Embed { dimensions: usize },
    Rerank,
}

impl Kind {
    pub(crate) fn of(served: &Served) -> Result<Self, ApiError> {
        match served.loaded.task() {
            Task::Generate => Ok(Self::Generate),
            Task::Embed => {
                let dimensions = served.encoder(Task::Embed)?.limits().dimensions;
                Ok(Self::Embed { dimensions })
            }
            Task::Rerank => Ok(Self::Rerank),
            Task::TokenClassify => {
                let what = format!(
                    "the model `{}` has no tensors in this protocol: it takes models that generate, embed or rerank",
                    served.name
                );
                Err(ApiError::Invalid(InvalidField::unsupported("model", what)))
            }
        }
    }

    pub(crate) fn inputs(self) -> Vec<Port> {
        let port = |name, datatype, size| Port { name, datatype, shape: vec![size], optional: false };
        let wish = |(name, datatype)| Port { optional: true, ..port(name, datatype, 1) };
        match self {
            Self::Generate => {
                let wishes = [
                    ("stream", "BOOL"),
                    ("sampling_parameters", "BYTES"),
                    ("exclude_input_in_output", "BOOL"),
                    ("max_tokens", "INT32"),
                    ("min_tokens", "INT32"),
                    ("temperature", "FP32"),
                    ("top_p", "FP32"),
                    ("top_k", "INT32"),
                    ("min_p", "FP32"),
                    ("seed", "INT64"),
                    ("presence_penalty", "FP32"),
                    ("frequency_penalty", "FP32"),
                    ("repetition_penalty", "FP32"),
                    ("ignore_eos", "BOOL"),
                ];
                let mut ports = vec![port("text_input", "BYTES", 1)];
                ports.extend(wishes.map(wish));
                ports.push(Port { optional: true, ..port("stop", "BYTES", -1) });
                ports
            }
            Self::Embed { .. } => {
                let ids = |name| Port { name, datatype: "INT64", shape: vec![-1, -1], optional: true };
                vec![
                    // Either it or the ids.
                    Port { optional: true, ..port("text", "BYTES", -1) },
                    ids("input_ids"),
                    ids("attention_mask"),
                    wish(("dimensions", "INT32")),
                    wish(("truncate", "BOOL")),
                ]
            }
            Self::Rerank => vec![
                port("query", "BYTES", 1),
                port("documents", "BYTES", -1),
                wish(("raw_scores", "BOOL")),
                wish(("max_tokens_per_doc", "INT32")),
                wish(("truncate", "BOOL")),
            ],
        }
    }

    pub(crate) fn output(self) -> Port {
        let port = |name, datatype, shape| Port { name, datatype, shape, optional: false };
        match self {
            Self::Generate => port("text_output", "BYTES", vec![1]),
            Self::Embed { dimensions } => {
                let dimensions = i64::try_from(dimensions).unwrap_or(-1);
                port("embedding", "FP32", vec![-1, dimensions])
            }
            Self::Rerank => port("scores", "FP32", vec![-1]),
        }
    }

    /// Fields of the JSON routes that mean nothing here, or are tensors.
    fn no_wishes(self) -> &'static [&'static str] {
        match self {
            Self::Generate => &["model", "prompt", "messages"],
            Self::Embed { .. } => &["model", "input", "encoding_format", "user"],
            Self::Rerank => &["model", "top_n", "return_documents"],
        }
    }
}

/// Work for an engine, its texts tokenised.
pub(crate) enum Work {
    Generate(Box<Job>),
    Embed(EncoderJob<EmbeddingsRequest>),
    Rerank(EncoderJob<RerankRequest>),
}

/// Whether the answer may come in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    Whole,
    /// Unless `stream` is false.
    Streamed,
}

/// What a request comes down to. CPU work.
pub(crate) fn work(
    app: &App,
    served: &Served,
    request: InferRequest,
    delivery: Delivery,
) -> Result<Work, ApiError> {
    let kind = Kind::of(served)?;
    check_outputs(kind, &request.outputs)?;
    let Tensors { mut main, mut wishes } = tensors(kind, request)?;
    match kind {
        Kind::Generate => {
            let prompt = only(main.remove("text_input"), "text_input")?;
            unpack(&mut wishes)?;
            refuse(kind, &wishes)?;
            match (delivery, wishes.get("stream")) {
                (Delivery::Whole, Some(Value::Bool(true))) => {
                    let what = "`stream`: this request has one response: use `ModelStreamInfer` or `generate_stream`";
                    return Err(ApiError::invalid("stream", what));
                }
                (Delivery::Streamed, None) => drop(wishes.insert("stream".into(), true.into())),
                _ => {}
            }
            wishes.insert("prompt".into(), prompt);
            let (job, ()) = generate_job(app, served, &body(wishes))
                .map_err(|err| renamed(err, "prompt", "text_input"))?;
            Ok(Work::Generate(Box::new(job)))
        }
        Kind::Embed { .. } => {
            refuse(kind, &wishes)?;
            let (texts, ids) = (main.remove("text"), main.remove("input_ids"));
            let (name, input) = match (texts, ids) {
                (Some(texts), None) => ("text", texts),
                (None, Some(ids)) => ("input_ids", ids),
                (Some(_), Some(_)) => {
                    let what = "inputs `text` and `input_ids` are both there: send one of them";
                    return Err(ApiError::invalid("input_ids", what));
                }
                (None, None) => return Err(missing("text")),
            };
            wishes.insert("input".into(), input);
            let job = embeddings_job(app, served, &body(wishes));
            job.map(Work::Embed).map_err(|err| renamed(err, "input", name))
        }
        Kind::Rerank => {
            refuse(kind, &wishes)?;
            let query = only(main.remove("query"), "query")?;
            wishes.insert("query".into(), query);
            wishes.insert("documents".into(), main.remove("documents").ok_or_else(|| missing("documents"))?);
            rerank_job(app, served, &body(wishes)).map(Work::Rerank)
        }
    }
}

/// The inputs as JSON: those that hold what the model reads, and those that only say how.
struct Tensors {
    main: Map<String, Value>,
    wishes: Map<String, Value>,
}

fn tensors(kind: Kind, request: InferRequest) -> Result<Tensors, ApiError> {
    let ports = kind.inputs();
    let mut wishes = request.parameters;
    let mut main = Map::new();
    let mut mask = None;
    for tensor in &request.inputs {
        let name = tensor.name.as_str();
        if !ports.iter().any(|port| port.name == name) {
            let known = ports.iter().map(|port| port.name).collect::<Vec<_>>().join("`, `");
            let name: String = name.chars().take(100).collect();
            let what = format!("there is no input `{name}`: the model has `{known}`");
            return Err(ApiError::invalid(&name, what));
        }
        let again = match name {
            "text_input" | "query" => main.insert(name.into(), tensor.texts(1)?.into()).is_some(),
            "text" | "documents" => main.insert(name.into(), tensor.texts(MAX_INPUTS)?.into()).is_some(),
            "input_ids" => main.insert(name.into(), Value::Null).is_some(),
            "attention_mask" => mask.replace(tensor).is_some(),
            "stop" => wishes.insert(name.into(), tensor.texts(MAX_INPUTS)?.into()).is_some(),
            _ => wishes.insert(name.into(), tensor.scalar()?).is_some(),
        };
        if again {
            return Err(ApiError::invalid(name, format!("`{name}` is there twice: send it once")));
        }
    }
    if let Some(ids) = request.inputs.iter().find(|tensor| tensor.name == "input_ids") {
        main.insert("input_ids".into(), rows(ids, mask)?);
    } else if mask.is_some() {
        let what = "input `attention_mask` is of use beside `input_ids` only";
        return Err(ApiError::invalid("attention_mask", what));
    }
    Ok(Tensors { main, wishes })
}

/// Numbers of ids that one request may have, padding included.
pub(super) const MAX_IDS: usize = 256 << 10;

/// Rows of ids without those that `mask` hides.
fn rows(ids: &Tensor, mask: Option<&Tensor>) -> Result<Value, ApiError> {
    let &[n_rows, width] = &ids.shape[..] else {
        return Err(
            ids.invalid(format!("must have the shape [texts, tokens], but has {}", ids.shown_shape()))
        );
    };
    let numbers = ids.integers(MAX_IDS)?;
    if numbers.is_empty() {
        return Err(ids.invalid(format!("is empty: its shape is [{n_rows}, {width}]")));
    }
    let kept = match mask {
        None => vec![1; numbers.len()],
        Some(mask) if mask.shape == ids.shape => mask.integers(MAX_IDS)?,
        Some(mask) => {
            let what = format!("has the shape {}, but `input_ids` has {:?}", mask.shown_shape(), ids.shape);
            return Err(mask.invalid(what));
        }
    };
    let width = usize::try_from(width).map_err(|_| ids.invalid("is too wide".to_owned()))?;
    let row = |(ids, kept): (&[i64], &[i64])| {
        let kept = ids.iter().zip(kept).filter(|(_, kept)| **kept != 0);
        Value::Array(kept.map(|(id, _)| Value::from(*id)).collect())
    };
    Ok(numbers.chunks_exact(width).zip(kept.chunks_exact(width)).map(row).collect())
}

fn check_outputs(kind: Kind, wanted: &[WantedOutput]) -> Result<(), ApiError> {
    let has = kind.output().name;
    for (at, output) in wanted.iter().enumerate() {
        let name: String = output.name.chars().take(100).collect();
        if output.name != has {
            let what = format!("there is no output `{name}`: the model has `{has}`");
            return Err(ApiError::invalid(&name, what));
        }
        if at > 0 {
            return Err(ApiError::invalid(&name, format!("output `{name}` is asked for twice: ask once")));
        }
        if let Some(parameter) = output.parameters.keys().next() {
            let parameter: String = parameter.chars().take(100).collect();
            let what = format!(
                "output `{name}`: parameter `{parameter}` is not supported: there are no classes and no shared memory here"
            );
            return Err(ApiError::Invalid(InvalidField::unsupported(parameter, what)));
        }
    }
    Ok(())
}

/// `sampling_parameters` is an object of wishes, as text; `exclude_input_in_output` is how it is here.
fn unpack(wishes: &mut Map<String, Value>) -> Result<(), ApiError> {
    if let Some(packed) = wishes.remove("sampling_parameters") {
        let refused = || {
            let what = "`sampling_parameters` must be a JSON object as text, such as `{\"temperature\": 0}`";
            ApiError::invalid("sampling_parameters", what)
        };
        let object = match packed {
            Value::String(text) => serde_json::from_str(&text).map_err(|_| refused())?,
            other => other,
        };
        let Value::Object(object) = object else { return Err(refused()) };
        for (name, value) in object {
            if wishes.contains_key(&name) {
                let name: String = name.chars().take(100).collect();
                let what =
                    format!("`{name}` is there twice: once in `sampling_parameters` and once beside it");
                return Err(ApiError::invalid(&name, what));
            }
            wishes.insert(name, value);
        }
    }
    match wishes.remove("exclude_input_in_output") {
        None | Some(Value::Bool(true) | Value::Null) => Ok(()),
        Some(_) => {
            let what = "`exclude_input_in_output` can only be true: answers here never repeat their prompt";
            Err(ApiError::Invalid(InvalidField::unsupported("exclude_input_in_output", what)))
        }
    }
}

fn refuse(kind: Kind, wishes: &Map<String, Value>) -> Result<(), ApiError> {
    match wishes.keys().find(|name| kind.no_wishes().contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let inputs = kind.inputs();
            let inputs: Vec<_> = inputs.iter().filter(|port| !port.optional).map(|port| port.name).collect();
            let inputs = if inputs.is_empty() { "text".to_owned() } else { inputs.join("`, `") };
            let what = format!("`{name}` is no parameter here: the model reads `{inputs}`");
            Err(ApiError::Invalid(InvalidField::unsupported(name.clone(), what)))
        }
    }
}

fn only(value: Option<Value>, name: &str) -> Result<Value, ApiError> {
    match value {
        Some(Value::Array(mut list)) if list.len() == 1 => Ok(list.swap_remove(0)),
        Some(_) => Err(ApiError::invalid(name, format!("input `{name}` must have one element"))),
        None => Err(missing(name)),
    }
}

fn missing(name: &str) -> ApiError {
    ApiError::Invalid(InvalidField {
        param: Some(name.to_owned()),
        message: format!("input `{name}` is missing"),
        code: "missing_required_parameter",
    })
}

fn body(wishes: Map<String, Value>) -> Vec<u8> {
    json!(wishes).to_string().into_bytes()
}

/// The message of a JSON route in the words of this one.
fn renamed(err: ApiError, field: &str, input: &str) -> ApiError {
    match err {
        ApiError::Invalid(InvalidField { param, message, code }) => {
            let message = message.replace(&format!("`{field}"), &format!("`{input}"));
            ApiError::Invalid(InvalidField { param, message, code })
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
