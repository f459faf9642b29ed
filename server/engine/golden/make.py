"""Writes the reference models, logits and token ids that the engine's tests compare with.

Run by `make golden`; needs requirements.txt. Everything is seeded, so a second run with the same versions writes the
same files. The weights are random: what is checked is arithmetic, not language.
"""

import json
import shutil
import sys

import encoders
import entities
import families
import gguf
import numpy as np
import sentencepiece
import tokenizers
import torch
import transformers
from common import BASE, HERE, LENGTH, LLAMA3, VOCABULARY, logits, randomize, rounded
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

# Name, class, config, stored type, largest shard.
FOLDERS = [
    ("gqa-f32", LlamaForCausalLM, LlamaConfig(**BASE), torch.float32, "1GB"),
    (
        "tied-f16",
        LlamaForCausalLM,
        LlamaConfig(**{**BASE, "tie_word_embeddings": True, "num_key_value_heads": 4}),
        torch.float16,
        "1GB",
    ),
    (
        "linear-bf16",
        LlamaForCausalLM,
        LlamaConfig(**BASE, rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=500.0)),
        torch.bfloat16,
        "1GB",
    ),
    ("llama3-sharded", LlamaForCausalLM, LlamaConfig(**BASE, rope_parameters=LLAMA3), torch.float16, "16KB"),
    ("biases", LlamaForCausalLM, LlamaConfig(**BASE, attention_bias=True, mlp_bias=True), torch.float16, "1GB"),
    (
        "mistral-window",
        MistralForCausalLM,
        MistralConfig(**BASE, sliding_window=6, head_dim=16, attn_implementation="eager"),
        torch.float16,
        "1GB",
    ),
]


def folders():
    cases = []
    for seed, (name, cls, config, dtype, shard) in enumerate(FOLDERS):
        torch.manual_seed(seed)
        model = cls(config)
        randomize(model, 100 + seed)
        path = HERE / name
        shutil.rmtree(path, ignore_errors=True)
        model.to(dtype).save_pretrained(path, max_shard_size=shard)
        # The reference reads back what was stored and computes in f32.
        model = cls.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        tokens = np.random.default_rng(seed).integers(2, VOCABULARY, LENGTH).tolist()
        cases.append(dict(name=name, tokens=tokens, logits=rounded(logits(model, tokens))))
    return cases


def permute(weights, heads):
    """The order of rows that llama.cpp's converter gives query and key."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name):
    name = name.removesuffix(".weight")
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if name in whole:
        return whole[name] + ".weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def ggufs():
    cases = []
    kinds = [
        ("gguf-f32", gguf.GGMLQuantizationType.F32, {}),
        ("gguf-f16-llama3", gguf.GGMLQuantizationType.F16, dict(rope_parameters=LLAMA3)),
        ("gguf-q8_0", gguf.GGMLQuantizationType.Q8_0, dict(hidden_size=64, intermediate_size=64)),
    ]
    for seed, (name, kind, changes) in enumerate(kinds):
        config = LlamaConfig(**{**BASE, **changes})
        torch.manual_seed(50 + seed)
        model = LlamaForCausalLM(config)
        randomize(model, 150 + seed)
        path = HERE / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_rope_freq_base(10000.0)
        writer.add_vocab_size(VOCABULARY)
        if "rope_parameters" in changes:
            plain = LlamaForCausalLM(LlamaConfig(**BASE)).model.rotary_emb.inv_freq
            factors = (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32)
            writer.add_tensor("rope_freqs.weight", factors)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                values = parameter.numpy()
                stored = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else kind
                data = gguf.quants.quantize(values, stored)
                # The reference computes with what was stored.
                parameter.copy_(torch.from_numpy(gguf.quants.dequantize(data, stored).reshape(values.shape).copy()))
                if "q_proj" in parameter_name or "k_proj" in parameter_name:
                    heads = config.num_attention_heads if "q_proj" in parameter_name else config.num_key_value_heads
                    data = gguf.quants.quantize(permute(values, heads), stored)
                writer.add_tensor(gguf_name(parameter_name), data, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        tokens = np.random.default_rng(50 + seed).integers(2, VOCABULARY, LENGTH).tolist()
        cases.append(dict(name=path.name, tokens=tokens, logits=rounded(logits(model.eval(), tokens))))
    return cases


CORPUS = [
    "The capital of France is Paris. The river runs through the old town, and the people don't mind the rain.",
    "In 1984 they'd counted 12345 sheep; by 2024 there were 67890. It's what we'll call a growth of 450%.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 22))\n",
    "Der Fluß fließt durch die Städte. L'été est fini. El niño comió piñas. Привет, мир! こんにちは世界。",
    "   leading spaces,\ttabs,   and trailing   \n\n  new lines  ",
    "user: hello there\nassistant: hello, how can I help you today?\n" * 3,
]
SAMPLES = [
    "",
    " ",
    "The capital of France is Paris.",
    "  two  spaces   three\ttab",
    "line\n\nbreaks\r\n  and  \n spaces \n",
    "We'll see: it's, they'VE, I'D don't",
    "1 22 333 4444 55555 3.14159 ٣٤",
    "Fluß été niño Привет こんにちは世界",
    "emoji 😀👩‍👩‍👧 and \u0000 controls \u200b",
    "decomposed e\u0301 and composed \u00e9, ﬁ ligature",
    "x = {'a': [1,2], \"b\": None}  # comment!!!",
    "hello<|special|>world <|special|> <|user|>x",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
]


def splittings():
    """Normaliser and pre-tokeniser of each kind, as its authors' tokenizer has them."""
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as qwen2

    llama3 = TikTokenConverter(vocab_file="unused").pattern
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)

    def split(regex):
        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(regex), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    return {
        "gpt-2": (None, plain, False),
        "llama-bpe": (None, split(llama3), True),
        "qwen2": (normalizers.NFC(), split(qwen2), False),
        "smollm": (None, pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain]), False),
    }


