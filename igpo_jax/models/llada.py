"""LLaDA's forward pass: a transformer that looks both ways, as functions over a nested dict of arrays.

The policy, the behaviour policy and the reference are three arguments of one type, ``Policy``; nothing holds weights.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from igpo_jax.models.attention import exact
from igpo_jax.models.block import RESIDUAL, Layer, block, rms_norm, rotary_table
from igpo_jax.models.config import Compute, Model, ModelConfig
from igpo_jax.models.lora import Adapters
from igpo_jax.models.params import Params, ParamSpec, abstract, init, param_table, shardings
from igpo_jax.parallel import sharding

__all__ = [
    "Compute",
    "Model",
    "ModelConfig",
    "ParamSpec",
    "Params",
    "Policy",
    "abstract",
    "cast",
    "forward",
    "head_logits",
    "head_weights",
    "init",
    "param_table",
    "shardings",
]

_save = jax.checkpoint_policies.save_only_these_names

#: What the backward pass keeps of a layer, by the name in ``Compute.remat`` ("none" keeps everything).
REMAT_POLICIES: dict[str, Callable[..., bool]] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "context": _save("context"),
    "qkv_context": _save("qkv", "context"),
    "dots": jax.checkpoint_policies.dots_saveable,
}


@struct.dataclass
class Policy:
    """What a forward pass needs: parameters, and adapters where the model is trained through LoRA."""

    params: Params
    adapters: Adapters | None = None


def cast(policy: Policy, model: Model) -> Policy:
    """The policy's compute copy; make it once outside a loop and the casts inside become no-ops."""
    return jax.tree.map(lambda weight: weight.astype(model.dtype), policy)


def forward(
    policy: Policy,
    model: Model,
    tokens: jax.Array,
    *,
    positions: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Final hidden states of every token; every token sees every valid one.

    Args:
      policy: the weights, in any dtype.
      model: static shape and way of computing.
      tokens: (B, T) int32, inside the embedding.
      positions: (B, T) int32 rotary positions, by default 0 ... T-1 in every row.
      valid: (B, T) bool, tokens that may be attended to; or (B,) int32, how many of the row's first tokens may, which
        the cuDNN kernel prefers; by default all. Invalid ones still get a hidden state.

    Returns:
      (B, T, D) in the compute dtype, after the last norm.
    """
    config = model.config
    # The rows are picked before they are cast, so the whole embedding is never converted.
    x = sharding.gather(policy.params["wte"]["weight"], tokens, RESIDUAL).astype(model.dtype)
    rotation = rotary_table(jnp.arange(tokens.shape[1])[None] if positions is None else positions, config)
    adapters, scale = (policy.adapters.layers, policy.adapters.scale) if policy.adapters else ({}, 0.0)
    layers = (
        cast(Policy(policy.params["blocks"]), model).params,
        jax.tree.map(lambda w: w.astype(model.dtype), adapters),
    )

    def step(x: jax.Array, weights: tuple[dict[str, Any], dict[str, Any]]) -> tuple[jax.Array, None]:
        return block(Layer(model, *weights, scale), x, rotation, valid), None

    if model.compute.remat != "none":
        step = jax.checkpoint(step, policy=REMAT_POLICIES[model.compute.remat], prevent_cse=False)
    x, _ = jax.lax.scan(step, x, layers)
    return rms_norm(x, policy.params["ln_f"], config.rms_norm_eps)


def head_weights(policy: Policy, model: Model) -> dict[str, jax.Array]:
    """The head's weight, and bias if it has one, in the compute dtype, gathered over the fsdp axis.

    Outside a loop over ``head_logits`` this gathers them once, where inside every round would.
    """
    tied = model.config.weight_tying
    head = policy.params["wte"] if tied else policy.params["ff_out"]
    gathered = {"weight": sharding.unsharded(head["weight"].astype(model.dtype), _head_axes(model))}
    return gathered | {name: head[name].astype(model.dtype) for name in ("bias",) if name in head}


def _head_axes(model: Model) -> tuple[str, str]:
    return ("vocab", "embed") if model.config.weight_tying else ("embed", "vocab")


def head_logits(policy: Policy | dict[str, jax.Array], model: Model, hidden: jax.Array) -> jax.Array:
    """Logits of final hidden states.

    Args:
      policy: the weights, or ``head_weights`` of them.
      model: static description.
      hidden: (..., D) after the last norm, as ``forward`` returns them; split over a mesh in dimension 0 only.

    Returns:
      (..., V) float32 with V = embedding_size; the product is in the compute dtype with float32 sums. Under a mesh the
      leading dimensions keep their sharding and the vocabulary is whole on every device.
    """
    head = head_weights(policy, model) if isinstance(policy, Policy) else policy
    # How the rows are split under a mesh: as dimension 0 of the hidden states is.
    rows = (*jax.typeof(hidden).sharding.spec[:-1], None)[0] if sharding.under_mesh() else None
    logits = jnp.einsum(
        "nd,vd->nv" if model.config.weight_tying else "nd,dv->nv",
        hidden.reshape(-1, hidden.shape[-1]),
        head["weight"],
        precision=exact(model.dtype),
        preferred_element_type=jnp.float32,
        out_sharding=jax.P(rows, sharding.RULES["vocab"]) if sharding.under_mesh() else None,
    )
    if "bias" in head:
        logits += head["bias"]
    if not sharding.under_mesh():
        return logits.reshape(*hidden.shape[:-1], -1)
    whole = jax.reshard(logits, jax.P(rows, None))
    return jnp.reshape(whole, (*hidden.shape[:-1], -1), out_sharding=jax.P(*jax.typeof(hidden).sharding.spec[:-1]))
