"""What each likelihood estimator hides: worked numbers, rates, and draws that no batch and no mesh changes."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.diffusion import noise
from igpo_jax.diffusion.estimators import ESTIMATORS, MeanField, PromptMasking, StructuredNoising
from igpo_jax.parallel import sharding
from igpo_jax.training import rl
from tests.training import tiny

ROWS, PROMPT, LENGTH = 64, 96, 128


def keys(step=0):
    return noise.row_keys(jax.random.key(3), "likelihood", step, np.arange(ROWS))


def drawn(estimator, draw=0, draws=4, step=0, rows=slice(None)):
    return jax.tree.map(np.asarray, estimator.masks(keys(step)[rows], draw, draws, PROMPT, LENGTH))


def rate_within(share, rate, count):
    """Five standard deviations of a mean of ``count`` independent draws."""
    return abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / count)


def test_the_table_names_all():
    expected = {"prompt_masking": PromptMasking(0.15), "structured_noising": StructuredNoising(128)}
    assert {"mean_field": MeanField()} | expected == ESTIMATORS


def test_mean_field_hides_the_whole_completion_and_nothing_else():
    masks = drawn(MeanField())
    assert masks.completion.shape == (ROWS, LENGTH) and masks.completion.all() and masks.prompt is None
    assert not MeanField().redraws


def test_prompt_masking_hides_its_share_of_the_prompt():
    masks = drawn(PromptMasking())
    assert masks.completion.shape == (ROWS, LENGTH) and masks.completion.all()
    assert masks.prompt.shape == (ROWS, PROMPT)
    assert rate_within(masks.prompt.mean(), 0.15, ROWS * PROMPT)
    # Columns and rows are independent: a shared mask would have columns of all or nothing.
    assert (masks.prompt.mean(axis=0) < 0.5).all() and (masks.prompt.mean(axis=1) < 0.5).all()


@pytest.mark.parametrize(
    ("start", "draws", "expected"),
    # The first is the worked example of UniGRPO's grid: ratios .78125, .851563, .921875 and 1.
    [(100, 4, [100, 109, 118, 128]), (1, 2, [1, 128]), (127, 4, [127, 127, 127, 128]), (40, 1, [40])],
)
def test_timesteps_by_hand(start, draws, expected):
    assert StructuredNoising().timestep(start, np.arange(draws), draws).tolist() == expected


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(2, 20), st.data())
def test_timesteps_rise_evenly_to_full_masking(timesteps, draws, data):
    start = data.draw(st.integers(1, timesteps - 1))
    found = StructuredNoising(timesteps).timestep(start, np.arange(draws), draws)
    assert found[0] == start and found[-1] == timesteps
    gaps = np.diff(found)
    assert (gaps >= 0).all() and gaps.max() - gaps.min() <= 1


def test_structured_noising_follows_the_grid_of_each_row():
    """From the same start every row masks more with each update, and everything with the last."""
    estimator, rates = StructuredNoising(), []
    for draw in range(4):
        masks = drawn(estimator, draw)
        assert masks.prompt is None and masks.completion.shape == (ROWS, LENGTH)
        rates.append(masks.completion.mean(axis=1))
    assert rates[3].tolist() == [1.0] * ROWS
    start = np.array([jax.random.randint(jax.random.fold_in(key, 4), (), 1, 128) for key in keys()])
    assert start.min() < 20 and start.max() > 108, "the starts are spread over all of 1 to 127"
    for draw in range(4):
        expected = (start + draw * (128 - start) // 3) / 128
        assert np.abs(rates[draw] - expected).max() < 5 * np.sqrt(0.25 / LENGTH)


@pytest.mark.parametrize("name", ["prompt_masking", "structured_noising"])
def test_draws_are_keyed_by_row_step_and_update(name):
    estimator = ESTIMATORS[name]
    assert estimator.redraws

    def bits(**changes):
        masks = drawn(estimator, **changes)
        return masks.completion if masks.prompt is None else masks.prompt

    np.testing.assert_array_equal(bits(rows=slice(8, 24)), bits()[8:24])
    assert (bits() != bits(draw=1)).any(axis=1).all() and (bits() != bits(step=1)).any(axis=1).all()
    assert len({row.tobytes() for row in bits()}) == ROWS


@pytest.mark.parametrize("name", ESTIMATORS)
def test_masks_are_the_same_on_any_mesh(name):
    batch = tiny.rollout_batch()
    made = {}
    for shape, sizes in {"1x1x1": tiny.ONE, **tiny.MESHES}.items():
        mesh = tiny.mesh_of(sizes)
        with jax.set_mesh(mesh):
            device = sharding.shard_batch(batch, mesh)
            draw = rl.make_masks(rl.RlSettings(estimator=name, inner_updates=3))
            found = [draw(jax.random.key(1), 5, update, device) for update in range(3)]
            assert draw._cache_size() == 1
            assert all(leaf.sharding.is_equivalent_to(device.hint_mask.sharding, 2) for leaf in jax.tree.leaves(found))
            made[shape] = sharding.to_host(found)
    for other in made.values():
        jax.tree.map(np.testing.assert_array_equal, other, made["1x1x1"])
