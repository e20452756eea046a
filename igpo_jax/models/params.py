"""The parameter table: each weight declared once, with everything else (init, shardings, conversion) derived from it.

Weights are nested dicts of arrays. Those of the blocks are stacked on a leading layer axis, and matrices are stored
(in, out), the transpose of the checkpoint's layout.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from igpo_jax.errors import UserError
from igpo_jax.models.config import ModelConfig
from igpo_jax.parallel import sharding

Params = dict[str, Any]

#: The truncated normal is cut at this many standard deviations.
_CUTOFF = 3.0


@dataclasses.dataclass(frozen=True)
class ParamSpec:
    """One parameter: all there is to know about it."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]  #: logical axis of each dimension
    hf_name: str  #: name in the Hugging Face checkpoint; "{layer}" stands for the index on the layer axis
    init: str = "normal"  #: "normal" (truncated), "ones" or "zeros"
    std: float = 0.0  #: standard deviation of the normal before it is cut
    by_depth: bool = False  #: whether the std of layer i is divided by sqrt(2 (i + 1))
    transpose: bool = False  #: whether the checkpoint stores (out, in)

    @property
    def stacked(self) -> bool:
        """Whether dimension 0 is the layer axis."""
        return self.axes[0] == "layer"


def param_table(config: ModelConfig) -> dict[str, Any]:
    """Nested dict with a ``ParamSpec`` for every parameter of ``config``, in the layout of the parameters."""
    table: dict[str, Any] = {
        "wte": {"weight": _embedding(config)},
        "blocks": _block_table(config),
        "ln_f": _norm("ln_f", config, layers=None),
    }
    if not config.weight_tying:
        table["ff_out"] = _linear(
            "ff_out", config.d_model, config.embedding_size, ("embed", "vocab"), None, bias=config.include_bias
        )
    return table


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int, str, str]]:
    """The seven linear layers of a block: name -> (inputs, outputs, logical input axis, logical output axis)."""
    width, heads = config.d_model, config.n_heads * config.head_dim
    kv, mlp = config.n_kv_heads * config.head_dim, config.mlp_hidden_size
    return {
        "q_proj": (width, heads, "embed", "heads"),
        "k_proj": (width, kv, "embed", "kv_heads"),
        "v_proj": (width, kv, "embed", "kv_heads"),
        "attn_out": (heads, width, "heads", "embed"),
        "ff_proj": (width, mlp, "embed", "mlp"),
        "up_proj": (width, mlp, "embed", "mlp"),
        "ff_out": (mlp, width, "mlp", "embed"),
    }


def _block_table(config: ModelConfig) -> dict[str, dict[str, ParamSpec]]:
    blocks = {name: _norm(name, config, config.n_layers) for name in ("attn_norm", "ff_norm")}
    for name, (inputs, outputs, axis_in, axis_out) in linear_shapes(config).items():
        bias = config.qkv_bias if name in ("q_proj", "k_proj", "v_proj") else config.include_bias
        blocks[name] = _linear(name, inputs, outputs, (axis_in, axis_out), config.n_layers, bias)
    return blocks


def _hf_name(name: str, leaf: str, layers: int | None) -> str:
    return f"model.transformer.{'' if layers is None else 'blocks.{layer}.'}{name}.{leaf}"


def _embedding(config: ModelConfig) -> ParamSpec:
    shape = (config.embedding_size, config.d_model)
    std = 1 / math.sqrt(config.d_model)
    return ParamSpec(shape, ("vocab", "embed"), _hf_name("wte", "weight", None), std=std)


def _norm(name: str, config: ModelConfig, layers: int | None) -> dict[str, ParamSpec]:
    lead, axes = ((), ()) if layers is None else ((layers,), ("layer",))
    shape = (*lead, config.d_model)
    specs = {"weight": ParamSpec(shape, (*axes, "norm"), _hf_name(name, "weight", layers), init="ones")}
    if config.bias_for_layer_norm:
        specs["bias"] = ParamSpec(shape, (*axes, "norm"), _hf_name(name, "bias", layers), init="zeros")
    return specs


