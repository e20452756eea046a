"""One transformer block and the functions it is made of; the layer loop is in ``llada``."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from igpo_jax.models.attention import attention, exact
from igpo_jax.models.config import Model, ModelConfig
from igpo_jax.models.params import linear_shapes
from igpo_jax.parallel import sharding

#: Logical axes of the residual stream (B, T, D).
RESIDUAL = ("batch", "length", None)

Rotation = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer's compute copy: its slice of the stacked weights and adapters, applied by name."""

    model: Model
    weights: dict[str, Any]  # name -> {"weight": (in, out) or (D,), "bias"?: (out,)}
    adapters: dict[str, Any]  # name -> {"a": (in, r), "b": (r, out)}
    scale: float  # of the adapters' output

    def norm(self, name: str, x: jax.Array) -> jax.Array:
        """The named norm of x (B, T, D)."""
        return rms_norm(x, self.weights[name], self.model.config.rms_norm_eps)

    def linear(self, name: str, x: jax.Array) -> jax.Array:
        """The named linear layer of x (B, T, in): x W [+ bias] [+ scale (x a) b], as (B, T, out)."""
        _, _, axis_in, axis_out = linear_shapes(self.model.config)[name]
        kept = None if axis_out == "embed" else axis_out
        out = _product(x, self.weights[name]["weight"], (axis_in, axis_out), kept)
        if "bias" in self.weights[name]:
            out += sharding.unsharded(self.weights[name]["bias"], (axis_out,))
        if name in self.adapters:
            inner = _product(x, self.adapters[name]["a"], (axis_in, "rank"), None)
            out += _product(inner, self.adapters[name]["b"], ("rank", axis_out), kept) * self.scale
        return out


def _product(x: jax.Array, weight: jax.Array, axes: tuple[str, str], kept: str | None) -> jax.Array:
    """x (B, T, in) @ weight (in, out), with the weight gathered over fsdp and the output split by the axis ``kept``."""
    rows = x.reshape(-1, x.shape[-1])  # one contracted dimension in the weight's gradient: twice as fast on a CPU
    out = jnp.einsum(
        "ni,io->no",
        rows,
        sharding.unsharded(weight, axes),
        precision=exact(x.dtype),
        preferred_element_type=x.dtype,
        out_sharding=sharding.active(("batch", kept)),
    )
    return jnp.reshape(out, (*x.shape[:-1], -1), out_sharding=sharding.active(("batch", "length", kept)))


def block(layer: Layer, x: jax.Array, rotation: Rotation, valid: jax.Array | None) -> jax.Array:
    """One block on the residual stream x (B, T, D); ``valid``: keys that may be attended to, see ``attention``."""
    x += layer.linear("attn_out", attention_context(layer, layer.norm("attn_norm", x), rotation, valid))
    return x + mlp(layer, layer.norm("ff_norm", x))


def attention_context(layer: Layer, h: jax.Array, rotation: Rotation, valid: jax.Array | None) -> jax.Array:
    """Joined heads (B, T, H hd) of the normed stream h (B, T, D), before the output projection."""
    split = (*h.shape[:2], -1, layer.model.config.head_dim)
    q, k, v = (checkpoint_name(layer.linear(name, h), "qkv").reshape(split) for name in ("q_proj", "k_proj", "v_proj"))
    heads = attention(rotate(q, rotation), rotate(k, rotation), v, valid, layer.model.compute.attention)
    return heads.reshape(*h.shape[:2], -1)


def mlp(layer: Layer, h: jax.Array) -> jax.Array:
    """Gated MLP of the normed stream h (B, T, D): SiLU(gate) times up, projected down."""
    return layer.linear("ff_out", jax.nn.silu(layer.linear("ff_proj", h)) * layer.linear("up_proj", h))


def rms_norm(x: jax.Array, norm: dict[str, jax.Array], eps: float) -> jax.Array:
    """Root mean square norm over the last axis: statistics in float32, weight and bias applied in x's dtype."""
    wide = x.astype(jnp.float32)
    scaled = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    out = scaled.astype(x.dtype) * norm["weight"].astype(x.dtype)
    return out + norm["bias"].astype(x.dtype) if "bias" in norm else out


def rotary_table(positions: jax.Array, config: ModelConfig) -> Rotation:
    """Cosines and sines of the rotary angles, each (B, T, 1, hd/2) float32 for positions (B, T)."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponents
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Turns the two halves of every head of x (B, T, H, hd) by its position's angles, in float32."""
    cos, sin = rotation
    low, high = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1).astype(x.dtype)
