"""The judge decides every written case as intended: the shared ones and our own."""

import json
import pathlib

import pytest

from igpo_jax.rewards.pool import JudgePool, JudgeSettings

SHARED = pathlib.Path(__file__).parents[1] / "data" / "verify_cases.jsonl"
OWN = pathlib.Path(__file__).with_name("more_cases.jsonl")


@pytest.mark.parametrize("path", [SHARED, OWN], ids=["shared", "own"])
def test_every_case_is_decided_as_intended(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    with JudgePool(JudgeSettings(workers=2)) as pool:
        verdicts = pool.judge([(row["gold"], row["answer"]) for row in rows])
    misses = [
        (row["gold"][:60], row["answer"][:80], row["note"], verdict.reason)
        for row, verdict in zip(rows, verdicts, strict=True)
        if verdict.correct != row["equal"]
    ]
    assert misses == []
    assert len(rows) >= 136


def test_a_gold_answer_equals_itself_in_every_case():
    golds = [json.loads(line)["gold"] for path in (SHARED, OWN) for line in path.read_text().splitlines()]
    with JudgePool(JudgeSettings(workers=2)) as pool:
        verdicts = pool.judge([(gold, f"\\boxed{{ {gold} }}") for gold in golds])
    assert [gold for gold, verdict in zip(golds, verdicts, strict=True) if not verdict.correct] == []
