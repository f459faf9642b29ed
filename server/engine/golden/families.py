"""Decoders of families other than Llama, and blocks of every GGUF type, into families.json."""

import json
import math
import shutil

import gguf
import numpy as np
import torch
from common import BASE, HERE, LENGTH, VOCABULARY, logits, randomize, rounded
from gguf.quants import dequantize, quantize
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

# Wider heads than `hidden_size / heads`, so that nothing can be mistaken for the other.
WIDE = {**BASE, "head_dim": 16}
TIED = {**WIDE, "tie_word_embeddings": True}
GEMMA2 = {
    **TIED,
    "num_hidden_layers": 4,
    "sliding_window": 6,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 8.0,
    "query_pre_attn_scalar": 16,
}
# Seven layers: five local ones, a global one, a local one.
GEMMA3 = {
    **TIED,
    "num_hidden_layers": 7,
    "sliding_window": 6,
    "query_pre_attn_scalar": 16,
    "rope_parameters": {
        "full_attention": dict(rope_type="linear", factor=8.0, rope_theta=1e6),
        "sliding_attention": dict(rope_type="default", rope_theta=10000.0),
    },
}
PHI3 = {**BASE, "pad_token_id": 0}
PARTIAL = {
    **PHI3,
    "hidden_size": 64,
    "rope_parameters": dict(rope_type="default", rope_theta=500.0, partial_rotary_factor=0.75),
}
# Four frequencies. Stretched from a context that a recording outgrows; and not stretched, since the first training had
# Phi-3's default of 4096, while an explicit factor has its magnitude.
FACTORS = dict(
    rope_type="longrope",
    rope_theta=500.0,
    short_factor=[1.0, 1.1, 1.3, 1.4],
    long_factor=[1.2, 2.0, 4.5, 7.0],
)
LONG = {**PHI3, "original_max_position_embeddings": 16, "rope_parameters": FACTORS}
SHORT = {**PHI3, "rope_parameters": dict(**FACTORS, factor=8.0)}
# Widths of whole blocks of 32.
BLOCKS = {**BASE, "intermediate_size": 64}
WINDOW = dict(use_sliding_window=True, sliding_window=6, max_window_layers=1)

# Name, class, config.
FOLDERS = [
    (
        "smollm",
        LlamaForCausalLM,
        LlamaConfig(
            **{
                **BASE,
                "hidden_size": 48,
                "num_attention_heads": 3,
                "num_key_value_heads": 1,
                "tie_word_embeddings": True,
            }
        ),
    ),
    ("qwen2", Qwen2ForCausalLM, Qwen2Config(**BASE)),
    ("qwen2-window", Qwen2ForCausalLM, Qwen2Config(**BASE, **WINDOW)),
    ("qwen3", Qwen3ForCausalLM, Qwen3Config(**TIED)),
    ("gemma2", Gemma2ForCausalLM, Gemma2Config(**{**GEMMA2, "query_pre_attn_scalar": 24})),
    ("gemma3", Gemma3ForCausalLM, Gemma3TextConfig(**{**GEMMA3, "query_pre_attn_scalar": 24})),
    ("phi3", Phi3ForCausalLM, Phi3Config(**PHI3, sliding_window=6)),
    ("phi3-partial", Phi3ForCausalLM, Phi3Config(**PARTIAL)),
    ("phi3-longrope", Phi3ForCausalLM, Phi3Config(**LONG)),
    ("phi3-longrope-short", Phi3ForCausalLM, Phi3Config(**SHORT)),
]

