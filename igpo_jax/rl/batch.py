"""The arrays that leave a rollout: from here on nothing in an update knows about text."""

from typing import Any

import flax.struct
import numpy as np

from igpo_jax.diffusion.estimators import Masks

#: A jax.Array on the devices, or a numpy array on the host.
Array = Any


@flax.struct.dataclass
class RolloutBatch:
    """B completions of length C for prompts of length P, G in a row for each question (B = groups x G)."""

    prompt_tokens: Array  # (B, P) int32
    prompt_mask: Array  # (B, P) bool, True on prompt tokens
    completion_tokens: Array  # (B, C) int32
    completion_mask: Array  # (B, C) bool, True up to and including the first EOS
    hint_mask: Array  # (B, C) bool, True exactly where ground-truth tokens were placed
    rewards: Array  # (B,) float32, after replacement
    correct: Array  # (B,) bool, the judge's verdict alone
    advantages: Array  # (B,) float32, reward minus the mean of its group
    group_id: Array  # (B,) int32


@flax.struct.dataclass
class UpdateBatch:
    """A rollout with what one behaviour pass and one reference pass add.

    It is the same for all inner updates, unless the likelihood estimator draws new masks for each.
    """

    rollout: RolloutBatch
    old_logp: Array  # (B, C) float32, behaviour policy
    ref_logp: Array  # (B, C) float32, reference policy
    kept: Array  # (B, C) bool, positions the loss runs over: generated ones and the hints that pass the filter
    kl_weight: Array  # (B,) float32, 0 for rows of a group without reward spread where the objective says so
    masks: Masks | None = None  # what was hidden in both passes; None: the whole completion and nothing of the prompt


def completion_mask(tokens: np.ndarray, eos_id: int) -> np.ndarray:
    """True up to and including the first EOS of each row; all True in a row without one.

    Args:
      tokens: (B, C) int32.
      eos_id: the EOS token.

    Returns:
      (B, C) bool.
    """
    is_eos = tokens == eos_id
    before = np.cumsum(is_eos, axis=1) - is_eos
    return before == 0
