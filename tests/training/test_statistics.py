"""Intervals and estimators against brute force."""

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from igpo_jax.errors import UserError
from igpo_jax.training import statistics

samples = st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@given(samples)
def test_pass_at_k_counts_subsets(case):
    n, c, k = case
    drawn = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert statistics.pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in drawn) / len(drawn), abs=1e-12)


def test_pass_at_k_of_large_counts():
    # The product form of Chen et al., in floats.
    n, c, k = 500, 3, 100
    product = math.prod(1 - k / i for i in range(n - c + 1, n + 1))
    assert statistics.pass_at_k(n, c, k) == pytest.approx(1 - product, abs=1e-12)
    assert statistics.pass_at_k(n, 0, k) == 0.0
    assert statistics.pass_at_k(n, 401, k) == 1.0


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.integers(1, 6))
def test_mean_pass_at_k(correct, k):
    expected = sum(statistics.pass_at_k(6, c, k) for c in correct) / len(correct)
    assert statistics.mean_pass_at_k(correct, 6, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(UserError, match="pass@k"):
        statistics.pass_at_k(n, c, k)


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_ends_solve_the_score_equation(counts, confidence):
    successes, n = counts
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = statistics.wilson(successes, n, confidence)
    assert 0 <= low <= successes / n <= high <= 1
    for end in (low, high):
        # The score test's statistic is exactly z at both ends: (p - share)^2 = z^2 p (1 - p) / n.
        assert (end - successes / n) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-9)


def test_wilson_equals_published_values():
    # Newcombe 1998, Statistics in Medicine 17:857-872, table I, method 3.
    assert statistics.wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert statistics.wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert statistics.wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert statistics.wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


def test_wilson_at_the_edges():
    assert statistics.wilson(0, 0) == (0.0, 1.0)
    assert statistics.wilson(0, 5)[0] == 0.0
    assert statistics.wilson(5, 5)[1] == 1.0
    for successes, n in ((-1, 5), (6, 5)):
        with pytest.raises(UserError, match="successes"):
            statistics.wilson(successes, n)
    with pytest.raises(UserError, match="confidence is 95"):
        statistics.wilson(1, 2, confidence=95)


def test_bootstrap_is_near_the_normal_interval_and_repeats():
    values = np.random.default_rng(0).normal(3.0, 2.0, 500)
    low, high = statistics.bootstrap_mean(values, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(500)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert statistics.bootstrap_mean(values, resamples=4000) == (low, high)
    assert statistics.bootstrap_mean([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_statistics_need_something_to_count():
    with pytest.raises(UserError, match="no value"):
        statistics.bootstrap_mean([])
    with pytest.raises(UserError, match="no question"):
        statistics.mean_pass_at_k([], 4, 1)


@pytest.mark.parametrize(("ahead", "behind", "p"), [(0, 0, 1.0), (5, 0, 2 / 32), (3, 3, 1.0), (10, 2, 158 / 4096)])
def test_sign_test_by_hand(ahead, behind, p):
    assert statistics.sign_test(ahead, behind) == pytest.approx(p, abs=1e-15)
    assert statistics.sign_test(behind, ahead) == statistics.sign_test(ahead, behind)


@given(st.integers(0, 7), st.integers(0, 7))
def test_sign_test_counts_coin_tosses(ahead, behind):
    """Every outcome of as many fair coins as there are discordant questions, counted one by one."""
    n = ahead + behind
    far = [abs(2 * sum(coins) - n) >= abs(ahead - behind) for coins in itertools.product((0, 1), repeat=n)]
    assert statistics.sign_test(ahead, behind) == pytest.approx(sum(far) / len(far), abs=1e-12)


def test_sign_test_far_out_and_out_of_range():
    assert 0 < statistics.sign_test(900, 100) < 1e-150
    with pytest.raises(UserError, match="-1 losses"):
        statistics.sign_test(1, -1)


def test_bootstrap_of_pass_at_k():
    correct = [0, 1, 4, 2, 0, 3, 1, 1]
    low, high = statistics.bootstrap_pass_at_k(correct, 4, 1)
    assert 0 < low < sum(correct) / 32 < high < 1
    assert (low, high) == statistics.bootstrap_pass_at_k(correct, 4, 1)
    assert statistics.bootstrap_pass_at_k([0] * 30, 4, 2) == statistics.wilson(0, 30)
