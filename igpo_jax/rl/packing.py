"""Packing rows into a few program shapes, rows with like needs together, so that nothing recompiles or waits."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Pack:
    """Row numbers that one compiled call denoises; ``size`` - len(rows) places of it are filler."""

    rows: tuple[int, ...]
    size: int


def bucket_sizes(largest: int, multiple: int, levels: int = 4) -> tuple[int, ...]:
    """The program sizes: ``largest`` halved up to ``levels - 1`` times while it stays a multiple of ``multiple``.

    Args:
      largest: rows in a full program.
      multiple: rows must divide by this (the number of batch shards).
      levels: most sizes wanted.

    Returns:
      Sizes in ascending order.
    """
    sizes = [largest]
    while len(sizes) < levels and sizes[-1] % (2 * multiple) == 0:
        sizes.append(sizes[-1] // 2)
    return tuple(reversed(sizes))


def pack(needs: Sequence[int], sizes: Sequence[int], places: int = 0) -> list[Pack]:
    """Sorts rows by the forwards they need and cuts them into programs.

    A batch pays for its slowest row, so rows of like need travel together: the expensive programs first.

    Args:
      needs: forwards each row needs.
      sizes: program sizes, ascending.
      places: rows to make room for where they are more than ``needs``: processes that sample together launch the same
        programs, whichever of them has the most rows.

    Returns:
      Packs that hold every row once; number and sizes depend on the count of rows (or places) alone.
    """
    order = [int(row) for row in np.argsort(-np.asarray(needs), kind="stable")]
    places = max(places, len(order))
    packs = []
    while places > 0:
        size = next((s for s in sizes if s >= places), sizes[-1])
        packs.append(Pack(tuple(order[:size]), size))
        order, places = order[size:], places - size
    return packs


def forwards_needed(open_masks: np.ndarray, block_length: int, steps: int) -> np.ndarray:
    """Forwards in which a row reveals something: min(masks, steps per block), summed over its blocks.

    Args:
      open_masks: (B, C) bool, True where a token is to be generated.
      block_length: tokens in a block.
      steps: denoising steps over the whole canvas.

    Returns:
      (B,) int64.
    """
    rows, length = open_masks.shape
    blocks = length // block_length
    per_block = open_masks.reshape(rows, blocks, block_length).sum(axis=2)
    return np.minimum(per_block, steps // blocks).sum(axis=1)
