"""Group advantages on the host: one number per completion, relative to its group."""

import numpy as np

from igpo_jax.errors import UserError


def group_advantages(rewards: np.ndarray, group_size: int) -> np.ndarray:
    """Reward minus the mean of its group, not divided by the standard deviation (arXiv 2509.10396).

    Args:
      rewards: (B,) float, completions of a group in a row.
      group_size: G.

    Returns:
      (B,) float32; exactly 0 in a group whose rewards are all equal.

    Raises:
      UserError: B does not divide by G.
    """
    groups = _groups(rewards, group_size)
    centred = groups - groups.mean(axis=1, keepdims=True)
    # The mean of equal numbers may round away from them.
    centred[zero_spread(rewards, group_size)] = 0.0
    return centred.reshape(-1).astype(np.float32)


def zero_spread(rewards: np.ndarray, group_size: int) -> np.ndarray:
    """Groups whose rewards are all equal, so that no completion has an advantage.

    Args:
      rewards: (B,) float, completions of a group in a row.
      group_size: G.

    Returns:
      (B / G,) bool.

    Raises:
      UserError: B does not divide by G.
    """
    groups = _groups(rewards, group_size)
    return groups.max(axis=1) == groups.min(axis=1)


def _groups(rewards: np.ndarray, group_size: int) -> np.ndarray:
    rewards = np.asarray(rewards, dtype=np.float64)
    if group_size < 1 or rewards.size % group_size:
        raise UserError(
            f"{rewards.size} rewards do not form groups of {group_size}; pass whole groups, G rewards in a row"
        )
    return rewards.reshape(-1, group_size)
