"""How one token is drawn from logits over a large vocabulary, in passes that vectorise.

The vocabulary is looked at in chunks: one number per chunk, then the inside of the one chunk that matters. On a CPU a
plain argmax over 126,464 columns takes half as long as the matrix product of width 512 that makes the logits, and a
plain cumulative sum over them loses digits that sums of sums keep.
"""

import jax
import jax.numpy as jnp

#: How a token is drawn at temperatures above zero. "inverse_cdf": two uniforms per position pick it through cumulative
#: sums of softmax(logits / T). "gumbel": the argmax of logits + T g with a Gumbel value g per position and token, as
#: the reference does it. The distribution is the same, the cost is not.
DRAWS = ("inverse_cdf", "gumbel")

#: Tokens in a chunk; 126,464 = 247 x 512.
_CHUNK = 512


def most_likely(logits: jax.Array) -> jax.Array:
    """The token with the largest logit; the first of equal ones.

    Args:
      logits: (B, K, V) float32.

    Returns:
      (B, K) int32.
    """
    chunks = _chunked(logits)
    chunk = jnp.argmax(jnp.max(chunks, axis=-1), axis=-1).astype(jnp.int32)
    return chunk * chunks.shape[-1] + jnp.argmax(_inside(chunks, chunk), axis=-1).astype(jnp.int32)


def inverse_cdf(logits: jax.Array, temperature: jax.Array, uniforms: jax.Array) -> jax.Array:
    """A token of the distribution softmax(logits / T), as a function of two uniforms.

    The first picks the chunk in proportion to its share, the second the token inside it: together they are the high and
    the low half of one uniform of twice the digits. A token of probability 0 is never drawn.

    Args:
      logits: (B, K, V) float32, finite or -inf, at least one finite in each row.
      temperature: () float32 above 0.
      uniforms: (B, K, 2) float32 in [0, 1).

    Returns:
      (B, K) int32.
    """
    chunks = _chunked(logits)
    peak = jnp.max(chunks, axis=(-2, -1), keepdims=True)
    shares = jnp.sum(jnp.exp((chunks - peak) / temperature), axis=-1)
    chunk = _pick(shares, uniforms[..., 0])
    inside = jnp.exp((_inside(chunks, chunk) - peak[..., 0]) / temperature)
    return chunk * chunks.shape[-1] + _pick(inside, uniforms[..., 1])


def _pick(weights: jax.Array, uniform: jax.Array) -> jax.Array:
    """The first index (...) int32 whose cumulative weight exceeds ``uniform`` of the total; weights (..., N) >= 0."""
    total = jnp.cumsum(weights, axis=-1)
    found = jnp.sum(total <= (uniform * total[..., -1])[..., None], axis=-1, dtype=jnp.int32)
    # Rounding may lead behind the last weight, never to a weight of zero in between.
    index = jnp.arange(weights.shape[-1], dtype=jnp.int32)
    return jnp.minimum(found, jnp.max(jnp.where(weights > 0, index, 0), axis=-1))


def _chunked(logits: jax.Array) -> jax.Array:
    """(B, K, V) as (B, K, chunks, tokens of a chunk), filled up with -inf."""
    width = min(_CHUNK, logits.shape[-1])
    fill = -logits.shape[-1] % width
    if fill:
        logits = jnp.pad(logits, [(0, 0), (0, 0), (0, fill)], constant_values=-jnp.inf)
    return logits.reshape(*logits.shape[:-1], -1, width)


def _inside(chunks: jax.Array, chunk: jax.Array) -> jax.Array:
    """The chunk number ``chunk`` (B, K) of each position: (B, K, tokens of a chunk)."""
    return jnp.take_along_axis(chunks, chunk[..., None, None], axis=-2)[..., 0, :]
