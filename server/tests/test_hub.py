"""The official `huggingface_hub` package, unmodified, against the hub that our own fetch is tested with: if it
were no hub, our tests would prove nothing."""

import hashlib
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import programs

# Read once, when the package is imported.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

from huggingface_hub import HfApi, hf_hub_download, snapshot_download  # noqa: E402
from huggingface_hub.errors import (  # noqa: E402
    EntryNotFoundError,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

TOKEN = "hub-test-token"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"a": 1}',
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    ).encode(),
    "model-1-of-2.safetensors": bytes(range(256)) * 4096,
    "model-2-of-2.safetensors": b"second" * 1000,
}


class HubClient(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        for repo in ["org/sharded", "gated/model"]:
            place = cls.folder / "repos" / repo
            place.mkdir(parents=True)
            for name, content in FILES.items():
                (place / name).write_bytes(content)
        cls.endpoint = cls.enterClassContext(programs.hub(cls.folder / "repos"))

    def download(self, repo, token=False, **more):
        cache = tempfile.mkdtemp(dir=self.folder)
        return pathlib.Path(
            snapshot_download(repo, endpoint=self.endpoint, cache_dir=cache, token=token, **more)
        )

    def check(self, path):
        for name, content in FILES.items():
            self.assertEqual((path / name).read_bytes(), content, name)

    def test_a_snapshot_comes_whole(self):
        path = self.download("org/sharded")
        self.check(path)
        # A snapshot's folder is named by the commit that the revision resolved to.
        commit = HfApi(endpoint=self.endpoint, token=False).model_info("org/sharded").sha
        self.assertEqual(path.name, commit)
        self.check(self.download("org/sharded", revision=commit))

    def test_a_gated_repository_wants_the_token(self):
        with self.assertRaises(GatedRepoError):
            hf_hub_download("gated/model", "config.json", endpoint=self.endpoint, token=False, cache_dir=self.folder / "c")
        with self.assertRaises(GatedRepoError):
            hf_hub_download("gated/model", "config.json", endpoint=self.endpoint, token="x", cache_dir=self.folder / "c")
        self.check(self.download("gated/model", token=TOKEN))

    def test_what_is_not_there_has_its_own_error(self):
        api = HfApi(endpoint=self.endpoint, token=False)
        with self.assertRaises(RepositoryNotFoundError):
            api.model_info("org/nothing")
        with self.assertRaises(RevisionNotFoundError):
            api.model_info("org/sharded", revision="v9")
        with self.assertRaises(EntryNotFoundError):
            hf_hub_download("org/sharded", "x.json", endpoint=self.endpoint, token=False, cache_dir=self.folder / "c")

    def test_our_fetch_and_the_client_get_the_same_bytes(self):
        theirs = self.download("org/sharded")
        config = self.folder / "server.json"
        config.write_text(json.dumps(programs.configuration("hf://org/sharded", "m")))
        ours = self.folder / "models"
        command = [programs.RELEASE / "candela-server", "fetch", "--config", config, "--to", ours]
        command += ["--internal-listen", "127.0.0.1:0", "--termination-log", self.folder / "why"]
        subprocess.run(command, check=True, env={**os.environ, "HF_ENDPOINT": self.endpoint}, timeout=60)
        for name in FILES:
            digests = [hashlib.sha256((folder / name).read_bytes()).digest() for folder in (ours / "m", theirs)]
            self.assertEqual(digests[0], digests[1], name)
        facts = json.loads((ours / "m" / "candela-fetch.json").read_text())
        self.assertEqual(facts["resolvedRevision"], theirs.name)


if __name__ == "__main__":
    unittest.main()
