"""Where the questions of a suite lie: named by a flag, or where the training run had them."""

import json

import pytest

from igpo_jax.data import DataSettings
from igpo_jax.errors import UserError
from igpo_jax.evaluation import suites


def test_the_questions_of_a_run_may_have_moved(tmp_path):
    rows = [{"question": f"What is {n} + 1?", "answer": n + 1, "reasoning": f"It is {n + 1}."} for n in range(5)]
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gone, moved = str(tmp_path / "gone"), str(tmp_path / "moved")
    with pytest.raises(UserError, match=r"gone.*--data own=PATH"):
        suites.load("own", "", tmp_path / "cache", 0, DataSettings(name="jsonl", path=gone))
    other = DataSettings(name="gsm8k", path=gone, test_name="jsonl", test_path=gone)
    for own in (DataSettings(name="jsonl", path=gone), other):
        found = suites.load("own", moved, tmp_path / "cache", 3, own)
        assert [example.answer for example in found.examples] == ["1", "2", "3"] and found.total == 5


def test_a_path_that_is_not_there_is_said_of_the_flag():
    with pytest.raises(UserError, match=r"--data amc23=nowhere does not exist; name its file or folder"):
        suites.parse_places(["amc=nowhere"], ["amc23"])
