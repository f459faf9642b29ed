"""The verdicts of `make bench-server`: what a round counts for, and what makes the command fail."""

import importlib
import pathlib
import sys

import pytest


@pytest.fixture(scope="module")
def gates():
    folder = str(pathlib.Path(__file__).resolve().parents[1] / "bench")
    sys.path.insert(0, folder)
    yield importlib.import_module("gates")
    sys.path.remove(folder)


def rounds(*pairs, figure="output_tokens_per_second"):
    """One round per (ours, one opponent, another opponent)."""
    return [
        {"candela": {figure: ours}, "a": {figure: one}, "b": {figure: other}} for ours, one, other in pairs
    ]


def gate(gates, name):
    (found,) = [gate for gate in gates.GATES if gate.name == name]
    return found


def test_a_ratio_is_to_the_best_setting_of_its_own_round(gates):
    verdict = gates.judge(gate(gates, "1b-16"), rounds((26, 10, 20), (30, 20, 10), (39, 10, 10)))
    # 1.3, 1.5 and 3.9; the median of ours by the median of theirs would be 1.5 as well, the mean would not.
    assert (verdict.value, verdict.least, verdict.greatest) == (1.5, 1.3, 3.9)
    assert (verdict.ours, verdict.theirs, verdict.rounds) == (30, 20, 3)
    assert verdict.passed and gates.failures([verdict]) == []


def test_a_gate_that_must_pass_and_does_not_fails_the_command(gates):
    slow = gates.judge(gate(gates, "1b-16"), rounds((25.9, 20, 10)))
    assert not slow.passed and gates.failures([slow]) == ["1b-16"]
    should = gates.judge(gate(gates, "1b-4"), rounds((1, 20, 10)))
    assert not should.passed and gates.failures([should]) == []
    unmeasured = gates.judge(gate(gates, "1b-16"), [])
    assert gates.failures([unmeasured]) == ["1b-16"]


def test_less_is_better_where_time_is_measured(gates):
    figure = "first_token_seconds_p50"
    first = gate(gates, "1b-16-first")
    assert gates.judge(first, rounds((1, 2, 3), figure=figure)).passed
    assert not gates.judge(first, rounds((1.1, 2, 3), figure=figure)).passed


def test_what_this_build_does_not_serve_says_so_beside_the_opponents_figure(gates):
    figure = "embeddings_per_second"
    measured = [{"candela": {"unsupported": "no"}, "a": {figure: 50.0}, "b": {figure: 50.0}}]
    verdict = gates.judge(gate(gates, "embed-f32"), measured)
    assert (verdict.value, verdict.theirs, verdict.reason) == (None, 50.0, "no")


def test_each_gate_names_a_case_and_each_case_has_a_gate(gates):
    assert {gate.case for gate in gates.GATES} == {case.name for case in gates.CASES}
