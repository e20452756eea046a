"""Verdicts of an unfinished step are read back, so that a time-out stays what it was; nothing else is."""

import json
import logging
import threading

import numpy as np
import pytest

from igpo_jax.rewards.verdict import Verdict
from igpo_jax.training.journal import Journal


class Moody:
    """Says of every completion something else each time it is asked, as a busy machine may."""

    def __init__(self):
        self.asked = []

    def judge(self, items):
        verdicts = []
        for gold, text in items:
            self.asked.append((gold, text))
            mood = len(self.asked)
            verdicts.append(Verdict(mood % 2 == 0, f"{text}!", f"mood {mood}", mood % 3 == 0))
        return verdicts


ITEMS = [("4", "two and two"), ("5", "five"), ("4", "\ud800 odd\n\u2028text"), ("4", "two and two")]


def started(tmp_path, judge=None, step=7, process=0):
    journal = Journal(judge or Moody(), tmp_path, process)
    journal.begin("igpo", step)
    return journal


def test_a_restart_reads_back_what_was_said(tmp_path):
    first = started(tmp_path)
    said = first.judge(ITEMS)
    assert said[0] == said[3], "the same completion gets one verdict"
    again = started(tmp_path)
    assert again.judge(ITEMS[:2]) + again.judge(ITEMS[2:]) == said
    assert again.replayed == 4 and not again._judge.asked
    more = again.judge([("6", "six")])
    assert again._judge.asked == [("6", "six")]
    assert started(tmp_path).judge([("6", "six"), *ITEMS]) == more + said


def test_without_a_journal_it_would_be_otherwise(tmp_path):
    """What the test above is worth: the judge that is asked twice changes its mind."""
    moody = Moody()
    assert moody.judge(ITEMS[:1]) != moody.judge(ITEMS[:1])


def test_another_step_another_gold_and_another_stage_are_judged_anew(tmp_path):
    started(tmp_path).judge(ITEMS)
    for journal, items in (
        (started(tmp_path, step=8), ITEMS[:1]),
        (started(tmp_path), [("5", "two and two")]),
    ):
        journal.judge(items)
        assert journal._judge.asked == items
    other = Journal(Moody(), tmp_path)
    other.begin("igpo_eval", 7)
    other.judge(ITEMS[:1])
    assert other._judge.asked == ITEMS[:1]


def test_time_outs_are_counted_with_those_read_back(tmp_path):
    first = started(tmp_path)
    verdicts = first.judge([("1", str(n)) for n in range(9)])
    assert first.timed_out == sum(verdict.timed_out for verdict in verdicts) == 3
    again = started(tmp_path)
    again.judge([("1", str(n)) for n in range(9)])
    assert again.timed_out == 3
    again.begin("igpo", 8)
    assert again.timed_out == 0


@pytest.mark.parametrize("cut", [1, 30, -1])
def test_a_line_cut_by_a_kill_is_judged_again(tmp_path, cut):
    said = started(tmp_path).judge(ITEMS[:2])
    path = tmp_path / "journal" / "igpo_000007.p0.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:cut])
    again = started(tmp_path)
    assert again.judge(ITEMS[:1]) == said[:1]
    anew = again.judge(ITEMS[1:2])
    assert again._judge.asked == ITEMS[1:2]
    assert [json.loads(line)["reason"] for line in path.read_text().splitlines()] == [said[0].reason, anew[0].reason]


def test_a_damaged_line_is_named_and_judged_again(tmp_path, caplog):
    started(tmp_path).judge(ITEMS[:2])
    path = tmp_path / "journal" / "igpo_000007.p0.jsonl"
    path.write_bytes(b"\0\0\0\n" + path.read_bytes().splitlines(keepends=True)[1])
    with caplog.at_level(logging.WARNING):
        again = started(tmp_path)
    assert f"{path} line 1 is damaged" in caplog.text
    again.judge(ITEMS[:2])
    assert again._judge.asked == ITEMS[:1]


def test_a_process_reads_every_journal_and_cuts_only_its_own(tmp_path):
    mine, yours = started(tmp_path, process=0), started(tmp_path, process=1)
    said = mine.judge(ITEMS[:1]) + yours.judge(ITEMS[1:2])
    path = tmp_path / "journal" / "igpo_000007.p1.jsonl"
    with path.open("a") as file:
        file.write('{"key": "ha')
    before = path.read_bytes()
    again = started(tmp_path, process=0)
    assert again.judge(ITEMS[:2]) == said
    assert path.read_bytes() == before


def test_a_rollout_that_comes_out_differently_is_named(tmp_path, caplog):
    tokens, replaced = np.arange(6, dtype=np.int32).reshape(2, 3), np.array([False, True])
    assert started(tmp_path).settle(tokens, replaced)
    with caplog.at_level(logging.WARNING):
        assert started(tmp_path).settle(tokens.astype(np.int64), replaced)
        assert caplog.text == ""
        assert not started(tmp_path).settle(tokens, ~replaced)
        assert not started(tmp_path).settle(tokens + 1, replaced)
    assert caplog.text.count("igpo_000007 comes out differently") == 2
    entry = json.loads((tmp_path / "journal" / "igpo_000007.p0.jsonl").read_text())
    assert entry["replaced"] == [1]


def test_journals_that_a_checkpoint_made_needless_go(tmp_path):
    for step in (1, 2, 3):
        started(tmp_path, step=step).judge(ITEMS)
    other = Journal(Moody(), tmp_path)
    other.begin("igpo_eval", 1)
    other.judge(ITEMS)
    journal = Journal(Moody(), tmp_path)
    journal.forget("igpo", 2)
    names = sorted(path.name for path in (tmp_path / "journal").iterdir())
    assert names == ["igpo_000003.p0.jsonl", "igpo_eval_000001.p0.jsonl"]
    journal.forget("igpo", 9)
    journal.forget("igpo_eval", 9)
    assert not (tmp_path / "journal").exists()


def test_outside_a_step_nothing_is_recorded(tmp_path):
    journal = Journal(Moody(), tmp_path)
    journal.judge(ITEMS)
    journal.begin("igpo", 1)
    journal.end()
    journal.judge(ITEMS)
    assert not (tmp_path / "journal").exists() and len(journal._judge.asked) == 6


def test_the_end_waits_for_the_verdicts_under_way(tmp_path):
    """They are judged in a thread of their own, and a run that stops must not lose them."""
    entered, go = threading.Event(), threading.Event()

    class Slow(Moody):
        def judge(self, items):
            entered.set()
            assert go.wait(10)
            return super().judge(items)

    journal = started(tmp_path, Slow())
    thread = threading.Thread(target=journal.judge, args=(ITEMS,))
    thread.start()
    assert entered.wait(10)
    threading.Timer(0.05, go.set).start()
    journal.end()
    thread.join()
    assert len((tmp_path / "journal" / "igpo_000007.p0.jsonl").read_text().splitlines()) == 3
