"""Rollouts with a network: few programs whatever the groups do, and each group's completions are its own."""

import dataclasses

import jax
import numpy as np
import pytest

from igpo_jax.diffusion import denoise
from igpo_jax.models import llada
from igpo_jax.rl import rollout
from igpo_jax.rl.rollout import RolloutSettings
from tests.rl.rollout_cases import CONFIG, RuleJudge, make_context, mesh_of, network, question

GROUPS, SIZE = 4, 4
SETTINGS = RolloutSettings(groups=GROUPS, group_size=SIZE, rows_per_program=8, replace_fraction=1.0)
QUESTIONS = [dataclasses.replace(question(number), gold=f"g{number}") for number in range(GROUPS)]


@pytest.fixture(scope="module")
def play():
    """Collects a rollout in which exactly the groups in ``wrong`` fail at first and are always right with hints."""
    mesh = mesh_of(2)
    with jax.set_mesh(mesh):
        policy = jax.device_put(network(), llada.Policy(llada.shardings(CONFIG, mesh)))

    def run(wrong, step=0):
        first_time = dict.fromkeys(wrong, SIZE)

        def rule(gold, text):
            group = int(gold[1:])
            first_time[group] = first_time.get(group, 0) - 1
            return first_time[group] < 0

        with jax.set_mesh(mesh):
            return rollout.collect(policy, QUESTIONS, step, make_context(RuleJudge(rule), SETTINGS, mesh=mesh))

    return run


def test_nothing_compiles_again_whatever_the_number_of_all_wrong_groups(play):
    before = denoise._denoise._cache_size()
    for wrong in ([0, 1, 2, 3], [1, 2, 3]):
        play(wrong)
    programs = denoise._denoise._cache_size() - before
    assert programs <= 2, "programs of 8 rows, and of 4 for a lone group"
    for step, wrong in enumerate([[], [0], [3, 1], [0, 2, 3], [2]]):
        out = play(wrong, step + 1)
        assert out.stats["all_wrong_groups"] == len(wrong)
        assert out.replaced.sum() == SIZE * len(wrong)
    assert denoise._denoise._cache_size() == before + programs


def test_a_group_is_inpainted_alike_whoever_else_is_wrong(play):
    alone, together = play([2], 7), play([0, 1, 2, 3], 7)
    rows = slice(2 * SIZE, 3 * SIZE)
    assert alone.replaced[rows].all() and together.replaced[rows].all()
    for field in ("completion_tokens", "hint_mask", "completion_mask"):
        one, other = (getattr(out.batch, field)[rows] for out in (alone, together))
        # All completions of the group were swapped in; their order is the generator's.
        np.testing.assert_array_equal(one, other)
    first = [row for row in range(GROUPS * SIZE) if not alone.replaced[row]]
    plain = play([], 7)
    np.testing.assert_array_equal(alone.batch.completion_tokens[first], plain.batch.completion_tokens[first])


def test_a_rollout_is_a_function_of_its_step(play):
    once, twice, other = play([1], 3), play([1], 3), play([1], 4)
    for field in dataclasses.fields(once.batch):
        np.testing.assert_array_equal(getattr(once.batch, field.name), getattr(twice.batch, field.name))
    assert (once.batch.completion_tokens != other.batch.completion_tokens).any()


def test_hints_stay_and_no_mask_is_left(play):
    out = play([0, 1, 2, 3], 5)
    assert out.batch.hint_mask.any(axis=1).sum() > GROUPS
    for row in range(GROUPS * SIZE):
        hinted = np.flatnonzero(out.batch.hint_mask[row])
        trace = QUESTIONS[row // SIZE].trace_tokens
        np.testing.assert_array_equal(out.batch.completion_tokens[row][hinted], trace[hinted])
    assert (out.batch.completion_tokens != CONFIG.mask_token_id).all()
    assert ((out.rows.reveal_step == denoise.HINT) == out.batch.hint_mask).all()
