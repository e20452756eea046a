"""One optimiser update, the same for supervised fine-tuning and for reinforcement learning."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from igpo_jax.models import llada
from igpo_jax.rl.objectives import LossSums
from igpo_jax.training import accumulate
from igpo_jax.training.optimizers import global_norm
from igpo_jax.training.state import TrainState, policy_of


def descend(
    state: TrainState,
    loss: Callable[[llada.Policy, Any], LossSums],
    batch: Any,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    micro_batches: int,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Moves the trainable parameters one step down the exact mean gradient of ``loss`` over ``batch``.

    Where the loss or the gradient is not finite, parameters and optimizer state stay what they were to the bit; the
    update is counted as skipped, and ``step`` goes on, so that data and noise do.

    Args:
      state: where training stands.
      loss: (policy, part of the batch) -> sums of the loss and of the metrics.
      batch: pytree of (B, ...) arrays.
      optimizer: clip, AdamW and schedule.
      schedule: the learning rate by update, for the metrics.
      micro_batches: parts that the gradient is accumulated over.

    Returns:
      The new state, and the loss's metrics with "loss", "grad_norm" (before the clip), "learning_rate",
      "skipped_updates" (so far) and "skipped_in_a_row".
    """

    def of(trainable: Any, part: Any) -> LossSums:
        return loss(policy_of(trainable, state.frozen), part)

    grads, value, metrics = accumulate.gradients(of, state.trainable, batch, micro_batches)
    norm = global_norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    moved = (optax.apply_updates(state.trainable, updates), opt_state)
    trainable, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), moved, (state.trainable, state.opt_state)
    )
    skipped = state.skipped + jnp.where(finite, 0, 1)
    in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
    metrics |= {"loss": value, "grad_norm": norm, "learning_rate": schedule(state.step - state.skipped)}
    metrics |= {"skipped_updates": skipped, "skipped_in_a_row": in_a_row}
    new = TrainState(state.step + 1, trainable, opt_state, state.frozen, skipped, in_a_row)
    return new, metrics
