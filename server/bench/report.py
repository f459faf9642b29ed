"""The table for people and the raw figures, with what they depend on."""

import datetime
import json
import os
import pathlib
import platform
import subprocess

import gates

ROOT = pathlib.Path(__file__).resolve().parents[2]
# What kernels of either side choose their paths by.
FLAGS = "avx2 f16c fma avx_vnni avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 amx_int8".split()


def machine():
    fields = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    memory = pathlib.Path("/proc/meminfo").read_text().split()[1]
    present = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "cache": fields.get("cache size", "unknown"),
        "flags": [flag for flag in FLAGS if flag in present],
        "memory_gib": round(int(memory) / 2**20, 1),
        "kernel": platform.release(),
        # Others' work while it was measured; our own load is in it as well.
        "load_average": os.getloadavg(),
    }


def commit():
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":!docs/benchmarks")
    return git("rev-parse", "HEAD") + (" with changes that were not committed" if changed else "")


def number(value):
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def gate_row(verdict):
    gate = verdict.gate
    bound = ("≥ " if gate.higher else "≤ ") + f"{gate.bound:g}" + ("×" if gate.ratio else f" {gate.unit}".rstrip())
    if gate.aim:
        bound += f" (aim {gate.aim:g}×)"
    outcome = "pass" if verdict.passed else "**miss**" if verdict.value is not None else f"– {verdict.reason}"
    span = f"{number(verdict.least)} … {number(verdict.greatest)}" if verdict.rounds > 1 else "–"
    value = number(verdict.value) + ("×" if gate.ratio and verdict.value is not None else "")
    ours, theirs = (f"{number(side)} {gate.unit}".rstrip() for side in (verdict.ours, verdict.theirs))
    kind = "must" if gate.must else "should"
    return f"| {gate.name} | {kind} | {bound} | {value} | {span} | {ours} | {theirs} | {verdict.rounds} | {outcome} |"


def setting_rows(case, rounds):
    """One row per setting: medians of the figures of a load."""
    columns = [
        "output_tokens_per_second",
        "first_token_seconds_p50",
        "first_token_seconds_p95",
        "between_tokens_ms_p50",
        "between_tokens_ms_p95",
    ]
    for setting in [gates.OURS, *gates.OPPONENTS["load"]]:
        runs = [figures[setting] for figures in rounds if setting in figures]
        if runs:
            middle = [number(gates.statistics.median(run[column] for run in runs)) for column in columns]
            rss = gates.statistics.median(run["resident_bytes_most"] for run in runs) / 2**20
            yield f"| {case.name} | {setting} | {' | '.join(middle)} | {rss:.0f} | {len(runs)} |"


def client_share(cores, cases):
    """The client's part of the cores' time, in the run where it was greatest."""
    runs = [run for case, rounds in cases if case.kind == "load" for figures in rounds for run in figures.values()]
    return max((run["client_cpu_seconds"] / run["wall_seconds"] / cores for run in runs), default=0.0)


def markdown(facts, verdicts, cases):
    """`cases`: [(case, complete rounds)]."""
    m = facts["machine"]
    lines = [
        "# Results of `make bench-server`",
        "",
        "Written by the bench; [README.md](README.md) says what is measured and how to read it. Raw: `results.json`.",
        "",
        f"- {facts['date']}, commit {facts['commit']}",
        f"- {m['cores']} cores of {m['processor']} ({m['cache']} cache; {' '.join(m['flags'])}), {m['memory_gib']} GiB, "
        f"Linux {m['kernel']}, load average at the end {m['load_average'][0]:.1f}",
        f"- ours: `{facts['ours']}`; " + "; ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "",
        "| gate | | wanted | median | least … greatest | ours | best opponent | rounds | |",
        "|---|---|---|---|---|---|---|---|---|",
        *(gate_row(verdict) for verdict in verdicts),
        "",
        f"The client took at most {100 * client_share(m['cores'], cases):.1f} % of the cores' time in any load.",
        "",
        "Medians per setting:",
        "",
        "| case | server | output tok/s | first token p50 s | p95 s | between tokens p50 ms | p95 ms | RSS MiB | runs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, rounds in cases:
        if case.kind == "load":
            lines += setting_rows(case, rounds)
    return "\n".join(lines) + "\n"


def write(folder, facts, verdicts, cases):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.md").write_text(markdown(facts, verdicts, cases))
    raw = {**facts, "cases": {case.name: {**vars(case), "measured": rounds} for case, rounds in cases}}
    (folder / "results.json").write_text(json.dumps(raw, indent=1, default=str) + "\n")


def now():
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
