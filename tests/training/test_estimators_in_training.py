"""Training with a likelihood estimator that draws new masks for every inner update."""

import dataclasses

import numpy as np
import pytest

from igpo_jax.training import rl_stage
from tests.training import tiny
from tests.training.recipe_cases import assert_same_bits, metrics_of, train

pytestmark = pytest.mark.usefixtures("compiled_once")

BASE = tiny.run_settings()


def settings_with(estimator):
    return dataclasses.replace(
        BASE,
        sft=dataclasses.replace(BASE.sft, steps=0),
        rl=dataclasses.replace(BASE.rl, steps=3, inner_updates=3, estimator=estimator),
        evaluation=dataclasses.replace(BASE.evaluation, every=0, questions=1),
        checkpoints=dataclasses.replace(BASE.checkpoints, every=1),
    )


@pytest.fixture(scope="module", params=["prompt_masking", "structured_noising"])
def whole(request, compiled_once, tmp_path_factory):
    """(settings, workdir, recorder, masks drawn) of a run without interruption, in which scoring compiles once."""
    settings, workdir, drawn = settings_with(request.param), tmp_path_factory.mktemp("whole"), []
    scorers = []
    with pytest.MonkeyPatch.context() as patch:
        make, make_score = rl_stage.rl_step.make_masks, rl_stage.rl_step.make_score

        def watched(of):
            draw = make(of)

            def recorded(key, step, update, batch):
                masks = draw(key, step, update, batch)
                varying = masks.completion if masks.prompt is None else masks.prompt
                drawn.append((step, update, np.asarray(varying)))
                return masks

            return recorded

        def kept(*arguments):
            scorers.append(make_score(*arguments))
            return scorers[-1]

        patch.setattr(rl_stage.rl_step, "make_masks", watched)
        patch.setattr(rl_stage.rl_step, "make_score", kept)
        recorder = train(settings, workdir)
    assert [score._cache_size() for score in scorers] == [1]
    return settings, workdir, recorder, drawn


def test_every_inner_update_has_masks_of_its_own(whole):
    settings, _, run, drawn = whole
    assert [(step, update) for step, update, _ in drawn] == [(step, update) for step in range(3) for update in range(3)]
    # The last update of each step of structured noising hides everything.
    distinct = 9 if settings.rl.estimator == "prompt_masking" else 7
    assert len({masks.tobytes() for _, _, masks in drawn}) == distinct
    assert len(run.after) == 9


def test_both_policies_are_scored_once_for_each_of_them(whole):
    """And where rows hold hints, twice more for the gap that the hints make: all hidden, and hints in view."""
    _, _, run, _ = whole
    gaps = sum(rollout.out.batch.hint_mask.any() for rollout in run.rollouts)
    assert gaps and len(run.scored) == 3 * 3 * 2 + 2 * gaps


def test_old_and_new_are_equal_before_the_first_update(whole):
    settings, workdir, _, _ = whole
    rows = [row for stage, _, row in metrics_of(workdir) if stage == settings.name]
    assert len(rows) == 3 and all(float(row["ratio_gap"]) < 1e-5 for row in rows)
    assert any(abs(float(row["ratio"]) - 1) > 1e-6 for row in rows), "and later ones move it"
    assert any(row["hint_logp_gap"] != "nan" for row in rows)


def test_a_run_that_goes_on_draws_the_same_masks(whole, tmp_path):
    settings, workdir, expected, _ = whole
    train(settings, tmp_path, rl_stops=1)
    last = train(settings, tmp_path)
    assert [rollout.step for rollout in last.rollouts] == [1, 2]
    assert_same_bits(last.results["rl"], expected.results["rl"])
    assert metrics_of(tmp_path) == metrics_of(workdir)
