"""One optimiser update, the same for supervised fine-tuning and for reinforcement learning."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
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

    Args:
      state: where training stands.
      loss: (policy, part of the batch) -> sums of the loss and of the metrics.
      batch: pytree of (B, ...) arrays.
      optimizer: clip, AdamW and schedule.
      schedule: the learning rate by update, for the metrics.
      micro_batches: parts that the gradient is accumulated over.

    Returns:
      The new state, and the loss's metrics with "loss", "grad_norm" (before the clip) and "learning_rate".
    """

    def of(trainable: Any, part: Any) -> LossSums:
        return loss(policy_of(trainable, state.frozen), part)

    grads, value, metrics = accumulate.gradients(of, state.trainable, batch, micro_batches)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    metrics |= {"loss": value, "grad_norm": global_norm(grads), "learning_rate": schedule(state.step)}
    trainable = optax.apply_updates(state.trainable, updates)
    return dataclasses.replace(state, step=state.step + 1, trainable=trainable, opt_state=opt_state), metrics
