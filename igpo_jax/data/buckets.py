"""Batches of rows of like length: a few widths of arrays, each compiled once, and a batch as wide as its rows need.

The stream of rows is that of `igpo_jax.data.pipeline.batch_indices`. A window of it, some batches long, is sorted by
length, cut into batches, and the batches are put in random order. So a window holds the very rows that it would hold
otherwise, every row comes once an epoch, and a batch is a function of the seed and the step: nothing else has to be
stored to go on from a step.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from igpo_jax.data.pipeline import Encoded, batch_indices
from igpo_jax.errors import UserError, check_choice

#: How completions are filled up with EOS, which is learnt: to the full canvas, or to the widest row of the batch.
PADDINGS = ("canvas", "batch")
#: Batches that are sorted together, fewer where an epoch has fewer.
WINDOW = 64
#: Widths are multiples of this where the full widths allow it.
_STEP = 16
#: Places between which bucket limits are chosen.
_CANDIDATES = 64
_PURPOSE = 11


@dataclasses.dataclass(frozen=True)
class Width:
    """Tokens of the arrays of one bucket."""

    prompt: int
    completion: int

    @property
    def total(self) -> int:
        """Tokens of a row."""
        return self.prompt + self.completion


class Batches:
    """The batches of supervised fine-tuning, by step.

    Args:
        encoded: the rows.
        batch_size: rows of a batch.
        seed: with the step it decides which rows a batch has.
        buckets: compiled shapes at most; 1 keeps the plain order of `batch_indices`.
        padding: ``canvas`` fills every completion with EOS to the full width, so that only prompts are narrower in a
            bucket; ``batch`` fills it to the width of its batch, which is LLaDA's rule.

    Attributes:
        widths: of the buckets, from narrow to wide; every bucket holds the rows of those before it.
    """

    def __init__(self, encoded: Encoded, batch_size: int, seed: int, buckets: int = 1, padding: str = "canvas"):
        check_choice("sft.padding", padding, PADDINGS)
        if buckets < 1:
            raise UserError(f"sft.length_buckets is {buckets}, expected at least 1 compiled shape")
        self._encoded, self._batch_size, self._seed, self._buckets = encoded, batch_size, seed, buckets
        prompts, completions = encoded.prompt_mask.sum(axis=1), encoded.completion_mask.sum(axis=1)
        if padding == "canvas":
            completions = np.full_like(completions, encoded.completion_tokens.shape[1])
        self._totals = prompts + completions
        full = Width(encoded.prompt_tokens.shape[1], encoded.completion_tokens.shape[1])
        if buckets == 1 and padding == "canvas":
            self.widths: tuple[Width, ...] = (full,)
        else:
            self.widths = _choose(prompts, completions, buckets, full)
        self._bucket = _bucket_of(prompts, completions, self.widths)

    def rows(self, step: int) -> np.ndarray:
        """The rows (batch_size,) int64 of batch ``step``."""
        if self._buckets == 1:
            return batch_indices(len(self._encoded), self._batch_size, self._seed, step)
        window = max(1, min(WINDOW, len(self._encoded) // self._batch_size))
        return self._window(step // window, window)[step % window]

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one object for a run
    def _window(self, number: int, window: int) -> np.ndarray:
        """Batches (window, batch_size) of the window ``number``."""
        first = number * window
        stream = [batch_indices(len(self._encoded), self._batch_size, self._seed, first + k) for k in range(window)]
        rows = np.concatenate(stream)
        # Stable, so that rows of one length stay in their random order.
        batches = rows[np.argsort(self._totals[rows], kind="stable")].reshape(window, self._batch_size)
        return batches[np.random.default_rng([self._seed, _PURPOSE, number]).permutation(window)]

    def width(self, rows: np.ndarray) -> Width:
        """The narrowest width that holds ``rows``."""
        return self.widths[int(self._bucket[rows].max())]

    def arrays(self, step: int, mine: slice = slice(None)) -> dict[str, np.ndarray]:
        """Batch ``step`` as arrays; all of them have the width of the whole batch.

        Args:
            step: number of the batch, from 0.
            mine: the rows of the batch that this process holds.

        Returns:
            ``prompt_tokens`` (B, P) int32, ``prompt_mask`` (B, P) bool, ``completion_tokens`` (B, C) int32, filled with
            EOS, and ``row_ids`` (B,) int32, the rows' places in the whole batch.
        """
        rows = self.rows(step)
        return self._cut(rows, self.width(rows), mine)

    def example(self, width: Width, mine: slice = slice(None)) -> dict[str, np.ndarray]:
        """Arrays as those of a batch of ``width``, with the first rows over and over: to compile for."""
        rows = np.arange(self._batch_size) % len(self._encoded)
        return self._cut(rows, width, mine)

    def _cut(self, rows: np.ndarray, width: Width, mine: slice) -> dict[str, np.ndarray]:
        chosen = rows[mine]
        return {
            "prompt_tokens": self._encoded.prompt_tokens[chosen, : width.prompt],
            "prompt_mask": self._encoded.prompt_mask[chosen, : width.prompt],
            "completion_tokens": self._encoded.completion_tokens[chosen, : width.completion],
            "row_ids": np.arange(len(rows), dtype=np.int32)[mine],
        }

    def report(self) -> dict[str, Any]:
        """Widths and rows of each bucket, and the share of the positions that hold neither prompt nor completion."""
        used = int(self._encoded.prompt_mask.sum() + self._encoded.completion_mask.sum())
        counts = np.bincount(self._bucket, minlength=len(self.widths))
        bucketed = sum(int(count) * width.total for count, width in zip(counts, self.widths, strict=True))
        full = len(self._encoded) * (self._encoded.prompt_tokens.shape[1] + self._encoded.completion_tokens.shape[1])
        return {
            "widths": [
                {"prompt": width.prompt, "completion": width.completion, "rows": int(count)}
                for count, width in zip(counts, self.widths, strict=True)
            ],
            "filler_share": round(1 - used / bucketed, 4),
            "filler_share_without": round(1 - used / full, 4),
        }


def _choose(prompts: np.ndarray, completions: np.ndarray, buckets: int, full: Width) -> tuple[Width, ...]:
    """The widths that leave the fewest positions unused, found by dynamic programming over the rows by total length."""
    order = np.argsort(prompts + completions, kind="stable")
    widest = [
        _rounded(int(p), int(c), full)
        for p, c in zip(np.maximum.accumulate(prompts[order]), np.maximum.accumulate(completions[order]), strict=True)
    ]
    ends = np.unique(np.ceil(np.linspace(0, len(order), _CANDIDATES + 1)).astype(int))[1:]
    # best[e]: positions of the cheapest way to put the rows up to e into buckets, and the ends of those buckets.
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    for _ in range(buckets):
        best = best | {
            int(end): min(
                (cost + (int(end) - start) * widest[end - 1].total, (*chosen, int(end)))
                for start, (cost, chosen) in best.items()
                if start < end and (start or not chosen)
            )
            for end in ends
        }
    chosen = best[len(order)][1]
    return tuple(dict.fromkeys(widest[end - 1] for end in chosen))


def _rounded(prompt: int, completion: int, full: Width) -> Width:
    width = min(full.completion, -(-completion // _STEP) * _STEP)
    total = -(-(prompt + width) // _STEP) * _STEP
    return Width(min(full.prompt, total - width), width)


def _bucket_of(prompts: np.ndarray, completions: np.ndarray, widths: tuple[Width, ...]) -> np.ndarray:
    """The first bucket (N,) that holds each row."""
    fits = [(prompts <= width.prompt) & (completions <= width.completion) for width in widths]
    return np.argmax(np.stack(fits), axis=0)
