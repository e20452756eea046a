"""Low-rank adapters: a small tree beside the frozen parameters, stacked on the layer axis like them."""

import dataclasses
import fnmatch
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from igpo_jax.errors import UserError
from igpo_jax.models.attention import exact
from igpo_jax.models.config import ModelConfig
from igpo_jax.models.params import Params, ParamSpec, init_leaf, linear_shapes, map_table, table_shardings
from igpo_jax.parallel import sharding

#: The linear layers of a block, each of which can carry an adapter.
ALL_TARGETS = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")

#: Those that the released code adapts: its list names Llama's layers, of which only these four exist in LLaDA.
OFFICIAL_TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj")


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """Which layers get an adapter, and how large it is."""

    rank: int = 0  #: inner width of the adapters; 0 trains the full parameters instead
    alpha: float = 64.0  #: an adapter's output is multiplied by alpha / rank
    targets: tuple[str, ...] = ALL_TARGETS  #: layer names or patterns such as "*_proj"

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"lora.rank is {self.rank}, expected a positive number, or 0 for full fine-tuning")
        if self.alpha <= 0:
            raise UserError(f"lora.alpha is {self.alpha}, expected a positive number")
        if not self.targets:
            raise UserError(f"lora.targets is empty; name some of {', '.join(ALL_TARGETS)}")
        for pattern in self.targets:
            if not fnmatch.filter(ALL_TARGETS, pattern):
                raise UserError(f"lora.targets: '{pattern}' matches no layer; the layers are {', '.join(ALL_TARGETS)}")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that the selectors match, in the order of the block."""
        return tuple(name for name in ALL_TARGETS if any(fnmatch.fnmatch(name, one) for one in self.targets))


@struct.dataclass
class Adapters:
    """Trained low-rank updates: layer W acts as W + scale * a @ b."""

    layers: dict[str, dict[str, jax.Array]]  # name -> {"a": (L, in, r), "b": (L, r, out)}
    scale: float = struct.field(pytree_node=False)


def adapter_table(settings: LoraSettings, config: ModelConfig) -> dict[str, dict[str, ParamSpec]]:
    """A ``ParamSpec`` for both matrices of every adapter; ``b`` starts at zero, so step 0 is the base model."""
    table = {}
    for name in settings.layers:
        inputs, outputs, axis_in, axis_out = linear_shapes(config)[name]
        peft = f"base_model.model.model.transformer.blocks.{{layer}}.{name}"
        lead = config.n_layers
        table[name] = {
            "a": ParamSpec(
                (lead, inputs, settings.rank),
                ("layer", _split(axis_in), "rank"),
                f"{peft}.lora_A.weight",
                std=1 / math.sqrt(inputs),
                transpose=True,
            ),
            "b": ParamSpec(
                (lead, settings.rank, outputs),
                ("layer", "rank", _split(axis_out)),
                f"{peft}.lora_B.weight",
                init="zeros",
                transpose=True,
            ),
        }
    return table


def _split(axis: str) -> str:
    """The logical axis that splits an adapter's wide side over every device that shares the model."""
    return axis if axis == "embed" else f"{axis}_split"


def init_adapters(key: jax.Array, settings: LoraSettings, config: ModelConfig, dtype: Any = jnp.float32) -> Adapters:
    """Fresh adapters: ``a`` random, ``b`` zero.

    Raises:
      UserError: the rank is 0, which means full fine-tuning.
    """
    if settings.rank == 0:
        raise UserError("lora.rank is 0, which means full fine-tuning without adapters; set a positive rank")
    layers = map_table(lambda path, spec: init_leaf(key, path, spec, dtype), adapter_table(settings, config))
    return Adapters(layers=layers, scale=settings.alpha / settings.rank)


def adapter_shardings(settings: LoraSettings, config: ModelConfig, mesh: Mesh) -> Adapters:
    """Shardings in the shape of ``init_adapters``'s result."""
    layers = table_shardings(adapter_table(settings, config), mesh)
    return Adapters(layers=layers, scale=settings.alpha / settings.rank)


def merge(params: Params, adapters: Adapters) -> Params:
    """Parameters with the adapters added into their weights (in float32, returned in the weights' dtype)."""
    blocks = dict(params["blocks"])
    for name, pair in adapters.layers.items():
        weight = blocks[name]["weight"]
        a, b = (matrix.astype(jnp.float32) for matrix in _beside(weight, pair))
        update = jnp.einsum("lir,lro->lio", a, b, precision=exact(a.dtype)) * adapters.scale
        blocks[name] = blocks[name] | {"weight": (weight.astype(jnp.float32) + update).astype(weight.dtype)}
    return params | {"blocks": blocks}


def _beside(weight: jax.Array, pair: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Both matrices of an adapter laid out so that their product falls where ``weight`` (L, in, out) lies."""
    if not sharding.under_mesh():
        return pair["a"], pair["b"]
    layer, rows, columns = (*jax.typeof(weight).sharding.spec, None, None, None)[:3]
    return jax.reshard(pair["a"], jax.P(layer, rows, None)), jax.reshard(pair["b"], jax.P(layer, None, columns))
