"""How old a rollout's parameters may be: no older than the update before it, or by one step where that is allowed."""

import dataclasses

import numpy as np
import pytest

from igpo_jax.errors import UserError
from tests.training import tiny
from tests.training.recipe_cases import assert_same_bits, metrics_of, train

pytestmark = pytest.mark.usefixtures("compiled_once")

BASE = tiny.run_settings()
SETTINGS = dataclasses.replace(
    BASE,
    sft=dataclasses.replace(BASE.sft, steps=0),
    rl=dataclasses.replace(BASE.rl, steps=4, stale_steps=1),
    evaluation=dataclasses.replace(BASE.evaluation, every=0, questions=1),
)


@pytest.fixture(scope="module")
def whole(compiled_once, tmp_path_factory):
    """(workdir, recorder) of a run without interruption."""
    workdir = tmp_path_factory.mktemp("stale")
    return workdir, train(SETTINGS, workdir)


def test_a_rollout_is_sampled_before_the_updates_of_the_step_before_it(whole):
    """Two updates a step, a checkpoint after every second step: the step after one begins with its parameters."""
    workdir, run = whole
    assert [rollout.step for rollout in run.rollouts] == [0, 1, 2, 3]
    first, second, third, fourth = (rollout.policy for rollout in run.rollouts)
    np.testing.assert_array_equal(second, first)
    np.testing.assert_array_equal(third, run.after[3])
    np.testing.assert_array_equal(fourth, third)
    assert (run.after[0] != first).any() and (run.after[4] != third).any(), "every update moves the policy"
    rows = [values for stage, _, values in metrics_of(workdir) if stage == SETTINGS.name]
    assert [row["rollout_age"] for row in rows] == ["0.0", "2.0", "0.0", "2.0"]
    assert ["ratio_gap" in row for row in rows] == [True, False, True, False]


def test_the_behaviour_policy_is_the_one_that_sampled(whole):
    _, run = whole
    scored = iter(run.scored)
    start = run.rollouts[0].policy
    for rollout in run.rollouts:
        for expected in (rollout.policy, start, *([rollout.policy] if rollout.out.batch.hint_mask.any() else [])):
            np.testing.assert_array_equal(next(scored)[1], expected)


def test_a_run_that_goes_on_from_a_checkpoint_ends_the_same(whole, tmp_path):
    workdir, expected = whole
    train(SETTINGS, tmp_path, rl_stops=3)
    last = train(SETTINGS, tmp_path)
    assert [rollout.step for rollout in last.rollouts] == [2, 3]
    assert_same_bits(last.results["rl"], expected.results["rl"])
    assert metrics_of(tmp_path) == metrics_of(workdir)


def test_only_one_step_may_be_asked_for():
    with pytest.raises(UserError, match=r"rl\.stale_steps is 2, expected 0 or 1"):
        dataclasses.replace(BASE.rl, stale_steps=2)
