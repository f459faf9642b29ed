//! Compares with what `golden/make.py` recorded from transformers, sentencepiece and the tokenizers package.

mod families;

use std::{
    cell::RefCell,
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;

use crate::{
    KvType, LoadError, SpecialTokens,
    files::Files,
    kernels::{Isa, KvStore, Linear, PackedMatrix, Pool, RawTensor, Scratch, StoredType},
    model::{self, Decoder, HfConfig, Shape, Source, StepSequence},
    text,
    weights::{
        Part, Role, Weights,
        folder::{Conventions, FolderWeights},
        gguf::GgufFile,
    },
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

fn decoder(mut shape: Shape, weights: &mut dyn Weights, kv_type: KvType) -> Decoder {
    shape.settle();
    let pool = Arc::new(Pool::new(2).unwrap());
    let kv = KvStore::new(kv_type, shape.layers, shape.kv_heads, shape.head_dim, 16).unwrap();
    let mut source = Source::new(weights, None, "golden".to_owned());
    Decoder::load(shape, &mut source, pool, kv).unwrap()
}

fn load_folder(name: &str, kv_type: KvType) -> Decoder {
    let files = Files::folder(&folder().join(name)).unwrap();
    let config = HfConfig::parse(files.json(model::CONFIG).unwrap().unwrap()).unwrap();
    let shape = model::from_hf(&config).unwrap();
    let mut weights = FolderWeights::open(&files).unwrap();
    weights.follow(Conventions {
        post_norms: shape.family.has_post_norms(),
        norms_are_offsets: shape.family.norms_are_offsets(),
    });
    decoder(shape, &mut weights, kv_type)
}

/// A file whose quantised blocks are widened. Products over blocks round the activations to 8 bits as well, which
/// these random weights amplify to several per cent after two layers; widened, only the reading of blocks is judged.
struct Widened {
    file: GgufFile<'static>,
    /// Widened matrices are borrowed for as long as the file; tests may leak them.
    leaked: RefCell<HashMap<String, &'static [u8]>>,
}

impl Widened {
    fn new(file: GgufFile<'static>) -> Self {
        Self { file, leaked: RefCell::default() }
    }
}

impl Weights for Widened {
    fn contains(&self, role: Role) -> bool {
        self.file.contains(role)
    }

    fn matrix(&self, role: Role, shape: (usize, usize)) -> Result<RawTensor<'_>, LoadError> {
        let raw = self.file.matrix(role, shape)?;
        let mut leaked = self.leaked.borrow_mut();
        let bytes = *leaked.entry(format!("{role:?}")).or_insert_with(|| {
            let mut row = vec![0.0; raw.columns];
            let mut bytes = Vec::new();
            for i in 0..raw.rows {
                raw.widen_row(i, &mut row);
                bytes.extend(row.iter().flat_map(|x| x.to_le_bytes()));
            }
            bytes.leak()
        });
        Ok(RawTensor { dtype: StoredType::F32, bytes, ..raw })
    }

    fn vector(&self, role: Role, len: usize) -> Result<Vec<f32>, LoadError> {
        self.file.vector(role, len)
    }

    fn converted(&mut self, n_bytes: u64) {
        self.file.converted(n_bytes);
    }
}

fn load_gguf(name: &str) -> Decoder {
    let file = GgufFile::open(&folder().join(name)).unwrap();
    let shape = model::from_gguf(&file).unwrap();
    decoder(shape, &mut Widened::new(file), KvType::F32)
}

const BLOCKS: [u32; 4] = [3, 1, 0, 7];

/// Logits after each piece, fed one after the other.
fn logits_by_pieces(model: &mut Decoder, pieces: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut start = 0;
    let step = |tokens: &&[u32]| {
        let sequence = StepSequence { tokens, start, blocks: &BLOCKS, n_logits: 1 };
        start += tokens.len();
        model.forward(&[sequence]).unwrap().values.to_vec()
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

fn check_model(case: &ModelCase, model: &mut Decoder) {
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
    assert_eq!(pieces[2], whole[0], "{}: the same bits however the prompt is cut", case.name);
    let alone = logits_by_pieces(model, &one_by_one);
    let all = StepSequence { tokens, start: 0, blocks: &BLOCKS, n_logits: tokens.len() };
    let all = model.forward(&[all]).unwrap();
    for (i, (row, alone)) in all.rows().zip(alone).enumerate() {
        assert_eq!(row, alone, "{} token {i}: the same bits in a chunk and alone", case.name);
    }
}

#[test]
fn logits_of_safetensors_folders_agree_with_transformers() {
    let cases = golden().folders;
    assert_eq!(cases.len(), 6);
    for case in cases {
        check_model(&case, &mut load_folder(&case.name, KvType::F32));
    }
}

#[test]
fn logits_of_gguf_files_agree_with_transformers() {
    let cases = golden().ggufs;
    assert_eq!(cases.len(), 3);
    for case in cases {
        check_model(&case, &mut load_gguf(&case.name));
    }
}

#[test]
fn products_over_quantised_blocks_agree_with_widened_ones() {
    let path = folder().join("gguf-q8_0.gguf");
    let blocks = GgufFile::open(&path).unwrap();
    let widened = Widened::new(GgufFile::open(&path).unwrap());
    let x: Vec<f32> = (0..5 * 64).map(|i| (i as f32 * 0.7).sin()).collect();
    let pool = Pool::new(2).unwrap();
    for part in [Part::Query, Part::Output, Part::Gate, Part::Up, Part::Down] {
        let product = |weights: &dyn Weights| {
            let raw = weights.matrix(Role::Layer(1, part), (64, 64)).unwrap();
            let matrix = Linear::new(vec![PackedMatrix::pack(&raw, &pool).unwrap()], None).unwrap();
            let mut y = vec![0.0; 5 * 64];
            matrix.apply(Isa::detect(), &pool, &x, &mut y, &mut Scratch::default());
            y
        };
        let (a, b) = (product(&blocks), product(&widened));
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
    let mut model = load_folder(&case.name, KvType::F32);
    let blocks: Vec<[u32; 1]> = (0..3).map(|i| [5 + i]).collect();
    let sequences: Vec<_> = [(3, 1), (11, 0), (20, 1)]
        .into_iter()
        .zip(&blocks)
        .map(|((n, n_logits), blocks)| StepSequence { tokens: &case.tokens[..n], start: 0, blocks, n_logits })
        .collect();
    let logits: Vec<_> = model.forward(&sequences).unwrap().rows().map(|row| row.to_vec()).collect();
    assert_eq!(logits.len(), 2);
    check("first", &logits[0], &case.logits[2]);
    check("third", &logits[1], &case.logits[19]);
    assert_eq!(logits[1], logits_by_pieces(&mut model, &[&case.tokens])[0], "the same bits as alone");
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
