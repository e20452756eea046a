"""Canvas-first rows: ``[completion canvas | prompt | padding]`` in memory, in reading order by explicit positions.

Attention is order-free once rotary positions are given, so a row may keep its canvas at index 0: block slices are
then the same in every row, and the valid keys are a prefix whatever the prompts' lengths.
"""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Row:
    """Network input of B rows with a canvas of C and room for prompts of P tokens (T = C + P)."""

    tokens: jax.Array  # (B, T) int32
    positions: jax.Array  # (B, T) int32 rotary positions: prompt 0..n-1, canvas n..n+C-1, padding 0
    valid: jax.Array  # (B, T) bool, keys that may be attended to: the first C + n of each row
    lengths: jax.Array  # (B,) int32, how many these are

    def with_canvas(self, canvas: jax.Array) -> jax.Array:
        """The tokens (B, T) with another canvas (B, C) in front of the same prompts."""
        return jnp.concatenate([canvas, self.tokens[:, canvas.shape[1] :]], axis=1)


def canvas_first(prompt_tokens: jax.Array, prompt_valid: jax.Array, canvas: jax.Array) -> Row:
    """Lays rows out canvas first, with the prompt's valid tokens moved together in their order.

    What stands at invalid prompt places has no influence: they hold token 0 and position 0 in the result.

    Args:
      prompt_tokens: (B, P) int32, padded on either side.
      prompt_valid: (B, P) bool, True on prompt tokens.
      canvas: (B, C) int32.

    Returns:
      The rows, see Row.
    """
    width, length = prompt_tokens.shape[1], canvas.shape[1]
    prompt_valid = prompt_valid.astype(bool)
    order = jnp.argsort(~prompt_valid, axis=1, stable=True)
    count = jnp.sum(prompt_valid, axis=1, keepdims=True, dtype=jnp.int32)
    place = jnp.arange(width, dtype=jnp.int32)
    inside = place < count
    prompt = jnp.where(inside, jnp.take_along_axis(prompt_tokens, order, axis=1), 0).astype(jnp.int32)
    canvas = canvas.astype(jnp.int32)
    canvas_positions = count + jnp.arange(length, dtype=jnp.int32)
    return Row(
        tokens=jnp.concatenate([canvas, prompt], axis=1),
        positions=jnp.concatenate([canvas_positions, jnp.where(inside, place, 0)], axis=1),
        valid=jnp.concatenate([jnp.ones_like(canvas, dtype=bool), inside], axis=1),
        lengths=length + count[:, 0],
    )
