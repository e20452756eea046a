"""Intervals and estimators for accuracies over a finite set of questions."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from igpo_jax.errors import UserError


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns Wilson's score interval of a proportion (Wilson 1927, JASA 22:209-212).

    It never leaves [0, 1] and is not empty at 0 or ``n`` successes, unlike the normal interval.

    Args:
      successes: questions answered correctly, 0 to ``n``.
      n: questions asked; with none the interval is (0, 1).
      confidence: share of such intervals that cover the true proportion, in (0, 1).

    Raises:
      UserError: for counts or a confidence out of range.
    """
    if not 0 <= successes <= n:
        raise UserError(f"successes is {successes} of n {n}, expected 0 to n")
    z = _quantile(confidence)
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # The ends are exact at none and at all, where rounding would leave a hair beyond.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def pass_at_k(n: int, c: int, k: int) -> float:
    """Returns the unbiased estimate of the chance that one of ``k`` samples is correct, from ``c`` correct of ``n``.

    It is ``1 - C(n-c, k) / C(n, k)`` (Chen et al. 2021, arXiv 2107.03374, equation 1): the share of the k-subsets of
    the n samples that hold a correct one.

    Raises:
      UserError: unless 0 <= c <= n and 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise UserError(f"pass@k has c = {c} correct of n = {n} samples, expected 0 to n")
    if not 1 <= k <= n:
        raise UserError(f"pass@k has k = {k} with n = {n} samples, expected 1 to n; draw more samples or lower k")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def mean_pass_at_k(correct: Sequence[int], n: int, k: int) -> float:
    """Returns ``pass_at_k`` averaged over questions.

    Args:
      correct: for every question, how many of its ``n`` samples are correct.
      n: samples of each question.
      k: samples that may be tried.

    Raises:
      UserError: where there is no question, or a count is out of range.
    """
    if len(correct) == 0:
        raise UserError("pass@k was asked for over no question at all; give at least one")
    return math.fsum(pass_at_k(n, int(c), k) for c in correct) / len(correct)


def bootstrap_mean(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of a mean, for values that are not a plain 0 or 1 each.

    Args:
      values: (n,) one value a question, such as its pass@k.
      confidence: share of such intervals meant to cover the mean, in (0, 1).
      resamples: how many samples of size n, with replacement, to draw.
      seed: of the draws; the same seed gives the same interval.

    Raises:
      UserError: where there is no value, or the confidence is out of range.
    """
    data = np.asarray(values, np.float64)
    if data.size == 0:
        raise UserError("the bootstrap was asked for over no value at all; give at least one")
    _quantile(confidence)
    rng = np.random.default_rng(seed)
    # One resample at a time: an (resamples, n) array of indices would not be small for large sets.
    means = [data[rng.integers(0, data.size, data.size)].mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def bootstrap_pass_at_k(
    correct: Sequence[int], n: int, k: int, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Returns the bootstrap interval, over questions, of the mean unbiased pass@k.

    Where all questions score the same the bootstrap has no width; Wilson's interval over the questions stands in.

    Args:
      correct: for every question, how many of its ``n`` samples are correct.
      n: samples of each question.
      k: samples that may be tried.
      confidence: share of such intervals meant to cover the mean, in (0, 1).
      seed: of the bootstrap's draws.

    Raises:
      UserError: as ``mean_pass_at_k`` does.
    """
    mean_pass_at_k(correct, n, k)
    values = [pass_at_k(n, int(c), k) for c in correct]
    if len(set(values)) == 1:
        return wilson(round(math.fsum(values)), len(values), confidence)
    return bootstrap_mean(values, confidence, seed=seed)


def sign_test(ahead: int, behind: int) -> float:
    """Returns the two-sided exact p-value of ``ahead`` wins against ``behind`` losses, ties left out.

    Under the hypothesis of no difference each of the ``ahead + behind`` discordant questions is a fair coin. With one
    sample a question this is the exact McNemar test (McNemar 1947, Psychometrika 12:153-157).

    Raises:
      UserError: for a negative count.
    """
    if ahead < 0 or behind < 0:
        raise UserError(f"the sign test has {ahead} wins and {behind} losses, expected 0 or more of each")
    n, fewer = ahead + behind, min(ahead, behind)
    # Exact in whole numbers: a sum of floats would lose the smallest p-values.
    tail = sum(math.comb(n, i) for i in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise UserError(f"confidence is {confidence}, expected a number between 0 and 1 such as 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)
