"""Hints: which ground-truth tokens an inpainted rollout is given, and where (arXiv 2509.10396, Eq. 6)."""

import dataclasses
import math
import random

import numpy as np

from igpo_jax.errors import UserError, check_choice
from igpo_jax.rl.official_hints import official_layout
from igpo_jax.rl.protection import EXCLUDES, protected_tokens, value_visible

__all__ = [
    "HintSettings",
    "Hints",
    "cut_chunks",
    "draw_ratios",
    "place_hints",
    "place_hints_official",
    "protected_tokens",
    "value_visible",
]

PATTERNS = ("chunks", "prefix", "full")
PLACEMENTS = ("paper", "official")

#: A range of ratios is a point or at least this wide, so that distinct ratios can be drawn from it.
_MIN_RANGE = 1e-6


@dataclasses.dataclass(frozen=True)
class HintSettings:
    """What an inpainted completion is shown of the ground truth; defaults of the paper, ``answer_room`` of its code."""

    ratio_low: float = 0.2  #: each completion draws its own share of chunks from U[ratio_low, ratio_high]
    ratio_high: float = 0.6  #: equal to ratio_low: every completion gets the same share
    chunk_min: int = 5  #: chunk lengths are U[chunk_min, chunk_max] tokens
    chunk_max: int = 10  #: longest chunk
    pattern: str = "chunks"  #: chunks at random; prefix: the first ones, all an autoregressive model could use; full
    answer_room: int = 30  #: positions at the end of the canvas that stay free
    exclude: str = "value"  #: what is never shown: statement, value (from the last reasoning line on) or all_values
    placement: str = "paper"  #: paper: at their own positions; official: as the released code spreads them
    max_spacing: int = 100  #: official placement only: widest gap between two hints

    def __post_init__(self) -> None:
        """Raises UserError for an unknown choice or a range that cannot be drawn from."""
        check_choice("rl.hints.pattern", self.pattern, PATTERNS)
        check_choice("rl.hints.exclude", self.exclude, EXCLUDES)
        check_choice("rl.hints.placement", self.placement, PLACEMENTS)
        if not 0.0 <= self.ratio_low <= self.ratio_high <= 1.0 or 0.0 < self.ratio_high - self.ratio_low < _MIN_RANGE:
            raise UserError(
                f"rl.hints.ratio_low and ratio_high are {self.ratio_low} and {self.ratio_high}, expected "
                f"0 <= ratio_low <= ratio_high <= 1, equal or at least {_MIN_RANGE} apart"
            )
        if not 1 <= self.chunk_min <= self.chunk_max:
            raise UserError(
                f"rl.hints.chunk_min and chunk_max are {self.chunk_min} and {self.chunk_max}, expected "
                "1 <= chunk_min <= chunk_max"
            )
        if self.answer_room < 0 or self.max_spacing < 0:
            raise UserError(
                f"rl.hints.answer_room and max_spacing are {self.answer_room} and {self.max_spacing}; give at least 0"
            )
        if self.placement == "official":
            self._check_official()

    def _check_official(self) -> None:
        if self.pattern != "chunks" or not 0.0 < self.ratio_low <= self.ratio_high < 1.0:
            raise UserError(
                f"rl.hints.placement 'official' has pattern '{self.pattern}' and ratios {self.ratio_low} to "
                f"{self.ratio_high}, but the released code knows only chunks with ratios strictly between 0 and 1; "
                "change them or use placement 'paper'"
            )


@dataclasses.dataclass(frozen=True)
class Hints:
    """The hints of one completion."""

    canvas: np.ndarray  # (C,) int32, a token or -1 where the model generates
    source: np.ndarray  # (C,) int32, the trace position of each hint, -1 where free
    chunks: int  # N, chunks of the trace that hold a token which may be shown
    chunks_chosen: int  # floor(ratio x N) in the paper's placement
    chunks_dropped: int  # chosen chunks that found no room on the canvas
    ratio: float  # the ratio asked for

    def trace_placed(self, length: int) -> np.ndarray:
        """(length,) bool over the trace's tokens: True where the token is shown."""
        placed = np.zeros(length, dtype=bool)
        placed[self.source[self.source >= 0]] = True
        return placed


def draw_ratios(rng: np.random.Generator, count: int, settings: HintSettings) -> np.ndarray:
    """One hint ratio per completion, all different unless the range is a single point.

    Args:
      rng: source of the draws.
      count: completions of a group.
      settings: the range. Official placement also sorts the ratios, as the released code does.

    Returns:
      (count,) float64 in [ratio_low, ratio_high].
    """
    low, high = settings.ratio_low, settings.ratio_high
    ratios = rng.uniform(low, high, count)
    while low < high and len(np.unique(ratios)) < count:
        ratios = rng.uniform(low, high, count)
    return np.sort(ratios) if settings.placement == "official" else ratios


