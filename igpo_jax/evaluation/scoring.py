"""From judged samples to scores: pass@1 or avg@k with their intervals, unbiased pass@k, and what went wrong."""

from collections.abc import Sequence
from typing import Any

from igpo_jax.training import statistics

CONFIDENCE = 0.95


def score(records: Sequence[dict[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Scores the samples of one suite.

    Args:
      records: every sample, the same number for each question.
      seed: of the bootstrap.

    Returns:
      Counts; ``score``, the mean over questions of the share of right samples, which is pass@1 for one sample a
      question and avg@k for k; ``interval`` (95%: Wilson for one sample, bootstrap over questions for several) with the
      method's name; ``pass_at`` for k = 1, 2, 4 ... and the number of samples, each with its interval; and shares of
      samples that were truncated, had no box or no answer, or were stopped at the judge's limit.
    """
    right: dict[str, list[bool]] = {}
    for record in records:
        right.setdefault(record["id"], []).append(bool(record["correct"]))
    counts, samples = [sum(row) for row in right.values()], len(records) // len(right)
    low, high, method = _interval(counts, samples, seed)
    lengths = [record["length"] for record in records]
    return {
        "questions": len(right),
        "samples": samples,
        "correct": sum(counts),
        "score": statistics.mean_pass_at_k(counts, samples, 1),
        "interval": [low, high],
        "interval_method": method,
        "pass_at": {str(k): _pass_at(counts, samples, k, seed) for k in pass_ks(samples)},
        "truncated": _share(records, lambda record: record["truncated"]),
        "no_box": _share(records, lambda record: not record["has_box"]),
        "no_answer": _share(records, lambda record: record["answer"] is None),
        "timed_out": _share(records, lambda record: record["timed_out"]),
        "mean_length": sum(lengths) / len(lengths),
    }


def pass_ks(samples: int) -> list[int]:
    """The k for which pass@k is reported: powers of two, 5, and the number of samples, where they do not exceed it."""
    powers = [2**power for power in range(samples.bit_length()) if 2**power <= samples]
    return sorted({*powers, samples, *([5] if samples >= 5 else [])})


def _interval(counts: Sequence[int], samples: int, seed: int) -> tuple[float, float, str]:
    if samples == 1:
        return *statistics.wilson(sum(counts), len(counts), CONFIDENCE), "Wilson"
    low, high = statistics.bootstrap_pass_at_k(counts, samples, 1, CONFIDENCE, seed)
    if len(set(counts)) == 1:
        return low, high, "Wilson over questions, which all score the same"
    return low, high, f"bootstrap over questions, seed {seed}"


def _pass_at(counts: Sequence[int], samples: int, k: int, seed: int) -> dict[str, Any]:
    low, high, _ = _interval(counts, samples, seed)
    if k > 1:
        low, high = statistics.bootstrap_pass_at_k(counts, samples, k, CONFIDENCE, seed)
    return {"value": statistics.mean_pass_at_k(counts, samples, k), "interval": [low, high]}


def _share(records: Sequence[dict[str, Any]], condition: Any) -> float:
    return sum(bool(condition(record)) for record in records) / len(records)
