"""The transfer schedule: how many masked tokens each denoising step reveals.

A block of m masks and s steps reveals m // s tokens a step, and one more in each of the first m % s steps
(``get_num_transfer_tokens`` of LLaDA's ``generate.py``). All functions are written with operators only, so they take
Python integers, numpy arrays and traced jax arrays alike.
"""

from typing import Any

import numpy as np


def reveals_at(open_masks: Any, steps: Any, step: Any) -> Any:
    """Number of tokens that a step of a block reveals, the remainder going to the first steps.

    Args:
      open_masks: int, masks in the block when its first step begins; any shape.
      steps: int >= 1, steps of the block; broadcasts against ``open_masks``.
      step: int >= 0, step within the block; nothing is revealed from ``steps`` on.

    Returns:
      int of the broadcast shape.
    """
    return (open_masks // steps + (step < open_masks % steps)) * (step < steps)


def transfer_counts(open_masks: Any, steps: int) -> np.ndarray:
    """The whole schedule of a block: tokens revealed at each of its steps.

    Args:
      open_masks: (...) int, masks in the block.
      steps: steps of the block.

    Returns:
      (..., steps) int32 numpy array that sums to ``open_masks``.
    """
    masks = np.asarray(open_masks)[..., None]
    return reveals_at(masks, steps, np.arange(steps)).astype(np.int32)


def block_steps(open_masks: Any, steps: int, block_length: int, budget: str) -> Any:
    """Steps that a row spends on a block.

    Args:
      open_masks: (...) int, masks in the row's block.
      steps: steps that the schedule gives to a block without hints.
      block_length: tokens in a block.
      budget: "schedule" gives every block ``steps`` (a row with fewer masks than that reveals one a step, then
        waits); "open_masks" gives ceil(steps * open_masks / block_length), so that a row with hints takes fewer
        steps of the usual width. The latter is not what the reference does.

    Returns:
      (...) int >= 1.
    """
    if budget == "schedule":
        return open_masks * 0 + steps
    needed = (steps * open_masks + block_length - 1) // block_length
    return needed + (needed < 1)


def forwards_needed(open_masks: Any, steps: Any) -> Any:
    """Forwards in which a block reveals something: its steps, or its masks where there are fewer of them.

    Args:
      open_masks: (...) int, masks in the block.
      steps: (...) int, steps of the block.

    Returns:
      (...) int; the schedule's zeros all come last, so this is also where the block may stop.
    """
    return open_masks - (open_masks - steps) * (open_masks > steps)
