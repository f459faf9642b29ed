"""Encoders for embeddings, rerank and token classification, into encoders.json."""

import json
import shutil

import numpy as np
import torch
from common import HERE, VOCABULARY, randomize, rounded
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    ModernBertModel,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
    XLMRobertaModel,
)

SHAPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=64,
    initializer_range=0.3,
)
ROBERTA = {**SHAPE, "type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
MODERN = dict(
    **{**SHAPE, "num_hidden_layers": 4},
    local_attention=8,
    global_attn_every_n_layers=3,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    cls_token_id=1,
    sep_token_id=2,
    attention_bias=False,
    mlp_bias=False,
    norm_bias=False,
)
NAMES = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}
LABELS = dict(id2label=NAMES, label2id={name: i for i, name in NAMES.items()})

# Name, class, config.
CASES = [
    ("bert", BertModel, BertConfig(**SHAPE)),
    ("bert-rerank", BertForSequenceClassification, BertConfig(**SHAPE, num_labels=1)),
    ("bert-ner", BertForTokenClassification, BertConfig(**SHAPE, **LABELS)),
    ("xlm-roberta", XLMRobertaModel, XLMRobertaConfig(**ROBERTA)),
    ("xlm-roberta-rerank", XLMRobertaForSequenceClassification, XLMRobertaConfig(**ROBERTA, num_labels=1)),
    ("modernbert", ModernBertModel, ModernBertConfig(**MODERN)),
    ("modernbert-rerank", ModernBertForSequenceClassification, ModernBertConfig(**MODERN, num_labels=1)),
]


def cases():
    made = []
    for seed, (name, cls, config) in enumerate(CASES, 500):
        torch.manual_seed(seed)
        model = cls(config)
        randomize(model, 100 + seed)
        path = HERE / name
        shutil.rmtree(path, ignore_errors=True)
        model.to(torch.float16).save_pretrained(path)
        model = cls.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
        random = np.random.default_rng(seed)
        sequences = []
        for length in [20, 1, 7]:
            tokens = random.integers(3, VOCABULARY, length).tolist()
            # The second text of a pair, where a model tells them apart.
            types = [int(i >= length // 2) and int(config.model_type == "bert") for i in range(length)]
            arguments = dict(input_ids=torch.tensor([tokens]))
            if config.model_type == "bert":
                arguments["token_type_ids"] = torch.tensor([types])
            with torch.no_grad():
                out = model(**arguments)
            values = out.logits if hasattr(out, "logits") else out.last_hidden_state
            values = values.reshape(-1, values.shape[-1]).float().numpy()
            sequences.append(dict(tokens=tokens, types=types, values=rounded(values)))
        made.append(dict(name=name, sequences=sequences))
    return made


def write():
    text = json.dumps(dict(cases=cases())).replace('{"name"', '\n{"name"').replace('{"tokens"', '\n {"tokens"')
    (HERE / "encoders.json").write_text(text + "\n")
