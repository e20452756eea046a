"""Which of the open positions a denoising step reveals: one confidence per position, and the k highest of them."""

import jax
import jax.numpy as jnp

#: How confidence is measured; LLaDA calls this choice "remasking".
SELECTIONS = ("low_confidence", "random")


def pick(values: jax.Array, index: jax.Array) -> jax.Array:
    """``values[..., index]`` along the last axis, as a masked sum.

    Unlike a gather this fuses with the neighbouring reductions over the vocabulary and keeps working when the
    vocabulary is sharded over devices; its gradient is an elementwise product, not a scatter.

    Args:
      values: (..., V) float32.
      index: (...) int32.

    Returns:
      (...) float32.
    """
    columns = jax.lax.broadcasted_iota(index.dtype, (values.shape[-1],), 0)
    return jnp.sum(jnp.where(columns == index[..., None], values, 0.0), axis=-1)


def choice_probability(logits: jax.Array, choice: jax.Array) -> jax.Array:
    """Softmax probability of the chosen token, the confidence of "low_confidence".

    Args:
      logits: (..., V) float32, without sampling noise.
      choice: (...) int32.

    Returns:
      (...) float32 in [0, 1].
    """
    chosen = jnp.take_along_axis(logits, choice[..., None], axis=-1)[..., 0]
    return jnp.exp(chosen - jax.nn.logsumexp(logits, axis=-1))


def top_k_mask(confidence: jax.Array, k: jax.Array) -> jax.Array:
    """True at the k highest confidences of each row; the lower index wins a tie.

    Counts, for every position, those that come before it: quadratic in the block's width but one fused reduction,
    which at block widths is cheaper than a sort, and k may differ from row to row.

    Args:
      confidence: (B, K) float32; -inf for positions that are no candidates.
      k: (B,) int32.

    Returns:
      (B, K) bool.
    """
    index = jnp.arange(confidence.shape[-1])
    mine, other = confidence[..., :, None], confidence[..., None, :]
    before = (other > mine) | ((other == mine) & (index[None, :] < index[:, None]))
    rank = jnp.sum(before, axis=-1, dtype=jnp.int32)
    return rank < k[..., None]
