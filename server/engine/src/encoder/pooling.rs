//! From vectors of tokens to one of the text, as sentence-transformers does it.

use serde_json::Value;

use crate::{LoadError, files::Files};

const MODULES: &str = "modules.json";
/// A text's longest in tokens, less than the model's table of positions has.
const SENTENCE: &str = "sentence_bert_config.json";

/// Which vectors make the text's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pooling {
    Mean,
    /// The first token's.
    First,
    /// The last token's.
    Last,
}

/// What a folder says about the vectors that it is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Recipe {
    pub(crate) pooling: Pooling,
    pub(crate) normalize: bool,
    pub(crate) max_tokens: Option<usize>,
}

impl Recipe {
    /// A folder without the files of sentence-transformers has means of length 1, as its library makes of it.
    pub(crate) fn read(files: &Files) -> Result<Self, LoadError> {
        let sentence = files.json(SENTENCE)?.unwrap_or_default();
        let max_tokens = sentence.get("max_seq_length").and_then(Value::as_u64).map(|n| n as usize);
        if max_tokens == Some(0) {
            return Err(LoadError::corrupt(SENTENCE, "`max_seq_length` is 0"));
        }
        let Some(modules) = files.json(MODULES)? else {
            return Ok(Self { pooling: Pooling::Mean, normalize: true, max_tokens });
        };
        let modules = modules.as_array().ok_or_else(|| LoadError::corrupt(MODULES, "it is no list"))?;
        let mut recipe = Self { pooling: Pooling::Mean, normalize: false, max_tokens };
        for module in modules {
            let kind = module.get("type").and_then(Value::as_str).unwrap_or_default();
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Pooling" => {
                    let path = module.get("path").and_then(Value::as_str).unwrap_or_default();
                    recipe.pooling = pooling(files, path)?;
                }
                "Normalize" => recipe.normalize = true,
                other => {
                    return Err(LoadError::unsupported(
                        MODULES,
                        format!("the module `{other}`"),
                        "this build computes `Transformer`, `Pooling` and `Normalize`",
                    ));
                }
            }
        }
        Ok(recipe)
    }
}

fn pooling(files: &Files, folder: &str) -> Result<Pooling, LoadError> {
    let name = format!("{folder}/config.json");
    let config = files.json_below(folder, "config.json")?.ok_or_else(|| LoadError::NotFound {
        file: name.clone(),
        hint: format!("`{MODULES}` names it: fetch the whole folder"),
    })?;
    let modes: Vec<&str> = config
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(field, value)| field.starts_with("pooling_mode_") && **value == Value::Bool(true))
        .map(|(field, _)| field.as_str())
        .collect();
    match modes[..] {
        ["pooling_mode_mean_tokens"] | [] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::First),
        ["pooling_mode_lasttoken"] => Ok(Pooling::Last),
        _ => Err(LoadError::unsupported(
            &name,
            modes.join(" with "),
            "this build pools by mean, first or last token",
        )),
    }
}

/// The vector of a text from those of its tokens, `(tokens, hidden)`.
pub(crate) fn pooled(pooling: Pooling, rows: &[f32], hidden: usize) -> Vec<f32> {
    let row = |i: usize| rows[i * hidden..][..hidden].to_vec();
    let n = rows.len() / hidden;
    match pooling {
        Pooling::First => row(0),
        Pooling::Last => row(n - 1),
        Pooling::Mean => {
            let mut sum = vec![0.0f32; hidden];
            for row in rows.chunks_exact(hidden) {
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
            }
            sum.iter_mut().for_each(|sum| *sum /= n as f32);
            sum
        }
    }
}

/// To length 1; a vector of zeros stays one.
pub(crate) fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt() as f32;
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
}
