//! Compares with what `golden/make.py` recorded from transformers, sentencepiece and the tokenizers package.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::Deserialize;

use crate::{
    LoadError, SpecialTokens,
    files::Files,
    model::{self, Chunk, HfConfig, KvCache, Llama},
    text,
    weights::{Matrix, Part, Role, Weights, gguf::GgufFile, safetensors::SafetensorsFiles},
};

#[derive(Deserialize)]
struct Golden {
    folders: Vec<ModelCase>,
    ggufs: Vec<ModelCase>,
    tokenizers: Vec<TokenizerCase>,
}

#[derive(Deserialize)]
struct ModelCase {
    name: String,
    tokens: Vec<u32>,
    /// After each token.
    logits: Vec<Vec<f32>>,
}

/// f32 sums in another order differ in the last digits only; a wrong formula is off by far more than this.
const TOLERANCE: f32 = 1e-3;

#[derive(Deserialize)]
struct TokenizerCase {
    name: String,
    samples: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(folder().join("golden.json")).unwrap()).unwrap()
}

fn load_folder(name: &str) -> Llama {
    let files = Files::folder(&folder().join(name)).unwrap();
    let config = HfConfig::parse(files.json(model::CONFIG).unwrap().unwrap()).unwrap();
    let mut weights = SafetensorsFiles::open(&files).unwrap();
    Llama::load(model::from_hf(&config).unwrap(), &mut weights, name).unwrap()
}

