"""Exact gradient accumulation: numerators and denominators are summed, the division happens once."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from igpo_jax.parallel import sharding
from igpo_jax.rl.objectives import LossSums


def gradients(
    loss: Callable[[Any, Any], LossSums], trainable: Any, batch: Any, micro_batches: int
) -> tuple[Any, jax.Array, dict[str, jax.Array]]:
    """The gradient of sum(numerators) / sum(denominators) over all micro-batches.

    Args:
      loss: (trainable, micro-batch) -> LossSums.
      trainable: pytree of float32 arrays to differentiate.
      batch: pytree of (B, ...) arrays; B must divide by ``micro_batches``.
      micro_batches: how many parts to scan over.

    Returns:
      (gradients shaped like ``trainable``, the loss, the metrics as means).
    """

    def one(params: Any, part: Any) -> tuple[Any, LossSums]:
        def numerator(p: Any) -> tuple[jax.Array, LossSums]:
            sums = loss(p, part)
            return sums.numerator, sums

        grads, sums = jax.grad(numerator, has_aux=True)(params)
        return grads, sums

    if micro_batches == 1:
        grads, sums = one(trainable, batch)
    else:
        parts = sharding.micro_batches(batch, micro_batches)
        shapes = jax.eval_shape(lambda part: loss(trainable, part), jax.tree.map(lambda x: x[0], parts))
        zeros = (jax.tree.map(jnp.zeros_like, trainable), jax.tree.map(lambda s: jnp.zeros((), s.dtype), shapes))

        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, one(trainable, part)), None

        (grads, sums), _ = jax.lax.scan(add, zeros, parts)
    denominator = jnp.maximum(sums.denominator, 1e-9)
    grads = jax.tree.map(lambda g: g / denominator, grads)
    # A mean over nothing is not 0: a step without hints has no hint entropy.
    means = {
        name: jnp.where(den > 0, num / jnp.maximum(den, 1e-9), jnp.nan) for name, (num, den) in sums.metrics.items()
    }
    return grads, sums.numerator / denominator, means
