"""Runs that were asked to end, or fell in the middle of a step, go on to the bits of a run that nobody touched."""

import dataclasses
import itertools
import logging
import os

import numpy as np
import pytest

from igpo_jax.errors import UserError
from igpo_jax.rewards.verdict import Verdict
from igpo_jax.training import checkpoints
from igpo_jax.training.checkpoints import CheckpointSettings
from igpo_jax.training.metrics import read_metrics
from igpo_jax.training.stopping import Stop, Stopped
from tests.training import tiny
from tests.training.recipe_cases import assert_same_bits, lucky, metrics_of, summary_of, train

pytestmark = pytest.mark.usefixtures("compiled_once")

SETTINGS = tiny.run_settings()


class StopAt(Stop):
    """Asked to end at the n-th safe point."""

    def __init__(self, points):
        super().__init__()
        self.left = points

    def point(self, preempted=False):
        self.left -= 1
        if self.left == 0:
            self.request()
        super().point(preempted)


@pytest.fixture(scope="module")
def whole(compiled_once, tmp_path_factory):
    """(workdir, recorder) of a run without interruption."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(SETTINGS, workdir)


def files_of(workdir, folder):
    return {path.name: path.read_bytes() for path in (workdir / folder).iterdir()}


@pytest.mark.slow
def test_a_run_that_is_stopped_every_few_safe_points(whole, tmp_path):
    """Points lie before every sampled program and at the end of every step: all phases are left and entered again."""
    workdir, expected = whole
    results, lives, steps = {}, 0, []
    while "rl" not in results:
        lives += 1
        assert lives < 20, "each life gets a little further"
        try:
            results = train(SETTINGS, tmp_path, stop=StopAt(6)).results
        except Stopped as stopped:
            assert stopped.code == 75
            steps.append(len(read_metrics(tmp_path)))
    assert lives >= 4 and steps == sorted(steps)
    assert_same_bits(results["rl"], expected.results["rl"])
    assert metrics_of(tmp_path) == metrics_of(workdir)
    assert summary_of(tmp_path) == summary_of(workdir)
    assert files_of(tmp_path, "rollouts") == files_of(workdir, "rollouts")
    assert not (tmp_path / "journal").exists()


# Points of a step: its begin, both rounds, before the updates, its end; and one of each evaluation, also at the start.
@pytest.mark.parametrize(
    "points", [1 + 5 * 2 + 1, 1 + 5 * 2 + 1 + 3], ids=["in the evaluation", "in the rollout after it"]
)
def test_nothing_is_lost_by_a_stop(tmp_path, capsys, points):
    """No checkpoint is due here, but the one made on leaving holds the last whole step."""
    settings = dataclasses.replace(
        SETTINGS,
        sft=dataclasses.replace(SETTINGS.sft, steps=0),
        checkpoints=CheckpointSettings(every=0),
        evaluation=dataclasses.replace(SETTINGS.evaluation, every=2),
    )
    with pytest.raises(Stopped):
        train(settings, tmp_path, stop=StopAt(points))
    assert "igpo: step 2 of 4 is saved" in capsys.readouterr().out
    before = [("eval", 0), ("igpo", 1), ("igpo", 2)]
    evaluated = [("igpo/eval", 2)] if points > 12 else []
    assert [row[:2] for row in metrics_of(tmp_path)] == before + evaluated
    assert (tmp_path / "journal" / "igpo_000003.p0.jsonl").exists() == bool(evaluated)
    rest = train(settings, tmp_path)
    assert [rollout.step for rollout in rest.rollouts] == [2, 3]
    assert [row[:2] for row in metrics_of(tmp_path)] == [
        *before,
        ("igpo/eval", 2),
        ("igpo", 3),
        ("igpo", 4),
        ("eval", 4),
    ]


class Moody:
    """A judge on a busy machine: every fourth comparison runs out of time, whichever it is."""

    def __init__(self, asked=0):
        self.asked = asked

    def judge(self, items):
        verdicts = []
        for gold, text in items:
            self.asked += 1
            late = self.asked % 4 == 0
            verdicts.append(Verdict(not late and lucky(gold, text), text or None, "mood", late))
        return verdicts


def test_time_outs_of_a_step_that_is_repeated_stay_what_they_were(tmp_path):
    """The run falls between the inner updates of step 4; steps 3 and 4 are made again by a judge in another mood."""
    first = train(SETTINGS, tmp_path, judge=Moody(), update_stops=7)
    assert [rollout.step for rollout in first.rollouts] == [0, 1, 2, 3]
    logged = metrics_of(tmp_path)
    second = train(SETTINGS, tmp_path, judge=Moody(asked=2))
    assert [rollout.step for rollout in second.rollouts] == [2, 3]
    for mine, yours in zip(second.rollouts, first.rollouts[2:], strict=True):
        np.testing.assert_array_equal(mine.out.batch.rewards, yours.out.batch.rewards)
        np.testing.assert_array_equal(mine.out.replaced, yours.out.replaced)
        assert mine.out.rows.verdicts == yours.out.rows.verdicts
    again = metrics_of(tmp_path)
    assert again[: len(logged)] == logged, "the rows that were seen before the fall are still true"
    third = [values for stage, step, values in again if (stage, step) == ("igpo", 3)]
    assert float(third[0]["judge_timeouts"]) >= 4, "they are counted, of both rounds"


@pytest.mark.slow
def test_the_batch_of_a_step_does_not_depend_on_what_ran_before(whole, tmp_path):
    """The position in the data is what was consumed: a run resumed at step 2 takes the questions of step 3."""
    _, expected = whole
    train(SETTINGS, tmp_path, rl_stops=3)
    resumed = train(SETTINGS, tmp_path)
    asked = {rollout.step: [q.id for q in rollout.out.questions] for rollout in expected.rollouts}
    assert {rollout.step: [q.id for q in rollout.out.questions] for rollout in resumed.rollouts} == {
        step: asked[step] for step in (2, 3)
    }
    assert len({tuple(ids) for ids in asked.values()}) == 4


@pytest.mark.slow
def test_an_updates_overflow_stops_the_run_and_names_the_good_checkpoint(tmp_path, capsys):
    """A learning rate of 1e30 ruins the parameters in the first update; those after it are skipped."""
    optimizer = dataclasses.replace(SETTINGS.sft.optimizer, learning_rate=1e30)
    sft = dataclasses.replace(SETTINGS.sft, steps=8, log_every=1, optimizer=optimizer)
    settings = dataclasses.replace(SETTINGS, sft=sft, nonfinite_limit=3, checkpoints=CheckpointSettings(every=1))
    with pytest.raises(
        UserError, match=r"sft: the last 3 updates were skipped, because .* nan; .* checkpoint is .*/sft/1: "
    ):
        train(settings, tmp_path)
    rows = [row.values for row in read_metrics(tmp_path) if row.stage == "sft"]
    assert [values["skipped_updates"] for values in rows] == [0, 1, 2, 3]
    assert not np.isfinite(rows[1]["loss"]) or not np.isfinite(rows[1]["grad_norm"])
    said = capsys.readouterr().out
    assert "warning: sft: loss or gradient not finite, update skipped (1 in a row; 3 in a row end the run)" in said


def test_a_run_goes_on_while_its_disk_is_full(whole, tmp_path, monkeypatch, caplog):
    _, expected = whole
    looks = itertools.count()
    # The first save looks three times: before it begins, and for its sentence.
    monkeypatch.setattr(checkpoints.Checkpoints, "_free", lambda self: 0 if next(looks) < 3 else 2**40)
    sft = dataclasses.replace(SETTINGS, rl=dataclasses.replace(SETTINGS.rl, steps=0))
    with caplog.at_level(logging.WARNING):
        run = train(sft, tmp_path)
    assert "checkpoint of step 2 could not be written" in caplog.text and "are missing" in caplog.text
    assert "the run goes on and tries again" in caplog.text
    assert os.listdir(tmp_path / "checkpoints" / "sft") == ["4"]
    assert_same_bits(run.results["sft"], expected.results["sft"])


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.Checkpoints, "_free", lambda self: 1024)
    with pytest.raises(
        UserError, match=r"checkpoint of step 4 could not be written .* 1.0 KiB are free, so .* missing"
    ):
        train(dataclasses.replace(SETTINGS, rl=dataclasses.replace(SETTINGS.rl, steps=0)), tmp_path)
