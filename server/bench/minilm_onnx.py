"""The ONNX graph of all-MiniLM-L6-v2 from its safetensors, as transformers exports it: plain operators that
onnxruntime fuses. Written here so that the bench needs no torch (5 GB) to make one file of 90 MB."""

import json
import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file


class Graph:
    """Nodes and weights in the order in which they are added; each method returns the name of its output."""

    def __init__(self):
        self.nodes, self.weights, self.constants = [], [], {}

    def weight(self, name, array):
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def constant(self, value, dtype):
        key = (repr(value), np.dtype(dtype).name)
        if key not in self.constants:
            self.constants[key] = self.weight(f"constant_{len(self.constants)}", np.array(value, dtype))
        return self.constants[key]

    def op(self, kind, *inputs, **attributes):
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=f"node_{name}", **attributes))
        return name


def hidden_states(g, weights, config, ids, mask, types=None):
    """Adds BERT's graph from (batch, tokens) int64 to the last hidden states, (batch, tokens, hidden) f32. Without
    `types` all tokens are of the first text. Returns the name of its output."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    epsilon = config["layer_norm_eps"]
    f32 = lambda value: g.constant(value, np.float32)
    i64 = lambda value: g.constant(value, np.int64)

    def normed(x, name):
        scale, bias = (g.weight(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return g.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

    def linear(x, name):
        product = g.op("MatMul", x, g.weight(f"{name}.weight", weights[f"{name}.weight"].T))
        return g.op("Add", product, g.weight(f"{name}.bias", weights[f"{name}.bias"]))

    words = g.op("Gather", g.weight("words", weights["embeddings.word_embeddings.weight"]), ids)
    tokens = g.op("Gather", g.op("Shape", ids), i64([1]))
    positions = g.weight("positions", weights["embeddings.position_embeddings.weight"])
    positions = g.op("Slice", positions, i64([0]), tokens, i64([0]))
    kinds = weights["embeddings.token_type_embeddings.weight"]
    kind = g.op("Gather", g.weight("kinds", kinds), types) if types else g.weight("kind", kinds[0])
    x = normed(g.op("Add", g.op("Add", words, kind), positions), "embeddings.LayerNorm")

    # Two steps, as the fusion of attention wants to see them.
    mask = g.op("Unsqueeze", g.op("Unsqueeze", mask, i64([1])), i64([2]))
    mask = g.op("Cast", mask, to=TensorProto.FLOAT)
    hide = g.op("Mul", g.op("Sub", f32(1.0), mask), f32(float(np.finfo(np.float32).min)))
    split, join = i64([0, 0, heads, hidden // heads]), i64([0, 0, hidden])

    def head(x, name, order):
        return g.op("Transpose", g.op("Reshape", linear(x, name), split), perm=order)

    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        q = head(x, f"{at}.attention.self.query", [0, 2, 1, 3])
        k = head(x, f"{at}.attention.self.key", [0, 2, 3, 1])
        v = head(x, f"{at}.attention.self.value", [0, 2, 1, 3])
        scores = g.op("Div", g.op("MatMul", q, k), f32(math.sqrt(hidden // heads)))
        shares = g.op("Softmax", g.op("Add", scores, hide), axis=-1)
        mixed = g.op("Transpose", g.op("MatMul", shares, v), perm=[0, 2, 1, 3])
        mixed = linear(g.op("Reshape", mixed, join), f"{at}.attention.output.dense")
        x = normed(g.op("Add", mixed, x), f"{at}.attention.output.LayerNorm")
        wide = linear(x, f"{at}.intermediate.dense")
        erf = g.op("Add", g.op("Erf", g.op("Div", wide, f32(math.sqrt(2.0)))), f32(1.0))
        wide = g.op("Mul", g.op("Mul", wide, erf), f32(0.5))
        x = normed(g.op("Add", linear(wide, f"{at}.output.dense"), x), f"{at}.output.LayerNorm")
    return x


def encoder(weights, config):
    """A graph from (ids, mask), both (batch, tokens) int64, to unit vectors (batch, hidden) f32: masked mean."""
    g = Graph()
    hidden = config["hidden_size"]
    i64 = lambda value: g.constant(value, np.int64)
    x = hidden_states(g, weights, config, "ids", "mask")
    seen = g.op("Cast", g.op("Unsqueeze", "mask", i64([2])), to=TensorProto.FLOAT)
    total = g.op("ReduceSum", g.op("Mul", x, seen), i64([1]), keepdims=0)
    mean = g.op("Div", total, g.op("ReduceSum", seen, i64([1]), keepdims=0))
    g.nodes.append(helper.make_node("LpNormalization", [mean], ["vectors"], axis=-1, p=2))
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"]) for name in ("ids", "mask")]
    vectors = helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["batch", hidden])
    graph = helper.make_graph(g.nodes, "minilm", ids, [vectors], g.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def export(folder, to):
    """Writes the plain graph, the graph with the attention fused by onnxruntime's own optimizer, and both with
    8-bit weights and dynamically quantised activations. Returns {name: path}."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    to.mkdir(parents=True, exist_ok=True)
    paths = {name: to / f"{name}.onnx" for name in ("f32", "f32-fused", "int8", "int8-fused")}
    if all(path.exists() for path in paths.values()):
        return paths
    config = json.loads((folder / "config.json").read_text())
    onnx.save(encoder(load_file(folder / "model.safetensors"), config), paths["f32"])
    # Level 0: only its own fusions. Those of the runtime come when the file is loaded; asking for them here needs torch.
    shape = {"num_heads": config["num_attention_heads"], "hidden_size": config["hidden_size"]}
    fused = optimizer.optimize_model(str(paths["f32"]), "bert", opt_level=0, **shape)
    print("fused operators:", {name: n for name, n in fused.get_fused_operator_statistics().items() if n})
    fused.save_model_to_file(str(paths["f32-fused"]))
    for name in ("int8", "int8-fused"):
        source = paths[name.replace("int8", "f32")]
        # Fused operators have no shape inference; what they give is f32.
        options = {"DefaultTensorType": TensorProto.FLOAT}
        quantize_dynamic(source, paths[name], weight_type=QuantType.QInt8, extra_options=options)
    return paths
