"""Starts servers for a measurement, and the load against them: in a session of their own, ahead of other work."""

import contextlib
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = ROOT / "target" / "release" / "candela-server"
XTASK = ROOT / "target" / "release" / "xtask"
START_SECONDS = 180
NAME = "bench"


def quietly():
    """Runs in the child: other work on the same cores then takes little from a measurement. Needs root, else no-op."""
    os.setsid()
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/autogroup").write_text("-15")
    with contextlib.suppress(OSError):
        os.nice(-15)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A server that answers."""

    def __init__(self, process, port, model, log):
        self.process, self.port, self.model, self.log = process, port, model, log
        self.first_token_seconds = None

    def post(self, path, body, timeout=600):
        """(status, parsed answer); an answer that is no JSON is given as text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
        finally:
            connection.close()
        with contextlib.suppress(ValueError):
            return answer.status, json.loads(text)
        return answer.status, text

    def memory(self):
        """Bytes that are resident: now, and at most so far."""
        fields = {}
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            fields[name] = value.strip().removesuffix(" kB")
        return {"now": int(fields["VmRSS"]) << 10, "most": int(fields["VmHWM"]) << 10}

    def held(self, model):
        """Resident bytes besides those of the model: of our KV cache, the only memory for which our server asks huge
        pages (`hg`), and of the program and its libraries, which are files as well and belong to all its processes."""
        kv_cache, program = 0, 0
        resident, path = 0, ""
        for line in pathlib.Path(f"/proc/{self.process.pid}/smaps").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Rss":
                resident = int(value.split()[0]) << 10
                program += resident if path.startswith("/") and path != str(model.resolve()) else 0
            elif name == "VmFlags":
                kv_cache += resident if "hg" in value.split() else 0
            elif "-" in name.split()[0]:
                # Addresses, rights, offset, device, inode, path.
                path = (line.split(maxsplit=5) + [""])[5]
        return {"kv_cache_bytes": kv_cache, "program_bytes": program}


@contextlib.contextmanager
def running(command, port, path, body, environment=None):
    """Starts `command`, asks `path` for `body` again and again until it answers 200, and ends it afterwards. The
    time from the start to that answer is `first_token_seconds`."""
    with tempfile.NamedTemporaryFile("w+", prefix="candela-bench-") as log:
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            preexec_fn=quietly,
            env={**os.environ, **(environment or {})},
        )
        server = Server(process, port, NAME, log.name)
        try:
            while True:
                if process.poll() is not None:
                    raise RuntimeError(f"{pathlib.Path(command[0]).name} ended early:\n{tail(log.name)}")
                with contextlib.suppress(OSError, http.client.HTTPException):
                    status, answer = server.post(path, body)
                    if status == 200:
                        break
                    # Loading is 503; anything else will not get better.
                    if status != 503:
                        raise RuntimeError(f"{pathlib.Path(command[0]).name} answered {status}: {answer}")
                if time.monotonic() - began > START_SECONDS:
                    raise RuntimeError(f"no answer in {START_SECONDS} s:\n{tail(log.name)}")
                # Often enough to time a start, seldom enough to take nothing from it.
                time.sleep(0.01)
            server.first_token_seconds = time.monotonic() - began
            yield server
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def tail(path, lines=12):
    return "\n".join(pathlib.Path(path).read_text(errors="replace").splitlines()[-lines:])


def first_request(tokens=16):
    """A prompt of so many token ids, answered by one token."""
    prompt = [100 + 7 * i for i in range(tokens)]
    return "/v1/completions", {"model": NAME, "prompt": prompt, "max_tokens": 1, "temperature": 0}


def llama_server(programs, model, clients, setting, cores):
    """llama.cpp with as many slots as clients, and 512 cells for each."""
    port = free_port()
    command = [programs / "llama-server", "-m", model, "-a", NAME, "--host", "127.0.0.1", "--port", port, "--no-webui"]
    command += ["-t", cores, "-tb", cores, "-np", clients, "-c", max(2048, 512 * clients), "-fa", setting]
    return running([str(word) for word in command], port, *first_request())


@contextlib.contextmanager
def candela_server(model, clients, request=None, **fields):
    """Our server on a local file or folder; `fields` are added to the model's entry in server.json."""
    port, internal = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="candela-bench-") as folder:
        config = {
            "version": 1,
            "models": [{"servedName": NAME, "uri": f"file://{model.resolve()}", **fields}],
            "timeouts": {},
            "terminationGraceSeconds": 1,
            "startupStallSeconds": 120,
        }
        path = pathlib.Path(folder) / "server.json"
        path.write_text(json.dumps(config))
        command = [OURS, "serve", "--config", path, "--listen", f"127.0.0.1:{port}"]
        command += ["--internal-listen", f"127.0.0.1:{internal}", "--termination-log", f"{folder}/why"]
        command += ["--max-sequences", max(clients, 1), "--drain-window-seconds", 0]
        command = [str(word) for word in command]
        with running(command, port, *(request or first_request()), {"RUST_LOG": "warn"}) as server:
            yield server


def load(server, prompts, clients, fields):
    """What `xtask bench-load` reports."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(prompts, file)
        file.flush()
        command = [XTASK, "bench-load", "--address", f"127.0.0.1:{server.port}", "--prompts", file.name]
        command += ["--clients", clients, "--fields", json.dumps({"model": NAME, **fields})]
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, preexec_fn=quietly, check=False
        )
    if done.returncode:
        raise RuntimeError(f"the load failed: {done.stderr.strip()}")
    return json.loads(done.stdout)
