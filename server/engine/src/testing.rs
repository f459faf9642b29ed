//! Tiny models with random weights, for tests of this crate and of those that use it. The same seed writes the same
//! bytes.

use std::{collections::HashMap, fs, io, path::Path};

use candle_core::{
    Device, Tensor,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use half::f16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::{Constraint, Engine, SpecialTokens};

/// Tokens: 256 bytes, then [`SPECIAL`].
pub const VOCABULARY: u32 = 260;
/// Begin, end, user turn, assistant turn; ids from 256.
pub const SPECIAL: [&str; 4] = ["<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>"];
/// Id of `<|eos|>`.
pub const END_OF_TEXT: u32 = 257;

const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}<|user|>\
     {% elif message.role == 'assistant' %}<|assistant|>{% elif message.role != 'system' %}\
     {{ raise_exception('unknown role ' ~ message.role) }}{% endif %}{{ message.content }}{% endfor %}\
     {% if add_generation_prompt %}<|assistant|>{% endif %}";

/// How to make a model. The default has two layers and about 40,000 parameters.
#[derive(Clone, Debug)]
pub struct TinyModel {
    pub seed: u64,
    pub layers: usize,
    pub hidden: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub context_length: u32,
    /// All weights are zero: the model then prefers no token to any other.
    pub zero_weights: bool,
    /// Weights of the folder are stored as f16 instead of f32.
    pub half_precision: bool,
}

impl Default for TinyModel {
    fn default() -> Self {
        Self {
            seed: 1,
            layers: 2,
            hidden: 32,
            heads: 4,
            kv_heads: 2,
            context_length: 256,
            zero_weights: false,
            half_precision: false,
        }
    }
}

type Weights = Vec<(String, Vec<usize>, Vec<f32>)>;

