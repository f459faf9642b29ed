"""ONNX files of the golden BERT models in the names and shapes of transformers' exports, into onnx/: hidden states,
a pooled vector, a score of a pair, and the first with 8-bit weights as onnxruntime's quantize_dynamic makes them.

Usage: onnx_models.py                   the files beside this script
       onnx_models.py FOLDER FILE       of any BERT-class encoder, such as MiniLM's folder"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import load_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "bench"))

from minilm_onnx import Graph, hidden_states  # noqa: E402

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def save(g, path, output, shape):
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in INPUTS]
    output = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
    graph = helper.make_graph(g.nodes, path.stem, inputs, [output], g.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def named(g, output, name):
    g.nodes.append(helper.make_node("Identity", [output], [name]))


def read(folder):
    weights = {name: array.astype(np.float32) for name, array in load_file(folder / "model.safetensors").items()}
    config = json.loads((folder / "config.json").read_text())
    return {name.removeprefix("bert."): array for name, array in weights.items()}, config


def states(folder, path):
    weights, config = read(folder)
    g = Graph()
    named(g, hidden_states(g, weights, config, *INPUTS), "last_hidden_state")
    save(g, path, "last_hidden_state", ["batch", "tokens", config["hidden_size"]])


def first(g, x):
    at = [g.constant([value], np.int64) for value in (0, 1, 1)]
    return g.op("Squeeze", g.op("Slice", x, *at), g.constant([1], np.int64))


def pooled(folder, path):
    """The first token's vector, as graphs with the pooling inside give it."""
    weights, config = read(folder)
    g = Graph()
    named(g, first(g, hidden_states(g, weights, config, *INPUTS)), "sentence_embedding")
    save(g, path, "sentence_embedding", ["batch", config["hidden_size"]])


def scores(folder, path):
    weights, config = read(folder)
    g = Graph()
    x = first(g, hidden_states(g, weights, config, *INPUTS))
    for name, after in (("pooler.dense", "Tanh"), ("classifier", "Identity")):
        parts = (g.weight(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        x = g.op(after, g.op("Gemm", x, *parts, transB=1))
    named(g, x, "logits")
    save(g, path, "logits", ["batch", 1])


def main():
    if sys.argv[1:]:
        folder, path = map(Path, sys.argv[1:])
        return states(folder, path)
    states(HERE / "bert", HERE / "onnx/bert.onnx")
    pooled(HERE / "bert", HERE / "onnx/bert-pooled.onnx")
    scores(HERE / "bert-rerank", HERE / "onnx/bert-rerank.onnx")
    options = {"DefaultTensorType": TensorProto.FLOAT}
    int8 = HERE / "onnx/bert-int8.onnx"
    quantize_dynamic(HERE / "onnx/bert.onnx", int8, weight_type=QuantType.QInt8, extra_options=options)


main()
