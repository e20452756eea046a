"""Training with a likelihood estimator that draws new masks for every inner update."""

import dataclasses
import json

import numpy as np
import pytest

from igpo_jax.training import rl_stage
from tests.training import tiny
from tests.training.recipe_cases import assert_same_bits, metrics_of, train

pytestmark = pytest.mark.usefixtures("compiled_once")

BASE, UPDATES = tiny.run_settings(), 3


def settings_with(estimator, **changes):
    return dataclasses.replace(
        BASE,
        sft=dataclasses.replace(BASE.sft, steps=0),
        rl=dataclasses.replace(BASE.rl, steps=3, inner_updates=UPDATES, estimator=estimator, **changes),
        evaluation=dataclasses.replace(BASE.evaluation, every=0, questions=1),
        checkpoints=dataclasses.replace(BASE.checkpoints, every=1),
    )


class Watch:
    """What a run draws, assembles and learns from, through the functions that its stage makes."""

    def __init__(self, patch):
        self.drawn, self.assembled, self.learnt, self.scorers = [], [], [], []
        step = rl_stage.rl_step
        patch.setattr(step, "make_masks", self._seen(step.make_masks, self._draw))
        patch.setattr(step, "make_update_batch", self._seen(step.make_update_batch, self._assemble))
        patch.setattr(step, "make_rl_step", self._seen(step.make_rl_step, self._learn))
        patch.setattr(step, "make_score", self._seen(step.make_score, self._score))

    @staticmethod
    def _seen(make, wrap):
        return lambda *arguments: wrap(make(*arguments))

    def _draw(self, draw):
        def recorded(key, step, update, batch):
            masks = draw(key, step, update, batch)
            self.drawn.append((step, update, varying(masks)))
            return masks

        return recorded

    def _assemble(self, assemble):
        def recorded(*arguments):
            batch = assemble(*arguments)
            self.assembled.append((varying(batch.masks), np.asarray(batch.kept)))
            return batch

        return recorded

    def _learn(self, update):
        def recorded(state, batch):
            self.learnt.append((varying(batch.masks), np.asarray(batch.kept)))
            return update(state, batch)

        recorded.lower = update.lower
        return recorded

    def _score(self, score):
        self.scorers.append(score)
        return score


def varying(masks):
    """The part of the masks that is drawn."""
    return np.asarray(masks.completion if masks.prompt is None else masks.prompt)


@pytest.fixture(scope="module", params=["prompt_masking", "structured_noising"])
def whole(request, compiled_once, tmp_path_factory):
    """(settings, workdir, recorder, watch) of a run without interruption."""
    settings, workdir = settings_with(request.param), tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        watch = Watch(patch)
        return settings, workdir, train(settings, workdir), watch


def test_every_inner_update_has_masks_of_its_own_and_in_their_order(whole):
    settings, _, run, watch = whole
    steps = [(step, update) for step in range(3) for update in range(UPDATES)]
    assert [(step, update) for step, update, _ in watch.drawn] == steps and len(run.after) == len(steps)
    # The last update of each step of structured noising hides everything.
    distinct = 9 if settings.rl.estimator == "prompt_masking" else 7
    assert len({masks.tobytes() for _, _, masks in watch.drawn}) == distinct
    for (_, _, drawn), (masks, kept), (learnt, learnt_kept) in zip(
        watch.drawn, watch.assembled, watch.learnt, strict=True
    ):
        np.testing.assert_array_equal(masks, drawn)
        np.testing.assert_array_equal(learnt, drawn)
        np.testing.assert_array_equal(learnt_kept, kept)


def test_both_policies_are_scored_once_for_each_of_them(whole):
    """And where rows hold hints, twice more for the gap that the hints make, all by one program."""
    _, _, run, watch = whole
    gaps = sum(rollout.out.batch.hint_mask.any() for rollout in run.rollouts)
    assert gaps and len(run.scored) == 3 * UPDATES * 2 + 2 * gaps
    assert [score._cache_size() for score in watch.scorers] == [1]


def test_old_reference_and_new_are_scored_with_the_same_masks(whole, tmp_path):
    """Where no update moves the policy, the last one of each step finds ratios of 1 and no distance to the start."""
    settings, _, _, _ = whole
    still = dataclasses.replace(settings.rl.optimizer, learning_rate=1e-12)
    train(settings_with(settings.rl.estimator, optimizer=still), tmp_path)
    rows = [row for stage, _, row in metrics_of(tmp_path) if stage == settings.name]
    assert len(rows) == 3
    for row in rows:
        assert abs(float(row["ratio"]) - 1) < 1e-5 and float(row["kl"]) < 1e-9 and float(row["ratio_gap"]) < 1e-5


def test_a_saved_token_is_kept_where_any_update_learns_from_it(whole):
    settings, workdir, _, watch = whole
    kept = np.any([kept for _, kept in watch.assembled[UPDATES : 2 * UPDATES]], axis=0)
    (path,) = (workdir / "rollouts").glob("*2.jsonl")
    rows = [row for row in map(json.loads, path.read_text().splitlines()) if row["learnt_from"]]
    assert len(rows) == settings.rl.rollout.rows
    for row, places in zip(rows, kept, strict=True):
        assert row["kept"] == places[: len(row["kept"])].astype(int).tolist()
    if settings.rl.estimator == "structured_noising":
        assert any((one != kept).any() for _, one in watch.assembled[UPDATES : 2 * UPDATES])


def test_a_run_that_goes_on_draws_the_same_masks(whole, tmp_path):
    settings, workdir, expected, _ = whole
    train(settings, tmp_path, rl_stops=1)
    last = train(settings, tmp_path)
    assert [rollout.step for rollout in last.rollouts] == [1, 2]
    assert_same_bits(last.results["rl"], expected.results["rl"])
    assert metrics_of(tmp_path) == metrics_of(workdir)