impl TinyModel {
    /// Writes a Hugging Face folder into `dir`, which must exist.
    pub fn write_folder(&self, dir: &Path) -> io::Result<()> {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY,
            "hidden_size": self.hidden, "intermediate_size": 2 * self.hidden, "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "hidden_act": "silu",
            "rms_norm_eps": 1e-5, "max_position_embeddings": self.context_length, "rope_theta": 10000.0,
            "tie_word_embeddings": false
        });
        let tokenizer_config =
            json!({"bos_token": SPECIAL[0], "eos_token": SPECIAL[1], "chat_template": CHAT_TEMPLATE});
        let write = |name: &str, value: &Value| fs::write(dir.join(name), value.to_string());
        write("config.json", &config)?;
        write("tokenizer.json", &tokenizer_json())?;
        write("tokenizer_config.json", &tokenizer_config)?;
        write("generation_config.json", &json!({"eos_token_id": END_OF_TEXT}))?;
        fs::write(dir.join("model.safetensors"), self.safetensors()?)
    }

    /// The bytes of `model.safetensors`.
    pub fn safetensors(&self) -> io::Result<Vec<u8>> {
        let dtype = if self.half_precision { Dtype::F16 } else { Dtype::F32 };
        let bytes: Vec<_> = self
            .weights()
            .into_iter()
            .map(|(name, shape, values)| {
                let bytes: Vec<u8> = match self.half_precision {
                    true => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
                    false => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
                };
                (name, shape, bytes)
            })
            .collect();
        let views = bytes
            .iter()
            .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(dtype, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(io::Error::other)?;
        safetensors::serialize(views, None).map_err(io::Error::other)
    }

    /// The bytes of `pytorch_model.bin`, in f32, as `torch.save` lays them out.
    pub fn pytorch(&self) -> Vec<u8> {
        let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
        let int = |n: usize| [&b"J"[..], &(n as i32).to_le_bytes()].concat();
        let tuple = |sizes: &[usize]| {
            let items: Vec<u8> = sizes.iter().flat_map(|n| int(*n)).collect();
            [b"(", &items[..], b"t"].concat()
        };
        let mut pickle = b"\x80\x02ccollections\nOrderedDict\n)R(".to_vec();
        let mut files = Vec::new();
        for (key, (name, shape, values)) in self.weights().into_iter().enumerate() {
            let n: usize = shape.iter().product();
            let strides: Vec<usize> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
            pickle.extend(text(&name));
            pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            pickle.extend(
                [text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text(&key.to_string())].concat(),
            );
            pickle.extend(
                [text("cpu"), int(n), b"tQ".to_vec(), int(0), tuple(&shape), tuple(&strides)].concat(),
            );
            pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
            files.push((format!("model/data/{key}"), values.iter().flat_map(|x| x.to_le_bytes()).collect()));
        }
        pickle.extend(b"u.");
        files.insert(0, ("model/data.pkl".to_owned(), pickle));
        stored_zip(&files)
    }

    /// Writes the same model, in f32, as a GGUF file.
    pub fn write_gguf(&self, path: &Path) -> io::Result<()> {
        self.gguf(path).map_err(io::Error::other)
    }

    fn gguf(&self, path: &Path) -> candle_core::Result<()> {
        use gguf_file::Value as V;
        let strings = |all: &[String]| V::Array(all.iter().cloned().map(V::String).collect());
        let kinds = (0..VOCABULARY).map(|id| V::I32(if id < 256 { 1 } else { 3 })).collect();
        let head_dim = (self.hidden / self.heads) as u32;
        let metadata = [
            ("general.architecture", V::String("llama".to_owned())),
            ("llama.context_length", V::U32(self.context_length)),
            ("llama.embedding_length", V::U32(self.hidden as u32)),
            ("llama.feed_forward_length", V::U32(2 * self.hidden as u32)),
            ("llama.block_count", V::U32(self.layers as u32)),
            ("llama.attention.head_count", V::U32(self.heads as u32)),
            ("llama.attention.head_count_kv", V::U32(self.kv_heads as u32)),
            ("llama.attention.layer_norm_rms_epsilon", V::F32(1e-5)),
            ("llama.rope.dimension_count", V::U32(head_dim)),
            ("tokenizer.ggml.model", V::String("gpt2".to_owned())),
            ("tokenizer.ggml.pre", V::String("gpt-2".to_owned())),
            ("tokenizer.ggml.tokens", strings(&tokens())),
            ("tokenizer.ggml.token_type", V::Array(kinds)),
            ("tokenizer.ggml.merges", strings(&[])),
            ("tokenizer.ggml.bos_token_id", V::U32(256)),
            ("tokenizer.ggml.eos_token_id", V::U32(END_OF_TEXT)),
            ("tokenizer.chat_template", V::String(CHAT_TEMPLATE.to_owned())),
        ];
        let mut tensors = Vec::new();
        for (name, shape, values) in self.weights() {
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
            let tensor = match name.as_str() {
                name if name.contains("q_proj") => interleave(&tensor, self.heads)?,
                name if name.contains("k_proj") => interleave(&tensor, self.kv_heads)?,
                _ => tensor,
            };
            tensors.push((gguf_name(&name), QTensor::quantize(&tensor, GgmlDType::F32)?));
        }
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
        let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut file = io::BufWriter::new(fs::File::create(path)?);
        gguf_file::write(&mut file, &metadata, &tensors)?;
        io::Write::flush(&mut file)?;
        Ok(())
    }

    fn weights(&self) -> Weights {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut all = Weights::new();
        let mut matrix = |name: String, rows: usize, columns: usize, scale: f32| {
            let scale = if self.zero_weights { 0.0 } else { scale };
            let values = (0..rows * columns).map(|_| (rng.random::<f32>() - 0.5) * scale).collect();
            all.push((name, vec![rows, columns], values));
        };
        let (hidden, vocabulary) = (self.hidden, VOCABULARY as usize);
        let kv = self.kv_heads * (hidden / self.heads);
        // Scales that keep activations near 1, with a head wide enough that the best token is rarely a near tie.
        let scale = 4.0 / (hidden as f32).sqrt();
        matrix("model.embed_tokens.weight".to_owned(), vocabulary, hidden, 2.0);
        matrix("lm_head.weight".to_owned(), vocabulary, hidden, 2.0 * scale);
        for i in 0..self.layers {
            for (name, rows, columns) in [
                ("self_attn.q_proj", hidden, hidden),
                ("self_attn.k_proj", kv, hidden),
                ("self_attn.v_proj", kv, hidden),
                ("self_attn.o_proj", hidden, hidden),
                ("mlp.gate_proj", 2 * hidden, hidden),
                ("mlp.up_proj", 2 * hidden, hidden),
                ("mlp.down_proj", hidden, 2 * hidden),
            ] {
                matrix(format!("model.layers.{i}.{name}.weight"), rows, columns, scale);
            }
        }
        let norms = (0..self.layers)
            .flat_map(|i| {
                ["input_layernorm", "post_attention_layernorm"]
                    .map(|n| format!("model.layers.{i}.{n}.weight"))
            })
            .chain(["model.norm.weight".to_owned()]);
        let one = if self.zero_weights { 0.0 } else { 1.0 };
        all.extend(norms.map(|name| (name, vec![hidden], vec![one; hidden])));
        all
    }
}

