"""The public `tritonclient` package, unmodified, against our server: the Open Inference Protocol over HTTP and gRPC, with the
demo model and with all-MiniLM-L6-v2."""

import asyncio
import json
import pathlib
import queue
import shutil
import tempfile
import time
import unittest
import urllib.request

import grpc as grpc_package
import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException

import programs

CHAT = "chat-small"
EMBEDDER = "all-minilm-l6-v2"
TEXTS = ["The cat sits on the mat.", "Ein Kätzchen ✓", "Stock prices fell."]
PROMPT = "The capital of"


def post(base_url, path, body):
    request = urllib.request.Request(
        base_url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def tensor(kind, name, values, binary=True):
    """Texts or numbers as an input of `kind`, which is one of the two modules."""
    array = np.array(values)
    if array.dtype.kind == "U":
        array = np.array([text.encode() for text in values], dtype=np.object_)
    datatype = {"O": "BYTES", "i": "INT64", "b": "BOOL", "f": "FP64"}[array.dtype.kind]
    made = kind.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, **({"binary_data": binary} if kind is http else {}))
    return made


def generation(kind, prompt=PROMPT, **wishes):
    wishes = {"temperature": 0.0, "max_tokens": 8, **wishes}
    return [tensor(kind, "text_input", [prompt]), *(tensor(kind, name, [value]) for name, value in wishes.items())]


class TritonClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.chat = cls.enterClassContext(programs.server("builtin://demo", CHAT)).removesuffix("/v1")
        cls.embedder = cls.enterClassContext(programs.server(programs.minilm().as_uri(), EMBEDDER)).removesuffix("/v1")
        data = post(cls.embedder, "/v1/embeddings", {"model": EMBEDDER, "input": TEXTS})["data"]
        cls.vectors = np.array([one["embedding"] for one in data], dtype=np.float32)
        ask = {"prompt": PROMPT, "temperature": 0, "max_tokens": 8}
        cls.text = post(cls.chat, "/generate", ask)["text"]

    def client(self, kind, base_url):
        client = kind.InferenceServerClient(base_url.removeprefix("http://"))
        self.addCleanup(client.close)
        return client

    def both(self, base_url):
        return [(kind, self.client(kind, base_url)) for kind in (http, grpc)]

    def test_servers_and_models_say_what_they_are(self):
        for kind, client in self.both(self.embedder):
            with self.subTest(kind.__name__):
                self.assertTrue(client.is_server_live())
                self.assertTrue(client.is_server_ready())
                self.assertTrue(client.is_model_ready(EMBEDDER))
                self.assertTrue(client.is_model_ready(EMBEDDER, "1"))
                json_only = {"as_json": True} if kind is grpc else {}
                self.assertEqual(client.get_server_metadata(**json_only)["name"], "candela")
                meta = client.get_model_metadata(EMBEDDER, **json_only)
                output = meta["outputs"][0]
                self.assertEqual((output["name"], output["datatype"]), ("embedding", "FP32"))
                self.assertEqual([int(size) for size in output["shape"]], [-1, 384])
                config = client.get_model_config(EMBEDDER, **json_only)
                config = config.get("config", config)
                self.assertEqual(config["input"][0]["data_type"], "TYPE_STRING")
                index = client.get_model_repository_index(**json_only)
                models = index["models"] if kind is grpc else index
                self.assertEqual([(m["name"], m["state"]) for m in models], [(EMBEDDER, "READY")])
                for change in (client.load_model, client.unload_model):
                    with self.assertRaisesRegex(InferenceServerException, EMBEDDER):
                        change(EMBEDDER)
                with self.assertRaisesRegex(InferenceServerException, "nobody"):
                    client.get_model_metadata("nobody")

    def test_texts_become_the_vectors_of_the_other_routes(self):
        for kind, client in self.both(self.embedder):
            answer = client.infer(EMBEDDER, [tensor(kind, "text", TEXTS)], request_id="seven")
            self.assertEqual(answer.as_numpy("embedding").shape, (3, 384))
            np.testing.assert_array_equal(answer.as_numpy("embedding"), self.vectors)
            response = answer.get_response()
            self.assertEqual(response["id"] if kind is http else response.id, "seven")
        # HTTP in JSON both ways, and each way.
        client = self.client(http, self.embedder)
        for binary_in in (False, True):
            for binary_out in (False, True):
                outputs = [http.InferRequestedOutput("embedding", binary_data=binary_out)]
                inputs = [tensor(http, "text", TEXTS, binary=binary_in)]
                answer = client.infer(EMBEDDER, inputs, outputs=outputs)
                np.testing.assert_allclose(answer.as_numpy("embedding"), self.vectors, rtol=1e-6)

    def test_calls_that_do_not_wait(self):
        client = self.client(http, self.embedder)
        calls = [client.async_infer(EMBEDDER, [tensor(http, "text", [text])]) for text in TEXTS]
        for call, vector in zip(calls, self.vectors):
            np.testing.assert_allclose(call.get_result().as_numpy("embedding")[0], vector, atol=1e-6)
        answers = queue.Queue()
        client = self.client(grpc, self.embedder)
        for _ in range(20):
            client.async_infer(
                EMBEDDER, [tensor(grpc, "text", TEXTS)], lambda result, error: answers.put((result, error))
            )
        for _ in range(20):
            result, error = answers.get(timeout=60)
            self.assertIsNone(error)
            np.testing.assert_array_equal(result.as_numpy("embedding"), self.vectors)

    def test_asyncio(self):
        async def vectors(module, inputs):
            async with module.InferenceServerClient(self.embedder.removeprefix("http://")) as client:
                return (await client.infer(EMBEDDER, inputs)).as_numpy("embedding")

        for module, kind in ((http_aio, http), (grpc_aio, grpc)):
            given = asyncio.run(vectors(module, [tensor(kind, "text", TEXTS)]))
            np.testing.assert_array_equal(given, self.vectors)

    def test_text_is_generated(self):
        for kind, client in self.both(self.chat):
            answer = client.infer(CHAT, generation(kind))
            self.assertEqual(answer.as_numpy("text_output")[0].decode(), self.text)
            packed = [
                tensor(kind, "text_input", [PROMPT]),
                tensor(kind, "sampling_parameters", [json.dumps({"temperature": 0, "max_tokens": 8})]),
            ]
            answer = client.infer(CHAT, packed, parameters={"ignore_eos": False})
            self.assertEqual(answer.as_numpy("text_output")[0].decode(), self.text)

    def test_tokens_come_as_they_are_made(self):
        for empty_final in (False, True):
            client = self.client(grpc, self.chat)
            answers = queue.Queue()
            client.start_stream(lambda result, error: answers.put((result, error)))
            for name in ("a", "b"):
                client.async_stream_infer(
                    CHAT, generation(grpc), request_id=name, enable_empty_final_response=empty_final
                )
            client.async_stream_infer(CHAT, generation(grpc, max_tokens=-1), request_id="c")
            texts, ended, refused = {"a": [], "b": []}, set(), []
            while len(ended) < 2 or not refused:
                result, error = answers.get(timeout=60)
                if error:
                    refused.append(str(error))
                    continue
                response = result.get_response()
                if response.parameters["triton_final_response"].bool_param:
                    ended.add(response.id)
                    self.assertEqual(response.parameters["finish_reason"].string_param, "length")
                    self.assertEqual(not response.outputs, empty_final)
                if response.outputs:
                    texts[response.id].append(result.as_numpy("text_output")[0].decode())
            client.stop_stream()
            self.assertEqual({name: "".join(parts) for name, parts in texts.items()}, {"a": self.text, "b": self.text})
            self.assertGreater(len(texts["a"]), 2)
            self.assertIn("max_tokens", refused[0])

    def test_generate_and_its_events(self):
        ask = {"text_input": PROMPT, "parameters": {"temperature": 0, "max_tokens": 8, "stream": False}}
        answer = post(self.chat, f"/v2/models/{CHAT}/generate", ask)
        self.assertEqual(answer["text_output"], self.text)
        ask["parameters"]["stream"] = True
        request = urllib.request.Request(
            f"{self.chat}/v2/models/{CHAT}/generate_stream", json.dumps(ask).encode()
        )
        with urllib.request.urlopen(request) as stream:
            events = [json.loads(line.removeprefix(b"data:")) for line in stream if line.startswith(b"data:")]
        self.assertEqual("".join(event["text_output"] for event in events), self.text)
        self.assertGreater(len(events), 2)

    def test_models_of_a_repository_are_loaded_and_unloaded(self):
        folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
        demo = programs.ROOT / "server" / "models" / "demo"
        shutil.copytree(demo, folder / "story" / "1")
        shutil.copytree(programs.minilm(), folder / "embedder" / "3")
        arguments = ["--model-repository", folder, "--model-control", "explicit"]
        base_url = self.enterContext(programs.server("builtin://demo", CHAT, *arguments)).removesuffix("/v1")
        for kind, client in self.both(base_url):

            def states():
                index = client.get_model_repository_index(**({"as_json": True} if kind is grpc else {}))
                models = index["models"] if kind is grpc else index
                return {(model["name"], model["version"]): model["state"] for model in models}

            with self.subTest(kind.__name__):
                unloaded = {(CHAT, "1"): "READY", ("embedder", "3"): "UNAVAILABLE", ("story", "1"): "UNAVAILABLE"}
                self.assertEqual(states(), unloaded)
                self.assertFalse(client.is_model_ready("embedder"))
                client.load_model("embedder")
                client.load_model("story")
                self.assertEqual(set(states().values()), {"READY"})
                self.assertTrue(client.is_model_ready("embedder", "3"))
                given = client.infer("embedder", [tensor(kind, "text", TEXTS)]).as_numpy("embedding")
                np.testing.assert_array_equal(given, self.vectors)
                told = client.infer("story", generation(kind)).as_numpy("text_output")[0].decode()
                self.assertEqual(told, self.text)
                for name in ("story", "embedder"):
                    client.unload_model(name)
                    deadline = time.monotonic() + 60
                    while any(at == "UNLOADING" for at in states().values()):
                        self.assertLess(time.monotonic(), deadline)
                self.assertEqual(states(), unloaded)
                with self.assertRaisesRegex(InferenceServerException, "not loaded"):
                    client.infer("embedder", [tensor(kind, "text", TEXTS)])
                for verb in (client.load_model, client.unload_model):
                    with self.assertRaisesRegex(InferenceServerException, "nobody"):
                        verb("nobody")

    def test_refusals_say_what_is_wrong(self):
        bad_shape = {
            http: http.InferInput("text", [2], "BYTES"),
            grpc: grpc.InferInput("text", [2], "BYTES"),
        }
        for kind, client in self.both(self.embedder):
            bad = bad_shape[kind]
            bad.set_data_from_numpy(np.array([b"a", b"b"], dtype=np.object_))
            bad.set_shape([1 << 40, 1 << 40])
            for inputs, says in (
                ([bad], "text"),
                ([tensor(kind, "text_input", ["a"])], "text_input"),
                ([tensor(kind, "text", ["a"]), tensor(kind, "text", ["a"])], "twice"),
                ([tensor(kind, "text", [1.5])], "BYTES"),
                ([tensor(kind, "input_ids", [[1 << 40]])], "input_ids"),
            ):
                with self.assertRaisesRegex(InferenceServerException, says) as caught:
                    client.infer(EMBEDDER, inputs)
                self.assertIn(caught.exception.status(), ("400", "StatusCode.INVALID_ARGUMENT"))
            with self.assertRaises(InferenceServerException) as caught:
                client.infer("nobody", [tensor(kind, "text", ["a"])])
            self.assertIn(caught.exception.status(), ("404", "StatusCode.NOT_FOUND"))
        client = self.client(grpc, self.chat)
        with self.assertRaises(InferenceServerException) as caught:
            client.infer(CHAT, generation(grpc, max_tokens=100), timeout=1)
        self.assertEqual(caught.exception.status(), "StatusCode.DEADLINE_EXCEEDED")
        with self.assertRaisesRegex(InferenceServerException, "StatusCode.UNIMPLEMENTED"):
            client.get_trace_settings()

    def test_a_message_that_is_too_long_is_refused_and_the_channel_lives_on(self):
        client = self.client(grpc, self.embedder)
        with self.assertRaises(InferenceServerException) as caught:
            client.infer(EMBEDDER, [tensor(grpc, "text", ["a" * (8 << 20)])])
        self.assertEqual(caught.exception.status(), "StatusCode.INVALID_ARGUMENT")
        self.assertTrue(client.is_server_live())
        with grpc_package.insecure_channel(self.embedder.removeprefix("http://")) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            for garbage in (b"\xff", b"\x2a\x05a", b"\x2a\xff\xff\xff\xff\x0f", b"\x2a\x00" * 100_000):
                with self.assertRaises(grpc_package.RpcError) as caught:
                    call(garbage)
                self.assertEqual(caught.exception.code(), grpc_package.StatusCode.INVALID_ARGUMENT)


if __name__ == "__main__":
    unittest.main()