def cut_chunks(length: int, rng: np.random.Generator, settings: HintSettings) -> list[tuple[int, int]]:
    """Cuts ``length`` tokens into (start, end) chunks of U[chunk_min, chunk_max] tokens; the last takes the rest."""
    chunks, start = [], 0
    while start < length:
        end = min(start + int(rng.integers(settings.chunk_min, settings.chunk_max + 1)), length)
        chunks.append((start, end))
        start = end
    return chunks


def place_hints(
    trace_tokens: np.ndarray,
    protected: np.ndarray,
    length: int,
    ratio: float,
    rng: np.random.Generator,
    settings: HintSettings,
) -> Hints:
    """Chooses hints from a ground-truth completion and puts each token at its own position (Eq. 6).

    The whole trace is cut into chunks. Chunks of protected tokens alone do not count; of the N others, floor(ratio x N)
    are chosen: at random (``chunks``), the first ones up to the first protected token (``prefix``), or all of them
    whatever the ratio (``full``). Protected tokens inside a chosen chunk stay free. So do the last ``answer_room``
    positions: a chunk that reaches into them is cut there, one that starts later is dropped and counted.

    Args:
      trace_tokens: (n,) int, the ground-truth completion without its EOS.
      protected: (n,) bool, tokens that are never shown (``protected_tokens``); official placement ignores it.
      length: C, canvas length.
      ratio: share of the chunks to choose.
      rng: source of all draws.
      settings: how to cut, choose and place.

    Returns:
      The hints on a canvas of ``length``.

    Raises:
      UserError: ``protected`` and ``trace_tokens`` differ in length.
    """
    if len(protected) != len(trace_tokens):
        raise UserError(
            f"protected has {len(protected)} entries for {len(trace_tokens)} trace tokens; build both from one text"
        )
    if settings.placement == "official":
        return place_hints_official(trace_tokens, length, ratio, random.Random(int(rng.integers(2**63))), settings)
    protected = np.asarray(protected, dtype=bool)
    chunks = [(a, b) for a, b in cut_chunks(len(protected), rng, settings) if not protected[a:b].all()]
    chosen = _choose(chunks, ratio, rng, settings.pattern)
    shown = ~protected
    shown[max(length - settings.answer_room, 0) :] = False
    if settings.pattern == "prefix" and protected.any():
        shown[np.argmax(protected) :] = False
    positions = [np.arange(a, b)[shown[a:b]] for a, b in chosen]
    placed = np.concatenate([np.zeros(0, np.int64), *positions])
    dropped = sum(len(place) == 0 for place in positions)
    return _hints(trace_tokens, placed, placed, length, (len(chunks), len(chosen), dropped), ratio)


def place_hints_official(
    trace_tokens: np.ndarray,
    length: int,
    ratio: float,
    rng: random.Random,
    settings: HintSettings,
    reveal_last: bool = True,
) -> Hints:
    """Places hints as the released code does; equal seeds of Python's ``random`` give equal hints.

    Args:
      trace_tokens: (n,) int, the reference solution, answer included.
      length: C, canvas length.
      ratio: share of chunks to reveal, strictly between 0 and 1; the count rounds up.
      rng: Python's generator.
      settings: chunk lengths, free room at the end, widest spacing.
      reveal_last: always reveal the last chunk, as the released code does.

    Raises:
      UserError: ``ratio`` is not strictly between 0 and 1.
    """
    layout = official_layout(
        len(trace_tokens),
        length - settings.answer_room,
        ratio,
        rng,
        chunk_min=settings.chunk_min,
        chunk_max=settings.chunk_max,
        max_spacing=settings.max_spacing,
        reveal_last=reveal_last,
    )
    pairs = list(zip(layout.revealed, layout.spread, strict=False))
    empty = [np.zeros(0, np.int64)]
    targets = np.concatenate([*empty, *(np.arange(*new) for _, new in pairs)])
    sources = np.concatenate([*empty, *(np.arange(old[0], old[0] + new[1] - new[0]) for old, new in pairs)])
    counts = (layout.count, len(layout.revealed), len(layout.revealed) - len(layout.spread))
    return _hints(trace_tokens, targets, sources, length, counts, ratio)


def _choose(
    chunks: list[tuple[int, int]], ratio: float, rng: np.random.Generator, pattern: str
) -> list[tuple[int, int]]:
    if pattern == "full":
        return chunks
    # The tolerance is for products like 0.29 x 100, which floating point puts just below the whole number.
    count = math.floor(ratio * len(chunks) + 1e-9)
    if pattern == "prefix":
        return chunks[:count]
    return [chunks[i] for i in np.sort(rng.choice(len(chunks), count, replace=False))]


def _hints(
    trace_tokens: np.ndarray,
    targets: np.ndarray,
    sources: np.ndarray,
    length: int,
    counts: tuple[int, int, int],
    ratio: float,
) -> Hints:
    canvas = np.full(length, -1, np.int32)
    source = np.full(length, -1, np.int32)
    canvas[targets] = np.asarray(trace_tokens)[sources]
    source[targets] = sources
    return Hints(canvas, source, *counts, ratio=ratio)
