"""Attention in both directions, one function in front of every implementation."""

import functools
import logging
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from igpo_jax.errors import check_choice
from igpo_jax.models import attention_kernels as kernels
from igpo_jax.parallel import sharding

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
      valid: the keys that may be attended to, at least one in each row: (B, S) bool; or (B,) int32, how many of the
        row's first keys, which spares the cuDNN kernel a mask; None for all.
      implementation: "xla" anywhere; "cudnn" (flash attention) on NVIDIA GPUs from Hopper on; "splash" on TPUs; "auto"
        for the kernel of the mesh's platform (of the default device's without a mesh) where it can take the arrays.

    Returns:
      (B, T, H, hd) in the dtype of q; softmax in float32. A rematerialisation policy knows it as "context".

    Raises:
      UserError: the implementation is unknown, or cannot run on these devices or with these arrays.
    """
    check_choice("attention", implementation, ("auto", *_IMPLEMENTATIONS))
    device = kernels.device()
    if implementation == "auto":
        name = _choose(device, q.dtype.name, q.shape[-1])
    else:
        name = implementation
        kernels.check(name, device, q.dtype.name, q.shape[-1])
    return _IMPLEMENTATIONS[name](q, k, v, valid)


@functools.cache
def _choose(device: tuple[str, str], dtype: str, head_dim: int) -> str:
    """The implementation behind "auto"; cached so that each choice is logged once."""
    platform, kind = device
    wanted = kernels.OF_PLATFORM.get(platform, "xla")
    why = kernels.obstacle(wanted, device, dtype, head_dim)
    name = "xla" if why else wanted
    _LOG.info("attention: using the '%s' implementation on %s%s", name, kind or platform, f"; {why}" if why else "")
    return name


@functools.partial(jax.checkpoint, prevent_cse=False)
def _xla_scores(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    batch, length, heads, width = q.shape
    kv_heads = k.shape[2]
    if valid is not None and valid.ndim == 1:
        valid = jnp.arange(k.shape[1]) < valid[:, None]
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


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    return checkpoint_name(_xla_scores(q, k, v, valid), "context")


def _cudnn(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    return checkpoint_name(per_device(kernels.cudnn)(q, k, v, valid), "context")


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    return per_device(functools.partial(kernels.splash, name="context"))(q, k, v, valid)


def per_device(kernel: _Attend) -> _Attend:
    """``kernel`` run by each device of the mesh on its own rows and heads; ``kernel`` itself without a mesh."""
    if not sharding.under_mesh():
        return kernel

    def run(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
        heads = ("batch", "length", "heads", None)
        axes = (heads, heads, heads, ("batch", "length")[: 0 if valid is None else valid.ndim])
        specs = tuple(sharding.spec(names) for names in axes)
        # What a kernel writes carries no note of the mesh axes it varies over, so that check is off.
        mapped: Callable[..., jax.Array] = jax.shard_map(kernel, in_specs=specs, out_specs=specs[0], check_vma=False)
        arrays = (q, k, v, valid)
        return mapped(*(x if x is None else jax.reshard(x, spec) for x, spec in zip(arrays, specs, strict=True)))

    return run


_IMPLEMENTATIONS: dict[str, _Attend] = {"xla": _xla, "cudnn": _cudnn, "splash": _splash}
