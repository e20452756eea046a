"""The entropy filter against a loop in Python and the recorded masks."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igpo_jax.rl.objectives import Objective, entropy_filter, kept_tokens


def plain_filter(entropy, hint, length, tau):
    kept = length & ~hint
    for row in range(len(entropy)):
        slots = [c for c in range(entropy.shape[1]) if hint[row, c] and length[row, c]]
        slots.sort(key=lambda c: (-entropy[row, c], c))
        for c in slots[: max(1, int(len(slots) * tau))]:
            kept[row, c] = True
    return kept


@pytest.mark.parametrize(("hints", "kept"), [(37, 7), (4, 1), (0, 0), (1, 1), (5, 1), (10, 2), (15, 3)])
def test_worked_counts(hints, kept):
    entropy = np.random.default_rng(0).random((1, 40)).astype(np.float32)
    mask = np.arange(40)[None] < hints
    out = np.array(entropy_filter(entropy, mask, np.ones_like(mask), 0.2))
    assert (out & mask).sum() == kept
    assert (out | mask).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.0, 1.0),
    st.sampled_from([0.1, 0.2, 0.29, 1 / 3, 0.7, 1.0]),
    st.booleans(),
)
def test_equals_a_loop_in_python(seed, share, tau, ties):
    rng = np.random.default_rng(seed)
    entropy = rng.random((4, 24)).astype(np.float32)
    if ties:
        entropy = np.round(entropy, 1)
    hint = rng.random((4, 24)) < share
    length = np.arange(24) < rng.integers(1, 25, (4, 1))
    np.testing.assert_array_equal(entropy_filter(entropy, hint, length, tau), plain_filter(entropy, hint, length, tau))


def test_a_hint_behind_the_first_eos_is_neither_kept_nor_counted():
    entropy = np.array([[0.1, 0.2, 9.0, 9.0]], np.float32)
    hint = np.array([[True, False, True, True]])
    completion = np.array([[True, True, False, False]])
    np.testing.assert_array_equal(
        kept_tokens(entropy, hint, completion, Objective.paper()), [[True, True, False, False]]
    )
    np.testing.assert_array_equal(
        kept_tokens(entropy, hint, completion, Objective.official()), [[False, True, True, False]]
    )


def test_recorded_masks(golden):
    case = golden("rl")["loss_inputs"]
    for entropy, mask in zip(case["per_token_entropy"], case["token_mask"], strict=True):
        out = kept_tokens(entropy, case["hint_mask"], np.zeros_like(mask), Objective.official())
        np.testing.assert_array_equal(out, mask)
    case = golden("rollout")["rollout"]
    for entropy, mask in zip(case["entropy"], case["token_mask"], strict=True):
        out = kept_tokens(entropy, case["final_hint_mask"], case["completion_mask"] > 0, Objective.official())
        np.testing.assert_array_equal(out, mask)


def test_sharded_rows_give_the_same_mask():
    rng = np.random.default_rng(4)
    arrays = rng.random((8, 32)).astype(np.float32), rng.random((8, 32)) < 0.5, np.ones((8, 32), bool)
    compiled = jax.jit(entropy_filter, static_argnums=3)
    alone = compiled(*arrays, 0.2)
    kinds = (jax.sharding.AxisType.Explicit,) * 3
    mesh = jax.make_mesh((4, 2, 1), ("data", "fsdp", "tensor"), axis_types=kinds)
    rows = jax.sharding.NamedSharding(mesh, jax.P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        split = compiled(*jax.device_put(arrays, rows), 0.2)
    np.testing.assert_array_equal(alone, split)