/// A zip archive of files as they are. Checksums are left out: who maps the file does not read them.
fn stored_zip(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in files {
        let size = (bytes.len() as u32).to_le_bytes();
        let common = [&[0; 12][..], &size, &size, &(name.len() as u16).to_le_bytes(), &[0; 2]].concat();
        directory.extend([&b"PK\x01\x02\x00\x00\x14\x00"[..], &common, &[0; 10]].concat());
        directory.extend((archive.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        archive.extend([&b"PK\x03\x04\x14\x00"[..], &common, name.as_bytes(), bytes].concat());
    }
    let count = (files.len() as u16).to_le_bytes();
    let sizes = [(directory.len() as u32).to_le_bytes(), (archive.len() as u32).to_le_bytes()].concat();
    [&archive[..], &directory, b"PK\x05\x06\0\0\0\0", &count, &count, &sizes, &[0; 2]].concat()
}

/// A tokenizer in which each byte is a token.
pub fn byte_tokenizer() -> Tokenizer {
    serde_json::from_value(tokenizer_json()).expect("our own tokenizer is valid")
}

/// The token of a byte in [`byte_tokenizer`].
pub fn byte_token(byte: u8) -> u32 {
    byte.into()
}

fn tokenizer_json() -> Value {
    let vocabulary: HashMap<_, _> = tokens().into_iter().zip(0u32..).collect();
    let added: Vec<_> = SPECIAL
        .iter()
        .zip(256..)
        .map(|(token, id)| {
            json!({"id": id, "content": token, "special": true, "normalized": false, "single_word": false,
                   "lstrip": false, "rstrip": false})
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "added_tokens": added, "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []}
    })
}

/// Texts of all tokens, in the byte alphabet of GPT-2: printable bytes stand for themselves, the others for
/// characters from U+0100 on.
fn tokens() -> Vec<String> {
    let mut next = 0x100;
    let bytes = (0..=255u8).map(|byte| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => {
            let stand_in = char::from_u32(next).expect("256 characters follow U+0100");
            next += 1;
            stand_in
        }
    });
    bytes.map(String::from).chain(SPECIAL.map(str::to_owned)).collect()
}

/// GGUF's order of rows in query and key: the two halves of each head interleaved.
fn interleave(tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let (rows, columns) = tensor.dims2()?;
    tensor.reshape((heads, 2, rows / heads / 2, columns))?.transpose(1, 2)?.reshape((rows, columns))
}

fn gguf_name(name: &str) -> String {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let Some((layer, part)) = layer else {
        return match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "lm_head.weight" => "output.weight",
            _ => "output_norm.weight",
        }
        .to_owned();
    };
    let part = match part.trim_end_matches(".weight") {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "input_layernorm" => "attn_norm",
        _ => "ffn_norm",
    };
    format!("blk.{layer}.{part}.weight")
}

/// Times products of `(rows, columns)` matrices of each packed format on `threads` threads; a line each to `report`.
pub fn measure_products(threads: usize, rows: usize, columns: usize, report: &mut dyn FnMut(&str)) {
    use crate::kernels::{Isa, Linear, PackedFormat, PackedMatrix, Pool, RawTensor, Scratch, StoredType};
    let pool = crate::kernels::Pool::new(threads).expect("threads can be started");
    let pool: &Pool = &pool;
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let bytes: Vec<u8> =
        (0..rows * columns).flat_map(|_| (rng.random::<f32>() - 0.5).to_le_bytes()).collect();
    let raw = RawTensor { dtype: StoredType::F32, rows, columns, bytes: &bytes };
    let isa = Isa::detect();
    report(&format!("{rows} x {columns}, {threads} threads, {isa:?}"));
    for format in [PackedFormat::F32, PackedFormat::Int8, PackedFormat::Int4, PackedFormat::Int4Min] {
        let weight_bytes = PackedMatrix::bytes_as(format, rows, columns) as usize;
        let linear = || {
            let packed = PackedMatrix::quantize(&raw, format, pool).expect("whole blocks");
            Linear::new(vec![packed], None).expect("one matrix")
        };
        let copies: Vec<_> = (0..(600 << 20) / weight_bytes).map(|_| linear()).collect();
        for n in [1, 4, 16, 64, 512] {
            let x: Vec<f32> = (0..n * columns).map(|_| rng.random::<f32>() - 0.5).collect();
            let (mut y, mut scratch) = (vec![0.0; n * rows], Scratch::default());
            let copies = if n >= 64 { &copies[..1] } else { &copies[..] };
            let mut times: Vec<f64> = (0..7)
                .map(|_| {
                    let began = std::time::Instant::now();
                    copies.iter().for_each(|linear| linear.apply(isa, pool, &x, &mut y, &mut scratch));
                    began.elapsed().as_secs_f64() / copies.len() as f64
                })
                .collect();
            times.sort_by(f64::total_cmp);
            let seconds = times[3];
            let operations = 2.0 * (n * rows * columns) as f64;
            report(&format!(
                "{format:?} of {n} rows: {:.1} us, {:.0} GOP/s, {:.1} GB/s",
                seconds * 1e6,
                operations / seconds / 1e9,
                weight_bytes as f64 / seconds / 1e9
            ));
        }
    }
}

/// Whether an answer that is held to `constraint` may be this text, and nothing after it.
pub fn may_be(engine: &Engine, constraint: &Constraint, text: &str) -> bool {
    let tokens = engine.encode(text, SpecialTokens::AsWritten).unwrap_or_default();
    constraint.takes(&tokens).1
}
