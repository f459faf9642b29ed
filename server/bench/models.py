"""Llama models of real shapes with random weights. Nothing is downloaded: weights are seeded Gaussian noise, and the
tokenizer is a byte-level BPE trained on text that is on the machine anyway (Python's own library and the READMEs of
Cargo's registry). What such a model says is noise; its speed and memory are those of a trained one."""

import glob
import json
import os
import pathlib
import subprocess

import gguf
import numpy as np

SHAPES = {
    # As SmolLM2-135M.
    "135m": dict(hidden=576, layers=30, heads=9, kv=3, inter=1536, vocab=49152, tied=True, context=8192, theta=1e5),
    # As TinyLlama-1.1B.
    "1b": dict(hidden=2048, layers=22, heads=32, kv=4, inter=5632, vocab=32000, tied=False, context=2048, theta=1e4),
    # For trying the bench itself.
    "tiny": dict(hidden=256, layers=2, heads=4, kv=2, inter=512, vocab=2048, tied=True, context=2048, theta=1e4),
}
QUANTIZATIONS = ("Q8_0", "Q4_0", "Q4_K_M")
# Tokens 0, 1 and 2.
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EPSILON = 1e-5
SEED = 1234


def corpus(limit=24 << 20):
    """Texts, at most about `limit` characters."""
    files = sorted(glob.glob(os.path.dirname(os.__file__) + "/**/*.py", recursive=True))
    files = [file for file in files if "site-packages" not in file]
    files += sorted(glob.glob(os.path.expanduser("~/.cargo/registry/src/*/*/README.md")))
    total = 0
    for file in files:
        try:
            text = pathlib.Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        total += len(text)
        yield text
        if total > limit:
            return


def tokenizer(vocabulary):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet
        ),
    )
    return made


def tensors(shape, seed):
    """Yields (name in the file, float32 array of (out, in)); rotary pairs are drawn as the file has them."""
    random = np.random.default_rng(seed)
    hidden, kv = shape["hidden"], shape["hidden"] // shape["heads"] * shape["kv"]

    def matrix(rows, columns):
        return random.standard_normal((rows, columns), dtype=np.float32) * np.float32(columns**-0.5)

    embedding = random.standard_normal((shape["vocab"], hidden), dtype=np.float32)
    yield "token_embd", embedding * np.float32(0.1)
    for layer in range(shape["layers"]):
        at = f"blk.{layer}."
        yield at + "attn_norm", np.ones(hidden, np.float32)
        yield at + "attn_q", matrix(hidden, hidden)
        yield at + "attn_k", matrix(kv, hidden)
        yield at + "attn_v", matrix(kv, hidden)
        yield at + "attn_output", matrix(hidden, hidden)
        yield at + "ffn_norm", np.ones(hidden, np.float32)
        yield at + "ffn_gate", matrix(shape["inter"], hidden)
        yield at + "ffn_up", matrix(shape["inter"], hidden)
        yield at + "ffn_down", matrix(hidden, shape["inter"])
    yield "output_norm", np.ones(hidden, np.float32)
    if not shape["tied"]:
        yield "output", matrix(shape["vocab"], hidden)


def write(path, name, shape, words):
    """An F16 GGUF file of this shape, with this tokenizer."""
    parsed = json.loads(words.to_str())
    vocabulary = [token for token, _ in sorted(parsed["model"]["vocab"].items(), key=lambda item: item[1])]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in parsed["model"]["merges"]]
    # Little text on the machine makes fewer words than the shape has rows.
    unused = [f"<|unused_{id}|>" for id in range(len(vocabulary), shape["vocab"])]
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in vocabulary]
    out = gguf.GGUFWriter(path, "llama")
    out.add_name(f"{name}-random")
    out.add_context_length(shape["context"])
    out.add_embedding_length(shape["hidden"])
    out.add_block_count(shape["layers"])
    out.add_feed_forward_length(shape["inter"])
    out.add_head_count(shape["heads"])
    out.add_head_count_kv(shape["kv"])
    out.add_rope_dimension_count(shape["hidden"] // shape["heads"])
    out.add_rope_freq_base(shape["theta"])
    out.add_layer_norm_rms_eps(EPSILON)
    out.add_vocab_size(shape["vocab"])
    out.add_file_type(1)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("gpt-2")
    out.add_token_list(vocabulary + unused)
    out.add_token_types(kinds + [gguf.TokenType.UNUSED] * len(unused))
    out.add_token_merges(merges)
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_pad_token_id(0)
    out.add_add_bos_token(False)
    out.add_chat_template(TEMPLATE)
    for tensor, values in tensors(shape, SEED):
        out.add_tensor(tensor + ".weight", values if values.ndim == 1 else values.astype(np.float16))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def make(folder, name, quantize):
    """Files of one shape under `folder`, made with the program `quantize` where they are missing."""
    files = {kind: folder / f"{name}-{kind.lower()}.gguf" for kind in QUANTIZATIONS}
    words = folder / f"{name}-tokenizer.json"
    if words.exists() and all(file.exists() for file in files.values()):
        return
    print(f"== model {name}", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer(SHAPES[name]["vocab"])
    whole = folder / f"{name}-f16.gguf"
    write(whole, name, SHAPES[name], made)
    for kind, file in files.items():
        part = file.with_suffix(".part")
        subprocess.run([quantize, whole, part, kind], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        part.rename(file)
    whole.unlink()
    # Last: the mark of a finished set.
    made.save(str(words))
