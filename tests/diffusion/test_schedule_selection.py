"""How many tokens a step reveals, and which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.diffusion import schedule, selection


def test_schedule_equals_the_reference(golden):
    case = golden("sampling")["num_transfer"]
    for masks, steps, expected in zip(case["mask_count"], case["steps"], case["out"], strict=True):
        np.testing.assert_array_equal(schedule.transfer_counts(masks, int(steps)), expected[:steps])
        assert np.all(expected[steps:] == -1)


@settings(deadline=None)
@given(masks=st.integers(0, 300), steps=st.integers(1, 64))
def test_schedule_reveals_everything_with_the_remainder_first(masks, steps):
    counts = schedule.transfer_counts(masks, steps)
    assert counts.sum() == masks
    assert np.all(np.diff(counts) <= 0)
    assert counts.max() - counts.min() <= 1
    assert schedule.forwards_needed(masks, steps) == np.count_nonzero(counts)
    assert schedule.reveals_at(masks, steps, steps) == 0


def test_transfer_counts_keeps_leading_axes():
    assert schedule.transfer_counts(np.array([[3, 8], [0, 1]]), 3).tolist() == [
        [[1, 1, 1], [3, 3, 2]],
        [[0, 0, 0], [1, 0, 0]],
    ]


def test_schedule_is_the_same_when_traced():
    masks, steps = jnp.arange(9), jnp.array([1, 2, 3] * 3)
    traced = jax.jit(schedule.reveals_at)(masks, steps, jnp.int32(1))
    np.testing.assert_array_equal(traced, schedule.reveals_at(np.arange(9), np.array([1, 2, 3] * 3), 1))


def test_block_steps_under_both_budgets():
    masks = np.array([0, 1, 2, 5, 8])
    np.testing.assert_array_equal(schedule.block_steps(masks, 4, 8, "schedule"), [4] * 5)
    np.testing.assert_array_equal(schedule.block_steps(masks, 4, 8, "open_masks"), [1, 1, 1, 3, 4])


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), width=st.sampled_from([1, 4, 17]))
def test_top_k_agrees_with_a_stable_sort(seed, width):
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, 5, (4, width)).astype(np.float32)
    confidence[rng.uniform(size=confidence.shape) < 0.2] = -np.inf
    k = rng.integers(0, width + 1, 4)
    expected = np.zeros(confidence.shape, bool)
    for row, count in enumerate(k):
        expected[row, np.argsort(-confidence[row], kind="stable")[:count]] = True
    np.testing.assert_array_equal(selection.top_k_mask(jnp.asarray(confidence), jnp.asarray(k)), expected)


def test_pick_and_its_gradient_equal_a_gather():
    values = jax.random.normal(jax.random.key(0), (3, 4, 11))
    index = jax.random.randint(jax.random.key(1), (3, 4), 0, 11)

    def gathered(values):
        return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]

    np.testing.assert_array_equal(selection.pick(values, index), gathered(values))
    ours, theirs = (
        jax.grad(lambda v, f=f: (f(v) ** 3).sum())(values) for f in (lambda v: selection.pick(v, index), gathered)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("forbidden", [False, True])
def test_choice_probability_is_the_softmax(forbidden):
    logits = np.array(jax.random.normal(jax.random.key(0), (2, 3, 7))) * 5
    if forbidden:
        logits[..., 2] = -np.inf
    weights = np.exp(logits.astype(np.float64))
    for token in range(7):
        found = selection.choice_probability(jnp.asarray(logits), jnp.full((2, 3), token))
        np.testing.assert_allclose(found, weights[..., token] / weights.sum(-1), rtol=1e-5, atol=1e-9)