SPECIAL = ["<|bos|>", "<|eos|>", "<|special|>"]


def byte_level(pre, normalizer, pre_tokenizer, ignore_merges):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("<|user|>", normalized=False)])
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.get)
    types = [gguf.TokenType.NORMAL] * len(tokens)
    for token in SPECIAL:
        types[vocabulary[token]] = gguf.TokenType.CONTROL
    types[vocabulary["<|user|>"]] = gguf.TokenType.USER_DEFINED
    path = HERE / f"tokenizer-{pre}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    finish(writer)
    return dict(
        name=path.name,
        samples=[
            dict(text=text, ids=(ids := tokenizer.encode(text, add_special_tokens=False).ids), decoded=tokenizer.decode(ids))
            for text in SAMPLES
        ],
    )


def sentence_piece():
    corpus = HERE / "corpus.tmp"
    corpus.write_text("\n".join(line for text in CORPUS for line in text.split("\n")))
    model = HERE / "spm.tmp"
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(model),
        model_type="bpe",
        vocab_size=520,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=f"{model}.model")
    for leftover in [corpus, HERE / "spm.tmp.model", HERE / "spm.tmp.vocab"]:
        leftover.unlink()
    n = processor.vocab_size()
    types = [
        gguf.TokenType.UNKNOWN
        if processor.is_unknown(i)
        else gguf.TokenType.CONTROL
        if processor.is_control(i)
        else gguf.TokenType.BYTE
        if processor.is_byte(i)
        else gguf.TokenType.NORMAL
        for i in range(n)
    ]
    path = HERE / "tokenizer-spm.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([processor.id_to_piece(i) for i in range(n)])
    writer.add_token_scores([processor.get_score(i) for i in range(n)])
    writer.add_token_types(types)
    writer.add_bos_token_id(processor.bos_id())
    writer.add_eos_token_id(processor.eos_id())
    writer.add_unk_token_id(processor.unk_id())
    finish(writer)
    samples = [text for text in SAMPLES if "\0" not in text]
    return dict(
        name=path.name,
        samples=[dict(text=text, ids=(ids := processor.encode(text)), decoded=processor.decode(ids)) for text in samples],
    )


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    versions = {
        module.__name__: module.__version__ for module in [np, sentencepiece, tokenizers, torch, transformers]
    }
    versions["python"] = sys.version.split()[0]
    versions["gguf"] = __import__("importlib.metadata", fromlist=["version"]).version("gguf")
    golden = dict(
        versions=versions,
        folders=folders(),
        ggufs=ggufs(),
        tokenizers=[byte_level(pre, *parts) for pre, parts in splittings().items()] + [sentence_piece()],
    )
    text = json.dumps(golden, ensure_ascii=False)
    # One case a line.
    text = text.replace('{"name"', '\n{"name"').replace('{"text"', '\n {"text"')
    (HERE / "golden.json").write_text(text + "\n")
    families.write()
    encoders.write()
    entities.write()


main()
