"""Gumbel values with a full tail, keyed so that they depend on nothing but row and step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion import noise
from igpo_jax.errors import UserError


@pytest.mark.parametrize("name", ["gumbel_T0.2", "gumbel_T0.7", "gumbel_T1.0", "gumbel_T1.2"])
def test_adding_scaled_gumbels_chooses_what_the_float64_reference_chooses(golden, name):
    """exp(logits) / (-ln u)^T has the argmax of logits + T g with g = -ln(-ln u), also in float32."""
    case = golden("sampling")[name]
    temperature = float(case["temperature"])
    gumbels = -np.log(-np.log(case["uniform"]))
    exact = case["logits"].astype(np.float64) + temperature * gumbels
    np.testing.assert_allclose(np.exp(exact), case["out"], rtol=1e-12)
    ours = jnp.asarray(case["logits"]) + jnp.float32(temperature) * jnp.asarray(gumbels.astype(np.float32))
    np.testing.assert_array_equal(jnp.argmax(ours, axis=-1), case["argmax"])


def test_gumbel_from_bits_equals_float64_where_it_matters():
    bits = np.array([0, 1, 2, 1000, 2**16, 2**24, 2**31, 3 * 2**30, 2**32 - 2**10, 2**32 - 1], np.uint32)
    found = np.asarray(noise.gumbel_from_bits(jnp.asarray(bits)))
    exact = -np.log(-np.log1p(-(bits.astype(np.float64) + 0.5) / 2**32))
    assert np.all(np.isfinite(found))
    assert found[0] > 22.8
    # Near u = 1, the low end, steps are coarse by design.
    np.testing.assert_allclose(found[:-2], exact[:-2], rtol=1e-6)
    assert np.all(found[-2:] < -2.7)


def test_gumbel_distribution():
    draws = np.asarray(noise.gumbel_from_bits(jax.random.bits(jax.random.key(0), (1_000_000,), jnp.uint32)))
    assert abs(draws.mean() - np.euler_gamma) < 5e-3
    assert abs(draws.var() - np.pi**2 / 6) < 1e-2
    for level in (-1.0, 0.0, 2.0, 8.0):
        expected = 1 - np.exp(-np.exp(-level))
        spread = np.sqrt(expected / len(draws))
        assert abs((draws > level).mean() - expected) < 4 * spread


def test_choices_have_softmax_frequencies():
    logits = jnp.array([2.0, 1.0, 0.0, -3.0])
    temperature = 0.7
    keys = noise.row_keys(jax.random.key(0), "test", 0, np.arange(20_000))
    gumbels = noise.KeyNoise(keys).gumbel(jnp.int32(0), (20_000, 1, 4))[:, 0]
    shares = np.bincount(np.asarray(jnp.argmax(logits + temperature * gumbels, axis=-1)), minlength=4) / 20_000
    np.testing.assert_allclose(shares, jax.nn.softmax(logits / temperature), atol=0.015)


@functools.partial(jax.jit, static_argnames=("draw", "shape"))
def drawn(keys, step, draw, shape):
    return getattr(noise.KeyNoise(keys), draw)(step, (len(keys), *shape))


@pytest.mark.parametrize(("draw", "shape"), [("gumbel", (4, 6)), ("uniform", (4,))])
def test_draws_depend_on_row_and_step_alone(draw, shape):
    rows = np.array([5, 2, 11])
    all_rows, some = (noise.row_keys(jax.random.key(0), "rollout", 3, ids) for ids in (np.arange(12), rows))
    part = np.asarray(drawn(some, 7, draw, shape))
    np.testing.assert_array_equal(np.asarray(drawn(all_rows, 7, draw, shape))[rows], part)
    assert not np.any(part == np.asarray(drawn(some, 8, draw, shape)))


def test_row_keys_differ_by_purpose_step_row_and_root():
    variants = [("rollout", 0, 0), ("inpaint", 0, 0), ("rollout", 1, 0), ("rollout", 0, 1), (3, 0, 0)]
    keys = [noise.row_keys(jax.random.key(0), p, step, np.array([row])) for p, step, row in variants]
    keys.append(noise.row_keys(jax.random.key(1), "rollout", 0, np.array([0])))
    found = {tuple(np.asarray(jax.random.key_data(key)).ravel().tolist()) for key in keys}
    assert len(found) == len(keys)


def test_recorded_noise_names_what_is_missing():
    with pytest.raises(UserError, match=r"gumbels holds nothing, .* \(2, 3, 4\)"):
        noise.RecordedNoise().gumbel(jnp.int32(0), (2, 3, 4))
    with pytest.raises(UserError, match=r"uniforms holds draws of shape \(2, 5\)"):
        noise.RecordedNoise(uniforms=jnp.zeros((1, 2, 5))).uniform(jnp.int32(0), (2, 3))


def test_key_noise_wants_a_key_for_every_row():
    keys = noise.row_keys(jax.random.key(0), "x", 0, np.arange(1))
    with pytest.raises(UserError, match=r"keys of shape \(1,\), expected one for each of 2 rows"):
        noise.KeyNoise(keys).uniform(jnp.int32(0), (2, 3))
