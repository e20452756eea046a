"""Hint placement as the released code does it (facebookresearch/igpo, ``utils/generate.py``), for parity.

It differs from the paper: the answer is not excluded, the last chunk is always shown, the number of shown chunks
rounds up, and hints are spread out instead of keeping their positions. Draws come from Python's ``random``.
"""

import dataclasses
import random

from igpo_jax.errors import UserError

Chunk = tuple[int, int]

#: Hints are spread by at most this factor.
MAX_SCALE = 1.5


@dataclasses.dataclass(frozen=True)
class Layout:
    """Chunks as (start, end): ``masked`` and ``revealed`` in the trace, ``spread`` where the revealed ones land."""

    masked: tuple[Chunk, ...]
    revealed: tuple[Chunk, ...]
    spread: tuple[Chunk, ...]  # at most as many as revealed: what finds no room is cut or left out
    scale: float

    @property
    def count(self) -> int:
        """How many chunks the trace was cut into."""
        return len(set(self.masked) | set(self.revealed))


def official_layout(
    trace_length: int,
    room: int,
    ratio: float,
    rng: random.Random,
    *,
    chunk_min: int,
    chunk_max: int,
    max_spacing: int,
    reveal_last: bool = True,
) -> Layout:
    """Cuts the first ``room`` tokens of a trace into chunks, masks some, and spreads the others over the room.

    Args:
      trace_length: tokens in the trace.
      room: canvas positions that may hold hints; without any, nothing is drawn.
      ratio: share of chunks to reveal, strictly between 0 and 1.
      rng: draws the chunk lengths in order, then the masked chunks.
      chunk_min: shortest chunk; a shorter last piece is thrown away.
      chunk_max: longest chunk.
      max_spacing: widest gap left between two spread chunks.
      reveal_last: always reveal the last chunk, as the released code does.

    Raises:
      UserError: ``ratio`` is 0 or 1 or beyond, where the released code crashes.
    """
    if not 0.0 < ratio < 1.0:
        raise UserError(
            f"official hint placement got the ratio {ratio}, expected one strictly between 0 and 1; "
            "use placement='paper' to show nothing or everything"
        )
    if room <= 0:
        return Layout((), (), (), 1.0)
    chunks = _cut(min(trace_length, room), rng, chunk_min, chunk_max)
    masked = rng.sample(chunks, int(len(chunks) * (1 - ratio)))
    hidden = set(masked) - (set(chunks[-1:]) if reveal_last else set())
    revealed = tuple(chunk for chunk in chunks if chunk not in hidden)
    scale = min(max(room / max(trace_length, 1), 1.0), MAX_SCALE)
    return Layout(tuple(masked), revealed, spread_chunks(revealed, scale, room, max_spacing), scale)


def _cut(length: int, rng: random.Random, chunk_min: int, chunk_max: int) -> list[Chunk]:
    chunks, start = [], 0
    while start < length:
        end = min(start + rng.randint(chunk_min, chunk_max), length)
        if end - start >= chunk_min:
            chunks.append((start, end))
        start = end
    return chunks


def spread_chunks(revealed: tuple[Chunk, ...], scale: float, room: int, max_spacing: int) -> tuple[Chunk, ...]:
    """Stretches the first start and the gaps between revealed chunks by ``scale``; lengths stay.

    Args:
      revealed: chunks in the trace, in order.
      scale: at least 1.
      room: nothing is placed from here on.
      max_spacing: a stretched gap is never wider; the first start is not a gap.
    """
    spread: list[Chunk] = []
    for place, (start, end) in enumerate(revealed):
        if place == 0:
            new_start = int(start * scale)
        else:
            new_start = spread[-1][1] + min(int((start - revealed[place - 1][1]) * scale), max_spacing)
        if new_start >= room:
            break
        spread.append((new_start, min(new_start + end - start, room)))
    return tuple(spread)
