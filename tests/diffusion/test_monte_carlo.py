"""The Monte Carlo bound: the reference's numbers, an exact sum over all masks, and how samples are drawn."""

import itertools
import math

import jax
import numpy as np
import pytest

from igpo_jax.diffusion import monte_carlo
from igpo_jax.errors import UserError
from igpo_jax.models import llada

MASK = 38


def groups_of(case, mask_id):
    start = len(case["prompt"])
    for perturbed, p_mask in zip(case["perturbed"], case["p_mask"], strict=True):
        yield perturbed[:, start:] == mask_id, p_mask[:, start:]


@pytest.mark.parametrize("name", ["loglik", "loglik_cfg0.5"])
def test_equals_the_reference(tiny, golden, name):
    case = golden("loglik")[name]
    groups = list(groups_of(case, tiny[1].config.mask_token_id))
    cfg = float(case["cfg_scale"])
    found = monte_carlo.bound_samples(*tiny, case["prompt"], case["answer"], groups, cfg_scale=cfg)
    assert found.shape == (12,)
    assert found.mean() == pytest.approx(float(case["log_likelihood"]), abs=1e-4)


@pytest.mark.parametrize("name", ["loglik", "loglik_cfg0.5"])
def test_the_recorded_masks_are_those_of_a_group(golden, name):
    """Counts of the recorded rows are stratified as ours, and their probabilities are counts over length."""
    case = golden("loglik")[name]
    length = len(case["answer"])
    for masked, probability in groups_of(case, 500):
        counts = masked.sum(axis=1)
        np.testing.assert_array_equal(counts, monte_carlo.stratified_counts(counts[0], length, len(counts)))
        np.testing.assert_allclose(probability, np.repeat(counts[:, None] / length, length, 1), rtol=1e-6)


@pytest.mark.parametrize(("length", "group"), [(7, 4), (3, 16), (1, 4), (100, 16), (5, 5)])
def test_counts_go_evenly_round(length, group):
    for first in range(1, length + 1):
        counts = monte_carlo.stratified_counts(first, length, group)
        # As the reference does it, one number after the other.
        places = [first + i * length / group for i in range(group)]
        assert counts.tolist() == [(round(place) - 1) % length + 1 for place in places]
        assert counts[0] == first and counts.min() >= 1 and counts.max() <= length


def test_masks_are_uniform_over_places():
    rng = np.random.default_rng(0)
    drawn = np.concatenate([monte_carlo.draw_masked(rng, 6, 9) for _ in range(500)])
    assert drawn.shape == (4500, 6) and drawn.any(axis=1).all()
    assert np.abs(drawn.mean(axis=0) - drawn.mean()).max() < 0.03
    assert drawn.mean() == pytest.approx(3.5 / 6, abs=0.02)


def test_the_mean_over_many_samples_is_the_exact_bound(small):
    """Every mask of a short answer, weighed by its probability: what the samples estimate."""
    prompt, answer = np.array([3, 9, 1], np.int32), np.array([5, 7, 30, 2], np.int32)
    length, groups, weights = len(answer), [], []
    for k in range(1, length + 1):
        masks = [np.isin(np.arange(length), places) for places in itertools.combinations(range(length), k)]
        groups.append((np.stack(masks), np.full((len(masks), length), k / length)))
        weights += [1 / length / math.comb(length, k)] * len(masks)
    exact = monte_carlo.bound_samples(*small, prompt, answer, groups) @ np.array(weights)
    settings = monte_carlo.MonteCarlo(samples=640, group=20)
    drawn = monte_carlo.draw_bound(*small, prompt, answer, settings, np.random.default_rng(1))
    assert drawn.shape == (640,)
    assert drawn.mean() == pytest.approx(exact, abs=4 * drawn.std() / math.sqrt(640))


def test_one_token_needs_one_sample_and_is_exact(small):
    policy, model = small
    prompt = np.array([3, 9, 1], np.int32)
    found = monte_carlo.draw_bound(*small, prompt, [7], monte_carlo.MonteCarlo(), np.random.default_rng(0))
    row = np.concatenate([prompt, [MASK]]).astype(np.int32)[None]
    logits = llada.head_logits(policy, model, llada.forward(policy, model, row))[0, -1]
    assert found.shape == (1,)
    assert found[0] == pytest.approx(float(jax.nn.log_softmax(logits)[7]), abs=1e-5)


def test_length_does_not_change_the_value_nor_compile_anew(small):
    rng = np.random.default_rng(2)
    masked, probability = np.array([[True, False, True]]), np.full((1, 3), 2 / 3)
    prompt, answer = rng.integers(0, 38, 12), [4, 5, 6]
    once = monte_carlo.bound_samples(*small, prompt, answer, [(masked, probability)])
    before = monte_carlo.log_likelihood_samples._cache_size()
    longer = np.pad(masked, ((0, 0), (0, 2))), np.pad(probability, ((0, 0), (0, 2)), constant_values=1)
    monte_carlo.bound_samples(*small, prompt[:9], [*answer, 1, 2], [longer])
    assert monte_carlo.log_likelihood_samples._cache_size() == before
    policy, model = small
    row = np.concatenate([prompt, np.where(masked[0], MASK, answer)]).astype(np.int32)[None]
    logp = jax.nn.log_softmax(llada.head_logits(policy, model, llada.forward(policy, model, row))[0, 12:])
    assert once[0] == pytest.approx(1.5 * float(logp[0, 4] + logp[2, 6]), abs=1e-4)


def test_refusals(small):
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="no tokens"):
        monte_carlo.draw_bound(*small, [1], [], monte_carlo.MonteCarlo(), rng)
    with pytest.raises(UserError, match="60 and an answer of 5 tokens make 65"):
        monte_carlo.draw_bound(*small, [1] * 60, [1] * 5, monte_carlo.MonteCarlo(), rng)
    with pytest.raises(UserError, match="samples is 128 and group 48"):
        monte_carlo.MonteCarlo(group=48)
