"""Embeddings per second of all-MiniLM-L6-v2: texts in, unit vectors out, tokenising included on both sides. Ours goes
through HTTP; onnxruntime runs in a process of its own without any server around it, which is the harder comparison.

As a program (`embedding.py MODEL_FOLDER GRAPH THREADS`): reads the texts from standard input, prints onnxruntime's
figures and vectors as JSON."""

import json
import pathlib
import random
import statistics
import subprocess
import sys
import time

import numpy as np

import programs

BATCH = 32
TOKENS = 128
REPEATS = 9
# Of our vectors with those of onnxruntime in f32: with the same weights, and with weights and activations in 8 bits.
LEAST_COSINE = {"f32": 0.9999, "int8": 0.98}


class Unsupported(RuntimeError):
    """This build of the server does not embed, or not like that."""


def texts(folder, seed, batches):
    """Batches of texts that are exactly `TOKENS` tokens long, with the two that the tokenizer puts around them."""
    lines = (folder / "vocab.txt").read_text().splitlines()
    words = [word for word in lines if len(word) > 2 and word.isascii() and word.isalpha() and word.islower()]
    rng = random.Random(seed)
    return [[" ".join(rng.choices(words, k=TOKENS - 2)) for _ in range(BATCH)] for _ in range(batches)]


def request(batch):
    return "/v1/embeddings", {"model": programs.NAME, "input": batch}


def timed(run, batches):
    """Embeddings/s by the median of all batches but the first two, which warm up."""
    seconds = []
    for batch in batches:
        began = time.perf_counter()
        run(batch)
        seconds.append(time.perf_counter() - began)
    return BATCH / statistics.median(seconds[2:])


def ours(folder, kind, seed):
    """Figures and the vectors of the first batch."""
    fields = {"tasks": ["Embed"]} | ({"quantization": "Q8"} if kind == "int8" else {})
    batches = texts(folder, seed, REPEATS + 2)
    try:
        with programs.candela_server(folder, BATCH, request(["a"]), **fields) as server:

            def run(batch):
                status, answer = server.post(*request(batch))
                if status != 200:
                    raise RuntimeError(f"/v1/embeddings answered {status}: {answer}")
                return [item["embedding"] for item in answer["data"]]

            vectors = run(batches[0])
            speed = timed(run, batches)
            memory = server.memory()["most"]
    except RuntimeError as error:
        if any(word in str(error) for word in ("ModelUnsupported", "InvalidConfiguration", "answered 404")):
            raise Unsupported(str(error)) from error
        raise
    return {"embeddings_per_second": speed, "resident_bytes_most": memory}, np.array(vectors)


def onnxruntime(folder, graph, cores, seed):
    """Like `ours`, of one graph."""
    command = [sys.executable, __file__, folder, graph, cores]
    batches = texts(folder, seed, REPEATS + 2)
    done = subprocess.run(
        [str(word) for word in command],
        input=json.dumps(batches),
        capture_output=True,
        text=True,
        preexec_fn=programs.quietly,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"onnxruntime failed: {done.stderr.strip()}")
    figures = json.loads(done.stdout)
    return figures, np.array(figures.pop("vectors"))


def cosine(a, b):
    """The least over the rows."""
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def main(folder, graph, cores):
    import onnxruntime as ort
    from tokenizers import Tokenizer

    options = ort.SessionOptions()
    options.intra_op_num_threads = int(cores)
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(pathlib.Path(folder) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS)

    def tokenised(batch):
        ids = np.array([encoding.ids for encoding in tokenizer.encode_batch(batch)], np.int64)
        if ids.shape != (len(batch), TOKENS):
            raise SystemExit(f"the batch became {ids.shape}, not {len(batch)} times {TOKENS} tokens")
        return {"ids": ids, "mask": np.ones_like(ids)}

    run = lambda batch: session.run(None, tokenised(batch))[0]
    batches = json.load(sys.stdin)
    vectors = run(batches[0])
    speed = timed(run, batches)
    inputs = [tokenised(batch) for batch in batches]
    bare = timed(lambda given: session.run(None, given), inputs)
    print(json.dumps({"embeddings_per_second": speed, "without_tokenising": bare, "vectors": vectors.tolist()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
