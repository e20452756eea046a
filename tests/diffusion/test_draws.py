"""Draws from a large vocabulary: the same token as a plain argmax, the same distribution as the Gumbel form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from igpo_jax.diffusion import denoise, draws, noise
from igpo_jax.diffusion.sampler import Sampler
from igpo_jax.errors import UserError

COUNT, VOCAB = 30_000, 1_300  # of draws; three chunks, the last one filled up
BELOW_ONE = np.nextafter(np.float32(1), np.float32(0))


@pytest.fixture(scope="module")
def logits():
    """Three positions: spread, with forbidden tokens, and with one token that almost always wins."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, VOCAB)).astype(np.float32) * 3
    rows[1, rng.random(VOCAB) < 0.3] = -np.inf
    rows[1, :600] = -np.inf
    rows[2, 777] = 12.0
    return rows


def test_most_likely_is_argmax_and_the_first_of_equal_ones(logits):
    tied = np.round(np.random.default_rng(1).normal(size=(4, 3, VOCAB)) * 2).astype(np.float32)
    for values in (logits[None], tied, tied[..., :40], np.full((1, 1, VOCAB), -np.inf, np.float32)):
        np.testing.assert_array_equal(draws.most_likely(jnp.asarray(values)), np.argmax(values, axis=-1))


def exact(logits, temperature):
    """softmax(logits / temperature) in float64."""
    wide = logits.astype(np.float64) / temperature
    weights = np.exp(wide - wide.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def drawn(logits, temperature, draw):
    """``COUNT`` tokens for each position, keyed like rows of a batch."""
    keys = noise.row_keys(jax.random.key(3), "test", 0, np.arange(COUNT // 100))
    shape = (COUNT // 100, 100)

    @jax.jit
    def some(row):
        many = jnp.broadcast_to(row, (*shape, VOCAB))
        if draw == "gumbel":
            return draws.most_likely(many + temperature * noise.KeyNoise(keys).gumbel(0, many.shape))
        uniforms = noise.KeyNoise(keys).token_uniforms(0, shape)
        return draws.inverse_cdf(many, jnp.float32(temperature), uniforms)

    return [np.asarray(some(row)).ravel() for row in jnp.asarray(logits)]


def binned(tokens, shares):
    """(observed, expected) counts; tokens expected less than ten times share a bin."""
    observed = np.bincount(tokens, minlength=VOCAB).astype(float)
    expected = shares * COUNT
    rare = expected < 10
    return (np.append(x[~rare], x[rare].sum()) for x in (observed, expected))


@pytest.mark.parametrize("temperature", [0.5, 1.2])
def test_inverse_cdf_has_the_distribution_of_the_softmax(logits, temperature):
    shares = exact(logits, temperature)
    for tokens, row in zip(drawn(logits, temperature, "inverse_cdf"), shares, strict=True):
        observed, expected = binned(tokens, row)
        assert row[tokens].min() > 0
        assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.01


def test_the_test_of_the_distribution_finds_a_wrong_temperature(logits):
    (tokens, *_) = drawn(logits[:1], 1.2, "inverse_cdf")
    observed, expected = binned(tokens, exact(logits, 1.4)[0])
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue < 1e-6


def test_both_ways_of_drawing_have_one_distribution(logits):
    for one, other in zip(*(drawn(logits, 1.2, draw) for draw in draws.DRAWS), strict=True):
        counts = np.stack([np.bincount(tokens, minlength=VOCAB) for tokens in (one, other)])
        kept = counts.sum(0) >= 20
        table = np.concatenate([counts[:, kept], counts[:, ~kept].sum(1, keepdims=True)], axis=1)
        assert stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue > 0.01


@pytest.mark.parametrize("first", [0.0, 0.3, BELOW_ONE])
@pytest.mark.parametrize("second", [0.0, 0.3, BELOW_ONE])
def test_every_pair_of_uniforms_leads_to_a_possible_token(logits, first, second):
    pair = np.broadcast_to(np.array([first, second], np.float32), (1, 3, 2))
    tokens = np.asarray(draws.inverse_cdf(jnp.asarray(logits[None]), jnp.float32(0.7), jnp.asarray(pair)))[0]
    assert np.all(np.isfinite(logits[np.arange(3), tokens]))
    if first == second == 0:
        np.testing.assert_array_equal(tokens, np.argmax(np.isfinite(logits), axis=-1))


def test_equals_a_cumulative_sum_in_float64():
    rng = np.random.default_rng(2)
    logits = (rng.normal(size=(2, 50, 30)) * 2).astype(np.float32)  # one chunk: the second number decides
    pairs = rng.random((2, 50, 2)).astype(np.float32)
    edges = np.cumsum(exact(logits, 0.9), axis=-1)[..., :-1]
    clear = np.abs(edges - pairs[..., 1:]).min(-1) > 1e-5
    expected = (edges <= pairs[..., 1:]).sum(-1)
    found = np.asarray(draws.inverse_cdf(jnp.asarray(logits), jnp.float32(0.9), jnp.asarray(pairs)))
    assert clear.sum() > 90
    np.testing.assert_array_equal(found[clear], expected[clear])


def test_presets_draw_as_the_reference_does_and_the_default_does_not():
    assert (Sampler().draw, Sampler.llada().draw, Sampler.official().draw) == ("inverse_cdf", "gumbel", "gumbel")
    with pytest.raises(UserError, match=r"sampler.draw is 'gumbell', .*did you mean 'gumbel'"):
        Sampler(draw="gumbell")


def test_no_gumbel_values_are_drawn_by_inversion(small, prompts, equations):
    tokens, valid = prompts(np.random.default_rng(0), 4, 5)
    keys = noise.KeyNoise(noise.row_keys(jax.random.key(0), "x", 0, np.arange(4)))

    def sizes(draw):
        sampler = Sampler(length=8, steps=4, block_length=8, temperature=1.0, draw=draw)
        run = jax.make_jaxpr(lambda policy: denoise.denoise(policy, small[1], sampler, tokens, valid, keys))
        found = [eq for eq, _ in equations(run(small[0]).jaxpr) if "bits" in eq.primitive.name]
        return {eq.outvars[0].aval.shape for eq in found}

    assert sizes("gumbel") == {(4, 8, 40)}
    assert sizes("inverse_cdf") == {(4, 8, 2)}
