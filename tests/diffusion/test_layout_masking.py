"""Canvas-first rows, and the forward process of supervised training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion import layout, masking, noise


def test_canvas_first():
    tokens = np.array([[9, 9, 1, 2], [1, 2, 9, 9], [3, 4, 5, 6], [9, 9, 9, 9]])
    valid = np.array([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)
    canvas = np.array([[7, 8]] * 4)
    row = layout.canvas_first(jnp.asarray(tokens), jnp.asarray(valid), jnp.asarray(canvas))
    np.testing.assert_array_equal(
        row.tokens, [[7, 8, 1, 2, 0, 0], [7, 8, 1, 2, 0, 0], [7, 8, 3, 4, 5, 6], [7, 8, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(
        row.positions, [[2, 3, 0, 1, 0, 0], [2, 3, 0, 1, 0, 0], [4, 5, 0, 1, 2, 3], [0, 1, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(row.valid.sum(1), [4, 4, 6, 2])
    assert np.all(np.diff(np.asarray(row.valid).astype(int), axis=1) <= 0)
    assert row.tokens.dtype == row.positions.dtype == jnp.int32
    other = row.with_canvas(jnp.zeros((4, 2), jnp.int32))
    np.testing.assert_array_equal(other[:, 2:], row.tokens[:, 2:])
    np.testing.assert_array_equal(other[:, :2], 0)


def maskable_of(golden, name):
    inputs = golden("sft")["inputs"]
    places = np.arange(inputs["input_ids"].shape[1])
    answer = places >= inputs["prompt_lengths"][:, None]
    return np.ones_like(answer) if name == "pretrain_guidelines" else answer


@pytest.mark.parametrize("name", ["pretrain_guidelines", "sft_guidelines", "sft_d1"])
def test_forward_process_equals_the_reference(golden, name):
    cases = golden("sft")
    inputs = cases["inputs"]
    found = masking.apply_noise(
        jnp.asarray(inputs["input_ids"]),
        jnp.asarray(inputs["t"]),
        jnp.asarray(inputs["u"]),
        jnp.asarray(maskable_of(golden, name)),
        int(inputs["mask_id"]),
        float(inputs["eps"]),
    )
    np.testing.assert_array_equal(found.tokens, cases[name]["noisy"])
    np.testing.assert_array_equal(found.masked, cases[name]["noisy"] == inputs["mask_id"])
    np.testing.assert_allclose(found.probability, inputs["p_mask"][:, 0], rtol=1e-6)


def test_sft_noise_is_keyed_by_row_and_masks_the_drawn_share():
    completion = jnp.arange(4000, dtype=jnp.int32).reshape(4, 1000)
    keys = noise.row_keys(jax.random.key(0), "sft", 0, np.arange(4))
    maskable = jnp.arange(1000) >= jnp.array([[0], [0], [500], [1000]])
    found = masking.sft_noise(keys, completion, maskable, -1)
    masked = np.asarray(found.masked)
    np.testing.assert_array_equal(found.tokens, np.where(masked, -1, completion))
    assert not masked[2, :500].any()
    assert not masked[3].any()
    np.testing.assert_allclose(masked[:2].mean(1), found.probability[:2], atol=0.06)
    again = masking.sft_noise(keys[2:3], completion[2:3], maskable[2:3], -1)
    np.testing.assert_array_equal(again.tokens, found.tokens[2:3])


def test_times_are_uniform_and_probabilities_never_zero():
    keys = noise.row_keys(jax.random.key(1), "sft", 0, np.arange(4000))
    found = masking.sft_noise(keys, jnp.zeros((4000, 1), jnp.int32), jnp.ones((4000, 1), bool), 1, eps=0.01)
    p = np.asarray(found.probability)
    assert p.min() >= 0.01
    assert p.max() <= 1
    np.testing.assert_allclose(np.quantile(p, [0.25, 0.5, 0.75]), [0.2575, 0.505, 0.7525], atol=0.03)
