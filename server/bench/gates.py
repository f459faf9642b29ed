"""What is measured, and what must come out of it. Pure: runs in, verdicts out."""

import dataclasses
import statistics


@dataclasses.dataclass(frozen=True)
class Case:
    """One measurement, the same for each side. `kind` names how: load, depth, start or embed."""

    name: str
    kind: str
    model: str
    rounds: int
    clients: int = 1
    # Requests per client; repeats of a single stream at depth.
    each: int = 1
    prompt: int = 256
    output: int = 128


CASES = [
    Case("1b-16", "load", "1b-q4_k_m", rounds=5, clients=16, each=2),
    Case("1b-4", "load", "1b-q4_k_m", rounds=3, clients=4, each=2),
    Case("1b-1", "load", "1b-q4_k_m", rounds=3, each=2),
    Case("135m-16", "load", "135m-q8_0", rounds=5, clients=16, each=2),
    Case("135m-1", "load", "135m-q8_0", rounds=3, each=3),
    Case("depth-1b", "depth", "1b-q4_k_m", rounds=3, each=3, prompt=512, output=64),
    Case("depth-135m", "depth", "135m-q8_0", rounds=3, each=5, prompt=512, output=64),
    Case("start-1b", "start", "1b-q4_k_m", rounds=3),
    Case("start-135m", "start", "135m-q8_0", rounds=3),
    Case("embed-f32", "embed", "f32", rounds=3),
    Case("embed-int8", "embed", "int8", rounds=3),
]

# Settings of the opponents, by kind of case. Where there are several, the best of a round is what counts.
OPPONENTS = {
    "load": ["llama.cpp -fa off", "llama.cpp -fa auto"],
    "depth": [],
    "start": ["llama.cpp -fa off"],
    "embed": ["onnxruntime", "onnxruntime fused"],
}
OURS = "candela"


@dataclasses.dataclass(frozen=True)
class Gate:
    """`figure` of our run against `bound`: as a ratio to the best opponent of the same round, or as it is."""

    name: str
    case: str
    figure: str
    bound: float
    must: bool
    ratio: bool = True
    higher: bool = True
    aim: float | None = None
    unit: str = ""


GATES = [
    Gate("1b-16", "1b-16", "output_tokens_per_second", 1.3, must=True, aim=2.5, unit="tok/s"),
    Gate("1b-4", "1b-4", "output_tokens_per_second", 1.2, must=False, unit="tok/s"),
    Gate("135m-16", "135m-16", "output_tokens_per_second", 1.3, must=True, unit="tok/s"),
    Gate("1b-1", "1b-1", "output_tokens_per_second", 1.0, must=False, aim=1.5, unit="tok/s"),
    Gate("135m-1", "135m-1", "output_tokens_per_second", 1.0, must=False, aim=1.5, unit="tok/s"),
    Gate("1b-16-first", "1b-16", "first_token_seconds_p50", 0.5, must=True, higher=False, unit="s"),
    Gate("135m-16-first", "135m-16", "first_token_seconds_p50", 0.5, must=True, higher=False, unit="s"),
    Gate("depth-1b", "depth-1b", "share", 0.9, must=True, ratio=False),
    Gate("depth-135m", "depth-135m", "share", 0.9, must=True, ratio=False),
    Gate("embed-f32", "embed-f32", "embeddings_per_second", 1.0, must=False, unit="emb/s"),
    Gate("embed-int8", "embed-int8", "embeddings_per_second", 1.0, must=False, unit="emb/s"),
    Gate("start-1b", "start-1b", "first_token_seconds", 3.0, must=False, ratio=False, higher=False, unit="s"),
    Gate("start-135m", "start-135m", "first_token_seconds", 1.0, must=False, ratio=False, higher=False, unit="s"),
    Gate("memory-1b", "start-1b", "resident_per_file", 1.2, must=False, ratio=False, higher=False),
    Gate("memory-135m", "start-135m", "resident_per_file", 1.2, must=False, ratio=False, higher=False),
]


@dataclasses.dataclass(frozen=True)
class Verdict:
    gate: Gate
    # Medians over the rounds; `theirs` is of the best setting of each round. None: not measured.
    ours: float | None
    theirs: float | None
    # What is held against the bound: its median, least and greatest over the rounds.
    value: float | None
    least: float | None
    greatest: float | None
    rounds: int
    # Why there is no value.
    reason: str = ""

    @property
    def passed(self):
        if self.value is None:
            return False
        return self.value >= self.gate.bound if self.gate.higher else self.value <= self.gate.bound


def judge(gate, rounds):
    """`rounds`: for each round a map from setting to figures. Rounds count that have all settings."""
    measured, reason = [], "not measured"
    for figures in rounds:
        reason = figures.get(OURS, {}).get("unsupported", reason)
        ours = figures.get(OURS, {}).get(gate.figure)
        others = [seen.get(gate.figure) for setting, seen in figures.items() if setting != OURS]
        if ours is None or (gate.ratio and (not others or None in others)):
            continue
        theirs = (max(others) if gate.higher else min(others)) if gate.ratio else None
        measured.append((ours, theirs, ours / theirs if gate.ratio else ours))
    if not measured:
        others = [seen[gate.figure] for figures in rounds for seen in figures.values() if gate.figure in seen]
        theirs = statistics.median(others) if others and gate.ratio else None
        return Verdict(gate, None, theirs, None, None, None, 0, reason)
    ours, theirs, values = zip(*measured)
    best = statistics.median(theirs) if gate.ratio else None
    return Verdict(
        gate, statistics.median(ours), best, statistics.median(values), min(values), max(values), len(measured)
    )


def failures(verdicts):
    """Names of the must-gates that did not pass."""
    return [verdict.gate.name for verdict in verdicts if verdict.gate.must and not verdict.passed]
