"""Measurements of generation: load with many clients, decoding at depth, and from the start to the first token."""

import random
import statistics

import models
import programs

# The exact length cannot be had from text: decoding and encoding again moves it by a token or two.
PROMPT_SLACK = 4


class Invalid(RuntimeError):
    """A run that did not do the work that was asked for; it is not a result."""


def prompts(tokenizer, count, tokens, seed):
    """Different texts of `tokens` tokens each; nothing that a cache of prefixes could use."""
    rng = random.Random(seed)
    vocabulary = tokenizer.get_vocab_size()
    made = []
    for _ in range(count):
        ids = [rng.randrange(300, vocabulary) for _ in range(2 * tokens)]
        for _ in range(4):
            ids = tokenizer.encode(tokenizer.decode(ids).replace("\ufffd", " ")).ids[:tokens]
        made.append(tokenizer.decode(ids).replace("\ufffd", " "))
    return made


def fields(server, output):
    """Fields of a request for exactly `output` tokens, greedy."""
    wanted = {"max_tokens": output, "temperature": 0}
    # A server without the extension is told the same in OpenAI's own words: never a token that ends a text.
    never = {str(token): -100 for token in range(len(models.SPECIAL))}
    for never_ending in ({"ignore_eos": True}, {"logit_bias": never}):
        probe = {"model": programs.NAME, "prompt": [100], **wanted, **never_ending, "max_tokens": 1}
        status, answer = server.post("/v1/completions", probe)
        if status == 200:
            return {**wanted, **never_ending}
    raise Invalid(f"a request that must not end early was answered {status}: {answer}")


def checked(report, prompt, output):
    """The requests of a load, if each did what was asked."""
    for request in report["requests"]:
        if "error" in request:
            raise Invalid(f"request {request['prompt']}: {request['error']}")
        if request["completionTokens"] != output:
            raise Invalid(f"request {request['prompt']}: {request['completionTokens']} tokens instead of {output}")
        if abs(request["promptTokens"] - prompt) > PROMPT_SLACK:
            raise Invalid(f"request {request['prompt']}: a prompt of {request['promptTokens']} tokens, not {prompt}")
    return report["requests"]


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def under_load(server, tokenizer, case, seed):
    """Figures of one load: output tokens/s over the whole time, seconds to the first token, between tokens."""
    wanted = fields(server, case.output)
    # What a first request costs once (pages, packed weights) is not part of it.
    programs.load(server, prompts(tokenizer, 1, case.prompt, seed + 1), 1, {**wanted, "max_tokens": 4})
    before = server.memory()
    texts = prompts(tokenizer, case.clients * case.each, case.prompt, seed)
    report = programs.load(server, texts, case.clients, wanted)
    requests = checked(report, case.prompt, case.output)
    first = [request["pieces"][0] - request["began"] for request in requests]
    gaps = [b - a for request in requests for a, b in zip(request["pieces"], request["pieces"][1:])]
    return {
        "output_tokens_per_second": sum(request["completionTokens"] for request in requests) / report["wallSeconds"],
        "first_token_seconds_p50": statistics.median(first),
        "first_token_seconds_p95": percentile(first, 0.95),
        "between_tokens_ms_p50": 1000 * statistics.median(gaps),
        "between_tokens_ms_p95": 1000 * percentile(gaps, 0.95),
        "latency_seconds_p50": statistics.median(request["ended"] - request["began"] for request in requests),
        "prompt_tokens_mean": statistics.fmean(request["promptTokens"] for request in requests),
        "requests": len(requests),
        "wall_seconds": report["wallSeconds"],
        "client_cpu_seconds": report["clientCpuSeconds"],
        "resident_bytes_before": before["now"],
        "resident_bytes_most": server.memory()["most"],
    }


def at_depth(server, tokenizer, case, seed):
    """Tokens/s of one stream behind a prompt of a few tokens, and behind one of `case.prompt`; medians of `each`."""
    wanted = fields(server, case.output)
    speeds = {0: [], case.prompt: []}
    for repeat in range(case.each + 1):
        for depth, seen in speeds.items():
            prompt = max(depth, 4)
            texts = prompts(tokenizer, 1, prompt, seed + 1000 * repeat + depth)
            (request,) = checked(programs.load(server, texts, 1, wanted), prompt, case.output)
            pieces = request["pieces"]
            # The first round warms up.
            if repeat:
                seen.append((case.output - 1) / (pieces[-1] - pieces[0]))
    shallow, deep = (statistics.median(seen) for seen in speeds.values())
    return {"tokens_per_second": shallow, "tokens_per_second_deep": deep, "depth": case.prompt, "share": deep / shallow}


def from_start(server, model):
    """Seconds from the start of the process to the answer of one token to a prompt of 16, and what it holds then."""
    return {
        "first_token_seconds": server.first_token_seconds,
        "resident_bytes": server.memory()["now"],
        **server.held(model),
    }