/// A file whose quantised blocks are widened. Products over blocks round the activations to 8 bits as well, which
/// these random weights amplify to several per cent after two layers; widened, only the reading of blocks is judged.
struct Widened(GgufFile<'static>);

impl Weights for Widened {
    fn contains(&self, role: Role) -> bool {
        self.0.contains(role)
    }

    fn matrix_bytes(&self, role: Role, shape: (usize, usize)) -> Result<u64, LoadError> {
        self.0.matrix_bytes(role, shape)
    }

    fn matrix(&mut self, role: Role, shape: (usize, usize)) -> Result<Matrix, LoadError> {
        Ok(match self.0.matrix(role, shape)? {
            Matrix::Quantized(blocks) => Matrix::Dense(blocks.dequantize(&Device::Cpu).unwrap()),
            dense => dense,
        })
    }

    fn vector(&mut self, role: Role, len: usize) -> Result<Tensor, LoadError> {
        self.0.vector(role, len)
    }
}

fn load_gguf(name: &str) -> Llama {
    let mut file = GgufFile::open(&folder().join(name)).unwrap();
    let shape = model::from_gguf(&mut file).unwrap();
    Llama::load(shape, &mut Widened(file), name).unwrap()
}

/// Logits after each piece, fed one after the other.
fn logits_by_pieces(model: &Llama, pieces: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut cache = KvCache::new(&model.shape, 128);
    let step = |tokens: &&[u32]| {
        let mut chunks = [Chunk { tokens, cache: &mut cache, wants_logits: true }];
        model.forward(&mut chunks).unwrap().remove(0).unwrap()
    };
    pieces.iter().map(step).collect()
}

#[track_caller]
fn check(what: &str, ours: &[f32], theirs: &[f32]) {
    let largest = theirs.iter().fold(0f32, |m, x| m.max(x.abs()));
    let error = ours.iter().zip(theirs).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
    assert!(ours.len() == theirs.len() && error <= TOLERANCE, "{what}: max|a-b|/max|b| = {error:e}");
    let argmax = |x: &[f32]| (0..x.len()).max_by(|a, b| x[*a].total_cmp(&x[*b]));
    assert_eq!(argmax(ours), argmax(theirs), "{what}");
}

fn check_model(case: &ModelCase, model: &Llama) {
    let tokens = &case.tokens[..];
    let one_by_one: Vec<&[u32]> = tokens.chunks(1).collect();
    for (i, ours) in logits_by_pieces(model, &one_by_one).iter().enumerate() {
        check(&format!("{} token {i}", case.name), ours, &case.logits[i]);
    }
    let last = case.logits.last().unwrap();
    let whole = logits_by_pieces(model, &[tokens]);
    check(&format!("{} at once", case.name), &whole[0], last);
    let pieces = [&tokens[..7], &tokens[7..8], &tokens[8..]];
    let pieces = logits_by_pieces(model, &pieces);
    check(&format!("{} in pieces", case.name), &pieces[2], last);
}

#[test]
fn logits_of_safetensors_folders_agree_with_transformers() {
    let cases = golden().folders;
    assert_eq!(cases.len(), 6);
    for case in cases {
        check_model(&case, &load_folder(&case.name));
    }
}

#[test]
fn logits_of_gguf_files_agree_with_transformers() {
    let cases = golden().ggufs;
    assert_eq!(cases.len(), 3);
    for case in cases {
        check_model(&case, &load_gguf(&case.name));
    }
}

#[test]
fn products_over_quantised_blocks_agree_with_widened_ones() {
    let path = folder().join("gguf-q8_0.gguf");
    let mut blocks = GgufFile::open(&path).unwrap();
    let mut widened = Widened(GgufFile::open(&path).unwrap());
    let x = Tensor::from_vec((0..5 * 64).map(|i| (i as f32 * 0.7).sin()).collect(), (5, 64), &Device::Cpu)
        .unwrap();
    for part in [Part::Query, Part::Output, Part::Gate, Part::Up, Part::Down] {
        let product = |weights: &mut dyn Weights| {
            let matrix = weights.matrix(Role::Layer(1, part), (64, 64)).unwrap();
            let y = matrix.into_product().unwrap().apply(&x).unwrap();
            y.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let (a, b) = (product(&mut blocks), product(&mut widened));
        let largest = b.iter().fold(0f32, |m, x| m.max(x.abs()));
        let error = a.iter().zip(&b).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest;
        // An activation is off by at most 1/254 of the largest in its block.
        assert!(error > 0.0 && error <= 1e-2, "{part:?}: {error:e}");
    }
}

#[test]
fn sequences_in_one_step_do_not_see_each_other() {
    let cases = golden().folders;
    let case = &cases[0];
    let model = load_folder(&case.name);
    let mut caches = [3, 11, 20].map(|n| (n, KvCache::new(&model.shape, 128)));
    let mut chunks: Vec<_> = caches
        .iter_mut()
        .map(|(n, cache)| Chunk { tokens: &case.tokens[..*n], cache, wants_logits: *n != 11 })
        .collect();
    let logits = model.forward(&mut chunks).unwrap();
    check("first", logits[0].as_ref().unwrap(), &case.logits[2]);
    assert!(logits[1].is_none());
    check("third", logits[2].as_ref().unwrap(), &case.logits[19]);
}

#[test]
fn gguf_tokenizers_give_the_ids_of_their_authors() {
    let cases = golden().tokenizers;
    assert_eq!(cases.len(), 5);
    for case in cases {
        let file = GgufFile::open(&folder().join(&case.name)).unwrap();
        let text = text::from_gguf(&file.header, &file.name).unwrap();
        for sample in case.samples {
            let ids = text.encode(&sample.text, SpecialTokens::AsWritten, 128).unwrap();
            assert_eq!(ids, sample.ids, "{}: {:?}", case.name, sample.text);
            assert_eq!(text.decode(&ids).unwrap(), sample.decoded, "{}: {:?}", case.name, sample.text);
        }
    }
}

#[test]
fn begin_of_text_is_added_where_the_kind_asks_for_it() {
    for (name, begins) in
        [("gpt-2", false), ("llama-bpe", true), ("qwen2", false), ("smollm", false), ("spm", true)]
    {
        let file = GgufFile::open(&folder().join(format!("tokenizer-{name}.gguf"))).unwrap();
        let text = text::from_gguf(&file.header, &file.name).unwrap();
        let plain = text.encode("Paris", SpecialTokens::AsWritten, 128).unwrap();
        let added = text.encode("Paris", SpecialTokens::Add, 128).unwrap();
        assert_eq!(added.len(), plain.len() + usize::from(begins), "{name}");
    }
}