def _linear(
    name: str, inputs: int, outputs: int, axes: tuple[str, str], layers: int | None, bias: bool
) -> dict[str, ParamSpec]:
    """Weight and bias of one linear layer with LLaDA's "mitchell" initialisation.

    Every std is 1/sqrt(inputs), and the two layers that write to the residual stream are also divided by sqrt(2(i+1)).
    """
    lead, lead_axes = ((), ()) if layers is None else ((layers,), ("layer",))
    weight = ParamSpec(
        (*lead, inputs, outputs),
        (*lead_axes, *axes),
        _hf_name(name, "weight", layers),
        std=1 / math.sqrt(inputs),
        by_depth=layers is not None and name in ("attn_out", "ff_out"),
        transpose=True,
    )
    if not bias:
        return {"weight": weight}
    offset = ParamSpec((*lead, outputs), (*lead_axes, axes[1]), _hf_name(name, "bias", layers), init="zeros")
    return {"weight": weight, "bias": offset}


def map_table(
    function: Callable[[tuple[str, ...], ParamSpec], Any], table: dict[str, Any], path: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Nested dict with ``function(path, spec)`` in the place of every spec."""
    return {
        name: map_table(function, item, (*path, name)) if isinstance(item, dict) else function((*path, name), item)
        for name, item in table.items()
    }


def init_leaf(key: jax.Array, path: tuple[str, ...], spec: ParamSpec, dtype: Any) -> jax.Array:
    """Draws one parameter; its key depends on its own path only, so that other parameters may come and go."""
    if spec.init != "normal":
        return jnp.full(spec.shape, 1 if spec.init == "ones" else 0, dtype)
    key = jax.random.fold_in(key, zlib.crc32("/".join(path).encode()))
    draw = spec.std * jax.random.truncated_normal(key, -_CUTOFF, _CUTOFF, spec.shape, jnp.float32)
    if spec.by_depth:
        depth = jnp.arange(1, spec.shape[0] + 1, dtype=jnp.float32)
        draw /= jnp.sqrt(2 * depth).reshape(-1, *[1] * (len(spec.shape) - 1))
    return draw.astype(dtype)


def init(key: jax.Array, config: ModelConfig, dtype: Any = jnp.float32) -> Params:
    """Fresh parameters, as LLaDA initialises them (``init_fn: mitchell``).

    Jit it with ``out_shardings=shardings(config, mesh)`` and the parameters are born sharded, with the same values.
    """
    return map_table(lambda path, spec: init_leaf(key, path, spec, dtype), param_table(config))


def abstract(config: ModelConfig, dtype: Any = jnp.float32, mesh: Mesh | None = None) -> Params:
    """Shapes and dtypes of the parameters (and their shardings, with a mesh) without any memory behind them."""
    if mesh is None:
        return map_table(lambda _, spec: jax.ShapeDtypeStruct(spec.shape, dtype), param_table(config))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract(config, dtype),
        shardings(config, mesh),
    )


def shardings(config: ModelConfig, mesh: Mesh) -> dict[str, Any]:
    """Sharding of every parameter on ``mesh``.

    Raises:
      UserError: a dimension of the model does not divide over its mesh axis.
    """
    for field in ("n_heads", "n_kv_heads"):
        if getattr(config, field) % mesh.shape["tensor"]:
            raise UserError(
                f"model.{field} is {getattr(config, field)}, which does not divide over mesh.tensor "
                f"{mesh.shape['tensor']}; use a smaller mesh.tensor"
            )
    return table_shardings(param_table(config), mesh)


def table_shardings(table: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """Sharding on ``mesh`` for every spec of a table; a dimension that does not divide is a UserError."""

    def place(path: tuple[str, ...], spec: ParamSpec) -> jax.sharding.NamedSharding:
        for size, axis in zip(spec.shape, spec.axes, strict=True):
            rule = sharding.RULES[axis] if axis is not None else None
            names = (rule,) if isinstance(rule, str) else rule or ()
            ways = math.prod(mesh.shape[name] for name in names)
            if size % ways:
                over = " x ".join(f"mesh.{name}" for name in names)
                raise UserError(
                    f"parameter {'/'.join(path)} has size {size} on axis '{axis}', which does not divide over "
                    f"{over} {ways}; use a smaller {over}"
                )
        return sharding.named(mesh, spec.axes)

    return map_table(place, table)