# Name, architecture, class, config, stored type.
KINDS = gguf.GGMLQuantizationType
GGUFS = [
    ("gguf-qwen2", gguf.MODEL_ARCH.QWEN2, Qwen2ForCausalLM, Qwen2Config(**BLOCKS), KINDS.Q4_0),
    ("gguf-qwen3", gguf.MODEL_ARCH.QWEN3, Qwen3ForCausalLM, Qwen3Config(**TIED), KINDS.F16),
    ("gguf-gemma2", gguf.MODEL_ARCH.GEMMA2, Gemma2ForCausalLM, Gemma2Config(**GEMMA2), KINDS.F16),
    ("gguf-gemma3", gguf.MODEL_ARCH.GEMMA3, Gemma3ForCausalLM, Gemma3TextConfig(**GEMMA3), KINDS.F16),
    ("gguf-phi3", gguf.MODEL_ARCH.PHI3, Phi3ForCausalLM, Phi3Config(**PARTIAL), KINDS.F16),
    ("gguf-phi3-longrope", gguf.MODEL_ARCH.PHI3, Phi3ForCausalLM, Phi3Config(**LONG), KINDS.F16),
]


def make(cls, config, seed):
    torch.manual_seed(seed)
    model = cls(config)
    randomize(model, 100 + seed)
    if is_gemma(config):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    # Stored less one.
                    parameter.sub_(1)
    return model


def is_gemma(config):
    return config.model_type.startswith("gemma")


def tokens_of(seed):
    return np.random.default_rng(seed).integers(2, VOCABULARY, LENGTH).tolist()


def folders():
    cases = []
    for seed, (name, cls, config) in enumerate(FOLDERS, 200):
        path = HERE / name
        shutil.rmtree(path, ignore_errors=True)
        make(cls, config, seed).to(torch.float16).save_pretrained(path)
        # The reference reads back what was stored and computes in f32.
        model = cls.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        tokens = tokens_of(seed)
        cases.append(dict(name=name, tokens=tokens, logits=rounded(logits(model, tokens))))
    return cases


def metadata(writer, config):
    """The keys that llama.cpp's converter writes for these families."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(VOCABULARY)
    if config.model_type == "phi3":
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    elif config.model_type != "qwen2":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if is_gemma(config):
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        factor = config.max_position_embeddings / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(factor) / math.log(original)))
        for which in "long", "short":
            factors = np.array(rope[f"{which}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{which}.weight", factors)


def ggufs():
    cases = []
    for seed, (name, architecture, cls, config, kind) in enumerate(GGUFS, 300):
        config._attn_implementation = "eager"
        model = make(cls, config, seed).eval()
        path = HERE / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
        metadata(writer, config)
        names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                values = parameter.numpy()
                stored = KINDS.F32 if values.ndim == 1 else kind
                data = quantize(values, stored)
                # The reference computes with what was stored.
                parameter.copy_(torch.from_numpy(dequantize(data, stored).reshape(values.shape).copy()))
                if is_gemma(config) and "norm" in parameter_name:
                    data = data + 1
                writer.add_tensor(names.get_name(parameter_name, (".weight", ".bias")), data, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        tokens = tokens_of(seed)
        cases.append(dict(name=path.name, tokens=tokens, logits=rounded(logits(model, tokens))))
    return cases


# Where a block has its scales in f16; the rest of a block may be any bytes.
SCALES = {
    "F16": None,
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}


def blocks():
    """Two blocks of random bytes of each type, and the values that the gguf package reads in them."""
    cases = []
    for seed, (name, scales) in enumerate(SCALES.items()):
        random = np.random.default_rng(400 + seed)
        elements, n_bytes = gguf.GGML_QUANT_SIZES[KINDS[name]]
        if scales is None:
            data = random.standard_normal(64).astype(np.float16).view(np.uint8).reshape(1, -1)
        else:
            data = random.integers(0, 256, (2, n_bytes), dtype=np.uint8)
            for at in scales:
                scale = random.standard_normal((2, 1)).astype(np.float16)
                data[:, at : at + 2] = scale.view(np.uint8)
        data = data.reshape(1, -1)
        values = dequantize(data, KINDS[name]).astype(np.float32)
        cases.append(dict(name=name, bytes=data.tobytes().hex(), values=rounded(values)[0]))
    return cases


def write():
    golden = dict(folders=folders(), ggufs=ggufs(), blocks=blocks())
    text = json.dumps(golden).replace('{"name"', '\n{"name"')
    (HERE / "families.json").write_text(text + "\n")
