"""Attention kernels of the accelerators, each for the rows and heads of one device, and what they ask for."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

from igpo_jax.errors import UserError

#: Splash works on tiles of this many positions, and on heads that fill whole vector registers of as many lanes.
_TILE = 128

#: Largest tile of queries and keys that Splash holds at once; its scratch memory grows with the square.
_LARGEST_BLOCK = 512

#: Platform -> its kernel.
OF_PLATFORM = {"gpu": "cudnn", "tpu": "splash"}

#: Kernel -> what it needs, as messages say it.
REQUIREMENTS = {
    "cudnn": "NVIDIA GPUs of the Hopper generation or newer, bfloat16 and heads of a multiple of 8, at most 256 wide",
    "splash": "TPUs, bfloat16 and heads of a multiple of 128 wide",
}

#: Words in the names of GPUs whose generation is Hopper or newer.
_HOPPER_OR_NEWER = ("H100", "H200", "H800", "H20", "GH200", "B100", "B200", "B300", "GB200", "GB300")


def device() -> tuple[str, str]:
    """Platform ("cpu", "gpu", "tpu") and kind of the devices that a program under trace is for.

    Those of the mesh that ``jax.set_mesh`` has set, which need not exist here (ahead-of-time compilation); without a
    mesh those of the default backend.
    """
    of_mesh = jax.sharding.get_abstract_mesh().abstract_device
    if of_mesh is not None:
        return of_mesh.platform, of_mesh.device_kind
    first = jax.devices()[0]
    return first.platform, first.device_kind


def obstacle(name: str, on: tuple[str, str], dtype: str, head_dim: int) -> str | None:
    """Why the kernel ``name`` cannot run on the devices ``on`` with such arrays; None where it can."""
    platform, kind = on
    if name == "splash":
        fits = platform == "tpu" and dtype == "bfloat16" and head_dim % _TILE == 0
    elif name == "cudnn":
        hopper = platform == "gpu" and any(word in kind.upper().split() for word in _HOPPER_OR_NEWER)
        fits = hopper and dtype == "bfloat16" and head_dim % 8 == 0 and head_dim <= 256
    else:
        return None
    if fits:
        return None
    found = f"the devices are {kind or platform}, the dtype {dtype} and heads {head_dim} wide"
    return f"'{name}' attention needs {REQUIREMENTS[name]}, but {found}"


def check(name: str, on: tuple[str, str], dtype: str, head_dim: int) -> None:
    """Raises UserError where the kernel ``name`` cannot run."""
    if why := obstacle(name, on, dtype, head_dim):
        raise UserError(f"compute.attention: {why}; use 'xla', or 'auto' for the best that fits")


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, valid: jax.Array | None) -> jax.Array:
    """cuDNN flash attention; arguments as for attention.attention.

    Lengths select cuDNN's padding mask. A mask of (B, S) becomes an additive bias there, which is slower.
    """
    options: dict[str, Any] = {}
    if valid is not None and valid.ndim == 1:
        options["key_value_seq_lengths"] = valid.astype(jnp.int32)
        options["query_seq_lengths"] = jnp.full(q.shape[:1], q.shape[1], jnp.int32)
    elif valid is not None:
        options["mask"] = valid[:, None, None, :]
    try:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn", **options)
    except RuntimeError as error:
        if "cuDNN" not in str(error):
            raise
        raise UserError(
            "compute.attention: cuDNN is not installed here; run: pip install 'jax[cuda13]', or use 'xla'"
        ) from error


def splash(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    valid: jax.Array | None,
    *,
    name: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Splash attention, the Pallas kernel for TPUs; arguments as for attention.attention.

    Every query is of segment 1 and so is every valid key; a row's other keys are of segment 0, which no query attends
    to. Lengths that are no multiple of 128 are filled up with such keys, and with queries that are cut off again.

    Args:
      q: (B, T, H, hd).
      k: (B, S, K, hd).
      v: (B, S, K, hd).
      valid: (B, S) bool, (B,) int32 or None.
      name: for rematerialisation policies: of the output and of the softmax statistics that the backward pass needs.
      interpret: run the kernel's steps one by one, on any platform.
    """
    length, keys = q.shape[1], k.shape[1]
    if valid is None:
        valid = jnp.full(k.shape[:1], keys, jnp.int32)
    if valid.ndim == 1:
        valid = jnp.arange(keys) < valid[:, None]
    q, k, v = (_heads_first(x) for x in ((q * q.shape[-1] ** -0.5).astype(q.dtype), k, v))
    run = _splash_kernel(q.shape[1], q.shape[2], k.shape[2], name, interpret)
    queries = jnp.ones((q.shape[0], q.shape[2]), jnp.int32)
    segments = splash_attention_kernel.SegmentIds(queries, _fill(valid, 1).astype(jnp.int32))
    return jnp.swapaxes(jax.vmap(run)(q, k, v, segments), 1, 2)[:, :length]


def _heads_first(x: jax.Array) -> jax.Array:
    """(B, T, H, hd) as (B, H, T', hd), with zeros behind its positions."""
    return _fill(jnp.swapaxes(x, 1, 2), 2)


def _fill(x: jax.Array, axis: int) -> jax.Array:
    """``x`` with zeros up to the next whole tile along ``axis``."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % _TILE)
    return jnp.pad(x, widths)


def _block(length: int) -> int:
    """Largest block of whole tiles that divides ``length``, itself whole tiles."""
    return max(size for size in range(_TILE, _LARGEST_BLOCK + 1, _TILE) if length % size == 0)


def _splash_kernel(heads: int, queries: int, keys: int, name: str | None, interpret: bool) -> Callable[..., jax.Array]:
    """The kernel for one row: (q (H, T, hd), k (K, S, hd), v (K, S, hd), segment ids) -> (H, T, hd)."""
    bq, bkv = _block(queries), _block(keys)
    sizes = splash_attention_kernel.BlockSizes(
        block_q=bq,
        block_kv=bkv,
        block_q_dkv=bq,
        block_kv_dkv=bkv,
        block_q_dq=bq,
        block_kv_dq=bkv,
    )
    mask = splash_attention_mask.FullMask((queries, keys))
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=name,
        interpret=interpret,
    )
