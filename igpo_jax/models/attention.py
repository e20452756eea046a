"""Attention in both directions, one function in front of every implementation."""

import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp

from igpo_jax.errors import check_choice

_LOG = logging.getLogger(__name__)

_Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array | None], jax.Array]


def exact(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Precision argument of a matrix product: float32 means float32, also where the hardware has shortcuts for it."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def attention(
    q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None = None, implementation: str = "auto"
) -> jax.Array:
    """Softmax attention without causal mask; query head h reads key/value head h // (H / K).

    Args:
      q: (B, T, H, hd) queries, rotated.
      k: (B, S, K, hd) keys, rotated.
      v: (B, S, K, hd) values.
      valid: (B, S) bool, keys that may be attended to; None for all. Each row needs at least one.
      implementation: "xla", or "auto" for the best one available.

    Returns:
      (B, T, H, hd) in the dtype of q; softmax in float32.

    Raises:
      UserError: the implementation is unknown.
    """
    check_choice("attention", implementation, ("auto", *_IMPLEMENTATIONS))
    name = _choose() if implementation == "auto" else implementation
    return _IMPLEMENTATIONS[name](q, k, v, valid)


@functools.cache
def _choose() -> str:
    """The implementation behind "auto"; cached so that the choice is logged once."""
    _LOG.info("attention: using the 'xla' implementation")
    return "xla"


@functools.partial(jax.checkpoint, prevent_cse=False)
def _xla_attention(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    batch, length, heads, width = q.shape
    kv_heads = k.shape[2]
    # The query heads that share a KV head become more queries of that head: (B, K, G T, hd).
    q = jnp.moveaxis(q.reshape(batch, length, kv_heads, -1, width), 1, 3).reshape(batch, kv_heads, -1, width)
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    wide = {"precision": exact(q.dtype), "preferred_element_type": jnp.float32}
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k, **wide) * width**-0.5
    if valid is not None:
        scores = jnp.where(valid[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
    # Softmax in float32, divided after the product with the values: that array is smaller than the scores.
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    mixed = jnp.einsum("bkqs,bksd->bkqd", weights.astype(v.dtype), v, **wide)
    joined = (mixed / jnp.sum(weights, axis=-1, keepdims=True)).astype(v.dtype)
    return jnp.moveaxis(joined.reshape(batch, kv_heads, -1, length, width), 3, 1).reshape(batch, length, heads, width)


_IMPLEMENTATIONS: dict[str, _Attend] = {"xla": _xla_attention}
