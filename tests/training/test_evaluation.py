"""Pass@1 and pass@k are what counting by hand gives, whatever programs the questions are packed into."""

import dataclasses

import jax
import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.models import llada
from igpo_jax.rl import sampling
from igpo_jax.training import evaluation
from tests.rl.rollout_cases import (
    CONFIG,
    MODEL,
    SAMPLER,
    IdTokenizer,
    RuleJudge,
    ScriptedSampler,
    mesh_of,
    network,
    question,
)

EOS = CONFIG.eos_token_id
QUESTIONS = [dataclasses.replace(question(number), gold=f"g{number}") for number in range(7)]
GREEDY = dataclasses.replace(SAMPLER, temperature=0.0)


def evaluate(policy, judge, samples=1, rows_per_program=8, sampler=GREEDY):
    mesh = mesh_of(1)
    where = sampling.SamplerContext(MODEL, sampler, mesh, rows_per_program, seed=0)
    with jax.set_mesh(mesh):
        return evaluation.evaluate(policy, QUESTIONS, samples, where, IdTokenizer().decode, judge)


@pytest.fixture(scope="module")
def policy():
    mesh = mesh_of(1)
    return jax.device_put(network(), llada.Policy(llada.shardings(CONFIG, mesh)))


def test_filler_rows_are_not_questions(policy):
    """Seven questions in a program of eight, and in one of seven."""
    results, asked = [], []
    for rows in (8, 7):
        # Right where the parity of the first token agrees with the question's number.
        judge = RuleJudge(lambda gold, text: int(text.split()[0]) % 2 == int(gold[1:]) % 2)
        results.append(evaluate(policy, judge, rows_per_program=rows))
        asked.append(judge.asked)
    assert [gold for gold, _ in asked[0]] == [q.gold for q in QUESTIONS]
    assert asked[0] == asked[1] and results[0] == results[1]
    expected = [int(text.split()[0]) % 2 == int(gold[1:]) % 2 for gold, text in asked[0]]
    assert results[0].correct == tuple((c,) for c in expected)
    assert 0 < sum(expected) < 7
    assert results[0].pass_at_1 == pytest.approx(sum(expected) / 7)
    assert results[0].metrics()["questions"] == 7.0


def script(monkeypatch):
    """Row r answers with r + 1 tokens, the last of which says whether it is right (1) or wrong (0); row 4 is empty."""
    right = [1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0, 1, 0]

    def write(purpose, row):
        assert purpose == "evaluate"
        text = [] if row == 4 else [30] * row + [right[row]]
        return text + [EOS] * (16 - len(text))

    monkeypatch.setattr(sampling, "sample", ScriptedSampler(write))
    return right, RuleJudge(lambda gold, text: text.split()[-1:] == ["1"])


def test_one_sample_a_question(monkeypatch):
    right, judge = script(monkeypatch)
    result = evaluate(None, judge)
    assert [row[0] for row in result.correct] == [bool(c) for c in right[:7]]
    metrics = result.metrics()
    assert metrics["pass_at_1"] == pytest.approx(3 / 7)
    assert metrics["no_answer"] == pytest.approx(1 / 7)
    # Up to and including the EOS: 2, 3, 4, 5, 1, 7 and 8 tokens.
    assert metrics["mean_length"] == pytest.approx(30 / 7)
    low, high = metrics["pass_at_1_low"], metrics["pass_at_1_high"]
    assert 0 < low < 3 / 7 < high < 1
    assert {name for name in metrics if name.startswith("pass_at_")} == {"pass_at_1", "pass_at_1_low", "pass_at_1_high"}


def test_two_samples_a_question(monkeypatch):
    right, judge = script(monkeypatch)
    result = evaluate(None, judge, samples=2, sampler=SAMPLER)
    pairs = [tuple(bool(c) for c in right[2 * n : 2 * n + 2]) for n in range(7)]
    assert list(result.correct) == pairs
    metrics = result.metrics()
    assert metrics["pass_at_1"] == pytest.approx(np.mean(right))
    assert metrics["pass_at_2"] == pytest.approx(np.mean([any(pair) for pair in pairs]))
    assert metrics["pass_at_1_low"] < metrics["pass_at_1"] < metrics["pass_at_1_high"]


def test_pass_at_5_is_drawn_where_the_samples_allow_it():
    counts = (0, 1, 2, 3, 8)
    result = evaluation.Evaluation(tuple((True,) * c + (False,) * (8 - c) for c in counts), 0.0, 1.0, 1)
    metrics = result.metrics()
    assert {name for name in metrics if name.startswith("pass_at_") and name[-1].isdigit()} == {
        "pass_at_1",
        "pass_at_5",
        "pass_at_8",
    }
    assert metrics["pass_at_1"] == pytest.approx(14 / 40)
    # Of the 56 ways to take five of eight, C(8 - c, 5) = 21, 6 and 1 miss all c right ones for c = 1, 2 and 3.
    assert metrics["pass_at_5"] == pytest.approx((0 + 35 / 56 + 50 / 56 + 55 / 56 + 1) / 5)
    assert metrics["pass_at_8"] == pytest.approx(4 / 5)


def test_a_completion_without_eos_has_the_full_length(monkeypatch):
    monkeypatch.setattr(sampling, "sample", ScriptedSampler(lambda purpose, row: [3] * 16))
    assert evaluate(None, RuleJudge(lambda gold, text: True)).mean_length == 16


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"questions": -1}, "questions"),
        ({"samples": 0}, "samples"),
        ({"every": -2}, "every"),
        ({"rows_per_program": 0}, "rows_per_program"),
        ({"samples": 4, "temperature": 0.0}, "samples is 4 at temperature 0"),
    ],
)
def test_settings_out_of_range(changes, words):
    with pytest.raises(UserError, match=words):
        evaluation.EvaluationSettings(**changes)


def test_the_interval_of_equal_scores_has_a_width():
    nothing = evaluation.Evaluation(((False,) * 4,) * 35, no_answer=1.0, mean_length=1.0, forwards=0)
    low, high = nothing.interval
    assert low == 0.0 and 0.05 < high < 0.15
