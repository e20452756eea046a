"""LLaDA checkpoints in Hugging Face form (config.json and weights) to and from the parameter tree, bit for bit."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from safetensors.numpy import save_file

from convert import layout
from convert.checkpoint_files import SINGLE, CheckpointFiles, load_config
from igpo_jax.errors import UserError, check_choice
from igpo_jax.models.config import DTYPES, ModelConfig
from igpo_jax.models.params import Params, ParamSpec, map_table, param_table, shardings

Path = str | os.PathLike[str]


def load_checkpoint(
    directory: Path, dtype: str | None = "float32", mesh: Mesh | None = None
) -> tuple[ModelConfig, Params]:
    """Reads a checkpoint folder.

    Args:
      directory: holds config.json and one model.safetensors, or shards with model.safetensors.index.json.
      dtype: "float32" or "bfloat16" to convert to, None to keep what the tensors have.
      mesh: where the parameters go, each born sharded; by default whole on the default device.

    Raises:
      UserError: a file is missing or damaged, or config and tensors do not fit together.
    """
    if dtype is not None:
        check_choice("dtype", dtype, DTYPES)
    config = load_config(directory)
    files = CheckpointFiles.open(directory)
    files.check(config)
    if dtype is None:
        files.dtype()  # refuses several: a stacked parameter has one
    # One parameter after the other, so that little more than the parameters themselves is in memory.
    if mesh is None:
        return config, map_table(lambda _, spec: jnp.asarray(_leaf(files, spec, dtype)), param_table(config))
    return config, jax.tree.map(
        lambda spec, place: _place(_leaf(files, spec, dtype), place), param_table(config), shardings(config, mesh)
    )


def load_safetensors(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint folder by name, in the stored dtype, layout (out, in).

    Tensors of a block may lie in different shards: the index alone says which file holds which.

    Raises:
      UserError: no weights are there, a shard is missing or damaged, or disagrees with the index.
    """
    return dict(CheckpointFiles.open(directory))


def params_from_hf(
    tensors: Mapping[str, np.ndarray], config: ModelConfig, dtype: str | None = None, source: str = "checkpoint"
) -> Params:
    """The parameter tree as host arrays: transposed to (in, out) and stacked over layers.

    Args:
      tensors: name -> array, as in the checkpoint.
      config: shape of the model.
      dtype: "float32" or "bfloat16" to convert to, None to keep.
      source: the checkpoint's name, for messages.

    Raises:
      UserError: a tensor is missing, unknown, or has another shape than the config says; dtypes to keep differ.
    """
    layout.check_names({name: np.shape(tensor) for name, tensor in tensors.items()}, config, source)
    if dtype is None and len({str(tensor.dtype) for tensor in tensors.values()}) > 1:
        raise UserError(f"{source}: the tensors have several dtypes, but a stacked parameter has one; choose a dtype")
    return map_table(lambda _, spec: _leaf(tensors, spec, dtype), param_table(config))


def params_to_hf(params: Params, config: ModelConfig) -> dict[str, np.ndarray]:
    """Every tensor by its checkpoint name, in the checkpoint's layout and the parameters' dtype; in memory."""
    tensors: dict[str, np.ndarray] = {}

    def store(spec: ParamSpec, value: Any) -> None:
        host = np.asarray(value)
        for name, part in zip(_names(spec), host if spec.stacked else [host], strict=True):
            # A transposed view would be written in the wrong order.
            tensors[name] = np.ascontiguousarray(part.T if spec.transpose else part)

    jax.tree.map(store, param_table(config), params)
    return tensors


def save_checkpoint(directory: Path, config: ModelConfig, params: Params) -> None:
    """Writes config.json and one model.safetensors, made in memory; each file appears whole or not at all."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f".{SINGLE}.partial"
    save_file(params_to_hf(params, config), partial, metadata={"format": "pt"})
    os.replace(partial, directory / SINGLE)
    dtype = str(jax.tree.leaves(params)[0].dtype)
    partial = directory / ".config.json.partial"
    partial.write_text(json.dumps(config.to_hf() | {"torch_dtype": dtype}, indent=2, sort_keys=True) + "\n")
    os.replace(partial, directory / "config.json")


def _names(spec: ParamSpec) -> list[str]:
    """Checkpoint names behind one parameter, one per layer where it is stacked."""
    return [spec.hf_name.format(layer=layer) for layer in range(spec.shape[0])] if spec.stacked else [spec.hf_name]


def _leaf(tensors: Mapping[str, np.ndarray], spec: ParamSpec, dtype: str | None) -> np.ndarray:
    """One parameter, filled from the tensors behind it one by one."""
    out = None
    for layer, name in enumerate(_names(spec)):
        part = layout.turned(np.asarray(tensors[name]), spec.transpose)
        if not spec.stacked:
            return part if dtype is None else part.astype(jnp.dtype(dtype), copy=False)
        if out is None:
            out = np.empty(spec.shape, part.dtype if dtype is None else jnp.dtype(dtype))
        out[layer] = part
    assert out is not None  # a model has at least one layer
    return out


def _place(array: np.ndarray, place: jax.sharding.NamedSharding) -> jax.Array:
    """A host array on the mesh; each process copies only the slices of its own devices."""
    return jax.make_array_from_callback(array.shape, place, lambda index: array[index])
